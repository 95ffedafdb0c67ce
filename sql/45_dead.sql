-- Dead letters: jobs whose last attempt failed, until somebody redrives or discards them, or their day is dropped.

create or replace function bridge.hold_ended(p_ids uuid[]) returns text[] language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
  set jit = off as $$
  -- Before ended jobs are run again: lock what they share with others, in the order in which an enqueue does, all batches and then all
  -- keys. Two who run again the same jobs, or enqueue others for their batches and keys, wait for each other in no circle.
  --
  -- Returns  the keys that are taken with that, for bridge.free_ended; not those that another job has
  -- Locks    the batches; waits for a transaction that takes or gives back one of the keys
declare
  v_keys text[];
begin
  perform from bridge.batch b where b.id = any (array (
    select f.batch from bridge.finished f where f.id = any (p_ids) and f.batch is not null)) order by b.id for no key update;
  with taken as (
    insert into bridge.unique_key (key, seq, id)
    select distinct on (f.unique_key) f.unique_key, f.seq, f.id from bridge.finished f
    where f.id = any (p_ids) and f.unique_key is not null and not coalesce(f.options, '{}') ?| array['unique_until', 'unique_for']
    order by f.unique_key, f.finished_at, f.seq
    on conflict (key) do nothing returning key
  )
  select array_agg(t.key) into v_keys from taken t;
  return v_keys;
end
$$;

create or replace function bridge.free_ended(p_keys text[]) returns void language sql set search_path = pg_catalog, pg_temp
  -- Give back those keys that bridge.hold_ended has taken and no job lives with.
  begin atomic
    delete from bridge.unique_key u where u.key = any (p_keys) and not exists (select from bridge.job j where j.seq = u.seq);
  end;

create or replace function bridge.take_ended(p_id uuid, p_dead boolean) returns bridge.finished language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Take an ended job out of history, to be run again. Its id is taken first, as by an enqueue of it: a row of job stands in for the one
  -- that bridge.reopen makes.
  --
  --   p_dead  only a dead letter
  --
  -- Returns  its row; all null when it has not ended, or is no dead letter
  -- Locks    waits for an enqueue under its id; then its row: of two who run it again, or discard it, the second finds nothing
declare
  v_seq bigint;
  v_old bridge.finished;
begin
  insert into bridge.job (id, task, queue, rank, args, kwargs, size, max_attempts, run_at, created_at, updated_at)
  select f.id, f.task, f.queue, f.rank, '[]', '{}', 4, f.max_attempts, f.run_at, f.created_at, f.created_at from bridge.finished f
  where f.id = p_id and (not p_dead or (f.status = 'failed' and f.discarded_at is null)) limit 1
  on conflict (id) do nothing returning seq into v_seq;
  if v_seq is not null then
    delete from bridge.finished f where f.id = p_id and (not p_dead or (f.status = 'failed' and f.discarded_at is null)) returning f.* into v_old;
    if not found then
      delete from bridge.job j where j.seq = v_seq;
    end if;
  end if;
  return v_old;
end
$$;

create or replace function bridge.refuse_dead(p_id uuid, p_what text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Say why a job is no dead letter.
declare
  v_status text;
  v_discarded timestamptz;
begin
  select v.status, v.discarded_at into v_status, v_discarded from bridge.jobs v where v.id = p_id;
  if v_status is null then
    perform bridge.refuse(format('job %s does not exist', coalesce(p_id::text, 'null')), 'see: select id from bridge.dead_jobs', 'JB002');
  elsif v_discarded is not null then
    perform bridge.refuse(format('job %s was discarded by %s on %s', p_id, (select n.by from bridge.job_note n where n.id = p_id and n.action = 'discarded'
      order by n.at desc limit 1), v_discarded), 'bridge.retry runs it again all the same', 'JB006');
  end if;
  perform bridge.refuse(format('job %s is %s', p_id, v_status), format('only dead letters can be %s; bridge.retry runs other ended jobs again', p_what), 'JB006');
end
$$;

create or replace function bridge.route_to(p_properties json, p_queue text) returns json language sql immutable set search_path = pg_catalog, pg_temp
  -- The properties of a Celery call that is to go to another queue than its application chose: straight there, declared as any queue.
  return case when p_properties is not null then
    ((p_properties::jsonb - 'declare') || jsonb_build_object('exchange', '', 'routing_key', p_queue))::json end;

create or replace function bridge.edit_content(p_old bridge.finished, p_args jsonb, p_kwargs jsonb, p_queue text) returns bridge.finished
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A job with other arguments, or for another queue; null leaves a part as it is. Who gives a call other arguments is whose rights it has
  -- from then on.
  --
  -- Errors  JB001 when there is something that no worker could run, or the arguments are bytes; JB004 when they are too large
declare
  v_new bridge.finished := p_old;
begin
  if coalesce(p_args, p_kwargs) is not null then
    if p_old.content_type is not null then
      perform bridge.refuse(format('args of job %s are kept as %s', p_old.id, p_old.content_type), 'they cannot be edited: enqueue a new job instead');
    end if;
    v_new.args := coalesce(p_args::json, p_old.args);
    v_new.kwargs := coalesce(p_kwargs::json, p_old.kwargs);
    v_new.size := octet_length(v_new.args::text) + octet_length(v_new.kwargs::text);
    if p_old.options ? 'call' then
      perform bridge.check_call(p_old.options->'call'->>'function', v_new.args::jsonb, v_new.kwargs::jsonb, bridge.asking_role());
      v_new.options := jsonb_set(p_old.options, '{call,role}', to_jsonb(bridge.asking_role()));
    end if;
    if p_old.headers->'argsrepr' is not null then  -- what people see of them in Flower
      v_new.headers := p_old.headers::jsonb || jsonb_build_object('argsrepr', left(v_new.args::text, 1024), 'kwargsrepr', left(v_new.kwargs::text, 1024));
    end if;
  end if;
  if p_queue <> p_old.queue then
    v_new.queue := p_queue;
    v_new.properties := bridge.route_to(p_old.properties, p_queue);
  end if;
  perform bridge.check_job(v_new.task, case when v_new.queue <> p_old.queue then v_new.queue else 'none' end, v_new.args, v_new.kwargs, v_new.size);
  return v_new;
end
$$;

create or replace function bridge.check_redrive(p_priority integer, p_delay interval, p_max_attempts integer) returns void language plpgsql
  immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse options of a redrive that can never be.
begin
  if p_priority not between 0 and 9 then
    perform bridge.refuse(format('priority is %s', p_priority), 'give 0 to 9; higher is sooner');
  elsif p_max_attempts not between 1 and 10000 then
    perform bridge.refuse(format('max_attempts is %s', p_max_attempts), 'give 1 to 10000 further attempts');
  end if;
  perform bridge.check_delay('delay', p_delay);
end
$$;

create or replace function bridge.redrive_one(p_id uuid, p_args jsonb, p_kwargs jsonb, p_queue text, p_priority integer, p_delay interval,
    p_max_attempts integer, p_by text, p_note text, p_among_many boolean)
  returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- What bridge.redrive and bridge.redrive_jobs have in common, after bridge.hold_ended.
  --
  --   p_among_many  one whose unique key another job has stays a dead letter, instead of being refused
  --
  -- Returns  the new status; null when the job is no dead letter, or stays one
declare
  v_old constant bridge.finished := bridge.take_ended(p_id, true);
  v_new bridge.finished;
  v_other uuid;
begin
  if v_old.id is null then
    return null;
  end if;
  v_other := bridge.retake_key(v_old);
  if v_other is not null and p_among_many then
    insert into bridge.finished values (v_old.*);
    delete from bridge.job j where j.id = p_id;
    return null;
  end if;
  perform bridge.refuse_taken(v_old, v_other);
  v_new := bridge.edit_content(v_old, p_args, p_kwargs, p_queue);
  v_new.rank := coalesce((9 - p_priority)::smallint, v_old.rank);
  v_new.run_at := clock_timestamp() + coalesce(p_delay, interval '0');
  perform bridge.reopen(v_new, 'redriven', p_by, p_note, nullif(jsonb_strip_nulls(jsonb_build_object(
    'args', case when p_args is not null then v_old.args::jsonb end, 'kwargs', case when p_kwargs is not null then v_old.kwargs::jsonb end,
    'queue', case when v_new.queue <> v_old.queue then v_old.queue end,
    'priority', case when v_new.rank <> v_old.rank then 9 - v_old.rank end)), '{}'), p_max_attempts);
  return case when p_delay > interval '0' then 'scheduled' else 'queued' end;
end
$$;

create or replace function bridge.redrive(id uuid, args jsonb default null, kwargs jsonb default null, queue text default null,
    priority integer default null, delay interval default null, max_attempts integer default null, by text default null, note text default null)
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Run a dead letter again, under the same id, with all its attempts before it. What is null stays as it was.
  --
  --   args, kwargs     other arguments; the old ones stay readable in bridge.job_note
  --   queue, priority  another queue, another urgency
  --   delay            not at once
  --   max_attempts     how often it may fail from now on; null: as often as at first
  --   by               who does it, for the history; the role of the session where nobody is named
  --   note             why, for the history
  --
  -- Returns  the new status: queued or scheduled
  -- Errors   JB001 an argument, JB002 when there is no such job, JB003 when another has its unique key, JB004 the payload is too large,
  --          JB006 when it is no dead letter
declare
  v_status text;
begin
  perform bridge.check_redrive(redrive.priority, redrive.delay, redrive.max_attempts);
  perform bridge.hold_ended(array[redrive.id]);
  v_status := bridge.redrive_one(redrive.id, redrive.args, redrive.kwargs, redrive.queue, redrive.priority, redrive.delay, redrive.max_attempts,
    redrive.by, redrive.note, false);
  if v_status is null then
    perform bridge.refuse_dead(redrive.id, 'redriven');
  end if;
  return v_status;
end
$$;

create or replace function bridge.redrive_jobs(filter jsonb, dry_run boolean default false, args jsonb default null, kwargs jsonb default null,
    queue text default null, priority integer default null, delay interval default null, max_attempts integer default null,
    by text default null, note text default null)
  returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Run again the dead letters that a filter chooses: as bridge.redrive does, the first that ended first, at most max_jobs. Those whose
  -- unique key another job has stay, and count as skipped.
  --
  --   filter   see bridge.select_jobs
  --   dry_run  count, change nothing
  --
  -- Returns  {"matched", "changed", "skipped", "more"}, see bridge.bulk_report
  -- Errors   as bridge.redrive, naming the job where it is one's fault: then none of them is redriven
  -- Locks    all of their batches, then all of their keys, then them
declare
  v_ids uuid[];
  v_id uuid;
  v_keys text[];
  v_changed integer := 0;
begin
  perform bridge.require_filter(redrive_jobs.filter);
  perform bridge.check_redrive(redrive_jobs.priority, redrive_jobs.delay, redrive_jobs.max_attempts);
  v_ids := array(select bridge.select_jobs(redrive_jobs.filter, array['failed'], p_dead => true));
  if not dry_run then
    v_keys := bridge.hold_ended(v_ids);
  end if;
  foreach v_id in array v_ids loop
    if not dry_run and bridge.redrive_one(v_id, redrive_jobs.args, redrive_jobs.kwargs, redrive_jobs.queue, redrive_jobs.priority, redrive_jobs.delay,
        redrive_jobs.max_attempts, redrive_jobs.by, redrive_jobs.note, true) is not null then
      v_changed := v_changed + 1;
    end if;
  end loop;
  perform bridge.free_ended(v_keys);
  return bridge.bulk_report(redrive_jobs.filter, cardinality(v_ids), v_changed, redrive_jobs.dry_run);
end
$$;

create or replace function bridge.retry_failed(task text default null, queue text default null, since interval default null, max_jobs integer default 1000,
    dry_run boolean default false)
  returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Redrive dead letters, oldest first: bridge.redrive_jobs for the commonest of its filters.
  --
  --   task, queue  only of these; null for all
  --   since        only those that failed in this last while; null for all, as what is longer than a thousand years
  --   dry_run      count, change nothing
  --
  -- Returns  how many jobs
declare
  v_filter constant jsonb := jsonb_strip_nulls(jsonb_build_object('task', retry_failed.task, 'queue', retry_failed.queue,
    'finished_after', case when retry_failed.since < interval '1000 years' then clock_timestamp() - greatest(retry_failed.since, '0') end));
  v_report jsonb;
begin
  v_report := bridge.redrive_jobs(case v_filter when '{}' then '{"all": true}' else v_filter end || jsonb_build_object('max_jobs', retry_failed.max_jobs),
    retry_failed.dry_run);
  return (v_report->>case when retry_failed.dry_run then 'matched' else 'changed' end)::integer;
end
$$;

create or replace function bridge.discard_one(p_id uuid, p_by text, p_note text) returns boolean language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- What bridge.discard and bridge.discard_jobs have in common. Returns false when the job is no dead letter.
declare
  v_seq bigint;
  v_attempts integer;
begin
  update bridge.finished f set discarded_at = clock_timestamp() where f.id = p_id and f.status = 'failed' and f.discarded_at is null
  returning f.seq, f.attempts into v_seq, v_attempts;
  if not found then
    return false;
  end if;
  perform bridge.note_job(p_id, 'discarded', p_by, p_note, v_attempts);
  if exists (select from bridge.dependency d where d.parent = v_seq) then
    perform bridge.release_children(v_seq, 'discarded');  -- nothing will come that they could wait for
  end if;
  return true;
end
$$;

create or replace function bridge.discard(id uuid, by text default null, note text default null) returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Take a job out of the dead letters: it stays failed and readable, with a note, until its day is dropped, and no redrive of many finds it.
  --
  --   by    who does it, for the history; the role of the session where nobody is named
  --   note  why, for the history
  --
  -- Errors  JB002 when there is no such job, JB006 when it is no dead letter
begin
  if not bridge.discard_one(discard.id, discard.by, discard.note) then
    perform bridge.refuse_dead(discard.id, 'discarded');
  end if;
end
$$;

create or replace function bridge.discard_jobs(filter jsonb, dry_run boolean default false, by text default null, note text default null)
  returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Discard the dead letters that a filter chooses, the first that ended first, at most max_jobs.
  --
  --   filter   see bridge.select_jobs
  --   dry_run  count, change nothing
  --
  -- Returns  {"matched", "changed", "skipped", "more"}, see bridge.bulk_report
  -- Errors   JB001 when the filter is none
declare
  v_id uuid;
  v_matched integer := 0;
  v_changed integer := 0;
begin
  perform bridge.require_filter(discard_jobs.filter);
  for v_id in select bridge.select_jobs(discard_jobs.filter, array['failed'], p_dead => true) loop
    v_matched := v_matched + 1;
    if not dry_run and bridge.discard_one(v_id, discard_jobs.by, discard_jobs.note) then
      v_changed := v_changed + 1;
    end if;
  end loop;
  return bridge.bulk_report(discard_jobs.filter, v_matched, v_changed, discard_jobs.dry_run);
end
$$;
