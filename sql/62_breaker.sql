-- Circuit breakers: a queue or a task whose attempts fail too often is held back by itself, probed after a while, and let go when that
-- goes well. They are judged from history, by the tick, so no run pays for them.

do $$
begin
  if to_regclass('bridge.breaker') is null then
    create table bridge.breaker (
      kind       text not null,              -- queue or task
      name       text not null,
      ratio      numeric not null,           -- of failed attempts among all, from which it opens
      minimum    integer not null,           -- fewer attempts than this prove nothing
      within     interval not null,          -- how far back it looks
      cooldown   interval not null,          -- how long it stays open before it is probed
      probes     integer not null,           -- how many jobs must succeed then
      state      text not null,
      changed_at timestamptz not null,
      reason     text not null,
      primary key (kind, name),
      constraint breaker_kind_is_known check (kind in ('queue', 'task')),
      constraint breaker_state_is_known check (state in ('closed', 'open', 'half_open'))
    );
    create table bridge.breaker_change (
      id     bigint generated always as identity primary key,
      kind   text not null,
      name   text not null,
      at     timestamptz not null,
      state  text not null,
      reason text not null,
      by     text not null
    );
  end if;
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.attempt'::regclass and a.attname = 'task') then
    alter table bridge.attempt add column task text, add column queue text;
    -- breakers: what failed lately and was tried again
    create index attempt_failed_task on bridge.attempt (task, ended_at) where outcome in ('failed', 'retried');
    create index attempt_failed_queue on bridge.attempt (queue, ended_at) where outcome in ('failed', 'retried');
    -- breakers of queues: what failed lately; those of tasks read finished_task_status
    create index finished_failed_queue on bridge.finished (queue, finished_at) where status = 'failed';
  end if;
end
$$;

create or replace function bridge.recent_failures(p_kind text, p_name text, p_since timestamptz, p_started timestamptz, p_most integer,
    out failures bigint, out oldest timestamptz)
  language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- How many attempts of a queue or task failed after a moment, the next attempts that runs asked for because of an error included.
  --
  --   p_started  only of runs that started then or later
  --   p_most     stop at so many, the newest first
  --
  -- Returns  their number, and the end of the oldest
  -- Index    finished_task_status, finished_failed_queue, attempt_failed_task, attempt_failed_queue
begin
  if p_kind = 'task' then
    select count(*), min(e.at) into failures, oldest from (
      (select f.finished_at as at from bridge.finished f where f.task = p_name and f.status = 'failed' and f.finished_at > p_since
        and coalesce(f.started_at, f.finished_at) >= p_started order by f.finished_at desc limit p_most)
      union all
      (select a.ended_at from bridge.attempt a where a.task = p_name and a.outcome in ('failed', 'retried') and a.error is not null
        and a.ended_at > p_since and a.started_at >= p_started order by a.ended_at desc limit p_most)
      order by at desc limit p_most) e;
  else
    select count(*), min(e.at) into failures, oldest from (
      (select f.finished_at as at from bridge.finished f where f.queue = p_name and f.status = 'failed' and f.finished_at > p_since
        and coalesce(f.started_at, f.finished_at) >= p_started order by f.finished_at desc limit p_most)
      union all
      (select a.ended_at from bridge.attempt a where a.queue = p_name and a.outcome in ('failed', 'retried') and a.error is not null
        and a.ended_at > p_since and a.started_at >= p_started order by a.ended_at desc limit p_most)
      order by at desc limit p_most) e;
  end if;
end
$$;

create or replace function bridge.recent_successes(p_kind text, p_name text, p_since timestamptz, p_started timestamptz, p_most integer) returns bigint
  language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- How many jobs of a queue or task have succeeded since a moment; as bridge.recent_failures, and no more than asked for are read.
  --
  -- Index  finished_task_status; finished_recent for queues, whose successes no index of their own pays for
begin
  return case when p_kind = 'task' then (select count(*) from (select from bridge.finished f where f.task = p_name and f.status = 'succeeded'
      and f.finished_at > p_since and f.started_at >= p_started limit p_most) s)
    else (select count(*) from (select from bridge.finished f where f.queue = p_name and f.status = 'succeeded'
      and f.finished_at > p_since and f.started_at >= p_started limit p_most) s) end;
end
$$;

create or replace function bridge.turn_breaker(p_kind text, p_name text, p_state text, p_reason text, p_by text default 'breaker') returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Change the state of a breaker, note it, and hold back or let go what it is about. One that opens also takes back what is published.
declare
  v_breaker bridge.breaker;
begin
  update bridge.breaker b set state = p_state, changed_at = clock_timestamp(), reason = p_reason
  where b.kind = p_kind and b.name = p_name returning b.* into v_breaker;
  insert into bridge.breaker_change (kind, name, at, state, reason, by)
  values (p_kind, p_name, v_breaker.changed_at, p_state, p_reason, p_by);
  if p_state = 'closed' then
    delete from bridge.paused p where p.kind = p_kind and p.name = p_name and p.breaker;
  else
    insert into bridge.paused as p (kind, name, breaker, hard, admit, paused_at, paused_by, reason)
    values (p_kind, p_name, true, true, case p_state when 'half_open' then v_breaker.probes else 0 end, v_breaker.changed_at, 'breaker', p_reason)
    on conflict on constraint paused_pkey do update set admit = excluded.admit, reason = excluded.reason,
      paused_at = case when p_state = 'open' then excluded.paused_at else p.paused_at end;
  end if;
  perform bridge.set_gate(p_kind, p_name);
  if p_state = 'open' then
    perform bridge.take_back(p_kind, p_name, false);  -- what somebody has in hand, the next look of the tick takes back
  else
    perform bridge.wake(p_kind, p_name);
  end if;
end
$$;

create or replace function bridge.judge_closed(p_breaker bridge.breaker, p_now timestamptz) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Open a breaker when too many attempts have failed. Successes are counted only where the failures could be enough, and only as many as
  -- would outweigh them.
declare
  v_since timestamptz := greatest(p_now - p_breaker.within, p_breaker.changed_at);
  v_failed record;
  v_succeeded bigint;
  v_most constant integer := 1000;  -- the newest failures tell enough
begin
  select r.* into v_failed from bridge.recent_failures(p_breaker.kind, p_breaker.name, v_since, '-infinity', v_most) r;
  if v_failed.failures < greatest(p_breaker.ratio * p_breaker.minimum, 1) then
    return;
  end if;
  if v_failed.failures = v_most then
    v_since := v_failed.oldest;
  end if;
  v_succeeded := bridge.recent_successes(p_breaker.kind, p_breaker.name, v_since, '-infinity',
    greatest(floor(v_failed.failures / p_breaker.ratio)::integer - v_failed.failures::integer, p_breaker.minimum) + 1);
  if v_failed.failures + v_succeeded >= p_breaker.minimum and v_failed.failures >= p_breaker.ratio * (v_failed.failures + v_succeeded) then
    perform bridge.turn_breaker(p_breaker.kind, p_breaker.name, 'open', format('%s of %s attempts failed since %s', v_failed.failures,
      v_failed.failures + v_succeeded, bridge.moment(v_since)));
  end if;
end
$$;

create or replace function bridge.judge_probes(p_breaker bridge.breaker) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Close a half-open breaker when its probes have succeeded, open it again when one has failed; else let out as many as are still wanted.
declare
  v_failed constant bigint := (bridge.recent_failures(p_breaker.kind, p_breaker.name, p_breaker.changed_at, p_breaker.changed_at, 1)).failures;
  v_wanted bigint;
begin
  if v_failed > 0 then
    perform bridge.turn_breaker(p_breaker.kind, p_breaker.name, 'open', 'a probe failed');
    return;
  end if;
  v_wanted := p_breaker.probes - bridge.recent_successes(p_breaker.kind, p_breaker.name, p_breaker.changed_at, p_breaker.changed_at, p_breaker.probes);
  if v_wanted = 0 then
    perform bridge.turn_breaker(p_breaker.kind, p_breaker.name, 'closed', format('%s probes succeeded', p_breaker.probes));
    return;
  end if;
  update bridge.paused p set admit = v_wanted where p.kind = p_breaker.kind and p.name = p_breaker.name and p.breaker and p.admit <> v_wanted;
  if found then
    perform bridge.set_gate(p_breaker.kind, p_breaker.name);
  end if;
end
$$;

create or replace function bridge.judge_breakers(p_now timestamptz, p_half_open boolean default false) returns boolean language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Look at every breaker: the tick does.
  --
  --   p_half_open  at half-open ones alone: each claim does while there is one, so that no more jobs are let out than wanted
  --
  -- Returns  false when somebody else is at it, or changes limits
  -- Locks    an advisory lock, tried and never waited for; the gate, where there is a breaker of a task, and breakers, if nobody has them
  --          in hand (skip locked)
declare
  v_breaker bridge.breaker;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('bridge.breaker', 0)) then
    return false;
  end if;
  if exists (select from bridge.breaker b where b.kind = 'task' and (b.state <> 'closed' or not p_half_open)) then
    perform from bridge.gate for update skip locked;
    if not found then
      return false;
    end if;
  end if;
  for v_breaker in
    select b.* from bridge.breaker b where b.state = 'half_open' or not p_half_open order by b.kind, b.name for update skip locked
  loop
    if v_breaker.state = 'closed' then
      perform bridge.judge_closed(v_breaker, p_now);
    elsif v_breaker.state = 'half_open' then
      perform bridge.judge_probes(v_breaker);
    elsif p_now >= v_breaker.changed_at + v_breaker.cooldown then
      perform bridge.turn_breaker(v_breaker.kind, v_breaker.name, 'half_open', format('%s jobs are let out', v_breaker.probes));
    elsif p_now < v_breaker.changed_at + interval '10 seconds' then
      perform bridge.take_back(v_breaker.kind, v_breaker.name, false);  -- of claims that had begun before it opened
    end if;
  end loop;
  return true;
end
$$;

create or replace function bridge.check_breaker(p_breaker bridge.breaker) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a breaker that could never open, or never close.
begin
  if p_breaker.ratio is null or p_breaker.ratio <= 0 or p_breaker.ratio > 1 then
    perform bridge.refuse(format('ratio is %s', coalesce(p_breaker.ratio::text, 'null')), 'give the part of all attempts that fail, above 0 and up to 1');
  elsif p_breaker.minimum is null or p_breaker.minimum not between 1 and 10000 then
    perform bridge.refuse(format('minimum is %s', coalesce(p_breaker.minimum::text, 'null')), 'give 1 to 10000 attempts');
  elsif p_breaker.within is null or p_breaker.within not between interval '1 second' and interval '1 day' then
    perform bridge.refuse(format('within is %s', coalesce(p_breaker.within::text, 'null')), 'give an interval from 1 second to 1 day');
  elsif p_breaker.cooldown is null or p_breaker.cooldown not between interval '1 second' and interval '30 days' then
    perform bridge.refuse(format('cooldown is %s', coalesce(p_breaker.cooldown::text, 'null')), 'give an interval from 1 second to 30 days');
  elsif p_breaker.probes is null or p_breaker.probes not between 1 and 1000 then
    perform bridge.refuse(format('probes is %s', coalesce(p_breaker.probes::text, 'null')), 'give 1 to 1000 jobs');
  end if;
end
$$;

create or replace function bridge.set_breaker(queue text default null, task text default null, ratio numeric default 0.5,
    minimum integer default 20, within interval default '5 minutes', cooldown interval default '1 minute', probes integer default 1)
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Hold a queue or a task back by itself while too many of its attempts fail. Saying the same again changes nothing; the state stays.
  --
  --   queue, task  which; one of them
  --   ratio        it opens when this part of all attempts has failed (0.5 is half of them) …
  --   minimum      … of at least so many …
  --   within       … that ended within this last while
  --   cooldown     so long after it opened, it is half open: probes are let out
  --   probes       when so many jobs have succeeded it closes; the first that fails opens it again
  --
  -- Returns  created, changed or unchanged
  -- Errors   JB001 an argument
declare
  v_what constant record := bridge.scope(set_breaker.queue, set_breaker.task, false);
  v_new bridge.breaker := row(v_what.kind, v_what.name, set_breaker.ratio, set_breaker.minimum, set_breaker.within, set_breaker.cooldown,
    set_breaker.probes, 'closed', clock_timestamp(), 'made');
  v_old bridge.breaker;
begin
  perform bridge.check_breaker(v_new);
  insert into bridge.breaker select v_new.* on conflict on constraint breaker_pkey do nothing;
  if found then
    return 'created';
  end if;
  select b.* into v_old from bridge.breaker b where b.kind = v_what.kind and b.name = v_what.name for update;
  if (v_old.ratio, v_old.minimum, v_old.within, v_old.cooldown, v_old.probes) = (v_new.ratio, v_new.minimum, v_new.within, v_new.cooldown, v_new.probes) then
    return 'unchanged';
  end if;
  update bridge.breaker b set ratio = v_new.ratio, minimum = v_new.minimum, within = v_new.within, cooldown = v_new.cooldown, probes = v_new.probes
  where b.kind = v_what.kind and b.name = v_what.name;
  return 'changed';
end
$$;

create or replace function bridge.reset_breaker(queue text default null, task text default null) returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp as $$
  -- Close a breaker by hand; what failed before counts no more.
  --
  -- Returns  the state that it was in
  -- Errors   JB001 not one of queue and task, JB002 there is no such breaker
  -- Locks    the breaker: of two who reset it, or while it is being judged, one comes after the other
declare
  v_what constant record := bridge.scope(reset_breaker.queue, reset_breaker.task, false);
  v_state text;
begin
  select b.state into v_state from bridge.breaker b where b.kind = v_what.kind and b.name = v_what.name for update;
  if v_state is null then
    perform bridge.refuse(format('breaker of %s %s does not exist', v_what.kind, v_what.name), 'see: select kind, name from bridge.breakers', 'JB002');
  end if;
  perform bridge.turn_breaker(v_what.kind, v_what.name, 'closed', 'reset', session_user);
  return v_state;
end
$$;

create or replace function bridge.remove_breaker(queue text default null, task text default null) returns boolean language plpgsql
  security definer set search_path = pg_catalog, pg_temp as $$
  -- Remove a breaker; what it held goes on. Its changes stay readable.
  --
  -- Returns  false when there was none
  -- Errors   JB001 not one of queue and task
declare
  v_what constant record := bridge.scope(remove_breaker.queue, remove_breaker.task, false);
begin
  perform from bridge.breaker b where b.kind = v_what.kind and b.name = v_what.name for update;
  if not found then
    return false;
  end if;
  perform bridge.turn_breaker(v_what.kind, v_what.name, 'closed', 'removed', session_user);
  delete from bridge.breaker b where b.kind = v_what.kind and b.name = v_what.name;
  return true;
end
$$;

select bridge.define_view('breakers', $view$
  select b.kind, b.name, b.state, b.changed_at, b.reason, case when b.state = 'open' then b.changed_at + b.cooldown end as half_open_at, b.ratio,
    b.minimum, b.within, b.cooldown, b.probes
  from bridge.breaker b
$view$);

select bridge.define_view('breaker_changes', $view$
  select c.at, c.kind, c.name, c.state, c.reason, c.by, c.id from bridge.breaker_change c
$view$);
