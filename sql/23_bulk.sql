-- Many jobs by one statement. A bulk call is a table of rows (id, args, kwargs, unique key) and a few *templates*, which say the rest:
-- what is asked is checked once a template, not once a row, and written by one INSERT. Only rows that need more than their own place,
-- such as parents, go one by one.

create or replace function bridge.headers_of(p_asked bridge.job_request) returns json language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- The message headers of a job: those that were asked for, and its time limits.
begin
  perform bridge.check_headers(p_asked.headers);
  if num_nonnulls(p_asked.timeout, p_asked.soft_timeout) > 0 then
    return coalesce(p_asked.headers, '{}') || jsonb_build_object('timelimit',
      jsonb_build_array(extract(epoch from p_asked.timeout), extract(epoch from p_asked.soft_timeout)));
  end if;
  return p_asked.headers;
end
$$;

create or replace function bridge.read_request(p_job jsonb) returns bridge.job_request language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- What an object asks of a job, by the argument names of bridge.enqueue; null has the default.
  --
  -- Errors  JB001 no object, an unknown key; JB008 the caller may not enqueue this task; 22… a value of the wrong type
declare
  v_request bridge.job_request := bridge.defaults();
  v_known jsonb;
  v_given jsonb;
  v_unknown text;
begin
  if jsonb_typeof(p_job) is distinct from 'object' then
    perform bridge.refuse(format('job is %s', coalesce('a JSON ' || jsonb_typeof(p_job), 'null')), 'give a JSON object');
  end if;
  v_known := to_jsonb(v_request);
  select string_agg(e.key, ', ') filter (where not v_known ? e.key), jsonb_object_agg(e.key, e.value) filter (where e.value <> 'null')
  into v_unknown, v_given from jsonb_each(p_job) e;
  if v_unknown is not null then
    perform bridge.refuse(format('unknown key %s', v_unknown), 'use the argument names of bridge.enqueue');
  end if;
  v_request := jsonb_populate_record(v_request, coalesce(v_given, '{}'));
  if bridge.tasks_are_ruled() or v_request.task like 'bridge.%' then
    perform bridge.check_task(v_request.task);
  end if;
  return v_request;
end
$$;

create or replace function bridge.request_of(p_job jsonb, p_now timestamptz) returns bridge.job_request language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- The same, checked as far as it is not a row's own. Errors  as bridge.enqueue
declare
  v_asked constant bridge.job_request := bridge.read_request(p_job);
begin
  perform bridge.check_job(v_asked.task, v_asked.queue, v_asked.args::json, v_asked.kwargs::json, 0);
  perform bridge.check_options(v_asked, p_now);
  perform bridge.check_headers(v_asked.headers);
  return v_asked;
end
$$;

create or replace function bridge.wrong_type(p_job jsonb) returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Which key of an object has a value that its argument cannot take; null when there is none.
declare
  v_key text;
begin
  for v_key in select k from jsonb_object_keys(p_job) k loop
    perform jsonb_populate_record(null::bridge.job_request, jsonb_build_object(v_key, p_job->v_key));
  end loop;
  return null;
exception when data_exception then
  return v_key;
end
$$;

create or replace function bridge.right_type(p_key text) returns text language sql stable set search_path = pg_catalog, pg_temp
  -- What to give for an argument, by the type that it has.
  return (select case pg_catalog.format_type(a.atttypid, null)
      when 'text[]' then 'give an array of texts, such as ["ValueError"]'
      when 'uuid[]' then 'give an array of ids, or of numbers of earlier jobs of the call'
      when 'uuid' then 'give an id'
      when 'integer' then 'give a whole number'
      when 'interval' then 'give an interval, such as "5 minutes"'
      when 'timestamp with time zone' then 'give a time with its zone, such as "2030-01-31 18:00+00"' end
    from pg_catalog.pg_attribute a where a.attrelid = 'bridge.job_request'::regclass and a.attname = p_key);

create or replace function bridge.goes_alone(p_asked bridge.job_request) returns boolean language sql stable set search_path = pg_catalog, pg_temp
  -- Whether a job asks for something that bridge.write_rows does not know how to do for many at once.
  begin atomic
    select coalesce(p_asked.depends_on <> '{}', false) or p_asked.on_conflict not in ('skip', 'raise') or jsonb_strip_nulls(to_jsonb(p_asked) - v.known)
      is distinct from jsonb_strip_nulls(to_jsonb(bridge.defaults()) - v.known)
    from (values (array['task', 'args', 'kwargs', 'queue', 'priority', 'run_at', 'delay', 'max_attempts', 'backoff', 'unique_key', 'on_conflict',
      'depends_on', 'timeout', 'expires_at', 'headers', 'retry_on', 'never_on', 'soft_timeout', 'deadline', 'serial_key', 'unique_until',
      'unique_for', 'batch', 'webhook'])) v (known);
  end;

create or replace function bridge.take_keys(p_asked bridge.job_request[], p_alone boolean[], p_ids uuid[], p_which integer[], p_keys text[],
    p_seqs bigint[], p_now timestamptz)
  returns uuid[] language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- What bridge.take_key does, for the rows of a bulk call that skip or raise; of rows with one key the first has it.
  --
  -- Returns  by row, the id of the job that has its key: its own where that is taken now; null for other rows
  -- Errors   JB003 for one of the rows, which is not named
declare
  v_held uuid[];
  v_open boolean;
begin
  for i in 1..100 loop
    if exists (select from bridge.unique_key u where u.key = any (p_keys) and u.kept_until <= p_now) then
      perform bridge.hold_keys(p_keys, p_now);
    end if;
    insert into bridge.unique_key (key, seq, id, until_start, kept_until)
    select distinct on (r.key) r.key, r.seq, r.id, bridge.is_free_at_start(p_asked[r.which]), p_now + (p_asked[r.which]).unique_for
    from unnest(p_ids, p_which, p_keys, p_seqs) with ordinality r (id, which, key, seq, place)
    where r.key is not null and not p_alone[r.which] order by r.key, r.place
    on conflict (key) do nothing;
    select array_agg(u.id order by r.place), coalesce(bool_or(r.key is not null and u.id is null and not p_alone[r.which]), false)
    into v_held, v_open
    from unnest(p_which, p_keys) with ordinality r (which, key, place) left join bridge.unique_key u on u.key = r.key;
    exit when not v_open;  -- else one was given back between the two statements
  end loop;
  if exists (select from unnest(p_ids, p_which, v_held) r (id, which, held) where r.held <> r.id and (p_asked[r.which]).on_conflict = 'raise') then
    perform bridge.refuse('unique_key belongs to another job', 'use on_conflict => ''skip'' to get its id', 'JB003');
  end if;
  return v_held;
end
$$;

create or replace function bridge.write_rows(p_templates jsonb[], p_ids uuid[], p_which integer[], p_args text[], p_kwargs text[], p_keys text[])
  returns uuid[] language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Write the jobs of a bulk call.
  --
  --   p_templates  objects as bridge.enqueue_many takes them; args, kwargs and unique_key are the rows' own, and unique_key is '*' there
  --                where the rows have one
  --   p_ids        of the jobs; p_args: JSON
  --   p_which      by row, the number of its template; null: the first for all
  --   p_kwargs     JSON; null: no row has any
  --   p_keys       null where there is none
  --
  -- Returns  by row, the id of the job that stands; null when each is the row's own
  -- Errors   as bridge.enqueue; which row it was, bridge.faults finds
declare
  v_now constant timestamptz := clock_timestamp();
  v_asked constant bridge.job_request[] := array(select bridge.request_of(t.job, v_now) from unnest(p_templates) with ordinality t (job, n) order by t.n);
  v_alone constant boolean[] := array(select bridge.goes_alone(a) from unnest(v_asked) a);
  v_keyed constant boolean := array_length(array_remove(p_keys, null), 1) > 0;
  v_size constant integer[] := array[cardinality(p_ids)];
  v_seqs bigint[];
  v_keys text[];
  v_stands uuid[];
  v_gate bridge.gate;
  v_queues text[];
  v_held bigint[];
begin
  if bridge.tenants_are_on() then
    perform bridge.check_tenant(a) from unnest(v_asked) a;
  end if;
  if v_keyed or true = any (v_alone) then  -- rows are looked at one by one
    p_which := coalesce(p_which, array_fill(1, v_size));
    p_kwargs := coalesce(p_kwargs, array_fill('{}'::text, v_size));
  end if;
  perform bridge.join_batch(b.batch) from (select distinct a.batch from unnest(v_asked) a where a.batch is not null order by a.batch) b;
  if v_keyed then
    v_seqs := array(select nextval('bridge.job_seq_seq') from generate_series(1, cardinality(p_ids)));
    perform bridge.check_keys(v_asked, p_which, p_keys);
    v_keys := case when bridge.tenants_are_on() then array(select bridge.tenant_key(k) from unnest(p_keys) with ordinality u (k, n) order by u.n) else p_keys end;
    if true = any (v_alone) then
      perform bridge.hold_shared(null, v_keys, array(select (v_asked[w]).on_conflict not in ('skip', 'raise') from unnest(p_which) with ordinality r (w, n) order by r.n));
    end if;
    v_stands := bridge.take_keys(v_asked, v_alone, p_ids, p_which, v_keys, v_seqs, v_now);
  end if;
  select g.* into v_gate from bridge.gate g;
  with template as materialized (
    select n, (v_asked[n]).*, bridge.headers_of(v_asked[n]) as all_headers, bridge.options_of(v_asked[n]) as options,
      coalesce((v_asked[n]).run_at, v_now + (v_asked[n]).delay, v_now) as due
    from generate_subscripts(v_asked, 1) n where not v_alone[n]
  ), made as (
    insert into bridge.job (seq, id, task, queue, rank, args, kwargs, headers, size, max_attempts, backoff, unique_key, expires_at, run_at,
      created_at, updated_at, options, deadline, serial_key, batch)
    overriding system value
    select coalesce(r.taken, r.seq), r.id, t.task, t.queue, (9 - t.priority)::smallint,
      case when left(r.args, 1) = '[' and coalesce(left(r.kwargs, 1) = '{', p_kwargs is null)
          and octet_length(r.args) + coalesce(octet_length(r.kwargs), 2) <= 65536
          and (octet_length(r.args) + coalesce(octet_length(r.kwargs), 2) <= 400
            or octet_length(r.args) - octet_length(replace(replace(r.args, '[', ''), '{', '')) <= 200
              and coalesce(octet_length(r.kwargs) - octet_length(replace(replace(r.kwargs, '[', ''), '{', '')) <= 200, true)) then r.args::json
        else bridge.checked_args(v_asked[coalesce(r.which, 1)], r.args, case when p_kwargs is null then '{}' else r.kwargs end) end,
      coalesce(r.kwargs::json, '{}'), t.all_headers, octet_length(r.args) + coalesce(octet_length(r.kwargs), 2), coalesce(t.max_attempts, 3), t.backoff,
      r.key, t.expires_at, t.due, v_now, v_now, t.options,
      t.due + t.deadline, case when bridge.tenants_are_on() then bridge.tenant_key(t.serial_key) else t.serial_key end, t.batch
    -- In the select list arrays are read as they are; in from each would be copied first.
    from (select unnest(p_ids) as id, unnest(p_which) as which, unnest(p_args) as args, unnest(p_kwargs) as kwargs, unnest(v_seqs) as taken,
      case when v_seqs is null then nextval('bridge.job_seq_seq') end as seq, unnest(v_keys) as key, unnest(v_stands) as stands) r
    join template t on t.n = coalesce(r.which, 1)
    where r.key is null or r.stands = r.id
    returning seq, id, batch, queue, rank, size, run_at, run_at <= v_now as due, v_gate.in_use or serial_key is not null as held
  ), linked as (
    insert into bridge.link (above, below, kind, made_at) select m.batch, m.id, 'batch', v_now from made m where m.batch is not null
  ), later as (
    insert into bridge.scheduled (seq, run_at) select m.seq, m.run_at from made m where not m.due
  ), placed as (
    insert into bridge.ready (queue, rank, seq, size, gate)
    select m.queue, m.rank, m.seq, m.size, v_gate.version from made m where m.due and not m.held order by m.seq
  )
  select (select array_agg(distinct t.queue) from template t where t.due <= v_now and not v_gate.in_use and t.serial_key is null),
    (select array_agg(m.seq order by m.seq) from made m where m.due and m.held)
  into v_queues, v_held;
  perform bridge.wake_drainers(q) from unnest(v_queues) q;
  if v_held is not null then
    perform bridge.make_many_ready(v_held);
  end if;
  if true = any (v_alone) then
    v_stands := bridge.write_alone(v_asked, v_alone, p_ids, p_which, p_args, p_kwargs, p_keys, coalesce(v_stands, array_fill(null::uuid, v_size)));
  end if;
  return case when v_stands is not null then array(select coalesce(r.stands, r.id) from unnest(v_stands, p_ids) with ordinality r (stands, id, place)
    order by r.place) end;
end
$$;

create or replace function bridge.may_be_named(p_task text, p_queue text) returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Whether a job may have this task and this queue.
begin
  perform bridge.check_job(p_task, p_queue, '[]', '{}', 0);
  return true;
exception when sqlstate 'JB001' then
  return false;
end
$$;

create or replace function bridge.write_messages(p_jobs json) returns uuid[] language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Write messages that bridge.enqueue_buffered gets by one statement, where none asks for anything beyond its content, as nearly all calls of
  -- a transaction do.
  --
  -- Returns  their ids, in order; null where one of them needs more or is to be refused: then nothing was written
  -- Index    job_id, finished_id, revoked_pkey
declare
  v_now constant timestamptz := clock_timestamp();
  v_gate bridge.gate;
  v_ids uuid[];
  v_made uuid[];
  v_known uuid[];
  v_queues text[];
  v_elsewhere bigint[];
  v_again record;
begin
  if bridge.tenants_are_on() or bridge.tasks_are_ruled() then
    return null;
  end if;
  select g.* into v_gate from bridge.gate g;
  with given as materialized (
    select r.*, coalesce(octet_length(r.payload), octet_length(r.args::text) + octet_length(r.kwargs::text)) as size
    from rows from (json_to_recordset(p_jobs) as (id uuid, task_id text, task text, queue text, rank smallint, args json,
      kwargs json, embed json, payload bytea, content_type text, content_encoding text, headers json, properties json,
      expires_at timestamptz, run_at timestamptz, chord text, options json, links json, fresh boolean)) with ordinality r
  ), plain as materialized (
    select not exists (select from given g cross join lateral (
        select concat(g.args, g.kwargs, g.headers, g.properties) as texts) d
      where g.chord is not null or g.options is not null or g.task like 'bridge.%'
        or g.size > 65536 or json_typeof(g.args) is distinct from 'array' or json_typeof(g.kwargs) is distinct from 'object'
        or json_typeof(g.headers) <> 'object' or json_typeof(g.properties) <> 'object' or g.headers->>'task' is distinct from g.task
        or json_typeof(g.headers->'stamped_headers') = 'array'
        -- Of these together fewer than 200 brackets: none of them is nested deeper, see bridge.check_depth.
        or octet_length(d.texts) - octet_length(replace(replace(d.texts, '[', ''), '{', '')) > 200)
      and not exists (select from (select distinct g.task, g.queue from given g) n where not bridge.may_be_named(n.task, n.queue)) as are_all
  ), made as (
    insert into bridge.job (seq, id, task_id, task, queue, rank, args, kwargs, embed, payload, content_type, content_encoding, headers, properties,
      size, max_attempts, expires_at, run_at, created_at, updated_at)
    overriding system value
    select nextval('bridge.job_seq_seq'), g.id, g.task_id, g.task, g.queue, g.rank, g.args, g.kwargs, g.embed, g.payload, g.content_type,
      g.content_encoding, g.headers, g.properties, g.size, 1, g.expires_at, coalesce(g.run_at, v_now), v_now, v_now
    from (select g.* from given g, plain p where p.are_all order by g.ordinality) g
    on conflict (id) do nothing
    returning seq, id, queue, rank, size, run_at <= v_now and not v_gate.in_use as is_ready
  ), linked as (
    insert into bridge.link (above, below, kind, made_at)
    select l.value::uuid, m.id, l.key, v_now from made m join given g on g.id = m.id cross join lateral json_each_text(g.links) l
    on conflict do nothing
  ), placed as (
    insert into bridge.ready (queue, rank, seq, size, gate)
    select m.queue, m.rank, m.seq, m.size, v_gate.version from made m where m.is_ready order by m.seq
  )
  select (select array_agg(g.id order by g.ordinality) from given g, plain p where p.are_all), (select array_agg(m.id) from made m),
    (select array_agg(m.id) from made m join given g on g.id = m.id where g.fresh is not true),
    (select array_agg(distinct m.queue) from made m where m.is_ready), (select array_agg(m.seq order by m.seq) from made m where not m.is_ready)
  into v_ids, v_made, v_known, v_queues, v_elsewhere;
  perform bridge.wake_drainers(q) from unnest(v_queues) q;
  perform bridge.place(j.seq, j.queue, j.rank, j.size, j.run_at, v_now) from unnest(v_elsewhere) u (seq) join bridge.job j on j.seq = u.seq;
  if v_known is not null then  -- as bridge.add_job does with an id that the caller chose
    for v_again in
      select j.id, j.seq, j.headers from bridge.job j where j.id = any (array(
        select f.id from bridge.finished f where f.id = any (v_known) union select r.id from bridge.revoked r where r.id = any (v_known)))
    loop
      perform bridge.make_way(v_again.id, v_again.seq);
      if bridge.take_revoke(v_again.id, v_again.headers, v_now) then
        perform bridge.leave_waiting(v_again.seq);
        perform bridge.end_job(v_again.seq, 'cancelled', null, null, null, 0, null, null, null, null);
      end if;
    end loop;
  end if;
  if cardinality(v_ids) > coalesce(cardinality(v_made), 0) then  -- the id is a live job's, which may be one that has replaced itself by this
    perform bridge.enqueue_gathered(e) from json_array_elements(p_jobs) e where (e->>'id')::uuid <> all (coalesce(v_made, '{}'));
  end if;
  return v_ids;
end
$$;

create or replace function bridge.write_alone(p_asked bridge.job_request[], p_alone boolean[], p_ids uuid[], p_which integer[], p_args text[],
    p_kwargs text[], p_keys text[], p_stands uuid[])
  returns uuid[] language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Write the rows of a bulk call that bridge.goes_alone tells of, in their order: a parent stands before its children.
  --
  --   p_stands  by row, who stands already; null where that is the row's own id or open
  --
  -- Returns  the same, with those rows
declare
  v_row record;
  v_asked bridge.job_request;
begin
  for v_row in
    select r.* from unnest(p_ids, p_which, p_args, p_kwargs, p_keys) with ordinality r (id, which, args, kwargs, key, place)
    where p_alone[r.which] order by r.place
  loop
    v_asked := p_asked[v_row.which];
    perform bridge.check_order(v_asked.depends_on, p_ids, v_row.place);
    v_asked.args := v_row.args::jsonb;
    v_asked.kwargs := v_row.kwargs::jsonb;
    v_asked.unique_key := v_row.key;
    -- A parent in this call whose key another job has is that job.
    v_asked.depends_on := array(select coalesce(p_stands[array_position(p_ids, d)], d) from unnest(v_asked.depends_on) d);
    p_stands[v_row.place] := bridge.enqueue_as(v_row.id, v_asked);
  end loop;
  return p_stands;
end
$$;

create or replace function bridge.check_keys(p_asked bridge.job_request[], p_which integer[], p_keys text[]) returns void language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- Refuse rows of a bulk call whose unique key cannot be one. Errors  as bridge.enqueue
declare
  v_row record;
  v_asked bridge.job_request;
begin
  for v_row in
    select r.* from (select unnest(p_which) as which, unnest(p_keys) as key) r where octet_length(r.key) not between 1 and 2000
  loop
    v_asked := p_asked[v_row.which];
    v_asked.unique_key := v_row.key;
    perform bridge.check_unique(v_asked);
  end loop;
end
$$;

create or replace function bridge.checked_args(p_asked bridge.job_request, p_args text, p_kwargs text) returns json language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- The arguments of a row that at first sight no worker could run. Errors  as bridge.enqueue
begin
  perform bridge.check_row(p_asked, p_args, p_kwargs, null);
  return p_args::json;
end
$$;

create or replace function bridge.check_row(p_asked bridge.job_request, p_args text, p_kwargs text, p_key text) returns void language plpgsql
  stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse one row of a bulk call. Errors  as bridge.enqueue
begin
  perform bridge.check_job(p_asked.task, p_asked.queue, p_args::json, p_kwargs::json, octet_length(p_args) + octet_length(p_kwargs));
  if p_key is not null then
    p_asked.unique_key := p_key;
    perform bridge.check_unique(p_asked);
  end if;
end
$$;

create or replace function bridge.check_order(p_parents uuid[], p_ids uuid[], p_place bigint) returns void language plpgsql immutable
  set search_path = pg_catalog, pg_temp as $$
  -- Refuse a row of a bulk call whose parent comes after it: so no call can go round in a circle.
declare
  v_later bigint;
begin
  select array_position(p_ids, d) into v_later from unnest(p_parents) d where array_position(p_ids, d) >= p_place limit 1;
  if found then
    perform bridge.refuse(format('depends_on names job %s of this call, which is not before it', v_later - 1), 'put parents before their children');
  end if;
end
$$;
