-- Floors: where a look through a hot table begins.
--
-- While somebody holds a snapshot, vacuum takes nothing away, and no scan may mark an index entry as dead: each look from the front passes
-- all rows that have gone since, 0.7 us a row. But both hot tables number their rows as they come. Once no row of a queue is left below a
-- number, none comes, and looks begin there. A floor is a shorter way and nothing else: without any, the same is found.
--
-- A row whose number is known is looked up by that: by a condition (seq = any (...)) or in a subquery of its own (offset 0), not by a join.
-- A vacuum that comes while these tables are empty has the planner count on one row in each. Of two ways to one row, by its number and
-- through all of the table, it may take the second, for each of the jobs anew, past all that is dead.
--
-- A number may belong to a transaction that has not ended. It was taken by the table's own insert, which had the table's lock by then and
-- keeps it to the end. So a look notes how far the numbers are, and who has the lock; when all of those have let go, each row up to there
-- is seen or gone. See bridge.raise_floors. One that is prepared, to be ended by another session, lives through a restart of the
-- server, under another number: while there is one, no floor rises.

do $$
begin
  if to_regclass('bridge.floor') is null then
    -- A floor is raised by a new row, above the others: what a look meets first. Old versions of a row would be passed by every look.
    create table bridge.floor (
      hot   text not null,                   -- ready or inflight
      queue text not null,
      pos   bigint not null,                 -- no row of the queue has a lower number, but in ready those with negative ones
      primary key (hot, queue, pos)          -- floor_of: the highest; queues_ready, flights: the next queue
    );
    -- Empty after a crash and after a failover: numbers that were taken and not yet written are given out again then.
    create unlogged table bridge.floor_epoch (id uuid not null);
  end if;
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.inflight'::regclass and a.attname = 'pos') then
    alter table bridge.inflight add column pos bigint not null default 0;  -- in the order of claims; 0: claimed before there were floors
    create sequence bridge.inflight_pos_seq owned by bridge.inflight.pos;
    alter table bridge.inflight alter column pos set default nextval('bridge.inflight_pos_seq');
    drop index bridge.inflight_live;
    -- claim: is the window full; tick and drainer: all that looks through what is in flight. What was set aside may be much, and stays.
    create index inflight_live on bridge.inflight (queue, pos) where taken_by is null;
    -- metrics: what was set aside
    create index inflight_aside on bridge.inflight (queue) where taken_by is not null;
  end if;
end
$$;

create or replace function bridge.floor_of(p_hot text, p_queue text) returns bigint language plpgsql stable set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Where a look through the rows of one queue may begin; null: at the first.
  --
  -- Index  floor_pkey
begin
  return (select f.pos from bridge.floor f where f.hot = p_hot and f.queue = p_queue order by f.pos desc limit 1);
end
$$;

create or replace function bridge.ready_parts(p_floor bigint) returns table (rank smallint, low bigint, high bigint)
  language plpgsql immutable rows 38 set search_path = pg_catalog, pg_temp as $$
  -- Which parts of a queue's ready jobs, in their order, hold all of them: numbers of a rank, from low to below high. Below the floor are
  -- only those that have had their turn already, which have negative ones.
begin
  return query
  select k::smallint, n.low, n.high
  from generate_series(0, 18) k, lateral (values (-9223372036854775808, 0), (p_floor, 9223372036854775807)) n (low, high);
end
$$;

create or replace function bridge.lock_ready(p_queue text, p_limit integer, p_bytes bigint, p_version bigint, p_passed bigint[]) returns tid[]
  language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
  -- Lock the first ready jobs of a queue that may go, most urgent first.
  --
  --   p_bytes    stops after the job that reaches this many bytes of content
  --   p_version  of the gate, by which jobs may go; null: all may
  --   p_passed   the numbers of older ones that may go, too
  --
  -- Locks  the looked-at rows (skip locked): never waits
  -- Index  ready_pkey
declare
  v_floor constant bigint := bridge.floor_of('ready', p_queue);
  v_places tid[];
begin
  if v_floor is null then
    with looked_at as materialized (
      select r.ctid as place, r.rank, r.pos, r.size from bridge.ready r
      where r.queue = p_queue and (p_version is null or r.gate = p_version or r.seq = any (p_passed))
      order by r.rank, r.pos limit p_limit for update skip locked
    ), bounded as (
      select l.place, sum(l.size) over (order by l.rank, l.pos) - l.size as before from looked_at l
    )
    select array_agg(b.place) into v_places from bounded b where b.before < p_bytes;
  else
    with looked_at as materialized (
      -- The parts come in their order, and no further one is looked into when these are enough.
      select r.* from bridge.ready_parts(v_floor) p cross join lateral (
        select r.ctid as place, r.rank, r.pos, r.size from bridge.ready r
        where r.queue = p_queue and r.rank = p.rank and r.pos >= p.low and r.pos < p.high
          and (p_version is null or r.gate = p_version or r.seq = any (p_passed))
        order by r.pos limit p_limit for update skip locked) r
      limit p_limit
    ), bounded as (
      select l.place, sum(l.size) over (order by l.rank, l.pos) - l.size as before from looked_at l
    )
    select array_agg(b.place) into v_places from bounded b where b.before < p_bytes;
  end if;
  return v_places;
end
$$;

create or replace function bridge.queues_ready() returns setof text language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
  -- The queues that have ready jobs, in order, by one index probe each; above the floor where there is one.
  --
  -- Index  ready_pkey, floor_pkey
declare
  v_queue text := '';
  v_floored text := '';
begin
  loop
    if v_floored is not null and v_floored <= v_queue then
      v_floored := (select f.queue from bridge.floor f where f.hot = 'ready' and f.queue > v_queue order by f.queue limit 1);
    end if;
    if v_floored is null then
      v_queue := (select r.queue from bridge.ready r where r.queue > v_queue order by r.queue limit 1);
    else
      v_queue := coalesce((select r.queue from bridge.ready r where r.queue > v_queue and r.queue < v_floored order by r.queue limit 1), v_floored);
    end if;
    exit when v_queue is null;
    if v_queue is distinct from v_floored or exists (
        select from bridge.ready_parts(bridge.floor_of('ready', v_queue)) p cross join lateral (
          select from bridge.ready r where r.queue = v_queue and r.rank = p.rank and r.pos >= p.low and r.pos < p.high limit 1) r) then
      return next v_queue;
    end if;
  end loop;
end
$$;

create or replace function bridge.flights() returns table (queue text, low bigint) language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- The queues that may have something in flight that nobody has set aside, each with the number where a look through it begins.
  --
  -- Index  inflight_live, floor_pkey
declare
  v_floored text := '';
begin
  queue := '';
  loop
    if v_floored is not null and v_floored <= queue then
      v_floored := (select f.queue from bridge.floor f where f.hot = 'inflight' and f.queue > flights.queue order by f.queue limit 1);
    end if;
    if v_floored is null then
      queue := (select i.queue from bridge.inflight i where i.taken_by is null and i.queue > flights.queue order by i.queue limit 1);
    else
      queue := coalesce((select i.queue from bridge.inflight i where i.taken_by is null and i.queue > flights.queue and i.queue < v_floored
        order by i.queue limit 1), v_floored);
    end if;
    exit when queue is null;
    low := case when queue = v_floored then bridge.floor_of('inflight', queue) else 0 end;
    return next;
  end loop;
end
$$;

create or replace function bridge.flying() returns setof bridge.inflight language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- All that is in flight, with what was set aside.
  --
  -- Index  inflight_live, inflight_aside
begin
  return query select i.* from bridge.flights() f cross join lateral (
    select * from bridge.inflight i where i.queue = f.queue and i.pos >= f.low and i.taken_by is null offset 0) i;
  return query select * from bridge.inflight i where i.taken_by is not null;
end
$$;

create or replace function bridge.count_ready(p_queue text, p_most bigint) returns bigint language plpgsql stable set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- How many jobs of a queue are ready, counted as far as p_most.
  --
  -- Index  ready_pkey
begin
  return (
    select count(*) from (
      select from bridge.ready_parts(coalesce(bridge.floor_of('ready', p_queue), 0)) p cross join lateral (
        select from bridge.ready r where r.queue = p_queue and r.rank = p.rank and r.pos >= p.low and r.pos < p.high limit p_most) r
      limit p_most) r);
end
$$;

create or replace function bridge.lowest_ready(p_queue text) returns bigint language plpgsql stable set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- The lowest number, of those that are not negative, of a queue's ready jobs; null: there is none.
  --
  -- Index  ready_pkey
begin
  return (
    select min(r.pos) from bridge.ready_parts(coalesce(bridge.floor_of('ready', p_queue), 0)) p cross join lateral (
      select r.pos from bridge.ready r where r.queue = p_queue and r.rank = p.rank and r.pos >= p.low order by r.pos limit 1) r
    where p.low >= 0);
end
$$;

create or replace function bridge.lowest_inflight(p_queue text) returns bigint language plpgsql stable set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- The lowest number of what is in flight of a queue; null: nothing is.
  --
  -- Index  inflight_live
begin
  return (select i.pos from bridge.inflight i where i.queue = p_queue and i.taken_by is null and i.pos >= coalesce(bridge.floor_of('inflight', p_queue), 0)
    order by i.pos limit 1);
end
$$;

create or replace function bridge.raise_floor(p_hot text, p_queue text, p_pos bigint) returns void language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Let looks through a queue begin at this number.
begin
  if p_pos > coalesce(bridge.floor_of(p_hot, p_queue), 0) then
    delete from bridge.floor f where f.hot = p_hot and f.queue = p_queue;
    insert into bridge.floor (hot, queue, pos) values (p_hot, p_queue, p_pos);
  end if;
end
$$;

create or replace function bridge.raise_floors(p_queues text[], p_look jsonb default null) returns jsonb language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Raise the floors of queues from which a drainer has claimed, as far as an earlier look allows, and look again. To be called in a
  -- transaction of its own. Where few rows are dead there is nothing to raise: looks pass few.
  --
  --   p_queues  from which it has claimed since that look
  --   p_look    what the call before has returned
  --
  -- Returns  what to give the next call: the same while somebody whom it waits for has not ended; null when there is nothing to wait for
  -- Locks    an advisory lock, tried: another drainer raises them, or a lane is being taken apart, see bridge.relane
declare
  v_hot constant regclass[] := array['bridge.ready', 'bridge.inflight'];
  v_database constant oid := (select d.oid from pg_catalog.pg_database d where d.datname = current_database());
  v_ready bigint;
  v_inflight bigint;
  v_epoch uuid;
  v_queue text;
begin
  -- First the numbers, then who has the locks: whoever took a number before has the lock, or has ended.
  select s.last_value into v_ready from bridge.ready_pos_seq s;
  select s.last_value into v_inflight from bridge.inflight_pos_seq s;
  delete from bridge.floor f where f.pos > case f.hot when 'ready' then v_ready else v_inflight end + 1;  -- its sequence was set back
  if (select sum(pg_stat_get_dead_tuples(h)) from unnest(v_hot) h) < 10000 then
    return null;
  elsif not pg_try_advisory_xact_lock(hashtextextended('bridge.floor', 0)) then
    return p_look;
  end if;
  select e.id into v_epoch from bridge.floor_epoch e;
  if not found then
    insert into bridge.floor_epoch values (gen_random_uuid()) returning id into v_epoch;
  end if;
  if (p_look ->> 'epoch')::uuid = v_epoch and (p_look ->> 'ready')::bigint < v_ready and (p_look ->> 'inflight')::bigint < v_inflight then
    if exists (select from pg_catalog.pg_locks l where l.relation = any (v_hot) and l.mode = 'RowExclusiveLock' and l.database = v_database
        and (l.pid is null or l.virtualtransaction in (select jsonb_array_elements_text(p_look -> 'waits')))) then
      return p_look;
    end if;
    for v_queue in select jsonb_array_elements_text(p_look -> 'queues') loop
      perform bridge.raise_floor('ready', v_queue, least(bridge.lowest_ready(v_queue), (p_look ->> 'ready')::bigint + 1));
      perform bridge.raise_floor('inflight', v_queue, least(bridge.lowest_inflight(v_queue), (p_look ->> 'inflight')::bigint + 1));
    end loop;
  end if;
  if p_queues = '{}' then
    return null;
  end if;
  return jsonb_build_object('epoch', v_epoch, 'queues', p_queues, 'ready', v_ready - 1, 'inflight', v_inflight - 1, 'waits', coalesce((
    select jsonb_agg(distinct l.virtualtransaction) from pg_catalog.pg_locks l
    where l.relation = any (v_hot) and l.database = v_database and l.mode = 'RowExclusiveLock' and l.pid is distinct from pg_backend_pid()), '[]'));
end
$$;
