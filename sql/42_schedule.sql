-- Schedules: what is to run, and when. The tick makes a job of every slot that is due (sql/43_slot.sql).

do $$
begin
  if to_regclass('bridge.schedule') is null then
    create table bridge.schedule (
      name          text primary key,
      cron          text not null,
      timezone      text not null default 'UTC',
      task          text not null,
      args          jsonb not null default '[]',
      kwargs        jsonb not null default '{}',
      queue         text not null default 'celery',
      priority      integer not null default 0,
      max_attempts  integer,                 -- null: as in bridge.enqueue
      backoff       jsonb,
      timeout       interval,                -- hard limit of one attempt
      expires       interval,                -- a job not started so long after it was due ends as expired
      headers       jsonb,
      jitter        interval not null default '0',
      starts_at     timestamptz,             -- no slot before; intervals are counted from it
      ends_at       timestamptz,             -- no slot after
      overlap       text not null default 'allow',
      missed        text not null default 'once',
      missed_within interval not null default '7 days',
      enabled       boolean not null default true,
      next_at       timestamptz,             -- the slot that comes next; null when paused or when there is none
      created_at    timestamptz not null default clock_timestamp(),
      updated_at    timestamptz not null default clock_timestamp(),
      constraint schedule_overlap_is_known check (overlap in ('allow', 'skip', 'queue_one', 'cancel_old')),
      constraint schedule_missed_is_known check (missed in ('skip', 'once', 'all'))
    ) with (fillfactor = 70);
    -- two names that differ in case alone are one name to people
    create unique index schedule_name on bridge.schedule (lower(name));
    -- tick: what is due
    create index schedule_next on bridge.schedule (next_at) where next_at is not null;

    create table bridge.schedule_run (
      id           bigint generated always as identity primary key,
      schedule     text not null,            -- its name: a run outlives its schedule
      slot         timestamptz not null,     -- the moment it is for; of a manual run the moment it was asked for
      trigger_type text not null,
      status       text not null,            -- open: the job tells
      job          uuid,
      reason       text,                     -- why it was skipped, or waits
      error        text,
      created_at   timestamptz not null,
      started_at   timestamptz,
      finished_at  timestamptz,
      constraint schedule_run_trigger_is_known check (trigger_type in ('scheduled', 'manual', 'catch_up')),
      constraint schedule_run_status_is_known check (status in ('open', 'waiting', 'skipped', 'succeeded', 'failed', 'cancelled', 'expired', 'unknown'))
    );
    -- a slot runs once, whoever races
    create unique index schedule_run_slot on bridge.schedule_run (schedule, slot) where trigger_type <> 'manual';
    -- the last runs of a schedule
    create index schedule_run_latest on bridge.schedule_run (schedule, id);
    -- overlap policies
    create index schedule_run_unsettled on bridge.schedule_run (schedule, status) where status in ('open', 'waiting');
    -- retry of a job that a schedule made
    create index schedule_run_job on bridge.schedule_run (job) where job is not null;
    -- cleanup
    create index schedule_run_created on bridge.schedule_run using brin (created_at);
  end if;
end
$$;

-- What came later, each at the end of its table.
do $$
begin
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.schedule'::regclass and a.attname = 'expected_duration') then
    alter table bridge.schedule add column expected_duration interval;  -- a run that takes longer is slow; null: its own runs tell
    alter table bridge.schedule_run
      add column due_at           timestamptz,  -- later than the slot by its jitter; null: the slot
      add column first_started_at timestamptz,  -- the first attempt's; started_at is the last one's
      add column attempts         integer,
      add column rows             bigint,       -- that a function gave
      add column result           text;         -- its first 500 characters
    -- the last runs of one status, however many others there are
    create index schedule_run_status on bridge.schedule_run (schedule, status, id);
    -- the last runs that were asked for by hand or made up for
    create index schedule_run_aside on bridge.schedule_run (schedule, trigger_type, id) where trigger_type <> 'scheduled';
    -- What cleanup has forgotten of a schedule's runs, added up for its statistics.
    create table bridge.schedule_past (
      schedule  text primary key,
      runs      bigint not null,
      succeeded bigint not null,
      failed    bigint not null,
      skipped   bigint not null,
      timed     bigint not null,             -- runs that have a duration
      duration  interval not null,           -- of these together
      longest   interval,
      since     timestamptz not null         -- when the first of them was made
    );
  end if;
end
$$;

do $$
begin
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.schedule'::regclass and a.attname = 'function') then
    alter table bridge.schedule
      add column function text,              -- called instead of a task: its name with its schema, or its signature
      add column webhook  jsonb,             -- posted to instead of a task: {"url", "secret"}
      add column role     text;              -- with whose rights the function is called: the role that said so
  end if;
end
$$;

do $$
begin
  if to_regclass('bridge.schedule_run_open') is null then
    -- tick: a page of the runs whose jobs may have ended
    create index schedule_run_open on bridge.schedule_run (id) where status = 'open';
    -- tick: who waits for a run to end
    create index schedule_run_waiting on bridge.schedule_run (id) where status = 'waiting';
  end if;
end
$$;

create or replace function bridge.schedule_clock() returns timestamptz language sql volatile set search_path = pg_catalog, pg_temp
  -- The moment at which a schedule is changed, or run by hand: the one clock of schedules that no caller passes in. Who rehearses weeks in
  -- a database of his own replaces it there.
  return clock_timestamp();

create or replace function bridge.check_schedule(p_schedule bridge.schedule) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a schedule whose job could never be made, before it is written.
begin
  if p_schedule.name is null or p_schedule.name !~ '^[^\s[:cntrl:]]([^[:cntrl:]]{0,198}[^\s[:cntrl:]])?$' then
    perform bridge.refuse(format('schedule name is %L', left(p_schedule.name, 80)), 'give 1 to 200 characters, no space at either end');
  end if;
  perform bridge.check_job(p_schedule.task, case when p_schedule.function is null then p_schedule.queue else 'none' end, p_schedule.args::json, p_schedule.kwargs::json,
    octet_length(p_schedule.args::text) + octet_length(p_schedule.kwargs::text));
  perform bridge.check_options(jsonb_populate_record(bridge.defaults(),
    to_jsonb(p_schedule) - array['task', 'args', 'kwargs', 'queue', 'headers', 'expires', 'webhook']), clock_timestamp());
  perform bridge.check_headers(coalesce(p_schedule.headers, '{}'));
  perform bridge.check_moment('starts_at', p_schedule.starts_at, now()), bridge.check_moment('ends_at', p_schedule.ends_at, now());
  perform bridge.refuse_clear_secrets('headers', p_schedule.headers), bridge.refuse_clear_secrets('args', p_schedule.args),
    bridge.refuse_clear_secrets('kwargs', p_schedule.kwargs);
  -- Whether a function may be called is said by who may execute it.
  if num_nonnulls(p_schedule.function, p_schedule.webhook) = 0 and (bridge.tasks_are_ruled() or p_schedule.task like 'bridge.%') then
    perform bridge.check_task(p_schedule.task);
  end if;
  if coalesce(p_schedule.overlap, 'null') not in ('allow', 'skip', 'queue_one', 'cancel_old') then
    perform bridge.refuse(format('overlap is %L', p_schedule.overlap), 'give allow, skip, queue_one or cancel_old');
  elsif coalesce(p_schedule.missed, 'null') not in ('skip', 'once', 'all') then
    perform bridge.refuse(format('missed is %L', p_schedule.missed), 'give skip, once or all');
  elsif p_schedule.jitter is null or p_schedule.jitter not between interval '0' and interval '1 day' then
    perform bridge.refuse(format('jitter is %s', coalesce(p_schedule.jitter::text, 'null')), 'give an interval of at most 1 day');
  elsif p_schedule.expires <= interval '0' or p_schedule.expires > interval '100 years' then
    perform bridge.refuse(format('expires is %s', p_schedule.expires), 'give a positive interval of 100 years at most, or null for never');
  elsif p_schedule.expected_duration <= interval '0' then
    perform bridge.refuse(format('expected_duration is %s', p_schedule.expected_duration), 'give a positive interval, or null to learn it from its runs');
  elsif p_schedule.missed_within <= interval '0' is not false then
    perform bridge.refuse(format('missed_within is %s', coalesce(p_schedule.missed_within::text, 'null')), 'give a positive interval');
  elsif p_schedule.ends_at <= p_schedule.starts_at then
    perform bridge.refuse(format('ends_at is %s, not after starts_at %s', p_schedule.ends_at, p_schedule.starts_at), 'give a later moment');
  end if;
end
$$;

create or replace function bridge.first_slot(p_schedule bridge.schedule, p_after timestamptz) returns timestamptz language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- The first slot of a schedule after a moment, within its start and end; null when it is paused or has none.
declare
  v_slot timestamptz;
begin
  if not p_schedule.enabled then
    return null;
  end if;
  v_slot := bridge.next_slot(bridge.parse_cron(p_schedule.cron), p_schedule.timezone,
    greatest(p_after, p_schedule.starts_at - interval '1 microsecond'), coalesce(p_schedule.starts_at, 'epoch'));
  return case when v_slot <= p_schedule.ends_at is not false then v_slot end;
end
$$;

create or replace function bridge.plan_schedule() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Before a schedule is written, by whatever statement: refuse what cannot work, and find the next slot where the timing changed. A slot
  -- that is due already stays due, within start and end: it belongs to the time before the change. What fell into a pause is gone.
declare
  v_now constant timestamptz := bridge.schedule_clock();
begin
  new.timezone := case when tg_op = 'UPDATE' and new.timezone = old.timezone then old.timezone else bridge.check_zone(new.timezone) end;
  if new.function is not null and new.webhook is not null then
    perform bridge.refuse(format('schedule %L has a function and a webhook', new.name), 'set one of them to null');
  elsif new.function is not null then
    new := bridge.plan_call(new, old);
  elsif new.webhook is not null then
    new.webhook := bridge.check_posted(new.webhook);
    new.task := 'bridge.deliver_webhook';
  end if;
  perform bridge.check_schedule(new);
  new.updated_at := v_now;
  if tg_op = 'UPDATE' and (new.cron, new.timezone, new.starts_at, new.ends_at, new.enabled)
      is not distinct from (old.cron, old.timezone, old.starts_at, old.ends_at, old.enabled) then
    return new;
  elsif bridge.next_slot(bridge.parse_cron(new.cron), new.timezone, v_now, coalesce(new.starts_at, 'epoch')) is null then
    perform bridge.refuse(format('cron %L never comes', new.cron), 'give days that the months have');
  end if;
  if tg_op = 'INSERT' or (old.enabled and new.enabled
      and old.next_at between coalesce(new.starts_at, '-infinity') and least(v_now, new.ends_at)) is not true then
    new.next_at := bridge.first_slot(new, v_now);
  end if;
  return new;
end
$$;

do $$
begin
  if not exists (select from pg_catalog.pg_trigger t where t.tgrelid = 'bridge.schedule'::regclass and t.tgname = 'plan_schedule'
      and pg_get_triggerdef(t.oid) ~ '\mwebhook\M') then
    -- Not when the tick moves next_at on.
    create or replace trigger plan_schedule before insert or update of name, cron, timezone, task, args, kwargs, queue, priority, max_attempts,
      backoff, timeout, expires, headers, jitter, starts_at, ends_at, overlap, missed, missed_within, enabled, expected_duration,
      function, webhook
      on bridge.schedule for each row execute function bridge.plan_schedule();
  end if;
end
$$;

create or replace function bridge.refuse_like_name(p_name text) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a name that people would take for that of another schedule. Errors  JB003
declare
  v_plain constant text := regexp_replace(lower(p_name), '\s', '', 'g');
  v_other text;
begin
  select s.name into v_other from bridge.schedule s where regexp_replace(lower(s.name), '\s', '', 'g') = v_plain and s.name <> p_name limit 1;
  if found then
    perform bridge.refuse(format('schedule %L exists, and %L differs from it in case or blanks alone', v_other, p_name), 'choose another name', 'JB003');
  end if;
end
$$;

create or replace function bridge.schedule(
    name text, cron text, task text default null, args jsonb default '[]', kwargs jsonb default '{}', timezone text default 'UTC', queue text default 'celery',
    priority integer default 0, max_attempts integer default null, backoff jsonb default null, timeout interval default null,
    expires interval default null, headers jsonb default null, jitter interval default '0', starts_at timestamptz default null,
    ends_at timestamptz default null, overlap text default 'allow', missed text default 'once', missed_within interval default '7 days',
    enabled boolean default null, expected_duration interval default null,
    function text default null, webhook jsonb default null)
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Make a schedule, or give the one of this name these values; saying the same again changes nothing.
  --
  --   name           its name; one that differs from another in case or blanks alone is refused
  --   cron           five fields (0 6 * * mon-fri; lists, ranges, steps, names, L for the last day of the month), @hourly, @daily, @weekly,
  --                  @monthly, @yearly, or an interval: "30 seconds", "every 15 minutes"
  --   task … headers what each job is, as in bridge.enqueue
  --   timezone       whose clock cron is read by
  --   expires        a job not started so long after it was due ends as expired
  --   jitter         each job is due up to so much later than its slot, by chance
  --   starts_at, ends_at  no slot before, none after; intervals are counted from starts_at, else from the epoch
  --   overlap        while a run before has not ended: allow, skip this one, queue_one (it waits, one at most), or cancel_old (and wait for
  --                  its end)
  --   missed         slots that passed while nothing ticked: skip, once (the last of them), or all
  --   missed_within  how long ago a missed slot may be to be made up for
  --   enabled        null leaves a pause as it is
  --   expected_duration  a run that takes longer is slow (bridge.slow_schedules); null: its own runs tell what is usual
  --   function       instead of a task: a function of this database with its schema, public.reset, or its signature; it is called with
  --                  args and kwargs and the rights of whoever says so. No worker is needed, and no queue is given
  --   webhook        instead of a task: an address that schedule and slot are posted to, or {"url", "secret"}, as in bridge.set_webhook
  --
  -- Returns  created, changed or unchanged
  -- Errors   JB001 an argument (of cron with the character), JB003 a name like it exists
declare
  v_made boolean;
begin
  perform bridge.refuse_like_name(schedule.name);
  if num_nonnulls(schedule.task, schedule.function, schedule.webhook) <> 1 then
    perform bridge.refuse(format('schedule %L has %s of task, function and webhook', schedule.name,
      case when num_nonnulls(schedule.task, schedule.function, schedule.webhook) = 0 then 'none' else 'more than one' end), 'give one of them');
  elsif schedule.function is not null and schedule.queue is distinct from 'celery' then
    perform bridge.refuse(format('queue is %L, and a call of a function goes through none', schedule.queue), 'leave it out');
  end if;
  insert into bridge.schedule as s (name, cron, timezone, task, args, kwargs, queue, priority, max_attempts, backoff, timeout, expires, headers, jitter,
    starts_at, ends_at, overlap, missed, missed_within, enabled, expected_duration, function, webhook)
  values (schedule.name, schedule.cron, schedule.timezone, coalesce(schedule.task, 'none'), schedule.args, schedule.kwargs, schedule.queue, schedule.priority,
    schedule.max_attempts, schedule.backoff, schedule.timeout, schedule.expires, schedule.headers, schedule.jitter, schedule.starts_at,
    schedule.ends_at, schedule.overlap, schedule.missed, schedule.missed_within, coalesce(schedule.enabled, true), schedule.expected_duration,
    schedule.function, schedule.webhook)
  on conflict on constraint schedule_pkey do update set cron = excluded.cron, timezone = excluded.timezone, task = excluded.task, args = excluded.args,
    kwargs = excluded.kwargs, queue = excluded.queue, priority = excluded.priority, max_attempts = excluded.max_attempts, backoff = excluded.backoff,
    timeout = excluded.timeout, expires = excluded.expires, headers = excluded.headers, jitter = excluded.jitter, starts_at = excluded.starts_at,
    ends_at = excluded.ends_at, overlap = excluded.overlap, missed = excluded.missed, missed_within = excluded.missed_within,
    enabled = coalesce(schedule.enabled, s.enabled), expected_duration = excluded.expected_duration, function = excluded.function, webhook = excluded.webhook,
    role = excluded.role
  where (s.cron, s.timezone, s.task, s.args, s.kwargs, s.queue, s.priority, s.max_attempts, s.backoff, s.timeout, s.expires, s.headers, s.jitter, s.starts_at,
      s.ends_at, s.overlap, s.missed, s.missed_within, s.enabled, s.expected_duration, s.function, s.webhook, s.role)
    is distinct from (excluded.cron, excluded.timezone, excluded.task, excluded.args, excluded.kwargs, excluded.queue, excluded.priority,
      excluded.max_attempts, excluded.backoff, excluded.timeout, excluded.expires, excluded.headers, excluded.jitter, excluded.starts_at, excluded.ends_at,
      excluded.overlap, excluded.missed, excluded.missed_within, coalesce(schedule.enabled, s.enabled), excluded.expected_duration,
      excluded.function, excluded.webhook, excluded.role)
  returning s.xmax = 0 into v_made;
  return case when v_made then 'created' when v_made is null then 'unchanged' else 'changed' end;
end
$$;

create or replace function bridge.schedule_named(p_name text) returns bridge.schedule language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A schedule by its name, locked against the tick. JB002 when there is none.
declare
  v_schedule bridge.schedule;
  v_near text;
begin
  select s.* into v_schedule from bridge.schedule s where s.name = p_name for update;
  if not found then
    v_near := bridge.nearest(p_name, array(select s.name from bridge.schedule s), 3, p_quoted => true);
    perform bridge.refuse(format('schedule %L does not exist', coalesce(p_name, 'null')),
      coalesce('did you mean ' || v_near || '?', 'see: select name from bridge.schedules'), 'JB002');
  end if;
  return v_schedule;
end
$$;

create or replace function bridge.unschedule(name text) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Remove a schedule. Jobs that it made go on, a run that waits does not come; the log of its runs stays.
  --
  -- Returns  false when there was none of this name
begin
  delete from bridge.schedule s where s.name = unschedule.name;
  if not found then
    return false;
  end if;
  update bridge.schedule_run r set status = 'skipped', reason = 'the schedule was removed', finished_at = clock_timestamp()
  where r.schedule = unschedule.name and r.status = 'waiting';
  perform bridge.drop_callers();
  return true;
end
$$;

create or replace function bridge.pause_schedule(name text) returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Let a schedule make no jobs until it is resumed. What it has made goes on.
  --
  -- Errors  JB002 when there is no such schedule
declare
  v_schedule constant bridge.schedule := bridge.schedule_named(pause_schedule.name);
begin
  update bridge.schedule s set enabled = false where s.name = v_schedule.name and s.enabled;
end
$$;

create or replace function bridge.resume_schedule(name text) returns timestamptz language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- End a pause. Slots that fell into it do not run.
  --
  -- Returns  the next slot; null when it has none
  -- Errors   JB002 when there is no such schedule
declare
  v_schedule constant bridge.schedule := bridge.schedule_named(resume_schedule.name);
begin
  update bridge.schedule s set enabled = true where s.name = v_schedule.name and not s.enabled;
  return (select s.next_at from bridge.schedule s where s.name = v_schedule.name);
end
$$;

create or replace function bridge.run_schedule(name text) returns uuid language plpgsql security definer set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Run a schedule now, whatever its time, also while it is paused. Its slots stay as they are.
  --
  -- Returns  the job's id
  -- Errors   JB002 when there is no such schedule, JB006 when a run of it has not ended and its overlap is not allow, JB008 the caller may not
  --          enqueue its task
declare
  v_schedule constant bridge.schedule := bridge.schedule_named(run_schedule.name);
  v_now constant timestamptz := bridge.schedule_clock();
  v_open uuid;
begin
  if bridge.tasks_are_ruled() and num_nonnulls(v_schedule.function, v_schedule.webhook) = 0 then
    perform bridge.check_task(v_schedule.task);
  end if;
  if v_schedule.overlap <> 'allow' then
    v_open := bridge.open_run(v_schedule.name);
    if v_open is not null then
      perform bridge.refuse(format('schedule %L runs already: job %s has not ended', v_schedule.name, v_open), 'wait for it or cancel it, then run again', 'JB006');
    end if;
  end if;
  return bridge.start_run(v_schedule, bridge.add_run(v_schedule.name, v_now, 'manual', v_now), v_now);
end
$$;

create or replace function bridge.next_runs_of(name text, n integer default 5) returns setof timestamptz language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp as $$
  -- Preview: the next slots of a schedule, its start and end observed; of a paused one those that it would have.
  --
  -- Errors  JB002 when there is no such schedule, JB001 n out of bounds
declare
  v_schedule bridge.schedule;
  v_slot timestamptz := now();
begin
  select s.* into v_schedule from bridge.schedule s where s.name = next_runs_of.name;
  if not found then
    perform bridge.refuse(format('schedule %L does not exist', coalesce(name, 'null')), 'see: select name from bridge.schedules', 'JB002');
  elsif n is null or n not between 1 and 1000 then
    perform bridge.refuse(format('n is %s', coalesce(n::text, 'null')), 'give 1 to 1000');
  end if;
  v_schedule.enabled := true;
  for i in 1..n loop
    v_slot := bridge.first_slot(v_schedule, v_slot);
    exit when v_slot is null;
    return next v_slot;
  end loop;
end
$$;
