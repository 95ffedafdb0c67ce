-- Batches: a set of jobs that is counted, and a task that is called once when all of them have ended. Nothing is counted on the way: a
-- member that ends looks for another that lives, by an index, and whoever finds none ends the batch.

create or replace function bridge.create_batch(name text default null, callback text default null, args jsonb default '[]', kwargs jsonb default '{}',
    queue text default 'celery', callback_on text default 'complete')
  returns uuid language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Make a batch, to which jobs are added by bridge.enqueue(…, batch => id) until it is sealed and its last job has ended.
  --
  --   name               for people; need not be unique
  --   callback           the task that is called when it has ended, with these args and kwargs on this queue; null for none. It finds
  --                      the batch's id in its header bridge_batch
  --   callback_on        complete: however its jobs have ended; success: when all have succeeded, after redriving if need be
  --
  -- Returns  its id
  -- Errors   JB001 an argument, JB008 the caller may not enqueue the callback
declare
  v_id constant uuid := bridge.new_id();
begin
  if create_batch.name is not null and create_batch.name !~ '^[^[:cntrl:]]{1,200}$' then
    perform bridge.refuse(format('name of the batch is %L', left(create_batch.name, 80)), 'give 1 to 200 characters on one line, or null');
  elsif coalesce(create_batch.callback_on, 'null') not in ('complete', 'success') then
    perform bridge.refuse(format('callback_on is %L', create_batch.callback_on), 'give complete or success');
  end if;
  perform bridge.check_job(coalesce(create_batch.callback, 'none'), create_batch.queue, create_batch.args::json, create_batch.kwargs::json,
    octet_length(create_batch.args::text) + octet_length(create_batch.kwargs::text));
  if create_batch.callback is not null and (bridge.tasks_are_ruled() or create_batch.callback like 'bridge.%') then
    perform bridge.check_task(create_batch.callback);
  end if;
  insert into bridge.batch (id, name, callback, args, kwargs, queue, callback_on, created_at)
  values (v_id, create_batch.name, create_batch.callback, create_batch.args, create_batch.kwargs, create_batch.queue, create_batch.callback_on,
    clock_timestamp());
  return v_id;
end
$$;

create or replace function bridge.refuse_batch(p_id uuid) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- There is no such batch.
begin
  perform bridge.refuse(format('batch %s does not exist', coalesce(p_id::text, 'null')), 'see: select id, name, status from bridge.batches', 'JB002');
end
$$;

create or replace function bridge.join_batch(p_id uuid) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A job is about to be added to a batch. It may be sealed: as long as one of its jobs lives, that one may add others.
  --
  -- Locks    shares the batch until the caller's transaction ends: it does not end meanwhile
  -- Errors   JB002 no such batch, JB006 one that has ended or was cancelled
declare
  v_batch bridge.batch;
begin
  select b.* into v_batch from bridge.batch b where b.id = p_id for share;
  if not found then
    perform bridge.refuse_batch(p_id);
  elsif v_batch.cancelled_at is not null or v_batch.ended_at is not null then
    perform bridge.refuse(format('batch %s %s', p_id, case when v_batch.cancelled_at is null then 'has ended' else 'was cancelled' end),
      'add jobs while one of its jobs has not ended, or before it is sealed; else make another batch', 'JB006');
  end if;
end
$$;

create or replace function bridge.end_member(p_batch uuid, p_seq bigint) returns void language plpgsql set search_path = pg_catalog, pg_temp
  set enable_bitmapscan = off as $$
  -- A job of a batch has ended: when no other of its jobs lives, the batch ends. Those beside it are asked first, as in bridge.unblock.
  --
  -- Index    job_batch
begin
  if exists (select from bridge.job j where j.batch = p_batch and j.seq > p_seq and j.xmax = 0)
    or (select true from bridge.job j where j.batch = p_batch and j.seq < p_seq and j.xmax = 0 order by j.seq desc limit 1) then
    return;
  end if;
  perform bridge.end_batch(p_batch);
end
$$;

create or replace function bridge.end_batch(p_id uuid) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- End a sealed batch whose jobs have all ended, and enqueue its callback: both or neither, once.
  --
  -- Returns  whether it has ended here. One that somebody is adding jobs to, or whose last jobs are ending elsewhere, is looked at again
  -- Locks    the batch, if it is free: never waits
declare
  v_batch bridge.batch;
  v_succeeded boolean;
begin
  select b.* into v_batch from bridge.batch b where b.id = p_id and b.ended_at is null for update skip locked;
  if not found then
    insert into bridge.second_look (batch) select b.id from bridge.batch b where b.id = p_id and b.ended_at is null;
    return false;
  end if;
  -- A statement of its own: its snapshot sees all that were added before the lock was ours.
  if v_batch.sealed_at is null or exists (select from bridge.job j where j.batch = p_id and not bridge.in_hand(j.xmax)) then
    return false;
  elsif exists (select from bridge.job j where j.batch = p_id) then
    insert into bridge.second_look (batch) values (p_id);
    return false;
  end if;
  v_succeeded := not exists (select from bridge.finished f where f.batch = p_id and f.status in ('failed', 'cancelled', 'expired'));
  update bridge.batch b set ended_at = clock_timestamp(), succeeded = v_succeeded where b.id = p_id;
  if v_batch.callback is not null and v_batch.called_at is null and v_batch.cancelled_at is null
    and (v_succeeded or v_batch.callback_on = 'complete') then
    perform bridge.call_back(v_batch);
  end if;
  if exists (select from bridge.waiter w where w.id = p_id) then
    perform pg_notify('bridge_done', p_id::text);
  end if;
  return true;
end
$$;

create or replace function bridge.call_back(p_batch bridge.batch) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Enqueue the callback of a batch, under an id that follows from the batch's.
declare
  v_id constant uuid := md5('bridge.batch ' || p_batch.id)::uuid;
  v_asked bridge.job_request := bridge.defaults();
begin
  v_asked.task := p_batch.callback;
  v_asked.args := p_batch.args;
  v_asked.kwargs := p_batch.kwargs;
  v_asked.queue := p_batch.queue;
  v_asked.headers := jsonb_build_object('bridge_batch', p_batch.id);
  perform bridge.enqueue_as(v_id, v_asked);
  insert into bridge.link (above, below, kind, made_at) values (p_batch.id, v_id, 'callback', clock_timestamp()) on conflict do nothing;
  update bridge.batch b set called_at = clock_timestamp() where b.id = p_batch.id;
end
$$;

create or replace function bridge.reopen_batch(p_id uuid) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A job of a batch is about to be redriven: the batch has not ended, unless its callback was called or it was cancelled.
  --
  -- Locks    its caller has the batch (bridge.hold_ended)
begin
  update bridge.batch b set ended_at = null, succeeded = null
  where b.id = p_id and b.ended_at is not null and b.called_at is null and b.cancelled_at is null;
end
$$;

create or replace function bridge.batch_status(p_batch bridge.batch) returns text language sql stable set search_path = pg_catalog, pg_temp
  -- open (not sealed), running, succeeded, failed (all have ended, not all have succeeded) or cancelled.
  return case when p_batch.cancelled_at is not null then 'cancelled' when p_batch.ended_at is null then
    case when p_batch.sealed_at is null then 'open' else 'running' end when p_batch.succeeded then 'succeeded' else 'failed' end;

create or replace function bridge.seal_batch(id uuid) returns text language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
  set jit = off as $$
  -- Say that all jobs have been added but those that its own jobs may add: the batch ends with its last job, at once when there is none.
  --
  -- Returns  its status: running, or how it ended
  -- Locks    the batch: waits for transactions that are adding jobs
  -- Errors   JB002 when there is no such batch
declare
  v_batch bridge.batch;
begin
  update bridge.batch b set sealed_at = coalesce(b.sealed_at, clock_timestamp()) where b.id = seal_batch.id;
  if not found then
    perform bridge.refuse_batch(seal_batch.id);
  end if;
  perform bridge.end_batch(seal_batch.id);
  select b.* into v_batch from bridge.batch b where b.id = seal_batch.id;
  return bridge.batch_status(v_batch);
end
$$;

create or replace function bridge.cancel_batch(id uuid) returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Cancel a batch: its jobs that wait never run, those that run are asked to stop, no job is added any more, and its callback is not called.
  --
  -- Returns  how many jobs were cancelled or asked to stop; 0 when it had ended
  -- Locks    the batch: waits for transactions that are adding jobs
  -- Errors   JB002 when there is no such batch
declare
  v_job uuid;
  v_count integer := 0;
begin
  update bridge.batch b set cancelled_at = coalesce(b.cancelled_at, clock_timestamp()), sealed_at = coalesce(b.sealed_at, clock_timestamp())
  where b.id = cancel_batch.id and b.ended_at is null;
  if not found then
    if not exists (select from bridge.batch b where b.id = cancel_batch.id) then
      perform bridge.refuse_batch(cancel_batch.id);
    end if;
    return 0;
  end if;
  perform bridge.hold_places(array(select j.id from bridge.job j where j.batch = cancel_batch.id));
  for v_job in select j.id from bridge.job j where j.batch = cancel_batch.id order by j.seq loop
    v_count := v_count + (bridge.cancel_job(v_job, true, 'TERM') in ('cancelled', 'running'))::integer;
  end loop;
  perform bridge.end_batch(cancel_batch.id);
  return v_count;
end
$$;
