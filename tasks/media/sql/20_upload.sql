-- Uploads, and the trigger that makes a job of each.

do $$
begin
  if to_regclass('media.uploads') is null then
    create table media.uploads (
      id          uuid primary key default gen_random_uuid(),
      bucket      text not null default 'ingest',   -- only rows of bucket ingest become jobs
      path        text not null,                    -- as the worker reads it; below MEDIA_ROOT where that is set
      version     text not null default '',         -- tells a changed file from one that was seen
      job_type    text not null default 'process',
      created_at  timestamptz not null default now(),
      constraint upload_names_a_file check (path <> ''),
      constraint upload_job_type_is_known check (job_type in ('process', 'thumbnail', 'analysis', 'card')),
      constraint upload_once_a_version unique (bucket, path, version)
    );

    -- Which job belongs to which upload; a table of its own, because an upload may be processed again.
    create table media.upload_jobs (
      job_id     uuid primary key,
      upload_id  uuid not null references media.uploads (id) on delete cascade,
      job_type   text not null,
      lane       text not null,
      run_at     timestamptz not null
    );
    -- next_slot: the latest slots of a lane; release: the earliest that still wait
    create index upload_jobs_slot on media.upload_jobs (lane, run_at desc);
    -- the jobs of one upload, and the cascade
    create index upload_jobs_upload on media.upload_jobs (upload_id);
  end if;
end
$$;

create or replace function media.next_slot(p_job_type text default 'process', p_now timestamptz default clock_timestamp())
  returns timestamptz language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- When the next job may start: a delay after the one before it, and never more than `iterations` within one tick.
  --
  --   p_job_type  what the job does; its lane is counted
  --
  -- Returns  p_now on an idle lane or without bounds, else a later moment
  -- Locks    nothing: an upload never waits for another's commit; two that commit at the same moment may share a slot
  -- Index    upload_jobs_slot
declare
  v_pace record;
  v_last timestamptz;
  v_full timestamptz;
begin
  select p.* into v_pace from media.pace(p_job_type) p;
  select u.run_at into v_last from media.upload_jobs u where u.lane = v_pace.lane order by u.run_at desc limit 1;
  if v_pace.iterations > 0 then
    select u.run_at into v_full from media.upload_jobs u where u.lane = v_pace.lane order by u.run_at desc offset v_pace.iterations - 1 limit 1;
  end if;
  if v_pace.iterations = 0 and v_pace.delay = interval '0' then
    return p_now;
  end if;
  return greatest(p_now, v_last + v_pace.delay, v_full + v_pace.tick);
end
$$;

create or replace function media.process_upload(upload_id uuid, job_type text default null) returns uuid language plpgsql security definer
  set search_path = pg_catalog, pg_temp as $$
  -- Make a job of an upload, at the lane's next slot; the trigger does this, and anybody may to process an upload again.
  --
  --   upload_id  a row of media.uploads
  --   job_type   process, thumbnail, analysis or card; null for what the upload asks for
  --
  -- Returns  the job's id
  -- Errors   JB001 the job type, JB002 when there is no such upload
declare
  v_upload media.uploads;
  v_type text;
  v_slot timestamptz;
  v_job uuid;
begin
  select u.* into v_upload from media.uploads u where u.id = process_upload.upload_id;
  if not found then
    perform bridge.refuse(format('upload %s does not exist', coalesce(process_upload.upload_id::text, 'null')), 'see: select id, path from media.uploads', 'JB002');
  end if;
  v_type := coalesce(process_upload.job_type, v_upload.job_type);
  if v_type not in ('process', 'thumbnail', 'analysis', 'card') then
    perform bridge.refuse(format('job_type is %L', v_type), 'give process, thumbnail, analysis or card');
  end if;
  v_slot := media.next_slot(v_type);
  v_job := bridge.enqueue(task => 'media.' || v_type, kwargs => jsonb_build_object('upload_id', v_upload.id, 'path', v_upload.path),
    queue => media.get('queue'), run_at => v_slot, max_attempts => media.get('max_attempts')::integer,
    backoff => '{"base": 10, "factor": 3, "cap": 600, "jitter": 0.2}');
  insert into media.upload_jobs (job_id, upload_id, job_type, lane, run_at)
  select v_job, v_upload.id, v_type, p.lane, v_slot from media.pace(v_type) p;
  return v_job;
end
$$;

create or replace function media.enqueue_upload() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- The trigger on media.uploads: the job exists when the upload's transaction commits, and never when it rolls back.
begin
  perform media.process_upload(new.id);
  return null;
end
$$;

do $$
begin
  -- after, not before: an insert that meets "on conflict do nothing" must leave no job behind
  if not exists (select from pg_catalog.pg_trigger t where t.tgrelid = 'media.uploads'::regclass and t.tgname = 'enqueue_upload') then
    create trigger enqueue_upload after insert on media.uploads for each row when (new.bucket = 'ingest') execute function media.enqueue_upload();
  end if;
end
$$;

create or replace function media.add_upload(path text, version text default '', job_type text default 'process') returns uuid language sql
  set search_path = pg_catalog, pg_temp
  -- Insert an upload, and with it its job, unless this version of the file is there already.
  --
  --   path     as the workers read it
  --   version  any text that changes when the file does, as its time and size
  --
  -- Returns  the upload's id; null when it was there
  begin atomic
    insert into media.uploads (path, version, job_type) values (add_upload.path, add_upload.version, add_upload.job_type)
    on conflict on constraint upload_once_a_version do nothing
    returning id;
  end;

create or replace function media.release() returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Start waiting jobs early where the settings, as they are now, leave room for it: at most `iterations` a lane and tick.
  --
  -- Needed only after the pace was raised: jobs keep the slot that they got, and this lets them move up.
  --
  -- Returns  how many were started
declare
  v_lane record;
  v_job record;
  v_most integer;
  v_room integer;
  v_now constant timestamptz := clock_timestamp();
  v_count integer := 0;
begin
  for v_lane in
    select p.* from (select distinct u.lane from media.upload_jobs u where u.run_at > v_now) w
    cross join media.pace(coalesce(nullif(w.lane, ''), 'process')) p where p.lane = w.lane
  loop
    -- null where there is no bound: such a lane empties at once
    v_most := least(nullif(v_lane.iterations, 0), floor(extract(epoch from v_lane.tick) / nullif(extract(epoch from v_lane.delay), 0))::integer);
    select greatest(v_most - count(*)::integer, case when v_most is not null then 0 end) into v_room
    from media.upload_jobs u where u.lane = v_lane.lane and u.run_at > v_now - v_lane.tick and u.run_at <= v_now;
    for v_job in select u.job_id from media.upload_jobs u where u.lane = v_lane.lane and u.run_at > v_now order by u.run_at limit v_room loop
      v_count := v_count + media.start_now(v_job.job_id, v_now);
    end loop;
  end loop;
  return v_count;
end
$$;

create or replace function media.start_now(p_job uuid, p_now timestamptz default clock_timestamp()) returns integer language plpgsql
  security definer set search_path = pg_catalog, pg_temp as $$
  -- Make one waiting job due at once. Returns 1, or 0 when it was no longer waiting; its slot is given back either way.
begin
  update media.upload_jobs u set run_at = p_now where u.job_id = p_job and u.run_at > p_now;
  perform from bridge.jobs j where j.id = p_job and j.status = 'scheduled';
  if not found then
    return 0;
  end if;
  perform bridge.retry(p_job);
  return 1;
exception when sqlstate 'JB002' or sqlstate 'JB006' then
  return 0;  -- it moved on by itself in between
end
$$;
