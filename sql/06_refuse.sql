-- How our functions refuse: one error of class JB, in one line that a log and a terminal can show as it is.

create or replace function bridge.one_line(p_text text, p_most integer default 1000) returns text language sql immutable set search_path = pg_catalog, pg_temp
  -- A text in one line, whatever names and values are in it: line ends and tabs as \n, \r and \t, other characters that steer a terminal
  -- as ?, and no more than so many characters.
  return (select case when length(l.line) > p_most then left(l.line, p_most - 1) || '…' else l.line end
    from (select regexp_replace(replace(replace(replace(left(p_text, p_most + 1), E'\n', '\n'), E'\r', '\r'), E'\t', '\t'),
      '[\u0001-\u001f\u007f-\u009f\u2028\u2029]', '?', 'g')) l (line));

create or replace function bridge.refuse(p_message text, p_hint text, p_code text default 'JB001') returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Raise one of our errors: class JB, a message that names the object and the value, a hint that says what to do.
begin
  raise exception using errcode = p_code, message = bridge.one_line(p_message), hint = bridge.one_line(p_hint);
end
$$;

create or replace function bridge.check_depth(p_what text, p_value json) returns void language plpgsql immutable
  set search_path = pg_catalog, pg_temp as $$
  -- Refuse arguments that are nested deeper than 200 levels: a worker's main process hands them to its pool by pickle, which goes as deep
  -- as they do, and ends with an error at some 500, and the worker with it.
  --
  --   p_what  whose they are, for the message
declare
  v_text constant text := p_value::text;
begin
  -- Counting the brackets spares nearly all of them the look inside.
  if octet_length(v_text) - octet_length(replace(replace(v_text, '[', ''), '{', '')) > 200
      and jsonb_path_exists(regexp_replace(v_text, '\\u(0000|[dD][89a-fA-F][0-9a-fA-F]{2})', '?', 'g')::jsonb, 'strict $.**{200}') then
    perform bridge.refuse(format('%s are nested deeper than 200 levels', p_what), 'pass a flat document, or a reference to it');
  end if;
end
$$;

create or replace function bridge.check_message(p_task text, p_headers json, p_properties json) returns void language plpgsql immutable
  set search_path = pg_catalog, pg_temp as $$
  -- Refuse headers and properties of a message that no drainer could send, or that would run another task than the row is about.
begin
  if p_headers is not null then
    if json_typeof(p_headers) <> 'object' or (p_headers->>'task') is distinct from p_task then
      perform bridge.refuse(format('headers of task %s name task %s', p_task, coalesce(left(p_headers->>'task', 80), 'null')),
        'a worker runs what the headers name: give both the same');
    end if;
    perform bridge.check_depth('headers of task ' || p_task, p_headers);
  end if;
  if p_properties is not null then
    if json_typeof(p_properties) <> 'object' then
      perform bridge.refuse(format('properties of task %s is a JSON %s', p_task, json_typeof(p_properties)), 'give a JSON object, as Celery has them');
    end if;
    perform bridge.check_depth('properties of task ' || p_task, p_properties);
  end if;
end
$$;
