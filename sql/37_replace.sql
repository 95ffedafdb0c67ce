-- What a run puts in its own place: its next attempt, or several tasks of which the last has its id (see bridge.replaced: mark, step
-- aside, and the arrival of that last task).

create or replace function bridge.renew(p_seq bigint, p_task text, p_queue text, p_rank smallint, p_args json, p_kwargs json, p_embed json,
    p_payload bytea, p_content_type text, p_content_encoding text, p_headers json, p_properties json, p_size integer, p_expires_at timestamptz)
  returns void language sql set search_path = pg_catalog, pg_temp
  -- Give a live job, which its caller has taken out of its place, the content of its next attempt. A job made in SQL has its rank from
  -- there, and its message no word of it: only a priority that changed moves it. A deadline went out as the message's expiry, which
  -- a next attempt gives back as its own.
  begin atomic
    update bridge.job j set task = p_task, queue = p_queue, rank = case when coalesce(j.properties->>'priority', '0') =
        coalesce(p_properties->>'priority', '0') then j.rank else p_rank end, args = p_args, kwargs = p_kwargs, embed = p_embed,
      payload = p_payload, content_type = p_content_type, content_encoding = p_content_encoding, headers = p_headers,
      properties = p_properties, size = p_size, expires_at = case when p_expires_at = j.deadline then j.expires_at else p_expires_at end,
      updated_at = clock_timestamp()
    where j.seq = p_seq;
  end;

create or replace function bridge.retry_run(p_seq bigint, p_run uuid, p_task text, p_queue text, p_rank smallint, p_args json, p_kwargs json,
    p_embed json, p_payload bytea, p_content_type text, p_content_encoding text, p_headers json, p_properties json, p_expires_at timestamptz,
    p_run_at timestamptz, p_error json default null, p_token uuid default null)
  returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- A run asks for its own next attempt (Celery's self.retry and replace): new content, same id, attempt n becomes n + 1 in one step.
  -- It must not be called inside the user's transaction, which the Retry exception would roll back.
  --
  -- A job that was cancelled while it ran, without being stopped, gets no further attempt; nor does one whose deadline comes before.
  --
  -- Returns  false when the run has been superseded: the caller writes nothing else
declare
  v_row bridge.inflight;
  v_size constant integer := coalesce(octet_length(p_payload), octet_length(p_args::text) + octet_length(p_kwargs::text));
begin
  perform bridge.check_job(p_task, p_queue, p_args, p_kwargs, v_size);
  v_row := bridge.leave(p_seq, p_run, p_token);
  if v_row.seq is null then
    return false;
  end if;
  if v_row.cancelled_at is not null then
    perform bridge.end_job(p_seq, 'cancelled', null, p_error, null, 1, v_row.started_at, v_row.run, v_row.worker, v_row.progress);
    return true;
  elsif exists (select from bridge.job j where j.seq = p_seq and coalesce(p_run_at, clock_timestamp()) >= j.deadline) then
    perform bridge.end_job(p_seq, 'failed', null, coalesce(p_error, (select bridge.late_error(j) from bridge.job j where j.seq = p_seq)),
      '{"reason": "the next attempt, which it asked for, would be due after the deadline"}', 1, v_row.started_at, v_row.run, v_row.worker,
      v_row.progress);
    return true;
  end if;
  perform bridge.renew(p_seq, p_task, p_queue, p_rank, p_args, p_kwargs, p_embed, p_payload, p_content_type, p_content_encoding, p_headers,
    p_properties, v_size, p_expires_at);
  perform bridge.again(v_row, 'retried', p_error, coalesce(p_run_at, clock_timestamp()));
  return true;
end
$$;

create or replace function bridge.mark_replaced(p_seq bigint, p_run uuid, p_token uuid) returns void language sql security definer
  set search_path = pg_catalog, pg_temp
  -- A run is about to enqueue the first of the tasks that replace it. Before they exist: the last may come while the run still ends.
  --
  -- Locks    the run's row in flight: no mark is left on a job that has gone on meanwhile
  begin atomic
    insert into bridge.replaced (seq, since) select o.seq, clock_timestamp() from (
      select i.seq from bridge.inflight i where i.seq = p_seq and (i.run = p_run or (i.run is null and i.token = p_token)) for update) o
    on conflict (seq) do nothing;
  end;

create or replace function bridge.step_aside(p_seq bigint, p_run uuid, p_token uuid) returns boolean language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- A run that has replaced itself is over: its job is blocked until the task comes that has its id.
  --
  -- Returns  false when that has come already, or the run was superseded otherwise
declare
  v_row constant bridge.inflight := bridge.leave(p_seq, p_run, p_token);
begin
  if v_row.seq is null then
    return false;
  end if;
  if v_row.cancelled_at is not null then
    perform bridge.end_job(p_seq, 'cancelled', null, null, null, 1, v_row.started_at, v_row.run, v_row.worker, v_row.progress);
    return true;
  end if;
  perform bridge.note_attempt(v_row, 'retried', null, clock_timestamp(), 'it replaced itself by other tasks');
  update bridge.job j set expires_at = null where j.seq = p_seq;  -- it has begun in time; the task that comes has an expiry of its own
  insert into bridge.blocked (seq, run_at) values (p_seq, clock_timestamp());
  insert into bridge.replaced (seq, since) values (p_seq, clock_timestamp()) on conflict (seq) do nothing;  -- a failover may have forgotten it
  return true;
end
$$;

create or replace function bridge.take_replaced(p_id uuid) returns bigint language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take a job whose run has replaced itself out of its place, for the task that has its id now.
  --
  -- Returns  its number; null when there is no such job, its run is being repeated and will replace itself anew, or somebody has
  --          cancelled it while it ran: then it ends here
  -- Locks    the row of its place; one that moves meanwhile is looked for again
declare
  v_seq bigint;
  v_row bridge.inflight;
begin
  select j.seq into v_seq from bridge.job j join bridge.replaced r on r.seq = j.seq where j.id = p_id;
  if not found then
    return null;
  end if;
  for i in 1..3 loop
    delete from bridge.inflight i where i.seq = v_seq and i.state = 'running' returning i.* into v_row;
    if found and v_row.cancelled_at is not null then
      delete from bridge.replaced r where r.seq = v_seq;
      perform bridge.end_job(v_seq, 'cancelled', null, null, null, 1, v_row.started_at, v_row.run, v_row.worker, v_row.progress);
      return null;
    elsif found then
      perform bridge.note_attempt(v_row, 'retried', null, clock_timestamp(), 'it replaced itself by other tasks');
    else
      delete from bridge.blocked b where b.seq = v_seq;
    end if;
    if found then
      delete from bridge.replaced r where r.seq = v_seq;
      return v_seq;
    end if;
  end loop;
  return null;
end
$$;

create or replace function bridge.refuse_replacement(p_seq bigint, p_id uuid) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A job was cancelled whose run has replaced itself: the task that has its id comes later, and finds that it was revoked.
begin
  delete from bridge.replaced r where r.seq = p_seq;
  if found then
    insert into bridge.revoked (id, revoked_at) values (p_id, clock_timestamp()) on conflict (id) do update set revoked_at = excluded.revoked_at;
  end if;
end
$$;

create or replace function bridge.forget_replaced(p_limit integer) returns void language sql set search_path = pg_catalog, pg_temp
  -- Marks of jobs that have ended all the same.
  begin atomic
    delete from bridge.replaced r where r.seq = any (array (
      select o.seq from bridge.replaced o where not exists (select from bridge.job j where j.seq = o.seq) limit p_limit for update skip locked));
  end;
