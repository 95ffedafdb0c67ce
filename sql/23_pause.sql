-- What is held back as a whole: a queue, a task, everything. An operator pauses it until he resumes it; a circuit breaker opens and closes
-- by itself. Both act in the claim, so what is held costs nothing and no worker has to know.

do $$
begin
  if to_regclass('bridge.paused') is null then
    create table bridge.paused (
      kind      text not null,
      name      text not null,               -- of the queue or the task; empty for everything
      breaker   boolean not null,            -- a circuit breaker holds it, not an operator
      hard      boolean not null,            -- what is published does not start either
      admit     integer not null default 0,  -- jobs that may be in flight all the same: probes of a breaker
      paused_at timestamptz not null,
      paused_by text not null,
      reason    text,
      primary key (kind, name, breaker),     -- claim: is this queue paused
      constraint paused_kind_is_known check (kind in ('queue', 'task') or (kind = 'everything' and name = ''))
    );
  end if;
end
$$;

create or replace function bridge.scope(p_queue text, p_task text, p_everything boolean, out kind text, out name text) language plpgsql immutable
  set search_path = '' as $$
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

create or replace function bridge.is_paused(p_queue text) returns boolean language sql stable set search_path = '' set enable_seqscan = off
  -- Whether nothing of a queue may be claimed, because it or everything is paused.
  begin atomic
    select exists (select from bridge.paused p where ((p.kind = 'queue' and p.name = p_queue) or p.kind = 'everything') and p.admit = 0);
  end;

create or replace function bridge.may_claim(p_queue text) returns boolean language plpgsql set search_path = '' as $$
  -- Announce a claim of a queue until its transaction ends, so that a pause can wait for it; see bridge.hold_claims.
  --
  -- Returns  false while somebody is pausing or resuming what the queue belongs to
  -- Locks    two advisory locks, shared, tried and never waited for
begin
  return pg_try_advisory_xact_lock_shared(hashtextextended('bridge.pause', 0))
    and pg_try_advisory_xact_lock_shared(hashtextextended('bridge.pause ' || p_queue, 0));
end
$$;

create or replace function bridge.hold_claims(p_kind text, p_name text) returns void language plpgsql set search_path = '' as $$
  -- Wait for the claims that are under way, and keep further ones waiting until this transaction ends: then none can have slipped
  -- through between a pause and its commit. Two who pause and resume the same take turns.
  --
  -- Locks  an advisory lock of the queue; of all queues for a task or everything
begin
  perform pg_advisory_xact_lock(hashtextextended('bridge.pause' || case p_kind when 'queue' then ' ' || p_name else '' end, 0));
end
$$;
