-- What operators do to queues: pause, resume, drain for a deployment, set a window. What is paused is held back in the claim, so it costs
-- nothing and no worker has to know.

create or replace function bridge.scope(p_queue text, p_task text, p_everything boolean, out kind text, out name text) language plpgsql immutable
  set search_path = pg_catalog, pg_temp as $$
  -- What is meant: one queue, one task, or everything.
  --
  -- Errors  JB001 when it is not exactly one of them, or no name that a queue or task can have
begin
  if num_nonnulls(p_queue, p_task) + coalesce(p_everything, false)::integer <> 1 then
    perform bridge.refuse(format('queue is %L, task is %L, everything is %L', p_queue, p_task, p_everything), 'give one of them');
  elsif p_queue !~ '^[^\s,]{1,255}$' then
    perform bridge.refuse(format('queue is %L', left(p_queue, 80)), 'give a queue name, 1 to 255 characters without spaces and commas');
  elsif p_task !~ '^[^\s*?]{1,255}$' then
    perform bridge.refuse(format('task is %L', left(p_task, 80)), 'give the whole name of a Celery task, 1 to 255 characters without spaces, * and ?');
  end if;
  kind := case when p_queue is not null then 'queue' when p_task is not null then 'task' else 'everything' end;
  name := coalesce(p_queue, p_task, '');
end
$$;

create or replace function bridge.may_claim(p_queue text) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Announce a claim of a queue until its transaction ends, so that a pause can wait for it; see bridge.hold_claims.
  --
  -- Returns  false while somebody is pausing or resuming what the queue belongs to, or judges the probes of a breaker
  -- Locks    two advisory locks, shared, tried and never waited for
begin
  return pg_try_advisory_xact_lock_shared(hashtextextended('bridge.pause', 0))
    and pg_try_advisory_xact_lock_shared(hashtextextended('bridge.pause ' || p_queue, 0))
    and (not exists (select from bridge.breaker b where b.state = 'half_open') or bridge.judge_breakers(clock_timestamp(), p_half_open => true));
end
$$;

create or replace function bridge.hold_claims(p_kind text, p_name text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Wait for the claims that are under way, and keep further ones waiting until this transaction ends: then none can have slipped
  -- through between a pause and its commit. Two who pause and resume the same take turns.
  --
  -- Locks  an advisory lock of the queue; of all queues for a task or everything
begin
  perform pg_advisory_xact_lock(hashtextextended('bridge.pause' || case p_kind when 'queue' then ' ' || p_name else '' end, 0));
end
$$;

create or replace function bridge.take_back(p_kind text, p_name text, p_waits boolean default true) returns integer language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
  set jit = off as $$
  -- Put jobs that are published, or being published, and not started back where they wait in Postgres. Their tokens are gone with that, so
  -- the messages that are out there start nothing. What a worker that reports nothing may have taken stays as it is.
  --
  --   p_kind, p_name  as in bridge.paused
  --   p_waits         false: what somebody has in hand is passed by
  --
  -- Returns  how many jobs
  -- Locks    their rows in flight, in the order of their numbers; waits for who marks or starts one of them
  -- Index    inflight_live
declare
  v_tokens uuid[];
  v_silent constant boolean := exists (select from bridge.silent_worker);
begin
  select array_agg(i.token) into v_tokens from bridge.inflight i
  where i.state <> 'running' and i.taken_by is null and (p_kind <> 'queue' or i.queue = p_name)
    and (p_kind <> 'task' or (select j.task from bridge.job j where j.seq = i.seq) = p_name)
    and not (v_silent and bridge.silent_workers(i.queue, coalesce(i.published_at, i.claimed_at)) is not null);
  if not p_waits then
    select array_agg(o.token) into v_tokens from (
      select i.token from bridge.inflight i where i.token = any (v_tokens) and i.state <> 'running' for update skip locked) o;
  end if;
  return bridge.release(coalesce(v_tokens, '{}'));
end
$$;

create or replace function bridge.set_gate(p_kind text, p_name text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Have the gate hold a task as far as bridge.paused says; queues, and everything, are held by the claim itself.
declare
  v_gate constant text := 'task ' || case when length(p_name) > 150 then left(p_name, 100) || ' ' || md5(p_name) else p_name end;
  v_admit integer;
begin
  if p_kind <> 'task' then
    return;
  end if;
  -- What runs since before a breaker opened takes nothing from its probes.
  select min(case when p.admit = 0 then 0 else p.admit + (
    select count(*) from bridge.inflight i join bridge.job j on j.seq = i.seq where j.task = p_name and i.claimed_at < p.paused_at) end)
  into v_admit from bridge.paused p where p.kind = 'task' and p.name = p_name;
  if v_admit is null then
    perform bridge.open_gate(v_gate);
  else
    perform bridge.close_gate(v_gate, p_task => p_name, p_admit => v_admit);
  end if;
end
$$;

create or replace function bridge.wake(p_kind text, p_name text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Tell drainers that jobs may go out again which were held back; of a task the gate tells them.
begin
  if p_kind = 'queue' then
    perform bridge.wake_drainers(p_name);
  elsif p_kind = 'everything' then
    perform bridge.wake_drainers(r) from bridge.ready_queues() r;
  end if;
end
$$;

create or replace function bridge.pause(queue text default null, task text default null, everything boolean default false,
    hard boolean default false, reason text default null)
  returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Publish nothing more of a queue, a task or everything until it is resumed. When this has committed, nothing more is claimed.
  --
  --   queue, task, everything  what to pause: one of them
  --   hard                     what is published does not start either: it is due in Postgres again, and its messages start nothing.
  --                            Without it, what is published goes on. A pause that is there becomes hard, and never soft again
  --   reason                   shown in bridge.pauses
  --
  -- Returns  how many published jobs were taken back
  -- Errors   JB001 when not exactly one of queue, task and everything is given
  -- Locks    waits for claims that are under way; drainers pass by until this transaction ends, so commit at once
declare
  v_what constant record := bridge.scope(pause.queue, pause.task, pause.everything);
begin
  perform bridge.hold_claims(v_what.kind, v_what.name);
  insert into bridge.paused as p (kind, name, breaker, hard, paused_at, paused_by, reason)
  values (v_what.kind, v_what.name, false, coalesce(pause.hard, false), clock_timestamp(), session_user, pause.reason)
  on conflict on constraint paused_pkey do update set hard = p.hard or excluded.hard, reason = coalesce(excluded.reason, p.reason);
  perform bridge.set_gate(v_what.kind, v_what.name);
  return case when pause.hard then bridge.take_back(v_what.kind, v_what.name) else 0 end;
end
$$;

create or replace function bridge.resume(queue text default null, task text default null, everything boolean default false)
  returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- End a pause, and wake the drainers. Each pause is ended by itself: a queue that was paused before everything was stays paused.
  --
  --   queue, task, everything  what to resume: one of them
  --
  -- Returns  false when it was not paused
  -- Errors   JB001 when not exactly one of them is given
  -- Locks    as bridge.pause: of two who pause and resume at once, the second sees what the first has done
declare
  v_what constant record := bridge.scope(resume.queue, resume.task, resume.everything);
  v_was_paused boolean;
begin
  perform bridge.hold_claims(v_what.kind, v_what.name);
  delete from bridge.paused p where p.kind = v_what.kind and p.name = v_what.name and not p.breaker;
  v_was_paused := found;
  perform bridge.set_gate(v_what.kind, v_what.name);
  perform bridge.wake(v_what.kind, v_what.name);
  return v_was_paused;
end
$$;

create or replace function bridge.set_window(queue text, jobs integer default null) returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp as $$
  -- Give a queue a window of its own: how many of its jobs may be published and not started.
  --
  --   jobs  0: no bound; null: the setting window, as for every other queue
  --
  -- Errors  JB001 when the queue is no name or jobs is negative
declare
  v_name constant text := (bridge.scope(set_window.queue, null, false)).name;
begin
  if jobs < 0 then
    perform bridge.refuse(format('jobs is %s', jobs), 'give 0 for no bound, a positive number, or null for the setting window');
  end if;
  insert into bridge.queue as q (name, "window") values (v_name, set_window.jobs)
  on conflict (name) do update set "window" = excluded."window";
  perform bridge.wake_drainers(v_name);
end
$$;

create or replace function bridge.drain_state(queues text[] default null)
  returns table (queue text, paused boolean, publishing bigint, published bigint, running bigint, oldest_started_at timestamptz)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- What of these queues is still with drainers, the broker and workers: a queue is drained when all three are 0.
  --
  --   queues  their names; null for every queue that has something in flight
  --
  -- Returns  one row a queue, by name; what workers that report nothing have taken is not counted, see bridge.unreported_jobs
  -- Index    inflight_live
begin
  return query
  select q.name, bridge.is_paused(q.name), count(i.seq) filter (where i.state = 'claimed'), count(i.seq) filter (where i.state = 'published'),
    count(i.seq) filter (where i.state = 'running'), min(i.started_at)
  from (
    select distinct n from unnest(drain_state.queues) n
    union
    select distinct f.queue from bridge.inflight f where drain_state.queues is null and f.taken_by is null) q (name)
  left join bridge.inflight i on i.queue = q.name and i.taken_by is null
  group by q.name order by q.name;
end
$$;

select bridge.define_view('pauses', $view$
  select p.kind, p.name, case when p.breaker then 'breaker' when p.hard then 'hard' else 'soft' end as pause, p.paused_at, p.paused_by, p.reason
  from bridge.paused p
$view$);
