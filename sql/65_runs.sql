-- What the log of runs tells: history by its indexes, what cleanup keeps of it, schedules that are slow, and schedules that run too often.

create or replace function bridge.schedule_history(name text, status text default null, trigger_type text default null, n integer default 20,
    before bigint default null)
  returns setof bridge.schedule_runs language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- The last runs of a schedule, newest first; of one that was removed those that the log still holds.
  --
  --   status        only these: a status of a job, waiting, skipped or unknown. A run counts as ended when the tick has noted it
  --   trigger_type  only these: scheduled, manual or catch_up
  --   n             how many, 1 to 10000
  --   before        only runs with a smaller id: the last of a page gives the next one
  --
  -- Errors  JB002 there is no such schedule and no run of one, JB001 another argument
  -- Index   schedule_run_latest, schedule_run_status, schedule_run_aside
declare
  v_ended constant text[] := array['succeeded', 'failed', 'cancelled', 'expired', 'unknown', 'waiting', 'skipped'];
  v_live constant boolean := coalesce(status = any (bridge.live_statuses()), false);
  v_rows text := format('select r.id from bridge.schedule_run r where r.schedule = %L', schedule_history.name);
begin
  if status is not null and not v_live and status <> all (v_ended) then
    perform bridge.refuse(format('status is %L', status), 'give ' || array_to_string(bridge.live_statuses() || v_ended, ', '));
  elsif trigger_type not in ('scheduled', 'manual', 'catch_up') then
    perform bridge.refuse(format('trigger_type is %L', trigger_type), 'give scheduled, manual or catch_up');
  elsif n is null or n not between 1 and 10000 then
    perform bridge.refuse(format('n is %s', coalesce(n::text, 'null')), 'give 1 to 10000');
  elsif not exists (select from bridge.schedule s where s.name = schedule_history.name)
      and not exists (select from bridge.schedule_run r where r.schedule = schedule_history.name) then
    perform bridge.refuse(format('schedule %L does not exist', coalesce(name, 'null')), 'see: select name from bridge.schedules', 'JB002');
  end if;
  v_rows := v_rows || coalesce(' and r.status = ' || quote_literal(case when v_live then 'open' else status end), '')
    || coalesce(' and r.trigger_type = ' || quote_literal(trigger_type), '') || coalesce(' and r.id < ' || before, '')
    || case when v_live then '' else format(' order by r.id desc limit %s', n) end;
  return query execute format('select v.* from (%s) i cross join lateral (select o.* from bridge.schedule_runs o where o.id = i.id limit 1) v %s
    order by v.id desc limit %s', v_rows, case when v_live then format('where v.status = %L', status) end, n);
end
$$;

create or replace function bridge.old_runs(p_schedule text, p_before timestamptz, p_limit integer) returns bigint[] language plpgsql stable
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- The ended runs of a schedule from before a moment, the oldest first, without its last 20: what is due once a month or a year keeps its
  -- last runs. Nothing but its age keeps a run of a schedule that was removed.
  --
  -- Index  schedule_run_latest, read as far as the runs are old
declare
  v_run record;
  v_ids bigint[] := array[]::bigint[];
  v_kept_from bigint := 9223372036854775807;
begin
  if exists (select from bridge.schedule s where s.name = p_schedule) then
    select r.id into v_kept_from from bridge.schedule_run r where r.schedule = p_schedule order by r.id desc offset 19 limit 1;
  end if;
  for v_run in
    select r.id, r.created_at, r.finished_at from bridge.schedule_run r where r.schedule = p_schedule and r.id < v_kept_from order by r.id
  loop
    exit when v_run.created_at >= p_before or cardinality(v_ids) >= p_limit;
    if v_run.finished_at is not null then
      v_ids := v_ids || v_run.id;
    end if;
  end loop;
  return v_ids;
end
$$;

create or replace function bridge.logged_schedules() returns setof text language sql stable set search_path = pg_catalog, pg_temp
  -- The schedules that have runs in the log, found by hops. Index  schedule_run_latest
  begin atomic
    with recursive found (name) as (
      (select r.schedule from bridge.schedule_run r order by r.schedule limit 1)
      union all
      select (select r.schedule from bridge.schedule_run r where r.schedule > f.name order by r.schedule limit 1) from found f where f.name is not null
    )
    select f.name from found f where f.name is not null;
  end;

create or replace function bridge.forget_runs(p_before timestamptz, p_dry_run boolean, p_limit integer default 100000) returns integer
  language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Forget ended runs from before a moment, but the last 20 of each schedule that there is. What goes is added up first: statistics stay
  -- what they are.
  --
  --   p_limit  most of them; the next call goes on
  --
  -- Returns  how many
declare
  v_schedule text;
  v_ids bigint[];
  v_count integer := 0;
begin
  for v_schedule in select l.name from bridge.logged_schedules() l (name) loop
    v_ids := bridge.old_runs(v_schedule, p_before, p_limit - v_count);
    v_count := v_count + cardinality(v_ids);
    if not p_dry_run and v_ids <> '{}' then
      with gone as (
        delete from bridge.schedule_run r where r.id = any (v_ids) returning r.status, r.finished_at - r.started_at as duration, r.created_at
      )
      insert into bridge.schedule_past as p (schedule, runs, succeeded, failed, skipped, timed, duration, longest, since)
      select v_schedule, count(*) filter (where g.status <> 'skipped'), count(*) filter (where g.status = 'succeeded'),
        count(*) filter (where g.status in ('failed', 'expired', 'cancelled')), count(*) filter (where g.status = 'skipped'), count(g.duration),
        coalesce(sum(g.duration), '0'), max(g.duration), min(g.created_at)
      from gone g
      on conflict (schedule) do update set runs = p.runs + excluded.runs, succeeded = p.succeeded + excluded.succeeded,
        failed = p.failed + excluded.failed, skipped = p.skipped + excluded.skipped, timed = p.timed + excluded.timed,
        duration = p.duration + excluded.duration, longest = greatest(p.longest, excluded.longest), since = least(p.since, excluded.since);
    end if;
    exit when v_count >= p_limit;
  end loop;
  if not p_dry_run then
    delete from bridge.schedule_past p where not exists (select from bridge.schedule s where s.name = p.schedule);
  end if;
  return v_count;
end
$$;

-- A schedule is here while its last run, or one that is under way, takes longer than it should: longer than its expected_duration, or, where it
-- has none, longer than `slow_factor` times the median of those that succeeded of its last 100 runs, and 10 seconds more than that median; five
-- must have succeeded. A run counts from the start of its last attempt.
select bridge.define_view('slow_schedules', $view$
  select s.name as schedule, s.task, r.status, r.job as job_id, r.slot, r.started_at, r.duration, u.limit_duration as longest_expected,
    case when s.expected_duration is null then 'learnt' else 'given' end as basis, u.median_duration,
    (select count(*) from (select o.finished_at - o.started_at as duration from bridge.schedule_run o where o.schedule = s.name order by o.id desc limit 100) o
      where o.duration > u.limit_duration) as slow_of_last_100
  from bridge.schedule s
  cross join lateral (
    (select o.job, o.slot, o.status, o.started_at, o.finished_at - o.started_at as duration
      from (select l.* from bridge.schedule_run l where l.schedule = s.name order by l.id desc limit 100) o
      where o.status not in ('open', 'waiting', 'skipped') order by o.id desc limit 1)
    union all
    select o.job, o.slot, 'running', i.started_at, clock_timestamp() - i.started_at
    from (select l.job, l.slot from bridge.schedule_run l where l.schedule = s.name and l.status = 'open' order by l.id limit 100) o
    join bridge.job j on j.id = o.job join bridge.inflight i on i.seq = j.seq
    where i.state = 'running'
  ) r
  cross join lateral (
    select l.median_duration, coalesce(s.expected_duration, case when l.known >= 5
      then greatest(l.median_duration * bridge.setting('slow_factor')::double precision, l.median_duration + interval '10 seconds') end) as limit_duration
    from (
      select percentile_cont(0.5) within group (order by o.finished_at - o.started_at) as median_duration, count(*) as known
      from (select o.status, o.started_at, o.finished_at from bridge.schedule_run o where o.schedule = s.name order by o.id desc limit 100) o
      where o.status = 'succeeded'
    ) l
    -- What took less is not slow, whatever is usual: most schedules are not asked for that.
    where r.duration > coalesce(s.expected_duration, interval '10 seconds')
  ) u
  where r.duration > u.limit_duration
$view$);

create or replace function bridge.slot_gap(p_schedule bridge.schedule) returns interval language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The shortest time between two of its next five slots; null where it has none to come.
declare
  v_plan constant bridge.cron_plan := bridge.parse_cron(p_schedule.cron);
  v_slot timestamptz := p_schedule.next_at;
  v_next timestamptz;
  v_gap interval;
begin
  for i in 1..4 loop
    v_next := bridge.next_slot(v_plan, p_schedule.timezone, v_slot, coalesce(p_schedule.starts_at, 'epoch'));
    v_gap := least(v_gap, v_next - v_slot);
    v_slot := v_next;
  end loop;
  return v_gap;
end
$$;

create or replace function bridge.same_work(p_schedule bridge.schedule) returns jsonb language sql stable set search_path = pg_catalog, pg_temp
  -- What a schedule runs, without when and how: two with the same value do the same work.
  return to_jsonb(p_schedule) - array['name', 'cron', 'timezone', 'priority', 'max_attempts', 'backoff', 'timeout', 'expires', 'headers', 'jitter',
    'starts_at', 'ends_at', 'overlap', 'missed', 'missed_within', 'enabled', 'next_at', 'created_at', 'updated_at', 'expected_duration'];

create or replace function bridge.cron_commands() returns table (name text, command text) language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The active entries of pg_cron for this database that are not ours; none without pg_cron or the right to look.
begin
  if exists (select from pg_catalog.pg_extension e where e.extname = 'pg_cron') and has_schema_privilege('cron', 'usage') and has_table_privilege(to_regclass('cron.job'), 'select') then
    return query execute 'select coalesce(c.jobname, c.jobid::text)::text, c.command from cron.job c
      where c.active and c.database = current_database() and coalesce(c.jobname, '''') !~ ''^bridge-''';
  end if;
end
$$;

create or replace function bridge.overlapping_slots(p_now timestamptz) returns table (schedule text, slots bigint, met bigint, since timestamptz)
  language sql stable set search_path = pg_catalog, pg_temp
  -- Of each schedule its slots of the last day, 100 at most, and how many of them came before the run before had ended. Slots that were made
  -- up for do not count: they come together.
  begin atomic
    select s.name, c.slots, c.met, c.since from bridge.schedule s cross join lateral (
      select count(*) filter (where x.trigger_type = 'scheduled') as slots, count(*) filter (where x.trigger_type = 'scheduled' and x.created_at < x.busy_until) as met,
        min(x.slot) filter (where x.trigger_type = 'scheduled' and x.created_at < x.busy_until) as since
      from (
        select r.slot, r.trigger_type, r.created_at, max(case when r.status <> 'skipped' then coalesce(r.finished_at, 'infinity') end)
          over (order by r.id rows between unbounded preceding and 1 preceding) as busy_until
        from (select o.* from bridge.schedule_run o where o.schedule = s.name order by o.id desc limit 100) r
        where r.created_at > p_now - interval '1 day'
      ) x
    ) c where c.met > 0;
  end;

create or replace function bridge.runs_elsewhere(p_now timestamptz) returns table (schedule text, slots bigint, by_hand bigint, others bigint,
    since timestamptz) language sql stable set search_path = pg_catalog, pg_temp
  -- Of each schedule its last five slots within 30 days, and what ran its task with its arguments since the first of them without being one of
  -- its slots: by hand, or from elsewhere. At most 200 of either are looked at.
  begin atomic
    select s.name, o.slots, h.runs, e.jobs, o.since from bridge.schedule s
    cross join lateral (
      select count(*) as slots, min(x.created_at) as since from (
        select r.created_at from bridge.schedule_run r
        where r.schedule = s.name and r.trigger_type = 'scheduled' and r.status <> 'skipped' and r.created_at > p_now - interval '30 days'
        order by r.id desc limit 5) x
    ) o
    cross join lateral (
      select count(*) as runs from (
        select r.created_at from bridge.schedule_run r where r.schedule = s.name and r.trigger_type = 'manual' order by r.id desc limit 200) r
      where r.created_at >= o.since
    ) h
    cross join lateral (
      select count(*) as jobs from (
        select f.headers, f.args, f.kwargs from bridge.finished f
        where f.task = s.task and f.status in ('succeeded', 'failed') and f.finished_at >= o.since and o.slots >= 3 limit 200) f
      where f.headers->>'bridge_schedule' is null and case when f.args::text || f.kwargs::text ~ '\\u0000' then false
        else f.args::jsonb = s.args and f.kwargs::jsonb = s.kwargs end
    ) e
    where s.enabled and o.slots >= 3;
  end;

create or replace function bridge.too_often(p_now timestamptz default clock_timestamp())
  returns table (schedule text, kind text, found text, remedy text, other text, since timestamptz)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Schedules whose work is done more often than it should be.
  --
  -- Returns  a row for each reason, kind being one of
  --   overlapping         a tenth or more of its slots of the last day (100 at most) came before the run before had ended
  --   longer_than_period  its median (of those of its last 100 runs that succeeded, five at least) is longer than the time between two slots
  --   twin                another schedule does the same work: task, arguments and queue are equal; other names it
  --   pg_cron             an entry of pg_cron names its task, or the schedule itself; other names it
  --   elsewhere           what was asked for by hand, or comes from elsewhere (beat, say), ran its task with its arguments as often as its
  --                       last five slots did (three at least)
begin
  return query
    select o.schedule, 'overlapping', format('%s of its last %s slots came before the run before had ended', o.met, o.slots),
      'run it less often, or make it quicker; its overlap says what such a slot does', null::text, o.since
    from bridge.overlapping_slots(p_now) o join bridge.schedule s on s.name = o.schedule and s.enabled where o.met * 10 >= o.slots;
  return query
    select s.name, 'longer_than_period', format('a run takes %s, and the next comes after %s', justify_interval(date_trunc('second', l.usual)), bridge.slot_gap(s)),
      'run it less often, or make it quicker', null::text, null::timestamptz
    from bridge.schedule s cross join lateral (
      select percentile_cont(0.5) within group (order by r.finished_at - r.started_at) as usual, count(*) as known
      from (select o.* from bridge.schedule_run o where o.schedule = s.name order by o.id desc limit 100) r where r.status = 'succeeded'
    ) l
    where s.next_at is not null and l.known >= 5 and l.usual > interval '1 second' and l.usual > bridge.slot_gap(s);
  return query
    select t.names[1], 'twin', 'the same task, arguments and queue', 'remove one of them, or pause it',
      array_to_string(t.names[2:6], ' = ') || case when cardinality(t.names) > 6 then format(' and %s more', cardinality(t.names) - 6) else '' end, t.since
    from (select array_agg(s.name order by s.name) as names, max(s.created_at) as since from bridge.schedule s where s.enabled
      group by bridge.same_work(s) having count(*) > 1) t order by 1;
  return query
    select s.name, 'pg_cron', format('pg_cron''s entry %s runs it as well: %s', c.name, left(c.command, 200)),
      format('select cron.unschedule(%L), or remove the schedule', c.name), c.name, null::timestamptz
    from bridge.schedule s join bridge.cron_commands() c
      on strpos(c.command, case when s.function is null then quote_literal(s.task) else s.task || '(' end) > 0 or (c.command ~ '\mrun_schedule\M' and strpos(c.command, quote_literal(s.name)) > 0)
    where s.enabled order by 1, 5;
  return query
    select e.schedule, 'elsewhere', format('beside its last %s slots, its work was done %s times: %s by hand, %s from elsewhere', e.slots,
        e.by_hand + e.others, e.by_hand, e.others), 'is it also in beat_schedule, or in a program?', null::text, e.since
    from bridge.runs_elsewhere(p_now) e where e.by_hand + e.others >= e.slots;
end
$$;

select bridge.define_view('too_often_schedules', 'select t.schedule, t.kind, t.found, t.remedy, t.other, t.since from bridge.too_often() t');
