-- What the runbooks ask, under the names and status words that stand in them: queued, done, failed.

select bridge.define_view('jobs', $view$
  -- queued is everything that has not ended; bridge_status tells a waiting job from a running one
  select j.id, coalesce(u.job_type, substring(j.task from 7)) as job_type, u.upload_id, j.kwargs->>'path' as path,
    case j.status when 'succeeded' then 'done' when 'failed' then 'failed' when 'cancelled' then 'failed' when 'expired' then 'failed'
      else 'queued' end as status,
    j.created_at, j.updated_at, coalesce(j.error->>'message', case when j.status in ('cancelled', 'expired') then j.status end) as error_message,
    j.status as bridge_status, j.result, j.progress, j.attempts, j.max_attempts, j.worker, j.run_at, j.started_at, j.finished_at, j.queue
  from bridge.jobs j
  left join media.upload_jobs u on u.job_id = j.id
  where j.task in ('media.process', 'media.thumbnail', 'media.analysis', 'media.card')
$view$, 'media');

select bridge.define_view('job_stats_hourly', $view$
  select count(*) filter (where j.status = 'done') as completed, count(*) filter (where j.status = 'failed') as failed,
    count(*) filter (where j.status = 'queued') as still_queued
  from media.jobs j
  where j.updated_at > now() - interval '1 hour' or j.status = 'queued'
$view$, 'media');

select bridge.define_view('job_rate_per_minute', $view$
  select date_trunc('minute', j.updated_at) as minute, count(*) as jobs_completed
  from media.jobs j
  where j.status = 'done' and j.updated_at > now() - interval '1 hour'
  group by 1
$view$, 'media');

-- Failed jobs with what to do about each.
select bridge.define_view('job_failures', $view$
  select j.id, j.job_type, j.path, j.error_message,
    case
      when j.error_message ~* 'not registered|unknown task|NotRegistered' then 'function not found: start the workers with "celery -A tasks worker"'
      when j.error_message ~* 'CRON_SECRET|MEDIA_ANALYSIS_KEY|answered 40[13]' then
        'invalid authorization: give the workers the secret that the receiver has, and restart them'
      when j.error_message ~* 'time ?limit|timed? ?out|no answer|within .* s' then 'timeout: raise MEDIA_DECODE_TIMEOUT or MEDIA_ANALYSIS_TIMEOUT, or send smaller files'
      else 'replace the file and upload it again, or: select bridge.retry(id)'
    end as remedy,
    j.attempts, j.worker, j.updated_at as failed_at
  from media.jobs j
  where j.status = 'failed'
$view$, 'media');

-- What the workers are doing and did last.
select bridge.define_view('worker_pull', $view$
  select j.worker, j.id, j.job_type, j.path, j.bridge_status as status, j.progress, j.started_at, j.finished_at,
    j.finished_at - j.started_at as duration, j.error_message
  from media.jobs j
  where j.started_at is not null
$view$, 'media');

-- What the workers say of each file, line by line.
select bridge.define_view('worker_log', $view$
  select j.path, j.id, j.job_type, l.attempt_number as attempt, l.at, l.level, l.message
  from media.jobs j cross join lateral bridge.logs(j.id) l
$view$, 'media');

create or replace function media.check_alerts() returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Look for jobs that are queued for too long, and post one message to the webhook when there are too many.
  --
  -- The message goes out as a job (media.webhook, most urgent), so that it is retried and leaves a trace; with no worker alive at all it
  -- waits like everything else: watch "bridge doctor" from outside for that.
  --
  -- Returns  one sentence that says what was found and done
declare
  v_after constant interval := make_interval(secs => media.get('alert_after')::integer);
  v_above constant integer := media.get('alert_above')::integer;
  v_url constant text := media.get('alert_url');
  v_secret constant text := nullif(media.get('secret_env'), '');
  v_count bigint;
  v_oldest timestamptz;
  v_found text;
begin
  select count(*), min(j.created_at) into v_count, v_oldest from media.jobs j where j.status = 'queued' and j.created_at < clock_timestamp() - v_after;
  v_found := format('%s jobs queued for more than %s, alert above %s', v_count, v_after, v_above);
  if v_count <= v_above then
    return v_found || ': no alert';
  elsif v_url = '' then
    return v_found || ': alert, not sent: select media.set(''alert_url'', ''https://…'')';
  end if;
  perform bridge.enqueue(task => 'media.webhook', queue => media.get('queue'), priority => 9, max_attempts => 5, backoff => '[60, 300, 900]',
    unique_key => 'media.alert-stuck-jobs', expires_at => clock_timestamp() + interval '1 day',
    kwargs => jsonb_strip_nulls(jsonb_build_object('url', v_url, 'token_env', v_secret, 'payload', jsonb_build_object('alert', 'alert-stuck-jobs',
      'environment', media.get('environment'), 'queued', v_count, 'oldest', v_oldest, 'message', v_found))));
  return v_found || ': alert sent';
end
$$;

create or replace procedure media.smoke_test(path text, seconds double precision default 60) language plpgsql as $$
  -- Upload a file and follow its job to the end: call media.smoke_test('/srv/ingest/test.jpg').
  --
  --   path     a file that the workers can read
  --   seconds  how long to wait
  --
  -- Errors   JB006 when the job failed, or did not end in time
declare
  -- A procedure that commits can carry no SET clause: every name here is qualified.
  v_until constant timestamptz := pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => smoke_test.seconds);
  v_upload uuid;
  v_seen text := '';
  v_job record;
begin
  insert into media.uploads (path, version) values (smoke_test.path, 'smoke ' || pg_catalog.clock_timestamp()::text) returning id into v_upload;
  commit;
  loop
    select j.id, j.status, j.bridge_status, j.error_message, j.created_at, j.updated_at into v_job from media.jobs j where j.upload_id = v_upload;
    if v_job.bridge_status is distinct from v_seen then
      raise notice 'job % is % (%), created_at %, updated_at %', v_job.id, v_job.status, v_job.bridge_status, v_job.created_at, v_job.updated_at;
      v_seen := v_job.bridge_status;
    end if;
    exit when v_job.status <> 'queued' or pg_catalog.clock_timestamp() > v_until;
    commit;
    perform pg_catalog.pg_sleep(0.1);
  end loop;
  if v_job.status <> 'done' then
    raise exception using errcode = 'JB006',
      message = pg_catalog.format('job %s is %s (%s) %s', v_job.id, v_job.status, v_job.bridge_status, v_job.error_message),
      hint = 'see media.job_failures for failed jobs; for queued ones run "bridge doctor"';
  end if;
end
$$;
