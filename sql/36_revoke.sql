-- Celery's own ways to cancel: revoke by id, revoke by stamp, purge of a queue. What is revoked before it is there is remembered, because a
-- chain enqueues its later steps when the steps before them have ended.

create or replace function bridge.revoke(p_ids uuid[], p_terminate boolean default false, p_signal text default 'TERM') returns integer
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Celery's revoke of ids: as bridge.cancel, and an id that is not there yet (a later step of a chain) is remembered for the setting
  -- revoke_memory.
  --
  -- Returns  how many of the ids are jobs
  -- Errors   JB001 when the signal is none
declare
  v_id uuid;
  v_count integer := 0;
begin
  perform bridge.check_signal(p_signal);
  perform bridge.hold_places(p_ids);
  -- In the order of all that is done to many: the first made first, then what is not there.
  for v_id in
    select o.id from (select distinct i as id from unnest(p_ids) i where i is not null) o left join bridge.job j on j.id = o.id
    order by j.seq, o.id
  loop
    if bridge.cancel_job(v_id, p_terminate, p_signal) is not null then
      v_count := v_count + 1;
    else
      insert into bridge.revoked (id, revoked_at) values (v_id, clock_timestamp())
      on conflict (id) do update set revoked_at = excluded.revoked_at;
    end if;
  end loop;
  return v_count;
end
$$;

create or replace function bridge.has_stamp(p_headers json, p_header text, p_stamp jsonb) returns boolean language sql immutable
  set search_path = pg_catalog, pg_temp
  -- Whether a message's headers carry this stamp: alone, or in a list.
  begin atomic
    select coalesce(s.stamps = p_stamp or s.stamps @> jsonb_build_array(p_stamp), false)
    from (select (p_headers->'stamps'->p_header)::jsonb as stamps) s;
  end;

create or replace function bridge.revoke_stamped(p_stamps jsonb, p_terminate boolean default false, p_signal text default 'TERM') returns integer
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Celery's revoke_by_stamped_headers: cancel the live jobs that carry one of these stamps, and for the setting revoke_memory also those
  -- that are enqueued later.
  --
  --   p_stamps  {header: stamp or [stamps]}
  --
  -- Returns  how many jobs
  -- Errors   JB001 when the signal is none, or stamps are no object
declare
  v_ids uuid[];
begin
  perform bridge.check_signal(p_signal);
  if jsonb_typeof(p_stamps) is distinct from 'object' then
    perform bridge.refuse(format('stamps are %s', coalesce('a JSON ' || jsonb_typeof(p_stamps), 'null')), 'give an object: {"header": ["stamp"]}');
  end if;
  insert into bridge.revoked_stamp (header, stamp, revoked_at)
  select h.key, s.stamp, clock_timestamp()
  from jsonb_each(p_stamps) h
  cross join jsonb_array_elements(case jsonb_typeof(h.value) when 'array' then h.value else jsonb_build_array(h.value) end) s (stamp)
  group by h.key, s.stamp
  on conflict (header, stamp) do update set revoked_at = excluded.revoked_at;
  select coalesce(array_agg(j.id), '{}') into v_ids from bridge.job j
  where json_typeof(j.headers->'stamped_headers') = 'array' and exists (
    select from bridge.revoked_stamp r where p_stamps ? r.header and bridge.has_stamp(j.headers, r.header, r.stamp)
      and (p_stamps->r.header = r.stamp or p_stamps->r.header @> jsonb_build_array(r.stamp)));
  return bridge.revoke(v_ids, p_terminate, p_signal);
end
$$;

create or replace function bridge.take_revoke(p_id uuid, p_headers json, p_now timestamptz) returns boolean language plpgsql
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Whether a job that comes now was revoked before: by its id, which is forgotten with that, or by a stamp.
begin
  -- Every call asks this, so it looks first, and reads the setting only where there is something to forget.
  if exists (select from bridge.revoked r where r.id = p_id) then
    delete from bridge.revoked r where r.id = p_id and r.revoked_at > p_now - bridge.seconds('revoke_memory');
    if found then
      return true;
    end if;
  end if;
  if json_typeof(p_headers->'stamped_headers') = 'array' then
    return exists (select from bridge.revoked_stamp r where r.revoked_at > p_now - bridge.seconds('revoke_memory')
      and bridge.has_stamp(p_headers, r.header, r.stamp));
  end if;
  return false;
end
$$;

create or replace function bridge.heed_revoke(p_id uuid) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Asked by a worker that remembers a revoke of this id, or of a stamp: does the row say so too? A job that was retried since is not
  -- refused. A revoke that came while the job was being enqueued is caught up with.
  --
  -- Locks    the row of the job's place, where there is something to catch up with, then that
begin
  perform bridge.hold_place(j.seq) from bridge.job j where j.id = p_id and exists (select from bridge.revoked r where r.id = p_id);
  delete from bridge.revoked r where r.id = p_id;
  if found then
    perform bridge.cancel_job(p_id, false, 'TERM');
  end if;
  return coalesce((select v.status = 'cancelled' from bridge.jobs v where v.id = p_id), false);
end
$$;

create or replace function bridge.purge(queue text, max_jobs integer default 1000, out cancelled integer, out published integer) returns record
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Cancel the jobs of a queue that have not started, wherever they wait: what is purged from the broker alone would be published again.
  --
  --   max_jobs  most jobs of one call: call it until it cancels fewer
  --
  -- Returns  how many it cancelled, and how many of them were with the broker
  -- Errors   JB001 when max_jobs is not 1 to 100000
  -- Locks    see bridge.hold_places
declare
  v_ids uuid[];
  v_row record;
begin
  perform bridge.check_max_jobs(purge.max_jobs);
  cancelled := 0;
  published := 0;
  v_ids := array(
    select j.id from (
      select r.seq from bridge.ready r where r.queue = purge.queue
      union all
      select h.seq from bridge.lane l join bridge.held h on h.lane = l.id where l.queue = purge.queue
      union all
      select i.seq from bridge.inflight i where i.queue = purge.queue and i.state <> 'running'
      union all
      select s.seq from bridge.scheduled s join bridge.job j on j.seq = s.seq where j.queue = purge.queue
      union all
      select b.seq from bridge.blocked b join bridge.job j on j.seq = b.seq where j.queue = purge.queue
      limit purge.max_jobs) o join bridge.job j on j.seq = o.seq);
  perform bridge.hold_places(v_ids);
  for v_row in
    select j.seq, coalesce(i.state = 'published', false) as sent from bridge.job j left join bridge.inflight i on i.seq = j.seq
    where j.id = any (v_ids) and j.queue = purge.queue order by j.seq  -- one that was moved meanwhile is another queue's
  loop
    continue when not (bridge.leave_waiting(v_row.seq) or bridge.leave_waiting(v_row.seq));  -- one that moved is looked for again
    perform bridge.end_job(v_row.seq, 'cancelled', null, null, null, 0, null, null, null, null);
    cancelled := cancelled + 1;
    published := published + v_row.sent::integer;
  end loop;
end
$$;
