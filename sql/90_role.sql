-- Who may do what. Roles belong to the cluster and outlive a database: existing ones are accepted. Where the installing role may not
-- create roles, everything stays with the owner and the warning says so.

do $$
declare
  v_role text;
begin
  foreach v_role in array array['bridge_producer', 'bridge_worker', 'bridge_operator', 'bridge_viewer', 'bridge_tenant'] loop
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

create or replace function bridge.granted() returns text language sql immutable set search_path = pg_catalog, pg_temp
  -- Which role may what: a line an object, in the order of the alphabet. What has no line is the owner's alone.
  --
  --   function  execute all functions of this name; producer, worker … are the roles bridge_producer, bridge_worker …; a tenant has its
  --             rights while tenants are on
  --   read      select from this table or view
  --   update    update these columns; a table(column) a line
  --
  -- docs/security.md has the same as a table: after a change, python scripts/table_of_roles.py --write.
  return $list$
function  acknowledge_alert       operator
function  add_dependency          worker operator
function  alert_kinds             operator viewer
function  allow_task              operator
function  alone                   worker operator
function  archive_columns         operator
function  batch_status            worker operator viewer
function  begin_call              worker operator
function  begin_chord             producer worker
function  begin_cleanup           operator
function  bundles                 worker operator viewer
function  calls_to_stop           worker operator
function  calls_wait              worker operator
function  cancel                  operator tenant
function  cancel_batch            operator
function  cancel_jobs             operator
function  check_alerts            operator
function  checkpoint              worker operator viewer
function  claim                   worker
function  clean_results           producer worker
function  cleanup                 operator
function  cleanup_loop            operator
function  cleanup_step            operator
function  collect_metrics         operator
function  complete                worker operator
function  complete_run            worker
function  create_archive          operator
function  create_batch            producer worker operator
function  cron_lacks              worker operator viewer
function  cron_name               worker operator viewer
function  cron_names              worker operator viewer
function  crowd                   worker
function  delete_group            producer worker
function  disallow_task           operator
function  discard                 operator
function  discard_jobs            operator
function  drain_state             operator viewer
function  end_delivery            worker
function  end_part                worker
function  enqueue                 producer worker operator tenant
function  enqueue_buffered        producer worker operator
function  enqueue_flow            producer worker operator tenant
function  enqueue_many            producer worker operator tenant
function  enqueue_message         producer worker
function  enqueue_page            producer worker operator
function  fail                    worker
function  fate_of_run             worker
function  finish                  worker
function  finish_many             worker
function  floor_of                worker operator viewer
function  forget                  producer worker
function  forget_waiter           producer worker operator
function  grow_chord              worker
function  health                  operator viewer
function  heed_revoke             worker
function  history                 worker operator viewer tenant
function  hold_run                worker
function  is_chord_complete       worker
function  is_paused               worker operator viewer
function  keep_untold             worker
function  latest_cron_runs        worker operator viewer
function  log                     worker operator
function  logs                    worker operator viewer tenant
function  lose                    worker
function  made_within             producer worker operator
function  make_days               worker
function  mark_missing            worker
function  mark_published          worker
function  mark_replaced           worker
function  may_look                worker
function  metric_catalog          worker operator viewer
function  metric_growth           worker operator viewer
function  metric_rate             operator viewer
function  metrics                 worker operator viewer
function  missing_days            worker operator viewer
function  move                    operator
function  move_jobs               operator
function  never_ran               worker
function  next_look               worker
function  next_runs               producer worker operator viewer tenant
function  next_runs_of            producer worker operator viewer
function  note                    worker
function  note_refused            worker
function  note_silent             worker
function  pause                   operator
function  pause_schedule          operator
function  perform_call            worker operator
function  progress                worker operator
function  purge                   worker operator
function  raise_floors            worker
function  ready_heads             worker operator viewer
function  ready_queues            worker operator viewer
function  redrive                 operator
function  redrive_jobs            operator
function  release                 worker
function  remove_alert            operator
function  remove_breaker          operator
function  remove_callback         operator
function  remove_limit            operator
function  remove_retention        operator
function  remove_retry            operator
function  report_drainer          worker
function  report_worker           worker
function  republish               worker
function  reschedule              operator
function  reschedule_jobs         operator
function  reset_breaker           operator
function  resolve_alert           operator
function  restore_group           producer worker
function  results                 producer worker
function  resume                  operator
function  resume_schedule         operator
function  retry                   operator tenant
function  retry_failed            operator
function  retry_run               worker
function  revoke                  producer worker operator
function  revoke_stamped          producer worker operator
function  rights                  worker operator viewer
function  room                    worker operator viewer
function  run_calls               worker operator
function  run_schedule            operator
function  save_checkpoint         worker operator
function  save_group              producer worker
function  schedule                operator
function  schedule_history        worker operator viewer
function  schedule_troubles       worker operator viewer
function  seal_batch              producer worker operator
function  seconds                 worker operator viewer
function  secret                  worker
function  select_jobs             operator viewer
function  serves_from             producer worker operator viewer tenant
function  set_alert               operator
function  set_archive             operator
function  set_aside               worker
function  set_breaker             operator
function  set_bundle              operator
function  set_channel             operator
function  set_limit               operator
function  set_notifier            operator
function  set_priority            operator
function  set_priority_jobs       operator
function  set_retention           operator
function  set_retry               operator
function  set_webhook             operator
function  set_window              operator
function  setting                 worker operator viewer
function  settle_unreported       operator
function  silent_workers          worker operator viewer
function  size_chord              producer worker
function  start                   worker
function  start_many              worker
function  step_aside              worker
function  stop_calls              worker operator
function  stop_worker             worker
function  store_result            producer worker
function  stuck_in_flight         worker operator viewer
function  suspects                worker
function  sweep                   worker operator
function  take_chord              worker
function  tenant                  producer worker operator viewer tenant
function  test_alert              operator
function  tick                    worker operator
function  tick_if_late            worker
function  told                    worker
function  too_often               worker operator viewer
function  try_callback            operator
function  unbundle                worker
function  unbundled               worker operator viewer
function  unclaim                 worker
function  undelivered             worker operator viewer
function  unschedule              operator
function  upkeep                  operator viewer
function  version                 producer worker operator viewer tenant
function  wait                    worker operator viewer tenant
function  wait_for                producer worker operator
function  was_completed           worker
function  watch_alerts            worker
function  workflow                worker operator viewer

read  alert_rules                 worker operator viewer
read  alerts                      worker operator viewer
read  attempts                    worker operator viewer
read  batches                     worker operator viewer
read  breaker_changes             worker operator viewer
read  breakers                    worker operator viewer
read  callbacks                   worker operator viewer
read  cleanups                    worker operator viewer
read  cron_runs                   worker operator viewer
read  dead_jobs                   worker operator viewer
read  deliveries                  worker operator viewer
read  drainers                    worker operator viewer
read  failed_jobs                 worker operator viewer
read  floor                       worker operator viewer
read  inflight                    worker operator viewer
read  job                         worker operator viewer
read  job_note                    worker operator viewer
read  job_queue_stats             worker operator viewer
read  job_rate_per_minute         worker operator viewer
read  job_stats_hourly            worker operator viewer
read  jobs                        worker operator viewer
read  limit_keys                  worker operator viewer
read  limits                      worker operator viewer
read  live_jobs                   worker operator viewer
read  metric_snapshot             worker operator viewer
read  my_jobs                     tenant
read  paused                      worker operator viewer
read  pauses                      worker operator viewer
read  queue                       worker operator viewer
read  ready                       worker operator viewer
read  refused_messages            worker operator viewer
read  retentions                  worker operator viewer
read  retry_policies              worker operator viewer
read  schedule                    operator
read  schedule_runs               worker operator viewer
read  schedule_stats              worker operator viewer
read  schedules                   worker operator viewer
read  setting                     worker operator viewer
read  silent_worker               worker operator viewer
read  slow_schedules              worker operator viewer
read  stuck_jobs                  worker operator viewer
read  task_rules                  worker operator viewer
read  tenancy                     worker operator viewer
read  tenants                     worker operator viewer
read  tick_state                  worker operator viewer
read  too_often_schedules         worker operator viewer
read  unreported_jobs             worker operator viewer
read  worker                      worker operator viewer
read  workers                     worker operator viewer

update  schedule(args)            operator
update  schedule(backoff)         operator
update  schedule(cron)            operator
update  schedule(enabled)         operator
update  schedule(ends_at)         operator
update  schedule(expected_duration)  operator
update  schedule(expires)         operator
update  schedule(function)        operator
update  schedule(headers)         operator
update  schedule(jitter)          operator
update  schedule(kwargs)          operator
update  schedule(max_attempts)    operator
update  schedule(missed)          operator
update  schedule(missed_within)   operator
update  schedule(overlap)         operator
update  schedule(priority)        operator
update  schedule(queue)           operator
update  schedule(starts_at)       operator
update  schedule(task)            operator
update  schedule(timeout)         operator
update  schedule(timezone)        operator
update  schedule(webhook)         operator
update  setting(changed_at)       operator
update  setting(value)            operator
$list$;

create or replace function bridge.listed_rights() returns table (role text, privilege text, object text, place bigint) language sql stable
  set search_path = pg_catalog, pg_temp
  -- What bridge.granted says, in the words of bridge.rights. Roles and objects that do not exist are left out, and tenants while they are off.
  begin atomic
    with line as (
      select w.words[1] as kind, split_part(w.words[2], '(', 1) as name, rtrim(split_part(w.words[2], '(', 2), ')') as part, 'bridge_' || r.role as role,
        array_position(array['viewer', 'worker', 'operator', 'producer', 'tenant'], r.role)::bigint as place
      from (select regexp_split_to_array(btrim(l), '\s+') as words from regexp_split_to_table(bridge.granted(), '\n') l where btrim(l) <> '') w,
        unnest(w.words[3:]) r (role)
      where exists (select from pg_catalog.pg_roles g where g.rolname = 'bridge_' || r.role) and (r.role <> 'tenant' or bridge.tenants_are_on())
    )
    select distinct l.role, 'USAGE', 'schema bridge', l.place from line l
    union all
    select l.role, 'EXECUTE', 'routine ' || p.oid::regprocedure, l.place from line l
    join pg_catalog.pg_proc p on l.kind = 'function' and p.pronamespace = 'bridge'::regnamespace and p.proname = l.name
    union all
    select l.role, case l.kind when 'read' then 'SELECT' else format('UPDATE (%I)', l.part) end, 'table ' || c.oid::regclass, l.place from line l
    join pg_catalog.pg_class c on l.kind in ('read', 'update') and c.relnamespace = 'bridge'::regnamespace and c.relname = l.name;
  end;

create or replace function bridge.rights() returns table (role text, privilege text, object text, place bigint) language sql stable
  set search_path = pg_catalog, pg_temp
  -- Who may what: what our roles, and the public, have in the schema, as Postgres keeps it.
  --
  -- Returns  role: public, or one of ours; privilege and object in the words of GRANT: UPDATE (value), table bridge.setting; place: its
  --          order among the rights of the object
  begin atomic
    with acl as (
      select n.nspacl as entries, '' as columns, 'schema bridge' as object from pg_catalog.pg_namespace n where n.nspname = 'bridge'
      union all
      select coalesce(p.proacl, acldefault('f', p.proowner)), '', 'routine ' || p.oid::regprocedure
      from pg_catalog.pg_proc p where p.pronamespace = 'bridge'::regnamespace
      union all
      select c.relacl, '', case c.relkind when 'S' then 'sequence ' else 'table ' end || c.oid::regclass
      from pg_catalog.pg_class c where c.relnamespace = 'bridge'::regnamespace and c.relkind not in ('i', 'I', 'c')
      union all
      select a.attacl, format(' (%I)', a.attname), 'table ' || c.oid::regclass
      from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid
      where c.relnamespace = 'bridge'::regnamespace and a.attacl is not null
      union all  -- types of their own; the row type of a table is the table's
      select coalesce(t.typacl, acldefault('T', t.typowner)), '', 'type ' || t.oid::regtype
      from pg_catalog.pg_type t left join pg_catalog.pg_class c on c.oid = t.typrelid
      where t.typnamespace = 'bridge'::regnamespace and (t.typtype in ('d', 'e') or c.relkind = 'c')
    )
    select coalesce(g.rolname::text, 'public'), e.privilege_type || a.columns, a.object, e.place
    from acl a, aclexplode(a.entries) with ordinality e (grantor, grantee, privilege_type, is_grantable, place)
    left join pg_catalog.pg_roles g on g.oid = e.grantee
    where e.grantee = 0 or g.rolname in ('bridge_producer', 'bridge_worker', 'bridge_operator', 'bridge_viewer', 'bridge_tenant');
  end;

create or replace function bridge.grant_all() returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Make the rights in the schema those of bridge.granted: each of our roles has what it says and no more, the public nothing. What other
  -- roles were given stays.
  --
  -- Only what differs is written, so that repeating it on a live queue changes no catalog; and that anew, all roles of it in one order, so
  -- that an upgrade leaves the same as a new installation.
declare
  v_change record;
  v_right text;
begin
  for v_change in
    select coalesce(h.what, w.what) as what, h.rights as had, w.rights as wanted
    from (select r.object || coalesce(substring(r.privilege from ' \(.*'), '') as what,
        array_agg(format('%s on %s %%s %s', r.privilege, r.object, r.role) order by r.place) as rights from bridge.rights() r group by 1) h
    full join (select l.object || coalesce(substring(l.privilege from ' \(.*'), '') as what,
        array_agg(format('%s on %s %%s %s', l.privilege, l.object, l.role) order by l.place) as rights from bridge.listed_rights() l group by 1) w
      on w.what = h.what
    where h.rights is distinct from w.rights
  loop
    foreach v_right in array coalesce(v_change.had, '{}') loop
      execute format('revoke ' || v_right, 'from');
    end loop;
    foreach v_right in array coalesce(v_change.wanted, '{}') loop
      execute format('grant ' || v_right, 'to');
    end loop;
  end loop;
end
$$;

select bridge.grant_all();

-- Who installs in a longer transaction goes on with the search_path that it had.
select set_config('search_path', substring(w.path from 5), true) from (select current_setting('bridge.search_path', true)) w (path) where w.path like 'was %';
