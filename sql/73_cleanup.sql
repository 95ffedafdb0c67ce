-- Cleaning up: everything whose time is over goes, in steps that are each a short transaction of its own, noted in cleanup_log with counts.
--
-- A cleanup begins by writing down what is to do, one row a table. Each step takes the first row that is open and works off a batch; the
-- row says how far it is. So it does not matter who makes the next step (pg_cron's loop, a drainer's tick, a person), nor who died on the
-- way.

select bridge.clean_table('worker', 'seen_at', 'retention', 'not exists (select from bridge.inflight i where i.worker = v.id)');
select bridge.clean_table('drainer', 'seen_at', 'retention');
select bridge.clean_table('silent_worker', 'seen_at', 'retention');
select bridge.clean_table('waiter', 'registered_at', '86400');
select bridge.clean_table('revoked', 'revoked_at', 'revoke_memory');
select bridge.clean_table('revoked_stamp', 'revoked_at', 'revoke_memory');
select bridge.clean_table('result', 'expires_at', null);
select bridge.clean_table('saved_group', 'expires_at', null);
select bridge.clean_table('link', 'made_at', 'retention', 'not exists (select from bridge.job j where j.id = v.below)');
select bridge.clean_table('batch', 'ended_at', 'retention', 'not exists (select from bridge.job j where j.batch = v.id)');
select bridge.clean_table('job_note', 'at', 'retention',
  'not exists (select from bridge.job j where j.id = v.id) and not exists (select from bridge.finished f where f.id = v.id)');
select bridge.clean_table('checkpoint', 'saved_at', 'retention',
  'not exists (select from bridge.job j where j.id = v.id) and not exists (select from bridge.dead_jobs d where d.id = v.id)');
select bridge.clean_table('dependency', '-', 'retention', p_function => 'forget_parents');
select bridge.clean_table('schedule_run', 'created_at', 'log_retention', p_function => 'forget_runs');
select bridge.clean_table('breaker_change', 'at', 'log_retention');
select bridge.clean_table('cleanup_log', 'touched_at', 'log_retention', 'v.ended_at is not null');

create or replace function bridge.plan_jobs(p_now timestamptz, p_since timestamptz) returns table (table_name text, todo jsonb) language sql stable
  set search_path = pg_catalog, pg_temp
  -- The partitions of ended jobs out of which rows are to be deleted: days in which a rule's time has come for rows since the last cleanup;
  -- what was put aside; and, for the archive, days that are over.
  --
  --   p_since  until when the last cleanup has done it by the same rules; null: nobody has
  begin atomic
    with plan as (
      select d.*, d.upper <= date_trunc('day', p_now - bridge.seconds('retention'), 'utc') as over from bridge.days_of('finished') d
    )
    select p.name, jsonb_build_object('parent', 'finished', 'condition', format('v.finished_at < (%s)'
        ' and not (v.chord is not null and exists (select from bridge.chord c where c.id = v.chord))'
        ' and not (v.batch is not null and exists (select from bridge.batch b where b.id = v.batch and b.ended_at is null))', bridge.since_of(p_now, true)),
      'early', true)
    from plan p where not p.kept and not p.over and exists (select from bridge.cutoffs(p_now) c
      where c.by_rule and c.since > p.lower and coalesce(c.since - (p_now - p_since) < p.upper, true))
    union all
    select p.name, jsonb_build_object('parent', 'finished', 'condition', format('not (%s)', bridge.outliving('finished', p_now)))
    from plan p where p.kept or (p.over and (select a.relation from bridge.archive a) is not null)
    union all
    select d.name, jsonb_build_object('parent', 'attempt', 'condition', format('not %s', bridge.outliving('attempt', p_now)))
    from bridge.days_of('attempt') d where d.kept;
  end;

create or replace function bridge.plan_tables(p_now timestamptz) returns table (table_name text, todo jsonb) language sql stable set search_path = pg_catalog, pg_temp
  -- The tables of which old rows go, see bridge.clean_table.
  begin atomic
    select t.name, case when t.by_function is not null then jsonb_build_object('function', t.by_function, 'before', k.before) else
      jsonb_build_object('condition', format('v.%I < to_timestamp(%s)', t.timed, extract(epoch from k.before)) || coalesce(' and (' || t.condition || ')', ''))
      end
    from bridge.cleaned_table t, lateral (select case when t.setting ~ '^\d+$' then p_now - make_interval(secs => t.setting::double precision)
      when t.setting is not null then p_now - bridge.seconds(t.setting) else p_now end) k (before)
    where to_regclass('bridge.' || quote_ident(t.name)) is not null
    order by t.name;
  end;

create or replace function bridge.plan_days(p_now timestamptz) returns table (table_name text, todo jsonb) language sql stable set search_path = pg_catalog, pg_temp
  -- The days that are over, and tables of rows that were put aside, which may be empty by now.
  begin atomic
    select d.name, jsonb_build_object('parent', h.name, 'timed', h.timed, 'name', d.name, 'lower', d.lower, 'upper', d.upper,
      'tuples', case when h.name <> 'finished' or (select a.relation from bridge.archive a) is null then d.tuples else 0 end,  -- else deleted by then
      'phase', case when d.kept then 'empty' else 'look' end, 'condition', case when d.kept then 'true' else bridge.outliving(h.name, p_now, d.upper) end,
      -- where no index finds those that outlive the day, any job of it will do
      'jobs', (select case when bool_and(c.dead or c.since >= d.upper) then bridge.outliving('finished', p_now, d.upper) else 'true' end from bridge.cutoffs(p_now) c))
    from bridge.history_tables() h cross join lateral bridge.days_of(h.name) d
    where d.kept or d.upper <= date_trunc('day', p_now - bridge.seconds('retention'), 'utc')
    order by h.name, d.upper;
  end;

create or replace function bridge.plan_cron(p_now timestamptz) returns table (table_name text, todo jsonb, detail text) language sql stable
  set search_path = pg_catalog, pg_temp
  -- pg_cron's log, which it never cleans itself: of our entries, or of all. Without the right to, what to grant.
  begin atomic
    select 'cron.job_run_details', jsonb_build_object('foreign', true, 'condition', format('coalesce(v.end_time, v.start_time) < to_timestamp(%s)',
        extract(epoch from p_now - bridge.seconds('cron_retention'))) || case when bridge.setting('cron_clean_all') = 1 then '' else
        ' and v.jobid in (select j.jobid from cron.job j where j.jobname = any (bridge.cron_names()))' end),
      case when not has_schema_privilege(to_regnamespace('cron'), 'usage') then format('this needs: grant usage on schema cron to %I', current_user)
        when not (has_table_privilege(to_regclass('cron.job_run_details'), 'select, delete') and has_table_privilege(to_regclass('cron.job'), 'select'))
        then format('this needs: grant select, delete on cron.job_run_details to %I; grant select on cron.job to %1$I', current_user) end
    where exists (select from pg_catalog.pg_extension e where e.extname = 'pg_cron');
  end;

create or replace function bridge.plan_cleanup(p_now timestamptz, p_since timestamptz) returns table (operation text, table_name text, todo jsonb, detail text)
  language sql stable set search_path = pg_catalog, pg_temp
  -- All that a cleanup has to do, in its order. Days come last: who calls it in one transaction holds everybody off from then on.
  begin atomic
    select * from (
      select 'delete', j.table_name, j.todo, null::text from bridge.plan_jobs(p_now, p_since) j
      union all select case when t.todo ? 'function' then 'clean' else 'delete' end, t.table_name, t.todo, null from bridge.plan_tables(p_now) t
      union all select 'delete', c.table_name, c.todo, c.detail from bridge.plan_cron(p_now) c
      union all select 'drop', d.table_name, d.todo, null from bridge.plan_days(p_now) d) p;
  end;

create or replace function bridge.rules_mark() returns text language sql stable set search_path = pg_catalog, pg_temp
  -- What changes when another rule or setting of retention does.
  return (select md5(string_agg(r::text, ' ' order by r.queue, r.status)) from (select r.queue, r.status, r.keep from bridge.retentions r) r);

create or replace function bridge.begin_cleanup(p_by text, p_now timestamptz default clock_timestamp()) returns bigint language plpgsql
  security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Write down what is to do. Where a cleanup is under way, that one is meant; one that has stood still for ten minutes is over.
  --
  --   p_by  who cleans up, for the log
  --
  -- Returns  its number; null when somebody else is at this moment at it
  -- Locks    an advisory lock, tried and never waited for
  -- Errors   JB001 the moment is not now, and the caller is not who may let time pass
declare
  v_last bridge.cleanup_log;
  v_since timestamptz;
  v_left text;
  v_id bigint;
begin
  perform bridge.check_now(p_now);
  if not pg_try_advisory_xact_lock(hashtextextended('bridge.cleanup', 0)) then
    return null;
  end if;
  select l.* into v_last from bridge.cleanup_log l where l.operation = 'cleanup' order by l.id desc limit 1;
  if v_last.status = 'running' and v_last.touched_at > clock_timestamp() - interval '10 minutes' then
    return v_last.id;
  end if;
  update bridge.cleanup_log l set status = 'interrupted', ended_at = clock_timestamp(), todo = null where l.status in ('waiting', 'running');
  for v_left in select c.relname from pg_catalog.pg_class c where c.relnamespace = 'bridge'::regnamespace and c.relname ~ '_kept_\d{8}$'
    and c.relkind = 'r' and not c.relispartition loop
    execute format('drop table bridge.%I', v_left);
  end loop;
  select case when l.todo->>'rules' = bridge.rules_mark() then (l.todo->>'now')::timestamptz end into v_since
  from bridge.cleanup_log l where l.operation = 'cleanup' and l.status = 'done' order by l.id desc limit 1;
  insert into bridge.cleanup_log (by, operation, began_at, touched_at, status, todo)
  values (p_by, 'cleanup', clock_timestamp(), clock_timestamp(), 'running', jsonb_build_object('now', p_now, 'rules', bridge.rules_mark())) returning id into v_id;
  insert into bridge.cleanup_log (cleanup, by, operation, table_name, began_at, touched_at, ended_at, status, todo, detail)
  select v_id, p_by, p.operation, p.table_name, clock_timestamp(), clock_timestamp(), case when p.detail is not null then clock_timestamp() end,
    case when p.detail is not null then 'left' else 'waiting' end, p.todo, p.detail from bridge.plan_cleanup(p_now, v_since) p;
  return v_id;
end
$$;

create or replace function bridge.work_off(p_row bridge.cleanup_log, p_limit integer) returns bridge.cleanup_log language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- The next batch of one table. Returns the row as it is then; its todo is null when the table is done.
declare
  v_row bridge.cleanup_log := p_row;
  v_table constant text := case when v_row.todo ? 'foreign' then v_row.table_name else format('bridge.%I', v_row.table_name) end;
  v_batch record;
  v_count integer;
  v_stays boolean;
begin
  if v_row.operation = 'delete' then
    select b.* into v_batch from bridge.delete_batch(v_table, v_row.todo->>'condition', coalesce(v_row.todo->>'after', '(0,0)')::tid, p_limit,
      case v_row.todo->>'parent' when 'finished' then bridge.open_archive() end, v_row.todo ? 'early', not v_row.todo ? 'foreign') b;
    v_row.found := v_row.found + v_batch.deleted;
    v_row.deleted := v_row.deleted + v_batch.deleted;
    v_row.archived := v_row.archived + v_batch.archived;
    v_row.todo := case when v_batch.after is not null then v_row.todo || jsonb_build_object('after', v_batch.after) end;
  elsif v_row.operation = 'clean' then
    execute format('select bridge.%I(%L, false, %s)', v_row.todo->>'function', v_row.todo->>'before', p_limit) into v_count;
    v_row.found := v_row.found + v_count;
    v_row.deleted := v_row.deleted + v_count;
    v_row.todo := case when v_count >= p_limit then v_row.todo end;
  elsif v_row.todo->>'phase' = 'look' then
    select l.* into v_batch from bridge.look_into(v_row.todo) l;
    v_row.todo := case when v_batch.after is not null then v_row.todo || jsonb_build_object('after', v_batch.after, 'stays', v_batch.stays)
      when v_batch.stays then bridge.begin_aside(v_row.todo) else v_row.todo || '{"phase": "swap"}' end;
  elsif v_row.todo->>'phase' = 'empty' then
    execute format('select exists (select from bridge.%I) or exists (select from bridge.finished v where v.finished_at >= %L and v.finished_at < %L)',
      v_row.table_name, v_row.todo->>'lower', v_row.todo->>'upper') into v_stays;
    v_row.todo := case when not v_stays then v_row.todo || '{"phase": "swap"}' end;
  elsif v_row.todo->>'phase' = 'copy' then
    select c.* into v_batch from bridge.copy_aside(v_row.todo, p_limit) c;
    v_row.kept := v_row.kept + case when (v_row.todo->'sources'->>(v_row.todo->>'source')::integer) = v_row.table_name then v_batch.copied else 0 end;
    v_row.todo := v_batch.todo;
  else
    v_row.archived := bridge.swap_day(v_row.todo);
    v_row.found := greatest((v_row.todo->>'tuples')::bigint, v_row.kept);
    v_row.deleted := v_row.found - v_row.kept;
    v_row.detail := 'dropped';
    v_row.todo := null;
  end if;
  return v_row;
end
$$;

create or replace function bridge.end_cleanup(p_id bigint) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Add up a cleanup that has nothing left to do. Tables in which nothing was found are not told of.
begin
  delete from bridge.cleanup_log l where l.cleanup = p_id and l.status = 'done' and l.found = 0 and l.detail is null;
  update bridge.cleanup_log c set ended_at = clock_timestamp(), touched_at = clock_timestamp(), found = s.found, deleted = s.deleted, kept = s.kept,
    archived = s.archived, status = case when s.failed > 0 then 'failed' else 'done' end,
    detail = case when s.failed > 0 then format('%s of the steps failed', s.failed) end
  from (select coalesce(sum(l.found), 0) as found, coalesce(sum(l.deleted), 0) as deleted, coalesce(sum(l.kept), 0) as kept,
      coalesce(sum(l.archived), 0) as archived, count(*) filter (where l.status = 'failed') as failed from bridge.cleanup_log l where l.cleanup = p_id) s
  where c.id = p_id;
end
$$;

create or replace function bridge.cleanup_step(p_limit integer default 2000) returns boolean language plpgsql security definer
  set search_path = pg_catalog, pg_temp set jit = off set lock_timeout = '500ms' as $$
  -- The next batch of the cleanup that is under way: short, safe to repeat, and to break off anywhere.
  --
  --   p_limit  most rows
  --
  -- Returns  whether something is left to do; null when somebody else is at this moment at it
  -- Locks    an advisory lock, tried and never waited for; rows it deletes; a table whose day is dropped. Waits for any of them half a
  --          second at most, and leaves what that table has to the next cleanup
  -- Index    cleanup_log_whole, cleanup_log_open
declare
  v_whole bridge.cleanup_log;
  v_row bridge.cleanup_log;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('bridge.cleanup', 0)) then
    return null;
  end if;
  select l.* into v_whole from bridge.cleanup_log l where l.operation = 'cleanup' order by l.id desc limit 1;
  select l.* into v_row from bridge.cleanup_log l where l.cleanup = v_whole.id and l.status in ('waiting', 'running') and l.operation <> 'cleanup'
  order by l.id limit 1;
  if v_whole.status is distinct from 'running' then
    return false;
  elsif v_row.id is null then
    perform bridge.end_cleanup(v_whole.id);
    return false;
  end if;
  begin
    v_row := bridge.work_off(v_row, p_limit);
    v_row.status := case when v_row.todo is null then 'done' else 'running' end;
  exception
    when lock_not_available then  -- somebody uses the table: its other days would have to wait as well
      update bridge.cleanup_log l set status = 'left', ended_at = clock_timestamp(), detail = 'somebody uses the table: the next cleanup takes it', todo = null
      where l.cleanup = v_whole.id and l.status in ('waiting', 'running')
        and (l.id = v_row.id or (l.operation = 'drop' and l.todo->>'parent' = v_row.todo->>'parent'));
      return true;
    when others then
      v_row.status := 'failed';
      v_row.detail := format('%s: %s', sqlstate, sqlerrm);
      v_row.todo := null;
  end;
  update bridge.cleanup_log l set found = v_row.found, deleted = v_row.deleted, kept = v_row.kept, archived = v_row.archived, status = v_row.status,
    detail = v_row.detail, todo = v_row.todo, touched_at = clock_timestamp(), ended_at = case when v_row.todo is null then clock_timestamp() end,
    began_at = case when l.status = 'waiting' then clock_timestamp() else l.began_at end
  where l.id = v_row.id;
  update bridge.cleanup_log l set touched_at = clock_timestamp() where l.id = v_whole.id;
  return true;
end
$$;

create or replace function bridge.preview_cleanup(p_now timestamptz)
  returns table (operation text, table_name text, status text, found bigint, deleted bigint, kept bigint, archived bigint, detail text)
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- What a cleanup would find, a row for each table with something; nothing is changed. It reads the tables whole.
declare
  v_plan record;
  v_found bigint;
  v_kept bigint;
begin
  for v_plan in select p.* from bridge.plan_cleanup(p_now, null) p loop
    v_found := 0;
    v_kept := 0;
    if v_plan.detail is not null then
      v_found := null;
    elsif v_plan.operation = 'delete' then
      execute format('select count(*) from %s v where %s', case when v_plan.todo ? 'foreign' then v_plan.table_name
        else format('bridge.%I', v_plan.table_name) end, v_plan.todo->>'condition') into v_found;
    elsif v_plan.operation = 'clean' then
      execute format('select bridge.%I(%L, true, 100000)', v_plan.todo->>'function', v_plan.todo->>'before') into v_found;
    elsif v_plan.todo->>'phase' = 'look' then
      execute format('select count(*) from bridge.%I v where %s', v_plan.table_name, v_plan.todo->>'condition') into v_kept;
      v_found := greatest((v_plan.todo->>'tuples')::bigint, v_kept);
    end if;
    continue when v_found = 0 and v_plan.todo->>'phase' is distinct from 'look';
    return query select v_plan.operation, v_plan.table_name, case when v_plan.detail is null then 'planned' else 'left' end, coalesce(v_found, 0), 0::bigint,
      v_kept, 0::bigint, v_plan.detail;
  end loop;
end
$$;

create or replace function bridge.cleanup(dry_run boolean default false, p_now timestamptz default clock_timestamp(), by text default null)
  returns table (operation text, table_name text, status text, found bigint, deleted bigint, kept bigint, archived bigint, detail text)
  language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Take away all whose time is over, in the caller's transaction: at most 1000 batches, the next call or tick does the rest. Where there is
  -- much, "call bridge.cleanup_loop()" is better, which commits after each batch.
  --
  --   dry_run  say what would go, change nothing
  --   by       who does it, for the log; the role of the session where nobody is named
  --
  -- Returns  a row for each table in which something was found; of days that are dropped, "found" is as statistics have it
  -- Locks    tables whose days are dropped, until the transaction ends
declare
  v_id bigint;
  v_batches integer := 0;
begin
  if cleanup.dry_run then
    return query select * from bridge.preview_cleanup(cleanup.p_now);
    return;
  end if;
  v_id := bridge.begin_cleanup(coalesce(cleanup.by, session_user), cleanup.p_now);
  while v_batches < 1000 and bridge.cleanup_step() loop
    v_batches := v_batches + 1;
  end loop;
  return query select l.operation, l.table_name, l.status, l.found, l.deleted, l.kept, l.archived, l.detail
    from bridge.cleanup_log l where l.cleanup = v_id order by l.id;
end
$$;

create or replace procedure bridge.cleanup_loop(p_by text default 'pg_cron', p_limit integer default 2000) language plpgsql as $$
  -- Take away all whose time is over, and commit after each batch. Of two at once, the second leaves it to the first.
declare
  -- A procedure that commits can carry no SET clause: every name here is qualified.
  v_more boolean := bridge.begin_cleanup(p_by) is not null;
begin
  while v_more loop
    commit;
    v_more := bridge.cleanup_step(p_limit);
  end loop;
end
$$;

create or replace function bridge.cleanup_if_late(p_by text, p_now timestamptz default clock_timestamp()) returns boolean language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- What a tick does: a batch of the cleanup that is under way; begin one where there has been none for the setting cleanup_every.
  --
  -- Returns  whether there is more to do
  -- Index    cleanup_log_whole
declare
  v_every constant interval := bridge.seconds('cleanup_every');
  v_last bridge.cleanup_log;
begin
  select l.* into v_last from bridge.cleanup_log l where l.operation = 'cleanup' order by l.id desc limit 1;
  if v_every = interval '0' or (v_last.status <> 'running' and v_last.began_at > p_now - v_every) then
    return false;
  elsif v_last.status is distinct from 'running' or v_last.touched_at < p_now - interval '10 minutes' then
    return bridge.begin_cleanup(p_by) is not null;
  end if;
  return bridge.cleanup_step();
exception when query_canceled then  -- by the time limit of a drainer's statements: the tick goes on, and does not come to this again
  update bridge.cleanup_log l set status = 'failed', ended_at = clock_timestamp(), detail = format('%s: %s', sqlstate, sqlerrm), todo = null
  where l.id = (select min(o.id) from bridge.cleanup_log o where o.cleanup = v_last.id and o.status in ('waiting', 'running') and o.operation <> 'cleanup');
  return true;
end
$$;

-- The log of cleanups, for people: the whole and its tables.
select bridge.define_view('cleanups', $view$
  select l.id, l.cleanup, l.began_at as at, l.by, l.operation, l.table_name, l.status, l.found, l.deleted, l.kept, l.archived,
    coalesce(l.ended_at, l.touched_at) - l.began_at as duration, l.detail, l.ended_at, l.todo - 'condition' - 'jobs' as progress
  from bridge.cleanup_log l
$view$);
