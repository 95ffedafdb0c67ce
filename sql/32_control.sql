-- What people do to jobs and queues. A job is looked for where it waits, in the direction in which it moves; one that keeps moving
-- is looked for again.

create or replace function bridge.leave_waiting(p_seq bigint) returns boolean language plpgsql set search_path = '' as $$
  -- Take a job out of the place where it waits, its delivery with it. Returns false when it runs, has ended, or is in other hands.
begin
  delete from bridge.blocked b where b.seq = p_seq;
  if not found then
    delete from bridge.scheduled s where s.seq = p_seq;
  end if;
  if not found then
    delete from bridge.ready r where r.seq = p_seq;
  end if;
  if not found then
    delete from bridge.inflight f where f.seq = p_seq and f.state <> 'running';
  end if;
  return found;
end
$$;

create or replace function bridge.cancel_job(p_id uuid, p_terminate boolean, p_signal text) returns text language plpgsql
  set search_path = '' set enable_seqscan = off set jit = off as $$
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

create or replace function bridge.check_signal(p_signal text) returns void language plpgsql immutable set search_path = '' as $$
  -- Refuse what is no signal: a worker could only complain about it.
begin
  if p_signal is null or p_signal !~ '^((SIG)?[A-Z][A-Z0-9]*|[1-9][0-9]?)$' then
    perform bridge.refuse(format('signal is %L', p_signal), 'give a name, such as TERM or SIGKILL, or a number');
  end if;
end
$$;

create or replace function bridge.cancel(id uuid, terminate boolean default true, signal text default 'TERM') returns text language plpgsql
  security definer set search_path = '' as $$
  -- Cancel a job. What waits is cancelled here and now, also when its message is in the broker already: the start fence refuses it.
  --
  --   terminate  stop what runs: its worker is notified, and told again by the answer to its next report; false lets it come to its end,
  --              and gives it no further attempt
  --   signal     what the process of the run gets
  --
  -- Returns  cancelled, running (asked to stop), or the final status of a job that had ended
  -- Errors   JB001 when the signal is none, JB002 when there is no such job
declare
  v_status text;
begin
  perform bridge.check_signal(cancel.signal);
  v_status := bridge.cancel_job(cancel.id, cancel.terminate, cancel.signal);
  if v_status is null then
    perform bridge.refuse(format('job %s does not exist', coalesce(cancel.id::text, 'null')), 'see: select id, status from bridge.jobs', 'JB002');
  end if;
  return v_status;
end
$$;

create or replace function bridge.retry(id uuid) returns text language plpgsql security definer set search_path = '' set enable_seqscan = off set jit = off as $$
  -- Run an ended job again, under the same id, with all its attempts before it; or a scheduled one at once.
  --
  -- Returns  the new status: queued
  -- Errors   JB002 when there is no such job, JB006 when it is not ended and not scheduled
declare
  v_old bridge.finished;
  v_seq bigint;
begin
  delete from bridge.finished f where f.id = retry.id returning f.* into v_old;
  if found then
    delete from bridge.revoked r where r.id = retry.id;
    insert into bridge.job (id, task_id, task, queue, rank, args, kwargs, embed, payload, content_type, content_encoding, headers, properties, size,
      max_attempts, backoff, attempts, losses, error, unique_key, expires_at, run_at, created_at, updated_at, chord,
      options, deadline, batch, serial_key)
    values (v_old.id, v_old.task_id, v_old.task, v_old.queue, v_old.rank, v_old.args, v_old.kwargs, v_old.embed, v_old.payload, v_old.content_type,
      v_old.content_encoding, v_old.headers, v_old.properties, v_old.size, least(v_old.attempts + v_old.max_attempts, 10000), v_old.backoff, v_old.attempts, 0,
      v_old.error, null, null, clock_timestamp(), v_old.created_at, clock_timestamp(), v_old.chord,
      v_old.options, v_old.deadline, v_old.batch, v_old.serial_key)
    returning seq into v_seq;
    delete from bridge.chord_part p where p.chord = v_old.chord and p.id = v_old.id;  -- its chord, if it still waits, waits for it again
    update bridge.schedule_run r set status = 'open', finished_at = null, started_at = null, error = null where r.job = v_old.id;
    perform bridge.release_children(v_old.seq, v_old.status);  -- those that the sweep was still to release: the number is history now
    if v_old.run is not null then
      insert into bridge.attempt (id, seq, attempt, run, worker, started_at, ended_at, outcome, error, result)
      values (v_old.id, v_seq, v_old.attempts, v_old.run, v_old.worker, v_old.started_at, v_old.finished_at,
        case when v_old.status = 'failed' then 'failed' else 'superseded' end, v_old.error, v_old.result);
    end if;
    perform bridge.place(v_seq, v_old.queue, v_old.rank, v_old.size, clock_timestamp());
    return 'queued';
  end if;
  select j.seq into v_seq from bridge.job j where j.id = retry.id;
  if not found then
    perform bridge.refuse(format('job %s does not exist', coalesce(retry.id::text, 'null')), 'see: select id, status from bridge.jobs', 'JB002');
  end if;
  delete from bridge.scheduled s where s.seq = v_seq;
  if not found then
    perform bridge.refuse(format('job %s is %s', retry.id, (select v.status from bridge.jobs v where v.id = retry.id)),
      'only jobs that have ended or are scheduled can be retried', 'JB006');
  end if;
  update bridge.job j set run_at = clock_timestamp(), updated_at = clock_timestamp() where j.seq = v_seq;
  perform bridge.place(j.seq, j.queue, j.rank, j.size, j.run_at) from bridge.job j where j.seq = v_seq;
  return 'queued';
end
$$;

create or replace function bridge.retry_failed(task text default null, queue text default null, since interval default null, max_jobs integer default 1000,
    dry_run boolean default false)
  returns integer language plpgsql security definer set search_path = '' as $$
  -- Retry failed jobs, oldest first.
  --
  --   task, queue  only of these; null for all
  --   since        only those that failed in this last while
  --   dry_run      count, change nothing
  --
  -- Returns  how many jobs
declare
  v_ids uuid[];
begin
  select coalesce(array_agg(p.id), '{}') into v_ids from (
    select f.id from bridge.finished f
    where f.status = 'failed' and (retry_failed.task is null or f.task = retry_failed.task)
      and (retry_failed.queue is null or f.queue = retry_failed.queue)
      and (retry_failed.since is null or f.finished_at > clock_timestamp() - retry_failed.since)
    order by f.finished_at limit retry_failed.max_jobs) p;
  if not dry_run then
    perform bridge.retry(p) from unnest(v_ids) p;
  end if;
  return cardinality(v_ids);
end
$$;

create or replace function bridge.wait_for(p_ids uuid[]) returns void language sql security definer set search_path = ''
  -- Ask to be notified on channel bridge_done when one of these jobs ends. The caller listens first, then looks at the jobs, then waits.
  begin atomic
    insert into bridge.waiter (id, registered_at) select i, clock_timestamp() from unnest(p_ids) i
    on conflict (id) do update set registered_at = excluded.registered_at;
  end;

create or replace function bridge.forget_waiter(p_ids uuid[]) returns void language sql security definer set search_path = ''
  -- Stop asking. Another who waits for the same job falls back to looking now and then.
  begin atomic
    delete from bridge.waiter where id = any (p_ids);
  end;

create or replace function bridge.never_ran(p_id uuid, p_task_id text, p_task text, p_queue text, p_args json, p_kwargs json, p_error json)
  returns boolean language plpgsql security definer set search_path = '' set enable_seqscan = off set jit = off as $$
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
  perform bridge.end_job(v_seq, 'cancelled', null, p_error, null, 0, null, null, null, null);
  return true;
end
$$;
