-- What a Celery message carries of later tasks: the rest of its chain, the body of its chord. They have ids before they have rows.

create or replace function bridge.later_steps(p_signature json, p_after text[]) returns table (id text, task text, kind text, after text[], signature json)
  language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- The tasks that a signature of Celery's canvas leads to, in the order in which they come.
  --
  --   p_after  what the first of them comes after
  --
  -- Returns  a row for each task that has an id, with the ids of those it comes after; kind says by what: chain, group or chord
declare
  v_part json;
  v_after text[] := p_after;
  v_ends text[];
begin
  case p_signature->>'task'
    when 'celery.chain' then
      for v_part in select p from json_array_elements(coalesce(p_signature#>'{kwargs,tasks}', '[]')) p loop
        return query select s.* from bridge.later_steps(v_part, v_after) s;
        v_after := bridge.ends_of(v_part);
      end loop;
    when 'celery.group' then
      for v_part in select p from json_array_elements(coalesce(p_signature#>'{kwargs,tasks}', '[]')) p loop
        return query select s.id, s.task, case when s.after = p_after then 'group' else s.kind end, s.after, s.signature
          from bridge.later_steps(v_part, p_after) s;
      end loop;
    when 'celery.chord' then
      v_part := bridge.as_group(p_signature#>'{kwargs,header}');
      return query select s.* from bridge.later_steps(v_part, p_after) s;
      v_ends := bridge.ends_of(v_part);
      return query select s.id, s.task, case when s.after = v_ends then 'chord' else s.kind end, s.after, s.signature
        from bridge.later_steps(p_signature#>'{kwargs,body}', v_ends) s;
    else
      if p_signature#>>'{options,task_id}' is not null then
        return query select p_signature#>>'{options,task_id}', p_signature->>'task', 'chain', p_after, p_signature;
      end if;
  end case;
end
$$;

create or replace function bridge.as_group(p_header json) returns json language sql immutable set search_path = pg_catalog, pg_temp
  -- The header of a chord as a group: Celery writes it as one, or as a list.
  return case json_typeof(p_header) when 'array' then json_build_object('task', 'celery.group', 'kwargs', json_build_object('tasks', p_header))
    else p_header end;

create or replace function bridge.ends_of(p_signature json) returns text[] language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- The ids of the tasks whose results are that of a signature.
declare
  v_tasks constant json := coalesce(p_signature#>'{kwargs,tasks}', '[]');
begin
  return case p_signature->>'task'
    when 'celery.chain' then bridge.ends_of(v_tasks->-1)
    when 'celery.group' then (select array_agg(e) from json_array_elements(v_tasks) t cross join unnest(bridge.ends_of(t)) e)
    when 'celery.chord' then bridge.ends_of(p_signature#>'{kwargs,body}')
    else array_remove(array[p_signature#>>'{options,task_id}'], null) end;
end
$$;

create or replace function bridge.steps_after(p_id text, p_embed json) returns table (id text, task text, kind text, after text[], signature json)
  language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- The tasks that come after a job: the rest of its chain (which its message has in reverse order), else the body of the chord whose part
  -- it is. Later parts of a chain carry their chord themselves.
declare
  v_chain constant json := (select json_agg(c.step order by c.place desc) from json_array_elements(
    case json_typeof(p_embed->'chain') when 'array' then p_embed->'chain' end) with ordinality c (step, place));
begin
  if v_chain is not null then
    return query select s.* from bridge.later_steps(json_build_object('task', 'celery.chain', 'kwargs', json_build_object('tasks', v_chain)),
      array[p_id]) s;
  elsif json_typeof(p_embed->'chord') = 'object' then
    return query select s.id, s.task, case when s.after = array[p_id] then 'chord' else s.kind end, s.after, s.signature
      from bridge.later_steps(p_embed->'chord', array[p_id]) s;
  end if;
end
$$;

create or replace function bridge.end_steps(p_id uuid, p_status text, p_embed json, p_error json) returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- A job has ended without success: the later steps of its chain will never run, and their rows say so. One of them may be a job that
  -- has replaced itself by this chain, which ends as failed, or a part of a chord, which waits for it no longer.
  --
  -- A worker that reports a failure does this as well, and comes second. What Celery serialised otherwise than as JSON is left to it.
declare
  v_step record;
  v_error constant json := json_build_object('type', 'ParentFailed', 'message', format('a task that it waits for ended as %s%s', p_status,
    coalesce(': ' || (p_error->>'type') || ': ' || (p_error->>'message'), '')), 'traceback', null, 'state', 'FAILURE');
begin
  for v_step in
    select coalesce(j.id, case when s.id ~* '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$' then s.id::uuid end) as id, s.task, s.signature, s.signature->'options' as options
    from bridge.steps_after(p_id::text, p_embed) s
    left join (bridge.replaced r join bridge.job j on j.seq = r.seq) on coalesce(j.task_id, j.id::text) = s.id
  loop
    continue when v_step.id is null;  -- ids that are no uuids are made into some by Python alone
    perform bridge.never_ran(v_step.id, null, v_step.task, coalesce(v_step.options->>'queue', 'celery'),
      coalesce(v_step.signature->'args', '[]'), coalesce(v_step.signature->'kwargs', '{}'), v_error);
    insert into bridge.link (above, below, kind, made_at) values (p_id, v_step.id, 'called', clock_timestamp()) on conflict do nothing;
    if json_typeof(v_step.options->'chord') = 'object' then
      perform bridge.end_part(v_step.options->>'group_id', v_step.id, (v_step.options->>'group_index')::integer);
      perform bridge.ask_to_join(v_step.options->>'group_id');
    end if;
  end loop;
end
$$;
