-- What becomes of alerts: opened, told, acknowledged, resolved. The readings are in 70_reading.sql.

create or replace function bridge.alert_queue(p_rule bridge.alert_rule) returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The queue of the jobs that deliver: the rule's, else the setting callback_queue, else one that a living worker consumes: an alert may be
  -- about a queue that has none. Of those the rule's own, else the one with most workers.
declare
  v_queue text := p_rule.delivery_queue;
begin
  if v_queue is null then
    select s.value #>> '{}' into v_queue from bridge.setting s where s.name = 'callback_queue' and s.value #>> '{}' ~ '^[^\s,]{1,255}$';
  end if;
  if v_queue is null then
    select w.queue into v_queue from bridge.living_workers(clock_timestamp()) w
    order by bridge.is_paused(w.queue), w.queue is distinct from p_rule.queue, w.slots desc, w.queue limit 1;
  end if;
  return coalesce(v_queue, p_rule.queue, 'celery');
end
$$;

create or replace function bridge.alert_payload(p_alert bridge.alert, p_event text) returns jsonb language sql stable set search_path = pg_catalog, pg_temp
  -- What is told of an alert, in the length of a NOTIFY. The event is opened, reminder, resolved or test.
  return jsonb_build_object('type', 'alert.' || p_event, 'timestamp', clock_timestamp(), 'data', jsonb_build_object('id', p_alert.id, 'rule', p_alert.rule,
    'kind', p_alert.kind, 'severity', p_alert.severity, 'state', p_alert.state, 'subject', nullif(p_alert.subject, ''), 'value', p_alert.value,
    'threshold', p_alert.threshold, 'message', left(p_alert.message, 1000), 'opened_at', p_alert.opened_at, 'acknowledged_by', left(p_alert.acknowledged_by, 100),
    'resolved_at', p_alert.resolved_at));

create or replace function bridge.alert_address(p_own text, p_setting text) returns text language sql stable set search_path = pg_catalog, pg_temp
  -- A rule's own address, else that of a setting; null when there is neither.
  return coalesce(p_own, (select nullif(s.value #>> '{}', '') from bridge.setting s where s.name = p_setting and jsonb_typeof(s.value) = 'string'));

create or replace function bridge.tell_alert(p_rule bridge.alert_rule, p_alert bridge.alert, p_event text) returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Tell of an alert: whoever listens to bridge_alert, and the addresses of its rule, by jobs.
declare
  v_payload constant jsonb := bridge.alert_payload(p_alert, p_event);
  v_queue constant text := bridge.alert_queue(p_rule);
  v_told constant jsonb := jsonb_build_object('callback', 'alert ' || p_alert.rule, 'payload', v_payload);
  v_webhook constant text := bridge.alert_address(p_rule.webhook, 'alert_webhook');
  v_notifier constant text := bridge.alert_address(p_rule.notifier, 'alert_notifier');
begin
  perform pg_notify('bridge_alert', v_payload::text);
  if v_webhook is not null then
    perform bridge.deliver('bridge.deliver_webhook', v_queue, v_told || jsonb_build_object('url', v_webhook, 'secret', p_rule.secret), null);
  end if;
  if v_notifier is not null then
    perform bridge.deliver('bridge.deliver_notification', v_queue, v_told || jsonb_build_object('target', v_notifier), null);
  end if;
end
$$;

create or replace function bridge.open_alert(p_rule bridge.alert_rule, p_reading bridge.alert_reading, p_now timestamptz) returns bridge.alert
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- The alert of a condition that holds: the one that is not resolved, or a new one when it has lasted; null when it has not.
  --
  -- Locks  the alert; null, too, where somebody has it in hand (skip locked): the tick waits for nobody
declare
  v_alert bridge.alert;
  v_since timestamptz;
begin
  update bridge.alert a set value = p_reading.value, message = p_reading.message, seen_at = p_now, severity = p_rule.severity, threshold = p_rule.threshold
  where a.id = (select o.id from bridge.alert o where o.rule = p_rule.name and o.subject = p_reading.subject and o.state <> 'resolved' for update skip locked)
  returning a.* into v_alert;
  if found or exists (select from bridge.alert o where o.rule = p_rule.name and o.subject = p_reading.subject and o.state <> 'resolved') then
    return v_alert;
  end if;
  if p_rule.lasting > interval '0' then
    insert into bridge.alert_pending as p (rule, subject, since) values (p_rule.name, p_reading.subject, p_now)
    on conflict (rule, subject) do update set since = least(p.since, excluded.since) returning p.since into v_since;
    if v_since > p_now - p_rule.lasting then
      return null;
    end if;
    delete from bridge.alert_pending p where p.rule = p_rule.name and p.subject = p_reading.subject;
  end if;
  insert into bridge.alert (rule, kind, severity, subject, state, value, threshold, message, opened_at, seen_at)
  values (p_rule.name, p_rule.kind, p_rule.severity, p_reading.subject, 'open', p_reading.value, p_rule.threshold, p_reading.message, p_now, p_now)
  on conflict (rule, subject) where state <> 'resolved' do nothing returning * into v_alert;
  return v_alert;
end
$$;

create or replace function bridge.is_quiet(p_rule bridge.alert_rule, p_alert bridge.alert, p_now timestamptz) returns boolean language sql stable
  set search_path = pg_catalog, pg_temp
  -- Whether it is too early to tell of an alert: its rule and subject were told of, or it was acknowledged, within the quiet time.
  return coalesce(greatest(p_alert.acknowledged_at, (select max(a.told_at) from bridge.alert a where a.rule = p_alert.rule and a.subject = p_alert.subject))
    > p_now - p_rule.quiet, false);

create or replace function bridge.judge_alert_rule(p_rule bridge.alert_rule, p_now timestamptz, p_ticked_at timestamptz) returns integer
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Look at what one rule watches. Of one rule at most 100 subjects are alerts at a time.
  --
  -- Returns  how many alerts were opened
  -- Errors   none: a rule that cannot be judged is warned of, and the others go on
declare
  v_readings bridge.alert_reading[] := array[]::bridge.alert_reading[];
  v_subjects text[];
  v_reading bridge.alert_reading;
  v_alert bridge.alert;
  v_opened integer := 0;
begin
  if p_rule.enabled then
    v_readings := array(select row(r.subject, r.value, r.message)::bridge.alert_reading from bridge.alert_readings(p_rule, p_now, p_ticked_at) r limit 100);
  end if;
  v_subjects := array(select r.subject from unnest(v_readings) r);
  delete from bridge.alert_pending p where p.rule = p_rule.name and p.subject <> all (v_subjects);
  for v_alert in
    update bridge.alert a set state = 'resolved', resolved_at = p_now, resolved_by = case when p_rule.enabled then 'condition' else 'rule' end
    where a.id in (select o.id from bridge.alert o where o.rule = p_rule.name and o.state <> 'resolved' and o.subject <> all (v_subjects) for update skip locked)
    returning a.*
  loop
    if v_alert.told > 0 and p_rule.enabled then
      perform bridge.tell_alert(p_rule, v_alert, 'resolved');
    end if;
  end loop;
  foreach v_reading in array v_readings loop
    v_alert := bridge.open_alert(p_rule, v_reading, p_now);
    continue when v_alert.id is null;
    v_opened := v_opened + (v_alert.opened_at = p_now)::integer;
    if not bridge.is_quiet(p_rule, v_alert, p_now) then
      perform bridge.tell_alert(p_rule, v_alert, case v_alert.told when 0 then 'opened' else 'reminder' end);
      update bridge.alert a set told_at = p_now, told = a.told + 1 where a.id = v_alert.id;
    end if;
  end loop;
  return v_opened;
exception when others then
  raise warning 'alert rule % cannot be judged: %', p_rule.name, sqlerrm;
  return 0;
end
$$;

create or replace function bridge.check_alerts(p_now timestamptz default clock_timestamp(), p_ticked_at timestamptz default null) returns jsonb
  language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Look at all alert rules: the tick does every alert_interval, and by hand it does no harm.
  --
  --   p_now        see bridge.check_now
  --   p_ticked_at  when the last tick was, where this is part of the next
  --
  -- Returns  {"opened": n, "unresolved": n}; null when somebody else is at it
  -- Locks    an advisory lock, tried and never waited for
declare
  v_ticked_at constant timestamptz := coalesce(p_ticked_at, (select t.ticked_at from bridge.tick_state t));
  v_rule bridge.alert_rule;
  v_opened integer := 0;
begin
  perform bridge.check_now(p_now);
  if not pg_try_advisory_xact_lock(hashtextextended('bridge.alerts', 0)) then
    return null;
  end if;
  update bridge.alert_state s set checked_at = p_now;
  delete from bridge.alert_pending p where not exists (select from bridge.alert_rule r where r.name = p.rule);
  for v_rule in select r.* from bridge.alert_rule r order by r.name loop
    v_opened := v_opened + bridge.judge_alert_rule(v_rule, p_now, v_ticked_at);
  end loop;
  return jsonb_build_object('opened', v_opened, 'unresolved', (select count(*) from bridge.alert a where a.state <> 'resolved'));
end
$$;

create or replace function bridge.check_alerts_if_due(p_now timestamptz, p_ticked_at timestamptz, p_times integer default 1) returns boolean
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Look at the alert rules when that is due: the last look is older than so many times alert_interval. A step of the tick, which must not fail.
  --
  -- Returns  whether it was due
begin
  if not exists (select from bridge.alert_state s where s.checked_at <= p_now - p_times * bridge.seconds('alert_interval') or s.checked_at > p_now) then
    return false;
  end if;
  perform bridge.check_alerts(p_now, p_ticked_at);
  return true;
exception when others then
  raise warning 'alert rules cannot be judged: %', sqlerrm;
  return false;
end
$$;

create or replace function bridge.watch_alerts() returns table (id bigint, event text, rule text, severity text, subject text, message text)
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- What a drainer asks every few seconds: alerts that were told of, or resolved, within the last minute, for its log. It looks at the rules
  -- itself where nobody has for twice the interval: nobody ticks.
begin
  perform bridge.check_alerts_if_due(clock_timestamp(), null, 2);
  return query
  select a.id, case when a.state = 'resolved' then 'resolved' when a.told > 1 then 'reminder' else 'opened' end || ' ' || a.told, a.rule, a.severity, a.subject, a.message
  from bridge.alert a
  where (a.state <> 'resolved' and a.told_at > clock_timestamp() - interval '1 minute') or (a.state = 'resolved' and a.told > 0 and a.resolved_at > clock_timestamp() - interval '1 minute')
  order by a.id limit 100;
end
$$;

create or replace function bridge.acknowledge_alert(id bigint, who text default session_user, note text default null) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Say that somebody is at it: nothing more is told of the alert for its rule's quiet time from now; then it is told again if it still holds.
  --
  --   who, note  shown in bridge.alerts
  --
  -- Returns  false when it was acknowledged already; who and note are those of the last
  -- Errors   JB002 there is no such alert, JB006 it is resolved
declare
  v_state constant text := bridge.lock_alert(acknowledge_alert.id);
begin
  update bridge.alert a set state = 'acknowledged', acknowledged_at = clock_timestamp(), acknowledged_by = coalesce(acknowledge_alert.who, session_user),
    note = coalesce(acknowledge_alert.note, a.note)
  where a.id = acknowledge_alert.id;
  return v_state = 'open';
end
$$;

create or replace function bridge.resolve_alert(id bigint, who text default session_user, note text default null) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- End an alert by hand. Where its condition still holds, the next look opens another.
  --
  -- Errors  JB002 there is no such alert, JB006 it is resolved already
begin
  perform bridge.lock_alert(resolve_alert.id);
  update bridge.alert a set state = 'resolved', resolved_at = clock_timestamp(), resolved_by = coalesce(resolve_alert.who, session_user),
    note = coalesce(resolve_alert.note, a.note)
  where a.id = resolve_alert.id;
end
$$;

create or replace function bridge.lock_alert(p_id bigint) returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Take an alert in hand; the state that it is in.
declare
  v_state text;
begin
  select a.state into v_state from bridge.alert a where a.id = p_id for update;
  if v_state is null then
    perform bridge.refuse(format('alert %s does not exist', coalesce(p_id::text, 'null')), 'see: select id, rule, state from bridge.alerts', 'JB002');
  elsif v_state = 'resolved' then
    perform bridge.refuse(format('alert %s is resolved', p_id), 'see bridge.alerts: what came back is another alert', 'JB006');
  end if;
  return v_state;
end
$$;

create or replace function bridge.test_alert(name text) returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Tell of something that did not happen, as a rule would, to see whether it arrives. No alert is opened.
  --
  -- Errors  JB002 when there is none of that name
declare
  v_rule bridge.alert_rule;
begin
  select r.* into v_rule from bridge.alert_rule r where r.name = test_alert.name;
  if not found then
    perform bridge.refuse(format('alert rule %L does not exist', left(test_alert.name, 80)), 'see: select name, kind from bridge.alert_rules', 'JB002');
  end if;
  perform bridge.tell_alert(v_rule, row(0, v_rule.name, v_rule.kind, v_rule.severity, '', 'open', v_rule.threshold, v_rule.threshold,
    'a test: nothing has happened', clock_timestamp(), clock_timestamp(), null, null, null, null, null, null, 0)::bridge.alert, 'test');
end
$$;

create or replace function bridge.health_of_alerts(p_now timestamptz) returns bridge.component language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Whether rules are looked at, and what is open.
declare
  v_checked constant timestamptz := (select nullif(s.checked_at, '-infinity') from bridge.alert_state s);
  v_interval constant interval := bridge.seconds('alert_interval');
  v_stale constant boolean := coalesce(v_checked < p_now - greatest(10 * v_interval, interval '1 minute'), false);
  v_row record;
begin
  select count(*) filter (where a.state = 'open') as unanswered, count(*) as open, count(*) filter (where a.severity = 'critical') as critical,
    string_agg(format('%s: %s', a.rule, a.message), '; ' order by a.severity = 'critical' desc, a.opened_at) as words into v_row
  from (select o.* from bridge.alert o where o.state <> 'resolved' limit 1000) a;
  return bridge.condition('alerts', case when v_row.unanswered > 0 or v_stale then 'degraded' else 'healthy' end,
    case when v_row.open = 0 then 'none is open' else format('%s are open, %s of them critical, %s acknowledged; ', v_row.open, v_row.critical, v_row.open - v_row.unanswered)
      || left(v_row.words, 500) end || case when v_stale then format('; nobody has looked at the rules for %s', bridge.words(p_now - v_checked)) else '' end,
    remedy => case when v_row.unanswered > 0 then 'bridge alerts list; then bridge alerts ack <id>' when v_stale then 'see tick; then bridge alerts check' end,
    last_run => v_checked, next_run => v_checked + v_interval, error_count => v_row.open, value => v_row.unanswered);
end
$$;

select bridge.define_view('alert_rules', $view$
  select r.name, r.kind, r.queue, r.task, r.threshold::double precision, r.within, r.minimum, r.lasting, r.severity, r.quiet, r.enabled, r.webhook, r.secret, r.notifier,
    r.delivery_queue, r.changed_at, (select count(*) from bridge.alert a where a.rule = r.name and a.state <> 'resolved') as unresolved
  from bridge.alert_rule r
$view$);

select bridge.define_view('alerts', $view$
  select a.id, a.rule, a.kind, a.severity, a.state, nullif(a.subject, '') as subject, a.value::double precision, a.threshold::double precision, a.message, a.opened_at, a.seen_at,
    a.acknowledged_at, a.acknowledged_by, a.note, a.resolved_at, a.resolved_by, a.told_at, a.told
  from bridge.alert a
$view$);
