-- Making jobs. `bridge.enqueue` is what users, triggers and other languages call; the Celery side calls `bridge.enqueue_message`.

do $$
begin
  if to_regtype('bridge.job_request') is null then
    -- What may be asked of a job: the arguments of bridge.enqueue, by name and in their order.
    create type bridge.job_request as (
      task text,
      args jsonb,
      kwargs jsonb,
      queue text,
      priority integer,
      run_at timestamptz,
      delay interval,
      max_attempts integer,
      backoff jsonb,
      unique_key text,
      on_conflict text,
      depends_on uuid[],
      timeout interval,
      expires_at timestamptz,
      headers jsonb,
      retry_on text[],
      never_on text[],
      soft_timeout interval,
      deadline interval,
      serial_key text,
      unique_until text,
      unique_for interval,
      webhook jsonb,
      on_parent_failure text,
      batch uuid
    );
  end if;
end
$$;

create or replace function bridge.place(p_seq bigint, p_queue text, p_rank smallint, p_size integer, p_run_at timestamptz,
    p_now timestamptz default clock_timestamp())
  returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Put a job where it waits: where claims find it when it is due, else `scheduled`.
begin
  if p_run_at > p_now then
    insert into bridge.scheduled (seq, run_at) values (p_seq, p_run_at);
  else
    perform bridge.make_ready(p_seq, p_queue, p_rank, p_size);
  end if;
end
$$;

create or replace function bridge.check_job(p_task text, p_queue text, p_args json, p_kwargs json, p_size integer)
  returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse what no worker could ever run, before anything is written.
declare
  v_limit integer;
begin
  if p_task is null or length(p_task) not between 1 and 255 or p_task ~ '[\s\u0001-\u001f\u007f-\u009f]' then
    perform bridge.refuse(format('task is %L', left(p_task, 80)), 'give the registered name of a Celery task, 1 to 255 characters without spaces and control characters');
  elsif p_queue is null or length(p_queue) not between 1 and 255 or p_queue ~ '[\s,\u0001-\u001f\u007f-\u009f]' then
    perform bridge.refuse(format('queue is %L', left(p_queue, 80)), 'give a queue name, 1 to 255 characters without spaces and commas, nor control characters');
  elsif p_queue = 'bridge.calls' then
    perform bridge.refuse('queue is bridge.calls, which no worker consumes', 'choose another; to call a function: bridge.schedule(…, function => …)');
  elsif json_typeof(p_args) is distinct from 'array' then
    perform bridge.refuse(format('args of task %s is %s', p_task, coalesce('a JSON ' || json_typeof(p_args), 'null')), 'give a JSON array, [] for none');
  elsif json_typeof(p_kwargs) is distinct from 'object' then
    perform bridge.refuse(format('kwargs of task %s is %s', p_task, coalesce('a JSON ' || json_typeof(p_kwargs), 'null')), 'give a JSON object, {} for none');
  end if;
  if p_size > 400 then  -- less cannot be so deep
    perform bridge.check_depth('args of task ' || p_task, p_args), bridge.check_depth('kwargs of task ' || p_task, p_kwargs);
  end if;
  if p_size > 65536 then   -- the setting is read only where it can matter
    v_limit := bridge.setting('max_payload');
    if p_size > v_limit then
      perform bridge.refuse(format('payload of task %s is %s bytes, the limit is %s', p_task, p_size, v_limit),
        'pass a reference instead, or raise the setting max_payload', 'JB004');
    end if;
  end if;
end
$$;

create or replace function bridge.defaults() returns bridge.job_request language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- What is asked of a job when nothing is, in bridge.enqueue's signature and here.
declare
  v_asked bridge.job_request;
begin
  v_asked.args := '[]';
  v_asked.kwargs := '{}';
  v_asked.queue := 'celery';
  v_asked.priority := 0;
  v_asked.on_conflict := 'skip';
  return v_asked;
end
$$;

create or replace function bridge.check_options(p_asked bridge.job_request, p_now timestamptz) returns void language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- Refuse what is asked of a job when it contradicts itself or can never be.
begin
  if num_nonnulls(p_asked.run_at, p_asked.delay, p_asked.expires_at) > 0 then
    perform bridge.check_moment('run_at', p_asked.run_at, p_now), bridge.check_moment('expires_at', p_asked.expires_at, p_now),
      bridge.check_delay('delay', p_asked.delay);
  end if;
  if p_asked.priority is null or p_asked.priority not between 0 and 9 then
    perform bridge.refuse(format('priority is %s', coalesce(p_asked.priority::text, 'null')), 'give 0 to 9; higher is sooner');
  elsif p_asked.max_attempts not between 1 and 10000 then
    perform bridge.refuse(format('max_attempts is %s', p_asked.max_attempts), 'give 1 to 10000; 1 means no retry');
  elsif p_asked.run_at is not null and p_asked.delay is not null then
    perform bridge.refuse('both run_at and delay are given', 'give one of them');
  elsif p_asked.timeout <= interval '0' then
    perform bridge.refuse(format('timeout is %s', justify_interval(p_asked.timeout)), 'give a positive interval, or null for no limit');
  elsif p_asked.expires_at <= greatest(p_asked.run_at, p_now + p_asked.delay, p_now) then
    perform bridge.refuse(format('expires_at is %s, before the job is due', p_asked.expires_at), 'give a later moment');
  elsif p_asked.serial_key = '' or length(p_asked.serial_key) > 500 then
    perform bridge.refuse(format('serial_key has %s characters', length(p_asked.serial_key)), 'give a text of 1 to 500 characters, or null for none');
  elsif p_asked.on_parent_failure is not null then
    perform bridge.check_on_failure(p_asked.on_parent_failure);
  end if;
  if p_asked.unique_key is not null or p_asked.unique_until is not null or p_asked.unique_for is not null or p_asked.on_conflict is distinct from 'skip' then
    perform bridge.check_unique(p_asked);
  end if;
  if num_nonnulls(p_asked.backoff, p_asked.retry_on, p_asked.never_on, p_asked.soft_timeout, p_asked.deadline) > 0 then
    perform bridge.check_retry(p_asked);
  end if;
  if p_asked.webhook is not null then
    perform bridge.check_webhook(p_asked.webhook);
  end if;
end
$$;

create or replace function bridge.check_headers(p_headers jsonb) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse headers that are no JSON object, or set what the bridge itself makes.
declare
  v_ours constant text[] := array['id', 'task', 'lang', 'eta', 'expires', 'retries', 'timelimit', 'compression', 'bridge', 'bridge_attempt', 'bridge_run', 'bridge_signature'];
begin
  if jsonb_typeof(p_headers) <> 'object' then
    perform bridge.refuse(format('headers is a JSON %s', jsonb_typeof(p_headers)), 'give a JSON object');
  elsif p_headers ?| v_ours then
    perform bridge.refuse(format('headers sets %s', (select string_agg(k, ', ') from jsonb_object_keys(p_headers) k where k = any (v_ours))),
      'these are made by the bridge: use the arguments task, run_at, expires_at and timeout');
  end if;
  perform bridge.check_depth('headers', p_headers::json);
end
$$;

create or replace function bridge.is_free_at_start(p_asked bridge.job_request) returns boolean language sql immutable set search_path = pg_catalog, pg_temp
  -- Whether the start of a job gives its key back. What changes a waiting job cannot change a running one, so there it is the default.
  return p_asked.unique_for is null
    and coalesce(p_asked.unique_until, case when p_asked.on_conflict in ('replace', 'move', 'debounce') then 'started' end, 'finished') = 'started';

create or replace function bridge.options_of(p_asked bridge.job_request) returns jsonb language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- What few jobs ask for, by its name, as the column options keeps it; null when nothing is.
begin
  return nullif(jsonb_strip_nulls(jsonb_build_object(
    'webhook', p_asked.webhook,
    'max_attempts', p_asked.max_attempts,
    'retry_on', p_asked.retry_on,
    'never_on', p_asked.never_on,
    'unique_until', case when p_asked.unique_key is not null and bridge.is_free_at_start(p_asked) then 'started' end,
    'unique_for', p_asked.unique_for,
    'tenant', case when bridge.tenants_are_on() then bridge.tenant() end
  )), '{}');
end
$$;

create or replace function bridge.add_job(p_id uuid, p_task_id text, p_task text, p_queue text, p_rank smallint, p_args json, p_kwargs json,
    p_embed json, p_payload bytea, p_content_type text, p_content_encoding text, p_headers json, p_properties json, p_size integer,
    p_expires_at timestamptz, p_run_at timestamptz, p_asked bridge.job_request, p_given boolean, p_now timestamptz, p_chord text default null)
  returns uuid language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Write one job and put it in its place. Every way to enqueue ends here.
  --
  --   p_asked    what is asked of it beyond its content: how often it may fail, its unique key, its parents …; null for most Celery calls
  --   p_given    the caller chose the id: a live job of that id is left as it is, a finished one gives way to the new job, and one that
  --              was revoked before it came ends as cancelled
  --              (null: it was made for this Celery call, so no job had it before and nobody has revoked it)
  --
  -- Returns  the id of the job; that of another when it has the unique key; null when a live job has this id already
declare
  v_seq constant bigint := nextval('bridge.job_seq_seq');
  v_run_at timestamptz := coalesce(p_run_at, p_now);
  v_made_at timestamptz := p_now;
  v_held bridge.unique_key;
  v_parents bigint[];
begin
  if p_asked.unique_key is not null then
    v_held := bridge.take_key(v_seq, p_id, p_asked, p_now);
    v_made_at := greatest(p_now, clock_timestamp());  -- it may have waited for the end of the job that had the key
    if v_held.id = p_id or p_asked.on_conflict = 'skip' and v_held.id is not null then
      return nullif(v_held.id, p_id);
    end if;
  end if;
  if p_asked.depends_on <> '{}' then
    v_parents := bridge.parents_of(p_asked.depends_on, p_asked.on_parent_failure);
  end if;
  if p_asked.batch is not null then
    perform bridge.join_batch(p_asked.batch);
  end if;
  insert into bridge.job (seq, id, task_id, task, queue, rank, args, kwargs, embed, payload, content_type, content_encoding, headers, properties,
      size, max_attempts, backoff, unique_key, expires_at, run_at, created_at, updated_at, chord, options, deadline,
      serial_key, batch)
  overriding system value
  values (v_seq, p_id, p_task_id, p_task, p_queue, p_rank, p_args, p_kwargs, p_embed, p_payload, p_content_type, p_content_encoding, p_headers,
      p_properties, p_size, coalesce(p_asked.max_attempts, case when not p_given then 3 else 1 end), p_asked.backoff, p_asked.unique_key, p_expires_at, v_run_at, v_made_at, v_made_at, p_chord,
      case when p_asked is null and not bridge.tenants_are_on() then null else bridge.options_of(p_asked) end, v_run_at + p_asked.deadline,
      p_asked.serial_key, p_asked.batch)
  on conflict (id) do nothing;
  if not found then
    perform bridge.give_key_back(p_asked.unique_key, v_seq, v_held.seq);
    return null;
  elsif v_held.id is not null then
    perform bridge.change_waiting(v_held.seq, v_seq, p_asked.on_conflict, p_now);
    return v_held.id;
  end if;
  if p_given then
    -- A statement of its own: its snapshot is later than the insert, which waited for a finish of this id that was under way.
    perform bridge.make_way(p_id, v_seq);
  end if;
  if v_parents <> '{}' then
    perform bridge.block(v_seq, v_run_at, v_parents, p_asked.on_parent_failure);
  else
    -- What bridge.place comes to for most jobs, without asking for what is known here.
    insert into bridge.ready (queue, rank, seq, size, gate) select p_queue, p_rank, v_seq, p_size, g.version from bridge.gate g
    where not g.in_use and v_run_at <= p_now and p_asked.serial_key is null;
    if found then
      perform bridge.wake_drainers(p_queue);
    else
      perform bridge.place(v_seq, p_queue, p_rank, p_size, v_run_at, p_now);
    end if;
  end if;
  if v_parents is not null or p_asked.batch is not null then
    perform bridge.link_job(p_id, p_asked.depends_on, p_asked.batch, p_now);
  end if;
  if p_given and bridge.take_revoke(p_id, p_headers, p_now) then
    perform bridge.leave_waiting(v_seq);
    perform bridge.end_job(v_seq, 'cancelled', null, null, null, 0, null, null, null, null);
  end if;
  return p_id;
end
$$;

create or replace function bridge.enqueue_as(p_id uuid, p_asked bridge.job_request) returns uuid language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- What bridge.enqueue does, under an id that the caller has made, and without asking who calls: also for jobs that the bridge makes itself.
  --
  -- Returns  that id; the id of another live job when that has the unique key
  -- Errors   as bridge.enqueue
declare
  v_now constant timestamptz := clock_timestamp();
  v_args constant json := p_asked.args;
  v_kwargs constant json := p_asked.kwargs;
  v_size constant integer := octet_length(v_args::text) + octet_length(v_kwargs::text);
begin
  perform bridge.check_job(p_asked.task, p_asked.queue, v_args, v_kwargs, v_size);
  perform bridge.check_options(p_asked, v_now);
  if bridge.tenants_are_on() then
    perform bridge.check_tenant(p_asked);
    p_asked.unique_key := bridge.tenant_key(p_asked.unique_key);
    p_asked.serial_key := bridge.tenant_key(p_asked.serial_key);
  end if;
  return coalesce(bridge.add_job(p_id, null, p_asked.task, p_asked.queue, (9 - p_asked.priority)::smallint, v_args, v_kwargs, null, null, null, null,
    case when num_nonnulls(p_asked.headers, p_asked.timeout, p_asked.soft_timeout) > 0 then bridge.headers_of(p_asked) end, null, v_size, p_asked.expires_at, coalesce(p_asked.run_at, v_now + p_asked.delay), p_asked, false, v_now), p_id);
end
$$;

create or replace function bridge.enqueue(
    task text, args jsonb default '[]', kwargs jsonb default '{}', queue text default 'celery', priority integer default 0,
    run_at timestamptz default null, delay interval default null, max_attempts integer default null, backoff jsonb default null,
    unique_key text default null, on_conflict text default 'skip', depends_on uuid[] default null, timeout interval default null,
    expires_at timestamptz default null, headers jsonb default null, retry_on text[] default null, never_on text[] default null,
    soft_timeout interval default null, deadline interval default null,
    serial_key text default null,
    unique_until text default null, unique_for interval default null,
    webhook jsonb default null,
    on_parent_failure text default null,
    batch uuid default null)
  returns uuid language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Enqueue one job inside the caller's transaction: it exists when that commits, and never existed when it rolls back.
  --
  --   task          registered name of a Celery task
  --   args, kwargs  what it is called with: a JSON array and a JSON object
  --   queue         the Celery queue that workers consume
  --   priority      0 to 9, higher is sooner
  --   run_at, delay when it is due: a moment, or an interval from now; not both
  --   max_attempts  how often it may fail before it is failed, 1 = no retry; null: as its retry policy says, else 3
  --   backoff       wait between attempts: seconds, a list of seconds, or {"base", "factor", "cap", "jitter"}
  --   unique_key    at most one job has it
  --   on_conflict   when another has it: skip returns the id of that job, raise is JB003, and of one that has not begun, replace exchanges
  --                 the content, move the time when it is due, debounce both
  --   depends_on    ids of jobs that must succeed first; see on_parent_failure
  --   timeout       hard limit of one attempt
  --   expires_at    a job not started by then ends as expired
  --   headers       further headers of the Celery message, a JSON object
  --   retry_on      further attempts only after errors of these classes, never_on: none after these; by full name or its last part
  --   soft_timeout  soft limit of one attempt: the task gets SoftTimeLimitExceeded
  --   deadline      limit of all attempts, from when it is due: none starts later, one that runs is stopped
  --   serial_key    jobs that have the same run one at a time, in the order in which they became due; a retry comes before the next
  --   unique_until  when the key is free again: started or finished, the default; with replace, move and debounce that is started
  --   unique_for    instead: the key is free when so much time has passed since this call, whatever becomes of the job
  --   webhook       where its end is posted to: an address, or {"url", "events", "secret", "result"} as in bridge.set_webhook
  --   on_parent_failure  when a job of depends_on does not succeed: cancel (this job; null is the same), run (however it ends), wait
  --                 (until it is redriven and succeeds; cancelled when that is cancelled)
  --   batch         the batch that it belongs to, see bridge.create_batch
  --
  -- Returns  the job's id; that of the other job when it has the unique key
  -- Errors   JB001 an argument, JB003 the unique key is taken, JB004 the payload is too large, JB008 the caller may not enqueue this task
begin
  if bridge.tasks_are_ruled() or enqueue.task like 'bridge.%' then
    perform bridge.check_task(enqueue.task);
  end if;
  return bridge.enqueue_as(bridge.new_id(), row(enqueue.task, enqueue.args, enqueue.kwargs, enqueue.queue, enqueue.priority, enqueue.run_at,
    enqueue.delay, enqueue.max_attempts, enqueue.backoff, enqueue.unique_key, enqueue.on_conflict, enqueue.depends_on, enqueue.timeout,
    enqueue.expires_at, enqueue.headers, enqueue.retry_on, enqueue.never_on, enqueue.soft_timeout, enqueue.deadline,
    enqueue.serial_key, enqueue.unique_until, enqueue.unique_for, enqueue.webhook, enqueue.on_parent_failure, enqueue.batch)::bridge.job_request);
end
$$;

create or replace function bridge.asked_of_call(p_task text, p_options jsonb) returns bridge.job_request language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- What a Celery call asks of its job beyond what Celery itself knows: the option bridge of the task and of the call.
  --
  --   p_options  an object of arguments of bridge.enqueue; null for most
  --
  -- Errors  JB001 an option that is none, or that Celery has a word of its own for
declare
  v_names text;
  v_asked bridge.job_request;
begin
  if p_options is null then
    return null;
  elsif jsonb_typeof(p_options) <> 'object' then
    perform bridge.refuse(format('option bridge of task %s is a JSON %s', p_task, jsonb_typeof(p_options)), 'give an object of arguments of bridge.enqueue');
  end if;
  select string_agg(k, ', ') into v_names from jsonb_object_keys(p_options) k
  where k not in ('max_attempts', 'backoff', 'unique_key', 'on_conflict', 'depends_on', 'retry_on', 'never_on', 'deadline',
    'serial_key',
    'unique_until', 'unique_for',
    'webhook',
    'on_parent_failure', 'batch');
  if v_names is not null then
    perform bridge.refuse(format('option bridge of task %s has %s', p_task, v_names),
      'give arguments of bridge.enqueue that Celery has no option for; countdown, eta, expires, priority and queue are Celery''s');
  end if;
  v_asked := bridge.defaults();
  v_asked := jsonb_populate_record(v_asked, p_options);
  perform bridge.check_options(v_asked, clock_timestamp());
  if bridge.tenants_are_on() then
    v_asked.unique_key := bridge.tenant_key(v_asked.unique_key);
    v_asked.serial_key := bridge.tenant_key(v_asked.serial_key);
  end if;
  return v_asked;
end
$$;

create or replace function bridge.enqueue_message(p_id uuid, p_task_id text, p_task text, p_queue text, p_rank smallint, p_args json,
    p_kwargs json, p_embed json, p_payload bytea, p_content_type text, p_content_encoding text, p_headers json, p_properties json,
    p_expires_at timestamptz, p_run_at timestamptz, p_chord text default null, p_options jsonb default null,
    p_links jsonb default null, p_fresh boolean default false)
  returns uuid language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Enqueue what a Celery call would have published. Failing is the task's own business there: one attempt, and Celery's own retries, where
  -- neither an option nor a policy says otherwise.
  --
  --   p_args, p_kwargs, p_embed  the three parts of a JSON body; '[]', '{}' and null when p_payload carries the body
  --   p_properties               what the message's properties must say again when it is published
  --   p_chord                    the chord whose part it is
  --   p_options                  see bridge.asked_of_call
  --   p_links                    whom it belongs to: {"called": id of the job that called it, "group": id of its group}; null for most
  --   p_fresh                    its id was made for this call, and it has no stamps: it can neither have ended before nor have been revoked
  --
  -- Returns  its id; that of another job when it has the unique key; null when a job of that id is live already: nothing was written. One
  --          whose run has replaced itself by this task becomes it
  -- Errors   JB001, JB004, JB008 as bridge.enqueue
declare
  v_size constant integer := coalesce(octet_length(p_payload), octet_length(p_args::text) + octet_length(p_kwargs::text));
  v_asked constant bridge.job_request := bridge.asked_of_call(p_task, p_options);
  v_stands uuid;
  v_seq bigint;
begin
  perform bridge.check_job(p_task, p_queue, p_args, p_kwargs, v_size);
  perform bridge.check_message(p_task, p_headers, p_properties);
  if bridge.tasks_are_ruled() or p_task like 'bridge.%' then
    perform bridge.check_tasks_within(p_task, p_embed, p_payload is null);
  end if;
  v_stands := bridge.add_job(p_id, p_task_id, p_task, p_queue, p_rank, p_args, p_kwargs, p_embed, p_payload, p_content_type, p_content_encoding,
    p_headers, p_properties, v_size, p_expires_at, p_run_at, v_asked, case when p_fresh is not true then true end, clock_timestamp(), p_chord);
  if p_links is not null and coalesce(v_stands = p_id, true) then
    perform bridge.link_message(p_id, p_links);
  end if;
  if v_stands is not null then
    return v_stands;
  end if;
  v_seq := bridge.take_replaced(p_id);
  if v_seq is null then
    return null;
  end if;
  perform bridge.renew(v_seq, p_task, p_queue, p_rank, p_args, p_kwargs, p_embed, p_payload, p_content_type, p_content_encoding, p_headers,
    p_properties, v_size, p_expires_at);
  perform bridge.place(v_seq, p_queue, (select j.rank from bridge.job j where j.seq = v_seq), v_size, coalesce(p_run_at, clock_timestamp()));
  return p_id;
end
$$;
