-- What callbacks make of an event: a NOTIFY, or a job that delivers a message. Nothing here may make the end of a job fail.

create or replace function bridge.delivery_backoff() returns jsonb language sql immutable set search_path = pg_catalog, pg_temp
  -- The pauses between the attempts to deliver one message: ten attempts take nine hours.
  return '{"base": 5, "factor": 3, "cap": 14400, "jitter": 0.2}'::jsonb;

create or replace function bridge.deliver(p_task text, p_queue text, p_kwargs jsonb, p_parent text) returns uuid language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Make the job that delivers one message: ten attempts within nine hours.
  --
  --   p_parent  Celery id of the job that it tells of
declare
  v_queue constant text := coalesce(nullif(p_queue, 'bridge.calls'), 'celery');  -- no worker consumes that
begin
  return bridge.enqueue_as(bridge.new_id(), jsonb_populate_record(bridge.defaults(), jsonb_build_object('task', p_task, 'kwargs', p_kwargs,
    'queue', v_queue, 'max_attempts', 10, 'timeout', '2 minutes', 'headers', jsonb_build_object('parent_id', p_parent),
    'backoff', bridge.delivery_backoff())));
end
$$;

create or replace function bridge.send_callback(p_callback bridge.callback, p_event text, p_job jsonb, p_result json) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Tell one callback of one event.
  --
  --   p_job     what may be known of the job
  --   p_result  its result, for callbacks that ask for it
declare
  v_queue text := p_callback.delivery_queue;
  v_payload jsonb;
begin
  if p_callback.kind = 'channel' then
    perform pg_notify(p_callback.target, json_build_object('event', p_event, 'id', p_job->'id', 'task_id', p_job->'task_id',
      'task', p_job->'task', 'queue', p_job->'queue', 'attempts', p_job->'attempts')::text);
    return;
  end if;
  if v_queue is null then
    select s.value #>> '{}' into v_queue from bridge.setting s
    where s.name = 'callback_queue' and s.value #>> '{}' ~ '^[^\s,]{1,255}$';  -- what is no queue is not used
    v_queue := coalesce(v_queue, p_job->>'queue');
  end if;
  v_payload := jsonb_build_object('type', 'job.' || p_event, 'timestamp', clock_timestamp(), 'data', p_job);
  if p_callback.kind = 'notifier' then
    perform bridge.deliver('bridge.deliver_notification', v_queue, jsonb_build_object('callback', p_callback.name, 'target', p_callback.target,
      'payload', v_payload), p_job->>'task_id');
    return;
  end if;
  if p_callback.result then
    v_payload := jsonb_set(v_payload, '{data,result}', coalesce(bridge.short_result(p_result), 'null'));
  end if;
  perform bridge.deliver('bridge.deliver_webhook', v_queue, jsonb_build_object('callback', p_callback.name, 'url', p_callback.target,
    'secret', p_callback.secret, 'payload', v_payload), p_job->>'task_id');
end
$$;

create or replace function bridge.plain_error(p_error json) returns jsonb language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Type and message of an error, without its traceback, in the length of a message. What no text can hold is left out: no end of a job
  -- fails for that.
begin
  return case when p_error is not null then jsonb_build_object('type', p_error->>'type', 'message', left(p_error->>'message', 2000)) end;
exception when data_exception then
  return jsonb_build_object('type', 'unknown', 'message', 'an error whose text cannot be shown');
end
$$;

create or replace function bridge.short_result(p_result json) returns jsonb language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- A result that fits into a message; null when it is too large or nothing that jsonb can hold.
begin
  return case when octet_length(p_result::text) < 49152 then p_result::jsonb end;
exception when data_exception then
  return null;
end
$$;

create or replace function bridge.call_back(p_id uuid, p_event text) returns void language plpgsql
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Something has just happened to a job, in this transaction: tell the callbacks that want to know. What delivers for us has none.
  --
  --   p_event  its final status, or retrying
  --
  -- Index    job_id, finished_id of the last two days
declare
  v_job record;
  v_told jsonb;
  v_own jsonb;
  v_callback bridge.callback;
begin
  select j.* into v_job from (
    select l.id, l.task_id, l.task, l.queue, l.attempts, l.max_attempts, l.created_at, null::timestamptz as started_at,
      null::timestamptz as finished_at, l.error, null::json as result, l.options
    from bridge.job l where p_event = 'retrying' and l.id = p_id
    union all
    select f.id, f.task_id, f.task, f.queue, f.attempts, f.max_attempts, f.created_at, f.started_at, f.finished_at, f.error, f.result, f.options
    from bridge.finished f where p_event <> 'retrying' and f.id = p_id and f.finished_at > now() - interval '1 day') j;
  if v_job.id is null or v_job.task in ('bridge.deliver_webhook', 'bridge.deliver_notification') then
    return;
  end if;
  v_told := jsonb_build_object('id', v_job.id, 'task_id', left(coalesce(v_job.task_id, v_job.id::text), 500), 'task', v_job.task, 'queue', v_job.queue,
    'status', p_event, 'attempts', v_job.attempts, 'max_attempts', v_job.max_attempts, 'created_at', v_job.created_at,
    'started_at', v_job.started_at, 'finished_at', v_job.finished_at, 'error', bridge.plain_error(v_job.error));
  for v_callback in
    select c.* from bridge.callback c where p_event = any (c.events) and (c.queue is null or c.queue = v_job.queue) and bridge.is_like(v_job.task, c.task)
    order by c.name
  loop
    perform bridge.send_callback(v_callback, p_event, v_told, v_job.result);
  end loop;
  v_own := bridge.full_webhook(v_job.options->'webhook');
  if v_own->'events' ? p_event then
    v_callback := row('webhook', 'webhook', v_own->>'url', null, null, '{}'::text[], v_own->>'secret', (v_own->>'result')::boolean, null, now(), null);
    perform bridge.send_callback(v_callback, p_event, v_told, v_job.result);
  end if;
end
$$;

create or replace function bridge.try_callback(name text) returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Tell a callback of something that did not happen, to see whether it arrives: the first of its events, of a task bridge.try.
  --
  -- Errors  JB002 when there is none of that name
declare
  v_callback bridge.callback;
  v_id constant uuid := bridge.new_id();
begin
  select c.* into v_callback from bridge.callback c where c.name = try_callback.name;
  if not found then
    perform bridge.refuse(format('callback %L does not exist', left(try_callback.name, 80)), 'see: select name, kind from bridge.callbacks', 'JB002');
  end if;
  perform bridge.send_callback(v_callback, v_callback.events[1], jsonb_build_object('id', v_id, 'task_id', v_id, 'task', 'bridge.try',
    'queue', coalesce(v_callback.queue, 'celery'), 'status', v_callback.events[1], 'attempts', 1), null);
end
$$;

-- What operators read: the rules, and the jobs that deliver.
select bridge.define_view('callbacks', $view$
  select c.name, c.kind, c.target, c.task, c.queue, c.events, c.secret, c.result, c.delivery_queue, c.changed_at,
    c.headers
  from bridge.callback c
$view$);

select bridge.define_view('deliveries', $view$
  select j.id, j.kwargs->>'callback' as callback, j.kwargs->'payload'->'data'->>'id' as job, j.kwargs->'payload'->>'type' as event,
    coalesce(j.kwargs->>'url', j.kwargs->>'target') as target, j.status, j.attempts, j.max_attempts, j.error->>'message' as error, j.run_at,
    j.created_at, j.finished_at
  from bridge.jobs j where j.task in ('bridge.deliver_webhook', 'bridge.deliver_notification')
$view$);
