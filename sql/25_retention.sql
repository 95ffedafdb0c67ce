-- How long what has ended is kept: settings, rules by queue and status, an archive; and which tables of our own are cleaned by age.
-- Nothing goes here: sql/73_cleanup.sql does that, and notes it in cleanup_log.

do $$
begin
  if to_regclass('bridge.retention') is null then
    create table bridge.retention (
      queue      text,                       -- null: of all queues
      status     text,                       -- how they ended; null: all but dead letters
      keep       interval,                   -- since their end; null: as where there is no rule
      changed_at timestamptz not null default clock_timestamp(),
      constraint retention_is_of_one_queue_and_status unique nulls not distinct (queue, status),
      constraint retention_is_of_something check (queue is not null or status is not null),
      constraint retention_status_is_final check (status in ('succeeded', 'failed', 'cancelled', 'expired')),
      constraint retention_keep_is_positive check (keep > interval '0')
    );

    create table bridge.archive (
      only_row boolean primary key default true check (only_row),
      relation regclass                      -- jobs are copied there before they go; null: nowhere
    );
    insert into bridge.archive default values;

    create table bridge.cleaned_table (
      name        text primary key,          -- of a table of ours; of nothing there is, nothing is cleaned
      timed       text not null,             -- the column that tells how old a row is
      setting     text,                      -- how long rows are kept: a setting, or seconds; null: the column tells when a row's time is over
      condition   text,                      -- SQL on a row v: which of the old ones go; null: all
      by_function text                       -- what cleans it: (before timestamptz, dry_run boolean, limit integer) returns how many; null: batches
    );

    create table bridge.cleanup_log (
      id         bigint generated always as identity primary key,
      cleanup    bigint,                     -- to which cleanup it belongs: the id of that one's row
      by         text not null,
      operation  text not null,              -- cleanup: the whole; delete, drop, clean: one table
      table_name text,
      began_at   timestamptz not null,
      touched_at timestamptz not null,       -- of the last batch
      ended_at   timestamptz,
      status     text not null,
      found      bigint not null default 0,  -- rows whose time is over
      deleted    bigint not null default 0,  -- of a day that was dropped: as statistics have it
      kept       bigint not null default 0,  -- rows that outlive their day and were put aside
      archived   bigint not null default 0,
      detail     text,                       -- why it was left or failed
      todo       jsonb,                      -- how far it is and what is next; null when it is over
      constraint cleanup_log_status_is_known check (status in ('waiting', 'running', 'done', 'left', 'failed', 'interrupted'))
    );
    -- the tick: when was the last cleanup, is one under way; the next step of that
    create index cleanup_log_whole on bridge.cleanup_log (id) where operation = 'cleanup';
    create index cleanup_log_open on bridge.cleanup_log (cleanup, id) where status in ('waiting', 'running') and operation <> 'cleanup';
    -- the first one is due a while after the install
    insert into bridge.cleanup_log (by, operation, began_at, touched_at, ended_at, status) values ('install', 'cleanup', now(), now(), now(), 'done');

    create table bridge.kept_change (
      parent text not null,
      id     uuid not null                   -- a row of a day that is being put aside was changed: it is copied again
    );
  end if;
end
$$;

insert into bridge.setting (name, value, about) values
  ('log_retention',  '2592000', 'seconds that our own logs are kept: runs of schedules, changes of breakers, cleanups'),
  ('cron_retention', '604800',  'seconds that pg_cron''s log of our entries is kept; pg_cron itself never cleans it'),
  ('cron_clean_all', '0',       '1: pg_cron''s log of all entries is cleaned, not of ours alone'),
  ('cleanup_every',  '90000',   'seconds since the last cleanup after which ticks begin one by themselves; 0 = never')
on conflict (name) do update set about = excluded.about where bridge.setting.about <> excluded.about;

create or replace function bridge.clean_table(p_table text, p_column text, p_setting text, p_condition text default null, p_function text default null)
  returns void language sql set search_path = pg_catalog, pg_temp
  -- Have cleanups delete the old rows of a table of ours. Who makes a table calls this beside it.
  --
  --   p_column     when a row came there; needs no index
  --   p_setting    how long rows are kept: a setting, or seconds; null: the column tells when a row's time is over
  --   p_condition  SQL on a row v: which of the old ones go; null: all
  --   p_function   of ours that does it instead: (before timestamptz, dry_run boolean, limit integer) returns how many
  begin atomic
    insert into bridge.cleaned_table as t (name, timed, setting, condition, by_function) values (p_table, p_column, p_setting, p_condition, p_function)
    on conflict (name) do update set timed = excluded.timed, setting = excluded.setting, condition = excluded.condition, by_function = excluded.by_function
    where (t.timed, t.setting, t.condition, t.by_function) is distinct from (excluded.timed, excluded.setting, excluded.condition, excluded.by_function);
  end;

create or replace function bridge.check_retention(p_queue text, p_status text, p_keep interval default null) returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Refuse a rule that is about nothing, or can never be.
begin
  if coalesce(p_queue, p_status) is null then
    perform bridge.refuse('neither queue nor status is given', 'give one or both; for all jobs there are the settings retention and dead_retention');
  elsif p_queue = '' then
    perform bridge.refuse('queue is empty', 'give the name of a queue');
  elsif p_status <> all (bridge.final_statuses()) then
    perform bridge.refuse(format('status is %L', left(p_status, 80)), 'give succeeded, failed, cancelled or expired');
  elsif p_keep <= interval '0' then
    perform bridge.refuse(format('keep is %s', justify_interval(p_keep)), 'give an interval above 0, or null for as long as without a rule');
  end if;
end
$$;

create or replace function bridge.set_retention(queue text default null, status text default null, keep interval default null) returns text
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Keep ended jobs of a queue, of a status, or of a status in a queue for another while than the settings say. Of the rules about a job
  -- the one for its queue and status counts, else the one for its queue, else the one for its status.
  --
  --   queue   the jobs of this queue; null: of all
  --   status  jobs that ended so: succeeded, failed (dead letters are meant, which nobody has discarded), cancelled, expired; null: all
  --           but dead letters, which go by no rule that does not name them
  --   keep    since their end; null: as long as without a rule, against a less special one
  --
  -- Returns  created, changed or unchanged
  -- Errors   JB001 an argument
declare
  v_old bridge.retention;
begin
  perform bridge.check_retention(set_retention.queue, set_retention.status, set_retention.keep);
  select r.* into v_old from bridge.retention r where r.queue is not distinct from set_retention.queue and r.status is not distinct from set_retention.status
    for update;
  if found and v_old.keep is not distinct from set_retention.keep then
    return 'unchanged';
  end if;
  insert into bridge.retention as r (queue, status, keep) values (set_retention.queue, set_retention.status, set_retention.keep)
  on conflict on constraint retention_is_of_one_queue_and_status do update set keep = excluded.keep, changed_at = clock_timestamp();
  return case when v_old.changed_at is null then 'created' else 'changed' end;
end
$$;

create or replace function bridge.remove_retention(queue text default null, status text default null) returns boolean language plpgsql
  security definer set search_path = pg_catalog, pg_temp as $$
  -- Take a rule away. Returns false when there was none. Errors  JB001 an argument
begin
  perform bridge.check_retention(remove_retention.queue, remove_retention.status);
  delete from bridge.retention r where r.queue is not distinct from remove_retention.queue and r.status is not distinct from remove_retention.status;
  return found;
end
$$;

-- How long ended jobs are kept, the most special rule first; the last two rows are the settings.
select bridge.define_view('retentions', $view$
  select r.queue, r.status, r.keep, case when r.queue is null then 'status' when r.status is null then 'queue' else 'queue and status' end as about, r.changed_at
  from bridge.retention r
  union all select null, 'failed', greatest(bridge.seconds('dead_retention'), bridge.seconds('retention')), 'dead_retention', s.changed_at
    from bridge.setting s where s.name = 'dead_retention'
  union all select null, null, bridge.seconds('retention'), 'retention', s.changed_at from bridge.setting s where s.name = 'retention'
$view$);

create or replace function bridge.cutoffs(p_now timestamptz)
  returns table (place integer, condition text, since timestamptz, dead boolean, by_rule boolean) language sql stable set search_path = pg_catalog, pg_temp
  -- Since when ended jobs are kept: for kinds of rows v of `finished`, as SQL; the first that fits counts.
  --
  -- dead     it is about dead letters alone
  begin atomic
    with plain as (select bridge.seconds('retention') as rest, greatest(bridge.seconds('dead_retention'), bridge.seconds('retention')) as dead,
      'v.status = ''failed'' and v.discarded_at is null' as is_dead)
    select case when r.queue is null then 3 when r.status is null then 2 else 1 end,
      case when r.queue is not null then format('v.queue = %L and ', r.queue) else '' end
        || case when r.status = 'failed' then p.is_dead when r.status is null then format('not (%s)', p.is_dead) else format('v.status = %L', r.status) end,
      p_now - coalesce(r.keep, case when r.status = 'failed' then p.dead else p.rest end), r.status is not distinct from 'failed', r.keep is not null
    from bridge.retention r cross join plain p
    union all select 4, p.is_dead, p_now - p.dead, true, false from plain p
    union all select 5, 'true', p_now - p.rest, false, false from plain p;
  end;

create or replace function bridge.since_of(p_now timestamptz, p_rules_only boolean default false) returns text language sql stable set search_path = pg_catalog, pg_temp
  -- Since when a row v of `finished` is kept, as SQL. In seconds of the epoch, which read the same in every session.
  --
  --   p_rules_only  for ever, where no rule says a time
  return (select 'case ' || string_agg(format('when %s then %s', c.condition, case when p_rules_only and not c.by_rule then '''-infinity''::timestamptz'
    else format('to_timestamp(%s)', extract(epoch from c.since)) end), ' ' order by c.place, c.condition) || ' end' from bridge.cutoffs(p_now) c);

create or replace function bridge.outliving(p_parent text, p_now timestamptz, p_until timestamptz default 'infinity') returns text language sql stable
  set search_path = pg_catalog, pg_temp
  -- Which rows v of a table with a partition a day outlive their day, as SQL: jobs by their rules, attempts of dead letters and of jobs
  -- that live again.
  --
  --   p_until  the end of the day: where only dead letters can outlive that, their index finds them
  return case p_parent
    when 'finished' then (select case when bool_and(c.dead or c.since >= p_until) then 'v.status = ''failed'' and v.discarded_at is null and ' else '' end
      from bridge.cutoffs(p_now) c) || format('v.finished_at >= (%s)', bridge.since_of(p_now))
    when 'attempt' then format('(v.id in (select v.id from bridge.finished v where v.status = ''failed'' and v.discarded_at is null and v.finished_at >= (%s))'
      ' or exists (select from bridge.job j where j.id = v.id))', bridge.since_of(p_now))
    else 'false' end;

create or replace function bridge.days_of(p_parent text)
  returns table (name text, lower timestamptz, upper timestamptz, kept boolean, tuples bigint) language sql stable set search_path = pg_catalog, pg_temp
  -- The partitions of a table, earliest first: days, and what holds rows that have outlived theirs.
  begin atomic
    select d.name, coalesce(substring(d.bound from 'FROM \(''([^'']+)''\)')::timestamptz, '-infinity'), substring(d.bound from 'TO \(''([^'']+)''\)')::timestamptz,
      d.name ~ '_kept(_\d{8})?$', d.tuples
    from (select c.relname::text as name, pg_catalog.pg_get_expr(c.relpartbound, c.oid) as bound,
        case when c.reltuples >= 0 then c.reltuples else coalesce(pg_catalog.pg_stat_get_live_tuples(c.oid), 0) end::bigint as tuples
      from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
      where i.inhparent = to_regclass('bridge.' || p_parent) and not i.inhdetachpending) d
    order by 3;
  end;

create or replace function bridge.history_tables() returns table (name text, timed text) language sql stable set search_path = pg_catalog, pg_temp
  -- The tables with a partition a day, and the column that it goes by. Attempts first: which of them outlive is asked of the ended jobs.
  begin atomic
    select c.relname::text, a.attname::text from pg_catalog.pg_class c join pg_catalog.pg_partitioned_table p on p.partrelid = c.oid
    join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = p.partattrs[0]
    where c.relnamespace = 'bridge'::regnamespace order by c.relname;
  end;

create or replace function bridge.archive_columns() returns table (name text, type text) language sql stable set search_path = pg_catalog, pg_temp
  -- The columns that an archive has to have: those of `finished`.
  begin atomic
    select a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod) from pg_catalog.pg_attribute a
    where a.attrelid = 'bridge.finished'::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum;
  end;

create or replace function bridge.create_archive(name text) returns regclass language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Make a table that ended jobs can be copied to, with the caller's rights; or give one that is there the columns that it lacks, after an
  -- upgrade. It has the columns of `finished` and `archived_at`, and no index: add what your questions need.
  --
  --   name  schema.table; a table partitioned by finished_at, made by hand before, gets the columns too
  --
  -- Returns  the table, for bridge.set_archive
  -- Errors   JB001 when the name has no schema, JB002 when there is no such schema
declare
  v_parts text[];
  v_table text;
  v_missing text;
begin
  begin
    v_parts := parse_ident(create_archive.name);
  exception when invalid_parameter_value then
    null;  -- what is no name is refused below
  end;
  if cardinality(v_parts) is distinct from 2 or v_parts[1] = 'bridge' then
    raise exception using errcode = 'JB001', message = format('name is %L', regexp_replace(left(create_archive.name, 80), '[[:cntrl:]]', '?', 'g')),
      hint = 'give a schema that is not bridge, and a table: history.jobs';
  elsif to_regnamespace(format('%I', v_parts[1])) is null then
    raise exception using errcode = 'JB002', message = format('schema %L does not exist', regexp_replace(v_parts[1], '[[:cntrl:]]', '?', 'g')),
      hint = 'create it, or give the name of one that is there';
  end if;
  v_table := format('%I.%I', v_parts[1], v_parts[2]);
  if to_regclass(v_table) is null then
    execute format('create table %s (archived_at timestamptz not null default now())', v_table);
  end if;
  select string_agg(format('add column %I %s', c.name, c.type), ', ') into v_missing from bridge.archive_columns() c
  where not exists (select from pg_catalog.pg_attribute a where a.attrelid = to_regclass(v_table) and a.attname = c.name and not a.attisdropped);
  if v_missing is not null then
    execute format('alter table %s %s', v_table, v_missing);
  end if;
  return to_regclass(v_table);
end
$$;

create or replace function bridge.is_trusted_owner(p_relation regclass) returns boolean language sql stable set search_path = pg_catalog, pg_temp
  -- Whether a table or view, with its partitions, belongs to the owner of the schema or to somebody who has his rights. Whoever reads a view
  -- or writes to a table runs its functions, triggers and rules: in a function that runs with its owner's rights, with these.
  begin atomic
    select coalesce(bool_and(o.rolsuper or pg_catalog.pg_has_role(c.relowner, n.nspowner, 'usage')), false)
    from (select p_relation union select t.relid from pg_partition_tree(p_relation) t) r (id)
    join pg_catalog.pg_class c on c.oid = r.id join pg_catalog.pg_roles o on o.oid = c.relowner
    join pg_catalog.pg_namespace n on n.nspname = 'bridge';
  end;

create or replace function bridge.check_archive(p_archive regclass) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a table that ended jobs cannot be copied to. The caller is a definer: whose rights count is who cleans up.
  --
  -- Errors  JB001 it lacks a column, has one of another type, is one of ours, or may not be written to
declare
  v_wrong text;
begin
  if not exists (select from pg_catalog.pg_class c where c.oid = p_archive and c.relkind in ('r', 'p', 'f') and c.relnamespace <> 'bridge'::regnamespace) then
    perform bridge.refuse(format('archive is %s', p_archive), 'give a table outside of schema bridge, see bridge.create_archive');
  elsif not (has_table_privilege(p_archive, 'insert') and has_schema_privilege((select c.relnamespace from pg_catalog.pg_class c where c.oid = p_archive), 'usage')) then
    perform bridge.refuse(format('archive %s may not be written to by %s, who cleans up', p_archive, current_user),
      format('grant usage on its schema and insert on %s to %I', p_archive, current_user));
  elsif not bridge.is_trusted_owner(p_archive) then
    perform bridge.refuse(format('archive %s, or a partition of it, belongs to a role whose triggers would run with the rights of %s', p_archive, current_user),
      format('alter table %s owner to %I', p_archive, current_user));
  end if;
  select string_agg(format('%s %s', c.name, c.type), ', ') into v_wrong from bridge.archive_columns() c
  where not exists (select from pg_catalog.pg_attribute a
    where a.attrelid = p_archive and a.attname = c.name and not a.attisdropped and pg_catalog.format_type(a.atttypid, a.atttypmod) = c.type);
  if v_wrong is not null then
    perform bridge.refuse(format('archive %s lacks %s', p_archive, v_wrong), format('select bridge.create_archive(%L)', p_archive::text));
  end if;
end
$$;

create or replace function bridge.open_archive() returns regclass language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The archive, to be written to now; null when there is none. Whoever it belongs to may have changed since it was set.
  --
  -- Errors  as bridge.check_archive
declare
  v_archive constant regclass := (select a.relation from bridge.archive a);
begin
  if v_archive is not null and not bridge.is_trusted_owner(v_archive) then
    perform bridge.check_archive(v_archive);
  end if;
  return v_archive;
end
$$;

create or replace function bridge.set_archive(archive regclass) returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Copy ended jobs to a table before they go, in the transaction in which they go. Days are then deleted in batches, and dropped when empty.
  --
  --   archive  made by bridge.create_archive, or one with the columns of bridge.finished by name; null: none
  --
  -- Returns  set, removed or unchanged
  -- Errors   JB001 it cannot take them
declare
  v_old regclass;
begin
  if set_archive.archive is not null then
    perform bridge.check_archive(set_archive.archive);
  end if;
  select a.relation into v_old from bridge.archive a for update;
  update bridge.archive a set relation = set_archive.archive where a.relation is distinct from set_archive.archive;
  return case when v_old is not distinct from set_archive.archive then 'unchanged' when set_archive.archive is null then 'removed' else 'set' end;
end
$$;
