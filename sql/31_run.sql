-- What a worker does: start, and one of finish, fail, retry or lose. Every one names the run, so that whatever has been
-- superseded writes nothing on the row.

create or replace function bridge.start(p_seq bigint, p_token uuid, p_worker uuid, p_pid integer, p_run uuid default null) returns uuid
  language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- The start fence: of all copies of a delivery, one starts.
  --
  --   p_seq, p_token  from the message
  --   p_worker        id of the worker's main process, which reports what it holds
  --   p_run           the id that the run is to have, a new one for each copy: who names it may ask again, because an answer that was lost
  --                   has perhaps been given. Null for one that is made here
  --
  -- A start is forced to disk where a second copy may exist, or its claim may not be on disk yet: a crash must not forget that it
  -- started. Elsewhere forgetting does no harm, because what ends a run also takes a delivery whose start was forgotten; and the disk
  -- was two thirds of what a start costs (230 of 280 microseconds).
  --
  -- Returns  the id of the run; null when this copy must not run (it ran, or was cancelled, expired, superseded)
declare
  v_run constant uuid := coalesce(p_run, gen_random_uuid());
  v_forced boolean;
  v_frees_key boolean;
begin
  update bridge.inflight i set state = 'running', run = v_run, worker = p_worker, pid = p_pid, started_at = clock_timestamp(), missing_since = null,
    taken_by = null, pos = case when i.taken_by is null then i.pos else nextval('bridge.inflight_pos_seq') end
  where i.seq = p_seq and i.token = p_token and i.state in ('claimed', 'published')
  returning i.copied or i.published_at is null, i.frees_key into v_forced, v_frees_key;
  if not found then
    return (select i.run from bridge.inflight i where i.seq = p_seq and i.token = p_token and i.run = p_run);
  end if;
  if v_frees_key then
    perform bridge.free_key(p_seq);
  end if;
  if not v_forced then
    perform set_config('synchronous_commit', 'off', true);
  end if;
  return v_run;
end
$$;

create or replace function bridge.leave(p_seq bigint, p_run uuid, p_token uuid) returns bridge.inflight language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Take a job out of flight by the run that has it, or by its delivery when a crash of Postgres forgot the start.
  --
  -- Returns  the row that was taken; all null when the run has been superseded
declare
  v_row bridge.inflight;
begin
  delete from bridge.inflight i where i.seq = p_seq and (i.run = p_run or (i.run is null and i.token = p_token)) returning i.* into v_row;
  if v_row.seq is not null and v_row.run is null then
    v_row.run := p_run;
    v_row.started_at := coalesce(v_row.published_at, v_row.claimed_at);
  end if;
  return v_row;
end
$$;

create or replace function bridge.let_go(p_seq bigint, p_id uuid, p_key text, p_status text, p_chord text, p_index integer, p_webhook boolean,
    p_batch uuid)
  returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A job has just ended: free its unique key, count it in its chord, release its children, end its batch, tell those who wait for it or are
  -- to be called back, forget its checkpoint when it succeeded.
declare
  v_has_children boolean;
  v_is_awaited boolean;
  v_has_checkpoint boolean;
  v_has_callbacks boolean;
begin
  if p_key is not null then
    delete from bridge.unique_key u where u.key = p_key and u.seq = p_seq and u.kept_until is null;
  end if;
  if p_chord is not null then
    perform bridge.end_part(p_chord, p_id, p_index);
  end if;
  -- A statement of its own: its snapshot sees who has registered since the end began.
  select exists (select from bridge.dependency d where d.parent = p_seq), exists (select from bridge.waiter w where w.id = p_id),
    p_status = 'succeeded' and exists (select from bridge.checkpoint c where c.id = p_id),
    p_webhook or exists (select from bridge.callback)
  into v_has_children, v_is_awaited, v_has_checkpoint, v_has_callbacks;
  if v_has_children then
    perform bridge.release_children(p_seq, p_status);
  end if;
  if p_batch is not null then
    perform bridge.end_member(p_batch, p_seq);
  end if;
  if v_is_awaited then
    perform pg_notify('bridge_done', p_id::text);
  end if;
  if v_has_checkpoint then
    delete from bridge.checkpoint c where c.id = p_id;
  end if;
  if v_has_callbacks then
    perform bridge.call_back(p_id, p_status);
  end if;
end
$$;

create or replace function bridge.end_job(p_seq bigint, p_status text, p_result json, p_error json, p_outcome jsonb, p_attempts integer,
    p_started_at timestamptz, p_run uuid, p_worker uuid, p_progress json)
  returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Move a job that has left its place into history, and let go what waited for it.
declare
  v_id uuid;
  v_key text;
  v_chord text;
  v_index integer;
  v_webhook boolean;
  v_batch uuid;
  v_embed json;
begin
  with gone as (
    delete from bridge.job j where j.seq = p_seq returning j.*
  ), kept as (
    insert into bridge.finished (seq, id, task_id, task, queue, rank, args, kwargs, embed, payload, content_type, content_encoding, headers,
      properties, size, max_attempts, backoff, attempts, losses, error, unique_key, expires_at, run_at, created_at, finished_at, started_at,
      status, result, progress, run, worker, outcome, chord, options, deadline, batch, serial_key)
    select g.seq, g.id, g.task_id, g.task, g.queue, g.rank, g.args, g.kwargs, g.embed, g.payload, g.content_type, g.content_encoding, g.headers,
      g.properties, g.size, g.max_attempts, g.backoff, g.attempts + p_attempts, g.losses, case when p_status <> 'succeeded' then coalesce(p_error, g.error) end,
      g.unique_key, g.expires_at, g.run_at, g.created_at, clock_timestamp(), p_started_at, p_status, p_result, p_progress, p_run, p_worker, p_outcome,
      g.chord, g.options, g.deadline, g.batch, g.serial_key
    from gone g
  )
  select g.id, g.unique_key, g.chord, case when g.chord is not null then (g.headers->>'group_index')::integer end, coalesce(g.options ? 'webhook', false), g.batch,
    case when p_status <> 'succeeded' then g.embed end
  into v_id, v_key, v_chord, v_index, v_webhook, v_batch, v_embed from gone g;
  perform bridge.let_go(p_seq, v_id, v_key, p_status, v_chord, v_index, v_webhook, v_batch);
  if v_chord is not null then
    perform bridge.ask_to_join(v_chord);
  end if;
  if p_status = 'cancelled' then
    perform bridge.refuse_replacement(p_seq, v_id);
  end if;
  if json_typeof(v_embed->'chain') = 'array' and p_error->'exception' is null then  -- one with an exception is a worker's, who does this
    perform bridge.end_steps(v_id, p_status, v_embed, p_error);
  end if;
end
$$;

create or replace function bridge.keep_late(p_seq bigint, p_run uuid, p_result json, p_error json, p_id uuid default null) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A run ended after something had superseded it: its outcome is kept in the history of attempts, never on the row.
  --
  --   p_id  the job that ran: a standby that was promoted may have given its number to another. Null where only the number is known
begin
  insert into bridge.attempt (id, seq, attempt, run, ended_at, outcome, error, result, reason)
  select coalesce(j.id, f.id), p_seq, coalesce(bridge.attempt_of(coalesce(j.id, f.id), p_run), j.attempts + 1, f.attempts), p_run, clock_timestamp(),
    'superseded', p_error, p_result, bridge.why_superseded(coalesce(j.id, f.id), p_run, f.status)
  from (select p_seq as seq) s left join bridge.job j on j.seq = s.seq left join bridge.finished f on f.seq = s.seq
  where coalesce(j.id, f.id) is not null and coalesce(j.id, f.id) = coalesce(p_id, j.id, f.id) and f.run is distinct from p_run
  limit 1;
end
$$;

create or replace function bridge.finish(p_seq bigint, p_run uuid, p_status text, p_result json default null, p_error json default null,
    p_outcome jsonb default null, p_token uuid default null, p_id uuid default null)
  returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
  -- End a job by the run that has it.
  --
  --   p_status   succeeded, failed or cancelled
  --   p_result   the plain return value
  --   p_error    {"type", "message", "traceback"}
  --   p_outcome  what Celery's result needs beyond that
  --   p_token    the run's delivery, for the case that a crash forgot the start
  --   p_id       see bridge.keep_late
  --
  -- Returns  false when the run has been superseded; its outcome is then kept aside
  -- Errors   23514 when no partition holds today: call bridge.make_days and repeat
declare
  v_id uuid;
  v_key text;
  v_chord text;
  v_index integer;
  v_webhook boolean;
  v_batch uuid;
begin
  -- What bridge.leave and bridge.end_job do, in one statement: this is the one that every job pays for.
  with taken as (
    delete from bridge.inflight i where i.seq = p_seq and (i.run = p_run or (i.run is null and i.token = p_token))
    returning i.seq, i.worker, i.progress, coalesce(i.started_at, i.published_at, i.claimed_at) as started_at
  ), gone as (
    delete from bridge.job j using taken t where j.seq = p_seq returning j.*, t.worker, t.progress, t.started_at
  ), kept as (
    insert into bridge.finished (seq, id, task_id, task, queue, rank, args, kwargs, embed, payload, content_type, content_encoding, headers,
      properties, size, max_attempts, backoff, attempts, losses, error, unique_key, expires_at, run_at, created_at, finished_at, started_at,
      status, result, progress, run, worker, outcome, chord, options, deadline, batch, serial_key)
    select g.seq, g.id, g.task_id, g.task, g.queue, g.rank, g.args, g.kwargs, g.embed, g.payload, g.content_type, g.content_encoding, g.headers,
      g.properties, g.size, g.max_attempts, g.backoff, g.attempts + 1, g.losses, case when p_status <> 'succeeded' then coalesce(p_error, g.error) end,
      g.unique_key, g.expires_at, g.run_at, g.created_at, clock_timestamp(), g.started_at, p_status, p_result, g.progress, p_run, g.worker, p_outcome,
      g.chord, g.options, g.deadline, g.batch, g.serial_key
    from gone g
  )
  select g.id, g.unique_key, g.chord, case when g.chord is not null then (g.headers->>'group_index')::integer end, coalesce(g.options ? 'webhook', false), g.batch
  into v_id, v_key, v_chord, v_index, v_webhook, v_batch from gone g;
  if not found then
    perform bridge.keep_late(p_seq, p_run, p_result, p_error, p_id);
    return false;
  end if;
  perform bridge.let_go(p_seq, v_id, v_key, p_status, v_chord, v_index, v_webhook, v_batch);
  return true;
end
$$;

create or replace function bridge.note_attempt(p_row bridge.inflight, p_outcome text, p_error json, p_run_at timestamptz,
    p_reason text default null)
  returns bridge.job language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A run is over and its job is not: note the attempt. The old token dies with the row. A run that was lost, or released by a worker that
  -- stops, is no attempt that counts. Returns the job, whose place is to be found.
  --
  --   p_reason  why, in words; null for what is always so
declare
  v_job bridge.job;
  v_counts constant boolean := p_outcome not in ('lost', 'released');
begin
  update bridge.job j set updated_at = clock_timestamp(), error = coalesce(p_error, j.error), run_at = p_run_at,
    attempts = j.attempts + v_counts::integer, losses = j.losses + (p_outcome = 'lost')::integer
  where j.seq = p_row.seq returning j.* into v_job;
  insert into bridge.attempt (id, seq, attempt, run, worker, started_at, ended_at, outcome, error, reason, task, queue)
  values (v_job.id, v_job.seq, v_job.attempts + (not v_counts)::integer, p_row.run, p_row.worker, p_row.started_at, clock_timestamp(), p_outcome,
    p_error, coalesce(p_reason, bridge.why_again(p_outcome, v_job, p_error)), v_job.task, v_job.queue);
  return v_job;
end
$$;

create or replace function bridge.again(p_row bridge.inflight, p_outcome text, p_error json, p_run_at timestamptz) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A run is over and its job is not: note the attempt, and put the job back where it waits.
declare
  v_job constant bridge.job := bridge.note_attempt(p_row, p_outcome, p_error, p_run_at);
begin
  perform bridge.place(v_job.seq, v_job.queue, v_job.rank, v_job.size, p_run_at);
  if p_outcome <> 'released' and (v_job.options ? 'webhook' or exists (select from bridge.callback)) then
    perform bridge.call_back(v_job.id, 'retrying');
  end if;
end
$$;

create or replace function bridge.told_failure(p_seq bigint, p_run uuid, p_error json, p_id uuid) returns text language sql stable
  set search_path = pg_catalog, pg_temp as $$
  -- What a failure made of its job that was told before, in the same words: who tells it again has not heard the answer. Null for any other.
  --
  -- Index  finished_seq, attempt_id
  with told as (
    select coalesce(p_id, (select j.id from bridge.job j where j.seq = p_seq), (select f.id from bridge.finished f where f.seq = p_seq limit 1)) as id
  )
  select coalesce(
    (select f.status from bridge.finished f
     where f.seq = p_seq and f.id = t.id and f.run = p_run and f.status in ('failed', 'cancelled') and f.error::text = p_error::text limit 1),
    (select case when exists (select from bridge.scheduled s where s.seq = p_seq) then 'scheduled' else 'queued' end from bridge.attempt a
     where a.id = t.id and a.run = p_run and a.outcome = 'failed' and a.error::text = p_error::text limit 1))
  from told t
$$;

create or replace function bridge.fail(p_seq bigint, p_run uuid, p_error json, p_final boolean default false, p_outcome jsonb default null,
    p_token uuid default null, p_id uuid default null)
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- A run failed: try again as its job's policy says, or end it as failed.
  --
  --   p_error    {"type", "message", "traceback"}; with "retry_after", seconds, the next attempt is due then and not after the backoff
  --   p_final    no further attempt, whatever the policy
  --   p_outcome  what Celery's result needs beyond the error
  --   p_token, p_id  as in bridge.finish
  --
  -- Returns  the job's new status (failed, cancelled, scheduled or queued), also when it is told again; null when the run has been superseded
declare
  v_row constant bridge.inflight := bridge.leave(p_seq, p_run, p_token);
  v_told text;
begin
  if v_row.seq is null then
    v_told := bridge.told_failure(p_seq, p_run, p_error, p_id);
    if v_told is null then
      perform bridge.keep_late(p_seq, p_run, null, p_error, p_id);
    end if;
    return v_told;
  end if;
  return bridge.settle_failure(v_row, p_error, p_final, p_outcome);
end
$$;

create or replace function bridge.end_delivery(p_seq bigint, p_token uuid, p_worker uuid, p_status text, p_error json,
    p_final boolean default true, p_outcome jsonb default null, p_pid integer default null)
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- A worker's main process ends a delivery: one that never ran (expired, revoked, a task that nobody knows), or a run of its own
  -- child (a hard time limit, a terminated task). It cannot end what runs elsewhere, or what another copy of the message has begun.
  --
  --   p_status  failed, cancelled or expired; what runs has begun in time, and does not expire
  --   p_pid     the child that had this copy; null where nobody knows it
  --
  -- Returns  the job's new status; null when this delivery is not its to end
  -- Errors   JB007 when a transaction of the task that completes the job stays open
declare
  v_row bridge.inflight;
begin
  perform bridge.wait_for_run(p_seq);
  delete from bridge.inflight i where i.seq = p_seq and i.token = p_token
    and (i.state <> 'running' or (i.worker = p_worker and (p_pid is null or i.pid = p_pid) and p_status <> 'expired'))
  returning i.* into v_row;
  if not found then
    return null;
  end if;
  if p_status = 'failed' then
    return bridge.settle_failure(v_row, p_error, p_final, p_outcome);
  elsif v_row.cancelled_at is null and v_row.run is not null and v_row.stop_signal is not null then
    return bridge.end_late(v_row, p_outcome);
  elsif p_status = 'expired' and v_row.run is null and exists (select from bridge.job j where j.seq = p_seq and j.deadline <= coalesce(j.expires_at, 'infinity')) then
    return bridge.end_unstarted_late(p_seq);
  end if;
  perform bridge.end_job(p_seq, p_status, null, p_error, p_outcome, (v_row.run is not null)::integer, v_row.started_at, v_row.run, v_row.worker, v_row.progress);
  return p_status;
end
$$;

create or replace function bridge.lose(p_seq bigint, p_token uuid, p_reason text, p_worker uuid default null, p_pid integer default null)
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- The process that had this delivery is dead. What it ran is due again at once, without backoff, at most max_losses times; what it had
  -- not begun is due again uncharged. The token changes, so that nothing of the old delivery can start or write any more.
  --
  --   p_worker, p_pid  whose process that was: what another has begun, by another copy of the message, goes on; null for whoever has it.
  --                    Where nobody knows the process, what was started with others of a bundle goes back uncharged, see bridge.put_back
  --
  -- Returns  the job's new status (queued, failed or cancelled); null when this delivery is no longer the job's
  -- Errors   JB007 as in bridge.end_delivery
declare
  v_row bridge.inflight;
  v_losses integer;
  v_is_late boolean;
  v_error constant json := json_build_object('type', 'WorkerLostError', 'message', p_reason, 'traceback', null);
begin
  perform bridge.wait_for_run(p_seq);
  delete from bridge.inflight i where i.seq = p_seq and i.token = p_token
    and (i.state <> 'running' or ((p_worker is null or i.worker = p_worker) and (p_pid is null or i.pid = p_pid)))
  returning i.* into v_row;
  if not found then
    return null;
  end if;
  if v_row.together and p_pid is null then  -- its worker is gone with all that knew how far the bundle had come
    update bridge.job j set alone = true where j.seq = p_seq;
    return bridge.put_back(v_row);
  elsif v_row.cancelled_at is not null then
    perform bridge.end_job(p_seq, 'cancelled', null, v_error, null, 1, v_row.started_at, v_row.run, v_row.worker, v_row.progress);
    return 'cancelled';
  elsif v_row.run is null then
    perform bridge.place(j.seq, j.queue, j.rank, j.size, j.run_at) from bridge.job j where j.seq = p_seq;
    return 'queued';
  end if;
  select j.losses, j.deadline <= clock_timestamp() into v_losses, v_is_late from bridge.job j where j.seq = p_seq;
  if v_is_late then
    return bridge.end_late(v_row);
  elsif v_losses + 1 > bridge.setting('max_losses') then
    perform bridge.end_job(p_seq, 'failed', null, v_error, jsonb_build_object('reason', format('it lost its worker more than %s times', v_losses)), 1, v_row.started_at, v_row.run, v_row.worker, v_row.progress);
    return 'failed';
  end if;
  perform bridge.again(v_row, 'lost', v_error, clock_timestamp());
  return 'queued';
end
$$;
