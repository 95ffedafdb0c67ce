-- What the doctor, bridge.health and the alert rules ask alike, each question in one place.
--
-- Nothing here reads more than is in flight, a page of what ended lately, and what has an index: history may be as long as it likes.

create or replace function bridge.words(p_age interval) returns text language sql immutable parallel safe set search_path = pg_catalog, pg_temp
  -- A duration as people say it, in its two greatest units: 40 s, 3 min 20 s, 2 h 5 min, 4 d 3 h; null for null. Not strict: Postgres would
  -- answer for null without asking who may call it.
  return case
    when p_age is null then null
    when p_age < interval '1 minute' then format('%s s', round(greatest(extract(epoch from p_age), 0))::integer)
    when p_age < interval '1 hour' then format('%s min %s s', extract(epoch from p_age)::integer / 60, extract(epoch from p_age)::integer % 60)
    when p_age < interval '1 day' then format('%s h %s min', extract(epoch from p_age)::bigint / 3600, extract(epoch from p_age)::bigint % 3600 / 60)
    else format('%s d %s h', extract(epoch from p_age)::bigint / 86400, extract(epoch from p_age)::bigint % 86400 / 3600) end;

create or replace function bridge.ready_heads() returns table (queue text, rank smallint, since timestamptz) language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- The job of each queue and priority that is published next, and since when it has been due, by a few index probes each.
  --
  -- Index  ready_pkey
begin
  return query
  select distinct on (q.name, p.rank) q.name, p.rank, r.since
  from bridge.queues_ready() q (name), bridge.ready_parts(coalesce(bridge.floor_of('ready', q.name), 0)) p, lateral (
    select r.since from bridge.ready r where r.queue = q.name and r.rank = p.rank and r.pos >= p.low and r.pos < p.high order by r.pos limit 1) r
  order by q.name, p.rank, p.low;
end
$$;

create or replace function bridge.flying_queues() returns setof text language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
  set jit = off as $$
  -- The queues that have something in flight, or jobs that a limit holds back, by one index probe a queue.
  --
  -- Index  inflight_live, lane_same
begin
  return query
  with recursive l (name) as (
    (select o.queue from bridge.lane o order by o.queue, o.rank, o.version, o.buckets limit 1)
    union all
    select (select o.queue from bridge.lane o where o.queue > l.name order by o.queue, o.rank, o.version, o.buckets limit 1) from l
    where l.name is not null
  )
  select f.queue from bridge.flights() f cross join lateral (
    select from bridge.inflight i where i.queue = f.queue and i.pos >= f.low and i.taken_by is null limit 1) i
  union select l.name from l where l.name is not null;
end
$$;

create or replace function bridge.living_workers(p_now timestamptz) returns table (queue text, workers bigint, slots bigint) language sql stable
  set search_path = pg_catalog, pg_temp
  -- How many workers consume each queue and report, and how many jobs they run at once.
  begin atomic
    select q.name, count(*), sum(w.concurrency) from bridge.worker w cross join lateral unnest(w.queues) q (name)
    where w.stopped_at is null and w.lost_at is null and w.seen_at >= p_now - bridge.seconds('worker_lost') group by q.name;
  end;

create or replace function bridge.queues_seen(p_now timestamptz default clock_timestamp())
  returns table (queue text, queued_since timestamptz, published bigint, published_since timestamptz, running bigint, paused boolean,
    workers bigint, slots bigint, silent text[])
  language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Every queue that has jobs which are due, workers, or settings of its own.
  --
  -- Returns  queued_since: the oldest of the jobs that are published next, null when none waits in Postgres; published and running of the first
  --          10000 in flight; workers and slots: those that report; silent: workers without our plugin
  -- Index    ready_pkey, inflight_live, lane_same
begin
  return query
  with head as materialized (
    select h.queue, min(h.since) as since from bridge.ready_heads() h group by h.queue
  ), alive as materialized (
    select * from bridge.living_workers(p_now)
  ), known (name) as (
    select h.queue from head h union select f from bridge.flying_queues() f union select a.queue from alive a
    union select q.name from bridge.queue q union select p.name from bridge.paused p where p.kind = 'queue'
  )
  select k.name, h.since, i.published, i.published_since, i.running, bridge.is_paused(k.name), coalesce(a.workers, 0), coalesce(a.slots, 0),
    bridge.silent_workers(k.name, p_now)
  from known k left join head h on h.queue = k.name left join alive a on a.queue = k.name, lateral (
    select count(*) filter (where f.state = 'published') as published, min(f.published_at) filter (where f.state = 'published') as published_since,
      count(*) filter (where f.state = 'running') as running
    from (select g.state, g.published_at from bridge.inflight g
      where g.queue = k.name and g.pos >= coalesce(bridge.floor_of('inflight', k.name), 0) and g.taken_by is null limit 10000) f) i
  order by k.name;
end
$$;

create or replace function bridge.stuck_in_flight(p_since timestamptz, p_queue text default null, p_task text default null,
    p_most integer default 1000)
  returns table (state text, jobs bigint, since timestamptz, example text)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Jobs that have been published or running since before a moment, by state: how many (p_most are counted in all), the oldest, and its id.
  --
  -- Index  inflight_live, inflight_aside
begin
  return query
  select s.state, count(*), min(s.since), (array_agg(coalesce(s.task_id, s.id::text) order by s.since))[1] from (
    select i.state, i.since, j.task_id, j.id from (
      select o.* from bridge.flights() f cross join lateral (
        select i.seq, i.state, i.queue, coalesce(i.started_at, i.published_at) as since from bridge.inflight i
        where i.queue = f.queue and i.pos >= f.low and i.taken_by is null offset 0) o
      union all
      select i.seq, i.state, i.queue, coalesce(i.started_at, i.published_at) from bridge.inflight i where i.taken_by is not null
    ) i cross join lateral (select j.task_id, j.id, j.task from bridge.job j where j.seq = i.seq offset 0) j
    where i.state <> 'claimed' and i.since < p_since and (p_queue is null or i.queue = p_queue) and (p_task is null or j.task = p_task)
    limit p_most) s
  group by s.state order by s.state;
end
$$;

create or replace function bridge.missing_days(p_ahead integer, p_now timestamptz default clock_timestamp()) returns table (name text, day date)
  language sql stable security definer set search_path = pg_catalog, pg_temp
  -- Days (UTC) from today on, a thousand at most, that have no partition, of every table that has one a day.
  begin atomic
    select c.relname::text, d.day from pg_catalog.pg_class c, generate_series(0, least(p_ahead, 1000)) g,
      lateral (select (p_now at time zone 'utc')::date + g) d (day)
    where c.relnamespace = 'bridge'::regnamespace and c.relkind = 'p' and not exists (select from pg_catalog.pg_inherits i
      where i.inhparent = c.oid and not i.inhdetachpending
        and i.inhrelid = to_regclass('bridge.' || c.relname || '_' || to_char(d.day, 'YYYYMMDD')))
    order by d.day, c.relname;
  end;

create or replace function bridge.undelivered(p_now timestamptz default clock_timestamp(), out rules bigint, out failed bigint, out target text,
    out error text)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- How many callbacks there are, and the messages that nobody took in all their attempts within a day: how many (1000 are counted), and of
  -- which callback the last was, with its error.
  --
  -- Index  finished_task_status
begin
  select (select count(*) from bridge.callback), count(*), coalesce((array_agg(m.callback order by m.finished_at desc))[1], ''),
    coalesce((array_agg(m.message order by m.finished_at desc))[1], '') into rules, failed, target, error
  from (
    select f.kwargs->>'callback' as callback, f.error->>'message' as message, f.finished_at from bridge.finished f
    where f.task in ('bridge.deliver_webhook', 'bridge.deliver_notification') and f.status = 'failed' and f.discarded_at is null
      and f.finished_at > p_now - interval '1 day'
    order by f.finished_at desc limit 1000) m;
end
$$;

create or replace function bridge.dead_since(p_since timestamptz, p_queue text default null, p_task text default null, p_most integer default 10000)
  returns table (jobs bigint, last_at timestamptz, example text)
  language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Dead letters since a moment: how many among the last p_most of all queues and tasks, and the newest.
  --
  -- Index  finished_dead
begin
  return query
  select count(*), max(d.finished_at), (array_agg(coalesce(d.task_id, d.id::text) order by d.finished_at desc))[1] from (
    select f.finished_at, f.task_id, f.id, f.queue, f.task from bridge.finished f
    where f.status = 'failed' and f.discarded_at is null and f.finished_at > p_since order by f.finished_at desc limit p_most) d
  where (p_queue is null or d.queue = p_queue) and (p_task is null or d.task = p_task);
end
$$;

create or replace function bridge.ended_lately(p_since timestamptz, p_most integer default 20000)
  returns table (queue text, succeeded bigint, failed bigint, last_at timestamptz)
  language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- How jobs ended since a moment, by queue, from at most so many of them: what is read does not grow with the rate.
  --
  -- Index  finished_recent
begin
  return query
  select e.queue, count(*) filter (where e.status = 'succeeded'), count(*) filter (where e.status = 'failed'), max(e.finished_at)
  from (select f.queue, f.status, f.finished_at from bridge.finished f where f.finished_at > p_since limit p_most) e group by e.queue;
end
$$;

create or replace function bridge.schedule_troubles(p_now timestamptz default clock_timestamp(), out total integer, out paused integer,
    out late text[], out failed text[], out slow text[], out often text[])
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
  -- How many schedules there are, and which a person should look at, each with why: due for longer than slot_grace; their last run failed;
  -- it is slow; they run too often, or do what another does.
begin
  select count(*), count(*) filter (where not s.enabled),
    coalesce(array_agg(s.name order by s.next_run) filter (where s.next_run < p_now - bridge.seconds('slot_grace')), '{}'),
    coalesce(array_agg(format('%s (%s)', s.name, left(s.last_error, 80)) order by s.last_run desc) filter (where s.enabled and s.last_status = 'failed'), '{}'),
    coalesce((select array_agg(format('%s (%s, no more than %s expected)', w.schedule, date_trunc('second', w.duration), date_trunc('second', w.longest_expected))
      order by w.schedule) from bridge.slow_schedules w), '{}'),
    coalesce((select array_agg(format('%s%s (%s)', o.schedule, case o.kind when 'twin' then ' = ' || o.other end, o.found) order by o.schedule, o.kind)
      from bridge.too_often_schedules o), '{}')
  into total, paused, late, failed, slow, often from bridge.schedules s;
end
$$;

create or replace function bridge.oldest_snapshot(p_now timestamptz default clock_timestamp(), out what text, out age interval, out pid integer)
  language sql stable set search_path = pg_catalog, pg_temp
  -- The transaction of this database that has kept dead rows from being vacuumed for longest, as far as the owner of this schema sees sessions.
  begin atomic
    select format('pid %s (%s, %s) holds a snapshot or writes', a.pid, coalesce(nullif(a.application_name, ''), a.backend_type), coalesce(a.state, 'no state')),
      p_now - a.xact_start, a.pid
    from pg_catalog.pg_stat_activity a
    where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid() and a.datname = current_database()
      and a.backend_type <> 'autovacuum worker' and a.xact_start is not null
    order by a.xact_start limit 1;
  end;
