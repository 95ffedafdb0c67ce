-- Callbacks: rules for a task or a queue (or the option `webhook` of one job) that make a webhook, a notification or a NOTIFY of what
-- becomes of jobs. Webhooks and notifications are jobs of their own, made in the transaction that ends the job they tell of: they exist
-- when that end is committed, and are repeated like any other job (see sql/52_deliver.sql).

do $$
begin
  if to_regclass('bridge.callback') is null then
    create table bridge.callback (
      name           text primary key,
      kind           text not null,
      target         text not null,          -- a URL; the name of a notifier in the workers' environment; a channel
      task           text,                   -- only of tasks of this name, or pattern with *; null: of all
      queue          text,                   -- only of this queue; null: of all
      events         text[] not null,
      secret         text,                   -- of a webhook: the name of its secret in the workers' environment, never the secret
      result         boolean not null default false,
      delivery_queue text,                   -- null: the setting callback_queue, else the job's own
      changed_at     timestamptz not null default clock_timestamp(),
      constraint callback_kind_is_known check (kind in ('webhook', 'notifier', 'channel'))
    );
  end if;
end
$$;

do $$
begin
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.callback'::regclass and a.attname = 'headers') then
    alter table bridge.callback add column headers jsonb;  -- further ones of a webhook's requests; secrets by reference alone
  end if;
end
$$;

insert into bridge.setting (name, value, about) values
  ('webhook_hosts',  '[]',   'hosts that webhooks may go to, as ["hooks.example.org", "*.example.com"]; empty: any whose address is public'),
  ('callback_queue', '""', 'queue of the jobs that deliver webhooks and notifications, as "callbacks"; empty: that of the job they tell of')
on conflict (name) do update set about = excluded.about where bridge.setting.about <> excluded.about;

create or replace function bridge.is_like(p_text text, p_pattern text) returns boolean language sql immutable parallel safe set search_path = pg_catalog, pg_temp
  -- Whether a text matches a pattern in which * stands for anything; a null pattern matches all.
  return p_pattern is null or p_text like replace(replace(replace(replace(p_pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%');

create or replace function bridge.check_events(p_events text[]) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse events that never happen, or none at all.
begin
  if cardinality(p_events) > 0 and p_events <@ array['succeeded', 'failed', 'cancelled', 'expired', 'retrying'] then
    return;
  end if;
  perform bridge.refuse(format('events is %s', coalesce(p_events::text, 'null')), 'give some of succeeded, failed, cancelled, expired, retrying');
end
$$;

create or replace function bridge.check_url(p_url text) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse what is no address for a webhook, or one that webhook_hosts does not allow. What its host resolves to, the worker looks at.
declare
  v_host constant text := lower(substring(p_url from '^https?://(\[[0-9a-fA-F:.]+\]|[^:/?#@\s\[\]]+)(?::[0-9]{1,5})?(?:[/?#]|$)'));
  v_allowed jsonb;
begin
  if v_host is null or p_url ~ '\s' or length(p_url) > 2000 then
    perform bridge.refuse(format('url of the webhook is %L', left(regexp_replace(p_url, '//[^/@]*@', '//***@'), 80)),
      'give an http or https address without user and password, at most 2000 characters');
  end if;
  select s.value into v_allowed from bridge.setting s where s.name = 'webhook_hosts';
  if jsonb_typeof(v_allowed) <> 'array' then
    perform bridge.refuse(format('setting webhook_hosts is %s', v_allowed), 'give a JSON array of hosts, [] for all whose address is public');
  elsif v_allowed <> '[]' and not exists (select from jsonb_array_elements_text(v_allowed) a where bridge.is_like(v_host, lower(a))) then
    perform bridge.refuse(format('url leads to host %s, which the setting webhook_hosts does not allow', v_host),
      format('choose one of %s, or add it there', v_allowed));
  end if;
end
$$;

create or replace function bridge.check_secret(p_secret text) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse what is no name of a secret, without repeating it: it may be the secret.
begin
  if p_secret is null or p_secret !~ '^(env:|vault:)?[a-z][a-z0-9_]{0,39}$' then
    perform bridge.refuse('secret is no name', 'give the name of one, lower case, as billing for BRIDGE_WEBHOOK_SECRET_BILLING in the '
      'workers'' environment, or vault:billing; default means BRIDGE_WEBHOOK_SECRET');
  end if;
end
$$;

create or replace function bridge.full_webhook(p_webhook jsonb) returns jsonb language sql immutable set search_path = pg_catalog, pg_temp
  -- The option `webhook` of a job in full: an address alone, or an object of url, events, secret and result; null stays null.
  return '{"events": ["succeeded", "failed", "cancelled", "expired"], "secret": "default", "result": false}'
    || case jsonb_typeof(p_webhook) when 'string' then jsonb_build_object('url', p_webhook) else p_webhook end;

create or replace function bridge.check_webhook(p_webhook jsonb) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse an option `webhook` that could tell nobody.
declare
  v_given jsonb;
  v_unknown text;
begin
  if jsonb_typeof(p_webhook) not in ('string', 'object') then
    perform bridge.refuse(format('webhook is a JSON %s', jsonb_typeof(p_webhook)), 'give an address, or an object of url, events, secret and result');
  end if;
  v_given := bridge.full_webhook(p_webhook);
  select string_agg(k, ', ') into v_unknown from jsonb_object_keys(v_given) k where k not in ('url', 'events', 'secret', 'result');
  if v_unknown is not null then
    perform bridge.refuse(format('webhook has the unknown key %s', v_unknown), 'known are url, events, secret and result');
  elsif jsonb_typeof(v_given->'events') <> 'array' or jsonb_typeof(v_given->'result') <> 'boolean' then
    perform bridge.refuse('webhook has events or result of the wrong type', 'events is an array of texts, result is true or false');
  end if;
  if v_given->>'secret' ~ '^vault:' then  -- whoever may enqueue would have secrets read that are an operator's to name
    perform bridge.refuse('secret of a job''s own webhook is in the vault', 'give a name in the workers'' environment, or let an operator set a callback');
  end if;
  perform bridge.check_url(v_given->>'url'), bridge.check_secret(v_given->>'secret'),
    bridge.check_events((select array_agg(e) from jsonb_array_elements_text(v_given->'events') e));
end
$$;

create or replace function bridge.keep_callback(p_new bridge.callback) returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Make the callback of this name, or give it these values. Returns created, changed or unchanged.
declare
  v_old bridge.callback;
begin
  if p_new.name is null or p_new.name !~ '^\S.{0,99}$' then
    perform bridge.refuse(format('name is %L', left(p_new.name, 80)), 'give a name of 1 to 100 characters');
  elsif p_new.task !~ '^\S{1,255}$' then
    perform bridge.refuse(format('task is %L', left(p_new.task, 80)), 'give the name of a task or a pattern such as mail.*, or null for all');
  elsif p_new.queue !~ '^[^\s,]{1,255}$' or p_new.delivery_queue !~ '^[^\s,]{1,255}$' then
    perform bridge.refuse(format('queue or delivery_queue is %L', left(coalesce(p_new.delivery_queue, p_new.queue), 80)),
      'give the name of a queue, without spaces and commas');
  end if;
  perform bridge.check_events(p_new.events);
  insert into bridge.callback select (p_new).* on conflict (name) do nothing;
  if found then
    return 'created';
  end if;
  select c.* into v_old from bridge.callback c where c.name = p_new.name for update;
  v_old.changed_at := p_new.changed_at;
  if v_old is not distinct from p_new then
    return 'unchanged';
  end if;
  update bridge.callback c set (kind, target, task, queue, events, secret, result, delivery_queue, changed_at, headers) =
    (p_new.kind, p_new.target, p_new.task, p_new.queue, p_new.events, p_new.secret, p_new.result, p_new.delivery_queue, p_new.changed_at,
    p_new.headers)
  where c.name = p_new.name;
  return 'changed';
end
$$;

create or replace function bridge.set_webhook(name text, url text, task text default null, queue text default null,
    events text[] default '{succeeded,failed,cancelled,expired}', secret text default 'default', result boolean default false,
    delivery_queue text default null, headers jsonb default null)
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Post a signed message to an address whenever something of a task or a queue happens.
  --
  --   name            of the callback: the same name changes it
  --   url             http or https; no user and password in it
  --   task, queue     only of these; task may be a pattern such as mail.*; null: of all
  --   events          succeeded, failed (no attempt follows: a dead letter), cancelled, expired, retrying (an attempt failed, another follows)
  --   secret          name of the secret that signs: default is BRIDGE_WEBHOOK_SECRET in the workers' environment, billing is
  --                   BRIDGE_WEBHOOK_SECRET_BILLING, vault:billing is in the vault, see bridge.secret
  --   result          whether the message holds the job's result
  --   delivery_queue  where the jobs go that deliver it; null: the setting callback_queue, else the queue of the job
  --   headers         further headers of the request: {"X-Team": "ops", "Authorization": {"secret": "env:shop", "before": "Bearer "}}
  --
  -- Returns  created, changed or unchanged
  -- Errors   JB001 an argument; a header that is a secret in clear
begin
  perform bridge.check_url(set_webhook.url), bridge.check_secret(set_webhook.secret), bridge.check_http_headers(set_webhook.headers);
  return bridge.keep_callback(row(set_webhook.name, 'webhook', set_webhook.url, set_webhook.task, set_webhook.queue, set_webhook.events,
    set_webhook.secret, coalesce(set_webhook.result, false), set_webhook.delivery_queue, clock_timestamp(), nullif(set_webhook.headers, '{}')));
end
$$;

create or replace function bridge.set_notifier(name text, target text, task text default null, queue text default null,
    events text[] default '{failed}', delivery_queue text default null)
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Send a notification (mail, Slack and what else Apprise knows) whenever something of a task or a queue happens.
  --
  --   target  name of a notifier: ops means the Apprise addresses in BRIDGE_NOTIFIER_OPS of the workers' environment, vault:ops those in the
  --           vault, see bridge.secret
  --   the rest as in bridge.set_webhook
  --
  -- Returns  created, changed or unchanged
  -- Errors   JB001 an argument
begin
  if set_notifier.target is null or set_notifier.target !~ '^(env:|vault:)?[a-z][a-z0-9_]{0,39}$' then
    perform bridge.refuse('target is no name', 'give the name of a notifier, lower case, as ops for BRIDGE_NOTIFIER_OPS in the workers'' environment, '
      'or vault:ops');
  end if;
  return bridge.keep_callback(row(set_notifier.name, 'notifier', set_notifier.target, set_notifier.task, set_notifier.queue,
    set_notifier.events, null, false, set_notifier.delivery_queue, clock_timestamp(), null));
end
$$;

create or replace function bridge.set_channel(name text, channel text, task text default null, queue text default null,
    events text[] default '{succeeded,failed,cancelled,expired}')
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- NOTIFY a channel whenever something of a task or a queue happens. The payload is JSON: event, id, task_id, task, queue, attempts.
  --
  --   channel  what listeners LISTEN to: a plain name
  --   the rest as in bridge.set_webhook
  --
  -- Commits that notify take turns in the whole database: for what happens a thousand times a second, a webhook is cheaper.
  --
  -- Returns  created, changed or unchanged
  -- Errors   JB001 an argument
begin
  if set_channel.channel is null or set_channel.channel !~ '^[a-z_][a-z0-9_]{0,62}$' or set_channel.channel ~ '^bridge_' then
    perform bridge.refuse(format('channel is %L', left(set_channel.channel, 80)),
      'give a plain name, lower case, at most 63 characters, that does not begin with bridge_');
  end if;
  return bridge.keep_callback(row(set_channel.name, 'channel', set_channel.channel, set_channel.task, set_channel.queue,
    set_channel.events, null, false, null, clock_timestamp(), null));
end
$$;

create or replace function bridge.remove_callback(name text) returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- End a callback. What it has made already is delivered.
  --
  -- Errors  JB002 when there is none of that name
begin
  delete from bridge.callback c where c.name = remove_callback.name;
  if not found then
    perform bridge.refuse(format('callback %L does not exist', left(remove_callback.name, 80)), 'see: select name, kind from bridge.callbacks', 'JB002');
  end if;
end
$$;
