-- What connects jobs: batches, the links that a workflow is read from, and the list of what an end could not settle by itself.

do $$
begin
  if to_regclass('bridge.batch') is null then
    create table bridge.batch (
      id           uuid primary key,
      name         text,
      callback     text,                     -- the task that is called when it has ended; null for none
      args         jsonb not null,
      kwargs       jsonb not null,
      queue        text not null,
      callback_on  text not null,
      created_at   timestamptz not null,
      sealed_at    timestamptz,              -- from then on it ends with its last job
      cancelled_at timestamptz,
      ended_at     timestamptz,
      succeeded    boolean,                  -- how it ended: did all of its jobs succeed
      called_at    timestamptz,              -- when the callback was enqueued
      constraint batch_is_called_on_complete_or_success check (callback_on in ('complete', 'success'))
    );
    -- batches: the newest first
    create index batch_created_at on bridge.batch (created_at);

    -- Who belongs to whom, for people: kept as long as history, so that a workflow can be read when it is over.
    create table bridge.link (
      above   uuid not null,                 -- a job, a batch, or a group of Celery's
      below   uuid not null,                 -- a job
      kind    text not null,
      made_at timestamptz not null,
      primary key (above, below, kind),      -- workflow: what is below
      constraint link_kind_is_known check (kind in ('depends', 'batch', 'callback', 'called', 'group'))
    );
    -- workflow: what is above
    create index link_below on bridge.link (below);

    -- Ends that saw another end under way cannot know how that one goes: whoever sweeps looks again. Mostly empty.
    create table bridge.second_look (
      pos    bigint generated always as identity primary key,
      child  bigint,                         -- a blocked job, one of whose parents may have ended unseen
      parent bigint,                         -- which; null for all of them
      batch  uuid,                           -- a batch whose last job may have ended unseen
      constraint second_look_is_at_a_child_or_a_batch check ((child is null) <> (batch is null))
    );
    alter table bridge.second_look set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);
    alter table bridge.dependency set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);
    alter table bridge.blocked set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);
  end if;
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.blocked'::regclass and a.attname = 'on_failure') then
    alter table bridge.blocked add column on_failure text;  -- of a parent: run, wait; null: cancel
  end if;
  if to_regclass('bridge.job_batch') is null then
    -- the end of a member: does another member live; batches: counts
    create index job_batch on bridge.job (batch, seq) where batch is not null;
    -- batches: counts; the end of a batch: did one not succeed
    create index finished_batch on bridge.finished (batch, status) where batch is not null;
  end if;
end
$$;
