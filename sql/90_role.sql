-- Who may do what. Roles belong to the cluster and outlive a database: existing ones are accepted. Where the installing role may not
-- create roles, everything stays with the owner and the warning says so.

do $$
declare
  v_role text;
begin
  foreach v_role in array array['bridge_producer', 'bridge_worker', 'bridge_operator', 'bridge_viewer'] loop
    if not exists (select from pg_catalog.pg_roles r where r.rolname = v_role) then
      begin
        execute format('create role %I nologin', v_role);
      exception
        when insufficient_privilege then
          raise warning 'role % does not exist and % may not create it: ask an administrator for "create role % nologin"', v_role, current_user, v_role;
        when duplicate_object or unique_violation then
          null;  -- another database of the cluster installs at the same moment
      end;
    end if;
  end loop;
end
$$;

create or replace function bridge.grant_all() returns void language plpgsql set search_path = '' as $$
  -- Give each role what it needs and nobody else anything. Roles that do not exist are left out.
declare
  v_rights constant jsonb := '{
    "bridge_producer": [
      "enqueue_flow", "create_batch", "seal_batch",
      "next_runs", "next_runs_of", "enqueue", "enqueue_many", "enqueue_buffered", "enqueue_message", "enqueue_page", "version", "serves_from", "wait_for", "forget_waiter", "results", "store_result", "forget",
      "save_group", "restore_group", "delete_group", "clean_results", "begin_chord", "size_chord", "revoke", "revoke_stamped"],
    "bridge_worker": [
      "watch_alerts", "metric_growth", "ready_heads", "stuck_in_flight", "missing_days", "undelivered", "schedule_troubles",
      "cron_name", "cron_names", "cron_lacks", "latest_cron_runs", "enqueue_flow", "create_batch", "seal_batch", "add_dependency", "workflow", "batch_status",
      "wait", "complete", "complete_run", "hold_run", "fate_of_run", "was_completed", "keep_untold", "told",
      "note", "progress", "log", "logs", "save_checkpoint", "checkpoint",
      "history", "next_runs", "next_runs_of", "schedule_history", "too_often", "enqueue", "enqueue_many", "enqueue_buffered", "enqueue_message", "enqueue_page", "start", "finish", "fail", "end_delivery", "retry_run", "mark_replaced", "step_aside", "lose", "never_ran",
      "report_worker", "release", "stop_worker", "report_drainer", "ready_queues", "next_look", "claim", "mark_published", "unclaim", "suspects", "mark_missing", "republish",
      "begin_call", "perform_call", "run_calls", "calls_wait", "calls_to_stop", "stop_calls",
      "tick", "tick_if_late", "sweep", "make_days", "setting", "seconds", "room", "is_paused", "version", "serves_from", "wait_for", "forget_waiter", "results", "store_result",
      "forget", "save_group", "restore_group", "delete_group", "clean_results", "begin_chord", "size_chord", "grow_chord",
      "end_part", "is_chord_complete", "take_chord", "silent_workers", "may_look", "note_silent", "set_aside",
      "revoke", "revoke_stamped", "heed_revoke", "purge", "metrics", "metric_catalog"],
    "bridge_operator": ["complete", "metrics", "metric_catalog", "cron_name", "cron_names", "cron_lacks", "latest_cron_runs",
      "health", "set_alert", "remove_alert", "check_alerts", "collect_metrics", "metric_rate", "metric_growth", "acknowledge_alert", "resolve_alert", "test_alert", "alert_kinds",
      "ready_heads", "stuck_in_flight", "missing_days", "undelivered", "schedule_troubles",
      "enqueue_flow", "create_batch", "seal_batch", "cancel_batch", "add_dependency", "workflow", "batch_status",
      "set_webhook", "set_notifier", "set_channel", "remove_callback", "try_callback", "wait", "progress", "log", "logs", "save_checkpoint", "checkpoint",
      "begin_call", "perform_call", "run_calls", "calls_wait", "calls_to_stop", "stop_calls",
      "schedule", "unschedule", "pause_schedule", "resume_schedule", "run_schedule", "next_runs", "next_runs_of", "schedule_history", "too_often",
      "enqueue", "enqueue_many", "enqueue_buffered", "enqueue_page", "cancel", "revoke", "revoke_stamped", "purge", "retry", "retry_failed", "pause", "resume", "set_window", "set_breaker", "reset_breaker", "remove_breaker", "set_priority", "move", "reschedule", "set_priority_jobs", "move_jobs", "reschedule_jobs", "drain_state", "is_paused", "tick", "sweep", "cleanup", "cleanup_loop", "begin_cleanup", "cleanup_step", "set_retention", "remove_retention", "set_archive", "upkeep", "setting", "seconds",
      "version", "serves_from", "room", "silent_workers", "ready_queues", "wait_for", "forget_waiter", "settle_unreported",
      "select_jobs", "cancel_jobs", "redrive", "redrive_jobs", "discard", "discard_jobs",
      "set_limit", "remove_limit",
      "set_retry", "remove_retry", "history"],
    "bridge_viewer": ["metrics", "metric_catalog", "cron_name", "cron_names", "cron_lacks", "latest_cron_runs",
      "health", "alert_kinds", "metric_rate", "metric_growth", "ready_heads", "stuck_in_flight", "missing_days", "undelivered", "schedule_troubles",
      "workflow", "batch_status",
      "wait", "logs", "checkpoint",
      "next_runs", "next_runs_of", "schedule_history", "too_often", "setting", "seconds", "version", "serves_from", "room", "silent_workers", "ready_queues", "is_paused", "drain_state", "select_jobs", "history", "upkeep"]}'::jsonb;
  v_role text;
  v_names jsonb;
  v_function regprocedure;
begin
  revoke all on all tables in schema bridge from public;
  revoke all on all routines in schema bridge from public;
  for v_role, v_names in select r.key, r.value from jsonb_each(v_rights) r loop
    continue when not exists (select from pg_catalog.pg_roles r where r.rolname = v_role);
    execute format('grant usage on schema bridge to %I', v_role);
    for v_function in
      select p.oid::regprocedure from pg_catalog.pg_proc p where p.pronamespace = 'bridge'::regnamespace and v_names ? p.proname::text
    loop
      execute format('grant execute on routine %s to %I', v_function, v_role);
    end loop;
    if v_role <> 'bridge_producer' then
      execute format('grant select on bridge.jobs, bridge.failed_jobs, bridge.dead_jobs, bridge.stuck_jobs, bridge.job_queue_stats, bridge.attempts, '
        'bridge.workers, bridge.drainers, bridge.schedules, bridge.schedule_runs, bridge.schedule_stats, bridge.slow_schedules, bridge.too_often_schedules, '
        'bridge.setting, '
        'bridge.tick_state, bridge.job, bridge.ready, bridge.inflight, bridge.queue, bridge.worker, bridge.silent_worker, '
        'bridge.batches, bridge.cron_runs, bridge.alerts, bridge.alert_rules, bridge.metric_snapshot, bridge.job_rate_per_minute, bridge.job_stats_hourly, '
        'bridge.unreported_jobs, bridge.callbacks, bridge.deliveries, bridge.paused, bridge.pauses, bridge.breakers, bridge.breaker_changes, '
        'bridge.limits, bridge.limit_keys, bridge.retentions, bridge.cleanups, '
        'bridge.live_jobs, bridge.job_note, bridge.retry_policies to %I', v_role);
    end if;
    if v_role = 'bridge_operator' then
      execute format('grant update (value, changed_at) on bridge.setting to %I', v_role);
      execute format('grant select, update (cron, timezone, task, args, kwargs, queue, priority, max_attempts, backoff, timeout, expires, headers, '
        'jitter, starts_at, ends_at, overlap, missed, missed_within, enabled, expected_duration, function, webhook) on bridge.schedule to %I', v_role);
    end if;
  end loop;
end
$$;

select bridge.grant_all();
