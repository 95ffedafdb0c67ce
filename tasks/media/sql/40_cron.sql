-- pg_cron, where it is. Jobs need it for nothing: the trigger makes them and whoever ticks bridge moves them. It brings the runbooks' entries:
-- a minute tick that lets waiting jobs move up, the hourly alert, and the monthly cleaning of its own log.

create or replace function media.cron_tick() returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- What the entry process-flashcard-jobs calls. Returns one sentence for cron.job_run_details.
begin
  return format('%s jobs moved up', media.release());
end
$$;

create or replace function media.cron_name(p_name text) returns text language sql stable set search_path = pg_catalog, pg_temp
  -- The name of a cron entry in this environment: process-flashcard-jobs, process-flashcard-jobs-staging.
  return p_name || coalesce('-' || nullif(media.get('environment'), ''), '');

create or replace function media.cron_entries() returns table (name text, schedule text, command text) language sql stable set search_path = pg_catalog, pg_temp
  -- The entries that belong to this pipeline.
  begin atomic
    values (media.cron_name('process-flashcard-jobs'), media.get('schedule'), 'select media.cron_tick()'),
      (media.cron_name('alert-stuck-jobs'), '0 * * * *', 'select media.check_alerts()'),
      (media.cron_name('clean-cron-log'), '0 3 1 * *', 'select media.clean_cron_log()');
  end;

create or replace function media.has_cron() returns boolean language sql stable set search_path = pg_catalog, pg_temp
  -- Whether pg_cron is in this database and this role may use it.
  return case when exists (select from pg_catalog.pg_extension e where e.extname = 'pg_cron') then has_schema_privilege('cron', 'usage') else false end;

create or replace function media.add_cron_entries() returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Make the cron entries that are missing; one that an operator has changed or paused is left as it is.
  --
  -- Returns  one sentence that says what pg_cron does for this pipeline now
declare
  v_entry record;
  v_there boolean;
  v_left text := '';
begin
  if not media.has_cron() then
    return 'pg_cron is not here or not ours to use: jobs run all the same; to have alerts checked, call media.check_alerts() hourly';
  end if;
  for v_entry in select e.* from media.cron_entries() e loop
    execute 'select exists (select from cron.job where jobname = $1)' into v_there using v_entry.name;
    continue when v_there;
    begin
      execute 'select cron.schedule($1, $2, $3)' using v_entry.name, v_entry.schedule, v_entry.command;
    exception when others then
      -- before 1.5 pg_cron knows no seconds, and a role may lack the right: jobs run without the entry
      v_left := v_left || format('; no entry %s: %s', v_entry.name, sqlerrm);
    end;
  end loop;
  return format('pg_cron has the entries %s%s', (select string_agg(e.name, ', ') from media.cron_entries() e), v_left);
end
$$;

create or replace function media.remove_cron_entries() returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Remove this environment's cron entries. Returns how many there were.
declare
  v_count integer := 0;
begin
  if media.has_cron() then
    execute 'select count(cron.unschedule(jobid)) from cron.job where jobname in (select e.name from media.cron_entries() e)' into v_count;
  end if;
  return v_count;
end
$$;

create or replace function media.cron_status() returns table (jobid bigint, jobname text, schedule text, command text, active boolean)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
  -- The cron entries of this pipeline, of every environment in this database; no rows without pg_cron.
begin
  if media.has_cron() then
    return query execute 'select jobid, jobname::text, schedule, command, active from cron.job
      where jobname ~ ''^(process-flashcard-jobs|alert-stuck-jobs|clean-cron-log)(-|$)'' order by jobid';
  end if;
end
$$;

create or replace function media.cron_runs(p_limit integer default 10)
  returns table (runid bigint, jobname text, status text, return_message text, start_time timestamptz, end_time timestamptz)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
  -- The last runs of these entries, newest first; no rows without pg_cron. By runid: it is the only indexed column of a log that grows.
begin
  if media.has_cron() then
    return query execute 'select d.runid, s.jobname, d.status, d.return_message, d.start_time, d.end_time
      from cron.job_run_details d join media.cron_status() s on s.jobid = d.jobid order by d.runid desc limit $1' using p_limit;
  end if;
end
$$;

select bridge.define_view('cron_failures', $view$
  select r.runid, r.jobname, r.return_message, r.start_time, r.end_time,
    case
      when r.return_message ~* 'does not exist' then 'function not found: run tasks/media/sql again'
      when r.return_message ~* 'permission denied|authoriz|authentic' then 'invalid authorization: the entry''s role lacks a right: see tasks/media/sql/90_role.sql'
      when r.return_message ~* 'timeout|connection failed' then 'timeout: the database did not take the connection or the statement_timeout of the role is too short'
      else 'see the server log at start_time'
    end as remedy
  from media.cron_runs(1000) r
  where r.status = 'failed'
$view$, 'media');

create or replace function media.clean_cron_log(p_older interval default interval '30 days') returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Delete old runs of these entries from pg_cron's log, which it never cleans itself. Returns how many.
declare
  v_count integer := 0;
begin
  if media.has_cron() then
    execute 'delete from cron.job_run_details where end_time < clock_timestamp() - $1 and jobid in (select s.jobid from media.cron_status() s)' using p_older;
    get diagnostics v_count = row_count;
  end if;
  return v_count;
end
$$;

create or replace function media.alter_cron(p_name text, p_schedule text default null, p_active boolean default null) returns text language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Change one entry in place; a plain update of cron.job is refused to all but its owner.
  --
  -- Returns  one sentence that says what was done, or why not
declare
  v_job bigint;
begin
  if not media.has_cron() then
    return 'pg_cron is not here';
  end if;
  execute 'select jobid from cron.job where jobname = $1' into v_job using p_name;
  if v_job is null then
    return format('pg_cron has no entry %s: select media.add_cron_entries()', p_name);
  end if;
  execute 'select cron.alter_job(job_id => $1, schedule => $2, active => $3)' using v_job, p_schedule, p_active;
  return format('pg_cron changed the entry %s', p_name);
exception when insufficient_privilege then
  return format('pg_cron left the entry %s as it is: have an administrator grant execute on function cron.alter_job to %I', p_name, current_user);
end
$$;

create or replace function media.set(name text, value text) returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Change a setting; it counts from the next upload on, and waiting jobs move up where it leaves room. No reinstall, no restart.
  --
  --   name   a name from media.settings, or iterations.thumbnail and the like for a pace of one job type
  --   value  the new value as text; null removes the pace of one job type
  --
  -- Returns  one sentence with the capacity that follows
  -- Errors   JB001 the value, JB002 the name
declare
  v_cron text := '';
begin
  perform media.check_setting(set.name, coalesce(set.value, '0'));
  if set.name = 'environment' then
    perform media.remove_cron_entries();
  end if;
  if set.value is null and position('.' in set.name) > 0 then
    delete from media.settings s where s.name = set.name;
  elsif set.value is null then
    perform bridge.refuse(format('%s is null', set.name), 'give a value');
  else
    insert into media.settings as s (name, value, about) values (set.name, set.value, 'of one job type')
    on conflict on constraint settings_pkey do update set value = excluded.value, changed_at = clock_timestamp();
  end if;
  if set.name = 'environment' then
    v_cron := '; ' || media.add_cron_entries();
  elsif set.name = 'schedule' then
    v_cron := '; ' || media.alter_cron(media.cron_name('process-flashcard-jobs'), p_schedule => set.value);
  end if;
  perform media.release();
  return format('%s is %s; capacity %s jobs an hour%s', set.name, coalesce(set.value, 'removed'),
    coalesce(media.capacity(coalesce(nullif(split_part(set.name, '.', 2), ''), 'process'))::text, 'without bound'), v_cron);
end
$$;

create or replace function media.set_schedule(schedule text) returns text language sql set search_path = pg_catalog, pg_temp
  -- Change how often the tick comes, as */2 * * * * or 0 * * * *; the short form of media.set('schedule', …).
  return media.set('schedule', schedule);

create or replace function media.pause() returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Start no more media jobs until media.resume(); uploads are still taken, and wait. What runs goes on.
  --
  -- Returns  one sentence; it says when the queue is shared, because a pause holds a whole queue
declare
  v_queue constant text := media.get('queue');
begin
  perform bridge.pause(v_queue);
  return format('queue %s is paused%s; %s', v_queue,
    case when v_queue = 'celery' then ' for all its tasks (to pause media alone: select media.set(''queue'', ''media''))' else '' end,
    media.alter_cron(media.cron_name('process-flashcard-jobs'), p_active => false));
end
$$;

create or replace function media.resume() returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- End a pause.
begin
  perform bridge.resume(media.get('queue'));
  return format('queue %s is resumed; %s', media.get('queue'), media.alter_cron(media.cron_name('process-flashcard-jobs'), p_active => true));
end
$$;

create or replace function media.diagnose() returns table (check_name text, ok boolean, found text, remedy text) language plpgsql stable security definer set search_path = pg_catalog, pg_temp
  as $$
  -- Answer "it does not run": is the entry there, is it active, did it run, is the queue paused, are workers alive, are jobs stuck.
begin
  return query
    select 'cron entry exists', s.jobid is not null, coalesce(s.schedule, 'none'), 'select media.add_cron_entries(); jobs run without it too'
    from (values (1)) one left join media.cron_status() s on s.jobname = media.cron_name('process-flashcard-jobs')
    union all
    select 'cron entry is active', coalesce(s.active, false), coalesce(s.active::text, 'none'), 'select media.resume()'
    from (values (1)) one left join media.cron_status() s on s.jobname = media.cron_name('process-flashcard-jobs')
    union all
    select 'last cron run succeeded', coalesce(r.status = 'succeeded', false), coalesce(r.status || ': ' || r.return_message, 'no run yet'), 'see media.cron_failures'
    from (values (1)) one left join media.cron_runs(1) r on true
    union all
    select 'queue is not paused', s.paused_at is null, coalesce('paused at ' || s.paused_at, 'running'), 'select media.resume()'
    from (values (1)) one left join bridge.job_queue_stats s on s.queue = media.get('queue')
    union all
    select 'a worker is alive', count(*) > 0, count(*) || ' alive', 'celery -A tasks worker' from bridge.workers w where w.status = 'alive'
    union all
    select 'a drainer is alive', count(*) > 0, count(*) || ' alive', 'bridge drain' from bridge.drainers d where d.status = 'alive'
    union all
    select 'no job is stuck', count(*) = 0, count(*) || ' stuck', 'tasks/media/sql/ops/trigger-worker.sh, then bridge doctor'
    from bridge.stuck_jobs j where j.task like 'media.%';
end
$$;

select media.add_cron_entries();
