-- Unique keys: who has one, and what a second job with it does to the first. A key is taken by a row of `unique_key`, given back by the end
-- of its job, by its start, or by time; nothing waits for it but whoever takes it.

create or replace function bridge.check_unique(p_asked bridge.job_request) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse what is asked about a unique key when it contradicts itself or can never be.
declare
  v_changes constant boolean := p_asked.on_conflict in ('replace', 'move', 'debounce');
begin
  if coalesce(p_asked.on_conflict, 'null') not in ('skip', 'raise', 'replace', 'move', 'debounce') then
    perform bridge.refuse(format('on_conflict is %L', p_asked.on_conflict), 'give skip, raise, replace, move or debounce');
  elsif p_asked.unique_key is null then
    if p_asked.on_conflict <> 'skip' or p_asked.unique_until is not null or p_asked.unique_for is not null then
      perform bridge.refuse(format('%s is given without unique_key', case when p_asked.on_conflict <> 'skip' then 'on_conflict'
        when p_asked.unique_until is not null then 'unique_until' else 'unique_for' end), 'give a unique_key, or leave it away');
    end if;
  elsif octet_length(p_asked.unique_key) not between 1 and 2000 then
    perform bridge.refuse(case when p_asked.unique_key = '' then 'unique_key is empty' else format('unique_key has %s bytes',
      octet_length(p_asked.unique_key)) end, 'give a text of 1 to 2000 bytes, a hash of what is longer, or null for none');
  elsif p_asked.unique_until not in ('started', 'finished') then
    perform bridge.refuse(format('unique_until is %L', p_asked.unique_until), 'give started or finished');
  elsif p_asked.unique_for not between interval '1 millisecond' and interval '10 years' then
    perform bridge.refuse(format('unique_for is %s', justify_interval(p_asked.unique_for)), 'give a positive interval of at most 10 years');
  elsif p_asked.unique_for is not null and p_asked.unique_until is not null then
    perform bridge.refuse('both unique_for and unique_until are given', 'give one of them');
  elsif p_asked.unique_for is not null and v_changes then
    perform bridge.refuse(format('both unique_for and on_conflict %L are given', p_asked.on_conflict),
      'a job that has ended cannot be changed: use skip or raise, or leave unique_for away');
  elsif v_changes and (p_asked.depends_on <> '{}' or p_asked.batch is not null) then
    perform bridge.refuse(format('both %s and on_conflict %L are given', case when p_asked.batch is null then 'depends_on' else 'batch' end,
      p_asked.on_conflict), 'a job that waits keeps its parents and its batch: use skip or raise');
  end if;
end
$$;

create or replace function bridge.take_waiting(p_seq bigint) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take a job that has not begun out of the place where it waits, to change it; one that is blocked stays there, and its row is locked.
  -- Returns false when it runs, has begun, has ended, or is in other hands; look again, it may have got a parent just now.
begin
  if exists (select from bridge.replaced r where r.seq = p_seq) then
    return false;  -- its run has replaced itself
  end if;
  update bridge.blocked b set run_at = b.run_at where b.seq = p_seq;
  if found then
    return true;
  end if;
  delete from bridge.scheduled s where s.seq = p_seq;
  return found or bridge.leave_due(p_seq);
end
$$;

create or replace function bridge.take_key(p_seq bigint, p_id uuid, p_asked bridge.job_request, p_now timestamptz) returns bridge.unique_key
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take a unique key for a job about to be written.
  --
  --   p_seq, p_id  of that job
  --
  -- Returns  null when it is ours now, else the row of who has it; where on_conflict is to change that job, it is out of its place
  -- Errors   JB003 when that job stands in the way
  -- Locks    shares its batch, before the key, as whoever runs an ended job again (bridge.hold_ended); waits for a transaction that takes
  --          or gives back the same key; then the place of the job to change
declare
  v_held bridge.unique_key;
begin
  if p_asked.batch is not null then
    perform from bridge.batch b where b.id = p_asked.batch for share;
  end if;
  for i in 1..100 loop  -- each time round, somebody has given the key back, or moved its job
    insert into bridge.unique_key (key, seq, id, until_start, kept_until)
    values (p_asked.unique_key, p_seq, p_id, bridge.is_free_at_start(p_asked), p_now + p_asked.unique_for) on conflict (key) do nothing;
    if found then
      return null;
    end if;
    select u.* into v_held from bridge.unique_key u where u.key = p_asked.unique_key;
    continue when not found;
    if v_held.kept_until <= p_now then
      delete from bridge.unique_key u where u.key = v_held.key and u.seq = v_held.seq;
    elsif v_held.id = p_id or p_asked.on_conflict = 'skip' then
      return v_held;
    elsif p_asked.on_conflict = 'raise' or v_held.kept_until is not null
      or exists (select from bridge.inflight f where f.seq = v_held.seq and f.state = 'running')
      or exists (select from bridge.replaced r where r.seq = v_held.seq)
    then
      exit;
    elsif bridge.take_waiting(v_held.seq) then
      if exists (select from bridge.unique_key u where u.key = v_held.key and u.seq = v_held.seq) then
        return v_held;
      end if;
      perform bridge.put_back(v_held.seq);  -- it had begun meanwhile, and waits for its next attempt
    end if;
  end loop;
  perform bridge.refuse_key(p_asked, v_held);
  return null;
end
$$;

create or replace function bridge.hold_keys(p_keys text[], p_now timestamptz) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Ask for unique keys in the one order in which that is done. A key that is free, or whose time is over, is this transaction's from then
  -- on, though no row is left of it: whoever else asks waits.
  --
  -- Locks    waits for a transaction that takes or gives back one of the keys
declare
  v_key text;
begin
  for v_key in select distinct k from unnest(p_keys) k where octet_length(k) between 1 and 2000 order by k loop
    delete from bridge.unique_key u where u.key = v_key and u.kept_until <= p_now;
    insert into bridge.unique_key (key, seq) values (v_key, 0) on conflict (key) do nothing;
    if found then
      delete from bridge.unique_key u where u.key = v_key;
    end if;
  end loop;
end
$$;

create or replace function bridge.hold_shared(p_batches uuid[], p_keys text[], p_changes boolean[]) returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Before jobs are written one by one: lock what they share with others in the order in which bridge.hold_ended does, all batches, then all
  -- keys, then the places of the jobs that have one of these and are to be changed.
  --
  --   p_keys     of the jobs, as they are kept; null where there is none
  --   p_changes  to the same length, whether the job changes another that has its key
  --
  -- Locks    see there, bridge.hold_keys and bridge.hold_places. A key that is given back meanwhile by a job that was not to be changed
  --          is asked for again when its row is written
begin
  perform from bridge.batch b where b.id = any (p_batches) order by b.id for share;
  perform bridge.hold_keys(p_keys, clock_timestamp());
  perform bridge.hold_places(array(select u.id from unnest(p_keys, p_changes) r (key, changes) join bridge.unique_key u on u.key = r.key
    where r.changes and u.kept_until is null));
end
$$;

create or replace function bridge.refuse_key(p_asked bridge.job_request, p_held bridge.unique_key) returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Say whose a key is, and what to do. Errors  JB003
begin
  if p_held.kept_until is not null then
    perform bridge.refuse(format('unique_key %L belongs to job %s until %s', p_asked.unique_key, p_held.id, p_held.kept_until),
      'call it later, or use on_conflict => ''skip'' to get the id of that job', 'JB003');
  elsif p_asked.on_conflict = 'raise' then
    perform bridge.refuse(format('unique_key %L belongs to a job that has not %s', p_asked.unique_key,
      case when p_held.until_start then 'started' else 'ended' end), 'wait for it, or use on_conflict => ''skip'' to get its id', 'JB003');
  end if;
  perform bridge.refuse(format('unique_key %L belongs to job %s, which has begun', p_asked.unique_key, p_held.id),
    'a job that runs cannot be changed: wait for its end, or make it with unique_until => ''started''', 'JB003');
end
$$;

create or replace function bridge.put_back(p_seq bigint) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Put a job that bridge.take_waiting has taken where it waits.
declare
  v_job bridge.job;
begin
  select j.* into v_job from bridge.job j where j.seq = p_seq;
  update bridge.blocked b set run_at = v_job.run_at where b.seq = p_seq;
  if not found then
    perform bridge.place(p_seq, v_job.queue, v_job.rank, v_job.size, v_job.run_at);
  end if;
end
$$;

create or replace function bridge.give_key_back(p_key text, p_seq bigint, p_held bigint) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Undo bridge.take_key for a job that is not written after all. p_held: the job that was taken out of its place; null when there is none
begin
  delete from bridge.unique_key u where u.key = p_key and u.seq = p_seq;
  if p_held is not null then
    perform bridge.put_back(p_held);
  end if;
end
$$;

create or replace function bridge.change_waiting(p_seq bigint, p_second bigint, p_on_conflict text, p_now timestamptz) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Do to a job that waits what a second one with its key has asked for, and put it back. It keeps its id, its attempts, its parents
  -- and its batch.
  --
  --   p_second       the second job, just written and in no place: it gives its content and is gone
  --   p_on_conflict  move: when it is due; replace: its content; debounce: both
declare
  v_content bridge.job;
begin
  delete from bridge.job j where j.seq = p_second returning j.* into v_content;
  if p_on_conflict in ('move', 'debounce') then
    update bridge.job j set run_at = v_content.run_at, deadline = j.deadline + (v_content.run_at - j.run_at), updated_at = p_now
    where j.seq = p_seq;
  end if;
  if p_on_conflict in ('replace', 'debounce') then
    update bridge.job j set task = v_content.task, queue = v_content.queue, rank = v_content.rank, args = v_content.args,
      kwargs = v_content.kwargs, embed = v_content.embed, payload = v_content.payload, content_type = v_content.content_type,
      content_encoding = v_content.content_encoding, headers = bridge.under_id(v_content.headers, v_content, coalesce(j.task_id, j.id::text)),
      properties = bridge.under_id(v_content.properties, v_content, coalesce(j.task_id, j.id::text)), size = v_content.size,
      max_attempts = v_content.max_attempts, backoff = v_content.backoff, expires_at = v_content.expires_at, options = v_content.options,
      deadline = v_content.deadline + (j.run_at - v_content.run_at), serial_key = v_content.serial_key, updated_at = p_now
    where j.seq = p_seq;
  end if;
  perform bridge.put_back(p_seq);
end
$$;

create or replace function bridge.under_id(p_part json, p_content bridge.job, p_task_id text) returns json language sql immutable
  set search_path = pg_catalog, pg_temp
  -- Headers or properties of a Celery message, with another id in place of its own.
  begin atomic
    select case when p_part is null then null else coalesce((
      select json_object_agg(e.key, case when e.value #>> '{}' = coalesce(p_content.task_id, p_content.id::text)
        and e.key in ('id', 'root_id', 'correlation_id') then to_json(p_task_id) else e.value end)
      from json_each(p_part) e), '{}') end;
  end;

create or replace function bridge.retake_key(p_old bridge.finished) returns uuid language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take the unique key of an ended job again, which is about to live again under another number. One that a start or time has given back
  -- stays free.
  --
  -- Returns  null when nobody else has it, else the id of the job that has it
  -- Locks    its caller has asked for the key before (bridge.hold_ended): it waits for nobody
declare
  v_id uuid;
begin
  if p_old.unique_key is null or coalesce(p_old.options, '{}') ?| array['unique_until', 'unique_for'] then
    return null;
  end if;
  loop
    insert into bridge.unique_key (key, seq, id) values (p_old.unique_key, p_old.seq, p_old.id) on conflict (key) do nothing;
    exit when found;
    select u.id into v_id from bridge.unique_key u where u.key = p_old.unique_key;
    exit when found;
  end loop;
  return nullif(v_id, p_old.id);
end
$$;

create or replace function bridge.note_keys(p_seqs bigint[]) returns void language sql set search_path = pg_catalog, pg_temp
  -- Let the start of these claimed jobs know which of them have a key to give back.
  begin atomic
    update bridge.inflight i set frees_key = true
    where i.seq = any (array (select u.seq from bridge.unique_key u where u.seq = any (p_seqs) and u.until_start));
  end;

create or replace function bridge.free_key(p_seq bigint) returns void language sql set search_path = pg_catalog, pg_temp
  -- A run has started whose job keeps its key only until then.
  begin atomic
    delete from bridge.unique_key u where u.seq = p_seq and u.until_start;
  end;

create or replace function bridge.clean_keys(p_limit integer, p_now timestamptz) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Forget keys whose time is over. Returns how many.
declare
  v_count integer;
begin
  delete from bridge.unique_key u where u.key = any (array (
    select o.key from bridge.unique_key o where o.kept_until <= p_now limit p_limit for update skip locked));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
