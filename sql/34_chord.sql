-- Chords: a part that ends adds a row in the transaction that ends it (see bridge.let_go). Then its worker looks whether all are there, in
-- a new transaction: of parts that end at once, the last to commit sees the others. Where nobody looked, the sweep asks a worker to join.

create or replace function bridge.begin_chord(p_id text, p_body json, p_members json, p_queue text, p_expires interval) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Expect the parts of a chord, before the first of them is enqueued. A chord that is applied again begins anew.
  --
  --   p_expires  for how long it waits for them; null for as long as ended jobs are kept
  --
  -- Errors  JB008 the caller may not enqueue the body
begin
  if bridge.tasks_are_ruled() then
    perform bridge.check_tasks_within(null, p_body, true);
  end if;
  insert into bridge.chord (id, body, members, queue, looked_at, expires_at)
  values (p_id, p_body, p_members, p_queue, clock_timestamp(),
    clock_timestamp() + coalesce(p_expires, bridge.seconds('retention')))
  on conflict (id) do update set size = null, added = 0, body = excluded.body, members = excluded.members, queue = excluded.queue,
    looked_at = excluded.looked_at, expires_at = excluded.expires_at;
  delete from bridge.chord_part p where p.chord = p_id;  -- after the chord, as whoever takes it
end
$$;

create or replace function bridge.size_chord(p_id text, p_size integer) returns void language sql security definer set search_path = pg_catalog, pg_temp
  -- Say how many parts the header has, before the last of them is enqueued. Celery also says it of a group that ends a part; the members
  -- of that count in the whole chord.
  begin atomic
    update bridge.chord set size = p_size where id = p_id;
  end;

create or replace function bridge.grow_chord(p_id text) returns void language sql security definer set search_path = pg_catalog, pg_temp
  -- Expect one part more: a part that runs adds it.
  begin atomic
    update bridge.chord set added = added + 1 where id = p_id;
  end;

create or replace function bridge.end_part(p_chord text, p_id uuid, p_index integer) returns void language sql security definer set search_path = pg_catalog, pg_temp
  -- Count a part that has no job here; its result is stored already.
  begin atomic
    insert into bridge.chord_part (chord, id, "index", at) values (p_chord, p_id, p_index, clock_timestamp()) on conflict do nothing;
  end;

create or replace function bridge.ask_to_join(p_chord text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A part has ended where no worker looks afterwards: have the sweep look soon. Never waits: a chord in other hands is looked at anyway.
begin
  update bridge.chord c set looked_at = '-infinity'
  where c.id = (select o.id from bridge.chord o where o.id = p_chord and o.looked_at <> '-infinity' for update skip locked);
end
$$;

create or replace function bridge.is_chord_complete(p_id text) returns boolean language plpgsql stable security definer set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Whether all parts of a chord have ended and nobody has joined it.
declare
  v_wanted integer;
begin
  select c.size + c.added into v_wanted from bridge.chord c where c.id = p_id;
  return v_wanted <= (select count(*) from (select from bridge.chord_part p where p.chord = p_id limit v_wanted) o);
end
$$;

create or replace function bridge.take_chord(p_id text) returns table (body text, members text, parts uuid[]) language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Take a complete chord, to enqueue its body in the same transaction: the body is enqueued once, or the chord is still there.
  --
  -- Returns  the parts in the order of the header; no row when it is not complete, was joined, or is in other hands
  -- Locks    the chord, if it is free: never waits
begin
  if not coalesce(bridge.is_chord_complete(p_id), false) then
    return;
  end if;
  delete from bridge.chord c where c.id = (select o.id from bridge.chord o where o.id = p_id for update skip locked)
  returning c.body::text, c.members::text into body, members;
  if not found then
    return;
  end if;
  with gone as (delete from bridge.chord_part p where p.chord = p_id returning p.id, p."index", p.at)
  select array_agg(g.id order by g."index", g.at) into parts from gone g;
  return next;
end
$$;

create or replace function bridge.have_joined(p_chord text, p_queue text) returns boolean language plpgsql set search_path = pg_catalog, pg_temp
  set lock_timeout = '10ms' as $$
  -- Make a job for a worker to join a chord; one at a time, by its unique key.
  --
  -- Returns  false when a transaction that is still open takes or gives back that key, as one that runs such a job again
  -- Locks    waits 10 ms for it
begin
  perform bridge.enqueue_as(bridge.new_id(), jsonb_populate_record(bridge.defaults(), jsonb_build_object('task', 'bridge.join_chord',
    'args', jsonb_build_array(p_chord), 'queue', p_queue, 'priority', 9, 'unique_key', 'bridge.join_chord ' || p_chord)));
  return true;
exception when lock_not_available then
  return false;
end
$$;

create or replace function bridge.sweep_chords(p_limit integer, p_now timestamptz) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Have chords joined whose parts have all ended and whom nobody joined: the last part was cancelled, or its worker died just then.
  -- Each chord is looked at every 10 seconds at most, and at once when somebody asked.
  --
  -- Returns  how many jobs were made for workers to join chords
declare
  v_row record;
  v_count integer := 0;
begin
  for v_row in
    update bridge.chord c set looked_at = p_now
    where c.id = any (array (select o.id from bridge.chord o where o.looked_at < p_now - interval '10 seconds' order by o.looked_at limit p_limit
      for update skip locked))
    returning c.id, c.queue
  loop
    if bridge.is_chord_complete(v_row.id) then
      v_count := v_count + bridge.have_joined(v_row.id, v_row.queue)::integer;
    end if;
  end loop;
  return v_count;
end
$$;

create or replace function bridge.clean_chords(p_now timestamptz, p_limit integer default 10000) returns integer language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Forget chords whose time is over and none of whose parts is still to run, and parts of a day ago that no chord waits for. Returns
  -- how many.
  --
  -- Index    job_chord
declare
  v_chords integer;
  v_parts integer;
begin
  delete from bridge.chord c where c.id = any (array (select o.id from bridge.chord o
    where o.expires_at < p_now and not exists (select from bridge.job j where j.chord = o.id) limit p_limit for update skip locked));
  get diagnostics v_chords = row_count;
  delete from bridge.chord_part p where p.ctid = any (array (select o.ctid from bridge.chord_part o
    where o.at < p_now - interval '1 day' and not exists (select from bridge.chord c where c.id = o.chord) limit p_limit for update skip locked));
  get diagnostics v_parts = row_count;
  return v_chords + v_parts;
end
$$;
