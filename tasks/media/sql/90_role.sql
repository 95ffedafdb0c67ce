-- Who may do what, by bridge's roles. Those that do not exist are left out; `bridge install` says why they might not.

create or replace function media.grant_all() returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Give each role what it needs and nobody else anything.
declare
  v_views constant text := 'media.jobs, media.job_stats_hourly, media.job_rate_per_minute, media.job_failures, media.worker_pull, media.worker_log';
  v_role text;
  v_right text;
begin
  revoke all on all tables in schema media from public;
  revoke all on all routines in schema media from public;
  for v_role, v_right in
    select r.role, r.right from (values
      ('bridge_producer', 'insert, select on media.uploads'),
      ('bridge_producer', 'execute on function media.add_upload'),
      ('bridge_viewer', 'select on media.uploads, media.upload_jobs, media.settings, ' || v_views),
      ('bridge_viewer', 'execute on function media.get, media.pace, media.capacity, media.schedule_seconds, media.cron_status, media.cron_runs'),
      ('bridge_operator', 'insert, select on media.uploads'),
      ('bridge_operator', 'select on media.upload_jobs, media.settings, media.cron_failures, ' || v_views),
      ('bridge_operator', 'execute on all routines in schema media')) r (role, "right")
    join pg_catalog.pg_roles p on p.rolname = r.role
  loop
    execute format('grant usage on schema media to %I', v_role);
    execute format('grant %s to %I', v_right, v_role);
  end loop;
end
$$;

select media.grant_all();
