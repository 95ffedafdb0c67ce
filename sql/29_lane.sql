-- How claims let held jobs through: the open lanes of a queue, the most urgent first, in turn, each as far as all of its buckets have room.
--
-- Whoever has a bucket's row locked is the one who admits by it and takes freed permits away; others pass it over. It looks in a statement
-- after the one that locked it, so that all that was done before is seen: two drainers never admit beyond a bound.

create or replace function bridge.count_room(p_buckets bigint[], p_now timestamptz) returns void language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Say what may still be admitted by each of these buckets, whose rows the caller has locked: permits not in use, tokens not taken. Freed
  -- permits go. The turn of a serial key is free also for the job that has it and waits for its next attempt.
begin
  with gone as (
    delete from bridge.permit p where p.freed and p.bucket = any (p_buckets) returning p.bucket
  ), fewer as (
    select g.bucket, count(*) as permits from gone g group by g.bucket
  ), seen as (
    select b.id, b.job_limit, l.concurrency, least(l.burst, coalesce(b.tokens, l.burst)
        + l.pace * greatest(extract(epoch from p_now - b.refilled_at), 0)) as tokens,
      case when b.job_limit = 0 then (select count(*) from bridge.permit p where p.bucket = b.id and not p.freed
          and not exists (select from bridge.held h where h.seq = p.seq))
        when l.concurrency is not null then coalesce(b.used - coalesce(f.permits, 0), (
          select count(*) from bridge.permit p where p.bucket = b.id and not p.freed)) end as used
    from bridge.bucket b left join bridge.job_limit l on l.id = b.job_limit left join fewer f on f.bucket = b.id
    where b.id = any (p_buckets)
  )
  update bridge.bucket b set room = least(case when s.job_limit = 0 then 1 else s.concurrency end - s.used, floor(s.tokens), 1000000),
    used = s.used, tokens = s.tokens, refilled_at = p_now
  from seen s where b.id = s.id;
end
$$;

create or replace function bridge.plan_looks(p_buckets bigint[], p_now timestamptz) returns void language plpgsql
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Say when each of these buckets is to be looked at next: when its token comes, at once where lanes wait though there is room (each look
  -- opens some, so that ends), and after five minutes in any case while lanes wait. The end of a run says so by itself (permit.freed).
begin
  with planned as (
    select b.id, case
      when not w.waits then case when b.tokens < l.burst then p_now + greatest(make_interval(secs => (l.burst - b.tokens) / l.pace), interval '1 minute') end
      when b.room >= 1 then p_now + case when b.job_limit = 0 then interval '5 seconds' else interval '0' end
      when b.tokens < 1 then p_now + make_interval(secs => greatest((1 - b.tokens) / l.pace, least(0.05, (l.burst - b.tokens) / l.pace)))
      else p_now + interval '5 minutes' end as due_at
    from bridge.bucket b left join bridge.job_limit l on l.id = b.job_limit
    cross join lateral (select exists (select from bridge.lane o where o.blocked_by = b.id) as waits) w
    where b.id = any (p_buckets)
  )
  update bridge.bucket b set due_at = p.due_at from planned p where b.id = p.id and b.due_at is distinct from p.due_at;
end
$$;

create or replace function bridge.next_lanes(p_bucket bigint, p_count integer) returns setof bigint language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- The lanes that wait for a bucket and are next: so many of each queue, because one of them may be paused.
  --
  -- Locks  these lanes (skip locked)
declare
  v_queue text := '';
begin
  loop
    select l.queue into v_queue from bridge.lane l where l.blocked_by = p_bucket and l.queue > v_queue order by l.queue limit 1;
    exit when not found;
    return query select l.id from bridge.lane l where l.blocked_by = p_bucket and l.queue = v_queue order by l.rank, l.turn limit p_count
      for no key update skip locked;
  end loop;
end
$$;

create or replace function bridge.next_in_line(p_serial bigint) returns setof bigint language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- The lane of the job that is next of a serial key, if it waits for its turn, and lanes that nothing is left in.
  --
  -- Locks  these lanes (skip locked)
declare
  v_next bigint;
begin
  select h.lane into v_next from bridge.held h where h.serial = p_serial order by h.pos limit 1;
  return query select l.id from bridge.lane l
    where l.blocked_by = p_serial and (l.id = v_next or not exists (select from bridge.held h where h.lane = l.id))
    for no key update skip locked;
end
$$;

create or replace function bridge.open_lanes(p_now timestamptz) returns void language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Open lanes that wait for buckets which may have room again: a run has ended, a token has come, a limit was changed. Buckets that
  -- nobody needs go.
  --
  -- Locks  buckets and lanes (skip locked): never waits
declare
  v_asked bigint[];
  v_locked bigint[];
begin
  select array_agg(a.id) into v_asked from (
    (select distinct p.bucket as id from bridge.permit p where p.freed order by p.bucket limit 500)
    union
    (select b.id from bridge.bucket b where b.due_at <= p_now order by b.due_at limit 500)) a;
  if v_asked is null then
    return;
  end if;
  select array_agg(o.id) into v_locked from (
    select b.id from bridge.bucket b where b.id = any (v_asked) order by b.id for no key update skip locked) o;
  delete from bridge.permit p where p.freed and p.bucket = any (v_asked) and not exists (select from bridge.bucket b where b.id = p.bucket);
  perform bridge.count_room(v_locked, p_now);
  update bridge.lane l set blocked_by = null where l.id = any (array (
    select n.id from bridge.bucket b cross join lateral bridge.next_lanes(b.id, least(b.room, 500)) n (id)
    where b.id = any (v_locked) and b.room >= 1 and b.job_limit <> 0
    union all
    select n.id from bridge.bucket b cross join lateral bridge.next_in_line(b.id) n (id)
    where b.id = any (v_locked) and b.room >= 1 and b.job_limit = 0));
  perform bridge.plan_looks(v_locked, p_now);
  delete from bridge.bucket b where b.id = any (v_locked) and b.due_at is null
    and not exists (select from bridge.permit p where p.bucket = b.id) and not exists (select from bridge.held h where h.serial = b.id);
end
$$;

create or replace function bridge.sweep_permits() returns integer language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Take away permits that belong to no run, and turns that belong to no job, though nobody freed them: somebody has deleted rows by hand.
  -- And have all of them counted anew.
  --
  -- Returns  how many
declare
  v_count integer;
begin
  update bridge.permit p set freed = true where not p.freed and not exists (select from bridge.inflight i where i.seq = p.seq)
    and not (exists (select from bridge.job j where j.seq = p.seq) and exists (select from bridge.bucket b where b.id = p.bucket and b.job_limit = 0));
  get diagnostics v_count = row_count;
  update bridge.bucket b set used = null
  where b.id = any (array (select o.id from bridge.bucket o where o.job_limit <> 0 for no key update skip locked));
  return v_count;
end
$$;

create or replace function bridge.relane(p_lanes bigint[], p_count integer) returns void language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Look again at the first jobs of lanes that were made before the limits changed: each goes to the lane that it belongs to now, or to
  -- ready, and keeps its place in the order of arrival.
  --
  -- A number below the floor of its queue is found by nobody. All that is ready has a higher one, so it goes to the front: among the
  -- negative ones, after those that bridge.make_ready puts first. While floors are raised nothing is moved: who comes next does it.
  --
  --   p_count  most jobs of each lane
  --
  -- Locks  an advisory lock, tried and shared, see bridge.raise_floors; the jobs (skip locked)
declare
  v_row record;
  v_new bridge.lane;
begin
  if not pg_try_advisory_xact_lock_shared(hashtextextended('bridge.floor', 0)) then
    return;
  end if;
  for v_row in
    select h.* from unnest(p_lanes) u (id) cross join lateral (
      select h.seq, h.pos, h.size, h.token from bridge.held h where h.lane = u.id order by h.pos limit p_count for update skip locked) h
  loop
    v_new := bridge.lane_of(v_row.seq);
    delete from bridge.held h where h.seq = v_row.seq;
    if v_new.buckets is null then
      insert into bridge.ready (queue, rank, pos, seq, size, token, gate) overriding system value
      values (v_new.queue, v_new.rank,
        v_row.pos - case when v_row.pos < bridge.floor_of('ready', v_new.queue) then 2305843009213693952 else 0 end,
        v_row.seq, v_row.size, v_row.token, v_new.version);
    else
      perform bridge.hold(v_new, v_row.seq, v_row.size, v_row.token, v_row.pos);
    end if;
  end loop;
end
$$;

create or replace function bridge.lock_buckets(p_lanes bigint[], p_now timestamptz) returns bigint[] language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Lock the buckets of these lanes as far as nobody else has them, and count their room. A bucket is made by the first claim that needs
  -- it; one claim at a time does that, because two could wait for each other.
declare
  v_buckets constant bigint[] := array (select distinct u.id from bridge.lane l cross join lateral unnest(l.buckets) u (id) where l.id = any (p_lanes));
  v_locked bigint[];
begin
  if (select count(*) from bridge.bucket b where b.id = any (v_buckets)) < cardinality(v_buckets)
    and pg_try_advisory_xact_lock(hashtextextended('bridge.bucket', 0)) then
    insert into bridge.bucket (id, job_limit, key)
    select distinct on (u.id) u.id, u.job_limit, u.key from bridge.lane l cross join lateral unnest(l.buckets, l.limits, l.keys) u (id, job_limit, key)
    where l.id = any (p_lanes) order by u.id
    on conflict (id) do nothing;
  end if;
  select array_agg(o.id) into v_locked from (
    select b.id from bridge.bucket b where b.id = any (v_buckets) order by b.id for no key update skip locked) o;
  perform bridge.count_room(v_locked, p_now);
  return coalesce(v_locked, '{}');
end
$$;

create or replace function bridge.admit(p_lanes bigint[], p_locked bigint[], p_count integer, p_bytes bigint, p_drainer uuid, p_shipment uuid)
  returns table (seqs bigint[], bytes bigint) language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
  -- Claim jobs of these lanes: of each in turn, as far as every one of its buckets has room. Each takes a permit where runs are counted,
  -- and a token where a rate is.
  --
  --   p_locked  the buckets that the caller has locked; a lane that needs another gives nothing
  --   p_count   most jobs; a lane gives at most its share, rounded up
  --
  -- Index    held_lane
declare
  v_share constant integer := ceil(p_count::numeric / cardinality(p_lanes));
begin
  return query
  with part as materialized (
    select l.id as lane, l.queue, l.turn, u.bucket, b.room, l.serial, u.job_limit = 0 or m.concurrency is not null as counts,
      array_agg(u.bucket) filter (where m.concurrency is not null) over (partition by l.id) as permits
    from bridge.lane l cross join lateral unnest(l.buckets, l.limits) u (bucket, job_limit)
    left join bridge.bucket b on b.id = u.bucket and b.id = any (p_locked)
    left join bridge.job_limit m on m.id = u.job_limit
    where l.id = any (p_lanes)
  ), open as materialized (
    select p.lane, p.turn, p.serial, p.queue, p.permits, min(p.room) as room from part p
    group by p.lane, p.turn, p.serial, p.queue, p.permits having count(p.room) = count(*) and min(p.room) >= 1
  ), found as materialized (
    select h.place, h.seq, h.size, o.lane, row_number() over (partition by o.lane order by h.pos) as nth, o.turn
    from open o cross join lateral (
      select h.ctid as place, h.seq, h.size, h.pos from bridge.held h where h.lane = o.lane order by h.pos limit least(o.room, v_share)
      for update skip locked) h
    where o.serial is null or not exists (select from bridge.held e where e.serial = o.serial and e.pos < h.pos)
  ), counted as (
    select f.*, p.room, row_number() over (partition by p.bucket order by f.nth, f.turn, f.lane) as number
    from found f join part p on p.lane = f.lane
  ), fitting as (
    select c.place, c.seq, c.size, c.lane, c.nth, c.turn from counted c
    group by c.place, c.seq, c.size, c.lane, c.nth, c.turn having bool_and(c.number <= c.room)
  ), bounded as (
    select f.*, sum(f.size) over w - f.size as before, row_number() over w as number
    from fitting f window w as (order by f.nth, f.turn, f.lane)
  ), chosen as materialized (
    select b.* from bounded b where b.number <= p_count and (b.before < p_bytes)
  ), taken as (
    delete from bridge.held h where h.ctid = any (array (select c.place from chosen c)) returning h.seq, h.token, h.lane
  ), kept as (
    insert into bridge.permit (bucket, seq) select p.bucket, t.seq from taken t join part p on p.lane = t.lane where p.counts
    on conflict (bucket, seq) do update set freed = false returning permit.bucket, permit.xmax = 0::text::xid as is_new
  ), spent as (
    update bridge.bucket b set room = b.room - n.jobs, tokens = b.tokens - n.jobs, used = b.used + coalesce(k.permits, 0)
    from (select p.bucket, sum(t.jobs)::integer as jobs from (select t.lane, count(*) as jobs from taken t group by t.lane) t
      join part p on p.lane = t.lane group by p.bucket) n
    left join (select k.bucket, count(*)::integer as permits from kept k where k.is_new group by k.bucket) k on k.bucket = n.bucket
    where b.id = n.bucket
  ), sent as (
    insert into bridge.inflight (seq, queue, token, copied, shipment, drainer, claimed_at, permits)
    select t.seq, o.queue, coalesce(t.token, gen_random_uuid()), t.token is not null, p_shipment, p_drainer, clock_timestamp(), o.permits
    from taken t join open o on o.lane = t.lane
  )
  select array_agg(c.seq order by c.number), sum(c.size)::bigint from chosen c;
end
$$;

create or replace function bridge.close_lanes(p_lanes bigint[], p_locked bigint[]) returns void language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- After its turn a lane goes to the end. One that has no room waits for that bucket, out of the claims' way; an empty one goes, if nobody
  -- is just putting a job into it.
declare
  v_empty bigint[];
begin
  select array_agg(o.id) into v_empty from (
    select l.id from bridge.lane l where l.id = any (p_lanes) and not exists (select from bridge.held h where h.lane = l.id)
    for update skip locked) o;
  delete from bridge.lane l where l.id = any (v_empty) and not exists (select from bridge.held h where h.lane = l.id);
  update bridge.lane l set turn = n.turn, blocked_by = n.full_bucket from (
    select o.id, nextval('bridge.ready_pos_seq') as turn, o.full_bucket from (
      select l.id, (
          select b.id from unnest(l.buckets) u (id) join bridge.bucket b on b.id = u.id
          where b.id = any (p_locked) and (b.room < 1 or (b.id = l.serial and exists (
            select from bridge.held e where e.serial = l.serial and e.lane <> l.id and e.pos < (select min(h.pos) from bridge.held h where h.lane = l.id))))
          limit 1) as full_bucket
      from bridge.lane l where l.id = any (p_lanes) order by l.turn) o
  ) n where l.id = n.id;
end
$$;

create or replace function bridge.claim_lanes(p_queue text, p_rank smallint, p_count integer, p_bytes bigint, p_drainer uuid, p_shipment uuid,
    p_now timestamptz, inout seqs bigint[], inout bytes bigint) language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Claim held jobs of one queue and rank, in turns of its open lanes.
  --
  --   seqs, bytes  what the claim has already; these are added
declare
  v_left integer := p_count;
  v_lanes bigint[];
  v_old bigint[];
  v_locked bigint[];
  v_got record;
begin
  for i in 1..8 loop
    exit when v_left <= 0 or bytes >= p_bytes;
    select array_agg(o.id order by o.turn), array_agg(o.id) filter (where o.version <> g.version) into v_lanes, v_old from (
      select l.id, l.turn, l.version from bridge.lane l where l.queue = p_queue and l.rank = p_rank and l.blocked_by is null
      order by l.turn limit v_left for no key update skip locked) o cross join bridge.gate g;
    exit when v_lanes is null;
    if v_old is not null then
      perform bridge.relane(v_old, 2 * p_count / cardinality(v_old) + 1);
      v_lanes := array (select l from unnest(v_lanes) l where l <> all (v_old));
    end if;
    v_locked := bridge.lock_buckets(v_lanes, p_now);
    select a.* into v_got from bridge.admit(v_lanes, v_locked, v_left, p_bytes - bytes, p_drainer, p_shipment) a where v_lanes <> '{}';
    perform bridge.close_lanes(v_lanes || coalesce(v_old, '{}'), v_locked);
    perform bridge.plan_looks(v_locked, p_now);
    seqs := seqs || coalesce(v_got.seqs, '{}');
    bytes := bytes + coalesce(v_got.bytes, 0);
    v_left := v_left - coalesce(cardinality(v_got.seqs), 0);
    exit when v_got.seqs is null and v_locked = '{}' and v_old is null;  -- others have what these lanes need
  end loop;
end
$$;

create or replace function bridge.claim_held(p_queue text, p_limit integer, p_bytes bigint, p_drainer uuid, p_shipment uuid,
    out seqs bigint[], out bytes bigint) language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Claim jobs of one queue that the gate holds and has room for, the most urgent first. Among equally urgent ones, held jobs and those
  -- in ready get half each, and what the others leave.
declare
  v_now constant timestamptz := clock_timestamp();
  v_rank smallint := -1;
  v_sooner integer;
  v_same integer;
  v_left integer;
begin
  seqs := '{}';
  bytes := 0;
  perform bridge.open_lanes(v_now);
  loop
    select l.rank into v_rank from bridge.lane l where l.queue = p_queue and l.blocked_by is null and l.rank > v_rank order by l.rank limit 1;
    exit when not found;
    select count(*) filter (where r.rank < v_rank), count(*) filter (where r.rank = v_rank) into v_sooner, v_same
    from (select r.rank from bridge.ready r where r.queue = p_queue and r.rank <= v_rank order by r.rank, r.pos limit p_limit) r;
    v_left := p_limit - cardinality(seqs) - v_sooner;
    exit when v_left <= 0;
    select c.seqs, c.bytes into seqs, bytes from bridge.claim_lanes(p_queue, v_rank, greatest(v_left - v_same, (v_left + 1) / 2), p_bytes,
      p_drainer, p_shipment, v_now, seqs, bytes) c;
  end loop;
end
$$;

create or replace function bridge.in_order(p_held bigint[], p_ready bigint[]) returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Jobs of a claim in the order in which workers are to take them: the most urgent first, among equals held and others in turn.
begin
  return (select array_agg(u.seq order by j.rank, u.place) from (
      select * from unnest(p_held) with ordinality h (seq, place) union all select * from unnest(p_ready) with ordinality r (seq, place)) u
    cross join lateral (select j.rank from bridge.job j where j.seq = u.seq offset 0) j);
end
$$;

create or replace function bridge.pass_gate(p_queue text, p_limit integer, out version bigint, out passed bigint[]) language plpgsql
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Look at the ready jobs of a queue that came before the limits changed, as far as a claim would take them: those that one is about are
  -- put aside, in pages, until the first p_limit are free to go.
  --
  -- Returns  the gate's version, by which ready jobs may go; null where all may; and the numbers of older ones that may go, too
declare
  v_row record;
  v_lane bridge.lane;
  v_moved integer;
begin
  select case when g.in_use then g.version end into version from bridge.gate g;
  passed := '{}';
  for i in 1..10 loop
    exit when version is null;
    v_moved := 0;
    for v_row in
      select r.* from (select r.* from bridge.ready r where r.queue = p_queue order by r.rank, r.pos limit p_limit) r
      where r.gate <> version and r.seq <> all (passed)
    loop
      v_lane := bridge.lane_of(v_row.seq);
      if v_lane.buckets is null then
        passed := passed || v_row.seq;
        continue;
      end if;
      delete from bridge.ready r where r.ctid = any (array (select o.ctid from bridge.ready o where o.seq = v_row.seq for update skip locked));
      continue when not found;
      perform bridge.hold(v_lane, v_row.seq, v_row.size, v_row.token, v_row.pos);
      v_moved := v_moved + 1;
    end loop;
    exit when v_moved = 0;
  end loop;
end
$$;

create or replace function bridge.next_look() returns double precision language plpgsql stable security definer set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- How many seconds a drainer may sleep before a token of a rate comes that somebody waits for; null when it need not wake.
begin
  return (select extract(epoch from b.due_at - now()) from bridge.bucket b where b.due_at > now() order by b.due_at limit 1);
end
$$;
