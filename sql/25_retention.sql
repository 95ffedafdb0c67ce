-- How long history is kept. Whole days are dropped; what belongs to dead letters is kept longer, in one partition for all days before.

create or replace function bridge.kept_condition(p_table text, p_dead_since timestamptz) returns text language sql immutable set search_path = ''
  -- Which rows v of a table outlive their day, as SQL: dead letters that ended since, and their attempts.
  return case p_table
    when 'finished' then format('v.status = ''failed'' and v.discarded_at is null and v.finished_at >= %L::timestamptz', p_dead_since)
    when 'attempt' then format('v.id in (select f.id from bridge.finished f where f.status = ''failed'' and f.discarded_at is null and f.finished_at >= %L::timestamptz)',
      p_dead_since)
    else 'false' end;

create or replace function bridge.old_days(p_table text, p_before date) returns table (name text, tuples bigint) language sql stable
  set search_path = ''
  -- The partitions of a table that hold days before one, with how many rows they have as statistics have it.
  begin atomic
    select c.relname::text, greatest(c.reltuples, 0)::bigint from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
    where i.inhparent = to_regclass('bridge.' || p_table) and c.relname <> p_table || '_kept' and right(c.relname, 8) < to_char(p_before, 'YYYYMMDD')
    order by c.relname;
  end;

create or replace function bridge.outliving(p_table text, p_column text, p_before date, p_dead_since timestamptz) returns text language sql stable
  set search_path = ''
  -- The rows v of days before one that are to be kept and are not yet, as the rest of a SELECT.
  return format(' from bridge.%I v where v.%I < %L and v.tableoid <> coalesce(to_regclass(%L), 0) and %s', p_table, p_column,
    p_before::timestamp at time zone 'utc', 'bridge.' || p_table || '_kept', bridge.kept_condition(p_table, p_dead_since));

create or replace function bridge.drop_table_days(p_table text, p_column text, p_before date, p_dead_since timestamptz) returns integer
  language plpgsql set search_path = '' as $$
  -- Drop the days of one table, and move what outlives them into its partition "_kept", which holds whatever is older than the oldest day.
  --
  --   p_column      when a row came there
  --   p_dead_since  dead letters that ended earlier are not kept
  --
  -- Returns  how many rows were moved
  -- Locks    the whole table; with the caller's lock_timeout. Attempts of days that are over do not change, so they are read before
  -- Index    finished_dead
declare
  v_kept constant text := p_table || '_kept';
  v_keep constant text := bridge.kept_condition(p_table, p_dead_since);
  v_first constant timestamptz := p_before::timestamp at time zone 'utc';
  v_lock constant text := format('lock table bridge.%I in access exclusive mode', p_table);
  v_day text;
  v_moved integer;
  v_any integer;
begin
  if p_table <> 'attempt' then
    execute v_lock;
  end if;
  execute 'create temp table bridge_moving on commit drop as select v.*' || bridge.outliving(p_table, p_column, p_before, p_dead_since);
  get diagnostics v_moved = row_count;
  execute v_lock;
  if to_regclass('bridge.' || v_kept) is null then
    execute format('create table bridge.%I (like bridge.%I including all)', v_kept, p_table);
  else
    execute format('delete from bridge.%I v where not (%s)', v_kept, v_keep);
    execute format('alter table bridge.%I detach partition bridge.%I', p_table, v_kept);
  end if;
  execute format('insert into bridge.%I select * from pg_temp.bridge_moving', v_kept);
  drop table pg_temp.bridge_moving;
  for v_day in select o.name from bridge.old_days(p_table, p_before) o loop
    execute format('drop table bridge.%I', v_day);
  end loop;
  execute format('select 1 from bridge.%I limit 1', v_kept) into v_any;
  if v_any is null and p_table = 'attempt' then  -- a dead letter that is kept may have none yet: its end becomes one when it is redriven
    select 1 into v_any from bridge.finished f
    where f.status = 'failed' and f.discarded_at is null and f.finished_at >= p_dead_since and f.finished_at < v_first limit 1;
  end if;
  if v_any is null then
    execute format('drop table bridge.%I', v_kept);
  else
    execute format('alter table bridge.%I attach partition bridge.%I for values from (minvalue) to (%L)', p_table, v_kept, v_first);
  end if;
  return v_moved;
end
$$;

create or replace function bridge.drop_days(p_before date, p_dead_since timestamptz, p_dry_run boolean) returns jsonb language plpgsql
  set search_path = '' as $$
  -- Drop the partitions of days before one, but what belongs to dead letters. A table that somebody reads is left for the next time.
  --
  --   p_dead_since  dead letters that ended earlier go with their day
  --
  -- Returns  {"days": [names], "rows": how many were in them, as statistics have it, "kept": dead letters of those days}
declare
  v_days text[] := array[]::text[];
  v_rows bigint := 0;
  v_kept integer := 0;
  v_table record;
  v_moved integer;
  v_old record;
begin
  perform set_config('lock_timeout', '500ms', true);
  -- Attempts first: which of them are kept is asked of the finished jobs.
  for v_table in
    select c.relname::text as name, (select a.attname::text from pg_catalog.pg_attribute a join pg_catalog.pg_partitioned_table p on p.partrelid = a.attrelid
      where a.attrelid = c.oid and a.attnum = p.partattrs[0]) as timed
    from pg_catalog.pg_class c where c.relnamespace = 'bridge'::regnamespace and c.relkind = 'p' order by c.relname
  loop
    select array_agg(o.name) as names, sum(o.tuples) as tuples into v_old from bridge.old_days(v_table.name, p_before) o;
    continue when v_old.names is null;
    begin
      if p_dry_run then
        execute 'select count(*)' || bridge.outliving(v_table.name, v_table.timed, p_before, p_dead_since) into v_moved;
      else
        v_moved := bridge.drop_table_days(v_table.name, v_table.timed, p_before, p_dead_since);
      end if;
    exception when lock_not_available then
      continue;
    end;
    v_days := v_days || v_old.names;
    v_rows := v_rows + v_old.tuples;
    v_kept := v_kept + case v_table.name when 'finished' then v_moved else 0 end;
  end loop;
  return jsonb_build_object('days', v_days, 'rows', v_rows, 'kept', v_kept);
end
$$;

create or replace function bridge.clean_notes(p_before timestamptz, p_dry_run boolean, p_limit integer default 100000) returns integer
  language plpgsql set search_path = '' as $$
  -- Forget notes from before a moment about jobs that are in no place any more. Returns how many.
declare
  v_count integer;
begin
  if p_dry_run then
    return (select count(*) from bridge.job_note n where n.at < p_before and not exists (select from bridge.job j where j.id = n.id)
      and not exists (select from bridge.finished f where f.id = n.id));
  end if;
  delete from bridge.job_note n where n.ctid = any (array (select o.ctid from bridge.job_note o
    where o.at < p_before and not exists (select from bridge.job j where j.id = o.id) and not exists (select from bridge.finished f where f.id = o.id)
    limit p_limit));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
