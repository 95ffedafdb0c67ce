-- What an operator may change while everything runs: one row a setting, read where it is used, no restart.

do $$
begin
  if to_regclass('bridge.setting') is null then
    create table bridge.setting (
      name text primary key,
      value jsonb not null,
      about text not null,
      changed_at timestamptz not null default now()
    );
  end if;
end
$$;

-- Durations are seconds, sizes bytes. A value that an operator has changed is kept.
insert into bridge.setting (name, value, about) values
  ('publish_lease',  '30',      'seconds a claimed job may wait to be marked published; above the broker''s worst publish time'),
  ('heartbeat',      '5',       'seconds between two reports of a worker'),
  ('worker_lost',    '20',      'seconds without a report after which a worker counts as dead; several heartbeats'),
  ('max_losses',     '5',       'times a job may lose its worker before it fails'),
  ('max_payload',    '1048576', 'bytes of args and kwargs together; larger jobs are refused'),
  ('window',         '500',     'published but not started jobs a queue; smaller = priority, pause and cancel act sooner; 0 = no bound'),
  ('retention',      '2592000', 'seconds that finished jobs are kept; whole days are dropped'),
  ('dead_retention', '7776000', 'seconds that dead letters are kept, with their attempts and notes; no less than retention'),
  ('republish_grace','10',      'seconds before a published job whose message is nowhere is published again; two heartbeats or more'),
  ('revoke_memory',  '86400',   'seconds that a revoke of an id or a stamp is remembered for jobs that are not there yet'),
  ('tick_interval',  '1',       'seconds between two ticks; delayed jobs start this late at most'),
  ('slot_grace',     '60',      'seconds after which a slot of a schedule that has not run counts as missed'),
  ('slow_factor',    '3',       'a run of a schedule is slow that takes so many times as long as is usual, and 10 seconds more'),
  ('stuck_after',    '3600',    'seconds after which a queued, published or running job shows in stuck_jobs')
on conflict (name) do update set about = excluded.about where bridge.setting.about <> excluded.about;

create or replace function bridge.setting(p_name text) returns numeric language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The value of a numeric setting.
  --
  --   p_name  one of the names in table bridge.setting
  --
  -- Errors  JB002 when there is no such setting
declare
  v_value numeric;
begin
  select s.value::numeric into v_value from bridge.setting s where s.name = p_name;
  if v_value is null then
    raise exception using errcode = 'JB002', message = format('unknown setting %L', regexp_replace(left(p_name, 80), '[[:cntrl:]]', '?', 'g')),
      hint = 'see: select name, value, about from bridge.setting';
  end if;
  return v_value;
end
$$;

create or replace function bridge.seconds(p_name text) returns interval language sql stable set search_path = pg_catalog, pg_temp
  -- A setting that is a duration, as an interval.
  return make_interval(secs => bridge.setting(p_name)::double precision);
