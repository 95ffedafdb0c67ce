-- Making many jobs in one call: `bridge.enqueue_many` is for users, `bridge.enqueue_buffered` for what a process gathers in a transaction.

create or replace function bridge.row_template(p_job jsonb) returns jsonb language sql immutable set search_path = pg_catalog, pg_temp
  -- A job of a bulk call without what is its own, see bridge.write_rows.
  return case when jsonb_typeof(p_job) is distinct from 'object' then p_job
    when p_job->>'unique_key' is null then p_job - array['args', 'kwargs', 'unique_key']
    else p_job - array['args', 'kwargs'] || '{"unique_key": "*"}' end;

create or replace function bridge.with_parents(p_job jsonb, p_ids uuid[]) returns jsonb language sql immutable set search_path = pg_catalog, pg_temp
  -- A job of a bulk call, with ids in place of numbers of other jobs of the call.
  return case when jsonb_typeof(p_job->'depends_on') is distinct from 'array' then p_job else p_job || jsonb_build_object('depends_on', (
    select jsonb_agg(case when jsonb_typeof(d) = 'number' and (d #>> '{}')::numeric between 0 and cardinality(p_ids) - 1
      then to_jsonb(p_ids[(d #>> '{}')::integer + 1]) else d end)
    from jsonb_array_elements(p_job->'depends_on') d)) end;

create or replace function bridge.enqueue_elements(p_jobs jsonb[], p_ids uuid[], p_labels text[] default null) returns setof uuid
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Enqueue jobs given as objects, under ids that the caller has made. Returns and errors as bridge.enqueue_many.
declare
  v_templates jsonb[];
  v_which integer[];
  v_args text[];
  v_kwargs text[];
  v_keys text[];
begin
  with job as materialized (
    select j.place, j.value, bridge.row_template(bridge.with_parents(j.value, p_ids)) as template
    from unnest(p_jobs) with ordinality j (value, place)
  ), template as materialized (
    select t.template, row_number() over () as n from (select distinct j.template from job j) t
  )
  select (select array_agg(t.template order by t.n) from template t), array_agg(t.n order by j.place),
    array_agg(coalesce(nullif(j.value->'args', 'null'), '[]')::text order by j.place),
    array_agg(coalesce(nullif(j.value->'kwargs', 'null'), '{}')::text order by j.place), array_agg(j.value->>'unique_key' order by j.place)
  into v_templates, v_which, v_args, v_kwargs, v_keys
  from job j join template t on t.template is not distinct from j.template;
  return query select u from unnest(coalesce(bridge.enqueue_rows(v_templates, p_ids, v_which, v_args, v_kwargs, v_keys, 0, p_labels), p_ids)) u;
end
$$;

create or replace function bridge.enqueue_many(jobs jsonb) returns setof uuid language plpgsql security definer set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
  -- Enqueue many jobs at once, all or none.
  --
  --   jobs  a JSON array of objects whose keys are the argument names of bridge.enqueue, for example
  --         [{"task": "mail.send", "args": [1]}, {"task": "mail.send", "args": [2], "priority": 5}]
  --         depends_on may name earlier jobs of the array by their number, from 0: [{"task": "a"}, {"task": "b", "depends_on": [0]}]
  --
  -- Returns  the ids, in the order of the array; of a job whose unique key another has, that one's
  -- Errors   as bridge.enqueue; the message names each bad element of the array, up to 20, and the detail has them as JSON
declare
  v_jobs jsonb[];
begin
  if jsonb_typeof(jobs) is distinct from 'array' then
    perform bridge.refuse(format('jobs is %s', coalesce('a JSON ' || jsonb_typeof(jobs), 'null')), 'give a JSON array of objects');
  end if;
  v_jobs := array(select e from jsonb_array_elements(jobs) e);
  if v_jobs <> '{}' then
    return query select bridge.enqueue_elements(v_jobs, array(select bridge.new_id() from generate_series(1, cardinality(v_jobs))));
  end if;
end
$$;

create or replace function bridge.enqueue_page(p_templates text[], p_ids uuid[], p_which integer[], p_args text[], p_kwargs text[], p_keys text[],
    p_first integer)
  returns uuid[] language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
  -- A page of a bulk call from a program, see bridge.write_rows: an array a column. In Postgres's binary form, arrays of texts cost it half of
  -- what cutting one text does, and a tenth of looking into JSON. Its plans are generic from the first page on: a plan of a page's own would
  -- have megabytes of arrays in it as constants.
  --
  --   p_templates  JSON; depends_on may name earlier rows of the page by their number
  --   p_which      null: the first template for all; p_kwargs: null: none has any; p_keys: null: none has one
  --   p_first      number of the page's first row in the call
  --
  -- Returns  as bridge.write_rows
  -- Errors   as bridge.enqueue_many; JB001 when the columns are not of one length
declare
  v_count constant integer := coalesce(cardinality(p_ids), 0);
begin
  if array_ndims(p_ids) is distinct from 1 or array_ndims(p_args) is distinct from 1 or cardinality(p_args) <> v_count
      or array_ndims(p_which) <> 1 or cardinality(p_which) <> v_count or array_ndims(p_kwargs) <> 1 or cardinality(p_kwargs) <> v_count
      or array_ndims(p_keys) <> 1 or cardinality(p_keys) <> v_count then
    perform bridge.refuse(format('page of %s ids has a column of another length', v_count), 'give an item an id');
  end if;
  return bridge.enqueue_rows(
    array(select bridge.with_parents(t::jsonb, p_ids) from unnest(p_templates) with ordinality u (t, n) order by u.n), p_ids, p_which, p_args, p_kwargs,
    p_keys, p_first);
end
$$;

create or replace function bridge.enqueue_buffered(p_jobs json) returns setof uuid language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Enqueue what a process has gathered for one transaction, in its order, all or none: jobs alone by one statement.
  --
  --   p_jobs  a JSON array of objects, each with an id: either "job", an object as bridge.enqueue_many takes it, or what
  --           bridge.enqueue_message takes, by the names of its parameters without p_
  --
  -- Returns  the ids, in the order of the array
  -- Errors   as bridge.enqueue; among several jobs the message says which; an error that is not the job's own stays as it is
declare
  v_count integer;
  v_jobs jsonb[];
  v_ids uuid[];
  v_labels text[];
  v_written uuid[];
begin
  if json_typeof(p_jobs) is distinct from 'array' then
    perform bridge.refuse(format('jobs is %s', coalesce('a JSON ' || json_typeof(p_jobs), 'null')), 'give a JSON array of objects');
  end if;
  v_count := json_array_length(p_jobs);
  if v_count = 1 then
    return next bridge.enqueue_gathered(p_jobs->0);
    return;
  end if;
  select array_agg((e->'job')::jsonb order by n), array_agg((e->>'id')::uuid order by n),
    array_agg(format('job %s, task %s: ', e->>'id', e->'job'->>'task') order by n)
  into v_jobs, v_ids, v_labels
  from json_array_elements(p_jobs) with ordinality j (e, n) where e->'job' is not null;
  if cardinality(v_jobs) = v_count then
    return query select bridge.enqueue_elements(v_jobs, v_ids, v_labels);
    return;
  elsif v_jobs is null then
    v_written := bridge.write_messages(p_jobs);
  end if;
  if v_written is not null then
    return query select unnest(v_written);
  else
    return query select bridge.enqueue_mixed(p_jobs);
  end if;
end
$$;

create or replace function bridge.hold_options(p_options jsonb[]) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- What bridge.hold_shared does, for jobs given as objects of what is asked of them. What is wrong with one is said where it is written.
begin
  if exists (select from unnest(p_options) o where o->>'unique_key' is not null or o->>'batch' is not null) then
    perform bridge.hold_shared(
      array_agg((o->>'batch')::uuid) filter (where o->>'batch' ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'),
      array_agg(case when bridge.tenants_are_on() then bridge.tenant_key(o->>'unique_key') else o->>'unique_key' end),
      array_agg(coalesce(o->>'on_conflict' in ('replace', 'move', 'debounce'), false)))
    from unnest(p_options) o;
  end if;
end
$$;

create or replace function bridge.enqueue_gathered(p_job json) returns uuid language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Enqueue one of what bridge.enqueue_buffered gets. Returns its id, or that of another which has the unique key.
declare
  v_job record;
begin
  select r.* into v_job from json_to_record(p_job) as r (id uuid, job json, task_id text, task text, queue text, rank smallint, args json, kwargs json,
    embed json, payload bytea, content_type text, content_encoding text, headers json, properties json, expires_at timestamptz,
    run_at timestamptz, chord text, options jsonb, links jsonb, fresh boolean);
  if v_job.job is not null then
    return bridge.enqueue_as(v_job.id, bridge.read_request(v_job.job::jsonb));
  end if;
  return coalesce(bridge.enqueue_message(v_job.id, v_job.task_id, v_job.task, v_job.queue, v_job.rank, v_job.args, v_job.kwargs,
    v_job.embed, v_job.payload, v_job.content_type, v_job.content_encoding, v_job.headers, v_job.properties, v_job.expires_at, v_job.run_at,
    v_job.chord, v_job.options, v_job.links, v_job.fresh), v_job.id);
end
$$;

create or replace function bridge.enqueue_mixed(p_jobs json) returns setof uuid language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- What bridge.enqueue_buffered does where messages are among several, one by one.
declare
  v_job json;
  v_message text;
  v_hint text;
  v_code text;
begin
  if strpos(p_jobs::text, '"unique_key"') > 0 or strpos(p_jobs::text, '"batch"') > 0 then  -- few calls have any of what others may want too
    perform bridge.hold_options(array(select coalesce(e->'job', e->'options')::jsonb from json_array_elements(p_jobs) e));
  end if;
  for v_job in select e from json_array_elements(p_jobs) e loop
    return next bridge.enqueue_gathered(v_job);
  end loop;
exception when others then
  -- One block around all: a savepoint a row would cost more than the row.
  get stacked diagnostics v_message = message_text, v_hint = pg_exception_hint, v_code = returned_sqlstate;
  if v_code like 'JB%' then
    perform bridge.refuse(format('job %s, task %s: %s', v_job->>'id', coalesce(v_job->>'task', v_job->'job'->>'task'), v_message), v_hint, v_code);
  end if;
  raise;
end
$$;
