-- Performing calls: claim one, start it, call its function, end its run. pg_cron does it by an entry of its own, and where it does not, a
-- drainer; any number may do so at once.

create or replace function bridge.calls_claimant() returns uuid language sql immutable set search_path = pg_catalog, pg_temp
  -- Who claims calls, in the place of a drainer.
  return md5('bridge.calls')::uuid;

create or replace function bridge.call_holder(p_run uuid) returns integer language sql stable set search_path = pg_catalog, pg_temp
  -- The process id of the session that performs a run at this moment; null when none does. Each holds a lock of its run, from before the
  -- call to the end of the transaction: no row has to be refreshed while a function works, and no right is needed to see it.
  begin atomic
    select l.pid from pg_catalog.pg_locks l
    where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
      and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('bridge.call ' || p_run::text, 0)
    limit 1;
  end;

create or replace function bridge.call_limit(p_job bridge.job) returns interval language sql stable set search_path = pg_catalog, pg_temp
  -- How long one attempt of a call may take: its own timeout, else that of its policy; null for no limit.
  return (bridge.delivered_headers(p_job)->'timelimit'->>0)::double precision * interval '1 second';

create or replace function bridge.begin_call(out seq bigint, out run uuid) returns record language plpgsql security definer set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Claim the most urgent call that is due and start it, for bridge.perform_call in the caller's next transaction. Null when none is due.
  --
  -- Locks  as bridge.claim: never waits, so that any number may perform calls
declare
  v_claimed bridge.claimed_job;
begin
  select c.* into v_claimed from bridge.claim(bridge.calls_claimant(), 'bridge.calls', gen_random_uuid(), 1) c;
  begin_call.seq := v_claimed.seq;
  begin_call.run := bridge.start(v_claimed.seq, v_claimed.token::uuid, null, pg_backend_pid());
end
$$;

create or replace function bridge.value_of_call(p_job bridge.job) returns json language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Call the function of a job. Returns its value; the number of its rows when it returns a set.
  --
  -- Errors  JB001 when the call cannot be made any more, JB004 when the value is too large; what the function raises
declare
  v_role constant text := p_job.options->'call'->>'role';
  v_plan bridge.call_plan;
  v_value json;
begin
  if v_role is null then
    perform bridge.refuse(format('job of task %s is no call', p_job.task), 'queue bridge.calls is for schedules that call functions: move it to another');
  end if;
  v_plan := bridge.plan_of_call(p_job.options->'call'->>'function', p_job.args::jsonb, p_job.kwargs::jsonb, v_role);
  perform set_config('bridge.schedule', p_job.headers->>'bridge_schedule', true), set_config('bridge.slot', p_job.headers->>'bridge_slot', true);
  v_value := bridge.call_as(v_role, v_plan.statement, v_plan.arguments, v_plan.path);
  if octet_length(v_value::text) > bridge.setting('max_payload') then
    perform bridge.refuse(format('the value of %s is %s bytes, the limit is %s', p_job.task, octet_length(v_value::text), bridge.setting('max_payload')),
      'return a reference or a count instead, or raise the setting max_payload', 'JB004');
  end if;
  return v_value;
end
$$;

create or replace function bridge.why_stopped(p_job bridge.job, p_run uuid) returns json language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The error of a call whose statement was cancelled because its run is over; null when it is not, and somebody else cancelled it.
declare
  v_limit constant interval := bridge.call_limit(p_job);
  v_row bridge.inflight;
begin
  select i.* into v_row from bridge.inflight i where i.run = p_run and i.seq = p_job.seq;
  return case
    when v_row.stop_signal is not null then json_build_object('type', 'Terminated', 'message', 'it was stopped while it ran')
    when v_row.started_at + v_limit <= clock_timestamp() then json_build_object('type', 'TimeLimitExceeded',
      'message', format('%s ran for longer than its timeout, %s, and was stopped', p_job.task, v_limit)) end;
end
$$;

create or replace function bridge.perform_call(p_seq bigint, p_run uuid) returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Perform a call that has begun, and end its run, in one transaction: what the function did stands if and only if its run counts.
  --
  -- Returns  the job's new status; null when the run had been superseded: then nothing of what it did stands
  -- Locks    an advisory lock of the run, see bridge.call_holder. No row: a call can be cancelled while it runs
declare
  v_job bridge.job;
  v_state text;
  v_message text;
  v_detail text;
  v_hint text;
  v_context text;
begin
  perform pg_advisory_xact_lock(hashtextextended('bridge.call ' || p_run::text, 0));
  select j.* into v_job from bridge.inflight i join bridge.job j on j.seq = i.seq where i.seq = p_seq and i.run = p_run;
  if not found then
    return null;
  end if;
  begin
    if not bridge.finish(p_seq, p_run, 'succeeded', bridge.value_of_call(v_job)) then
      perform bridge.refuse('the run was superseded while it went on', 'another run of the job counts', 'JB006');
    end if;
    return 'succeeded';
  exception when query_canceled or assert_failure or others then
    get stacked diagnostics v_state = returned_sqlstate, v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint,
      v_context = pg_exception_context;
  end;
  return bridge.fail(p_seq, p_run, coalesce(case when v_state = '57014' then bridge.why_stopped(v_job, p_run) end,
    json_build_object('type', 'SqlError', 'message', format('%s (SQLSTATE %s)', v_message, v_state), 'sqlstate', v_state,
      'bases', array['SQLSTATE_' || v_state], 'traceback', concat_ws(E'\n', nullif(v_detail, ''), nullif(v_hint, ''), v_context))),
    p_final => v_job.options->'call' is null);
end
$$;

create or replace procedure bridge.run_calls(p_seconds double precision default 0) language plpgsql as $$
  -- Perform the calls that are due, one after the other, each in a transaction of its own. Any number may do so at once.
  --
  --   p_seconds  go on looking for so long, once a second: for a pg_cron that knows minutes only
declare
  -- A procedure that commits can carry no SET clause, and a function may have left another search_path in the session: each transaction
  -- sets its own before it uses an operator.
  v_until constant timestamptz := pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => p_seconds);
  v_call record;
  v_is_over boolean;
begin
  loop
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    select b.seq, b.run into v_call from bridge.begin_call() b;
    v_is_over := pg_catalog.clock_timestamp() >= v_until;
    commit;
    if v_call.run is not null then
      perform bridge.perform_call(v_call.seq, v_call.run);
      commit;
    else
      exit when v_is_over;
      perform pg_catalog.pg_sleep(1);
    end if;
  end loop;
end
$$;

create or replace function bridge.calls_wait() returns boolean language sql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  -- Whether a drainer should perform calls: one is due, and where pg_cron ticks it has not taken it within 5 s.
  begin atomic
    select not bridge.is_paused('bridge.calls') and (
      exists (select from bridge.ready r where r.queue = 'bridge.calls'
        and r.since <= clock_timestamp() - (select case t.source when 'pg_cron' then interval '5 seconds' else interval '0' end from bridge.tick_state t))
      or exists (select from bridge.lane l where l.queue = 'bridge.calls' and l.blocked_by is null));
  end;

create or replace function bridge.calls_to_stop(p_now timestamptz default clock_timestamp()) returns setof integer language plpgsql
  security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- The process ids of sessions whose call is over: cancelled, or running for longer than its timeout or deadline allows. To be cancelled
  -- in this transaction: while it holds a run's row, that run cannot end, so that its session is in that call and in no other.
  --
  -- Locks  the rows of those runs (skip locked)
begin
  return query
  select h.pid from (
    select i.run from bridge.inflight i cross join lateral (select o as job from bridge.job o where o.seq = i.seq offset 0) j
    where i.queue = 'bridge.calls' and i.taken_by is null and i.state = 'running'
      and (i.stop_signal is not null or i.started_at + bridge.call_limit(j.job) <= p_now)
    for update of i skip locked
  ) o
  cross join lateral (select bridge.call_holder(o.run) as pid) h
  where h.pid is not null;
end
$$;

create or replace function bridge.stop_calls(p_now timestamptz default clock_timestamp()) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Cancel the statements of calls that are over. The tick does so with the rights of the schema's owner, a drainer with its own: a role may
  -- cancel what roles run that it is a member of.
  --
  -- Returns  how many
declare
  v_pid integer;
  v_count integer := 0;
begin
  for v_pid in select bridge.calls_to_stop(p_now) loop
    begin
      v_count := v_count + pg_cancel_backend(v_pid)::integer;
    exception when insufficient_privilege then
      null;  -- the other's to do
    end;
  end loop;
  return v_count;
end
$$;

create or replace function bridge.lose_calls(p_limit integer, p_now timestamptz) returns integer language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Take their runs from sessions that are gone. A run that has just begun may not hold its lock yet. Returns how many.
declare
  v_row record;
  v_count integer := 0;
begin
  for v_row in
    select i.seq, i.token, i.pid from bridge.inflight i
    where i.queue = 'bridge.calls' and i.taken_by is null and i.state = 'running' and i.started_at < p_now - interval '5 seconds'
      and bridge.call_holder(i.run) is null
    limit p_limit
  loop
    continue when bridge.is_in_other_hands(v_row.seq);
    if bridge.lose(v_row.seq, v_row.token, format('the session that performed it (pid %s) is gone', v_row.pid)) is not null then
      v_count := v_count + 1;
    end if;
  end loop;
  return v_count;
end
$$;

create or replace function bridge.register_calls() returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Have pg_cron perform calls, by an entry of its own, where it is and this role may: when the first schedule is made that calls a
  -- function. An install does the same (bridge.register_cron). Where it cannot, drainers perform them.
declare
  v_name constant text := bridge.cron_name('calls');
  v_version constant text := (select e.extversion from pg_catalog.pg_extension e where e.extname = 'pg_cron');
begin
  if v_version is null or bridge.cron_lacks() is not null or not (select r.rolcanlogin from pg_catalog.pg_roles r where r.rolname = current_user) then
    return;
  elsif not exists (select from cron.job c where c.jobname = v_name) then
    if string_to_array(split_part(v_version, '-', 1), '.')::integer[] >= array[1, 5] then
      perform cron.schedule(v_name, '2 seconds', 'call bridge.run_calls()');
    else
      perform cron.schedule(v_name, '* * * * *', 'call bridge.run_calls(57)');
    end if;
  end if;
exception when insufficient_privilege then
  null;
end
$$;
