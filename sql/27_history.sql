-- The history of a job: every attempt with why it was followed by another, and what happened beside attempts, in words.

create or replace function bridge.moment(p_at timestamptz) returns text language sql immutable parallel safe set search_path = pg_catalog, pg_temp
  -- A moment as words of history say it, whatever the session's time zone.
  return to_char(p_at at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS "UTC"');

create or replace function bridge.why_again(p_outcome text, p_job bridge.job, p_error json) returns text language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- Why an attempt is followed by another, in words.
  --
  --   p_job  as it is after the attempt
begin
  return case p_outcome
    when 'failed' then format('attempt %s of at most %s; the next was due at %s', p_job.attempts, p_job.max_attempts, bridge.moment(p_job.run_at))
    when 'retried' then format('it asked for its next attempt, which was due at %s', bridge.moment(p_job.run_at))
    when 'lost' then format('%s; loss %s of at most %s', coalesce(p_error->>'message', 'its process died'), p_job.losses, bridge.setting('max_losses'))
    when 'released' then 'its worker stopped and gave it back'
  end;
end
$$;

create or replace function bridge.attempt_of(p_id uuid, p_run uuid) returns integer language sql stable set search_path = pg_catalog, pg_temp
  -- Which attempt of a job a run was that is over; null when that was not noted.
  begin atomic
    select a.attempt from bridge.attempt a where a.id = p_id and a.run = p_run and a.outcome <> 'superseded' order by a.ended_at desc limit 1;
  end;

create or replace function bridge.why_superseded(p_id uuid, p_run uuid, p_status text) returns text language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- Why the outcome of a run came too late, in words.
  --
  --   p_status  how the job has ended; null when it has not
  --
  -- Index  attempt_id
declare
  v_earlier record;
begin
  select a.outcome, a.ended_at, a.reason into v_earlier from bridge.attempt a
  where a.id = p_id and a.run = p_run and a.outcome <> 'superseded' order by a.ended_at desc limit 1;
  return case
    when found then format('it ended after the run had been noted as %s at %s (%s)', v_earlier.outcome, bridge.moment(v_earlier.ended_at), v_earlier.reason)
    when p_status is not null then format('it ended after the job had ended as %s', p_status)
    else 'it ended after the job had gone to another run' end;
end
$$;

create or replace function bridge.why_ended(p_status text, p_attempts integer, p_max_attempts integer, p_outcome jsonb) returns text
  language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Why a job ended as it did, in words; null where the status says all.
begin
  return coalesce(p_outcome->>'reason', case
    when p_status = 'failed' and p_attempts >= p_max_attempts then 'it was the last attempt'
    when p_status = 'failed' then 'its error allows no further attempt'
    when p_status = 'cancelled' then 'somebody cancelled it'
    when p_status = 'expired' then 'it was not started in time' end);
end
$$;

create or replace function bridge.note_end(p_old bridge.finished, p_seq bigint) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- An ended job is about to run again: keep in its history how it had ended.
  --
  --   p_seq  its number from now on
begin
  insert into bridge.attempt (id, seq, attempt, run, worker, started_at, ended_at, outcome, error, result, reason, task, queue)
  values (p_old.id, p_seq, p_old.attempts, p_old.run, p_old.worker, p_old.started_at, p_old.finished_at, p_old.status, p_old.error, p_old.result,
    bridge.why_ended(p_old.status, p_old.attempts, p_old.max_attempts, p_old.outcome), p_old.task, p_old.queue);
end
$$;

-- What happened to jobs, in rows to be ordered by "at" and step; bridge.history is how to read it.
select bridge.define_view('job_event', $view$
  select v.id, v.created_at as at, 1 as step, 'enqueued' as event, null::integer as attempt, null::text as worker, null::timestamptz as started_at,
    null::timestamptz as ended_at, null::json as error, format('task %s, queue %s', v.task, v.queue) as reason, null::uuid as run
  from (select j.id, j.created_at, j.task, j.queue from bridge.job j union all select f.id, f.created_at, f.task, f.queue from bridge.finished f) v
  union all
  select a.id, a.ended_at, 2, a.outcome, case when a.run is not null then a.attempt::integer end, w.name, a.started_at, a.ended_at, a.error, a.reason,
    a.run
  from bridge.attempt a left join bridge.worker w on w.id = a.worker
  union all
  select n.id, n.at, 3, case n.action when 'retried' then 'redriven' else n.action end, null, null, null, null, null,
    'by ' || n.by || coalesce(': ' || n.note, ''), null
  from bridge.job_note n
  union all
  select f.id, f.finished_at, 3, f.status, case when f.run is not null then f.attempts::integer end, w.name, f.started_at, f.finished_at, f.error,
    bridge.why_ended(f.status, f.attempts, f.max_attempts, f.outcome), f.run
  from bridge.finished f left join bridge.worker w on w.id = f.worker
  union all
  select j.id, coalesce(i.started_at, i.published_at, i.claimed_at, r.since, h.since, j.updated_at), 4,
    case when i.state = 'claimed' or r.seq is not null or h.seq is not null then 'queued' when i.seq is not null then i.state when s.seq is not null then 'scheduled'
      else 'blocked' end,
    case when i.run is not null then j.attempts + 1 end, w.name, i.started_at, null, null,
    case when i.cancelled_at is not null then 'somebody has cancelled it' when i.stop_signal is not null then 'its deadline has passed: it is being stopped'
      when i.state = 'claimed' then 'a drainer is publishing it' when i.state = 'published' then 'it is with the broker' when i.state = 'running'
      then 'it runs' when s.seq is not null then format('due at %s', bridge.moment(s.run_at)) when h.seq is not null then 'a limit holds it back'
      when r.seq is not null and bridge.is_paused(j.queue) then 'its queue is paused' when r.seq is not null then 'it waits for a drainer'
      else 'it waits for another job' end,
    i.run
  from bridge.job j left join bridge.inflight i on i.seq = j.seq left join bridge.ready r on r.seq = j.seq
  left join bridge.held h on h.seq = j.seq left join bridge.scheduled s on s.seq = j.seq left join bridge.worker w on w.id = i.worker
$view$);

create or replace function bridge.history(id uuid)
  returns table (at timestamptz, event text, attempt integer, worker text, started_at timestamptz, ended_at timestamptz, error json, reason text,
    run uuid)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- The whole life of a job so far, oldest first: when it was enqueued, each attempt, what ended it or ran it again; of one that has not
  -- ended, where it is now, last.
  --
  -- Returns  event: enqueued; of attempts failed, retried, lost, released, superseded; redriven, discarded; a final status; a status that it has now
  -- Errors   JB002 when there is no such job
begin
  if bridge.tenants_are_on() then
    perform bridge.require_own(array[history.id]);
  end if;
  return query select e.at, e.event, e.attempt, e.worker, e.started_at, e.ended_at, e.error, e.reason, e.run
    from bridge.job_event e where e.id = history.id order by e.step = 4, e.at, e.step, e.started_at;
  if not found then
    perform bridge.refuse(format('job %s does not exist', coalesce(history.id::text, 'null')), 'see: select id, status from bridge.jobs', 'JB002');
  end if;
end
$$;
