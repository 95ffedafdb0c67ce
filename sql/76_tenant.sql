-- Tenants, an option: a job belongs to the tenant that the session's claim names when it is enqueued, and roles that are granted
-- bridge_tenant meet their own jobs only. Claims are a setting that whoever stands before the database sets for each request, as
-- PostgREST and Supabase do. Off, which is how it begins, it costs nothing: whether it is on is a constant in every plan.
--
-- What a tenant names that is another's does not exist, in the same words as what never existed. Unique and serial keys are its own.

do $$
begin
  if to_regclass('bridge.tenancy') is null then
    create table bridge.tenancy (
      only_row   boolean primary key default true check (only_row),
      claim      text not null,              -- a setting, or role: the caller's role is the tenant
      key        text,                       -- where in the claim's JSON: app_metadata.tenant_id; null: the setting is the tenant
      enabled_at timestamptz not null
    );
  end if;
  if to_regprocedure('bridge.tenants_are_on()') is null then
    -- As bridge.tasks_are_ruled.
    create function bridge.tenants_are_on() returns boolean language sql immutable parallel safe return false;
  end if;
end
$$;

create or replace function bridge.tenant() returns text language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
  -- The tenant that this session's claim names; null when it names none, or tenants are off.
  --
  -- Errors  JB008 what it names can be no tenant
declare
  v_rule bridge.tenancy;
  v_said text;
begin
  if not bridge.tenants_are_on() then
    return null;
  end if;
  select t.* into v_rule from bridge.tenancy t;
  if v_rule.claim = 'role' then
    v_said := case when bridge.is_tenant() then bridge.caller() end;
  else
    v_said := nullif(current_setting(v_rule.claim, true), '');
    v_said := case when v_rule.key is null then v_said else v_said::jsonb #>> string_to_array(v_rule.key, '.') end;
  end if;
  if v_said !~ '^[^/[:cntrl:][:space:]]{1,100}$' then
    perform bridge.refuse('the tenant of this session is no name', 'give 1 to 100 characters without spaces and slashes', 'JB008');
  end if;
  return v_said;
exception when data_exception then
  perform bridge.refuse(format('setting %s is no JSON', v_rule.claim), 'set what bridge.enable_tenants was told of', 'JB008');
  return null;
end
$$;

create or replace function bridge.is_tenant() returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Whether the caller may see the jobs of its tenant only: it, or the login behind it, has been granted bridge_tenant.
begin
  return bridge.tenants_are_on() and coalesce((select bridge.may_act_as(r.oid) from pg_catalog.pg_roles r where r.rolname = 'bridge_tenant'), false);
end
$$;

create or replace function bridge.own_tenant() returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The tenant of a caller that must have one. Errors  JB008 it has none
declare
  v_tenant constant text := bridge.tenant();
begin
  if v_tenant is null then
    perform bridge.refuse(format('role %s has no tenant in this session', bridge.caller()), (select format('the setting %s names none%s', t.claim,
      coalesce(' under ' || t.key, '')) from bridge.tenancy t), 'JB008');
  end if;
  return v_tenant;
end
$$;

create or replace function bridge.require_own(p_ids uuid[]) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Say of ids that are not the caller's tenant's what is said of ids that never were. Whoever is no tenant may name all.
  --
  -- Index   job_id, finished_id
  -- Errors  JB002
declare
  v_tenant text;
  v_id uuid;
begin
  if not bridge.is_tenant() then
    return;
  end if;
  v_tenant := bridge.own_tenant();
  select i into v_id from unnest(p_ids) i
  where not exists (select from bridge.job j where j.id = i and j.options->>'tenant' = v_tenant and j.task not like 'bridge.%'
    union all select from bridge.finished f where f.id = i and f.options->>'tenant' = v_tenant and f.task not like 'bridge.%') limit 1;
  if found then
    perform bridge.refuse(format('job %s does not exist', coalesce(v_id::text, 'null')), 'see: select id, status from bridge.jobs', 'JB002');
  end if;
end
$$;

create or replace function bridge.tenant_key(p_key text) returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- A unique or serial key as it is kept: each tenant has keys of its own.
declare
  v_tenant text;
begin
  if p_key is null then
    return null;
  end if;
  v_tenant := bridge.tenant();
  return case when v_tenant is null then p_key else v_tenant || '/' || p_key end;
end
$$;

create or replace function bridge.check_tenant(p_asked bridge.job_request) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse what a tenant asks of a job that would reach beyond its own: parents and batches of others do not exist for it, and a webhook
  -- would be signed with a secret that others trust.
  --
  -- Errors  JB001 parents, JB002 the batch, JB008 no tenant; a webhook
declare
  v_id uuid;
begin
  if not bridge.is_tenant() then
    return;
  end if;
  perform bridge.own_tenant();
  if p_asked.webhook is not null then
    perform bridge.refuse('webhook is given, and tenants'' jobs have none of their own', 'leave it out; an operator may set a callback', 'JB008');
  elsif p_asked.batch is not null then
    perform bridge.refuse_batch(p_asked.batch);
  end if;
  foreach v_id in array coalesce(p_asked.depends_on, '{}') loop
    begin
      perform bridge.require_own(array[v_id]);
    exception when sqlstate 'JB002' then
      perform bridge.refuse(format('depends_on names job %s, which does not exist', coalesce(v_id::text, 'null')), 'name jobs that exist and have not failed');
    end;
  end loop;
end
$$;

create or replace function bridge.inherit_tenant(p_id uuid, p_links jsonb) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- What a task calls while it runs belongs to the tenant of its job.
  --
  -- Index  job_id, finished_id
declare
  v_parent constant uuid := (p_links->>'called')::uuid;
  v_tenant text;
begin
  select coalesce((select j.options->>'tenant' from bridge.job j where j.id = v_parent),
    (select f.options->>'tenant' from bridge.finished f where f.id = v_parent)) into v_tenant;
  update bridge.job j set options = coalesce(j.options, '{}') || jsonb_build_object('tenant', v_tenant)
  where v_tenant is not null and j.id = p_id and j.options->>'tenant' is null;
end
$$;

-- What a tenant reads: its own jobs, without what the bridge makes of them, and of errors no traceback. A barrier: a condition of the
-- reader's own sees no row before the tenant's has let it through.
-- Index  job_tenant, finished_tenant
select bridge.define_view('my_jobs', $view$
  select l.id, l.task_id, l.task, l.queue, l.status, l.args, l.kwargs, l.result, json_build_object('type', l.error->>'type', 'message', l.error->>'message') as error,
    l.progress, l.priority, l.attempts, l.max_attempts, l.created_at, l.updated_at, l.run_at, l.started_at, l.finished_at
  from bridge.job j join bridge.live_jobs l on l.seq = j.seq
  where j.options->>'tenant' = (select bridge.tenant()) and j.task not like 'bridge.%'
  union all
  select f.id, coalesce(f.task_id, f.id::text), f.task, f.queue, f.status, f.args, f.kwargs, f.result,
    json_build_object('type', f.error->>'type', 'message', f.error->>'message'), f.progress, 9 - f.rank, f.attempts::integer, f.max_attempts::integer,
    f.created_at, f.finished_at, f.run_at, f.started_at, f.finished_at
  from bridge.finished f
  where f.options->>'tenant' = (select bridge.tenant()) and f.task not like 'bridge.%'
$view$);

-- What operators read: who has jobs. Index  job_tenant, finished_tenant
select bridge.define_view('tenants', $view$
  select v.tenant, sum(v.live) as live, sum(v.ended) as ended from (
    select j.options->>'tenant' as tenant, 1 as live, 0 as ended from bridge.job j where j.options->>'tenant' is not null
    union all
    select f.options->>'tenant', 0, 1 from bridge.finished f where f.options->>'tenant' is not null) v
  group by v.tenant
$view$);

do $$
begin
  if not exists (select from pg_catalog.pg_class c where c.oid = 'bridge.my_jobs'::regclass and 'security_barrier=true' = any (c.reloptions)) then
    alter view bridge.my_jobs set (security_barrier = true);
  end if;
end
$$;

create or replace function bridge.guard_rows(p_on boolean) returns void language plpgsql set search_path = pg_catalog, pg_temp
  set client_min_messages = warning as $$
  -- Row level security for what roles may be granted beside our list, as platforms do by default: staff reads all, a tenant its own
  -- jobs, anybody else nothing. The owner, whose rights our functions and views have, is not bound by it.
  --
  -- Locks  each table for a moment
declare
  v_table text;
begin
  foreach v_table in array array['attempt', 'checkpoint', 'finished', 'job', 'job_note', 'log_line', 'result'] loop
    execute format('drop policy if exists staff on bridge.%I', v_table);
    execute format('drop policy if exists own on bridge.%I', v_table);
    execute format('alter table bridge.%I %s row level security', v_table, case when p_on then 'enable' else 'disable' end);
    if p_on then
      execute format('create policy staff on bridge.%I for select to bridge_worker, bridge_operator, bridge_viewer using (true)', v_table);
    end if;
    if p_on and v_table in ('finished', 'job') then
      execute format('create policy own on bridge.%I for select to bridge_tenant using (options->>''tenant'' = (select bridge.tenant()) and task not like ''bridge.%%'')',
        v_table);
    end if;
  end loop;
end
$$;

create or replace function bridge.enable_tenants(claim text default 'request.jwt.claims', key text default 'tenant_id') returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Let jobs belong to tenants from now on. For the owner of the schema; jobs that are there belong to nobody. Saying it again changes the claim.
  --
  --   claim  the setting that says whose request a session serves: request.jwt.claims of PostgREST and Supabase, or one of your own. Trust:
  --          whoever may run SQL of his own choice may set it. Where tenants log in themselves, give role: then the role is the tenant
  --   key    where the tenant is in the claim's JSON, as app_metadata.tenant_id; null: the setting itself is the tenant
  --
  -- Locks   builds an index on ended jobs: writers of history wait for it. Do it early
  -- Errors  JB001 an argument, JB002 a role is missing
begin
  if enable_tenants.claim is null or enable_tenants.claim !~ '^(role|[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)+)$' then
    perform bridge.refuse(format('claim is %L', left(enable_tenants.claim, 80)), 'give the name of a setting with a dot in it, as request.jwt.claims, or role');
  elsif enable_tenants.key !~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$' then
    perform bridge.refuse(format('key is %L', left(enable_tenants.key, 80)), 'give names with dots between, as app_metadata.tenant_id, or null');
  elsif enable_tenants.key ~ '(^|\.)(raw_)?user_metadata(\.|$)' then
    perform bridge.refuse('key is in user_metadata, which users change themselves', 'let the server write it, into app_metadata');
  elsif (select count(*) from pg_catalog.pg_roles r where r.rolname in ('bridge_worker', 'bridge_operator', 'bridge_viewer', 'bridge_tenant')) < 4 then
    perform bridge.refuse('a role of the bridge does not exist', 'install once more: it makes them, or says who has to', 'JB002');
  end if;
  perform set_config('lock_timeout', '5s', true);
  insert into bridge.tenancy (claim, key, enabled_at)
  values (enable_tenants.claim, case when enable_tenants.claim <> 'role' then enable_tenants.key end, clock_timestamp())
  on conflict (only_row) do update set claim = excluded.claim, key = excluded.key;
  if to_regclass('bridge.job_tenant') is null then
    -- my_jobs, tenants, the policies
    create index job_tenant on bridge.job ((options->>'tenant')) where options->>'tenant' is not null;
    create index finished_tenant on bridge.finished ((options->>'tenant'), finished_at) where options->>'tenant' is not null;
  end if;
  perform bridge.guard_rows(true), bridge.keep_switch('tenants_are_on', true);
  perform bridge.grant_all();
end
$$;

create or replace function bridge.disable_tenants() returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Let jobs belong to nobody again; bridge_tenant may nothing then. What jobs say of their tenant stays.
  --
  -- Returns  false when tenants were off
declare
  v_on constant boolean := bridge.tenants_are_on();
begin
  perform set_config('lock_timeout', '5s', true);
  perform bridge.guard_rows(false), bridge.keep_switch('tenants_are_on', false);
  drop index if exists bridge.job_tenant, bridge.finished_tenant;
  delete from bridge.tenancy t;
  perform bridge.grant_all();
  return v_on;
end
$$;
