-- Which jobs the gate holds: limits by queue, task and key, and serial keys. A due job that one of them is about waits in a lane
-- (17_gate.sql), every other in `ready`; the claims in 29_lane.sql let it through.

create or replace function bridge.limit_key(p_path text, p_queue text, p_task text, p_args json, p_kwargs json) returns text language plpgsql
  immutable set search_path = pg_catalog, pg_temp as $$
  -- What a limit counts a job under: the first of the places that its path names where the job has something.
  --
  --   p_path  queue, task, args.<number>… or kwargs.<name>…, several with | between them
  --
  -- Returns  null when the job has none of them: such jobs share one more key
declare
  v_place text;
  v_steps text[];
  v_key text;
begin
  foreach v_place in array string_to_array(p_path, '|') loop
    v_steps := string_to_array(v_place, '.');
    v_key := case v_steps[1] when 'queue' then p_queue when 'task' then p_task
      when 'args' then p_args #>> v_steps[2:] else p_kwargs #>> v_steps[2:] end;
    exit when v_key is not null;
  end loop;
  return case when length(v_key) > 200 then left(v_key, 160) || ' ' || md5(v_key) else v_key end;
end
$$;

create or replace function bridge.lane_of(p_seq bigint) returns bridge.lane language plpgsql volatile set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- What a job must wait for at the gate. A job that nothing is about costs one probe of a table with one row.
  --
  -- Returns  a lane without number and turn; its buckets are null when nothing holds the job
declare
  v_lane bridge.lane;
  v_job record;
begin
  select j.queue, j.rank, j.task, j.args, j.kwargs, j.serial_key, g.version, g.in_use into v_job
  from bridge.job j cross join bridge.gate g where j.seq = p_seq;
  v_lane.queue := v_job.queue;
  v_lane.rank := v_job.rank;
  v_lane.version := v_job.version;
  if not v_job.in_use and v_job.serial_key is null then
    return v_lane;
  end if;
  if v_job.serial_key is not null then
    v_lane.serial := bridge.bucket_id(0, v_job.serial_key);
  end if;
  select array_agg(b.id order by b.id), array_agg(b.job_limit order by b.id), array_agg(b.key order by b.id)
  into v_lane.buckets, v_lane.limits, v_lane.keys
  from (
    select bridge.bucket_id(l.id, k.key) as id, l.id as job_limit, k.key from bridge.job_limit l
    cross join lateral (select case when l.key is not null then bridge.limit_key(l.key, v_job.queue, v_job.task, v_job.args, v_job.kwargs) end) k (key)
    where v_job.in_use and v_job.queue like l.queue_like and v_job.task like l.task_like
    union all
    select v_lane.serial, 0, v_job.serial_key where v_job.serial_key is not null
  ) b;
  return v_lane;
end
$$;

create or replace function bridge.hold(p_lane bridge.lane, p_seq bigint, p_size integer, p_token uuid, p_pos bigint default null) returns void
  language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Put a job into its lane.
  --
  --   p_lane  as bridge.lane_of gives it
  --   p_pos   where it stands in the order of arrival; null: at the end
  --
  -- Locks  the lane, so that no claim takes it away as empty meanwhile (for key share, skip locked: never waits). Where there is none, or a
  --        claim is just taking it away, it makes one: two lanes of the same buckets do no harm, and an empty one goes. In a repeatable read
  --        transaction a row that was changed since cannot be locked: such a one uses lanes of its own.
declare
  v_lane bigint;
  v_pos bigint := coalesce(p_pos, nextval('bridge.ready_pos_seq'));
begin
  if p_lane.serial is not null and exists (
      select from bridge.permit p where p.bucket = p_lane.serial and p.seq = p_seq and not p.freed) then
    v_pos := 0;
  elsif current_setting('transaction_isolation') = 'read committed' then
    select l.id into v_lane from bridge.lane l
    where l.queue = p_lane.queue and l.rank = p_lane.rank and l.version = p_lane.version and l.buckets = p_lane.buckets
    limit 1 for key share skip locked;
  else
    select l.id into v_lane from bridge.lane l
    where l.queue = p_lane.queue and l.rank = p_lane.rank and l.version = p_lane.version and l.buckets = p_lane.buckets
      and l.xmin = pg_current_xact_id()::xid limit 1;
  end if;
  if v_lane is null then
    insert into bridge.lane (queue, rank, version, buckets, limits, keys, serial, turn)
    values (p_lane.queue, p_lane.rank, p_lane.version, p_lane.buckets, p_lane.limits, p_lane.keys, p_lane.serial, v_pos)
    returning id into v_lane;
  end if;
  insert into bridge.held (seq, lane, pos, size, token, serial) values (p_seq, v_lane, v_pos, p_size, p_token, p_lane.serial);
end
$$;

create or replace function bridge.make_ready(p_seq bigint, p_queue text, p_rank smallint, p_size integer, p_token uuid default null,
    p_first boolean default false)
  returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Put a due job where claims find it: `ready`, or its lane when the gate holds it, and wake who listens.
  --
  --   p_token  of a delivery that may have been sent already
  --   p_first  it had its turn and has not begun: it stands before all of its rank that have waited since, the oldest first
declare
  v_lane constant bridge.lane := bridge.lane_of(p_seq);
  v_pos constant bigint := case when p_first then p_seq - 4611686018427387904 end;  -- below any of the sequence
begin
  if v_lane.buckets is not null then
    perform bridge.hold(v_lane, p_seq, p_size, p_token, v_pos);
  else
    insert into bridge.ready (queue, rank, pos, seq, size, token, gate) overriding system value
    values (p_queue, p_rank, coalesce(v_pos, nextval('bridge.ready_pos_seq')), p_seq, p_size, p_token, v_lane.version);
  end if;
  perform bridge.wake_drainers(p_queue);
end
$$;

create or replace function bridge.make_many_ready(p_seqs bigint[]) returns void language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Put many due jobs where claims find them, in the order given: by one statement as far as nothing holds them.
declare
  v_gate bridge.gate;
  v_queue text;
begin
  select g.* into v_gate from bridge.gate g;
  if not v_gate.in_use then
    insert into bridge.ready (queue, rank, seq, size, gate)
    select j.queue, j.rank, u.seq, j.size, v_gate.version from unnest(p_seqs) with ordinality u (seq, place)
    cross join lateral (select j.queue, j.rank, j.size from bridge.job j where j.seq = u.seq and j.serial_key is null offset 0) j order by u.place;
  end if;
  perform bridge.make_ready(j.seq, j.queue, j.rank, j.size) from (
    select j.* from unnest(p_seqs) with ordinality u (seq, place) cross join lateral (
      select j.seq, j.queue, j.rank, j.size from bridge.job j where j.seq = u.seq and (v_gate.in_use or j.serial_key is not null) offset 0) j
    order by u.place) j;
  for v_queue in select distinct j.queue from bridge.job j where j.seq = any (p_seqs) loop
    perform bridge.wake_drainers(v_queue);
  end loop;
end
$$;

create or replace function bridge.as_like(p_pattern text) returns text language sql immutable set search_path = pg_catalog, pg_temp
  -- A pattern with * and ? as LIKE takes it.
  return translate(replace(replace(replace(p_pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*?', '%_');

create or replace function bridge.check_limit(p_limit bridge.job_limit) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a limit that contradicts itself, or could never let anything through that it does not say to hold.
begin
  if p_limit.name is null or p_limit.name !~ '^\S(.{0,198}\S)?$' then
    perform bridge.refuse(format('name is %L', left(p_limit.name, 80)), 'give the limit a name, 1 to 200 characters');
  elsif p_limit.queue is null or p_limit.queue !~ '^[^\s,]{1,255}$' then
    perform bridge.refuse(format('queue is %L', left(p_limit.queue, 80)), 'give a queue, or a pattern with * and ?; ''*'' for all');
  elsif p_limit.task is null or p_limit.task !~ '^\S{1,255}$' then
    perform bridge.refuse(format('task is %L', left(p_limit.task, 80)), 'give a task, or a pattern with * and ?; ''*'' for all');
  elsif p_limit.key !~ '^(queue|task|(args|kwargs)(\.[^.|]+)+)(\|(queue|task|(args|kwargs)(\.[^.|]+)+))*$' then
    perform bridge.refuse(format('key is %L', left(p_limit.key, 80)), 'give queue, task or a path such as kwargs.tenant or args.0, several with | between them');
  elsif p_limit.concurrency not between 0 and 1000000 then
    perform bridge.refuse(format('concurrency is %s', p_limit.concurrency), 'give 0 (nothing is let through) to 1000000, or null for no bound');
  elsif p_limit.rate not between 1 and 1000000 then
    perform bridge.refuse(format('rate is %s', p_limit.rate), 'give 1 to 1000000 in each interval per, or null for no bound');
  elsif p_limit.per is null or p_limit.per not between interval '1 millisecond' and interval '30 days' then
    perform bridge.refuse(format('per is %s', coalesce(p_limit.per::text, 'null')), 'give an interval from 1 millisecond to 30 days');
  elsif p_limit.burst is not null and p_limit.rate is null then
    perform bridge.refuse(format('burst is %s without a rate', p_limit.burst), 'give a rate too');
  elsif p_limit.burst not between 1 and 1000000 then
    perform bridge.refuse(format('burst is %s', p_limit.burst), 'give 1 to 1000000, or null for what comes in a tenth of a second');
  elsif p_limit.fair is null or (p_limit.fair and p_limit.key is null) then
    perform bridge.refuse(format('fair is %s without a key', coalesce(p_limit.fair::text, 'null')), 'give the key whose values take turns');
  elsif p_limit.owner = 'limit' and p_limit.concurrency is null and p_limit.rate is null and not p_limit.fair then
    perform bridge.refuse(format('limit %s bounds nothing', p_limit.name), 'give concurrency, rate or fair => true');
  end if;
end
$$;

create or replace function bridge.keep_limit(p_limit bridge.job_limit) returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Write a limit under its owner and name.
  --
  -- Returns  created, changed or unchanged
  -- Locks    the gate's row first, so that those who change limits take turns
declare
  v_old bridge.job_limit;
  v_new integer;
  v_is_about constant text[] := array[p_limit.queue, p_limit.task, p_limit.key];
begin
  perform bridge.check_limit(p_limit);
  perform from bridge.gate for update;
  select l.* into v_old from bridge.job_limit l where l.owner = p_limit.owner and l.name = p_limit.name;
  if row(v_old.queue, v_old.task, v_old.key, v_old.concurrency, v_old.rate, v_old.per, v_old.burst, v_old.fair)
    is not distinct from row(p_limit.queue, p_limit.task, p_limit.key, p_limit.concurrency, p_limit.rate, p_limit.per, p_limit.burst, p_limit.fair) then
    return 'unchanged';
  end if;
  if v_old.id is not null and array[v_old.queue, v_old.task, v_old.key] = v_is_about then
    update bridge.job_limit l set concurrency = p_limit.concurrency, rate = p_limit.rate, per = p_limit.per, burst = p_limit.burst,
      pace = p_limit.pace, fair = p_limit.fair, changed_at = 'infinity'
    where l.id = v_old.id;
    perform bridge.count_running(v_old.id);
    perform bridge.look_again(v_old.id);
    return 'changed';
  end if;
  -- What it is about has changed: its buckets are others, and so are its jobs.
  delete from bridge.job_limit l where l.id = v_old.id;
  insert into bridge.job_limit (name, owner, queue, task, queue_like, task_like, key, concurrency, rate, per, burst, pace, fair, changed_at)
  values (p_limit.name, p_limit.owner, p_limit.queue, p_limit.task, bridge.as_like(p_limit.queue), bridge.as_like(p_limit.task), p_limit.key,
    p_limit.concurrency, p_limit.rate, p_limit.per, p_limit.burst, p_limit.pace, p_limit.fair, 'infinity')
  returning id into v_new;
  perform bridge.turn_gate(v_old.id);
  perform bridge.count_running(v_new);
  return case when v_old.id is null then 'created' else 'changed' end;
end
$$;

create or replace function bridge.count_running(p_limit integer) returns integer language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Give permits to what is in flight already when a limit comes, so that it counts. What somebody has in hand at this moment is left to
  -- the ticks of the next minute.
  --
  -- Returns  how many
declare
  v_row record;
  v_count integer := 0;
begin
  for v_row in
    select i.seq, bridge.bucket_id(l.id, k.key) as bucket
    from bridge.job_limit l join bridge.inflight i on i.queue like l.queue_like join bridge.job j on j.seq = i.seq and j.task like l.task_like
    cross join lateral (select case when l.key is not null then bridge.limit_key(l.key, j.queue, j.task, j.args, j.kwargs) end) k (key)
    where l.id = p_limit and l.concurrency is not null and i.taken_by is null
      and bridge.bucket_id(l.id, k.key) <> all (coalesce(i.permits, '{}'))
    for update of i skip locked
  loop
    update bridge.inflight i set permits = array_append(i.permits, v_row.bucket) where i.seq = v_row.seq;
    insert into bridge.permit (bucket, seq) values (v_row.bucket, v_row.seq) on conflict (bucket, seq) do update set freed = false;
    update bridge.bucket b set used = null where b.id = v_row.bucket;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

create or replace function bridge.count_recent(p_now timestamptz) returns integer language plpgsql set search_path = pg_catalog, pg_temp
  set lock_timeout = '10ms' as $$
  -- What claims had in hand while a limit came, or took while its transaction was open, which did not know it: within a minute of the first
  -- tick that sees it. While a transaction that is still open changes those limits, nothing is counted; what changes one counts itself.
  --
  -- Returns  how many
  -- Locks    limits that are new (skip locked); waits 10 ms for a bucket
begin
  update bridge.job_limit l set changed_at = p_now
  where l.id = any (array (select o.id from bridge.job_limit o where o.changed_at = 'infinity' for update skip locked));
  return (select coalesce(sum(bridge.count_running(l.id)), 0)::integer from bridge.job_limit l where l.changed_at > p_now - interval '1 minute');
exception when lock_not_available then
  return 0;
end
$$;

create or replace function bridge.turn_gate(p_gone integer) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Limits are about other jobs than before: what waits is looked at again when it is met, at once where it waits for a limit that is gone.
  --
  --   p_gone  the number of that limit; null for none
begin
  update bridge.gate g set version = g.version + 1, in_use = exists (select from bridge.job_limit);
  perform bridge.look_again(p_gone);
end
$$;

create or replace function bridge.look_again(p_limit integer) returns void language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- The numbers of a limit have changed: have the next claim look whether its buckets have room.
declare
  v_queue text;
begin
  update bridge.bucket b set due_at = clock_timestamp(), used = null where b.job_limit = p_limit;
  for v_queue in select distinct l.queue from bridge.bucket b join bridge.lane l on l.blocked_by = b.id where b.job_limit = p_limit loop
    perform bridge.wake_drainers(v_queue);
  end loop;
end
$$;

create or replace function bridge.drop_limit(p_owner text, p_name text) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Remove a limit. Returns false when there was none.
declare
  v_id integer;
begin
  perform from bridge.gate for update;
  delete from bridge.job_limit l where l.owner = p_owner and l.name = p_name returning l.id into v_id;
  if v_id is null then
    return false;
  end if;
  perform bridge.turn_gate(v_id);
  return true;
end
$$;

create or replace function bridge.set_limit(name text, queue text default '*', task text default '*', key text default null,
    concurrency integer default null, rate integer default null, per interval default '1 second', burst integer default null,
    fair boolean default false)
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Hold jobs back so that no more than this run, or start, at once. Saying the same again changes nothing.
  --
  --   name         of the limit
  --   queue, task  which jobs: names, or patterns with * and ?; '*' is all
  --   key          count apart what has another value here: queue, task, or a path into the arguments (kwargs.tenant, args.0.id); several
  --                with | between them, the first that is there counts. Jobs that have none share one more bound. Keys take turns.
  --   concurrency  most runs alive at once, from the claim to the end of the run; 0 lets nothing through
  --   rate, per    most jobs published in each interval per (default 1 second)
  --   burst        how many may go at once after a rest (default: what comes in a tenth of a second, 1 at least)
  --   fair         keys take turns, without any bound
  --
  -- A job must have room in every limit that is about it. What is in flight when a limit comes goes on, and counts.
  --
  -- Returns  created, changed or unchanged
  -- Errors   JB001 an argument
declare
  v_pace constant double precision := set_limit.rate / nullif(extract(epoch from set_limit.per), 0);
begin
  return bridge.keep_limit(row(null, set_limit.name, 'limit', set_limit.queue, set_limit.task, null, null, set_limit.key, set_limit.concurrency, set_limit.rate,
    set_limit.per, case when set_limit.burst is not null then set_limit.burst when set_limit.rate is not null then greatest(1, ceil(v_pace / 10)) end,
    v_pace, set_limit.fair, null)::bridge.job_limit);
end
$$;

create or replace function bridge.remove_limit(name text) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Remove a limit; what waited for it alone is due at once. Returns false when there was none of this name.
begin
  return bridge.drop_limit('limit', remove_limit.name);
end
$$;

create or replace function bridge.close_gate(p_name text, p_queue text default '*', p_task text default '*', p_admit integer default 0) returns text
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Hold jobs back for a pause or a circuit breaker: a limit that is no operator's, under a name of its own.
  --
  --   p_queue, p_task  which jobs, as in bridge.set_limit
  --   p_admit          most runs alive at once: 0 lets nothing through; null has no bound, and makes the next change a cheap one
  --
  -- Returns, Errors  as bridge.set_limit
begin
  return bridge.keep_limit(row(null, p_name, 'gate', p_queue, p_task, null, null, null, p_admit, null, interval '1 second', null, null, false, null)::bridge.job_limit);
end
$$;

create or replace function bridge.open_gate(p_name text) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take away what bridge.close_gate has made. Returns false when there was none.
begin
  return bridge.drop_limit('gate', p_name);
end
$$;
