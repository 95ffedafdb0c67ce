-- Transactional completion: a run ends in the transaction of its own task, together with what the task writes. Its row is locked from then
-- on until that transaction ends. Whoever would end the run otherwise waits for that a little, or passes the job over, and finds afterwards
-- that the run is over, or that it goes on as if nothing had been said.

do $$
begin
  if to_regclass('bridge.untold') is null then
    -- Parts of chords that an application counts in a result backend of its own: the part's job is completed, and not counted there yet.
    create table bridge.untold (
      id      uuid primary key,              -- the job
      worker  uuid not null,                 -- whose processes count it when the task has returned, or died
      queue   text not null,
      context json not null                  -- what counting it needs of the message
    ) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 2000000000);
  end if;
end
$$;

create or replace function bridge.hold_run(p_seq bigint, p_run uuid, p_token uuid default null) returns void language plpgsql
  security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Lock the row of a run until the caller's transaction ends: nobody else ends the run meanwhile.
  --
  --   p_token  the run's delivery, for the case that a crash forgot the start
  --
  -- Locks    the row of its place
  -- Errors   JB006 when the run is over already, or has been told to stop: nothing of the caller's transaction may stand then
declare
  v_signal text;
begin
  select i.stop_signal into v_signal from bridge.inflight i
  where i.seq = p_seq and (i.run = p_run or (i.run is null and i.token = p_token)) for update;
  if not found then
    perform bridge.refuse(format('run %s of job number %s is over: it ended, or another run took its place', p_run, coalesce(p_seq::text, 'unknown')),
      'roll back: nothing of this run may stand', 'JB006');
  elsif v_signal is not null then
    perform bridge.refuse(format('run %s of job number %s was told to stop, by a cancel or its deadline', p_run, p_seq),
      'roll back, and let the task end', 'JB006');
  end if;
end
$$;

create or replace function bridge.complete_run(p_seq bigint, p_run uuid, p_result json, p_outcome jsonb default null, p_token uuid default null)
  returns void language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- End a job as succeeded by the run that has it, in the transaction of its own writes.
  --
  --   p_result, p_outcome, p_token  as in bridge.finish
  --
  -- Errors   as bridge.hold_run
begin
  perform bridge.hold_run(p_seq, p_run, p_token);
  -- Looked for and not caught: an error would break the caller's transaction, and catching it would cost a savepoint each time.
  if to_regclass('bridge.finished_' || to_char(clock_timestamp() at time zone 'utc', 'YYYYMMDD')) is null then
    perform bridge.make_days();
  end if;
  perform bridge.finish(p_seq, p_run, 'succeeded', p_result, null, coalesce(p_outcome, '{}') || '{"completed": true}', p_token);
end
$$;

create or replace function bridge.complete(seq bigint default null, run uuid default null, result jsonb default null, id uuid default null)
  returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- For workers in any language: end the job of a run as succeeded, together with what else this transaction writes. When it commits, the
  -- job is over, and what waits for it goes on; when it rolls back, the run goes on. Commit soon: the job's row is locked until then.
  --
  -- For people: say by its id alone that the work of a job that has not started is done otherwise. What waits for it goes on.
  --
  --   seq     the job's number, from its message; or
  --   id      its id
  --   run     what bridge.start has returned; null for a job that has not started
  --   result  what the task returns
  --
  -- Errors   JB001 when the arguments name no job, or two; or when a later step of a Celery chain, or a callback, follows the job: only
  --          Celery can make those
  --          JB002 when there is no such job
  --          JB006 when the run is over already, or was told to stop; without a run: when the job runs, or has ended
declare
  v_job bridge.job;
begin
  if (complete.seq is null) = (complete.id is null) or (complete.run is null and complete.id is null) then
    perform bridge.refuse(format('seq is %s, id is %s and run is %s', coalesce(complete.seq::text, 'null'), coalesce(complete.id::text, 'null'),
      coalesce(complete.run::text, 'null')), 'give seq and run, or id and run, or the id of a job that has not started');
  end if;
  select j.* into v_job from bridge.job j where j.seq = complete.seq or j.id = complete.id;
  if bridge.is_followed(v_job.embed) then
    perform bridge.refuse(format('a step of a chain or a callback follows job %s', v_job.id),
      'run its task in a Celery worker, which can make what follows');
  elsif complete.run is null then
    perform bridge.complete_waiting(complete.id, complete.result::json);
  else
    perform bridge.complete_run(coalesce(complete.seq, v_job.seq), complete.run, complete.result::json);
  end if;
end
$$;

create or replace function bridge.complete_waiting(p_id uuid, p_result json) returns void language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- End a job as succeeded that has not started, wherever it waits; one that keeps moving is looked for again.
  --
  -- Errors   JB002 when there is no such job, JB006 when it runs or has ended
declare
  v_seq bigint;
  v_status text;
begin
  for i in 1..3 loop
    select j.seq into v_seq from bridge.job j where j.id = p_id;
    exit when v_seq is null;
    if bridge.leave_waiting(v_seq) then
      perform bridge.end_job(v_seq, 'succeeded', p_result, null, '{"completed": true, "reason": "somebody has completed it by hand"}', 0,
        null, null, null, null);
      return;
    end if;
  end loop;
  select v.status into v_status from bridge.jobs v where v.id = p_id;
  if v_status is null then
    perform bridge.refuse(format('job %s does not exist', p_id), 'see: select id, status from bridge.jobs', 'JB002');
  end if;
  perform bridge.refuse(format('job %s is %s', p_id, v_status),
    case v_status when 'running' then 'cancel it first, or name its run' else 'only jobs that have not started can be completed by hand' end, 'JB006');
end
$$;

create or replace function bridge.is_followed(p_embed json) returns boolean language sql immutable set search_path = pg_catalog, pg_temp
  -- Whether a Celery call's message names callbacks or later steps of a chain.
  return coalesce(json_typeof(p_embed->'callbacks') = 'array' and json_array_length(p_embed->'callbacks') > 0, false)
    or coalesce(json_typeof(p_embed->'chain') = 'array' and json_array_length(p_embed->'chain') > 0, false);

create or replace function bridge.fate_of_run(p_seq bigint, p_run uuid, p_token uuid default null) returns text language plpgsql
  security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
  -- What has become of a run that was completed in some transaction. Never waits.
  --
  -- Returns  completed; running: that transaction rolled back, and the run has its job still; open: its row is locked, so the transaction
  --          may still do either; over: something else has ended the run
begin
  -- Committed is what it is nearly always: asked first, and only of the partitions of the last two days.
  if exists (select from bridge.finished f where f.seq = p_seq and f.run = p_run and f.finished_at > now() - interval '1 day') then
    return 'completed';
  end if;
  perform from bridge.inflight i
  where i.seq = p_seq and (i.run = p_run or (i.run is null and i.token = p_token)) for update skip locked;
  if found then
    return 'running';
  end if;
  return case when exists (select from bridge.inflight i where i.seq = p_seq and (i.run = p_run or (i.run is null and i.token = p_token)))
      then 'open'
    when exists (select from bridge.finished f where f.seq = p_seq and f.run = p_run) then 'completed' else 'over' end;
end
$$;

create or replace function bridge.completing_session(p_seq bigint) returns text language sql set search_path = pg_catalog, pg_temp
  -- The process id of the session whose transaction has the row of a job in flight, for people; "unknown" when that has just ended.
  return coalesce((select l.pid::text from bridge.inflight i
    join pg_catalog.pg_locks l on l.locktype = 'transactionid' and l.granted and l.transactionid = i.xmax where i.seq = p_seq), 'unknown');

create or replace function bridge.wait_for_run(p_seq bigint) returns void language plpgsql set search_path = pg_catalog, pg_temp
  set lock_timeout = '2s' as $$
  -- Before somebody else than its run ends what runs: wait for a transaction that is completing it. That is over within moments; one that
  -- stays open is reported instead of waited for.
  --
  -- Locks    the row of its place, if the job runs still
  -- Errors   JB007 when the transaction is open still after 2 s
begin
  perform from bridge.inflight i where i.seq = p_seq and i.state = 'running' for update skip locked;
  if found then
    return;
  end if;
  perform from bridge.inflight i where i.seq = p_seq and i.state = 'running' for update;
exception when lock_not_available then
  perform bridge.refuse(format('job number %s is being completed by a transaction of its own task', p_seq),
    format('repeat this when that transaction has ended (of the session with pid %s)', bridge.completing_session(p_seq)), 'JB007');
end
$$;

create or replace function bridge.is_in_other_hands(p_seq bigint) returns boolean language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- For the sweep: whether a transaction has the row of a job in flight, so that it is to be passed over. Else the row is locked.
begin
  perform from bridge.inflight i where i.seq = p_seq for update skip locked;
  return not found;
end
$$;

create or replace function bridge.was_completed(p_seq bigint, p_token uuid) returns boolean language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Asked when the process of a run is dead: had it completed its job? Waits a little for what the process has left on its way.
  --
  -- Errors   JB007 when that takes longer: a session notices the death of its client when its statement is over
begin
  perform bridge.wait_for_run(i.seq) from bridge.inflight i where i.seq = p_seq and i.token = p_token;
  return exists (select from bridge.finished f where f.seq = p_seq and f.status = 'succeeded' and f.outcome ? 'completed');
end
$$;

create or replace function bridge.keep_untold(p_seq bigint, p_run uuid, p_context json) returns void language sql security definer
  set search_path = pg_catalog, pg_temp
  -- Remember, with the completion, that a part of a chord is still to be counted in the application's own result backend.
  begin atomic
    insert into bridge.untold (id, worker, queue, context)
    select j.id, i.worker, j.queue, p_context from bridge.inflight i join bridge.job j on j.seq = i.seq where i.seq = p_seq and i.run = p_run
    on conflict (id) do update set worker = excluded.worker, queue = excluded.queue, context = excluded.context;
  end;

create or replace function bridge.told(p_id uuid) returns void language sql security definer set search_path = pg_catalog, pg_temp
  -- The part is counted.
  begin atomic
    delete from bridge.untold where id = p_id;
  end;

create or replace function bridge.pass_on_untold(p_limit integer) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Have parts counted that nobody is left to count, because their worker is dead: by a job for another worker of their queue.
  --
  -- Returns  how many jobs were made
declare
  v_row bridge.untold;
  v_count integer := 0;
begin
  for v_row in
    delete from bridge.untold u where u.id = any (array (
      select o.id from bridge.untold o join bridge.worker w on w.id = o.worker
      where w.lost_at is not null or w.stopped_at is not null limit p_limit for update of o skip locked))
    returning u.*
  loop
    perform bridge.enqueue_as(bridge.new_id(), jsonb_populate_record(bridge.defaults(), jsonb_build_object('task', 'bridge.make_up',
      'args', jsonb_build_array(v_row.context), 'queue', v_row.queue, 'priority', 9, 'max_attempts', 20)));
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
