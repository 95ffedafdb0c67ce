-- The parts of a cleanup: deleting rows in batches, and dropping a day of history. sql/73_cleanup.sql puts them together.
--
-- Rows are deleted in the order of the table's pages, each page read once, whatever indexes there are. What outlives a day is copied to a
-- table of its own, without a lock, while triggers note what is changed meanwhile; then both are exchanged in one moment.

create or replace function bridge.delete_batch(p_table text, p_condition text, p_after tid, p_limit integer, p_archive regclass default null,
    p_early boolean default false, p_lock boolean default true, out deleted integer, out archived integer, out after tid)
  language plpgsql set search_path = pg_catalog, pg_temp set enable_hashjoin = off set enable_mergejoin = off as $$
  -- Delete the next rows of a table for which a condition holds: of its next 8 MB, at most so many.
  --
  --   p_condition  SQL on the row v
  --   p_after      where the batch before ended, (0,0) at first
  --   p_archive    where the rows are copied to; null: nowhere
  --   p_early      jobs that go before their day: their attempts and logs go with them
  --   p_lock       pass by rows that somebody has in hand; false on tables of others, which we may delete from and not update
  --
  -- Returns  how many; after: where to go on, null at the end of the table
  -- Locks    the deleted rows (skip locked)
declare
  v_pages constant bigint := pg_catalog.pg_relation_size(p_table::regclass) / current_setting('block_size')::integer;
  v_until constant bigint := (p_after::text::point)[0]::bigint + 1024;
  v_columns text;
  v_chosen integer;
  v_last tid;
  v_also text := '';
begin
  if p_archive is not null then
    select string_agg(format('%I', c.name), ', ') into v_columns from bridge.archive_columns() c;
    v_also := format(', filed as (insert into %s (%s) select %2$s from gone returning 1)', p_archive, v_columns);
  end if;
  if p_early then
    v_also := v_also || ', attempts as (delete from bridge.attempt a using gone g where a.id = g.id and a.ended_at between g.created_at and g.finished_at)'
      ', lines as (delete from bridge.log_line l using gone g where l.id = g.id and l.at between g.created_at and g.finished_at)';
  end if;
  execute format('with doomed as (select v.ctid as place from %1$s v where v.ctid > %2$L and v.ctid < %3$L and (%4$s) order by v.ctid limit %5$s %6$s),'
      ' gone as (delete from %1$s v where v.ctid = any (array (select d.place from doomed d)) returning v.*) %7$s'
      ' select (select count(*) from gone), (select count(*) from doomed), (select d.place from doomed d order by d.place desc limit 1), %8$s',
    p_table, p_after, format('(%s,0)', v_until), p_condition, p_limit, case when p_lock then 'for update skip locked' else '' end, v_also,
    case when p_archive is not null then '(select count(*) from filed)' else '0' end)
  into deleted, v_chosen, v_last, archived;
  after := case when v_chosen = p_limit then v_last when v_until < v_pages then format('(%s,0)', v_until)::tid end;
end
$$;

create or replace function bridge.note_kept_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A row of a day that is being put aside was changed.
begin
  insert into bridge.kept_change (parent, id) values (tg_argv[0], coalesce(new.id, old.id));
  return null;
end
$$;

create or replace function bridge.is_indexed(p_todo jsonb) returns boolean language sql immutable set search_path = pg_catalog, pg_temp
  -- Whether what outlives a day is found by the index finished_dead, because only dead letters can.
  return p_todo->>'condition' like 'v.status = ''failed'' and v.discarded_at is null and %';

create or replace function bridge.look_into(p_todo jsonb, out stays boolean, out after tid) language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Whether a day may just be dropped, or something in it outlives it: by the index, or by the next 8 MB.
  --
  -- Returns  stays: something does; after: where to look on, null when all is seen
  -- Errors   JB006 the archive is to have rows that are still in it
  -- Index    finished_dead
declare
  v_name constant text := p_todo->>'name';
  v_pages constant bigint := pg_catalog.pg_relation_size(format('bridge.%I', v_name)::regclass) / current_setting('block_size')::integer;
  v_after constant tid := coalesce(p_todo->>'after', '(0,0)')::tid;
  v_until constant bigint := (v_after::text::point)[0]::bigint + 1024;
  v_archived constant boolean := p_todo->>'parent' = 'finished' and (select a.relation from bridge.archive a) is not null;
  v_left boolean := false;
begin
  if p_todo->>'condition' = 'false' then
    stays := false;
    return;
  elsif bridge.is_indexed(p_todo) and not v_archived then
    execute format('select exists (select from bridge.%I v where %s)', v_name, p_todo->>'condition') into stays;
    return;
  end if;
  execute format('select coalesce(bool_or(k.keep), false), coalesce(bool_or(not k.keep), false) from (select (%s) as keep from bridge.%I v '
    'where v.ctid > %L and v.ctid < %L) k', p_todo->>'condition', v_name, v_after, format('(%s,0)', v_until)) into stays, v_left;
  if v_left and v_archived then
    perform bridge.refuse(format('%s has jobs that are not archived', v_name), 'see the row of the log that deletes from it', 'JB006');
  end if;
  after := case when v_until < v_pages and (v_archived or not stays) then format('(%s,0)', v_until)::tid end;
  stays := stays or coalesce((p_todo->>'stays')::boolean, false);
  if not stays and after is null and p_todo->>'parent' = 'attempt' then  -- when a job is redriven, its end becomes an attempt of that day
    execute format('select exists (select from bridge.finished v where v.finished_at >= %L and v.finished_at < %L and %s)', p_todo->>'lower',
      p_todo->>'upper', p_todo->>'jobs') into stays;
  end if;
end
$$;

create or replace function bridge.begin_aside(p_todo jsonb) returns jsonb language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
  set client_min_messages = warning as $$
  -- Make the table that takes what outlives a day, and have changes of that day noted from now on. It takes what was put aside before as
  -- well, as long as that is little, so that there are few such tables and none of them is copied again and again.
  --
  --   p_todo  {"parent", "timed", "name", "lower", "upper", "condition"}
  --
  -- Returns  the same, with the tables to copy from ("sources"), and where to ("aside")
  -- Locks    the day against writers, for a moment; with a time limit
declare
  v_parent constant text := p_todo->>'parent';
  v_aside constant text := format('%s_kept_%s', v_parent, right(p_todo->>'name', 8));
  v_before record;
  v_rows integer := 100001;
  v_sources text[] := array[p_todo->>'name'];
  v_lower timestamptz := (p_todo->>'lower')::timestamptz;
  v_source text;
begin
  select d.* into v_before from bridge.days_of(v_parent) d where d.upper <= v_lower order by d.upper desc limit 1;
  if v_before.kept then
    execute format('select count(*) from (select from bridge.%I limit 100001) v', v_before.name) into v_rows;
  end if;
  if v_rows <= 100000 then
    v_sources := v_before.name || v_sources;
    v_lower := v_before.lower;
  end if;
  execute format('drop table if exists bridge.%I', v_aside);
  delete from bridge.kept_change c where c.parent = v_parent;
  execute format('create table bridge.%I (like bridge.%I including all, constraint bridge_bounds check (%I >= %L and %3$I < %5$L))', v_aside, v_parent,
    p_todo->>'timed', v_lower, p_todo->>'upper');
  perform bridge.close_table(v_aside);
  foreach v_source in array v_sources loop
    execute format('create or replace trigger bridge_kept_change after insert or update or delete on bridge.%I for each row '
      'execute function bridge.note_kept_change(%L)', v_source, v_parent);
  end loop;
  return p_todo || jsonb_build_object('phase', 'copy', 'sources', v_sources, 'source', 0, 'after', '(0,0)', 'aside', v_aside, 'lower', v_lower);
end
$$;

create or replace function bridge.copy_aside(p_todo jsonb, p_limit integer, out todo jsonb, out copied integer) language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Copy the next rows that outlive their day. Nothing is locked: what changes afterwards is noted and copied again.
  --
  -- Returns  the same, further on; copied: how many
declare
  v_source constant text := p_todo->'sources'->>(p_todo->>'source')::integer;
  v_indexed constant boolean := bridge.is_indexed(p_todo);
  v_pages constant bigint := pg_catalog.pg_relation_size(format('bridge.%I', v_source)::regclass) / current_setting('block_size')::integer;
  v_until constant bigint := case when v_indexed then 4294967294 else ((p_todo->>'after')::point)[0]::bigint + 1024 end;
  v_last tid;
begin
  perform set_config('enable_tidscan', case when v_indexed then 'off' else 'on' end, true);
  execute format('with chosen as (select v.ctid as place, v as whole from bridge.%I v where v.ctid > %L and v.ctid < %L and %s order by v.ctid limit %s),'
      ' made as (insert into bridge.%I select (c.whole).* from chosen c)'
      ' select (select count(*) from chosen), (select c.place from chosen c order by c.place desc limit 1)',
    v_source, p_todo->>'after', format('(%s,0)', v_until), p_todo->>'condition', p_limit, p_todo->>'aside')
  into copied, v_last;
  perform set_config('enable_tidscan', 'on', true);
  if copied = p_limit then
    todo := p_todo || jsonb_build_object('after', v_last);
  elsif v_until < v_pages then
    todo := p_todo || jsonb_build_object('after', format('(%s,0)', v_until));
  elsif (p_todo->>'source')::integer + 1 < jsonb_array_length(p_todo->'sources') then
    todo := p_todo || jsonb_build_object('after', '(0,0)', 'source', (p_todo->>'source')::integer + 1);
  else
    todo := p_todo || '{"phase": "swap"}';
  end if;
end
$$;

create or replace function bridge.copy_changed(p_todo jsonb) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Make right what was changed since it was copied; the parent is locked. Returns how many rows that have no time left were archived.
declare
  v_source text;
  v_ids constant text := format('v.id in (select c.id from bridge.kept_change c where c.parent = %L)', p_todo->>'parent');
  v_archive constant regclass := case p_todo->>'parent' when 'finished' then bridge.open_archive() end;
  v_columns constant text := (select string_agg(format('%I', c.name), ', ') from bridge.archive_columns() c);
  v_count integer;
  v_archived integer := 0;
begin
  if not exists (select from bridge.kept_change c where c.parent = p_todo->>'parent') then
    return 0;
  end if;
  execute format('delete from bridge.%I v where %s', p_todo->>'aside', v_ids);
  for v_source in select jsonb_array_elements_text(p_todo->'sources') loop
    execute format('insert into bridge.%I select v.* from bridge.%I v where %s and %s', p_todo->>'aside', v_source, v_ids, p_todo->>'condition');
    if v_archive is not null then
      execute format('insert into %s (%s) select %2$s from bridge.%I v where %s and not (%s)', v_archive, v_columns, v_source, v_ids, p_todo->>'condition');
      get diagnostics v_count = row_count;
      v_archived := v_archived + v_count;
    end if;
  end loop;
  delete from bridge.kept_change c where c.parent = p_todo->>'parent';
  return v_archived;
end
$$;

create or replace function bridge.swap_day(p_todo jsonb) returns integer language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '500ms' as $$
  -- Drop a day; what outlives it, all copied by now, takes its place. Nothing here takes longer where there is more.
  --
  -- Returns  how many rows were archived
  -- Locks    the whole table, with a time limit: whoever uses it holds it off, and is not kept waiting longer than that
declare
  v_parent constant text := p_todo->>'parent';
  v_aside constant text := p_todo->>'aside';
  v_archived integer := 0;
  v_old text;
begin
  execute format('lock table only bridge.%I in access exclusive mode', v_parent);
  if v_aside is not null then
    v_archived := bridge.copy_changed(p_todo);
  end if;
  for v_old in select jsonb_array_elements_text(coalesce(p_todo->'sources', jsonb_build_array(p_todo->>'name'))) loop
    execute format('drop table bridge.%I', v_old);
  end loop;
  if v_aside is not null then
    execute format('alter table bridge.%I attach partition bridge.%I for values from (%s) to (%L)', v_parent, v_aside,
      case when isfinite((p_todo->>'lower')::timestamptz) then quote_literal(p_todo->>'lower') else 'minvalue' end, p_todo->>'upper');
    execute format('alter table bridge.%I drop constraint bridge_bounds', v_aside);
  end if;
  return v_archived;
end
$$;
