-- Ended jobs and ended attempts, partitioned by the UTC day of their end, so that retention drops a day instead of deleting its rows.
--
-- There is no default partition (it would forbid detaching concurrently); days are made ahead by install and by every tick. A finish that
-- finds no partition fails with SQLSTATE 23514, and its caller makes the days and repeats it.

do $$
begin
  if to_regclass('bridge.finished') is null then
    create table bridge.finished (
      seq              bigint not null,
      id               uuid not null,
      task_id          text,
      task             text not null,
      queue            text not null,
      rank             smallint not null,
      args             json not null,
      kwargs           json not null,
      embed            json,
      payload          bytea,
      content_type     text,
      content_encoding text,
      headers          json,
      properties       json,
      size             integer not null,
      max_attempts     smallint not null,
      backoff          jsonb,
      attempts         smallint not null,
      losses           smallint not null,
      error            json,
      unique_key       text,
      expires_at       timestamptz,
      run_at           timestamptz not null,
      created_at       timestamptz not null,
      finished_at      timestamptz not null,
      started_at       timestamptz,
      status           text not null,
      result           json,
      progress         json,
      run              uuid,
      worker           uuid,
      outcome          jsonb                 -- what a Celery result backend needs beyond result: encoding, children …
      -- status is succeeded, failed, cancelled or expired. No check says so: only our functions write here, and Postgres would read the
      -- check from its stored text again for every job that ends.
    ) partition by range (finished_at);
    -- get, .get(), retry
    create index finished_id on bridge.finished (id);
    -- late results, children of a parent that has ended: who had this number
    create index finished_seq on bridge.finished (seq);
    -- a page by task and status, newest first
    create index finished_task_status on bridge.finished (task, status, finished_at);
    -- failed_jobs, dead_jobs: the last failures
    create index finished_unsuccessful on bridge.finished (finished_at) where status <> 'succeeded';
    -- statistics over the last hour: rows lie in order of time, so a few bytes a range do
    create index finished_recent on bridge.finished using brin (finished_at);

    create table bridge.attempt (
      id         uuid not null,
      seq        bigint not null,
      attempt    smallint not null,
      run        uuid,
      worker     uuid,
      started_at timestamptz,
      ended_at   timestamptz not null,
      outcome    text not null,
      error      json,
      result     json,
      constraint attempt_outcome_is_known check (outcome in ('failed', 'retried', 'lost', 'released', 'superseded', 'succeeded', 'cancelled',
        'expired'))
    ) partition by range (ended_at);
    -- the history of one job
    create index attempt_id on bridge.attempt (id);
  end if;
end
$$;

do $$
begin
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.attempt'::regclass and a.attname = 'reason') then
    alter table bridge.attempt add column reason text;  -- in words: why it was followed by another, or did not count
  end if;
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.finished'::regclass and a.attname = 'options') then
    alter table bridge.finished add column options jsonb, add column deadline timestamptz, add column batch uuid, add column serial_key text;
  end if;
end
$$;

-- Dead letters are failed jobs that nobody has discarded. What people did to ended jobs is noted: it is part of their history.
do $$
begin
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.finished'::regclass and a.attname = 'discarded_at') then
    alter table bridge.finished add column discarded_at timestamptz;
    -- dead_jobs, redrive_jobs, discard_jobs, cleanup: the dead letters, oldest or newest first
    create index finished_dead on bridge.finished (finished_at) where status = 'failed' and discarded_at is null;
  end if;
  if to_regclass('bridge.job_note') is null then
    create table bridge.job_note (
      id       uuid not null,
      at       timestamptz not null,
      action   text not null,                -- retried, redriven, discarded …
      by       text not null,
      note     text,
      attempts smallint not null,            -- that had ended by then
      before   jsonb                         -- what this changed, as it was: {"args": …, "queue": …}
    );
    -- the history of one job; how many attempts it had when it was last run again
    create index job_note_id on bridge.job_note (id, at);
  end if;
end
$$;

create or replace function bridge.close_table(p_name text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take from everybody but the owner what default privileges of the database gave away. A partition is named by nobody: rights are asked of
  -- its parent, and so is row level security, which a reader of the partition itself would pass by.
  --
  --   p_name  a partition, or a table that becomes one
declare
  v_grantee text;
begin
  for v_grantee in
    select distinct coalesce(quote_ident(r.rolname), 'public') from pg_catalog.pg_class c cross join aclexplode(c.relacl) a
    left join pg_catalog.pg_roles r on r.oid = a.grantee where c.oid = format('bridge.%I', p_name)::regclass and a.grantee <> c.relowner
  loop
    execute format('revoke all on bridge.%I from %s', p_name, v_grantee);
  end loop;
end
$$;

create or replace function bridge.keep_whole(p_name text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Let rows of up to half a page lie in a table as a whole, unless somebody has chosen otherwise. From 2 KB on Postgres would compress
  -- their largest columns or put them elsewhere, a row and an index entry each: a call with 1 KB of arguments has 2.7 KB, and its end
  -- took 80 us of a server's time so, and 46 in one piece.
  --
  --   p_name  the table
begin
  if not exists (select from pg_catalog.pg_class c cross join unnest(c.reloptions) o
      where c.oid = format('bridge.%I', p_name)::regclass and o like 'toast_tuple_target=%') then
    execute format('alter table bridge.%I set (toast_tuple_target = 4080)', p_name);
  end if;
end
$$;

create or replace function bridge.make_days(p_from date default (now() at time zone 'utc')::date, p_days integer default 7)
  returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Make the partitions of the coming days: of every table here that has a partition a day.
  --
  --   p_from  first day, UTC
  --   p_days  how many days
  --
  -- Returns  how many partitions were made
  -- Errors   JB001 more than 1000 days, or no day that a table can be named after
  -- Locks    attaches, which open writers do not wait for; two callers at once take turns
declare
  v_made integer := 0;
  v_parent text;
  v_name text;
  v_day date;
begin
  if p_days is null or p_days not between 0 and 1000 then
    perform bridge.refuse(format('p_days is %s', coalesce(p_days::text, 'null')), 'give 0 to 1000');
  elsif p_from is null or p_from not between '2000-01-01' and '9000-01-01' then
    perform bridge.refuse(format('p_from is %s', coalesce(p_from::text, 'null')), 'give a day of our time');
  end if;
  perform pg_advisory_xact_lock(hashtextextended('bridge.make_days', 0));
  for v_parent in
    select c.relname from pg_catalog.pg_class c where c.relnamespace = 'bridge'::regnamespace and c.relkind = 'p' order by c.relname
  loop
    for v_day in select p_from + g from generate_series(0, p_days - 1) g loop
      v_name := format('%s_%s', v_parent, to_char(v_day, 'YYYYMMDD'));
      continue when to_regclass('bridge.' || v_name) is not null;
      execute format('create table bridge.%I (like bridge.%I including all)', v_name, v_parent);
      perform bridge.close_table(v_name);
      if v_parent = 'finished' then
        perform bridge.keep_whole(v_name);
      end if;
      execute format('alter table bridge.%I attach partition bridge.%I for values from (%L) to (%L)', v_parent, v_name,
        v_day::timestamp at time zone 'utc', (v_day + 1)::timestamp at time zone 'utc');
      v_made := v_made + 1;
    end loop;
  end loop;
  return v_made;
end
$$;

select bridge.make_days();
select count(bridge.close_table(c.relname)) from pg_catalog.pg_class c where c.relnamespace = 'bridge'::regnamespace and c.relkind = 'r' and c.relispartition;
select count(bridge.keep_whole(c.relname)) from pg_catalog.pg_class c left join pg_catalog.pg_inherits i on i.inhrelid = c.oid
where i.inhparent = 'bridge.finished'::regclass or c.oid = 'bridge.job'::regclass;
