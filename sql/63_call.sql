-- Calls: runs of schedules that call a function of this database instead of a task. A call is a job like any other, of the queue
-- bridge.calls, which no drainer publishes: bridge.run_calls claims it, starts it, and performs the function in the transaction that ends
-- the run, so that what the function did stands if and only if the run counts.
--
-- A function is called with the rights of the role that made the schedule, through a function that is owned by that role: inside, no
-- `set role` leads back to the rights of who performs the call, which is what `set role` alone would allow.

do $$
begin
  if to_regtype('bridge.call_plan') is null then
    create type bridge.call_plan as (
      function  oid,
      statement text,                        -- calls it, and gives its value as json; $1 has the arguments
      arguments jsonb,
      path      text                         -- search_path while it runs
    );
  end if;
end
$$;

create or replace function bridge.asking_role() returns text language sql stable set search_path = pg_catalog, pg_temp
  -- The role that a session acts as, also seen from within a function that runs with its owner's rights.
  return case when current_setting('role') = 'none' then session_user::text else current_setting('role') end;

create or replace function bridge.call_parameters(p_function oid)
  returns table (place integer, name text, type oid, is_required boolean) language sql stable set search_path = pg_catalog, pg_temp
  -- What a function takes, in order.
  begin atomic
    select i.place::integer, i.name, i.type, i.place <= p.pronargs - p.pronargdefaults
    from pg_catalog.pg_proc p
    cross join lateral (
      select row_number() over (order by o.place) as place, coalesce(p.proargnames[o.place], '') as name, o.type
      from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality o (type, place)
      where coalesce(p.proargmodes[o.place], 'i') in ('i', 'b', 'v')
    ) i
    where p.oid = p_function;
  end;

create or replace function bridge.is_pseudo(p_type oid) returns boolean language sql stable set search_path = pg_catalog, pg_temp
  -- Whether no value can have this type.
  begin atomic
    select t.typtype = 'p' from pg_catalog.pg_type t where t.oid = p_type;
  end;

create or replace function bridge.why_no_call(p_function oid, p_args jsonb, p_kwargs jsonb) returns text language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- Why a function cannot be called with these arguments, in words; null when it can.
declare
  v_proc pg_catalog.pg_proc;
  v_given constant integer := jsonb_array_length(p_args);
  v_count integer;
  v_names text[];
  v_pseudo text;
  v_missing text;
  v_twice text;
  v_unknown text;
begin
  select p.* into v_proc from pg_catalog.pg_proc p where p.oid = p_function;
  select count(*), coalesce(array_agg(c.name) filter (where c.name <> ''), '{}'),
    string_agg(coalesce(nullif(c.name, ''), c.place::text), ', ') filter (where bridge.is_pseudo(c.type)),
    string_agg(coalesce(nullif(c.name, ''), c.place::text), ', ' order by c.place) filter (where c.is_required and c.place > v_given and not p_kwargs ? c.name),
    string_agg(c.name, ', ') filter (where c.place <= v_given and p_kwargs ? c.name)
  into v_count, v_names, v_pseudo, v_missing, v_twice from bridge.call_parameters(p_function) c;
  select min(k) into v_unknown from jsonb_object_keys(p_kwargs) k where k <> all (v_names);
  return case
    when v_proc.prokind <> 'f' then format('it is %s, not a function', case v_proc.prokind when 'p' then 'a procedure' when 'a' then 'an aggregate'
      else 'a window function' end)
    when v_proc.provariadic <> 0 then 'it takes any number of arguments'
    when v_pseudo is not null then format('its argument %s has no type of its own', v_pseudo)
    when bridge.is_pseudo(v_proc.prorettype) and v_proc.prorettype not in ('void'::regtype, 'record'::regtype)
      then format('it returns %s', format_type(v_proc.prorettype, null))
    when v_given > v_count then format('it takes %s arguments, %s are given', v_count, v_given)
    when v_unknown is not null then format('it has no argument %L', v_unknown)
      || coalesce(format(', did you mean %s?', bridge.nearest(v_unknown, v_names)), '')
    when v_twice is not null then format('its argument %s is given twice, by its place and by its name', v_twice)
    when v_missing is not null then format('its argument %s is missing', v_missing)
  end;
end
$$;

create or replace function bridge.functions_named(p_function text) returns oid[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The functions, and what else can be called, of a name with its schema, or the one of a signature: public.reset, public.reset(integer).
  --
  -- Errors  JB001 when it has no schema, or there is none of this name: with those that are like it
declare
  v_base constant text := rtrim(split_part(p_function, '(', 1));
  v_name text[];
  v_one oid;
  v_found oid[];
  v_near text;
begin
  begin
    v_name := parse_ident(v_base);
    v_one := case when v_base <> p_function then to_regprocedure(p_function) end;
  exception when invalid_parameter_value or invalid_text_representation or syntax_error then
    null;  -- no name, or no types
  end;
  select array_agg(p.oid order by p.oid) into v_found from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  where cardinality(v_name) = 2 and n.nspname = v_name[1] and p.proname = v_name[2] and (v_base = p_function or p.oid = v_one);
  if v_found is not null then
    return v_found;
  end if;
  -- of the same name elsewhere or with other types, else those that are spelt like it
  select string_agg(distinct p.oid::regprocedure::text, ' or ') into v_near from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  where lower(p.proname) = lower(v_name[cardinality(v_name)]) and n.nspname not in ('pg_catalog', 'information_schema', 'bridge');
  v_near := coalesce(v_near, bridge.nearest(v_base, (
    select array_agg(format('%I.%I', n.nspname, p.proname)) from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname not in ('pg_catalog', 'information_schema', 'bridge') and p.prokind = 'f'), 3));
  perform bridge.refuse(format('function %L ', left(p_function, 200))
      || case when cardinality(v_name) = 1 then 'is named without its schema' else 'does not exist' end,
    coalesce('did you mean ' || v_near || '?', 'give its schema and its name, public.reset, or its signature, public.reset(integer)'));
  return null;
end
$$;

create or replace function bridge.chosen_function(p_function text, p_args jsonb, p_kwargs jsonb) returns oid language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- The one function of a name that takes these arguments.
  --
  -- Errors  JB001 when none does, or several do
declare
  v_all constant oid[] := bridge.functions_named(p_function);
  v_fit constant oid[] := array(select f from unnest(v_all) f where bridge.why_no_call(f, p_args, p_kwargs) is null);
begin
  if cardinality(v_fit) > 1 then
    perform bridge.refuse(format('function %L is one of several that take these arguments', p_function),
      'choose one: ' || (select string_agg(f::regprocedure::text, ' or ') from unnest(v_fit) f));
  elsif cardinality(v_fit) = 0 then
    perform bridge.refuse(format('%s cannot be called so: %s', v_all[1]::regprocedure, bridge.why_no_call(v_all[1], p_args, p_kwargs)),
      case when (select bool_or(p.prokind <> 'f' or p.provariadic <> 0) from pg_catalog.pg_proc p where p.oid = any (v_all))
        then 'write a function around it, and schedule that'
        else 'there is: ' || (select string_agg(format('%s(%s)', p_function, pg_get_function_arguments(f)), ' and ') from unnest(v_all) f) end);
  end if;
  return v_fit[1];
end
$$;

create or replace function bridge.plan_of_call(p_function text, p_args jsonb, p_kwargs jsonb, p_role text) returns bridge.call_plan language plpgsql
  stable set search_path = pg_catalog, pg_temp as $$
  -- How to call a function with these arguments and the rights of a role.
  --
  -- Errors  JB001 no such function, arguments that do not fit, or a role that may not execute it
declare
  v_plan bridge.call_plan;
  v_given constant integer := jsonb_array_length(p_args);
  v_proc record;
  v_call text;
  v_types text;
begin
  v_plan.function := bridge.chosen_function(p_function, p_args, p_kwargs);
  select p.proretset, p.prorettype, n.nspname, format('%I.%I', n.nspname, p.proname) as name into v_proc
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace where p.oid = v_plan.function;
  if not exists (select from pg_catalog.pg_roles r where r.rolname = p_role) then
    perform bridge.refuse(format('role %L, with whose rights %s is called, does not exist', p_role, v_proc.name), 'make the schedule again as another role');
  elsif not has_schema_privilege(p_role, v_proc.nspname, 'usage') then
    perform bridge.refuse(format('role %s may not use schema %I, so it cannot call %s', p_role, v_proc.nspname, v_proc.name),
      format('grant usage on schema %I to %I', v_proc.nspname, p_role));
  elsif not has_function_privilege(p_role, v_plan.function, 'execute') then
    perform bridge.refuse(format('role %s may not execute %s', p_role, v_plan.function::regprocedure),
      format('grant execute on function %s to %I', v_plan.function::regprocedure, p_role));
  end if;
  select string_agg(format('%sx.p%s', case when c.place > v_given then quote_ident(c.name) || ' => ' else '' end, c.place), ', ' order by c.place),
    string_agg(format('p%s %s', c.place, format_type(c.type, null)), ', ' order by c.place),
    coalesce(jsonb_object_agg('p' || c.place, case when c.place <= v_given then p_args->(c.place - 1) else p_kwargs->c.name end), '{}')
  into v_call, v_types, v_plan.arguments
  from bridge.call_parameters(v_plan.function) c where c.place <= v_given or p_kwargs ? c.name;
  v_call := format('%s(%s)', v_proc.name, v_call);
  v_plan.statement := format('select %s', case when v_proc.proretset then format('pg_catalog.to_json((select pg_catalog.count(*) from %s))', v_call)
    when v_proc.prorettype = 'void'::regtype then format('case when %s is null then null::json end', v_call) else format('pg_catalog.to_json(%s)', v_call) end)
    || coalesce(' from pg_catalog.jsonb_to_record($1) as x(' || v_types || ')', '');
  v_plan.path := format('%I, pg_temp', v_proc.nspname);
  return v_plan;
end
$$;

create or replace function bridge.caller_name(p_role text) returns text language sql immutable set search_path = pg_catalog, pg_temp
  -- The name, in schema bridge, of the function that calls with the rights of a role.
  return 'call_as_' || case when octet_length(p_role) <= 55 then p_role else md5(p_role) end;

create or replace function bridge.make_caller(p_role text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Make the function that calls with the rights of a role, where it is not there. Its owner is that role; its text checks that it really
  -- runs as the role, because an owner may alter what is not the text. Only the owner of the schema may execute it.
  --
  -- Errors  JB001 when the owner of the schema is no member of the role
declare
  v_name constant text := format('bridge.%I', bridge.caller_name(p_role));
  v_is_super constant boolean := (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user);
begin
  if exists (select from pg_catalog.pg_proc p join pg_catalog.pg_roles r on r.oid = p.proowner
      where p.oid = to_regprocedure(v_name || '(text, jsonb, text)') and r.rolname = p_role
        and 'search_path=pg_catalog, pg_temp' = any (p.proconfig)) then
    return;
  end if;
  execute format('drop function if exists %s(text, jsonb, text)', v_name);
  execute format('create function %s(p_statement text, p_arguments jsonb, p_path text) returns json language plpgsql security definer '
    'set search_path = pg_catalog, pg_temp as %L', v_name, format($caller$
  -- Run one statement with the rights of the role that owns this function.
declare
  v_value json;
begin
  if current_user operator(pg_catalog.<>) %L then
    raise exception using errcode = 'JB001', message = 'this function does not run as its role any more', hint = 'drop it, it is made again';
  end if;
  perform pg_catalog.set_config('search_path', p_path, true);
  execute p_statement into v_value using p_arguments;
  set constraints all immediate;  -- what is deferred happens with these rights, and its errors are the call's
  return v_value;
end
$caller$, p_role));
  execute format('revoke all on function %s(text, jsonb, text) from public', v_name);
  if p_role <> current_user then
    if not v_is_super then
      execute format('grant create on schema bridge to %I', p_role);  -- who is to own a function there must have it
    end if;
    execute format('alter function %s(text, jsonb, text) owner to %I', v_name, p_role);
    if not v_is_super then
      execute format('revoke create on schema bridge from %I', p_role);
    end if;
    execute format('grant execute on function %s(text, jsonb, text) to %I', v_name, current_user);
  end if;
exception when insufficient_privilege then
  perform bridge.refuse(format('%s, who owns schema bridge, may not act as %s', current_user, p_role), format('grant %I to %I', p_role, current_user));
end
$$;

create or replace function bridge.drop_callers() returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Drop the functions that call with the rights of roles for which no schedule does so now: a role that owns one cannot be dropped.
declare
  v_caller regprocedure;
begin
  for v_caller in
    select p.oid from pg_catalog.pg_proc p join pg_catalog.pg_roles r on r.oid = p.proowner
    where p.pronamespace = 'bridge'::regnamespace and p.proname = bridge.caller_name(r.rolname)
      and not exists (select from bridge.schedule s where s.role = r.rolname)
  loop
    execute format('drop function %s', v_caller);
  end loop;
end
$$;

create or replace function bridge.call_as(p_role text, p_statement text, p_arguments jsonb, p_path text) returns json language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Run a statement with the rights of a role. Returns its value.
declare
  v_value json;
begin
  perform bridge.make_caller(p_role);
  execute format('select bridge.%I($1, $2, $3)', bridge.caller_name(p_role)) into v_value using p_statement, p_arguments, p_path;
  return v_value;
end
$$;

create or replace function bridge.check_call(p_function text, p_args jsonb, p_kwargs jsonb, p_role text) returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Refuse a call that could never work: no such function, arguments that do not fit or are not of its types, rights that are missing.
declare
  v_plan constant bridge.call_plan := bridge.plan_of_call(p_function, p_args, p_kwargs, p_role);
  v_argument record;
begin
  for v_argument in
    select coalesce(nullif(c.name, ''), c.place::text) as name, format_type(c.type, null) as type, jsonb_build_object('p', v_plan.arguments->('p' || c.place)) as value
    from bridge.call_parameters(v_plan.function) c where v_plan.arguments ? ('p' || c.place) order by c.place
  loop
    begin
      -- with the role's own rights: a domain's check may be a function of anybody
      perform bridge.call_as(p_role, format('select null::json from pg_catalog.jsonb_to_record($1) as x(p %s) where x.p is null', v_argument.type),
        v_argument.value, v_plan.path);
    exception when data_exception or integrity_constraint_violation or insufficient_privilege then
      perform bridge.refuse(format('argument %s of %s is %s: %s', v_argument.name, v_plan.function::regprocedure, left((v_argument.value->'p')::text, 80), sqlerrm),
        format('give a value of type %s', v_argument.type));
    end;
  end loop;
end
$$;

create or replace function bridge.plan_call(p_new bridge.schedule, p_old bridge.schedule) returns bridge.schedule language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Before a schedule is written that calls a function: check the call, and settle with whose rights it is made. Whoever says what is
  -- called is whose rights it has: nobody can change what others' rights are used for.
  --
  --   p_old  as it was; null when it is new
begin
  if (p_new.function, p_new.args, p_new.kwargs, p_new.role) is distinct from (p_old.function, p_old.args, p_old.kwargs, p_old.role) then
    p_new.role := bridge.asking_role();
    perform bridge.check_job('none', 'none', p_new.args::json, p_new.kwargs::json, 0);
    perform bridge.check_call(p_new.function, p_new.args, p_new.kwargs, p_new.role);
    perform bridge.register_calls();
  end if;
  p_new.task := regexp_replace(rtrim(split_part(p_new.function, '(', 1)), '\s', '_', 'g');
  p_new.queue := 'bridge.calls';
  return p_new;
end
$$;

create or replace function bridge.check_posted(p_webhook jsonb) returns jsonb language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a webhook of a schedule that could reach nobody, as callbacks do. Returns it in full: {"url", "secret"}, with "headers" where it has any.
declare
  v_full constant jsonb := '{"secret": "default"}'::jsonb
    || case jsonb_typeof(p_webhook) when 'string' then jsonb_build_object('url', p_webhook) when 'object' then p_webhook else '{}' end;
  v_unknown text;
begin
  if jsonb_typeof(p_webhook) not in ('string', 'object') then
    perform bridge.refuse(format('webhook is a JSON %s', jsonb_typeof(p_webhook)), 'give an address, or an object of url, secret and headers');
  end if;
  select string_agg(k, ', ') into v_unknown from jsonb_object_keys(v_full) k where k not in ('url', 'secret', 'headers');
  if v_unknown is not null then
    perform bridge.refuse(format('webhook has the unknown key %s', v_unknown), 'known are url, secret and headers');
  end if;
  perform bridge.check_url(v_full->>'url'), bridge.check_secret(v_full->>'secret'), bridge.check_http_headers(v_full->'headers');
  return v_full;
end
$$;

create or replace function bridge.start_call(p_schedule bridge.schedule, p_run_at timestamptz, p_expires_at timestamptz, p_headers jsonb,
    p_now timestamptz)
  returns uuid language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Make the job of a call. What it calls, and with whose rights, is where no enqueue can write. Returns its id.
declare
  v_id constant uuid := bridge.new_id();
  v_asked bridge.job_request := bridge.defaults();
begin
  v_asked.max_attempts := p_schedule.max_attempts;
  v_asked.backoff := p_schedule.backoff;
  v_asked.timeout := p_schedule.timeout;
  v_asked.headers := p_headers;
  perform bridge.add_job(v_id, null, p_schedule.task, 'bridge.calls', (9 - p_schedule.priority)::smallint, p_schedule.args::json, p_schedule.kwargs::json,
    null, null, null, null, bridge.headers_of(v_asked), null, octet_length(p_schedule.args::text) + octet_length(p_schedule.kwargs::text),
    p_expires_at, p_run_at, v_asked, false, p_now);
  update bridge.job j set options = coalesce(j.options, '{}')
    || jsonb_build_object('call', jsonb_build_object('function', p_schedule.function, 'role', p_schedule.role))
  where j.id = v_id;
  return v_id;
end
$$;

create or replace function bridge.posted_run(p_schedule bridge.schedule, p_run bridge.schedule_run) returns jsonb language sql immutable
  set search_path = pg_catalog, pg_temp
  -- What the task that delivers webhooks is called with for a run of a schedule.
  return jsonb_build_object('callback', 'schedule ' || p_schedule.name, 'url', p_schedule.webhook->'url', 'secret', p_schedule.webhook->'secret',
    'payload', jsonb_build_object('type', 'schedule.due', 'timestamp', p_run.created_at, 'data', jsonb_build_object('schedule', p_schedule.name,
      'slot', p_run.slot, 'trigger_type', p_run.trigger_type, 'args', p_schedule.args, 'kwargs', p_schedule.kwargs)));
