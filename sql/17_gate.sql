-- The gate: where jobs wait that a limit or a serial key holds back. Every combination of limits and keys has a *lane*; a claim takes from
-- the lanes that are open, in turn, as far as each of their *buckets* has room. See 26_gate.sql and 29_lane.sql.
--
-- Who makes jobs only adds rows here. Lanes and buckets are changed by claims alone, which skip what another claim has in hand; who ends
-- a run marks its own permit. So nobody waits for anybody.

do $$
begin
  if to_regclass('bridge.job_limit') is null then
    create table bridge.job_limit (
      id          integer generated always as identity primary key,
      name        text not null,
      owner       text not null,             -- limit: an operator's; gate: of a pause or a circuit breaker
      queue       text not null,             -- names, or patterns with * and ?
      task        text not null,
      queue_like  text not null,             -- the same, as LIKE takes them
      task_like   text not null,
      key         text,                      -- what is counted apart: queue, task, or a path such as kwargs.tenant
      concurrency integer,                   -- most runs alive at once
      rate        integer,                   -- most admissions in each interval per …
      per         interval not null,
      burst       integer,                   -- … and as many more after a rest
      pace        double precision,          -- rate, by the second
      fair        boolean not null,          -- keys take turns, and nothing else
      changed_at  timestamptz not null,      -- infinity until a tick has seen it: who changed it may have committed much later
      constraint job_limit_has_one_name unique (owner, name)
    );

    create table bridge.gate (
      only_row boolean primary key default true check (only_row),
      version  bigint not null default 0,    -- counts what changes which jobs a limit is about; numbers alone do not
      in_use   boolean not null default false
    );
    insert into bridge.gate default values;

    create table bridge.bucket (
      id          bigint primary key,        -- made of the limit and the key, see bridge.bucket_id
      job_limit   integer not null,          -- 0: a serial key
      key         text,
      used        integer,                   -- permits, freed ones that nobody has taken away yet included; null: to be counted
      room        integer not null default 0,  -- what the claim that has this row locked may still admit
      tokens      double precision,          -- of a rate; null: full
      refilled_at timestamptz not null default clock_timestamp(),
      due_at      timestamptz                -- look again then: a token comes, or has room been left
    ) with (fillfactor = 50);
    -- claim: where is there room again; drainer: how long may it sleep
    create index bucket_due on bridge.bucket (due_at) where due_at is not null;
    -- set_limit: whose numbers change
    create index bucket_limit on bridge.bucket (job_limit);

    create table bridge.lane (
      id         bigint generated always as identity primary key,
      queue      text not null,
      rank       smallint not null,
      version    bigint not null,            -- of the gate, when its jobs were looked at
      buckets    bigint[] not null,
      limits     integer[] not null,         -- of each bucket
      keys       text[] not null,            -- of each bucket
      serial     bigint,                     -- the bucket of its serial key
      turn       bigint not null,            -- lower is sooner
      blocked_by bigint                      -- the bucket that has no room; null: open
    ) with (fillfactor = 70);
    -- claim: the open lanes of a queue, most urgent first, in turn
    create index lane_open on bridge.lane (queue, rank, turn) where blocked_by is null;
    -- claim: who waits for this bucket
    create index lane_blocked on bridge.lane (blocked_by, queue, rank, turn) where blocked_by is not null;
    -- enqueue: the lane of these buckets; not unique, because then two who make it would wait for each other
    create index lane_same on bridge.lane (queue, rank, version, buckets);

    create table bridge.held (
      seq    bigint primary key,             -- cancel and the view: where is this job
      lane   bigint not null,
      pos    bigint not null,                -- in order of arrival, one order with ready; 0: it has the turn of its serial key already
      size   integer not null,
      since  timestamptz not null default clock_timestamp(),
      token  uuid,                           -- as in ready
      serial bigint                          -- as its lane's
    );
    -- claim: the jobs of a lane
    create index held_lane on bridge.held (lane, pos);
    -- claim: who is first of this serial key
    create index held_serial on bridge.held (serial, pos) where serial is not null;

    create table bridge.permit (
      bucket bigint not null,
      seq    bigint not null,
      freed  boolean not null default false, -- its run is over; the next claim takes it away
      primary key (bucket, seq)              -- claim: how many are in use; end of a run: its own
    );
    -- claim: which buckets have room again
    create index permit_freed on bridge.permit (bucket) where freed;

    alter table bridge.bucket set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);
    alter table bridge.lane   set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);
    alter table bridge.held   set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);
    alter table bridge.permit   set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);

    alter table bridge.ready add column gate bigint not null default 0;  -- version of the gate that let it pass; another is asked again by the claim
    alter table bridge.inflight add column permits bigint[];            -- buckets of which it has one; null for most
  end if;
end
$$;

create or replace function bridge.bucket_id(p_limit integer, p_key text) returns bigint language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp as $$
  -- The number of a limit's bucket for a key, null being one more; limit 0 is the serial keys. Whoever makes a job can say it without a row.
begin
  return hashtextextended(p_limit || coalesce(' ' || p_key, ''), 0);
end
$$;

create or replace function bridge.free_permits() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A job leaves its flight, however: its permits are free. Only rows of its own are written; a drainer is told when somebody waits for them.
begin
  update bridge.permit p set freed = true where p.bucket = any (old.permits) and p.seq = old.seq;
  perform bridge.tell_waiting(old.permits);
  return null;
end
$$;

create or replace function bridge.pass_turn() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A job with a serial key has ended: the turn goes on. Where it never had the turn, it may have been the next in line.
begin
  insert into bridge.permit (bucket, seq, freed) values (bridge.bucket_id(0, old.serial_key), old.seq, true)
  on conflict (bucket, seq) do update set freed = true;
  perform bridge.tell_waiting(array[bridge.bucket_id(0, old.serial_key)]);
  return null;
end
$$;

create or replace function bridge.tell_waiting(p_buckets bigint[]) returns void language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Wake a drainer when lanes wait for one of these buckets.
declare
  v_queue text;
begin
  select l.queue into v_queue from bridge.lane l where l.blocked_by = any (p_buckets) limit 1;
  if found then
    perform bridge.wake_drainers(v_queue);
  end if;
end
$$;

do $$
begin
  if not exists (select from pg_catalog.pg_trigger t where t.tgrelid = 'bridge.inflight'::regclass and t.tgname = 'inflight_frees_permits') then
    create trigger inflight_frees_permits after delete on bridge.inflight for each row when (old.permits is not null) execute function bridge.free_permits();
    create trigger job_passes_turn after delete on bridge.job for each row when (old.serial_key is not null) execute function bridge.pass_turn();
  end if;
end
$$;
