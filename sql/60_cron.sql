-- pg_cron, where it is: one entry that ticks and one that cleans up, under names that carry the database's. Without it a drainer ticks.
--
-- pg_cron lives in one database of a cluster (cron.database_name). Where that is another one than ours, nothing here reaches it: what is to
-- be run there is said, and `bridge install --cron-database` runs it where it may.

create or replace function bridge.cron_name(p_kind text) returns text language sql stable parallel safe set search_path = pg_catalog, pg_temp
  -- The name of one of our entries. It carries the database's, because the databases of a cluster share one pg_cron; before 1.5 that keeps
  -- 63 bytes of a name, so a longer one ends in a hash.
  --
  --   p_kind  tick, cleanup, calls (functions of schedules) or log (pg_cron's own, cleaned from another database)
  return (select case when octet_length(n.name) <= 63 then n.name else left(n.name, 13) || '-' || md5(current_database()) end
    from (select 'bridge-' || p_kind || '-' || current_database()) n (name));

create or replace function bridge.cron_names() returns text[] language sql stable parallel safe set search_path = pg_catalog, pg_temp
  -- The names of all our entries.
  return (select array_agg(bridge.cron_name(k.kind)) from (values ('tick'), ('cleanup'), ('calls'), ('log')) k (kind));

create or replace function bridge.cron_plan(p_version text, p_found jsonb, p_elsewhere boolean default false)
  returns table (name text, schedule text, command text, action text, statement text) language sql stable set search_path = pg_catalog, pg_temp
  -- What is to be done so that pg_cron drives the tick. An entry that an operator has changed stays as it is: it is replaced only where it
  -- is what a release of ours gave; whether it is active is never touched.
  --
  --   p_version    of pg_cron
  --   p_found      the entries that are there: [{"name": …, "schedule": …, "command": …, "ours": whether they are of this role}]
  --   p_elsewhere  pg_cron lives in another database
  --
  -- Returns  a row for each entry of ours: what it will be; add, change or keep; and what to run for that in pg_cron's database
  begin atomic
    with given (kind, schedule, command) as (values
      ('tick', '2 seconds', $cmd$select bridge.tick('pg_cron')$cmd$),
      ('tick', '* * * * *', 'call bridge.tick_loop()'),  -- before 1.5 pg_cron knows minutes only
      ('cleanup', '17 3 * * *', 'call bridge.cleanup_loop()'),
      ('cleanup', '17 3 * * *', 'select bridge.cleanup()'),  -- up to 0.1.0, one transaction
      ('calls', '2 seconds', 'call bridge.run_calls()'),
      ('calls', '* * * * *', 'call bridge.run_calls(57)'),
      -- In another database our own cleaning does not reach pg_cron's log.
      ('log', '23 3 * * *', format('delete from cron.job_run_details where end_time < now() - interval ''7 days'' and database = %L',
        current_database()))
    ), wanted as (
      select bridge.cron_name(g.kind) as name, g.* from given g
      where case when g.kind in ('tick', 'calls')
          then (g.schedule like '%seconds') = (string_to_array(split_part(p_version, '-', 1), '.')::integer[] >= array[1, 5]) else true end
        and case g.kind when 'log' then p_elsewhere when 'cleanup' then g.command <> 'select bridge.cleanup()'
          when 'calls' then exists (select from bridge.schedule s where s.function is not null) else true end
    ), planned as (
      select w.name, w.kind, f.name is null as missing, m.schedule, m.command, (f.schedule, f.command) is distinct from (m.schedule, m.command) as differs
      from wanted w left join jsonb_to_recordset(p_found) f (name text, schedule text, command text, ours boolean) on f.name = w.name,
        lateral (select f.name is null or (f.ours and (w.kind, f.schedule, f.command) in (select g.kind, g.schedule, g.command from given g))) o (ours),
        -- A command of ours that is no more is replaced at whatever time it runs.
        lateral (select case when o.ours then w.schedule else f.schedule end,
          case when o.ours or (f.ours and f.command = 'select bridge.cleanup()') then w.command else f.command end) m (schedule, command)
    )
    select p.name, p.schedule, p.command, case when p.missing then 'add' when p.differs then 'change' else 'keep' end,
      case when p_elsewhere and p.kind <> 'log'
        then format('select cron.schedule_in_database(%L, %L, %L, %L)', p.name, p.schedule, p.command, current_database())
        else format('select cron.schedule(%L, %L, %L)', p.name, p.schedule, p.command) end
    from planned p order by p.name desc;
  end;

create or replace function bridge.cron_lacks() returns text language sql stable set search_path = pg_catalog, pg_temp
  -- The grants without which this role cannot make entries in the pg_cron of this database; null when it has them.
  begin atomic
    select string_agg(format('grant %s to %I', g.lacking, current_user), '; ' order by g.place) from (
      select 1, 'usage on schema cron' from pg_catalog.pg_namespace n where n.nspname = 'cron' and not has_schema_privilege(n.oid, 'usage')
      union all
      select 2, 'select on cron.job' from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      where n.nspname = 'cron' and c.relname = 'job' and not has_table_privilege(c.oid, 'select')
      union all
      select 3, format('execute on function cron.schedule(%s)', pg_get_function_identity_arguments(p.oid))
      from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
      where n.nspname = 'cron' and p.proname = 'schedule' and p.pronargs = 3 and not has_function_privilege(p.oid, 'execute')
    ) g (place, lacking);
  end;

create or replace function bridge.cron_elsewhere() returns text language sql stable set search_path = pg_catalog, pg_temp
  -- The database that pg_cron lives in, when it is another one than this; null also where this role may not know.
  return (select s.setting from pg_catalog.pg_settings s where s.name = 'cron.database_name' and s.setting <> current_database()
    and not exists (select from pg_catalog.pg_extension e where e.extname = 'pg_cron'));

create or replace function bridge.cron_absent() returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Why pg_cron does not tick here where it is not created in this database, and what to do about that. One sentence, perhaps with
  -- statements below it.
declare
  v_version constant text := (select a.default_version from pg_catalog.pg_available_extensions a where a.name = 'pg_cron');
  v_home constant text := bridge.cron_elsewhere();
begin
  if v_version is null then
    return 'pg_cron is not installed: the drainer ticks';
  elsif v_home is null then
    return 'pg_cron is available but not created in this database: the drainer ticks; to change that: create extension pg_cron, then bridge install; '
      'where it lives in another database of the cluster: bridge install --cron-database NAME';
  end if;
  return format('pg_cron %s lives in database %s (cron.database_name): the drainer ticks; to change that: bridge install --cron-database %s, '
      'or run there as a superuser:', v_version, v_home, v_home)
    || (select string_agg(e'\n  ' || case when p.statement like '%schedule_in_database%' then rtrim(p.statement, ')') || format(', %L)', current_user)
        else p.statement end || ';', '' order by p.name desc) from bridge.cron_plan(v_version, '[]', true) p);
end
$$;

create or replace function bridge.register_cron() returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Have pg_cron drive the tick. An entry that an operator has changed (schedule, command, active) is left as it is.
  --
  -- Returns  one sentence that says what drives the tick now, and what to do where that could be better
declare
  v_version constant text := (select e.extversion from pg_catalog.pg_extension e where e.extname = 'pg_cron');
  v_lacks constant text := bridge.cron_lacks();
  v_found jsonb;
  v_plan record;
begin
  if current_setting('bridge.preview', true) = 'on' then
    return '';  -- bridge install --check looks only
  elsif v_version is null then
    return bridge.cron_absent();
  elsif v_lacks is not null then
    return format('pg_cron %s is there, this role may not use it: the drainer ticks; to change that: %s, then bridge install', v_version, v_lacks);
  elsif not (select r.rolcanlogin from pg_catalog.pg_roles r where r.rolname = current_user) then
    return format('pg_cron %s is there, and runs entries as the role that made them, but %I cannot log in: the drainer ticks; to change that: '
      'alter role %I login, then bridge install', v_version, current_user, current_user);
  end if;
  select coalesce(jsonb_agg(to_jsonb(e)), '[]') into v_found from (
    select distinct on (c.jobname) c.jobname as name, c.schedule, c.command, c.username = current_user as ours
    from cron.job c where c.jobname = any (bridge.cron_names()) order by c.jobname, c.username = current_user desc) e;
  begin
    for v_plan in select p.* from bridge.cron_plan(v_version, v_found) p where p.action <> 'keep' loop
      execute v_plan.statement;
    end loop;
  exception when others then
    return format('pg_cron %s is there and refuses our entries: %s: the drainer ticks', v_version, sqlerrm);
  end;
  return format('pg_cron %s ticks %s', v_version, case when exists (select from cron.job c where c.jobname = bridge.cron_name('tick')
    and c.schedule like '%seconds') then 'by seconds' else 'by a loop within each minute' end);
end
$$;

create or replace function bridge.announce_cron() returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Have pg_cron read its table again, by repeating our entries as they are, in a transaction that does nothing else.
  --
  -- A commit with thousands of catalog changes, as an install is, overruns Postgres's queue of notices; sessions are then told to forget
  -- everything they know. Up to 1.6.7 pg_cron's launcher does not take that as a word about its own table, and never sees the new entries.
  --
  -- Returns  how many entries; 0 without pg_cron, the right to schedule, or entries of this role
declare
  v_count integer := 0;
begin
  if exists (select from pg_catalog.pg_extension e where e.extname = 'pg_cron') and bridge.cron_lacks() is null then
    select count(cron.schedule(c.jobname, c.schedule, c.command)) into v_count from cron.job c
    where c.username = current_user and c.jobname = any (bridge.cron_names());
  end if;
  return v_count;
end
$$;

create or replace function bridge.unregister_cron() returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Remove our entries from pg_cron. Returns how many there were. Where it lives in another database, a warning says what to run there.
declare
  v_count integer := 0;
begin
  if exists (select from pg_catalog.pg_extension e where e.extname = 'pg_cron') then
    select count(cron.unschedule(c.jobid)) into v_count from cron.job c
    where c.jobname = any (bridge.cron_names());
  elsif bridge.cron_elsewhere() is not null then
    raise warning 'pg_cron lives in database %: run there: select cron.unschedule(jobid) from cron.job where jobname = any (%)',
      bridge.cron_elsewhere(), quote_literal(bridge.cron_names());
  end if;
  return v_count;
end
$$;

create or replace function bridge.latest_cron_runs(p_limit integer default 1000)
  returns table (runid bigint, jobid bigint, entry text, schedule text, active boolean, command text, status text, message text,
    started_at timestamptz, ended_at timestamptz, duration interval)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
  -- What pg_cron's log says of our entries, newest first. Only its runid has an index: so these are the runs among the latest of all
  -- entries, whoever made them, and the cost is that of reading so many.
  --
  --   p_limit  how many runs of all entries to look at
  --
  -- Returns  no rows without pg_cron, or where it lives in another database
begin
  if exists (select from pg_catalog.pg_extension e where e.extname = 'pg_cron') and bridge.cron_lacks() is null then
    return query
      select d.runid, d.jobid, c.jobname::text, c.schedule, c.active, d.command, d.status, d.return_message, d.start_time, d.end_time,
        d.end_time - d.start_time
      from (select r.* from cron.job_run_details r order by r.runid desc limit p_limit) d join cron.job c on c.jobid = d.jobid
      where c.jobname = any (bridge.cron_names())
      order by d.runid desc;
  end if;
end
$$;

select bridge.define_view('cron_runs', 'select r.* from bridge.latest_cron_runs() r');

select bridge.register_cron();
