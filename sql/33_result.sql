-- Results as Celery's result backend stores and reads them. A job's own outcome comes with the end of its run (31_run.sql); here is what
-- is said of an id from elsewhere, and the one question behind AsyncResult.

create or replace function bridge.store_result(p_id uuid, p_task_id text, p_state text, p_result json default null, p_error json default null,
    p_outcome jsonb default null, p_expires interval default null)
  returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Note a state of a task id that does not come from the run of its job.
  --
  --   p_state    Celery's word (SUCCESS, FAILURE, RETRY …), or one of the user's own
  --   p_result   the plain value; p_error and p_outcome as in bridge.fail and bridge.finish
  --   p_expires  for how long it is kept; null for ever
  --
  -- Returns  false when the id has succeeded already: that is never written over
begin
  if p_id is null or p_task_id is null or p_state is null then
    perform bridge.refuse(format('%s of a result is null', case when p_id is null then 'p_id' when p_task_id is null then 'p_task_id' else 'p_state' end),
      'give the id of a task, as uuid and as text, and its state');
  end if;
  if exists (select from bridge.finished f where f.id = p_id and f.status = 'succeeded' and not coalesce(f.outcome ? 'forgotten', false)) then
    return false;
  end if;
  insert into bridge.result as r (id, task_id, state, result, error, outcome, stored_at, expires_at)
  values (p_id, p_task_id, p_state, p_result, p_error, p_outcome, clock_timestamp(), clock_timestamp() + p_expires)
  on conflict (id) do update set state = excluded.state, result = excluded.result, error = excluded.error, outcome = excluded.outcome,
    stored_at = excluded.stored_at, expires_at = excluded.expires_at
  where r.state <> 'SUCCESS' or r.expires_at < excluded.stored_at;
  if not found then
    return false;
  end if;
  if exists (select from bridge.waiter w where w.id = p_id) then
    perform pg_notify('bridge_done', p_id::text);
  end if;
  return true;
end
$$;

create or replace function bridge.results(p_ids uuid[], p_arguments boolean default false, p_keeping interval default null)
  returns table (id uuid, task_id text, status text, state text, result text, error text, outcome text, progress text, task text, queue text,
    worker text, pid integer, attempts integer, headers text, args text, kwargs text, payload bytea, content_type text, content_encoding text,
    done_at timestamptz)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- What is known of task ids: one row for each that is known at all, by one statement, so that a job that moves is seen in one place.
  --
  --   p_arguments  also args, kwargs and payload, which may be large
  --   p_keeping    how long results of ended jobs count; null for as long as their rows are there. A forgotten one does not count.
  --
  -- Of a job and a result stored beside it, the one that changed last counts: then status is null, and state says it.
  --
  -- Returns  JSON as text, because Celery's JSON is wider than Postgres's readers
begin
  return query
  with found as materialized (
    select j.id, j.task_id, case when i.state = 'running' then 'running' when s.seq is not null then 'scheduled' else 'queued' end as status,
      null::json as result, j.error, null::jsonb as outcome, i.progress, j.task, j.queue, i.worker, i.pid,
      j.attempts + (i.run is not null)::integer as attempts, j.headers, case when p_arguments then j.args end as args,
      case when p_arguments then j.kwargs end as kwargs, case when p_arguments then j.payload end as payload, j.content_type, j.content_encoding,
      greatest(j.updated_at, i.started_at) as changed_at, null::timestamptz as done_at
    from bridge.job j
    left join lateral (select o.* from bridge.inflight o where o.seq = j.seq offset 0) i on true
    left join lateral (select o.seq from bridge.scheduled o where o.seq = j.seq offset 0) s on true
    where j.id = any (p_ids)
    union all
    select f.id, f.task_id, f.status, f.result, f.error, f.outcome, f.progress, f.task, f.queue, f.worker, null, f.attempts::integer, f.headers,
      case when p_arguments then f.args end, case when p_arguments then f.kwargs end, case when p_arguments then f.payload end, f.content_type,
      f.content_encoding, f.finished_at, f.finished_at
    from bridge.finished f
    where f.id = any (p_ids) and not coalesce(f.outcome ? 'forgotten', false) and coalesce(f.finished_at > clock_timestamp() - p_keeping, true)
  )
  select w.id, coalesce(f.task_id, r.task_id, w.id::text), case when r.id is null then f.status end, r.state,
    (case when r.id is null then f.result else r.result end)::text, (case when r.id is null then f.error else r.error end)::text,
    (case when r.id is null then f.outcome else r.outcome end)::text, case when r.id is null then f.progress::text end, f.task, f.queue, k.name,
    f.pid, f.attempts, f.headers::text, f.args::text, f.kwargs::text, f.payload, f.content_type, f.content_encoding,
    case when r.id is null then f.done_at else r.stored_at end
  from unnest(p_ids) w (id)
  left join found f on f.id = w.id
  left join bridge.result r on r.id = w.id and r.stored_at > coalesce(f.changed_at, '-infinity')
    and coalesce(r.expires_at > clock_timestamp(), true)
  left join bridge.worker k on k.id = f.worker
  where f.id is not null or r.id is not null;
end
$$;

create or replace function bridge.forget(p_id uuid) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Forget the result of a task id, as Celery's forget means it. A finished job's row stays, with its status and error, for people to see. A part
  -- that its chord still waits for is kept.
  --
  -- Returns  whether there was something to forget
declare
  v_stored integer;
  v_ended integer;
begin
  delete from bridge.result r where r.id = p_id;
  get diagnostics v_stored = row_count;
  update bridge.finished f set result = null, outcome = '{"forgotten": true}'
  where f.id = p_id and not exists (select from bridge.chord c where c.id = f.chord);
  get diagnostics v_ended = row_count;
  return v_stored + v_ended > 0;
end
$$;

create or replace function bridge.save_group(p_id uuid, p_members json, p_expires interval default null) returns void language sql
  security definer set search_path = pg_catalog, pg_temp
  -- Keep the members of a group, for whoever restores it by its id.
  begin atomic
    insert into bridge.saved_group (id, members, expires_at) values (p_id, p_members, clock_timestamp() + p_expires)
    on conflict (id) do update set members = excluded.members, expires_at = excluded.expires_at;
  end;

create or replace function bridge.restore_group(p_id uuid) returns text language sql stable security definer set search_path = pg_catalog, pg_temp
  -- The members of a saved group; null when nobody saved it, or its time is over.
  return (select g.members::text from bridge.saved_group g where g.id = p_id and coalesce(g.expires_at > clock_timestamp(), true));

create or replace function bridge.delete_group(p_id uuid) returns void language sql security definer set search_path = pg_catalog, pg_temp
  -- Forget a saved group; its members stay.
  begin atomic
    delete from bridge.saved_group where id = p_id;
  end;

create or replace function bridge.clean_results(p_now timestamptz default clock_timestamp(), p_limit integer default 10000) returns integer
  language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Delete stored results and saved groups whose time is over, oldest first. Results of jobs go with their day.
  --
  -- Returns  how many
  -- Locks    what nobody has in hand (skip locked)
declare
  v_results integer;
  v_groups integer;
begin
  delete from bridge.result r where r.id = any (array (
    select o.id from bridge.result o where o.expires_at < p_now order by o.expires_at limit p_limit for update skip locked));
  get diagnostics v_results = row_count;
  delete from bridge.saved_group g where g.id = any (array (
    select o.id from bridge.saved_group o where o.expires_at < p_now order by o.expires_at limit p_limit for update skip locked));
  get diagnostics v_groups = row_count;
  return v_results + v_groups;
end
$$;
