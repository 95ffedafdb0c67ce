-- What a drainer does: claim a shipment, commit, publish it, mark it. A crash between any two lines publishes a job twice, never zero
-- times, and the start fence admits one of the copies.

do $$
begin
  if to_regtype('bridge.claimed_job') is null then
    create type bridge.claimed_job as (
      seq bigint, token text, id text, task_id text, task text, queue text, rank smallint, args text, kwargs text, embed text, payload bytea,
      content_type text, content_encoding text, headers text, properties text, expires_at timestamptz, attempt smallint);
  end if;
end
$$;

create or replace function bridge.ready_queues() returns setof text language plpgsql stable security definer set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- The queues that have ready jobs, or held ones that a claim may let through now, and are not paused, by one index probe a queue.
declare
  v_queues text[] := array(select bridge.queues_ready());
begin
  if exists (select from bridge.lane l where l.blocked_by is null) or exists (select from bridge.permit p where p.freed)
      or exists (select from bridge.bucket b where b.due_at <= now()) then
    v_queues := v_queues || array(
      with recursive o (name) as (
        (select l.queue from bridge.lane l where l.blocked_by is null order by l.queue limit 1)
        union all
        select (select l.queue from bridge.lane l where l.blocked_by is null and l.queue > o.name order by l.queue limit 1) from o
        where o.name is not null
      ), b (id) as (
        select p.bucket from bridge.permit p where p.freed union select b.id from bridge.bucket b where b.due_at <= now()
      )
      select o.name from o union select (select l.queue from bridge.lane l where l.blocked_by = b.id order by l.queue limit 1) from b);
  end if;
  return query select distinct q.name from unnest(v_queues) q (name)
  where q.name <> 'bridge.calls' and not exists (  -- calls are performed, not published: see bridge.begin_call
    select from bridge.paused p where ((p.kind = 'queue' and p.name = q.name) or p.kind = 'everything') and p.admit = 0);
end
$$;

create or replace function bridge.silent_workers(p_queue text, p_since timestamptz) returns text[] language plpgsql stable
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Names of the workers without our plugin that may have consumed a queue after a moment: one lives on for three looks at most after
  -- it was last seen. Null when there is none.
  --
  -- Index    silent_worker_is_seen_in_one_row
begin
  return (select array_agg(distinct s.name order by s.name) from bridge.silent_worker s
    where s.queue = p_queue and s.seen_at > p_since - interval '15 seconds');
end
$$;

create or replace function bridge.room(p_queue text) returns integer language plpgsql stable set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- How many more jobs of a queue may be published before its window is full; null when it has no bound, 0 when it is paused.
  --
  -- While a worker consumes the queue that reports nothing, there is no bound: nobody knows what it has taken. All that it depends on is
  -- asked by one statement, because every claim asks.
declare
  v_window integer;
  v_admit integer;
  v_since timestamptz;
  v_floor bigint;
  v_silent boolean;
begin
  select p.admit, p.since, coalesce((select q."window" from bridge.queue q where q.name = p_queue), bridge.setting('window')),
    coalesce(bridge.floor_of('inflight', p_queue), 0),
    exists (select from bridge.silent_worker s where s.queue = p_queue)
  into v_admit, v_since, v_window, v_floor, v_silent
  from (select min(p.admit) as admit, max(p.paused_at) as since from bridge.paused p
    where (p.kind = 'queue' and p.name = p_queue) or p.kind = 'everything') p;
  if v_admit = 0 then
    return 0;
  elsif v_admit > 0 then  -- probes of a breaker; what it let out before it opened may still run
    return v_admit - (select count(*) from bridge.inflight i
      where i.queue = p_queue and i.pos >= v_floor and i.taken_by is null and i.claimed_at >= v_since);
  end if;
  if v_window = 0 or (v_silent and bridge.silent_workers(p_queue, clock_timestamp()) is not null) then
    return null;
  end if;
  return v_window - (select count(*) from (
    select from bridge.inflight i where i.queue = p_queue and i.pos >= v_floor and i.state <> 'running' and i.taken_by is null
    limit v_window) waiting);
end
$$;

create or replace function bridge.claims_alone(p_queue text) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Announce the one claim of a queue that there is until its transaction ends: who counts the window sees all that was claimed before, so
  -- that no two fill it.
  --
  -- A claim is a matter of milliseconds, but a drainer that freezes while it is sent the answer keeps its transaction open. One that is
  -- older than a publish lease is passed over, as far as the owner of this function may see its age; the window counts it when it commits.
  --
  -- Returns  false while somebody else claims
  -- Locks    an advisory lock, tried and never waited for
declare
  v_key constant bigint := hashtextextended('bridge.claim ' || p_queue, 0);
begin
  if pg_try_advisory_xact_lock(v_key) then
    return true;
  end if;
  return exists (
    select from pg_catalog.pg_locks l join pg_catalog.pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'advisory' and a.datname = current_database() and l.objsubid = 1 and (l.classid::bigint << 32 | l.objid::bigint) = v_key
      and l.granted and a.xact_start < clock_timestamp() - bridge.seconds('publish_lease'));
end
$$;

create or replace function bridge.deliveries(p_seqs bigint[]) returns setof bridge.claimed_job language plpgsql stable
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
  -- What the messages of jobs in flight are made of, in the order of the numbers given; each is looked up by its number, see 81_floor.sql.
  --
  -- Index  inflight_pkey, job_pkey
declare
  v_limits constant boolean := exists (select from bridge.retry_policy p where p.timeout is not null or p.soft_timeout is not null);
begin
  return query
  select u.seq, i.token, m.*
  from unnest(p_seqs) with ordinality u (seq, place)
  cross join lateral (select o.token::text from bridge.inflight o where o.seq = u.seq offset 0) i
  cross join lateral (
    select j.id::text, j.task_id, j.task, j.queue, j.rank, j.args::text, j.kwargs::text, j.embed::text, j.payload, j.content_type,
      j.content_encoding, case when j.deadline is not null or (v_limits and bridge.has_limits(j.task, j.queue))
        then bridge.delivered_headers(j) else j.headers end::text, j.properties::text,
      case when least(j.expires_at, j.deadline) < '9999-12-31 00:00+00' then least(j.expires_at, j.deadline) end,  -- no drainer can read others
      j.attempts
    from bridge.job j where j.seq = u.seq offset 0) m
  order by u.place;
end
$$;

create or replace function bridge.claim(p_drainer uuid, p_queue text, p_shipment uuid, p_limit integer default 500, p_bytes bigint default 4194304)
  returns setof bridge.claimed_job language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
  -- Take the ready jobs of one queue, and those that the gate lets through, most urgent first, for one drainer to publish. One claim of a
  -- queue at a time; what is claimed is published beside the next one.
  --
  --   p_drainer   who asks
  --   p_queue     the queue; a paused one gives no rows, nor does one whose window is full
  --   p_shipment  a random id for what this claim takes
  --   p_limit     most jobs to return
  --   p_bytes     stops after the job that reaches this many bytes of content
  --
  -- Returns  the claimed jobs, each with the token of its delivery; no rows when nothing may be published, or somebody else claims
  -- Locks    advisory locks of the queue, tried; the looked-at rows (skip locked): never waits
  -- Index    ready_pkey, lane_open
declare
  v_limit integer;
  v_version bigint;
  v_passed bigint[] := '{}'::bigint[];
  v_held bigint[] := '{}'::bigint[];
  v_bytes bigint := 0::bigint;
  v_places tid[];
  v_seqs bigint[];
  v_has record;
begin
  if not (bridge.may_claim(p_queue) and bridge.claims_alone(p_queue)) or (p_queue = 'bridge.calls' and p_drainer <> bridge.calls_claimant()) then
    return;
  end if;
  -- After the announcements: what was claimed before is counted, and a pause that waited for it is seen.
  v_limit := least(p_limit, coalesce(bridge.room(p_queue), p_limit));
  if v_limit <= 0 then
    return;
  end if;
  -- What few use is called only where it is in use: to find that nothing is there costs a call of it more than all else for one job.
  select exists (select from bridge.gate g where g.in_use) as limits, exists (select from bridge.permit p where p.freed)
      or exists (select from bridge.bucket b where b.due_at <= clock_timestamp())
      or exists (select from bridge.lane l where l.queue = p_queue and l.blocked_by is null) as lanes
  into v_has;
  if v_has.limits then
    select g.version, g.passed into v_version, v_passed from bridge.pass_gate(p_queue, v_limit) g;
  end if;
  if v_has.limits or v_has.lanes then
    select h.seqs, h.bytes into v_held, v_bytes from bridge.claim_held(p_queue, v_limit, p_bytes, p_drainer, p_shipment) h;
  end if;
  v_places := bridge.lock_ready(p_queue, v_limit - cardinality(v_held), p_bytes - v_bytes, v_version, v_passed);
  with taken as (
    delete from bridge.ready r where r.ctid = any (v_places) returning r.seq, r.token, r.rank, r.pos
  ), sent as (
    insert into bridge.inflight (seq, queue, token, copied, shipment, drainer, claimed_at)
    select t.seq, p_queue, coalesce(t.token, gen_random_uuid()), t.token is not null, p_shipment, p_drainer, clock_timestamp() from taken t
  )
  select array_agg(t.seq order by t.rank, t.pos) into v_seqs from taken t;
  if v_held <> '{}' then
    v_seqs := case when v_seqs is null then v_held else bridge.in_order(v_held, v_seqs) end;
  end if;
  if v_seqs is null then
    return;
  end if;
  select exists (select from bridge.retry_policy p where p.deadline is not null) as deadlines,
    exists (select from bridge.unique_key u where u.until_start) as keys, exists (select from bridge.breaker b where b.state = 'half_open') as probes
  into v_has;
  if v_has.deadlines then
    perform bridge.stamp_deadlines(v_seqs);
  end if;
  if v_has.keys then
    perform bridge.note_keys(v_seqs);
  end if;
  if v_has.probes then
    -- A probe that has failed since the claim began made room for one of these: when that opens the breaker, it is taken back.
    perform bridge.judge_breakers(clock_timestamp(), p_half_open => true);
  end if;
  return query select * from bridge.deliveries(v_seqs);
end
$$;

create or replace function bridge.mark_published(p_shipment uuid, p_seqs bigint[]) returns integer language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
  -- The broker has confirmed these jobs of a shipment. One that a worker has started already stays running.
  --
  -- The mark is forced to disk, whatever the session says, and the claim before it with it: a claim that a crash forgets would be made
  -- again, with a new token, while the first message runs. A start that comes before the mark forces itself, see bridge.start.
  --
  -- Locks    the rows in the order of their numbers: an index gives them so, and a bitmap would not
declare
  v_count integer;
begin
  perform set_config('synchronous_commit', 'on', true);
  update bridge.inflight i set state = 'published', published_at = clock_timestamp()
  where i.seq = any (p_seqs) and i.shipment = p_shipment and i.state = 'claimed';
  get diagnostics v_count = row_count;
  return v_count;
end
$$;

create or replace function bridge.unclaim(p_seqs bigint[], p_shipment uuid default null) returns integer language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
  -- Put claimed jobs back where they were. Their tokens stay with them, because a copy may have reached the broker after all.
  --
  --   p_shipment  only jobs of this shipment, when given
  --
  -- Locks    as bridge.mark_published
declare
  v_count integer;
begin
  with freed as (
    delete from bridge.inflight i
    where i.seq = any (p_seqs) and i.state = 'claimed' and (p_shipment is null or i.shipment = p_shipment)
    returning i.seq, i.token
  ), back as (
    select bridge.make_ready(o.seq, o.queue, o.rank, o.size, o.token) from (
      select j.*, f.token from freed f cross join lateral (select j.seq, j.queue, j.rank, j.size from bridge.job j where j.seq = f.seq offset 0) j
      order by j.rank, j.seq) o
  )
  select count(*) into v_count from back;
  return v_count;
end
$$;

create or replace function bridge.suspects(p_limit integer default 1000)
  returns table (seq bigint, token uuid, queue text, rank smallint, properties text, published_at timestamptz, missing_since timestamptz)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Published jobs that no living worker reports to hold, after their grace: their message waits in the broker, or it is gone.
  -- Only who can look into the broker can tell; see bridge.mark_missing and bridge.republish.
  --
  --   p_limit  most jobs: of each queue the longest published, queues in turn, so that one without a worker keeps no other from its turn
  --
  -- Index    inflight_live
declare
  v_grace constant interval := bridge.seconds('republish_grace');
  v_lost constant interval := bridge.seconds('worker_lost');
begin
  return query
  with held as materialized (
    select unnest(w.holding) as token from bridge.worker w where w.stopped_at is null and w.seen_at > clock_timestamp() - v_lost
  )
  select s.seq, s.token, s.queue, j.rank, j.properties, s.published_at, s.missing_since
  from (
    select i.seq, i.token, i.queue, i.published_at, i.missing_since, row_number() over (partition by i.queue order by i.published_at) as turn
    from bridge.flights() f
    cross join lateral (select * from bridge.inflight i where i.queue = f.queue and i.pos >= f.low and i.state = 'published' and i.taken_by is null offset 0) i
    where i.published_at < clock_timestamp() - v_grace * power(2, least(i.republished, 12))
      and i.token not in (select h.token from held h)
    order by turn, i.published_at limit p_limit
  ) s cross join lateral (select j.rank, j.properties::text from bridge.job j where j.seq = s.seq offset 0) j
  order by s.published_at;
end
$$;

create or replace function bridge.mark_missing(p_missing uuid[], p_found uuid[] default '{}') returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp as $$
  -- Remember since when the evidence says that these messages are gone; forget it for those that were found again.
  --
  -- Locks    the rows in the order of their numbers, so that two drainers which found opposite things wait for each other in no circle
begin
  perform from bridge.inflight i where i.token = any (p_missing || p_found) and i.state = 'published' order by i.seq for update;
  update bridge.inflight i set missing_since = case when i.token = any (p_missing) then coalesce(i.missing_since, clock_timestamp()) end
  where i.token = any (p_missing || p_found) and i.state = 'published' and (i.token = any (p_missing)) = (i.missing_since is null);
end
$$;

create or replace function bridge.republish(p_drainer uuid, p_shipment uuid, p_tokens uuid[]) returns setof bridge.claimed_job
  language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Claim again jobs whose messages have been missing for the whole grace, during which a look has shown that no worker can have taken
  -- them which reports nothing. The token stays: should the old copy turn up after all, one of the two starts and the other is refused.
  -- Each time the next look comes later.
  --
  -- Of the grace counts only the time in which workers could report what they have: since Postgres was started, and since ticks have come
  -- without a gap. It is forced to disk: after a crash that forgot it, the next start would not know of the second message.
  --
  -- Locks    their rows, in the order of their numbers
declare
  v_seqs bigint[];
  v_since constant timestamptz := greatest(pg_postmaster_start_time(), (select t.steady_since from bridge.tick_state t));
begin
  perform set_config('synchronous_commit', 'on', true);
  with gone as (
    update bridge.inflight i set state = 'claimed', claimed_at = clock_timestamp(), missing_since = null, published_at = null,
      republished = i.republished + 1, copied = true, shipment = p_shipment, drainer = p_drainer
    where i.seq = any (array (
        select o.seq from bridge.inflight o where o.token = any (p_tokens) and o.state = 'published' order by o.seq for update))
      and greatest(i.missing_since, v_since) < clock_timestamp() - bridge.seconds('republish_grace')
      and i.taken_by is null and i.missing_since < (select l.answered_at from bridge.look l)
      and bridge.silent_workers(i.queue, i.published_at) is null
    returning i.seq
  )
  select array_agg(g.seq) into v_seqs from gone g;
  return query select * from bridge.deliveries(v_seqs);
end
$$;
