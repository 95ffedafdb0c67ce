-- What alert rules see: one function a kind, which gives a row for each subject whose value is beyond the threshold. See 66_asked.sql for what
-- they ask.

create or replace function bridge.read_queued_jobs(p_rule bridge.alert_rule, p_now timestamptz) returns setof bridge.alert_reading language plpgsql stable
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Jobs that have waited for too long; of each queue and priority the first that are claimed are looked at, as many as can tell.
  --
  -- Index  ready_pkey, inflight_live, held_pkey
declare
  v_before constant timestamptz := p_now - p_rule.within;
  v_most constant integer := least(2 * p_rule.threshold + 1000, 100000);
  v_late record;
begin
  select count(*) as jobs, min(w.since) as since into v_late from (
    select r.seq, r.since, r.queue
    from bridge.ready_heads() h join bridge.ready_parts(coalesce(bridge.floor_of('ready', h.queue), 0)) p on p.rank = h.rank, lateral (
      select o.seq, o.since, o.queue from bridge.ready o
      where o.queue = h.queue and o.rank = p.rank and o.pos >= p.low and o.pos < p.high order by o.pos limit v_most) r
    where (p_rule.queue is null or h.queue = p_rule.queue) and not bridge.is_paused(h.queue)
    union all
    (select i.seq, i.published_at, f.queue from bridge.flights() f cross join lateral (
      select i.seq, i.published_at from bridge.inflight i
      where i.queue = f.queue and i.pos >= f.low and i.state = 'published' and i.taken_by is null and i.published_at < v_before offset 0) i
    where p_rule.queue is null or f.queue = p_rule.queue limit v_most)
    union all
    select o.seq, o.since, l.queue from (select h.seq, h.since, h.lane from bridge.held h order by h.seq limit v_most) o join bridge.lane l on l.id = o.lane
    where p_rule.queue is null or l.queue = p_rule.queue
  ) w
  where w.since < v_before and (p_rule.task is null or exists (select from bridge.job j where j.seq = w.seq and j.task = p_rule.task));
  if v_late.jobs > p_rule.threshold then
    return next row('', v_late.jobs, format('%s jobs have waited for longer than %s, the oldest for %s', v_late.jobs, bridge.words(p_rule.within),
      bridge.words(p_now - v_late.since)))::bridge.alert_reading;
  end if;
end
$$;

create or replace function bridge.read_queues(p_rule bridge.alert_rule, p_now timestamptz) returns setof bridge.alert_reading language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- Of each queue: how long its oldest due job has waited (queue_age), or how many workers it has (no_worker).
declare
  v_queue record;
  v_since timestamptz;
begin
  for v_queue in select q.* from bridge.queues_seen(p_now) q where p_rule.queue is null or q.queue = p_rule.queue loop
    v_since := least(case when not v_queue.paused then v_queue.queued_since end, v_queue.published_since);
    if p_rule.kind = 'queue_age' and extract(epoch from p_now - v_since) > p_rule.threshold then
      return next row(v_queue.queue, floor(extract(epoch from p_now - v_since)), format('the oldest due job of queue %s has waited %s; %s workers, %s published, %s running',
        v_queue.queue, bridge.words(p_now - v_since), v_queue.workers, v_queue.published, v_queue.running))::bridge.alert_reading;
    elsif p_rule.kind = 'no_worker' and v_queue.queue <> 'bridge.calls' and v_queue.workers < p_rule.threshold and v_queue.silent is null and (v_since is not null or p_rule.queue is not null) then
      return next row(v_queue.queue, v_queue.workers, format('%s workers consume queue %s, where the oldest due job has waited %s', v_queue.workers, v_queue.queue,
        coalesce(bridge.words(p_now - v_since), '0 s')))::bridge.alert_reading;
    end if;
  end loop;
  if not found and p_rule.kind = 'no_worker' and p_rule.queue is not null then
    return next row(p_rule.queue, 0, format('no worker consumes queue %s', p_rule.queue))::bridge.alert_reading;
  end if;
end
$$;

create or replace function bridge.read_stuck_jobs(p_rule bridge.alert_rule, p_now timestamptz) returns setof bridge.alert_reading language sql stable
  set search_path = pg_catalog, pg_temp
  -- Jobs that have been published or running for too long.
  begin atomic
    select row('', sum(s.jobs), string_agg(format('%s jobs have been %s for longer than %s, the oldest (%s) for %s', s.jobs, s.state,
      bridge.words(p_rule.within), s.example, bridge.words(p_now - s.since)), '; '))::bridge.alert_reading
    from bridge.stuck_in_flight(p_now - p_rule.within, p_rule.queue, p_rule.task, least(p_rule.threshold + 1000, 100000)::integer) s
    having sum(s.jobs) > p_rule.threshold;
  end;

create or replace function bridge.read_dead_letters(p_rule bridge.alert_rule, p_now timestamptz) returns setof bridge.alert_reading language sql stable
  set search_path = pg_catalog, pg_temp
  -- Jobs that failed for good lately.
  begin atomic
    select row('', d.jobs, format('%s jobs have failed for good within %s, the last is %s', d.jobs, bridge.words(p_rule.within), d.example))::bridge.alert_reading
    from bridge.dead_since(p_now - p_rule.within, p_rule.queue, p_rule.task) d where d.jobs > p_rule.threshold;
  end;

create or replace function bridge.read_failure_rate(p_rule bridge.alert_rule, p_now timestamptz) returns setof bridge.alert_reading language plpgsql stable
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Attempts that failed, of a task, or of each queue by itself; judged as circuit breakers are: successes are counted only where the failures
  -- could be enough, and only as many as would outweigh them.
declare
  v_kind constant text := case when p_rule.task is null then 'queue' else 'task' end;
  v_name text;
  v_since timestamptz;
  v_failed record;
  v_succeeded bigint;
begin
  for v_name in
    select coalesce(p_rule.task, p_rule.queue) where coalesce(p_rule.task, p_rule.queue) is not null
    union
    select q.name from (select w.queue from bridge.living_workers(p_now) w union select e.queue from (
      select f.queue from bridge.finished f where f.status <> 'succeeded' and f.finished_at > p_now - p_rule.within
      order by f.finished_at desc limit 2000) e) q (name)
    where coalesce(p_rule.task, p_rule.queue) is null
  loop
    v_since := p_now - p_rule.within;
    v_failed := bridge.recent_failures(v_kind, v_name, v_since, '-infinity', 2000);
    continue when v_failed.failures <= p_rule.threshold * p_rule.minimum or v_failed.failures = 0;
    if v_failed.failures = 2000 then
      v_since := v_failed.oldest;
    end if;
    v_succeeded := bridge.recent_successes(v_kind, v_name, v_since, '-infinity', greatest(ceil(v_failed.failures / greatest(p_rule.threshold, 0.001))::integer
      - v_failed.failures::integer, p_rule.minimum) + 1);
    if v_failed.failures + v_succeeded >= p_rule.minimum and v_failed.failures > p_rule.threshold * (v_failed.failures + v_succeeded) then
      return next row(case when p_rule.task is null and p_rule.queue is null then v_name else '' end,
        round(v_failed.failures / (v_failed.failures + v_succeeded)::numeric, 3), format('%s of %s attempts of %s %s have failed since %s', v_failed.failures,
          v_failed.failures + v_succeeded, v_kind, v_name, bridge.moment(v_since)))::bridge.alert_reading;
    end if;
  end loop;
end
$$;

create or replace function bridge.read_processes(p_rule bridge.alert_rule, p_now timestamptz, p_ticked_at timestamptz)
  returns setof bridge.alert_reading language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- What drives jobs: the tick, drainers, their broker, and transactions that keep dead rows.
declare
  v_row record;
begin
  if p_rule.kind = 'late_tick' and isfinite(p_ticked_at) and extract(epoch from p_now - p_ticked_at) > p_rule.threshold then
    return next row('', floor(extract(epoch from p_now - p_ticked_at)), format('nobody has ticked for %s: delayed jobs were late, and nothing that died was recovered',
      bridge.words(p_now - p_ticked_at)))::bridge.alert_reading;
  elsif p_rule.kind in ('no_drainer', 'broker_trouble') then
    select count(*) as alive, count(d.broker->>'trouble') as troubled, min((d.broker->>'since')::timestamptz) as since,
      (array_agg(d.broker->>'trouble') filter (where d.broker ? 'trouble'))[1] as trouble
    into v_row from bridge.drainer d where d.stopped_at is null and d.seen_at > p_now - interval '15 seconds';
    if p_rule.kind = 'no_drainer' and v_row.alive < p_rule.threshold and exists (select from bridge.ready_heads() h where not bridge.is_paused(h.queue)) then
      return next row('', v_row.alive, format('%s drainers report, and due jobs wait', v_row.alive))::bridge.alert_reading;
    elsif p_rule.kind = 'broker_trouble' and extract(epoch from p_now - v_row.since) > p_rule.threshold then
      return next row('', floor(extract(epoch from p_now - v_row.since)), format('%s of %s drainers cannot publish for %s: %s', v_row.troubled, v_row.alive,
        bridge.words(p_now - v_row.since), left(v_row.trouble, 500)))::bridge.alert_reading;
    end if;
  elsif p_rule.kind = 'old_snapshot' then
    select s.* into v_row from bridge.oldest_snapshot(p_now) s;
    if extract(epoch from v_row.age) > p_rule.threshold then
      return next row('', floor(extract(epoch from v_row.age)), format('%s for %s', v_row.what, bridge.words(v_row.age)))::bridge.alert_reading;
    end if;
  end if;
end
$$;

create or replace function bridge.read_schedules(p_rule bridge.alert_rule, p_now timestamptz) returns setof bridge.alert_reading language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- Schedules whose slot is overdue, whose last runs failed, or whose last run is slow.
begin
  if p_rule.kind = 'late_schedule' then
    return query select s.name, floor(extract(epoch from p_now - s.next_at)), format('schedule %s has been due for %s and not run', s.name, bridge.words(p_now - s.next_at))
    from bridge.schedule s where s.enabled and s.next_at < p_now - make_interval(secs => p_rule.threshold::double precision) order by s.next_at limit 100;
    return;
  elsif p_rule.kind = 'slow_schedule' then
    return query select w.schedule, floor(extract(epoch from w.duration)), format('a run of schedule %s takes %s, and no more than %s is expected', w.schedule,
      bridge.words(w.duration), bridge.words(w.longest_expected)) from bridge.slow_schedules w where extract(epoch from w.duration) > p_rule.threshold limit 100;
    return;
  end if;
  return query select f.name, f.failures::numeric, format('the last %s runs of schedule %s failed: %s', f.failures, f.name, left(f.last_error, 300)) from (
    select s.name, s.last_error, greatest(1, (select count(*) from bridge.schedule_run r where r.schedule = s.name and r.status in ('failed', 'expired')
      and r.id > coalesce((select o.id from bridge.schedule_run o where o.schedule = s.name and o.status = 'succeeded' order by o.id desc limit 1), 0))) as failures
    from bridge.schedules s where s.enabled and s.last_status = 'failed') f
  where f.failures > p_rule.threshold limit 100;
end
$$;

create or replace function bridge.read_holds(p_rule bridge.alert_rule, p_now timestamptz) returns setof bridge.alert_reading language sql stable
  set search_path = pg_catalog, pg_temp
  -- What is held back as a whole: circuit breakers that are not closed, and pauses that operators made.
  begin atomic
    select row(h.kind || ' ' || h.name, floor(extract(epoch from p_now - h.since)), h.message)::bridge.alert_reading from (
      select b.kind, b.name, p.paused_at as since, format('circuit breaker of %s %s is %s: %s', b.kind, b.name, replace(b.state, '_', ' '), b.reason) as message
      from bridge.breaker b join bridge.paused p on p.kind = b.kind and p.name = b.name and p.breaker
      where p_rule.kind = 'breaker_open'
      union all
      select p.kind, p.name, p.paused_at, format('%s %s has been paused by %s since %s%s', p.kind, p.name, p.paused_by, bridge.moment(p.paused_at), ': ' || p.reason)
      from bridge.paused p where p_rule.kind = 'paused' and not p.breaker
    ) h
    where extract(epoch from p_now - h.since) > p_rule.threshold and (p_rule.queue is null or (h.kind = 'queue' and h.name = p_rule.queue))
      and (p_rule.task is null or (h.kind = 'task' and h.name = p_rule.task))
    order by h.since limit 100;
  end;

create or replace function bridge.alert_readings(p_rule bridge.alert_rule, p_now timestamptz, p_ticked_at timestamptz)
  returns setof bridge.alert_reading language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- What a rule sees now: a row for each subject whose value is beyond the threshold.
begin
  case p_rule.kind
    when 'queued_jobs' then return query select * from bridge.read_queued_jobs(p_rule, p_now);
    when 'queue_age', 'no_worker' then return query select * from bridge.read_queues(p_rule, p_now);
    when 'stuck_jobs' then return query select * from bridge.read_stuck_jobs(p_rule, p_now);
    when 'dead_letters' then return query select * from bridge.read_dead_letters(p_rule, p_now);
    when 'failure_rate' then return query select * from bridge.read_failure_rate(p_rule, p_now);
    when 'late_schedule', 'failed_schedule', 'slow_schedule' then return query select * from bridge.read_schedules(p_rule, p_now);
    when 'breaker_open', 'paused' then return query select * from bridge.read_holds(p_rule, p_now);
    else return query select * from bridge.read_processes(p_rule, p_now, p_ticked_at);
  end case;
end
$$;
