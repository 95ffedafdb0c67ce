-- Chords of Celery's canvas: how many parts are expected, and one row for each part that has ended. Nobody counts in a shared row: parts
-- are added by the transactions that end them, and whoever looks after its commit sees all that came before.

do $$
begin
  if to_regclass('bridge.chord') is null then
    create table bridge.chord (
      id         text primary key,           -- Celery's group id of the header
      size       integer,                    -- parts in the header; null until the last of them is enqueued
      added      integer not null default 0, -- parts added by parts
      body       json not null,              -- the signature that is due when all parts have ended
      members    json,                       -- the header's form, when some of its results are groups
      queue      text not null,              -- where the body is joined when no part's worker has done it
      looked_at  timestamptz not null,       -- when the sweep last looked; -infinity asks it to
      expires_at timestamptz
    );
    -- sweep: which have not been looked at for longest
    create index chord_looked_at on bridge.chord (looked_at);

    create table bridge.chord_part (
      chord  text not null,
      id     uuid not null,                  -- the job, or the result stored without one
      "index" integer,                       -- its place in the header
      at     timestamptz not null,
      primary key (chord, id)                -- are all there; a part counts once
    );
    alter table bridge.chord      set (autovacuum_analyze_threshold = 2000000000);
    alter table bridge.chord_part set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000000000);
  end if;
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.job'::regclass and a.attname = 'chord') then
    alter table bridge.job add column chord text;       -- whose part this job is
    alter table bridge.finished add column chord text;
    -- upkeep: does a chord whose time is over still wait for a part
    create index job_chord on bridge.job (chord) where chord is not null;
  end if;
end
$$;
