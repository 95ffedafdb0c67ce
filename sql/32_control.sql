-- What people do to jobs and queues. A job is looked for where it waits, in the direction in which it moves; one that keeps moving
-- is looked for again.

create or replace function bridge.leave_ready(p_seq bigint) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take a job that is due out of the place where it waits for a claim. Returns false when it is elsewhere, or in other hands.
begin
  delete from bridge.ready r where r.seq = p_seq;
  if not found then
    delete from bridge.held h where h.seq = p_seq;
  end if;
  return found;
end
$$;

create or replace function bridge.leave_delivery(p_seq bigint) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take a job that is on its way out of its flight, its delivery with it. Returns false when it runs, is elsewhere, or in other hands.
begin
  delete from bridge.inflight f where f.seq = p_seq and f.state <> 'running';
  return found;
end
$$;

create or replace function bridge.leave_due(p_seq bigint) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take a job that is due and has not started out of its place, its delivery with it. Returns false when it is none, or in other hands.
begin
  return bridge.leave_ready(p_seq) or bridge.leave_delivery(p_seq);
end
$$;

create or replace function bridge.leave_unpublished(p_seq bigint) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take a job out of the place where it waits in Postgres alone. Returns false when it is on its way, runs, has ended, or is in other hands.
begin
  delete from bridge.blocked b where b.seq = p_seq;
  if not found then
    delete from bridge.scheduled s where s.seq = p_seq;
  end if;
  return found or bridge.leave_ready(p_seq);
end
$$;

create or replace function bridge.leave_waiting(p_seq bigint) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take a job out of the place where it waits, its delivery with it. Returns false when it runs, has ended, or is in other hands.
begin
  return bridge.leave_unpublished(p_seq) or bridge.leave_delivery(p_seq);
end
$$;

create or replace function bridge.leave_late(p_seq bigint) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take a job whose time is over out of the place where it waits. Returns false when it runs, has ended, is just being published, may
  -- have been taken by a worker that reports nothing, or is in other hands: the tick, which asks, waits for nobody.
  --
  -- Locks    the row of its place (skip locked)
begin
  delete from bridge.blocked b where b.seq = (select o.seq from bridge.blocked o where o.seq = p_seq for update skip locked);
  if not found then
    delete from bridge.scheduled s where s.seq = (select o.seq from bridge.scheduled o where o.seq = p_seq for update skip locked);
  end if;
  if not found then
    delete from bridge.ready r where r.seq = (select o.seq from bridge.ready o where o.seq = p_seq for update skip locked);
  end if;
  if not found then
    delete from bridge.held h where h.seq = (select o.seq from bridge.held o where o.seq = p_seq for update skip locked);
  end if;
  if not found then
    delete from bridge.inflight i where i.seq = (select o.seq from bridge.inflight o
      where o.seq = p_seq and o.state = 'published' and o.taken_by is null for update skip locked);
  end if;
  return found;
end
$$;

create or replace function bridge.hold_place(p_seq bigint) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Lock the row of a live job's place, whichever it is, until this transaction ends: before anything else that this transaction will lock
  -- of it.
begin
  perform from bridge.blocked b where b.seq = p_seq for update;
  perform from bridge.scheduled s where s.seq = p_seq for update;
  perform from bridge.ready r where r.seq = p_seq for update;
  perform from bridge.held h where h.seq = p_seq for update;
  perform from bridge.inflight i where i.seq = p_seq for update;
end
$$;

create or replace function bridge.hold_places(p_ids uuid[]) returns void language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  set enable_bitmapscan = off as $$
  -- Before something is done to many jobs: lock the rows of their places, of those that do not run, in the one order in which that is done:
  -- place by place in the direction in which jobs move, in each the first made first. What follows waits for nobody whom it could hold up.
declare
  v_seqs constant bigint[] := array(select j.seq from bridge.job j where j.id = any (p_ids) order by j.seq);
begin
  perform from bridge.blocked b where b.seq = any (v_seqs) order by b.seq for update;
  perform from bridge.scheduled s where s.seq = any (v_seqs) order by s.seq for update;
  perform from bridge.ready r where r.seq = any (v_seqs) order by r.seq for update;
  perform from bridge.held h where h.seq = any (v_seqs) order by h.seq for update;
  perform from bridge.inflight i where i.seq = any (v_seqs) and i.state <> 'running' order by i.seq for update;
end
$$;

create or replace function bridge.cancel_job(p_id uuid, p_terminate boolean, p_signal text) returns text language plpgsql
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- What bridge.cancel and bridge.revoke have in common. Returns as bridge.cancel; null when there is no such job.
declare
  v_seq bigint;
  v_worker uuid;
begin
  for i in 1..10 loop
    select j.seq into v_seq from bridge.job j where j.id = p_id;
    exit when v_seq is null;
    if bridge.leave_waiting(v_seq) then
      perform bridge.end_job(v_seq, 'cancelled', null, null, null, 0, null, null, null, null);
      return 'cancelled';
    end if;
    perform bridge.wait_for_run(v_seq);
    update bridge.inflight f set cancelled_at = coalesce(f.cancelled_at, clock_timestamp()),
      stop_signal = case when p_terminate then p_signal else f.stop_signal end
    where f.seq = v_seq and f.state = 'running' returning f.worker into v_worker;
    if found then
      if p_terminate then
        perform pg_notify('bridge_stop', v_worker::text);
      end if;
      return 'running';
    end if;
  end loop;
  return (select f.status from bridge.finished f where f.id = p_id order by f.finished_at desc limit 1);
end
$$;

create or replace function bridge.check_signal(p_signal text) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse what is no signal: a worker could only complain about it.
begin
  if p_signal is null or p_signal !~ '^((SIG)?[A-Z][A-Z0-9]*|[1-9][0-9]?)$' then
    perform bridge.refuse(format('signal is %L', p_signal), 'give a name, such as TERM or SIGKILL, or a number');
  end if;
end
$$;

create or replace function bridge.cancel(id uuid, terminate boolean default true, signal text default 'TERM') returns text language plpgsql
  security definer set search_path = pg_catalog, pg_temp as $$
  -- Cancel a job. What waits is cancelled here and now, also when its message is in the broker already: the start fence refuses it.
  --
  --   terminate  stop what runs: its worker is notified, and told again by the answer to its next report; false lets it come to its end,
  --              and gives it no further attempt
  --   signal     what the process of the run gets
  --
  -- Returns  cancelled, running (asked to stop), or the final status of a job that had ended
  -- Errors   JB001 when the signal is none, JB002 when there is no such job, JB007 when a transaction of its task that completes it stays
  --          open
declare
  v_status text;
begin
  perform bridge.check_signal(cancel.signal);
  if bridge.tenants_are_on() then
    perform bridge.require_own(array[cancel.id]);
  end if;
  v_status := bridge.cancel_job(cancel.id, cancel.terminate, cancel.signal);
  if v_status is null then
    perform bridge.refuse(format('job %s does not exist', coalesce(cancel.id::text, 'null')), 'see: select id, status from bridge.jobs', 'JB002');
  end if;
  return v_status;
end
$$;

create or replace function bridge.cancel_one(p_id uuid, p_terminate boolean, p_signal text, p_patient boolean) returns text language plpgsql
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Cancel one of many: its end must not keep the others from theirs.
  --
  --   p_patient  wait for a transaction that is completing its run, 2 s at most
  --
  -- Returns  as bridge.cancel; completing when its run is just being completed, and nothing was done
declare
  v_seq bigint;
begin
  select i.seq into v_seq from bridge.job j join bridge.inflight i on i.seq = j.seq where j.id = p_id and i.state = 'running';
  if found and not p_patient and bridge.is_in_other_hands(v_seq) then
    return 'completing';
  elsif v_seq is null then
    return bridge.cancel_job(p_id, p_terminate, p_signal);
  end if;
  begin
    return bridge.cancel_job(p_id, p_terminate, p_signal);
  exception when sqlstate 'JB007' then
    return 'completing';
  end;
end
$$;

create or replace function bridge.cancel_jobs(filter jsonb, dry_run boolean default false, terminate boolean default true, signal text default 'TERM')
  returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Cancel the jobs that a filter chooses, of those that have not ended: as bridge.cancel does, the first made first, at most max_jobs. One
  -- whose run is just being completed is passed by, the first of them after 2 s.
  --
  --   filter   see bridge.select_jobs
  --   dry_run  count, change nothing
  --
  -- Returns  {"matched", "changed", "skipped", "more"}, see bridge.bulk_report; changed counts those that were asked to stop as well
  -- Errors   JB001 when the filter or the signal is none
  -- Locks    see bridge.hold_chosen
declare
  v_ids uuid[];
  v_id uuid;
  v_status text;
  v_is_patient boolean := true;
  v_changed integer := 0;
begin
  perform bridge.check_signal(cancel_jobs.signal);
  perform bridge.require_filter(cancel_jobs.filter);
  v_ids := array(select bridge.select_jobs(cancel_jobs.filter, bridge.live_statuses()));
  foreach v_id in array case when dry_run then '{}' else bridge.hold_chosen(v_ids, cancel_jobs.filter, bridge.live_statuses()) end loop
    v_status := bridge.cancel_one(v_id, cancel_jobs.terminate, cancel_jobs.signal, v_is_patient);
    v_changed := v_changed + (v_status in ('cancelled', 'running'))::integer;
    v_is_patient := v_is_patient and v_status <> 'completing';
  end loop;
  return bridge.bulk_report(cancel_jobs.filter, cardinality(v_ids), v_changed, cancel_jobs.dry_run);
end
$$;

create or replace function bridge.note_job(p_id uuid, p_action text, p_by text, p_note text, p_attempts integer, p_before jsonb default null)
  returns void language sql set search_path = pg_catalog, pg_temp
  -- Note in a job's history what a person did to it. Who is not named is the role of the session.
  begin atomic
    insert into bridge.job_note (id, at, action, by, note, attempts, before)
    values (p_id, clock_timestamp(), p_action, coalesce(p_by, session_user), p_note, p_attempts, p_before);
  end;

create or replace function bridge.as_at_first(p_headers json) returns json language sql immutable set search_path = pg_catalog, pg_temp
  -- The headers of a Celery message that is to be sent anew: it has not been retried, and what it expired by is over.
  return case when p_headers->>'expires' is not null or p_headers->>'retries' <> '0'
    then (p_headers::jsonb || '{"expires": null, "retries": 0}')::json else p_headers end;

create or replace function bridge.reopen(p_old bridge.finished, p_action text, p_by text, p_note text, p_before jsonb default null,
    p_more integer default null)
  returns bigint language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Let an ended job live again, under its id, with all its attempts before it and without a deadline. Its caller has taken it out of
  -- `finished` (bridge.take_ended) and its unique key again (bridge.retake_key), and may have changed its content.
  --
  --   p_action, p_by, p_note, p_before  see bridge.job_note
  --   p_more                            how many further attempts; null: as many as it had when it was enqueued
  --
  -- Returns  its new number
declare
  v_seq bigint;
  v_before integer;
  v_key constant text := (select u.key from bridge.unique_key u where u.key = p_old.unique_key and u.seq = p_old.seq and u.kept_until is null);
begin
  select n.attempts into v_before from bridge.job_note n where n.id = p_old.id and n.action in ('retried', 'redriven') order by n.at desc limit 1;
  delete from bridge.revoked r where r.id = p_old.id;
  delete from bridge.job j where j.id = p_old.id;  -- it stood in for the next one
  insert into bridge.job (id, task_id, task, queue, rank, args, kwargs, embed, payload, content_type, content_encoding, headers, properties, size,
    max_attempts, backoff, attempts, losses, error, unique_key, expires_at, run_at, created_at, updated_at, chord,
    options, deadline, batch, serial_key)
  values (p_old.id, p_old.task_id, p_old.task, p_old.queue, p_old.rank, p_old.args, p_old.kwargs, p_old.embed, p_old.payload, p_old.content_type,
    p_old.content_encoding, bridge.as_at_first(p_old.headers), p_old.properties, p_old.size,
    least(p_old.attempts + coalesce(p_more, p_old.max_attempts - coalesce(v_before, 0)), 10000), p_old.backoff, p_old.attempts, 0,
    p_old.error, v_key, null, p_old.run_at, p_old.created_at, clock_timestamp(), p_old.chord,
    coalesce(p_old.options, '{}') || jsonb_build_object('max_attempts', p_old.max_attempts), null, p_old.batch, p_old.serial_key)
  returning seq into v_seq;
  update bridge.unique_key u set seq = v_seq where u.key = v_key;
  delete from bridge.chord_part p where p.chord = p_old.chord and p.id = p_old.id;  -- its chord, if it still waits, waits for it again
  update bridge.schedule_run r set status = 'open', finished_at = null, started_at = null, error = null, result = null
  where r.job = p_old.id;
  if p_old.batch is not null then
    perform bridge.reopen_batch(p_old.batch);
  end if;
  perform bridge.follow_retry(p_old.seq, v_seq, p_old.status);
  perform bridge.note_end(p_old, v_seq);
  perform bridge.note_job(p_old.id, p_action, p_by, p_note, p_old.attempts, p_before);
  perform bridge.place(v_seq, p_old.queue, p_old.rank, p_old.size, p_old.run_at);
  return v_seq;
end
$$;

create or replace function bridge.refuse_taken(p_old bridge.finished, p_other uuid) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Refuse to run a job again beside another that has its unique key; null for none. Errors  JB003
begin
  if p_other is not null then
    perform bridge.refuse(format('unique_key %L belongs to job %s', p_old.unique_key, p_other),
      format('job %s can run again when that one has ended', p_old.id), 'JB003');
  end if;
end
$$;

create or replace function bridge.hurry(p_id uuid) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Have a scheduled job run at once. Returns false when it waits elsewhere, runs, has ended, or is in other hands.
declare
  v_job bridge.job;
begin
  delete from bridge.scheduled s where s.seq = (select j.seq from bridge.job j where j.id = p_id);
  if not found then
    return false;
  end if;
  update bridge.job j set run_at = clock_timestamp(), updated_at = clock_timestamp() where j.id = p_id returning j.* into v_job;
  perform bridge.place(v_job.seq, v_job.queue, v_job.rank, v_job.size, v_job.run_at);
  return true;
end
$$;

create or replace function bridge.retry(id uuid, by text default null, note text default null) returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Run an ended job again, under the same id, with all its attempts before it; or a scheduled one at once.
  --
  --   by    who does it, for the history; the role of the session where nobody is named
  --   note  why, for the history
  --
  -- Returns  the new status: queued
  -- Errors   JB002 when there is no such job, JB003 when another has its unique key, JB006 when it is not ended and not scheduled
declare
  v_old bridge.finished;
  v_keys text[];
  v_status text;
begin
  if bridge.tenants_are_on() then
    perform bridge.require_own(array[retry.id]);
  end if;
  for i in 1..10 loop  -- each time round, it has ended, or was scheduled anew
    v_keys := bridge.hold_ended(array[retry.id]);
    v_old := bridge.take_ended(retry.id, false);
    if v_old.id is not null then
      perform bridge.refuse_taken(v_old, bridge.retake_key(v_old));
      v_old.run_at := clock_timestamp();
      perform bridge.reopen(v_old, 'retried', retry.by, retry.note);
      return 'queued';
    end if;
    perform bridge.free_ended(v_keys);
    if bridge.hurry(retry.id) then
      return 'queued';
    end if;
    v_status := (select v.status from bridge.jobs v where v.id = retry.id);
    exit when v_status is null or v_status in ('blocked', 'queued', 'published', 'running');
  end loop;
  perform bridge.refuse(format('job %s %s', coalesce(retry.id::text, 'null'), coalesce('is ' || v_status, 'does not exist')),
    case when v_status is null then 'see: select id, status from bridge.jobs' else 'only jobs that have ended or are scheduled can be retried' end,
    case when v_status is null then 'JB002' else 'JB006' end);
  return null;
end
$$;

create or replace function bridge.wait_for(p_ids uuid[]) returns void language sql security definer set search_path = pg_catalog, pg_temp
  -- Ask to be notified on channel bridge_done when one of these jobs ends. The caller listens first, then looks at the jobs, then waits.
  begin atomic
    insert into bridge.waiter (id, registered_at) select i, clock_timestamp() from unnest(p_ids) i where i is not null group by i order by i
    on conflict (id) do update set registered_at = excluded.registered_at;
  end;

create or replace function bridge.forget_waiter(p_ids uuid[]) returns void language sql security definer set search_path = pg_catalog, pg_temp
  -- Stop asking. Another who waits for the same job falls back to looking now and then.
  begin atomic
    delete from bridge.waiter where id = any (array (select w.id from bridge.waiter w where w.id = any (p_ids) order by w.id for update));
  end;

create or replace function bridge.never_ran(p_id uuid, p_task_id text, p_task text, p_queue text, p_args json, p_kwargs json, p_error json)
  returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- A task that waited for one that failed (a later step of a chain, the body of a chord) will never run: a row says so, under the id
  -- that its caller has in hand. It is cancelled, like a job whose parent failed, so that redriving what failed does not run it by itself:
  -- when the parent is run again and succeeds, the task is enqueued anew under this id.
  --
  -- Returns  false when a job of that id exists: nothing was written
declare
  v_seq bigint;
begin
  if exists (select from bridge.finished f where f.id = p_id) then
    return false;
  end if;
  insert into bridge.job (id, task_id, task, queue, rank, args, kwargs, size, max_attempts, run_at, created_at, updated_at)
  values (p_id, p_task_id, p_task, p_queue, 9, p_args, p_kwargs, octet_length(p_args::text) + octet_length(p_kwargs::text), 1,
    clock_timestamp(), clock_timestamp(), clock_timestamp())
  on conflict (id) do nothing returning seq into v_seq;
  if v_seq is null then
    v_seq := bridge.take_replaced(p_id);  -- its run has replaced itself by what failed: that is how the job ends
    if v_seq is not null then
      perform bridge.end_job(v_seq, 'failed', null, p_error, null, 0, null, null, null, null);
    end if;
    return v_seq is not null;
  end if;
  -- A statement of its own: its snapshot is later than the insert, which waited for an end of this id that was under way.
  if exists (select from bridge.finished f where f.id = p_id) then
    delete from bridge.job j where j.seq = v_seq;
    return false;
  end if;
  perform bridge.end_job(v_seq, 'cancelled', null, p_error, null, 0, null, null, null, null);
  return true;
end
$$;
