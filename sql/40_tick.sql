-- The tick: everything that time brings about, in short pages. Any number of sources may call it; one at a time does the work.

create or replace function bridge.move_due(p_limit integer, p_now timestamptz) returns integer language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Make scheduled jobs ready whose time has come, earliest first.
declare
  v_seqs bigint[];
begin
  with due as (
    select s.seq from bridge.scheduled s where s.run_at <= p_now order by s.run_at limit p_limit for update skip locked
  ), gone as (
    delete from bridge.scheduled s using due where s.seq = due.seq returning s.seq, s.run_at
  )
  select array_agg(g.seq order by g.run_at) into v_seqs from gone g;
  if v_seqs is not null then
    perform bridge.make_many_ready(v_seqs);
  end if;
  return coalesce(cardinality(v_seqs), 0);
end
$$;

create or replace function bridge.expire_due(p_limit integer, p_now timestamptz) returns integer language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- End jobs as expired that were not started in time.
declare
  v_seq bigint;
  v_count integer := 0;
begin
  for v_seq in
    select j.seq from bridge.job j
    where j.expires_at <= p_now
      and coalesce((select i.state = 'published' and i.taken_by is null from bridge.inflight i where i.seq = j.seq), true)
    order by j.expires_at limit p_limit
  loop
    continue when not bridge.leave_late(v_seq);
    perform bridge.end_job(v_seq, 'expired', null, null, null, 0, null, null, null, null);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

create or replace function bridge.unclaim_dead(p_limit integer, p_now timestamptz) returns integer language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Free what a drainer claimed and did not mark within the lease: it died on the way. What a living worker has in hand arrived, and is
  -- left to it.
  --
  -- Locks    their rows (skip locked)
declare
  v_seqs bigint[];
begin
  select array_agg(i.seq) into v_seqs from (
    select i.seq from bridge.flights() f cross join lateral (
      select i.seq from bridge.inflight i
      where i.queue = f.queue and i.pos >= f.low and i.state = 'claimed' and i.taken_by is null
        and i.claimed_at < p_now - bridge.seconds('publish_lease')
        and not exists (select from bridge.worker w where w.lost_at is null and w.stopped_at is null and i.token = any (w.holding))
      limit p_limit for update skip locked) i
    limit p_limit) i;
  return coalesce(bridge.unclaim(v_seqs), 0);
end
$$;

create or replace function bridge.note_unheld(p_now timestamptz) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Remember since when a living worker has not named a run that is its own; forget it for runs that it names again. A finish may be on
  -- its way, so one report proves nothing.
  --
  -- Locks    the rows that change (skip locked): a task's own transaction may have one, for as long as it likes
begin
  with changed as (
    select i.seq from bridge.flights() f cross join lateral (
      select i.seq from bridge.inflight i join bridge.worker w on w.id = i.worker
      where i.queue = f.queue and i.pos >= f.low and i.state = 'running' and i.taken_by is null and case when i.missing_since is null
        then w.seen_at > i.started_at and not i.token = any (w.holding) else i.token = any (w.holding) end
      for update of i skip locked) i
  )
  update bridge.inflight i set missing_since = case when i.missing_since is null then p_now end where i.seq = any (array (select c.seq from changed c));
end
$$;

create or replace function bridge.forget_missing() returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- A message that a living worker has is not missing: what was noted while it was on its way there is no evidence any more.
  --
  -- Locks    the rows that change (skip locked)
begin
  with held as materialized (
    select unnest(w.holding) as token from bridge.worker w where w.lost_at is null and w.stopped_at is null
  ), found as (
    select i.seq from bridge.flights() f cross join lateral (
      select i.seq from bridge.inflight i
      where i.queue = f.queue and i.pos >= f.low and i.missing_since is not null and i.state = 'published' and i.taken_by is null
        and i.token in (select h.token from held h)
      for update of i skip locked) i
  )
  update bridge.inflight i set missing_since = null where i.seq = any (array (select f.seq from found f));
end
$$;

create or replace function bridge.reap_workers(p_now timestamptz, p_steady_since timestamptz, p_limit integer) returns integer language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Take their deliveries from workers that are dead, and from living ones that no longer know of them.
  --
  --   p_steady_since  since when ticks have come without a gap, from one server: after an outage nobody is dead until there was time to report
  --
  -- Returns  how many deliveries were freed
  -- Locks    workers and rows in flight that nobody has in hand (skip locked)
declare
  v_lost constant interval := bridge.seconds('worker_lost');
  v_beat constant interval := bridge.seconds('heartbeat');
  v_fair constant timestamptz := greatest(p_steady_since, pg_postmaster_start_time()) + v_lost;
  v_row record;
  v_count integer := 0;
begin
  perform bridge.forget_missing();
  if p_now < v_fair then
    return 0;
  end if;
  -- A worker that reports or stops at this moment has its row: it is alive.
  update bridge.worker w set lost_at = p_now where w.id = any (array (
    select o.id from bridge.worker o where o.seen_at < p_now - v_lost and o.lost_at is null and o.stopped_at is null for update skip locked));
  perform bridge.note_unheld(p_now);
  for v_row in
    select i.seq, i.token, i.worker, coalesce('worker ' || w.name || case when w.lost_at is not null then ' died' when w.stopped_at is not null
        then ' stopped' else ' lost the run' end, 'a worker that never reported died') as reason
    from bridge.flights() f
    cross join lateral (select * from bridge.inflight i where i.queue = f.queue and i.pos >= f.low and i.state = 'running' and i.taken_by is null offset 0) i
    left join bridge.worker w on w.id = i.worker
    where w.stopped_at is not null or i.missing_since < p_now - 2 * v_beat
      -- A start is a sign of life as well: a worker whose reports do not get through may begin what its reports will name again.
      or (i.started_at < p_now - v_lost and (w.lost_at is not null or (w.id is null and i.queue <> 'bridge.calls')))
    union all
    -- what a dead worker had in hand and had not begun, and no living one has
    select i.seq, i.token, w.id, 'worker ' || w.name || ' died' from bridge.worker w cross join unnest(w.holding) h (token)
    join bridge.inflight i on i.token = h.token
    where w.lost_at is not null and i.state = 'published'
      and not exists (select from bridge.worker o where o.lost_at is null and o.stopped_at is null and i.token = any (o.holding))
    limit p_limit
  loop
    continue when bridge.is_in_other_hands(v_row.seq);
    -- Another may have begun it since it was read here, by another copy.
    if bridge.lose(v_row.seq, v_row.token, v_row.reason, v_row.worker) is not null then
      v_count := v_count + 1;
    end if;
  end loop;
  update bridge.worker w set holding = '{}' where w.id = any (array (
    select o.id from bridge.worker o where o.lost_at is not null and o.holding <> '{}'
      and not exists (select from bridge.inflight i where i.token = any (o.holding)) for update skip locked));
  return v_count;
end
$$;

create or replace function bridge.check_now(p_now timestamptz) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Refuse a moment that is not now: in a time that has not come workers are lost and jobs expire, and nothing brings them back. Whoever has
  -- the rights of the schema's owner may let time pass.
  --
  -- Errors  JB001
begin
  if (p_now between clock_timestamp() - interval '5 minutes' and clock_timestamp() + interval '5 minutes') is not true
      and not pg_has_role(session_user, (select n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'bridge'), 'usage') then
    perform bridge.refuse(format('p_now is %s, and it is %s', coalesce(p_now::text, 'null'), clock_timestamp()),
      'leave it out: only the owner of the schema may let time pass');
  end if;
end
$$;

create or replace function bridge.sweep(p_limit integer default 1000, p_now timestamptz default clock_timestamp()) returns jsonb
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Recover what dead processes left behind: claims, runs, deliveries, children, chords. The tick calls it; by hand it does no harm.
  --
  -- Returns  how many of each
declare
  v_steady timestamptz;
begin
  perform bridge.check_now(p_now);
  select t.steady_since into v_steady from bridge.tick_state t;
  perform bridge.forget_replaced(p_limit);
  perform bridge.stop_calls(p_now);
  return jsonb_build_object('unclaimed', bridge.unclaim_dead(p_limit, p_now), 'lost', bridge.reap_workers(p_now, v_steady, p_limit) + bridge.lose_calls(p_limit, p_now),
    'unblocked', bridge.settle_late(p_limit), 'joins', bridge.sweep_chords(least(p_limit, 200), p_now),
    'counted', bridge.count_recent(p_now), 'untold', bridge.pass_on_untold(least(p_limit, 200)));
end
$$;

create or replace function bridge.tick(p_source text default 'manual', p_limit integer default 2000, p_now timestamptz default clock_timestamp())
  returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Do what time has brought about since the last tick. Safe to call from anywhere at any rate.
  --
  --   p_source  who calls: pg_cron, drainer, manual; the doctor shows it
  --   p_limit   most rows a step: a backlog takes several ticks, none of them long
  --   p_now     see bridge.check_now
  --
  -- Returns  counts by step; null when another tick is at work
  -- Locks    an advisory lock, tried and never waited for
declare
  v_state bridge.tick_state;
  v_counts jsonb;
begin
  perform bridge.check_now(p_now);
  if not pg_try_advisory_xact_lock(hashtextextended('bridge.tick', 0)) then
    return null;
  end if;
  select t.* into v_state from bridge.tick_state t;
  if bridge.clock_went_back(v_state.ticked_at, p_now) then
    perform bridge.bring_back(clock_timestamp());
  end if;
  update bridge.tick_state t set source = p_source, ticked_at = p_now, server_started_at = pg_postmaster_start_time(),
    steady_since = case when bridge.is_steady(v_state, p_now) then v_state.steady_since else p_now end,
    upkeep_at = case when v_state.upkeep_at < p_now - interval '1 hour' then p_now else v_state.upkeep_at end;
  v_counts := jsonb_build_object('slots', bridge.run_schedules(p_limit, p_now), 'due', bridge.move_due(p_limit, p_now),
      'expired', bridge.expire_due(p_limit, p_now), 'overdue', bridge.end_overdue(p_limit, p_now),
      'keys', bridge.clean_keys(p_limit, p_now))
    || bridge.sweep(p_limit, p_now);
  perform bridge.forget_listeners();
  perform bridge.judge_breakers(p_now);
  perform bridge.tally_ends(p_now);
  perform bridge.check_alerts_if_due(p_now, v_state.ticked_at);
  perform bridge.collect_metrics_if_due(p_now);
  if v_state.upkeep_at < p_now - interval '1 hour' then
    v_counts := v_counts || jsonb_build_object('days', bridge.make_days(), 'results', bridge.clean_results(p_now) + bridge.clean_chords(p_now),
      'permits', bridge.sweep_permits());
    if p_source <> 'pg_cron' then
      perform bridge.announce_cron();  -- it may be there and not know
    end if;
  end if;
  perform bridge.cleanup_if_late('tick');  -- last: it may lock a table whose day is over
  return v_counts;
end
$$;

create or replace function bridge.tick_if_late(p_source text) returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Tick only where nobody else does: when another's last tick is older than twice its interval (pg_cron by seconds calls every 2), or
  -- ours is one interval old.
  --
  -- Returns  as bridge.tick; null when nothing was done
declare
  v_last timestamptz;
  v_source text;
begin
  select t.ticked_at, t.source into v_last, v_source from bridge.tick_state t;
  -- A last tick that is still to come was ticked by a clock that has gone back since.
  if v_last <= clock_timestamp() and v_last > clock_timestamp() - (case when v_source = p_source then bridge.seconds('tick_interval')
      else 2 * greatest(bridge.seconds('tick_interval'), interval '2 seconds') end) then
    return null;
  end if;
  return bridge.tick(p_source);
end
$$;

create or replace procedure bridge.tick_loop(p_seconds double precision default 57) language plpgsql as $$
  -- For a pg_cron that knows minutes only (before 1.5): one call a minute that ticks at the set interval and commits each time.
  --
  --   p_seconds  when to return: before the next minute's call
declare
  -- A procedure that commits can carry no SET clause: every name here is qualified, and times are read from the clock, because now()
  -- stays at the last commit.
  v_until constant timestamptz := pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => p_seconds);
begin
  loop
    perform bridge.tick('pg_cron');
    commit;
    exit when pg_catalog.clock_timestamp() + bridge.seconds('tick_interval') > v_until;
    perform pg_catalog.pg_sleep_for(bridge.seconds('tick_interval'));
    commit;  -- a tick begins its transaction, which ends are counted by
  end loop;
end
$$;
