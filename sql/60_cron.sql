-- pg_cron, where it is: one entry that ticks and one that cleans up, under names that carry the database's. Without it a drainer ticks.

create or replace function bridge.register_cron() returns text language plpgsql set search_path = '' as $$
  -- Have pg_cron drive the tick. An entry that an operator has changed (schedule, active) is left as it is.
  --
  -- Returns  one sentence that says what drives the tick now, and what to do where that could be better
declare
  v_version text;
  v_tick constant text := 'bridge-tick-' || current_database();
  v_cleanup constant text := 'bridge-cleanup-' || current_database();
  v_seconds boolean;
begin
  select e.extversion into v_version from pg_catalog.pg_extension e where e.extname = 'pg_cron';
  if v_version is null then
    return case when exists (select from pg_catalog.pg_available_extensions a where a.name = 'pg_cron')
      then 'pg_cron is available but not created in this database: the drainer ticks; to change that: create extension pg_cron, then bridge install'
      else 'pg_cron is not installed: the drainer ticks' end;
  end if;
  v_seconds := string_to_array(split_part(v_version, '-', 1), '.')::integer[] >= array[1, 5];
  if not has_schema_privilege('cron', 'usage') then
    return format('pg_cron %s is there, this role may not use it: the drainer ticks; to change that: grant usage on schema cron to %I, then bridge install',
      v_version, current_user);
  end if;
  begin
    if not exists (select from cron.job c where c.jobname = v_tick) then
      perform cron.schedule(v_tick, case when v_seconds then '2 seconds' else '* * * * *' end,
        case when v_seconds then $cmd$select bridge.tick('pg_cron')$cmd$ else 'call bridge.tick_loop()' end);
    end if;
    if not exists (select from cron.job c where c.jobname = v_cleanup) then
      perform cron.schedule(v_cleanup, '17 3 * * *', 'select bridge.cleanup()');
    end if;
  exception when insufficient_privilege then
    return format('pg_cron %s is there, this role may not schedule: the drainer ticks; to change that: grant usage on schema cron to %I, then bridge install',
      v_version, current_user);
  end;
  return format('pg_cron %s ticks %s', v_version, case when v_seconds then 'by seconds' else 'by a loop within each minute' end);
end
$$;

create or replace function bridge.unregister_cron() returns integer language plpgsql set search_path = '' as $$
  -- Remove our entries from pg_cron. Returns how many there were.
declare
  v_count integer := 0;
begin
  if exists (select from pg_catalog.pg_extension e where e.extname = 'pg_cron') then
    select count(cron.unschedule(c.jobid)) into v_count from cron.job c
    where c.jobname in ('bridge-tick-' || current_database(), 'bridge-cleanup-' || current_database());
  end if;
  return v_count;
end
$$;

select bridge.register_cron();
