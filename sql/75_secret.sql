-- Secrets by reference. What is stored is where a secret is: env:NAME, a variable of the workers' environment, or vault:NAME, which a
-- worker asks for here when it needs it. What looks like a secret itself is refused where a reference belongs, without being repeated.

insert into bridge.setting (name, value, about) values
  ('secret_function', '""', 'function (name text) returns text that reads a secret, as "app.read_secret"; empty: vault.decrypted_secrets of Supabase')
on conflict (name) do update set about = excluded.about where bridge.setting.about <> excluded.about;

create or replace function bridge.guard_setting() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- The function that reads secrets runs with the rights of the schema's owner, so nobody else may say which it is.
  -- Runs with the rights of whoever changes the setting, and calls nothing that he may not.
declare
  v_owner oid;
  v_function constant regprocedure := to_regprocedure(nullif(new.value #>> '{}', '') || '(text)');
begin
  select c.relowner into v_owner from pg_catalog.pg_class c where c.oid = tg_relid;
  if not pg_catalog.pg_has_role(current_user, v_owner, 'usage') then
    raise exception using errcode = 'JB008', message = format('role %s may not change the setting secret_function', current_user),
      hint = 'ask the owner of schema bridge: the function runs with the owner''s rights';
  elsif new.value #>> '{}' <> '' is not false and not exists (select from pg_catalog.pg_proc p where p.oid = v_function and p.prorettype = 'text'::regtype) then
    raise exception using errcode = 'JB001', message = format('setting secret_function is %s', new.value),
      hint = 'give the name of a function (text) returns text with its schema, as "app.read_secret", or ""';
  end if;
  return new;
end
$$;

do $$
begin
  if not exists (select from pg_catalog.pg_trigger t where t.tgrelid = 'bridge.setting'::regclass and t.tgname = 'guard_secret_function') then
    create trigger guard_secret_function before update on bridge.setting for each row
      when (new.name = 'secret_function' and new.value is distinct from old.value) execute function bridge.guard_setting();
  end if;
end
$$;

create or replace function bridge.is_secret_name(p_name text) returns boolean language sql immutable parallel safe set search_path = pg_catalog, pg_temp
  -- Whether what has this name is a secret, as authorization, x-api-key, refresh_token.
  return p_name ~* '(authorization|cookie|password|passwd|passphrase|secret|token|signature|credentials?|(private|api|access|auth).?key)$';

create or replace function bridge.is_secret_text(p_text text) returns boolean language sql immutable parallel safe set search_path = pg_catalog, pg_temp
  -- Whether a text looks like a secret whatever its name: how keys of the well-known services begin, a JSON Web Token, an authorization.
  return p_text ~ '^(whsec_|sk_live_|rk_live_|sk-[A-Za-z0-9]|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AKIA[A-Z0-9]{12}|eyJ[A-Za-z0-9_-]{10,}\.eyJ|-----BEGIN )'
    or p_text ~* '^(bearer|basic|token|digest) +\S';

create or replace function bridge.is_secret_reference(p_value jsonb) returns boolean language sql immutable parallel safe set search_path = pg_catalog, pg_temp
  -- Whether a value says where a secret is: {"secret": "env:shop"} or {"secret": "vault:shop", "before": "Bearer "}.
  return jsonb_typeof(p_value) = 'object' and coalesce(p_value->>'secret' ~ '^(env|vault):[a-z][a-z0-9_]{0,39}$', false)
    and p_value - 'secret' - 'before' = '{}' and jsonb_typeof(coalesce(p_value->'before', '""')) = 'string'
    and coalesce(p_value->>'before' ~ '^[A-Za-z=]{0,15} ?$', true);

create or replace function bridge.check_http_headers(p_headers jsonb) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse headers of a request that are none, that the bridge makes itself, or that hold a secret in clear.
  --
  --   p_headers  an object: a value is a text, or a reference as bridge.is_secret_reference has it; null for none
declare
  v_ours constant text[] := array['host', 'connection', 'content-length', 'content-type', 'transfer-encoding', 'user-agent', 'webhook-id',
    'webhook-timestamp', 'webhook-signature'];
  v_header record;
begin
  if jsonb_typeof(p_headers) <> 'object' then
    perform bridge.refuse(format('headers is a JSON %s', jsonb_typeof(p_headers)), 'give a JSON object');
  end if;
  for v_header in select h.key, h.value, h.value #>> '{}' as said from jsonb_each(p_headers) h order by h.key loop
    if v_header.key !~ '^[A-Za-z0-9-]{1,100}$' or lower(v_header.key) = any (v_ours) then
      perform bridge.refuse(format('headers names %L', left(v_header.key, 80)), format('give letters, digits and dashes, and none of %s, which the bridge makes',
        array_to_string(v_ours, ', ')));
    elsif bridge.is_secret_reference(v_header.value) then
      continue;
    elsif jsonb_typeof(v_header.value) <> 'string' or v_header.said !~ '^[ -~]*$' or length(v_header.said) > 1000 then
      perform bridge.refuse(format('header %s has a value that is neither a plain text nor a reference', v_header.key),
        'give a text, or {"secret": "env:NAME"}, {"secret": "vault:NAME", "before": "Bearer "}');
    elsif bridge.is_secret_name(v_header.key) or bridge.is_secret_text(v_header.said) then
      perform bridge.refuse(format('header %s has a secret in clear', v_header.key),
        'say where it is: {"secret": "env:NAME"} is BRIDGE_SECRET_NAME of the workers, {"secret": "vault:NAME"} is in the vault');
    end if;
  end loop;
end
$$;

create or replace function bridge.refuse_clear_secrets(p_what text, p_value jsonb) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a secret in clear among what a schedule would keep for years: a text under a name of secrets, at any depth, or one that looks like one.
  --
  --   p_what  which argument it is
declare
  v_found text;
begin
  with recursive part (key, value) as (
    select null::text, p_value
    union all
    select e.key, e.value from part p, lateral (
      select o.key, o.value from jsonb_each(case when jsonb_typeof(p.value) = 'object' and not bridge.is_secret_reference(p.value) then p.value end) o
      union all
      select p.key, a from jsonb_array_elements(case when jsonb_typeof(p.value) = 'array' then p.value end) a) e
  )
  select coalesce(p.key, 'a value') into v_found from part p
  where jsonb_typeof(p.value) = 'string' and p.value <> '""' and (bridge.is_secret_name(p.key) or bridge.is_secret_text(p.value #>> '{}')) limit 1;
  if found then
    perform bridge.refuse(format('%s of the schedule has a secret in clear: %s', p_what, left(v_found, 80)),
      'keep {"secret": "env:NAME"} or {"secret": "vault:NAME"} there, and let the task ask bridge.secret for it');
  end if;
end
$$;

create or replace function bridge.is_named_secret(p_name text) returns boolean language sql stable set search_path = pg_catalog, pg_temp
  -- Whether a callback or a schedule, which operators write, says that a secret of this name is in the vault.
  begin atomic
    select exists (select from bridge.callback c where 'vault:' || p_name in (c.secret, c.target)
        or exists (select from jsonb_each(c.headers) h where h.value->>'secret' = 'vault:' || p_name))
      or exists (select from bridge.schedule s where jsonb_path_exists(jsonb_build_array(to_jsonb(s)), '$.**.secret ? (@ == $name)',
        jsonb_build_object('name', 'vault:' || p_name)));
  end;

create or replace function bridge.secret(name text) returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- The value of a secret in the vault, for the worker that uses it now.
  --
  --   name  without vault:; only names that a callback or a schedule has
  --
  -- Errors  JB002 nothing names it, there is no vault, or nothing of that name is in it
declare
  v_function text;
  v_secret text;
begin
  if not bridge.is_named_secret(secret.name) then
    perform bridge.refuse(format('no callback and no schedule names the secret %L', left(secret.name, 80)), 'name it there as vault:NAME', 'JB002');
  end if;
  select nullif(s.value #>> '{}', '') into v_function from bridge.setting s where s.name = 'secret_function';
  if to_regprocedure(v_function || '(text)') is not null then
    execute format('select %s($1)', to_regprocedure(v_function || '(text)')::regproc) into v_secret using secret.name;
  elsif v_function is not null then
    perform bridge.refuse(format('the setting secret_function names %s(text), which does not exist', v_function), 'make it, or correct the setting', 'JB002');
  elsif bridge.is_trusted_owner(to_regclass('vault.decrypted_secrets')) then  -- not what somebody else calls a vault
    execute format('select v.decrypted_secret from %s v where v.name = $1', to_regclass('vault.decrypted_secrets')) into v_secret using secret.name;
  else
    perform bridge.refuse('there is no vault in this database', 'install one, or name a function that reads secrets in the setting secret_function', 'JB002');
  end if;
  if v_secret is null then
    perform bridge.refuse(format('secret %L is not in the vault', left(secret.name, 80)), 'put it there; what needs it is tried again', 'JB002');
  end if;
  return v_secret;
end
$$;
