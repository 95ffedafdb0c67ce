-- Making many jobs in one call: `bridge.enqueue_many` is for users, `bridge.enqueue_buffered` for what a process gathers in a transaction.

create or replace function bridge.request_names() returns text[] language sql stable set search_path = ''
  -- The names of what may be asked of a job.
  return (select array_agg(a.attname::text order by a.attnum) from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.typrelid = a.attrelid
    where t.oid = 'bridge.job_request'::regtype and a.attnum > 0 and not a.attisdropped);

create or replace function bridge.enqueue_element(p_id uuid, p_job jsonb) returns uuid language plpgsql set search_path = '' as $$
  -- One job of bridge.enqueue_many, under an id that the caller has made.
  --
  --   p_job  an object whose keys are the argument names of bridge.enqueue; null has the default
  --
  -- Returns, Errors  as bridge.enqueue_as
declare
  v_unknown text;
begin
  select string_agg(k, ', ') into v_unknown from jsonb_object_keys(p_job - bridge.request_names()) k;
  if v_unknown is not null then
    perform bridge.refuse(format('unknown key %s', v_unknown), 'use the argument names of bridge.enqueue');
  end if;
  return bridge.enqueue_as(p_id, jsonb_populate_record(bridge.defaults(), p_job));
end
$$;

create or replace function bridge.enqueue_many(jobs jsonb) returns setof uuid language plpgsql security definer set search_path = '' as $$
  -- Enqueue many jobs at once, all or none.
  --
  --   jobs  a JSON array of objects whose keys are the argument names of bridge.enqueue, for example
  --         [{"task": "mail.send", "args": [1]}, {"task": "mail.send", "args": [2], "priority": 5}]
  --
  -- Returns  the ids, in the order of the array
  -- Errors   as bridge.enqueue; the message says which element of the array
declare
  v_job jsonb;
  v_number bigint;
  v_message text;
  v_hint text;
  v_code text;
begin
  if jsonb_typeof(jobs) is distinct from 'array' then
    perform bridge.refuse(format('jobs is %s', coalesce('a JSON ' || jsonb_typeof(jobs), 'null')), 'give a JSON array of objects');
  end if;
  for v_job, v_number in select e.value, e.ordinality - 1 from jsonb_array_elements(jobs) with ordinality e loop
    return next bridge.enqueue_element(bridge.new_id(), v_job);
  end loop;
exception when others then
  -- One block around all: a savepoint a row would cost more than the row.
  get stacked diagnostics v_message = message_text, v_hint = pg_exception_hint, v_code = returned_sqlstate;
  perform bridge.refuse(case when v_number is null then v_message else format('jobs[%s]: %s', v_number, v_message) end, v_hint,
    case when v_code like 'JB%' then v_code else 'JB001' end);
end
$$;

create or replace function bridge.enqueue_buffered(p_jobs json) returns setof uuid language plpgsql security definer
  set search_path = '' set enable_seqscan = off set jit = off as $$
  -- Enqueue what a process has gathered for one transaction, in its order, all or none.
  --
  --   p_jobs  a JSON array of objects, each with an id: either "job", an object as bridge.enqueue_many takes it, or what
  --           bridge.enqueue_message takes, by the names of its parameters without p_
  --
  -- Returns  the ids, in the order of the array
  -- Errors   as bridge.enqueue; among several jobs the message says which; an error that is not the job's own stays as it is
declare
  v_job record;
  v_id uuid;  -- of the job in hand; null while there is none
  v_many constant boolean := json_array_length(p_jobs) > 1;
  v_message text;
  v_hint text;
  v_code text;
begin
  for v_job in
    select r.* from json_to_recordset(p_jobs) as r (id uuid, job json, task_id text, task text, queue text, rank smallint, args json, kwargs json,
      embed json, payload bytea, content_type text, content_encoding text, headers json, properties json, expires_at timestamptz,
      run_at timestamptz, chord text, options jsonb)
  loop
    v_id := v_job.id;
    if v_job.job is not null then
      return next bridge.enqueue_element(v_id, v_job.job::jsonb);
    else
      return next coalesce(bridge.enqueue_message(v_id, v_job.task_id, v_job.task, v_job.queue, v_job.rank, v_job.args, v_job.kwargs, v_job.embed,
        v_job.payload, v_job.content_type, v_job.content_encoding, v_job.headers, v_job.properties, v_job.expires_at, v_job.run_at, v_job.chord,
        v_job.options), v_id);
    end if;
  end loop;
exception when others then
  -- One block around all: a savepoint a row would cost more than the row.
  get stacked diagnostics v_message = message_text, v_hint = pg_exception_hint, v_code = returned_sqlstate;
  if v_many and v_id is not null and v_code like 'JB%' then
    perform bridge.refuse(format('job %s, task %s: %s', v_id, coalesce(v_job.task, v_job.job->>'task'), v_message), v_hint, v_code);
  end if;
  raise;
end
$$;
