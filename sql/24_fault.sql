-- What is wrong with a bulk call, row by row. It is asked only when the call has failed.

create or replace function bridge.fault(p_number integer, p_job jsonb, p_code text, p_message text, p_hint text) returns jsonb language plpgsql
  stable set search_path = pg_catalog, pg_temp as $$
  -- One bad row, as the error's detail has it. An error of Postgres about a value is said in our words, with the argument and the value.
declare
  v_key constant text := case when p_code like '22%' and jsonb_typeof(p_job) = 'object' then bridge.wrong_type(p_job) end;
  v_message constant text := case when v_key is not null then format('%s is %s', v_key, left((p_job->v_key)::text, 80)) else p_message end;
begin
  return jsonb_build_object('job', p_number, 'argument', coalesce(v_key, substring(v_message from '^(?:both |unknown key |payload)?(\w+)')),
    'message', v_message, 'hint', coalesce(bridge.right_type(v_key), nullif(p_hint, ''), 'give a value of the type that the argument has'), 'code', case when p_code like 'JB%' then p_code else 'JB001' end);
end
$$;

create or replace function bridge.check_alone(p_asked bridge.job_request, p_key text, p_ids uuid[], p_place integer) returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Refuse a row for what is elsewhere: its parents, its batch, and who has its key.
  --
  --   p_ids    of all rows
  --   p_place  which of them it is
declare
  v_held bridge.unique_key;
begin
  if p_asked.depends_on <> '{}' then
    perform bridge.check_order(p_asked.depends_on, p_ids, p_place);
    perform bridge.parents_of(array(select d from unnest(p_asked.depends_on) d where array_position(p_ids, d) is null), p_asked.on_parent_failure);
  end if;
  if p_asked.batch is not null then
    perform bridge.join_batch(p_asked.batch);
  end if;
  if p_key is not null and p_asked.on_conflict = 'raise' then
    select u.* into v_held from bridge.unique_key u where u.key = p_key and (u.kept_until is null or u.kept_until > clock_timestamp());
    if found then
      p_asked.unique_key := p_key;
      perform bridge.refuse_key(p_asked, v_held);
    end if;
  end if;
end
$$;

create or replace function bridge.faults(p_templates jsonb[], p_ids uuid[], p_which integer[], p_args text[], p_kwargs text[], p_keys text[],
    p_first integer, p_most integer default 20)
  returns jsonb language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- The bad rows of a bulk call.
  --
  --   p_first  number of the first row, for a call in pages
  --   p_most   stop after so many
  --
  -- Returns  an array of {"job", "argument", "message", "hint", "code"}; empty when no row is bad by itself
declare
  v_row record;
  v_asked bridge.job_request;
  v_faults jsonb := '[]'::jsonb;
  v_code text;
  v_message text;
  v_hint text;
begin
  for v_row in
    select r.*, p_templates[r.which] as job from unnest(p_which, p_args, p_kwargs, p_keys) with ordinality r (which, args, kwargs, key, place)
    order by r.place
  loop
    exit when jsonb_array_length(v_faults) >= p_most;
    begin
      v_asked := bridge.request_of(v_row.job, clock_timestamp());
      perform bridge.check_row(v_asked, v_row.args, v_row.kwargs, v_row.key);
      perform bridge.check_alone(v_asked, v_row.key, p_ids, v_row.place::integer);
      if v_asked.on_conflict = 'raise' and array_position(p_keys, v_row.key) < v_row.place then
        perform bridge.refuse(format('unique_key %L belongs to an earlier job of this call', v_row.key), 'use on_conflict => ''skip''', 'JB003');
      end if;
    exception when others then
      get stacked diagnostics v_code = returned_sqlstate, v_message = message_text, v_hint = pg_exception_hint;
      if v_code !~ '^(JB|22)' then
        raise;
      end if;
      v_faults := v_faults || bridge.fault((p_first + v_row.place - 1)::integer, v_row.job, v_code, v_message, v_hint);
    end;
  end loop;
  return v_faults;
end
$$;

create or replace function bridge.refuse_faults(p_faults jsonb, p_labels text[], p_most integer default 20) returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Raise one error that names every bad row; its detail is the array.
  --
  --   p_labels  what to begin each message with; null: jobs[number]
declare
  v_message constant text := (select string_agg(coalesce(p_labels[(f->>'job')::integer + 1], format('jobs[%s]: ', f->>'job')) || (f->>'message'),
    '; ' order by n) from jsonb_array_elements(p_faults) with ordinality e (f, n));
  v_codes constant text[] := array(select distinct f->>'code' from jsonb_array_elements(p_faults) f);
begin
  raise exception using errcode = case when cardinality(v_codes) = 1 then v_codes[1] else 'JB001' end, detail = p_faults::text,
    message = bridge.one_line(v_message, 8000) || case when jsonb_array_length(p_faults) >= p_most then '; perhaps more' else '' end,
    hint = (select string_agg(distinct f->>'hint', '; ') from jsonb_array_elements(p_faults) f);
end
$$;

create or replace function bridge.enqueue_rows(p_templates jsonb[], p_ids uuid[], p_which integer[], p_args text[], p_kwargs text[], p_keys text[],
    p_first integer default 0, p_labels text[] default null)
  returns uuid[] language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- What bridge.write_rows does, with an error that tells which rows are bad. Every other error stays as it is.
declare
  v_faults jsonb;
begin
  return bridge.write_rows(p_templates, p_ids, p_which, p_args, p_kwargs, p_keys);
exception when others then
  if sqlstate ~ '^(JB|22)' then
    v_faults := bridge.faults(p_templates, p_ids, coalesce(p_which, array_fill(1, array[cardinality(p_ids)])), p_args,
      coalesce(p_kwargs, array_fill('{}'::text, array[cardinality(p_ids)])), p_keys, p_first);
    if v_faults <> '[]' then
      perform bridge.refuse_faults(v_faults, p_labels);
    end if;
  end if;
  raise;
end
$$;
