-- Changing jobs that have not started: their priority, their queue, the time they are due. Wherever a job waits, the row of its place is
-- locked first, so it cannot start meanwhile; what is published is taken back, and its message starts nothing.

create or replace function bridge.hold_waiting(p_seq bigint) returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take hold of a job that has not started, until this transaction ends.
  --
  -- Returns  blocked or scheduled, where it stays; due: it has left its place and is to be placed again; null: it runs, has ended, is in
  --          other hands (look again), or a worker that reports nothing may have taken it
  -- Locks    the row of its place
begin
  perform from bridge.blocked b where b.seq = p_seq for update;
  if found then
    return 'blocked';
  end if;
  perform from bridge.scheduled s where s.seq = p_seq for update;
  if found then
    return 'scheduled';
  end if;
  if exists (select from bridge.inflight i where i.seq = p_seq and i.state = 'published'
      and (i.taken_by is not null or bridge.silent_workers(i.queue, i.published_at) is not null)) then
    return null;
  end if;
  return case when bridge.leave_due(p_seq) then 'due' end;
end
$$;

create or replace function bridge.properties_for(p_properties json, p_rank smallint, p_queue text) returns json language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- The properties of a Celery call's message once its job has another rank or queue; null keeps either. The priority follows from the
  -- rank. A job made in SQL has no properties, and needs none.
declare
  v_properties constant json := case when p_rank is null then p_properties else (p_properties::jsonb - 'priority')::json end;
begin
  return case when p_queue is null then v_properties else bridge.route_to(v_properties, p_queue) end;
end
$$;

create or replace function bridge.put_changed(p_seq bigint, p_place text, p_rank smallint, p_queue text, p_run_at timestamptz) returns text
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Write what has changed of a job that bridge.hold_waiting has taken hold of, and put it where it waits now. Returns its status.
declare
  v_job bridge.job;
  v_now constant timestamptz := clock_timestamp();
begin
  update bridge.job j set rank = coalesce(p_rank, j.rank), queue = coalesce(p_queue, j.queue), run_at = coalesce(p_run_at, j.run_at),
    properties = bridge.properties_for(j.properties, p_rank, p_queue), updated_at = v_now
  where j.seq = p_seq returning j.* into v_job;
  if p_place = 'blocked' then
    update bridge.blocked b set run_at = p_run_at where b.seq = p_seq and p_run_at is not null;
    return 'blocked';
  elsif p_place = 'scheduled' and p_run_at is null then
    return 'scheduled';
  end if;
  delete from bridge.scheduled s where s.seq = p_seq;
  perform bridge.place(p_seq, v_job.queue, v_job.rank, v_job.size, v_job.run_at, v_now);
  return case when v_job.run_at > v_now then 'scheduled' else 'queued' end;
end
$$;

create or replace function bridge.change_waiting(p_id uuid, p_rank smallint default null, p_queue text default null,
    p_run_at timestamptz default null)
  returns text language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Change a job that has not started, wherever it waits; null keeps what is.
  --
  -- Returns  its status after that: blocked, scheduled or queued, or what it was when nothing had to change; null when it cannot be
  --          changed: see bridge.refuse_change
  -- Locks    the row of its place, then the job
declare
  v_job bridge.job;
  v_place text;
begin
  for i in 1..10 loop
    select j.* into v_job from bridge.job j where j.id = p_id;
    exit when not found or least(v_job.expires_at, v_job.deadline) <= p_run_at;
    exit when exists (select from bridge.inflight r where r.seq = v_job.seq and r.state = 'running');
    if (coalesce(p_rank, v_job.rank), coalesce(p_queue, v_job.queue), coalesce(p_run_at, v_job.run_at)) = (v_job.rank, v_job.queue, v_job.run_at) then
      return (select v.status from bridge.jobs v where v.id = p_id and v.finished_at is null);
    end if;
    v_place := bridge.hold_waiting(v_job.seq);
    if v_place is not null then
      return bridge.put_changed(v_job.seq, v_place, p_rank, p_queue, p_run_at);
    end if;
  end loop;
  return null;
end
$$;

create or replace function bridge.refuse_change(p_id uuid, p_run_at timestamptz default null) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Say why a job cannot be changed.
  --
  -- Errors  JB002 there is no such job, JB001 it would be due when its time is over, JB006 it has started or a worker may have it
declare
  v_status text;
  v_end timestamptz;
begin
  select v.status into v_status from bridge.jobs v where v.id = p_id;
  select least(j.expires_at, j.deadline) into v_end from bridge.job j where j.id = p_id;
  if v_status is null then
    perform bridge.refuse(format('job %s does not exist', coalesce(p_id::text, 'null')), 'see: select id, status from bridge.jobs', 'JB002');
  elsif v_end <= p_run_at then
    perform bridge.refuse(format('run_at is %s, job %s ends by %s', p_run_at, p_id, v_end), 'give an earlier moment');
  elsif v_status = 'published' then
    perform bridge.refuse(format('job %s may have been taken by a worker that reports nothing', p_id), 'see bridge.silent_worker', 'JB006');
  end if;
  perform bridge.refuse(format('job %s is %s', p_id, v_status), 'only jobs that have not started can be changed', 'JB006');
end
$$;

create or replace function bridge.rank_of(p_priority integer) returns smallint language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- The rank of a priority; refuses what is none.
begin
  if p_priority is null or p_priority not between 0 and 9 then
    perform bridge.refuse(format('priority is %s', coalesce(p_priority::text, 'null')), 'give 0 to 9; higher is sooner');
  end if;
  return 9 - p_priority;
end
$$;

create or replace function bridge.due_moment(p_run_at timestamptz, p_delay interval) returns timestamptz language plpgsql volatile
  set search_path = pg_catalog, pg_temp as $$
  -- The moment that is meant: one of the two; refuses both, neither, and what is no moment or interval for a job.
begin
  if num_nonnulls(p_run_at, p_delay) <> 1 then
    perform bridge.refuse(format('run_at is %s, delay is %s', coalesce(p_run_at::text, 'null'), coalesce(p_delay::text, 'null')), 'give one of them');
  end if;
  perform bridge.check_moment('run_at', p_run_at, clock_timestamp()), bridge.check_delay('delay', p_delay);
  return coalesce(p_run_at, clock_timestamp() + p_delay);
end
$$;

create or replace function bridge.change_noted(p_id uuid, p_action text, p_rank smallint default null, p_queue text default null,
    p_run_at timestamptz default null)
  returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- bridge.change_waiting, with a note of what was before.
  --
  --   p_action  what the note says was done
declare
  v_before bridge.job;
  v_status text;
begin
  select j.* into v_before from bridge.job j where j.id = p_id;
  v_status := bridge.change_waiting(p_id, p_rank, p_queue, p_run_at);
  if v_status is not null and (p_rank <> v_before.rank or p_queue <> v_before.queue or p_run_at <> v_before.run_at) then
    perform bridge.note_job(p_id, p_action, null, null, v_before.attempts, jsonb_strip_nulls(jsonb_build_object(
      'priority', case when p_rank is not null then 9 - v_before.rank end, 'queue', case when p_queue is not null then v_before.queue end,
      'run_at', case when p_run_at is not null then v_before.run_at end)));
  end if;
  return v_status;
end
$$;

create or replace function bridge.change_jobs(p_filter jsonb, p_dry_run boolean, p_action text, p_rank smallint default null,
    p_queue text default null, p_run_at timestamptz default null)
  returns jsonb language plpgsql set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Change the jobs that a filter chooses of those that have not started, at most max_jobs; see bridge.change_waiting.
  --
  -- Returns  {"matched", "changed", "skipped", "more"}, see bridge.bulk_report; skipped have started meanwhile, or would end before
  -- Errors   JB001 when the filter is none
  -- Locks    see bridge.hold_chosen
declare
  v_statuses constant text[] := array['blocked', 'scheduled', 'queued', 'published'];
  v_ids uuid[];
  v_id uuid;
  v_changed integer := 0;
begin
  perform bridge.require_filter(p_filter);
  v_ids := array(select bridge.select_jobs(p_filter, v_statuses));
  foreach v_id in array case when p_dry_run then '{}' else bridge.hold_chosen(v_ids, p_filter, v_statuses) end loop
    if bridge.change_noted(v_id, p_action, p_rank, p_queue, p_run_at) is not null then
      v_changed := v_changed + 1;
    end if;
  end loop;
  return bridge.bulk_report(p_filter, cardinality(v_ids), v_changed, p_dry_run);
end
$$;

create or replace function bridge.set_priority(id uuid, priority integer) returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Give a job that has not started another priority. One that is published is taken back, so that it holds.
  --
  --   priority  0 to 9, higher is sooner
  --
  -- Returns  its status: blocked, scheduled or queued; published when it had that priority already
  -- Errors   JB001 the priority, JB002 there is no such job, JB006 it has started
declare
  v_status constant text := bridge.change_noted(set_priority.id, 'reprioritised',
    p_rank => bridge.rank_of(set_priority.priority));
begin
  if v_status is null then
    perform bridge.refuse_change(set_priority.id);
  end if;
  return v_status;
end
$$;

create or replace function bridge.move(id uuid, queue text) returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Move a job that has not started to another queue. One that is published is taken back; a Celery call's message goes to that queue.
  --
  --   queue  the name of a Celery queue
  --
  -- Returns  its status: blocked, scheduled or queued; published when it was in that queue already
  -- Errors   JB001 the queue, JB002 there is no such job, JB006 it has started
declare
  v_queue constant text := (bridge.scope(move.queue, null, false)).name;
  v_status constant text := bridge.change_noted(move.id, 'moved', p_queue => v_queue);
begin
  if v_status is null then
    perform bridge.refuse_change(move.id);
  end if;
  return v_status;
end
$$;

create or replace function bridge.reschedule(id uuid, run_at timestamptz default null, delay interval default null) returns text
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Have a job that has not started run at another time: sooner, later, or at once. One that is published is taken back; one that is
  -- blocked waits for its parents all the same.
  --
  --   run_at, delay  a moment, or an interval from now; one of them
  --
  -- Returns  its status: blocked, scheduled or queued
  -- Errors   JB001 an argument, also a moment at which the job has expired; JB002 there is no such job, JB006 it has started
declare
  v_run_at constant timestamptz := bridge.due_moment(reschedule.run_at, reschedule.delay);
  v_status constant text := bridge.change_noted(reschedule.id, 'rescheduled', p_run_at => v_run_at);
begin
  if v_status is null then
    perform bridge.refuse_change(reschedule.id, v_run_at);
  end if;
  return v_status;
end
$$;

create or replace function bridge.set_priority_jobs(filter jsonb, priority integer, dry_run boolean default false) returns jsonb
  language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Give jobs that have not started another priority, at most max_jobs of those that a filter chooses.
  --
  --   filter   see bridge.select_jobs
  --   dry_run  count, change nothing
  --
  -- Returns  {"matched", "changed", "skipped", "more"}, see bridge.bulk_report
  -- Errors   JB001 when the filter or the priority is none
begin
  return bridge.change_jobs(set_priority_jobs.filter, dry_run, 'reprioritised', p_rank => bridge.rank_of(set_priority_jobs.priority));
end
$$;

create or replace function bridge.move_jobs(filter jsonb, queue text, dry_run boolean default false) returns jsonb
  language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Move jobs that have not started to another queue, at most max_jobs of those that a filter chooses.
  --
  --   filter   see bridge.select_jobs
  --   dry_run  count, change nothing
  --
  -- Returns  {"matched", "changed", "skipped", "more"}, see bridge.bulk_report
  -- Errors   JB001 when the filter is none or the queue no name
begin
  return bridge.change_jobs(move_jobs.filter, dry_run, 'moved', p_queue => (bridge.scope(move_jobs.queue, null, false)).name);
end
$$;

create or replace function bridge.reschedule_jobs(filter jsonb, run_at timestamptz default null, delay interval default null,
    dry_run boolean default false)
  returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Have jobs that have not started run at another time, at most max_jobs of those that a filter chooses.
  --
  --   filter         see bridge.select_jobs
  --   run_at, delay  a moment, or an interval from now; one of them
  --   dry_run        count, change nothing
  --
  -- Returns  {"matched", "changed", "skipped", "more"}, see bridge.bulk_report; skipped are also those that would have expired by then
  -- Errors   JB001 when the filter is none, or not one of run_at and delay is given
begin
  return bridge.change_jobs(reschedule_jobs.filter, dry_run, 'rescheduled',
    p_run_at => bridge.due_moment(reschedule_jobs.run_at, reschedule_jobs.delay));
end
$$;
