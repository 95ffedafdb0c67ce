-- What the tick notices of its server: that it is another one, restarted or promoted; that its clock went back, as that of a promoted
-- standby may.

create or replace function bridge.clock_went_back(p_ticked_at timestamptz, p_now timestamptz) returns boolean language sql volatile
  set search_path = pg_catalog, pg_temp
  -- Whether the last tick is still to come: its clock was ahead of the one that there is now. A second is within what a time service mends.
  return isfinite(p_ticked_at) and p_ticked_at > greatest(p_now, clock_timestamp()) + interval '1 second';

create or replace function bridge.is_heard(p_now timestamptz) returns boolean language sql stable set search_path = pg_catalog, pg_temp
  -- Whether anybody has reported lately. Where not even a drainer has that did not say good-bye, the network has failed and not they: pg_cron
  -- ticks on in here, and whoever it took for dead would find his run repeated. Without drainers nobody could repeat it anyway. A drainer
  -- that has been silent for a day is no witness any more.
  return not exists (select from bridge.drainer d where d.stopped_at is null and d.seen_at > p_now - interval '1 day')
    or exists (select from bridge.drainer d where d.seen_at > p_now - greatest(bridge.seconds('worker_lost') / 2, interval '7 seconds'))
    or exists (select from bridge.worker w where w.seen_at > p_now - greatest(bridge.seconds('worker_lost') / 2, interval '7 seconds'));

create or replace function bridge.is_steady(p_state bridge.tick_state, p_now timestamptz) returns boolean language sql volatile
  set search_path = pg_catalog, pg_temp
  -- Whether ticks have come without a gap up to now, from one server, by one clock. Where not, those who report were perhaps unable to: a
  -- promoted standby has been up for long, and was no server to them; nor is one that nobody reaches.
  return p_state.ticked_at >= p_now - greatest(interval '10 seconds', 3 * bridge.seconds('tick_interval'))
    and not bridge.clock_went_back(p_state.ticked_at, p_now) and bridge.is_heard(p_now)
    and (p_state.server_started_at is null or p_state.server_started_at = pg_postmaster_start_time());

create or replace function bridge.bring_back(p_now timestamptz) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- The clock went back: nothing that has happened lies ahead. Otherwise whatever is judged by its age (claims, reports, messages that are
  -- missing, tokens of a rate) would be young until the clock is there again, and nothing that dies meanwhile would be recovered. What
  -- somebody wants at a moment (run_at, expiry, slots) stays.
  --
  -- Locks  the rows that change, in the order of locks; jobs' and buckets' by skip locked
begin
  update bridge.look l set asked_at = least(l.asked_at, p_now), answered_at = least(l.answered_at, p_now)
  where l.asked_at > p_now or l.answered_at > p_now;
  update bridge.drainer d set seen_at = p_now, started_at = least(d.started_at, p_now) where d.seen_at > p_now;
  update bridge.worker w set seen_at = p_now, started_at = least(w.started_at, p_now) where w.seen_at > p_now;
  update bridge.silent_worker s set seen_at = p_now where s.seen_at > p_now;
  update bridge.breaker b set changed_at = p_now where b.changed_at > p_now;
  update bridge.paused u set paused_at = p_now where u.paused_at > p_now;
  with ahead as (
    select i.seq from bridge.inflight i where greatest(i.claimed_at, i.published_at, i.started_at, i.missing_since) > p_now
    for update skip locked
  )
  update bridge.inflight i set claimed_at = least(i.claimed_at, p_now), published_at = least(i.published_at, p_now),
    started_at = least(i.started_at, p_now), missing_since = least(i.missing_since, p_now)
  from ahead a where a.seq = i.seq;
  with ahead as (
    select b.id from bridge.bucket b where b.refilled_at > p_now or b.due_at > p_now for update skip locked
  )
  update bridge.bucket b set refilled_at = least(b.refilled_at, p_now), due_at = least(b.due_at, p_now) from ahead a where a.id = b.id;
end
$$;
