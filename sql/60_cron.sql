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
      perform cron.schedule(v_cleanup, '17 3 * * *', 'call bridge.cleanup_loop()');
    end if;
    -- Up to 0.1.0 it was one transaction.
    perform cron.schedule(c.jobname, c.schedule, 'call bridge.cleanup_loop()') from cron.job c
    where c.jobname = v_cleanup and c.command = 'select bridge.cleanup()' and c.username = current_user;
  exception when insufficient_privilege then
    return format('pg_cron %s is there, this role may not schedule: the drainer ticks; to change that: grant usage on schema cron to %I, then bridge install',
      v_version, current_user);
  end;
  return format('pg_cron %s ticks %s', v_version, case when v_seconds then 'by seconds' else 'by a loop within each minute' end);
end
$$;

create or replace function bridge.announce_cron() returns integer language plpgsql set search_path = '' as $$
  -- Have pg_cron read its table again, by repeating our entries as they are, in a transaction that does nothing else.
  --
  -- A commit with thousands of catalog changes, as an install is, overruns Postgres's queue of notices; sessions are then told to forget
  -- everything they know. Up to 1.6.7 pg_cron's launcher does not take that as a word about its own table, and never sees the new entries.
  --
  -- Returns  how many entries; 0 without pg_cron, the right to schedule, or entries of this role
declare
  v_count integer := 0;
begin
  if has_schema_privilege(to_regnamespace('cron'), 'usage') and has_function_privilege(to_regprocedure('cron.schedule(text, text, text)'), 'execute') then
    select count(cron.schedule(c.jobname, c.schedule, c.command)) into v_count from cron.job c
    where c.username = current_user and c.jobname in ('bridge-tick-' || current_database(), 'bridge-cleanup-' || current_database(),
      'bridge-calls-' || current_database());
  end if;
  return v_count;
end
$$;

create or replace function bridge.unregister_cron() returns integer language plpgsql set search_path = '' as $$
  -- Remove our entries from pg_cron. Returns how many there were.
declare
  v_count integer := 0;
begin
  if exists (select from pg_catalog.pg_extension e where e.extname = 'pg_cron') then
    select count(cron.unschedule(c.jobid)) into v_count from cron.job c
    where c.jobname in ('bridge-tick-' || current_database(), 'bridge-cleanup-' || current_database(), 'bridge-calls-' || current_database());
  end if;
  return v_count;
end
$$;

select bridge.register_cron();
