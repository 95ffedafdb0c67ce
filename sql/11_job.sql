-- Live jobs. A job's content is one row of `job`; where it is in its life is told by which of the small tables holds its number:
-- blocked, scheduled, ready or inflight, exactly one of them. When it ends, the whole row moves to `finished`.
--
-- The content is written once and hardly ever updated; what moves is small. One wide table with a status fell to half its rate
-- while another session held a snapshot; these do not.

do $$
begin
  if to_regclass('bridge.job') is null then
    create table bridge.job (
      seq              bigint generated always as identity primary key,
      id               uuid not null,
      task_id          text,                 -- Celery's id when it is no uuid; id is then its uuid5
      task             text not null,
      queue            text not null,
      rank             smallint not null,    -- 9 - priority: lower is sooner; Redis calls that are less urgent than default have 10 to 18
      args             json not null,
      kwargs           json not null,
      embed            json,                 -- callbacks, errbacks, chain, chord: the third part of a Celery body
      payload          bytea,                -- the body as Celery serialised it, when that is not JSON
      content_type     text,
      content_encoding text,
      headers          json,                 -- message headers beyond the standard ones
      properties       json,                 -- exchange, routing_key, priority … as the caller's Celery set them
      size             integer not null,     -- bytes of the content: what a claim is bounded by
      max_attempts     smallint not null,
      backoff          jsonb,
      attempts         smallint not null default 0,  -- attempts that ended
      losses           smallint not null default 0,  -- runs that died with their worker
      error            json,                 -- of the last attempt
      unique_key       text,
      expires_at       timestamptz,
      run_at           timestamptz not null,
      created_at       timestamptz not null,
      updated_at       timestamptz not null,
      constraint job_rank_is_0_to_18 check (rank between 0 and 18),
      constraint job_payload_names_its_type check (payload is null or content_type is not null)
    );
    -- get, cancel, retry, .get() and "this id exists already" at enqueue
    create unique index job_id on bridge.job (id);
    -- tick: what expires before it starts
    create index job_expires on bridge.job (expires_at) where expires_at is not null;

    create table bridge.ready (
      queue text not null,
      rank  smallint not null,
      pos   bigint generated always as identity,
      seq   bigint not null,
      size  integer not null,
      since timestamptz not null default clock_timestamp(),  -- when it came here
      token uuid,                            -- kept when a claim died, so that a copy already sent stays valid
      primary key (queue, rank, pos)         -- claim: most urgent first, oldest first
    );
    -- cancel and the view: where is this job
    create unique index ready_seq on bridge.ready (seq);

    create table bridge.scheduled (
      seq    bigint primary key,
      run_at timestamptz not null
    );
    -- tick: what is due
    create index scheduled_run_at on bridge.scheduled (run_at);

    create table bridge.inflight (
      seq           bigint primary key,
      queue         text not null,
      state         text not null default 'claimed',
      token         uuid not null,           -- of the delivery: in the message, removed by whatever supersedes the row
      shipment      uuid not null,           -- rows published together
      drainer       uuid not null,
      claimed_at    timestamptz not null,
      published_at  timestamptz,
      republished   integer not null default 0,
      copied        boolean not null default false,  -- the broker may hold a second message with this token
      missing_since timestamptz,             -- evidence that the message is gone was first seen then
      run           uuid,                    -- made by the start; every later write names it
      worker        uuid,
      pid           integer,
      started_at    timestamptz,
      progress      json,
      cancelled_at  timestamptz,             -- the worker is asked to stop the run
      -- One check, not one a column: Postgres reads each from its stored text again for every statement that writes here.
      constraint inflight_state_is_known_and_running_has_a_run check (
        case state when 'running' then run is not null when 'published' then run is null else state = 'claimed' and run is null end)
    ) with (fillfactor = 60);                -- published and running are updates in place

    create table bridge.blocked (
      seq    bigint primary key,
      run_at timestamptz not null
    );
    create table bridge.dependency (
      parent bigint not null,
      child  bigint not null,
      primary key (parent, child)            -- finish: who waits for this job
    );
    -- unblock: does this child still wait for another; cancel of a child
    create index dependency_child on bridge.dependency (child, parent);

    create table bridge.unique_key (
      key text primary key,
      seq bigint not null
    );

    create table bridge.waiter (
      id            uuid primary key,        -- the job; finish notifies only when somebody waits
      registered_at timestamptz not null
    );

    create table bridge.queue (
      name      text primary key,
      "window"  integer,                     -- null: the setting "window"
      constraint queue_window_is_positive check ("window" >= 0)
    );

    -- Rows live seconds, so vacuum goes by a fixed number of dead rows. Analyse is off: statistics taken while a table is empty
    -- would mislead cached plans for ever.
    alter table bridge.job       set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);
    alter table bridge.ready     set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);
    alter table bridge.scheduled set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);
    alter table bridge.inflight  set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);
  end if;

  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = to_regclass('bridge.inflight') and a.attname = 'taken_by') then
    alter table bridge.inflight add column taken_by text[];  -- workers that report nothing, one of which took the message
  end if;
end
$$;

do $$
begin
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.inflight'::regclass and a.attname = 'stop_signal') then
    alter table bridge.inflight add column stop_signal text;  -- what a cancelled run is stopped with; null: it may come to its end
  end if;
  if to_regclass('bridge.inflight_live') is null then
    -- claim: is the window full; tick and drainer: all that looks through what is in flight. What was set aside may be much, and stays.
    create index inflight_live on bridge.inflight (queue) where taken_by is null;
    -- report_worker: what is to stop of the runs it holds
    create index inflight_stops on bridge.inflight (token) where stop_signal is not null;
  end if;
end
$$;

-- What was revoked before it was there: a later step of a chain, jobs with a stamp. Workers that restart forget; these do not.
do $$
begin
  if to_regclass('bridge.revoked') is null then
    create table bridge.revoked (
      id         uuid primary key,           -- enqueue: was this id revoked before it came
      revoked_at timestamptz not null
    );
    create table bridge.revoked_stamp (
      header     text not null,
      stamp      jsonb not null,
      revoked_at timestamptz not null,
      primary key (header, stamp)            -- enqueue, of jobs with stamps alone
    );
  end if;
end
$$;

-- What few jobs have; null for the others, where it costs a bit a row.
do $$
begin
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.job'::regclass and a.attname = 'options') then
    alter table bridge.job
      add column options    jsonb,        -- by the names of bridge.enqueue's arguments
      add column deadline   timestamptz,  -- no attempt starts later
      add column batch      uuid,
      add column serial_key text;
  end if;
end
$$;

do $$
begin
  if to_regclass('bridge.job_deadline') is null then
    -- tick: whose deadline has passed
    create index job_deadline on bridge.job (deadline) where deadline is not null;
  end if;
end
$$;

-- Unique keys that are given back otherwise than by the end of their job.
do $$
begin
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.unique_key'::regclass and a.attname = 'kept_until') then
    alter table bridge.unique_key
      add column id          uuid,                           -- of the job, which may have ended
      add column until_start boolean not null default false, -- its start gives the key back
      add column kept_until  timestamptz;                    -- time gives the key back, and nothing else
    update bridge.unique_key u set id = j.id from bridge.job j where j.seq = u.seq;
    -- claim and start: does this job give its key back when it starts
    create index unique_key_until_start on bridge.unique_key (seq) where until_start;
    -- tick: whose time is over
    create index unique_key_kept_until on bridge.unique_key (kept_until) where kept_until is not null;
    alter table bridge.inflight add column frees_key boolean;  -- the start gives the job's unique key back
  end if;
end
$$;

-- What is held back as a whole: a queue, a task, everything; by an operator until he resumes it, or by a circuit breaker.
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

create or replace function bridge.is_paused(p_queue text) returns boolean language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  -- Whether nothing of a queue may be claimed, because it or everything is paused.
  begin atomic
    select exists (select from bridge.paused p where ((p.kind = 'queue' and p.name = p_queue) or p.kind = 'everything') and p.admit = 0);
  end;
