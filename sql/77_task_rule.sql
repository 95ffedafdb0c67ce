-- Which tasks a role may enqueue. A role without rules may enqueue all; the first rule of a role leaves it what its rules allow.

do $$
begin
  if to_regclass('bridge.task_rule') is null then
    create table bridge.task_rule (
      role       regrole not null,           -- its number: a role that is renamed keeps its rules
      pattern    text not null,              -- of tasks, * stands for anything
      changed_at timestamptz not null default clock_timestamp(),
      primary key (role, pattern)            -- check_task: what may they
    );
  end if;
  if to_regprocedure('bridge.tasks_are_ruled()') is null then
    -- Whether there is any rule: a constant, which the planner puts in place of the call, so that who has no rules pays nothing for asking.
    -- bridge.keep_switch writes it anew; installing leaves it as it is.
    create function bridge.tasks_are_ruled() returns boolean language sql immutable parallel safe return false;
  end if;
end
$$;

create or replace function bridge.caller() returns text language sql stable parallel safe set search_path = pg_catalog, pg_temp
  -- Whose call this is, also inside a function that runs with its owner's rights: the role that was SET, as PostgREST and others do it for
  -- each request, else the one that logged in.
  return case current_setting('role') when 'none' then session_user::text else current_setting('role') end;

create or replace function bridge.may_act_as(p_role oid) returns boolean language sql stable parallel safe set search_path = pg_catalog, pg_temp
  -- Whether the caller, or the login behind it, has the rights of a role: being granted it, not being a superuser. The login counts too, so
  -- that SET ROLE to one of one's roles sheds nothing.
  begin atomic
    select coalesce(bool_or(pg_catalog.pg_has_role(r.oid, p_role, 'usage')), false)
    from pg_catalog.pg_roles r where r.rolname in (bridge.caller()::name, session_user) and not r.rolsuper;
  end;

create or replace function bridge.is_trusted() returns boolean language sql stable parallel safe set search_path = pg_catalog, pg_temp
  -- Whether the caller may make jobs of the bridge's own tasks: workers, who do by themselves what those would have them do, and whom nothing binds.
  begin atomic
    select coalesce(bool_or(r.rolsuper or pg_catalog.pg_has_role(r.oid, o.oid, 'usage')), false)
    from pg_catalog.pg_roles r, pg_catalog.pg_roles o
    where r.rolname = bridge.caller()::name
      and (o.rolname = 'bridge_worker' or o.oid = (select n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'bridge'));
  end;

create or replace function bridge.patterns_of_caller() returns text[] language sql stable set search_path = pg_catalog, pg_temp
  -- The patterns of tasks that the caller may enqueue; null when no rule is about it.
  begin atomic
    select array_agg(distinct t.pattern order by t.pattern) from bridge.task_rule t
    where exists (select from pg_catalog.pg_roles r where r.oid = t.role) and bridge.may_act_as(t.role::oid);
  end;

create or replace function bridge.check_task(p_task text) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a task that the caller may not enqueue. Asked by whatever takes the name of a task from a caller, while there are rules, and
  -- always of the bridge's own tasks: a job that delivers a webhook is signed with a secret that its maker need not know.
  --
  -- Errors  JB008 naming the role, the task and what is allowed
declare
  v_patterns constant text[] := bridge.patterns_of_caller();
begin
  if p_task like 'bridge.%' and not bridge.is_trusted() then
    perform bridge.refuse(format('role %s may not enqueue task %s', bridge.caller(), left(p_task, 80)), 'tasks named bridge.… are the bridge''s own: '
      'call your task otherwise', 'JB008');
  elsif v_patterns is not null and not exists (select from unnest(v_patterns) p where bridge.is_like(p_task, p)) then
    perform bridge.refuse(format('role %s may not enqueue task %s', bridge.caller(), left(p_task, 80)), format('it may enqueue %s; an operator '
      'allows more by bridge.allow_task', array_to_string(v_patterns, ', ')), 'JB008');
  end if;
end
$$;

create or replace function bridge.check_tasks_within(p_task text, p_body json, p_readable boolean) returns void language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- The same of a Celery message and of all that follows from it: callbacks, errbacks, the rest of a chain, the body of a chord.
  --
  --   p_task      null: what is within, alone
  --   p_body      signatures; every name under a key "task" counts, at whatever depth
  --   p_readable  false when the body is bytes that nobody here can read
declare
  v_task text;
begin
  if p_task is not null then
    perform bridge.check_task(p_task);
  end if;
  for v_task in select distinct t #>> '{}' from jsonb_path_query(p_body::jsonb, '$.**.task') t where jsonb_typeof(t) = 'string' loop
    perform bridge.check_task(v_task);
  end loop;
  if not p_readable and bridge.patterns_of_caller() is not null then
    perform bridge.refuse(format('role %s may not enqueue task %s with a body that is not JSON', bridge.caller(), left(p_task, 80)),
      'there are rules for its tasks, and a body may name others: set task_serializer to json, without compression', 'JB008');
  end if;
end
$$;

create or replace function bridge.keep_switch(p_name text, p_on boolean) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Make a constant, bridge.tasks_are_ruled or bridge.tenants_are_on, say what is so. Sessions hear of it with the commit, as of any changed
  -- function.
declare
  v_is boolean;
begin
  execute format('select bridge.%I()', p_name) into v_is;
  if v_is <> p_on then
    execute format('create or replace function bridge.%I() returns boolean language sql immutable parallel safe return %s', p_name, p_on::text);
  end if;
end
$$;

create or replace function bridge.rule_for(p_role text, p_pattern text) returns regrole language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The role of a rule that is to be made or removed.
  --
  -- Errors  JB001 the pattern, JB002 no such role, JB008 the caller has rules itself: who is bound does not loosen the bonds
declare
  v_role oid;
begin
  if p_pattern is null or p_pattern !~ '^\S{1,255}$' then
    perform bridge.refuse(format('pattern is %L', left(p_pattern, 80)), 'give the name of a task, or a pattern such as mail.*');
  elsif bridge.patterns_of_caller() is not null then
    perform bridge.refuse(format('role %s has rules for its own tasks', bridge.caller()), 'ask the owner of schema bridge', 'JB008');
  end if;
  select r.oid into v_role from pg_catalog.pg_roles r where r.rolname = p_role;
  if v_role is null then
    perform bridge.refuse(format('role %L does not exist', left(p_role, 80)), 'see: select rolname from pg_roles; names are as written there', 'JB002');
  end if;
  return v_role;
end
$$;

create or replace function bridge.allow_task(role text, pattern text) returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Allow a role to enqueue these tasks. The first rule of a role forbids it, and whoever is granted it, all others.
  --
  --   role     of the database: a login, or a role that logins are granted; superusers are bound by nothing
  --   pattern  a task's name, or a pattern in which * stands for anything
  --
  -- Returns  created or unchanged
  -- Errors   JB001 the pattern, JB002 no such role, JB008 the caller has rules itself
declare
  v_role constant regrole := bridge.rule_for(allow_task.role, allow_task.pattern);
  v_new boolean;
begin
  perform pg_advisory_xact_lock(hashtextextended('bridge.task_rule', 0));
  insert into bridge.task_rule (role, pattern) values (v_role, allow_task.pattern) on conflict do nothing;
  v_new := found;
  perform bridge.keep_switch('tasks_are_ruled', exists (select from bridge.task_rule t));
  return case when v_new then 'created' else 'unchanged' end;
end
$$;

create or replace function bridge.disallow_task(role text, pattern text) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Take back what bridge.allow_task said. A role whose last rule goes may enqueue all tasks again.
  --
  -- Returns  false when there was no such rule
  -- Errors   as bridge.allow_task
declare
  v_role constant regrole := bridge.rule_for(disallow_task.role, disallow_task.pattern);
  v_gone boolean;
begin
  perform pg_advisory_xact_lock(hashtextextended('bridge.task_rule', 0));
  delete from bridge.task_rule t where t.role = v_role and t.pattern = disallow_task.pattern;
  v_gone := found;
  perform bridge.keep_switch('tasks_are_ruled', exists (select from bridge.task_rule t));
  return v_gone;
end
$$;

-- What operators read.
select bridge.define_view('task_rules', $view$
  select coalesce(r.rolname::text, t.role::text) as role, t.pattern, r.oid is not null as role_exists, t.changed_at
  from bridge.task_rule t left join pg_catalog.pg_roles r on r.oid = t.role
$view$);
