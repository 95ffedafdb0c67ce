-- What a tick does for schedules: a job for every slot that is due, policies for those that were missed or overlap, and the end of runs.

create or replace function bridge.add_run(p_schedule text, p_slot timestamptz, p_trigger text, p_now timestamptz, p_status text default 'open',
    p_reason text default null)
  returns bigint language sql set search_path = pg_catalog, pg_temp
  -- Note a run. Returns its number; null when this slot has one: whoever comes second does nothing.
  begin atomic
    insert into bridge.schedule_run (schedule, slot, trigger_type, status, reason, created_at, finished_at)
    values (p_schedule, p_slot, p_trigger, p_status, p_reason, p_now, case when p_status = 'skipped' then p_now end)
    on conflict (schedule, slot) where trigger_type <> 'manual' do nothing
    returning id;
  end;

create or replace function bridge.start_run(p_schedule bridge.schedule, p_run bigint, p_now timestamptz) returns uuid language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Make the job of a run: of a task, of the call of a function, or one that delivers a webhook. It carries the schedule's name and the slot as headers, which its task reads as self.request.bridge_schedule and
  -- self.request.bridge_slot.
declare
  v_id uuid;
  v_run bridge.schedule_run;
  v_posts constant boolean := p_schedule.webhook is not null;
  v_due timestamptz;
  v_expires timestamptz;
  v_headers jsonb;
begin
  select r.* into v_run from bridge.schedule_run r where r.id = p_run;
  v_due := case when p_schedule.jitter > interval '0' then p_now + random() * p_schedule.jitter end;
  v_expires := coalesce(v_due, p_now) + p_schedule.expires;
  v_headers := coalesce(p_schedule.headers, '{}') || jsonb_build_object('bridge_schedule', p_schedule.name, 'bridge_slot',
    to_char(v_run.slot at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'));
  if p_schedule.function is not null then
    v_id := bridge.start_call(p_schedule, v_due, v_expires, v_headers, p_now);
  else
    -- Whoever ticks: that its task may be enqueued was asked of whoever wrote the schedule.
    v_id := bridge.enqueue_as(bridge.new_id(), jsonb_populate_record(bridge.defaults(), jsonb_build_object('task', p_schedule.task,
      'args', case when v_posts then '[]' else p_schedule.args end,
      'kwargs', case when v_posts then bridge.posted_run(p_schedule, v_run) else p_schedule.kwargs end, 'queue', p_schedule.queue,
      'priority', p_schedule.priority, 'run_at', v_due, 'max_attempts', coalesce(p_schedule.max_attempts, case when v_posts then 10 end),
      'backoff', coalesce(p_schedule.backoff, case when v_posts then bridge.delivery_backoff() end),
      'timeout', coalesce(p_schedule.timeout, case when v_posts then interval '2 minutes' end), 'expires_at', v_expires, 'headers', v_headers)));
  end if;
  update bridge.schedule_run r set job = v_id, status = 'open', reason = null, due_at = v_due where r.id = p_run;
  return v_id;
end
$$;

create or replace function bridge.rows_of_call(p_options jsonb, p_result json) returns bigint language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- The rows that a call says it made: the number that it returned. Null for what is no call, or no number of rows.
begin
  if p_options ? 'call' and json_typeof(p_result) = 'number' and (p_result #>> '{}')::numeric between 0 and 1e18 then
    return (p_result #>> '{}')::numeric::bigint;
  end if;
  return null;
end
$$;

create or replace function bridge.ended_runs(p_limit integer) returns bigint[] language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  set enable_bitmapscan = off as $$
  -- Open runs whose jobs have ended, of those that are looked at: the oldest, because jobs end about in their order, and others from a
  -- place by chance. Where very many wait for workers, a tick looks at few of them, and at each after a while.
  --
  -- Index  schedule_run_open, job_id
declare
  v_first constant bigint := (select r.id from bridge.schedule_run r where r.status = 'open' order by r.id limit 1);
  v_last constant bigint := (select r.id from bridge.schedule_run r where r.status = 'open' order by r.id desc limit 1);
  v_from constant bigint := v_first + random() * (v_last - v_first);
begin
  return array(
    select p.id from (
      (select r.id, r.job from bridge.schedule_run r where r.status = 'open' order by r.id limit p_limit / 2)
      union (select r.id, r.job from bridge.schedule_run r where r.status = 'open' and r.id >= v_from order by r.id limit p_limit / 2)) p
    where not exists (select from bridge.job j where j.id = p.job));
end
$$;

create or replace function bridge.settle_runs(p_schedule text, p_limit integer) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Write down how runs ended whose jobs are history now.
  --
  --   p_schedule  of this schedule, the oldest first; null: of all
  --   p_limit     most runs to look at
declare
  v_ids constant bigint[] := case when p_schedule is null then bridge.ended_runs(p_limit) else array(
    select r.id from bridge.schedule_run r where r.schedule = p_schedule and r.status = 'open' and not exists (select from bridge.job j where j.id = r.job)
    order by r.id limit p_limit) end;
  v_count integer;
begin
  if v_ids = '{}' then
    return 0;  -- for nothing, the statement would open the history of every day
  end if;
  with ended as (
    select r.id, coalesce(f.status, 'unknown') as status, f.started_at, coalesce(f.finished_at, clock_timestamp()) as finished_at, f.error,
      f.attempts, left(f.result::text, 500) as result,
      bridge.rows_of_call(f.options, f.result) as rows,
      case when f.attempts > 1 or f.losses > 0 then (select min(a.started_at) from bridge.attempt a where a.id = r.job) end as first_started_at
    from unnest(v_ids) i (id)
    -- The limit keeps it a lookup by id: how many runs are open, statistics do not know.
    cross join lateral (select o.id, o.job from bridge.schedule_run o where o.id = i.id and o.status = 'open' limit 1 for update skip locked) r
    left join lateral (select h.* from bridge.finished h where h.id = r.job order by h.finished_at desc limit 1) f on true
    where not exists (select from bridge.job j where j.id = r.job)
  )
  update bridge.schedule_run r set status = e.status, started_at = e.started_at, finished_at = e.finished_at, attempts = e.attempts,
    rows = e.rows, result = e.result, first_started_at = least(e.first_started_at, e.started_at), error = nullif(concat_ws(': ', e.error->>'type', e.error->>'message'), '')
  from ended e where r.id = e.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;

create or replace function bridge.open_run(p_schedule text) returns uuid language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A job of a schedule that has not ended; null when all have.
begin
  perform bridge.settle_runs(p_schedule, 1000);
  return (select r.job from bridge.schedule_run r where r.schedule = p_schedule and r.status = 'open' order by r.id limit 1);
end
$$;

create or replace function bridge.hold_open_runs(p_schedule text) returns boolean language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Before a tick cancels what a schedule has made and has not ended: whether nobody else has it in hand.
  --
  -- Locks    the rows of their places, place by place as bridge.hold_places (skip locked)
declare
  v_seqs constant bigint[] := array(select j.seq from bridge.schedule_run r join bridge.job j on j.id = r.job
    where r.schedule = p_schedule and r.status = 'open' order by j.seq);
begin
  return cardinality(v_seqs)
    = cardinality(array(select b.seq from bridge.blocked b where b.seq = any (v_seqs) order by b.seq for update skip locked))
    + cardinality(array(select s.seq from bridge.scheduled s where s.seq = any (v_seqs) order by s.seq for update skip locked))
    + cardinality(array(select r.seq from bridge.ready r where r.seq = any (v_seqs) order by r.seq for update skip locked))
    + cardinality(array(select h.seq from bridge.held h where h.seq = any (v_seqs) order by h.seq for update skip locked))
    + cardinality(array(select i.seq from bridge.inflight i where i.seq = any (v_seqs) order by i.seq for update skip locked));
end
$$;

create or replace function bridge.cancel_open_runs(p_schedule text) returns uuid language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Cancel what a schedule has made and has not ended, and what waits. Returns a job that still runs and was asked to stop; null when all
  -- is ended.
begin
  update bridge.schedule_run r set status = 'skipped', reason = 'a later slot took its place', finished_at = clock_timestamp()
  where r.schedule = p_schedule and r.status = 'waiting';
  perform bridge.cancel(r.job) from bridge.schedule_run r where r.schedule = p_schedule and r.status = 'open';
  return bridge.open_run(p_schedule);
end
$$;

create or replace function bridge.run_slot(p_schedule bridge.schedule, p_slot timestamptz, p_trigger text, p_now timestamptz) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Run one slot as the schedule's overlap policy says: make its job, let it wait, or skip it. What keeps the job from being made is
  -- noted, and keeps nobody else from his turn.
  --
  -- Locks  the caller holds the schedule's row
declare
  v_open uuid;
  v_waits boolean := false;
  v_run bigint;
begin
  if p_schedule.overlap <> 'allow' then
    v_open := bridge.open_run(p_schedule.name);
    if p_schedule.overlap = 'cancel_old' and v_open is not null then
      v_open := bridge.cancel_open_runs(p_schedule.name);
    end if;
    v_waits := exists (select from bridge.schedule_run r where r.schedule = p_schedule.name and r.status = 'waiting');
  end if;
  if v_open is null and not v_waits then
    v_run := bridge.add_run(p_schedule.name, p_slot, p_trigger, p_now);
    if v_run is not null then
      perform bridge.start_run(p_schedule, v_run, p_now);
    end if;
  elsif p_schedule.overlap = 'skip' or v_waits then
    perform bridge.add_run(p_schedule.name, p_slot, p_trigger, p_now, 'skipped',
      case when v_waits then 'another run waits already' else format('job %s of a run before has not ended', v_open) end);
  else
    perform bridge.add_run(p_schedule.name, p_slot, p_trigger, p_now, 'waiting', format('job %s of a run before has not ended', v_open));
  end if;
exception when others then
  insert into bridge.schedule_run (schedule, slot, trigger_type, status, error, created_at, finished_at)
  values (p_schedule.name, p_slot, p_trigger, 'failed', sqlerrm, p_now, p_now);
end
$$;

create or replace function bridge.skip_missed(p_schedule text, p_from timestamptz, p_to timestamptz, p_why text, p_now timestamptz) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Note once that slots were passed over: the first of them tells.
begin
  perform bridge.add_run(p_schedule, p_from, 'catch_up', p_now, 'skipped', format('missed, and %s: the slots up to %s', p_why, p_to));
end
$$;

create or replace function bridge.pass_missed(p_schedule bridge.schedule, p_plan bridge.cron_plan, p_late timestamptz, p_now timestamptz)
  returns timestamptz language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Deal with slots that passed while nothing ticked, as the schedule's policy says.
  --
  --   p_late  a slot up to then counts as missed
  --
  -- Returns  the slot to go on with: the first that is in time, or, where all are made up for, the first that is not too long ago
declare
  v_anchor constant timestamptz := coalesce(p_schedule.starts_at, 'epoch');
  v_first constant timestamptz := p_schedule.next_at;
  v_bound constant timestamptz := p_now - p_schedule.missed_within;
  -- Where cron was changed after next_at had come, the new one may have no slot since: that one is then the last.
  v_last constant timestamptz := greatest(v_first, bridge.last_slot(p_plan, p_schedule.timezone, least(p_late, p_schedule.ends_at), v_anchor));
  v_next timestamptz := bridge.next_slot(p_plan, p_schedule.timezone, v_last, v_anchor);
begin
  if p_schedule.missed = 'all' then
    if v_first >= v_bound then
      return v_first;
    end if;
    v_next := bridge.next_slot(p_plan, p_schedule.timezone, v_bound, v_anchor);
    perform bridge.skip_missed(p_schedule.name, v_first, v_bound, 'too long ago', p_now);
  elsif p_schedule.missed = 'skip' or v_last < v_bound then
    perform bridge.skip_missed(p_schedule.name, v_first, v_last, case when p_schedule.missed = 'skip' then 'skipped' else 'too long ago' end, p_now);
  elsif v_next <= least(p_now, p_schedule.ends_at) then
    perform bridge.skip_missed(p_schedule.name, v_first, v_last, 'made up for by the one in time', p_now);
  else
    if v_first < v_last then
      perform bridge.skip_missed(p_schedule.name, v_first, v_last, 'made up for by the last', p_now);
    end if;
    perform bridge.run_slot(p_schedule, v_last, 'catch_up', p_now);
  end if;
  return v_next;
end
$$;

create or replace function bridge.fire(p_schedule bridge.schedule, p_limit integer, p_now timestamptz) returns integer language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Run the slots of one schedule that are due, and find the next.
  --
  --   p_limit  most slots in this tick; the next one goes on
  --
  -- Returns  how many slots were dealt with
  -- Locks    the caller holds the schedule's row
declare
  v_plan constant bridge.cron_plan := bridge.parse_cron(p_schedule.cron);
  v_late constant timestamptz := p_now - bridge.seconds('slot_grace');
  v_slot timestamptz := p_schedule.next_at;
  v_count integer := 0;
begin
  if v_slot <= v_late then
    v_slot := bridge.pass_missed(p_schedule, v_plan, v_late, p_now);
    v_count := 1;
  end if;
  while v_slot <= least(p_now, p_schedule.ends_at) and v_count < p_limit loop
    perform bridge.run_slot(p_schedule, v_slot, case when v_slot <= v_late then 'catch_up' else 'scheduled' end, p_now);
    v_slot := bridge.next_slot(v_plan, p_schedule.timezone, v_slot, coalesce(p_schedule.starts_at, 'epoch'));
    v_count := v_count + 1;
  end loop;
  update bridge.schedule s set next_at = case when v_slot <= p_schedule.ends_at is not false then v_slot end where s.name = p_schedule.name;
  return v_count;
exception when others then
  -- A time zone that an update has taken away, say. It is tried again every minute.
  insert into bridge.schedule_run (schedule, slot, trigger_type, status, error, created_at, finished_at)
  values (p_schedule.name, p_schedule.next_at, 'scheduled', 'failed', sqlerrm, p_now, p_now)
  on conflict (schedule, slot) where trigger_type <> 'manual' do nothing;
  update bridge.schedule s set next_at = p_now + interval '1 minute' where s.name = p_schedule.name;
  return 1;
end
$$;

create or replace function bridge.fire_due(p_limit integer, p_now timestamptz) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Run the slots that are due, the longest due first.
  --
  --   p_limit  most slots; of one schedule at most 100
  --
  -- Returns  how many slots were dealt with
  -- Locks    the schedules that are due (skip locked), and the jobs that they are to cancel; one that somebody changes at this moment, or
  --          whose jobs somebody has in hand, is the next tick's
declare
  v_name text;
  v_schedule bridge.schedule;
  v_count integer := 0;
begin
  for v_name in select s.name from bridge.schedule s where s.next_at <= p_now order by s.next_at limit p_limit loop
    select s.* into v_schedule from bridge.schedule s where s.name = v_name and s.next_at <= p_now for update skip locked;
    if found and (v_schedule.overlap <> 'cancel_old' or bridge.hold_open_runs(v_name)) then
      v_count := v_count + bridge.fire(v_schedule, least(100, p_limit - v_count), p_now);
    end if;
    exit when v_count >= p_limit;
  end loop;
  return v_count;
end
$$;

create or replace function bridge.start_waiting(p_limit integer, p_now timestamptz) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Start runs that waited for one before, now that it has ended. Those of a paused schedule wait on. What keeps a job from being made is
  -- noted, and stops no tick.
declare
  v_row record;
  v_schedule bridge.schedule;
  v_count integer := 0;
begin
  for v_row in
    select r.id, r.schedule from bridge.schedule_run r where r.status = 'waiting' order by r.id limit p_limit
  loop
    continue when bridge.open_run(v_row.schedule) is not null;
    select s.* into v_schedule from bridge.schedule s where s.name = v_row.schedule and s.enabled for update skip locked;
    if found and exists (select from bridge.schedule_run r where r.id = v_row.id and r.status = 'waiting') then
      begin
        perform bridge.start_run(v_schedule, v_row.id, p_now);
      exception when others then
        update bridge.schedule_run r set status = 'failed', error = sqlerrm, finished_at = p_now where r.id = v_row.id;
      end;
      v_count := v_count + 1;
    end if;
  end loop;
  return v_count;
end
$$;

create or replace function bridge.run_schedules(p_limit integer, p_now timestamptz) returns integer language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- The tick's step for schedules: note what ended, start what waited for that, run what is due. Returns how many slots were dealt with.
begin
  perform bridge.settle_runs(null, least(p_limit, 1000));
  -- A slot costs about a millisecond, most of it the job: a quarter of a second is enough for one tick.
  return bridge.start_waiting(p_limit, p_now) + bridge.fire_due(least(p_limit, 250), p_now);
end
$$;
