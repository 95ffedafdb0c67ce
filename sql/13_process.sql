-- Who is there: workers and drainers report themselves; the tick remembers when it last ran, and by whom.
-- Columns that change with every report carry no index, so that the update stays in place.
--
-- A commit that notifies takes turns with all others of the server that do, and has its turn until its WAL is on disk. So only drainers
-- that listen are told of ready jobs; while commits queue for that, they look by themselves, see bridge/listening.py.

do $$
begin
  if to_regclass('bridge.worker') is null then
    create table bridge.worker (
      id          uuid primary key,
      name        text not null,             -- Celery's node name
      pid         integer not null,
      pool        text not null,
      concurrency integer not null,
      queues      text[] not null,
      software    text not null,
      started_at  timestamptz not null,
      seen_at     timestamptz not null,
      holding     uuid[] not null default '{}',  -- tokens of the deliveries it has in hand, started or not
      clock_skew  interval not null default '0',
      lost_at     timestamptz,
      stopped_at  timestamptz
    ) with (fillfactor = 50);

    create table bridge.drainer (
      id         uuid primary key,
      name       text not null,
      pid        integer not null,
      software   text not null,
      started_at timestamptz not null,
      seen_at    timestamptz not null,
      published  bigint not null default 0,
      clock_skew interval not null default '0',
      broker     jsonb not null default '{}',  -- what the drainer last saw of its broker
      stopped_at timestamptz
    ) with (fillfactor = 50);

    create table bridge.tick_state (
      only_row     boolean primary key default true check (only_row),
      source       text not null,
      ticked_at    timestamptz not null,
      steady_since timestamptz not null,     -- start of the present run of ticks without a gap
      upkeep_at    timestamptz not null default '-infinity'
    ) with (fillfactor = 50);
    insert into bridge.tick_state (source, ticked_at, steady_since) values ('install', '-infinity', now());
  end if;

  if to_regclass('bridge.silent_worker') is null then
    create table bridge.silent_worker (
      name    text not null,                 -- Celery's node name
      queue   text not null,                 -- what it consumes
      seen_at timestamptz not null,          -- when it last answered
      constraint silent_worker_is_seen_in_one_row primary key (queue, name)
    ) with (fillfactor = 50);

    create table bridge.look (
      only_row    boolean primary key default true check (only_row),
      asked_at    timestamptz not null default '-infinity',  -- when a drainer last asked who consumes the queues
      answered_at timestamptz not null default '-infinity'   -- when answers were last noted
    ) with (fillfactor = 50);
    insert into bridge.look default values;
  end if;
end
$$;

do $$
begin
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.tick_state'::regclass and a.attname = 'server_started_at') then
    -- of the server that ticked last: another one than before is a restart, or a standby that was promoted
    alter table bridge.tick_state add column server_started_at timestamptz;
  end if;
  if to_regclass('bridge.listener') is null then
    create table bridge.listener (
      drainer uuid not null,
      queue   text not null,                 -- of whose ready jobs it wants to be told; '' of all
      primary key (drainer, queue)
    );
    insert into bridge.listener select d.id, '' from bridge.drainer d where d.stopped_at is null;  -- of a release that does not say so
  end if;
end
$$;

create or replace function bridge.report_worker(p_id uuid, p_name text, p_pid integer, p_pool text, p_concurrency integer, p_queues text[],
    p_software text, p_holding uuid[], p_clock timestamptz, p_bundles jsonb default null)
  returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- One heartbeat of a worker's main process: who it is, and every delivery it holds, started or not.
  --
  --   p_holding  tokens of its active and reserved messages
  --   p_clock    the worker's own clock, so that skew can be seen
  --   p_bundles  of each task, as far as there is something to say: how many jobs one message may have, or as a text why only one.
  --              Null leaves what was reported before; a worker that has never said it gets no bundles
  --
  -- Returns  {token: signal} of the runs among those it holds that somebody has cancelled: it should stop them with that signal
  -- Index    inflight_stops
begin
  insert into bridge.worker as w (id, name, pid, pool, concurrency, queues, software, started_at, seen_at, holding, clock_skew,
    bundles)
  values (p_id, p_name, p_pid, p_pool, p_concurrency, p_queues, p_software, clock_timestamp(), clock_timestamp(), p_holding,
    p_clock - clock_timestamp(), p_bundles)
  on conflict (id) do update set seen_at = excluded.seen_at, holding = excluded.holding, queues = excluded.queues,
    concurrency = excluded.concurrency, clock_skew = excluded.clock_skew, lost_at = null, stopped_at = null,
    bundles = coalesce(excluded.bundles, w.bundles);
  return coalesce((select jsonb_object_agg(i.token, i.stop_signal) from bridge.inflight i
    where i.token = any (p_holding) and i.stop_signal is not null and i.state = 'running'), '{}');
end
$$;

create or replace function bridge.report_drainer(p_id uuid, p_name text, p_pid integer, p_software text, p_published bigint,
    p_clock timestamptz, p_broker jsonb default '{}', p_stopped boolean default false, p_listens text[] default array[''])
  returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- One report of a drainer.
  --
  --   p_published  counts the jobs it has published since it started
  --   p_listens    the queues of whose ready jobs it wants to be told, '' of all. Whoever has an open transaction may not know of one that is
  --                new: until those have ended it has to look by itself
  --
  -- Locks  its own rows; of listener so that the tick does not take them for a silent drainer's
declare
  v_listens constant text[] := case when p_stopped then '{}' else p_listens end;
begin
  insert into bridge.drainer as d (id, name, pid, software, started_at, seen_at, published, clock_skew, broker)
  values (p_id, p_name, p_pid, p_software, clock_timestamp(), clock_timestamp(), p_published, p_clock - clock_timestamp(), p_broker)
  on conflict (id) do update set seen_at = excluded.seen_at, published = excluded.published, clock_skew = excluded.clock_skew,
    broker = excluded.broker, stopped_at = case when p_stopped then excluded.seen_at end;
  perform from bridge.listener l where l.drainer = p_id for update;
  delete from bridge.listener l where l.drainer = p_id and l.queue <> all (v_listens);
  insert into bridge.listener (drainer, queue) select p_id, q from unnest(v_listens) q on conflict do nothing;
end
$$;

create or replace function bridge.forget_listeners() returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Drainers that have been silent for a minute listen no more, until they report again; the tick calls it.
  --
  -- Locks  their rows (skip locked)
begin
  delete from bridge.listener l where l.ctid = any (array (
    select o.ctid from bridge.listener o where not exists (
      select from bridge.drainer d where d.id = o.drainer and d.stopped_at is null and d.seen_at > clock_timestamp() - interval '1 minute')
    for update skip locked));
end
$$;

create or replace function bridge.wake_drainers(p_queue text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Tell those who listen that a queue has a ready job, by one NOTIFY a transaction and queue; to be called after the job was written.
  --
  -- This statement sees who listens by now, and the transaction has its number already. So a drainer that begins to listen afterwards
  -- finds it among those that are open. An older snapshot, of a stricter isolation, sees less: there everybody is told.
begin
  if current_setting('transaction_isolation') <> 'read committed' or exists (select from bridge.listener l where l.queue in (p_queue, '')) then
    perform pg_notify('bridge_ready', p_queue);
  end if;
end
$$;

create or replace function bridge.crowd(out waiting integer, out ready bigint) language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp as $$
  -- Commits of this server that wait for their turn to notify (the lock that async.c calls that of database 0), and how many places
  -- jobs have been given in ready so far: whoever asks twice knows how many come.
begin
  select count(*) into waiting from pg_catalog.pg_locks l
  where l.locktype = 'object' and l.database = 0 and l.classid = 'pg_database'::regclass and l.objid = 0 and not l.granted;
  select s.last_value into ready from bridge.ready_pos_seq s;
end
$$;
