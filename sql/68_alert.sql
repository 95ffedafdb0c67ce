-- Alerts: rules as rows, judged by the tick (and by drainers, where nobody ticks), and what became of them. An alert is opened when its
-- condition has lasted, may be acknowledged, and is resolved by itself when the condition ends; if it comes back, that is another alert.
--
-- What is told goes to whoever listens to bridge_alert, to the log of each drainer, and, by jobs as callbacks make them, to addresses.

create or replace function bridge.alert_kinds()
  returns table (kind text, threshold numeric, within interval, minimum integer, lasting interval, severity text, by_queue boolean, by_task boolean,
    below boolean, about text)
  language sql immutable set search_path = pg_catalog, pg_temp
  -- What a rule may watch, with its defaults; by_queue and by_task: it may be about one; below: it fires below the threshold, not above.
  begin atomic
    values
      ('queued_jobs', 100::numeric, interval '1 hour', null::integer, interval '0', 'warning', true, true, false,
        'jobs that are due and have waited for longer than within, in Postgres or with the broker'),
      ('queue_age', 600, null, null, '1 minute', 'warning', true, false, false,
        'seconds that the oldest due job of a queue has waited; paused queues and what a limit holds back are left out'),
      ('stuck_jobs', 0, '1 hour', null, '0', 'warning', true, true, false, 'jobs that have been published or running for longer than within'),
      ('failure_rate', 0.5, '10 minutes', 20, '0', 'warning', true, true, false,
        'part of the attempts of a queue or task that failed, of at least minimum that ended within this while'),
      ('dead_letters', 0, '1 hour', null, '0', 'warning', true, true, false, 'jobs that failed for good within this while, and were not discarded'),
      ('late_tick', 60, null, null, '0', 'critical', false, false, false, 'seconds without a tick'),
      ('no_drainer', 1, null, null, '1 minute', 'critical', false, false, true, 'drainers that report, while due jobs wait'),
      ('no_worker', 1, null, null, '2 minutes', 'critical', true, false, true, 'workers that report of a queue that has due jobs, or that the rule names'),
      ('broker_trouble', 60, null, null, '0', 'critical', false, false, false, 'seconds since which drainers cannot publish'),
      ('late_schedule', 120, null, null, '0', 'critical', false, false, false, 'seconds that a slot of a schedule is overdue'),
      ('failed_schedule', 0, null, null, '0', 'warning', false, false, false, 'runs of a schedule that failed one after the other'),
      ('slow_schedule', 0, null, null, '0', 'warning', false, false, false, 'seconds that a run takes which bridge.slow_schedules has'),
      ('breaker_open', 0, null, null, '0', 'warning', true, true, false, 'seconds that a circuit breaker has not been closed'),
      ('paused', 86400, null, null, '0', 'info', true, true, false, 'seconds that an operator''s pause has lasted'),
      ('old_snapshot', 900, null, null, '0', 'warning', false, false, false, 'seconds that a transaction has kept dead rows from being vacuumed');
  end;

do $$
begin
  if to_regclass('bridge.alert_rule') is null then
    create table bridge.alert_rule (
      name           text primary key,
      kind           text not null,          -- see bridge.alert_kinds
      queue          text,                   -- only of this queue
      task           text,                   -- only of this task
      threshold      numeric not null,
      within         interval,
      minimum        integer,                -- of a failure rate: fewer attempts prove nothing
      lasting        interval not null,      -- how long the condition must hold
      severity       text not null,
      quiet          interval not null,      -- at most one message of a rule and subject in this time
      enabled        boolean not null,
      webhook        text,                   -- null: the setting alert_webhook
      secret         text not null,          -- the name of its secret in the workers' environment, never the secret
      notifier       text,                   -- null: the setting alert_notifier
      delivery_queue text,                   -- null: see bridge.alert_queue
      changed_at     timestamptz not null,
      constraint alert_rule_severity_is_known check (severity in ('info', 'warning', 'critical'))
    );

    create table bridge.alert (
      id              bigint generated always as identity primary key,
      rule            text not null,         -- its name: history outlives the rule
      kind            text not null,
      severity        text not null,
      subject         text not null,         -- a queue, a schedule …; empty where a rule has one only
      state           text not null,
      value           numeric not null,      -- when it was last looked at
      threshold       numeric not null,
      message         text not null,
      opened_at       timestamptz not null,
      seen_at         timestamptz not null,  -- when the condition was last seen
      acknowledged_at timestamptz,
      acknowledged_by text,
      note            text,                  -- of who acknowledged or resolved it
      resolved_at     timestamptz,
      resolved_by     text,                  -- condition: it ended by itself
      told_at         timestamptz,
      told            integer not null default 0,
      constraint alert_state_is_known check (state in ('open', 'acknowledged', 'resolved'))
    ) with (fillfactor = 70);
    -- check: the alert of a condition that holds; of those who race, one makes it
    create unique index alert_unresolved on bridge.alert (rule, subject) where state <> 'resolved';
    -- check: when was this last told
    create index alert_told on bridge.alert (rule, subject, told_at);

    create table bridge.alert_pending (      -- conditions that have not lasted long enough yet
      rule    text not null,
      subject text not null,
      since   timestamptz not null,
      primary key (rule, subject)
    );

    create table bridge.alert_state (
      only_row   boolean primary key default true check (only_row),
      checked_at timestamptz not null default '-infinity'
    ) with (fillfactor = 50);
    insert into bridge.alert_state default values;

    -- One rule a kind, made once: who removes one does not find it again after the next install. They tell nobody until an address is given.
    insert into bridge.alert_rule (name, kind, threshold, within, minimum, lasting, severity, quiet, enabled, secret, changed_at)
    select k.kind, k.kind, k.threshold, k.within, k.minimum, k.lasting, k.severity, '1 hour', true, 'default', clock_timestamp() from bridge.alert_kinds() k;
  end if;
  if to_regtype('bridge.alert_reading') is null then
    create type bridge.alert_reading as (subject text, value numeric, message text);
  end if;
end
$$;

insert into bridge.setting (name, value, about) values
  ('alert_interval',  '15',      'seconds between two looks at the alert rules'),
  ('alert_retention', '7776000', 'seconds that resolved alerts are kept'),
  ('alert_webhook',   '""',      'address that alerts are posted to, of rules that have none of their own; empty: nowhere'),
  ('alert_notifier',  '""',      'notifier that is told of alerts, of rules that have none of their own, as "ops"; empty: none')
on conflict (name) do update set about = excluded.about where bridge.setting.about <> excluded.about;

select bridge.clean_table('alert', 'resolved_at', 'alert_retention', 'v.state = ''resolved''');

create or replace function bridge.check_alert_rule(p_rule bridge.alert_rule) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a rule that could never fire, or fires about nothing that its kind knows.
declare
  v_kind record;
begin
  select k.* into v_kind from bridge.alert_kinds() k where k.kind = p_rule.kind;
  perform bridge.scope(p_rule.queue, p_rule.task, p_rule.queue is null and p_rule.task is null);
  if (p_rule.queue is not null and not v_kind.by_queue) or (p_rule.task is not null and not v_kind.by_task) then
    perform bridge.refuse(format('%s is %L, and kind %s is not about one', case when p_rule.queue is null then 'task' else 'queue' end,
      left(coalesce(p_rule.queue, p_rule.task), 80), p_rule.kind), 'leave it out; bridge.alert_kinds() tells what each kind may be about');
  elsif p_rule.threshold is null or p_rule.threshold not between 0 and 1e12 or (p_rule.kind = 'failure_rate' and p_rule.threshold >= 1)
    or (v_kind.below and p_rule.threshold < 1) then
    perform bridge.refuse(format('threshold is %s', coalesce(p_rule.threshold::text, 'null')), case when p_rule.kind = 'failure_rate'
      then 'give a part of all attempts, from 0 and below 1: above it the alert fires' when v_kind.below
      then 'give 1 or more: with fewer the alert fires' else 'give 0 or more: above it the alert fires' end);
  elsif v_kind.within is null and p_rule.within is not null then
    perform bridge.refuse(format('within is %s, and kind %s knows none', p_rule.within, p_rule.kind), 'leave it out');
  elsif p_rule.within not between interval '1 second' and interval '90 days' then
    perform bridge.refuse(format('within is %s', p_rule.within), 'give an interval from 1 second to 90 days');
  elsif p_rule.minimum not between 1 and 10000 or (v_kind.minimum is null and p_rule.minimum is not null) then
    perform bridge.refuse(format('minimum is %s', p_rule.minimum), 'give 1 to 10000 attempts, to a failure_rate alone');
  elsif p_rule.lasting not between interval '0' and interval '7 days' then
    perform bridge.refuse(format('lasting is %s', p_rule.lasting), 'give an interval from 0 to 7 days');
  elsif p_rule.quiet not between interval '1 minute' and interval '365 days' then
    perform bridge.refuse(format('quiet is %s', p_rule.quiet), 'give an interval from 1 minute to 365 days');
  elsif p_rule.severity not in ('info', 'warning', 'critical') then
    perform bridge.refuse(format('severity is %L', left(p_rule.severity, 80)), 'give info, warning or critical');
  elsif p_rule.notifier !~ '^[a-z][a-z0-9_]{0,39}$' then
    perform bridge.refuse('notifier is no name', 'give the name of a notifier, lower case, as ops for BRIDGE_NOTIFIER_OPS in the workers'' environment');
  elsif p_rule.delivery_queue !~ '^[^\s,]{1,255}$' then
    perform bridge.refuse(format('delivery_queue is %L', left(p_rule.delivery_queue, 80)), 'give the name of a queue, without spaces and commas');
  end if;
  perform bridge.check_secret(p_rule.secret);
  if p_rule.webhook is not null then
    perform bridge.check_url(p_rule.webhook);
  end if;
end
$$;

create or replace function bridge.set_alert(name text, kind text default null, threshold numeric default null, queue text default null,
    task text default null, within interval default null, lasting interval default null, severity text default null, quiet interval default null,
    minimum integer default null, webhook text default null, notifier text default null, secret text default null,
    delivery_queue text default null, enabled boolean default null)
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Make an alert rule, or change what is said of the one that has this name; what is not said stays, or has the default of its kind.
  --
  --   name            of the rule; the rules that are installed have the name of their kind
  --   kind            what it watches: see bridge.alert_kinds(). Without it the name says it
  --   threshold       it fires above it; no_worker and no_drainer below it
  --   queue, task     only of this one; an empty text: of all again
  --   within          how far back it looks, or how long a job may wait
  --   lasting         how long the condition must hold before it fires
  --   severity        info, warning or critical
  --   quiet           at most one message in this time; so long after it was acknowledged, too, it is silent
  --   minimum         of a failure rate: of at least so many attempts
  --   webhook         address that it is posted to; an empty text: the setting alert_webhook again
  --   notifier        name of a notifier, as for bridge.set_notifier; an empty text: the setting alert_notifier again
  --   secret          name of the secret that signs the webhook
  --   delivery_queue  queue of the jobs that deliver; an empty text: one that has a worker
  --   enabled         false: it is not looked at, and what is open of it is resolved
  --
  -- Returns  created, changed or unchanged
  -- Errors   JB001 an argument
  -- Locks    the table of rules against others who change one; the tick reads on
declare
  v_old bridge.alert_rule;
  v_new bridge.alert_rule;
  v_kind record;
begin
  if set_alert.name is null or set_alert.name !~ '^\S.{0,99}$' then
    perform bridge.refuse(format('name is %L', left(set_alert.name, 80)), 'give a name of 1 to 100 characters');
  end if;
  lock table bridge.alert_rule in share row exclusive mode;
  select r.* into v_old from bridge.alert_rule r where r.name = set_alert.name;
  select k.* into v_kind from bridge.alert_kinds() k where k.kind = coalesce(set_alert.kind, v_old.kind, set_alert.name);
  if v_kind.kind is null then
    perform bridge.refuse(format('kind is %L', left(coalesce(set_alert.kind, set_alert.name), 80)),
      'give one of ' || (select string_agg(k.kind, ', ' order by k.kind) from bridge.alert_kinds() k));
  elsif v_old.kind <> v_kind.kind then
    perform bridge.refuse(format('kind is %L, and alert %L is of kind %s', set_alert.kind, set_alert.name, v_old.kind), 'give another name, or remove it first');
  end if;
  v_new := row(set_alert.name, v_kind.kind, nullif(coalesce(set_alert.queue, v_old.queue), ''), nullif(coalesce(set_alert.task, v_old.task), ''),
    coalesce(set_alert.threshold, v_old.threshold, v_kind.threshold), coalesce(set_alert.within, v_old.within, v_kind.within),
    coalesce(set_alert.minimum, v_old.minimum, v_kind.minimum), coalesce(set_alert.lasting, v_old.lasting, v_kind.lasting),
    coalesce(set_alert.severity, v_old.severity, v_kind.severity), coalesce(set_alert.quiet, v_old.quiet, '1 hour'),
    coalesce(set_alert.enabled, v_old.enabled, true), nullif(coalesce(set_alert.webhook, v_old.webhook), ''),
    coalesce(set_alert.secret, v_old.secret, 'default'), nullif(coalesce(set_alert.notifier, v_old.notifier), ''),
    nullif(coalesce(set_alert.delivery_queue, v_old.delivery_queue), ''), v_old.changed_at);
  perform bridge.check_alert_rule(v_new);
  if v_new is not distinct from v_old then
    return 'unchanged';
  end if;
  v_new.changed_at := clock_timestamp();
  delete from bridge.alert_rule r where r.name = set_alert.name;
  insert into bridge.alert_rule select (v_new).*;
  return case when v_old.name is null then 'created' else 'changed' end;
end
$$;

create or replace function bridge.remove_alert(name text) returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Remove an alert rule. What is open of it is resolved; its history stays. What has not lasted long enough goes with the next look at all
  -- rules, which must not wait for this.
  --
  -- Errors  JB002 when there is none of that name
begin
  delete from bridge.alert_rule r where r.name = remove_alert.name;
  if not found then
    perform bridge.refuse(format('alert rule %L does not exist', left(remove_alert.name, 80)), 'see: select name, kind from bridge.alert_rules', 'JB002');
  end if;
  update bridge.alert a set state = 'resolved', resolved_at = clock_timestamp(), resolved_by = session_user, note = coalesce(a.note, 'its rule was removed')
  where a.rule = remove_alert.name and a.state <> 'resolved';
end
$$;
