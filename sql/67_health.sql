-- Is all well, and where not, what to do: one row a component.

do $$
begin
  if to_regtype('bridge.component') is null then
    create type bridge.component as (
      component    text,                     -- tick, drainer, broker, workers, queue, jobs, schedules, dead_letters …
      subject      text,                     -- which one: a queue, a process, an entry of pg_cron; null where there is one only
      status       text,                     -- healthy; degraded: jobs still run, worth a look; failing: a person must act; inactive: not in use
      found        text,                     -- one sentence
      remedy       text,                     -- what to do; null where there is nothing to do
      last_run     timestamptz,              -- when it last did what it is for
      next_run     timestamptz,              -- when it will
      error_count  bigint,
      success_rate double precision,         -- of 1; null where nothing was tried
      value        double precision          -- the number that was judged: seconds or a count
    );
  end if;
end
$$;

create or replace function bridge.condition(component text, status text, found text, subject text default null, remedy text default null,
    last_run timestamptz default null, next_run timestamptz default null, error_count bigint default null,
    success_rate double precision default null, value double precision default null)
  returns bridge.component language sql immutable parallel safe set search_path = pg_catalog, pg_temp
  -- One row of bridge.health, by the names of its columns.
  return row(component, subject, status, found, remedy, last_run, next_run, error_count, success_rate, value)::bridge.component;

create or replace function bridge.health_of_tick(p_now timestamptz, p_late interval) returns bridge.component language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- Who ticks, and how late he is: delayed jobs, retries, expiry and the recovery of what died all wait for it.
declare
  v_state bridge.tick_state;
  v_interval constant interval := bridge.seconds('tick_interval');
  v_age interval;
begin
  select t.* into v_state from bridge.tick_state t;
  if not isfinite(v_state.ticked_at) then
    return bridge.condition('tick', 'failing', 'nobody has ever ticked: delayed jobs do not start, and nothing that dies is recovered',
      remedy => 'start a drainer (bridge drain, BRIDGE_TICK not off), or: create extension pg_cron, then bridge install');
  end if;
  v_age := greatest(p_now - v_state.ticked_at, interval '0');
  return bridge.condition('tick', case when v_age > greatest(p_late, 3 * v_interval) then 'failing' else 'healthy' end,
    format('%s ticked %s ago', v_state.source, bridge.words(v_age)),
    remedy => case when v_age > greatest(p_late, 3 * v_interval) then case v_state.source
      when 'pg_cron' then 'see pg_cron here and in bridge doctor; a drainer takes over unless its BRIDGE_TICK is off'
      else 'start a drainer (bridge drain, BRIDGE_TICK not off), or see its log' end end,
    last_run => v_state.ticked_at, next_run => v_state.ticked_at + v_interval, value => extract(epoch from v_age)::double precision);
end
$$;

create or replace function bridge.health_of_drainers(p_now timestamptz) returns setof bridge.component language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- One row a drainer that reports, or went silent within the last hour; one row that says so where none reports.
declare
  v_row record;
  v_alive bigint := 0;
begin
  for v_row in
    select d.name, d.published, d.started_at, d.seen_at, d.clock_skew, p_now - d.seen_at as age from bridge.drainer d
    where d.stopped_at is null and d.seen_at > p_now - interval '1 hour' order by d.name
  loop
    if v_row.age > interval '15 seconds' then
      return next bridge.condition('drainer', 'degraded', format('went silent %s ago without saying good-bye', bridge.words(v_row.age)), v_row.name,
        'see its log; what it had claimed is published by another', last_run => v_row.seen_at, value => extract(epoch from v_row.age)::double precision);
    else
      v_alive := v_alive + 1;
      return next bridge.condition('drainer', case when abs(extract(epoch from v_row.clock_skew)) > 2 then 'degraded' else 'healthy' end,
        format('has published %s jobs in %s', v_row.published, bridge.words(p_now - v_row.started_at)) || case
          when abs(extract(epoch from v_row.clock_skew)) > 2 then format('; its clock is %s s off the database''s', round(extract(epoch from v_row.clock_skew), 1)) else '' end,
        v_row.name, case when abs(extract(epoch from v_row.clock_skew)) > 2 then 'run a time service there and on the database''s machine' end,
        last_run => v_row.seen_at, next_run => v_row.seen_at + interval '5 seconds', value => extract(epoch from v_row.age)::double precision);
    end if;
  end loop;
  if v_alive = 0 then
    return next bridge.condition('drainer', 'failing', 'none reports: jobs stay queued', remedy => 'start one: bridge drain', value => 0);
  end if;
end
$$;

create or replace function bridge.health_of_broker(p_now timestamptz) returns bridge.component language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Whether jobs get into the broker, as the living drainers report it: one that cannot publish says since when, and why.
declare
  v_row record;
begin
  select count(*) as drainers, count(d.broker->>'trouble') as troubled, min((d.broker->>'since')::timestamptz) as since,
    max((d.broker->>'published_at')::timestamptz) as published_at, (array_agg(d.broker->>'trouble') filter (where d.broker ? 'trouble'))[1] as trouble,
    (select string_agg(distinct q.name, ', ') from bridge.drainer o, jsonb_array_elements_text(o.broker->'refused') q (name)
      where o.stopped_at is null and o.seen_at > p_now - interval '15 seconds') as refused,
    coalesce(string_agg(distinct concat_ws(' ', coalesce(d.broker->>'server', d.broker->>'kind'), d.broker->>'version', 'at ' || (d.broker->>'url')), ', '), '') as place
  into v_row from bridge.drainer d where d.stopped_at is null and d.seen_at > p_now - interval '15 seconds';
  if v_row.drainers = 0 then
    return bridge.condition('broker', 'inactive', 'no drainer reports, so nothing is known of it', remedy => 'see drainer');
  elsif v_row.troubled > 0 then
    return bridge.condition('broker', case when v_row.troubled = v_row.drainers then 'failing' else 'degraded' end,
      format('%s of %s drainers cannot publish since %s: %s', v_row.troubled, v_row.drainers, bridge.moment(v_row.since), left(v_row.trouble, 500)),
      remedy => 'see that the broker runs, has memory, and takes messages of this queue; jobs wait in Postgres until it does',
      last_run => v_row.published_at, error_count => v_row.troubled, value => extract(epoch from p_now - v_row.since)::double precision);
  end if;
  return bridge.condition('broker', case when v_row.refused is null then 'healthy' else 'degraded' end,
    format('%s takes what %s drainers publish', coalesce(nullif(v_row.place, ''), 'it'), v_row.drainers) || coalesce(', but refuses messages of ' || v_row.refused, ''),
    remedy => case when v_row.refused is not null then 'is it full, or led to by nothing: see the drainers'' log' end,
    last_run => v_row.published_at, error_count => 0, value => 0);
end
$$;

create or replace function bridge.health_of_queues(p_now timestamptz, p_late interval) returns setof bridge.component language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- Two rows a queue: who consumes it, and how long its oldest due job has waited in Postgres.
declare
  v_queue record;
  v_age interval;
  v_full boolean;
  v_any boolean := false;
begin
  for v_queue in
    select q.*, e.succeeded, e.failed, e.last_at from bridge.queues_seen(p_now) q
    left join bridge.ended_lately(p_now - interval '10 minutes') e on e.queue = q.queue order by q.queue
  loop
    v_any := true;
    if v_queue.queue <> 'bridge.calls' then  -- those are performed by drainers and pg_cron, not by workers
      return next bridge.condition('workers', case when v_queue.workers > 0 then 'healthy'
          when v_queue.silent is not null then 'degraded'
          when v_queue.published + v_queue.running > 0 or (v_queue.queued_since is not null and not v_queue.paused) then 'failing' else 'inactive' end,
        case when v_queue.workers > 0 then format('%s workers run %s jobs at once', v_queue.workers, v_queue.slots)
          when v_queue.silent is not null then format('only workers that report nothing consume it: %s', array_to_string(v_queue.silent[1:5], ', '))
          else format('no worker consumes it; %s jobs are with the broker', v_queue.published) end,
        v_queue.queue, case when v_queue.workers > 0 then null
          when v_queue.silent is not null then 'bridge.install(app) in its application, or CELERY_LOADER=bridge.loader.Loader in its environment, then restart it'
          else format('celery -A <app> worker -Q %s', v_queue.queue) end,
        last_run => v_queue.last_at, value => v_queue.workers);
    end if;
    v_age := p_now - v_queue.queued_since;
    v_full := v_age > p_late and not v_queue.paused and bridge.room(v_queue.queue) = 0;
    return next bridge.condition('queue', case when v_queue.paused then 'inactive' when v_full then 'degraded' when v_age > p_late then 'failing' else 'healthy' end,
      case when v_queue.paused then 'paused' else format('%s published, %s running', v_queue.published, v_queue.running) end
        || coalesce('; the oldest due job has waited ' || bridge.words(v_age), '')
        || case when v_full then ', as many jobs as the window allows are with the broker and not started' else '' end,
      v_queue.queue, case when v_queue.paused then 'see bridge.pauses; bridge queues resume' when v_full then 'more workers for it'
        when v_age > p_late then 'a drainer must be alive and serve it (BRIDGE_QUEUES)' end,
      last_run => v_queue.last_at, error_count => coalesce(v_queue.failed, 0),
      success_rate => v_queue.succeeded::double precision / nullif(v_queue.succeeded + v_queue.failed, 0),
      value => coalesce(extract(epoch from v_age), 0)::double precision);
  end loop;
  if not v_any then
    return next bridge.condition('workers', 'inactive', 'no worker reports, and no job waits', remedy => 'celery -A <app> worker', value => 0);
  end if;
end
$$;

create or replace function bridge.health_of_jobs(p_now timestamptz) returns setof bridge.component language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Jobs that do not move, dead letters, messages that nobody took, and partitions of the coming days.
declare
  v_stuck record;
  v_dead record;
  v_new bigint;
  v_lost record;
  v_days record;
begin
  select coalesce(sum(s.jobs), 0)::bigint as jobs, string_agg(format('%s %s, the oldest (%s) for %s', s.jobs, s.state, s.example, bridge.words(p_now - s.since)), '; ') as words
  into v_stuck from bridge.stuck_in_flight(p_now - bridge.seconds('stuck_after')) s;
  return next bridge.condition('stuck_jobs', case when v_stuck.jobs = 0 then 'healthy' else 'degraded' end,
    coalesce(v_stuck.words, 'no job is published or running for longer than the setting stuck_after'),
    remedy => case when v_stuck.jobs > 0 then 'does a worker consume the queue, is it busy; if not: bridge jobs cancel <id>' end, value => v_stuck.jobs);
  select d.* into v_dead from bridge.dead_since('-infinity') d;
  v_new := (select d.jobs from bridge.dead_since(p_now - interval '1 hour') d);
  return next bridge.condition('dead_letters', case when v_new = 0 then 'healthy' else 'degraded' end,
    format('%s%s are kept, %s of the last hour', case when v_dead.jobs = 10000 then 'at least ' else '' end, v_dead.jobs, v_new)
      || coalesce(format('; the last is %s', v_dead.example), ''),
    remedy => case when v_new > 0 then 'see why: bridge dead list; then bridge dead redrive or discard' end,
    last_run => v_dead.last_at, error_count => v_dead.jobs, value => v_new);
  select u.* into v_lost from bridge.undelivered(p_now) u;
  return next bridge.condition('callbacks', case when v_lost.failed > 0 then 'degraded' when v_lost.rules = 0 then 'inactive' else 'healthy' end,
    case when v_lost.failed > 0 then format('%s messages have failed within a day, the last of %s: %s', v_lost.failed, v_lost.target, left(v_lost.error, 300))
      else format('%s callbacks; no message has failed within a day', v_lost.rules) end,
    remedy => case when v_lost.failed > 0 then 'set right what it says, then: bridge jobs retry --failed --task bridge.deliver_webhook' end,
    error_count => v_lost.failed, value => v_lost.failed);
  select count(*) as missing, string_agg(format('%s on %s', m.name, m.day), ', ' order by m.day) as words,
    coalesce(min(m.day) = (p_now at time zone 'utc')::date, false) as today into v_days from bridge.missing_days(2, p_now) m;
  return next bridge.condition('days', case when v_days.missing = 0 then 'healthy' when v_days.today then 'failing' else 'degraded' end,
    coalesce('no partition for ' || v_days.words, 'today and the next 2 days have their partitions'),
    remedy => case when v_days.missing > 0 then 'select bridge.make_days(); the tick does that every hour' end, value => v_days.missing);
end
$$;

create or replace function bridge.health_of_schedules(p_now timestamptz) returns bridge.component language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Whether due schedules run, and how their last 1000 runs of a day ended.
declare
  v_state record;
  v_runs record;
begin
  select t.* into v_state from bridge.schedule_troubles(p_now) t;
  if v_state.total = 0 then
    return bridge.condition('schedules', 'inactive', 'there are none');
  end if;
  select count(*) filter (where r.status = 'succeeded') as succeeded, count(*) filter (where r.status in ('failed', 'expired')) as failed,
    max(r.created_at) as last_at into v_runs
  from (select o.status, o.created_at from bridge.schedule_run o order by o.id desc limit 1000) r where r.created_at > p_now - interval '1 day';
  return bridge.condition('schedules', case when cardinality(v_state.late) > 0 then 'failing'
      when cardinality(v_state.failed) + cardinality(v_state.slow) + cardinality(v_state.often) > 0 then 'degraded' else 'healthy' end,
    concat_ws('; ', format('%s schedules, %s of them paused', v_state.total, v_state.paused), 'due and not run: ' || nullif(array_to_string(v_state.late[1:3], ', '), ''),
      'the last run failed of ' || nullif(array_to_string(v_state.failed[1:3], ', '), ''),
      'slow: ' || nullif(array_to_string(v_state.slow[1:3], ', '), ''), 'run too often: ' || nullif(array_to_string(v_state.often[1:3], ', '), '')),
    remedy => case when cardinality(v_state.late) > 0 then 'see tick: nobody ticks' when cardinality(v_state.failed) > 0 then 'bridge schedules show <name>'
      when cardinality(v_state.slow) > 0 then 'bridge schedules slow' when cardinality(v_state.often) > 0 then 'bridge schedules too-often' end,
    last_run => v_runs.last_at, next_run => (select min(s.next_at) from bridge.schedule s), error_count => v_runs.failed,
    success_rate => v_runs.succeeded::double precision / nullif(v_runs.succeeded + v_runs.failed, 0),
    value => cardinality(v_state.late) + cardinality(v_state.failed) + cardinality(v_state.slow) + cardinality(v_state.often));
end
$$;

create or replace function bridge.health_of_breakers() returns bridge.component language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Circuit breakers that hold something back.
declare
  v_row record;
begin
  select count(*) as known, count(*) filter (where b.state <> 'closed') as tripped, max(b.changed_at) as changed_at,
    string_agg(format('%s %s is %s: %s', b.kind, b.name, replace(b.state, '_', ' '), b.reason), '; ' order by b.changed_at) filter (where b.state <> 'closed') as words,
    min(b.changed_at + b.cooldown) filter (where b.state = 'open') as probe_at into v_row from bridge.breaker b;
  return bridge.condition('breakers', case when v_row.known = 0 then 'inactive' when v_row.tripped > 0 then 'degraded' else 'healthy' end,
    coalesce(left(v_row.words, 1000), case when v_row.known = 0 then 'there are none' else v_row.known || ' closed' end),
    remedy => case when v_row.tripped > 0 then 'see why: bridge jobs list --status failed; it closes by itself when its probes succeed, or by bridge breakers reset' end,
    last_run => v_row.changed_at, next_run => v_row.probe_at, error_count => v_row.tripped, value => v_row.tripped);
end
$$;

create or replace function bridge.next_cron_run(p_schedule text, p_last timestamptz, p_now timestamptz) returns timestamptz language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- When pg_cron will start an entry next; null where only pg_cron knows.
begin
  if p_schedule ~ '^\d+ seconds?$' then
    return coalesce(p_last, p_now) + p_schedule::interval;
  end if;
  return (select n from bridge.next_runs(p_schedule, coalesce(current_setting('cron.timezone', true), 'GMT'), 1, p_now) n);
exception when others then
  return null;
end
$$;

create or replace function bridge.health_of_cron(p_now timestamptz) returns setof bridge.component language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- One row an entry of ours in pg_cron, with its ended runs among the last 500 of all entries; one row where there is no pg_cron.
declare
  v_there constant boolean := exists (select from pg_catalog.pg_extension e where e.extname = 'pg_cron');  -- a schema cron may be anybody's
  v_row record;
  v_status text;
begin
  if not v_there or not has_schema_privilege('cron', 'usage') or not has_table_privilege('cron.job_run_details', 'select') then
    return next bridge.condition('pg_cron', 'inactive', case when not v_there then 'not created in this database: a drainer ticks'
      else format('created, and closed to the role %s: a drainer ticks', current_user) end, remedy => 'see bridge doctor --check pg_cron');
    return;
  end if;
  for v_row in execute $cron$
    select j.jobid, j.jobname, j.schedule, j.active, r.failures, r.successes, r.status, r.message, r.started_at
    from cron.job j left join (
      select d.jobid, count(*) filter (where d.status = 'failed') as failures, count(*) filter (where d.status = 'succeeded') as successes,
        (array_agg(d.status order by d.runid desc))[1] as status, (array_agg(d.return_message order by d.runid desc))[1] as message,
        max(d.start_time) as started_at
      from (select * from cron.job_run_details order by runid desc limit 500) d where d.status in ('failed', 'succeeded') group by d.jobid
    ) r on r.jobid = j.jobid
    where j.jobname = any (bridge.cron_names()) order by j.jobname$cron$
  loop
    v_status := case when not v_row.active then 'inactive' when v_row.status <> 'failed' or v_row.status is null then 'healthy'
      when v_row.jobname = bridge.cron_name('tick') then 'failing' else 'degraded' end;
    return next bridge.condition('pg_cron', v_status, case v_status when 'inactive' then format('%s, switched off', v_row.schedule)
        when 'healthy' then v_row.schedule else format('%s; its last run failed: %s', v_row.schedule, left(v_row.message, 300)) end,
      v_row.jobname, case v_status when 'inactive' then format('select cron.alter_job(%s, active => true)', v_row.jobid)
        when 'healthy' then null else 'see cron.job_run_details, order by runid desc; repeat its command by hand as its user' end,
      last_run => v_row.started_at, next_run => case when v_row.active then bridge.next_cron_run(v_row.schedule, v_row.started_at, p_now) end,
      error_count => coalesce(v_row.failures, 0),
      success_rate => v_row.successes::double precision / nullif(v_row.successes + v_row.failures, 0), value => coalesce(v_row.failures, 0));
  end loop;
  if not found then
    return next bridge.condition('pg_cron', 'inactive', 'has no entry of ours: a drainer ticks', remedy => 'bridge install');
  end if;
end
$$;

create or replace function bridge.health_of_upkeep(p_now timestamptz, p_snapshot interval) returns setof bridge.component language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- Whether cleanups come and go well, who keeps dead rows from being vacuumed, and what else the database needs.
declare
  v_row record;
begin
  select c.at, c.ended_at, c.by as who, count(l.id) filter (where l.status = 'failed') as failures, sum(l.deleted) as deleted,
    string_agg(l.table_name || ': ' || l.detail, '; ') filter (where l.status = 'failed') as words into v_row
  from (select o.id, o.at, o.ended_at, o.by from bridge.cleanups o where o.operation = 'cleanup' order by o.id desc limit 1) c
  left join bridge.cleanups l on l.cleanup = c.id group by 1, 2, 3;
  return next bridge.condition('cleanup', case when v_row.at is null then 'inactive' when v_row.failures > 0 or v_row.at < p_now - interval '3 days' then 'degraded'
      else 'healthy' end,
    case when v_row.at is null then 'none has come yet' when v_row.failures > 0 then left(v_row.words, 500)
      else format('%s took %s rows away, %s ago', v_row.who, coalesce(v_row.deleted, 0), bridge.words(p_now - v_row.at)) end,
    remedy => case when v_row.failures > 0 then 'mend it, then: call bridge.cleanup_loop()'
      when v_row.at < p_now - interval '3 days' then 'call bridge.cleanup_loop(); see why neither pg_cron nor a tick does it: bridge doctor' end,
    last_run => coalesce(v_row.ended_at, v_row.at), next_run => v_row.at + bridge.seconds('cleanup_every'), error_count => v_row.failures, value => v_row.failures);
  select s.* into v_row from bridge.oldest_snapshot(p_now) s;
  return next bridge.condition('snapshots', case when v_row.age > p_snapshot then 'degraded' else 'healthy' end,
    coalesce(v_row.what || ' for ' || bridge.words(v_row.age), 'no transaction keeps dead rows from being vacuumed'),
    remedy => case when v_row.age > p_snapshot then format('select pg_terminate_backend(%s); see also bridge doctor --check snapshots', v_row.pid) end,
    value => greatest(coalesce(extract(epoch from v_row.age), 0), 0)::double precision);
  select count(*) filter (where u.severity = 'error') as errors, count(*) filter (where u.severity = 'warning') as warnings, count(*) as pieces,
    (array_agg(u.found))[1:3] as words, (array_agg(u.remedy))[1] as remedy into v_row from bridge.upkeep(p_snapshot) u where u.kind <> 'snapshot';
  return next bridge.condition('upkeep', case when v_row.errors > 0 then 'failing' when v_row.warnings > 0 then 'degraded' else 'healthy' end,
    case when v_row.pieces = 0 then 'the database needs nothing' else left(array_to_string(v_row.words, '; '), 1000) || case when v_row.pieces > 3
      then format('; and %s more, see bridge.upkeep()', v_row.pieces - 3) else '' end end,
    remedy => case when v_row.errors + v_row.warnings > 0 then v_row.remedy end, error_count => v_row.errors + v_row.warnings, value => v_row.pieces);
end
$$;

create or replace function bridge.health(tick_late interval default '15 seconds', queued_late interval default '1 minute',
    snapshot_age interval default '5 minutes', p_now timestamptz default clock_timestamp())
  returns setof bridge.component language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- The state of everything that jobs need, one row a component. Changes nothing, and costs the same however long history is.
  --
  --   tick_late     from where on the last tick counts as late
  --   queued_late   how long a due job may wait for a drainer
  --   snapshot_age  how long a transaction may keep dead rows from being vacuumed
  --
  -- Returns  component, subject, status (healthy, degraded, failing, inactive), found, remedy, last_run, next_run, error_count, success_rate, value
begin
  return next bridge.health_of_tick(p_now, health.tick_late);
  return query select * from bridge.health_of_drainers(p_now);
  return next bridge.health_of_broker(p_now);
  return query select * from bridge.health_of_queues(p_now, health.queued_late);
  return query select * from bridge.health_of_jobs(p_now);
  return next bridge.health_of_schedules(p_now);
  return next bridge.health_of_breakers();
  return next bridge.health_of_alerts(p_now);
  return next bridge.health_of_metrics(p_now);
  return query select * from bridge.health_of_cron(p_now);
  return query select * from bridge.health_of_upkeep(p_now, health.snapshot_age);
end
$$;
