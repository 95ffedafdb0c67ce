-- What an operator tunes while everything runs: select media.set('iterations', '10').

do $$
begin
  if to_regclass('media.settings') is null then
    create table media.settings (
      name text primary key,
      value text not null,
      about text not null,
      changed_at timestamptz not null default now()
    );
  end if;
end
$$;

-- A value that an operator has changed is kept. A setting with a job type behind it (iterations.thumbnail) gives that type a pace of its own.
insert into media.settings (name, value, about) values
  ('iterations',    '5',           'jobs started within one tick; 0 = no bound; 10 or 20 to go faster'),
  ('delay',         '1000',        'milliseconds between two jobs; 500 or 200 to go faster, 0 = none'),
  ('schedule',      '* * * * *',   'the tick: * * * * *, */n * * * *, m * * * *, or "n seconds"; iterations count against it'),
  ('queue',         'celery',      'Celery queue of the jobs; "media" separates them, so that a pause holds nothing else'),
  ('max_attempts',  '3',           'how often a job may fail for a passing reason; a bad file fails at once'),
  ('environment',   '',            'suffix of the cron entries, as staging or production; empty = none'),
  ('alert_above',   '100',         'jobs queued for longer than alert_after that raise the alert'),
  ('alert_after',   '3600',        'seconds that a job may be queued before it counts for the alert'),
  ('alert_url',     '',            'webhook that the alert is posted to; empty = the alert is only returned'),
  ('secret_env',    'CRON_SECRET', 'environment variable of the workers with the webhook''s bearer token; the secret itself is never stored')
on conflict (name) do update set about = excluded.about where media.settings.about <> excluded.about;

create or replace function media.get(p_name text, p_job_type text default null) returns text language sql stable set search_path = pg_catalog, pg_temp
  -- The value of a setting; that of one job type where it has its own. Null when there is no such setting.
  return coalesce((select s.value from media.settings s where s.name = p_name || '.' || p_job_type),
    (select s.value from media.settings s where s.name = p_name));

create or replace function media.schedule_seconds(p_schedule text) returns integer language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- How many seconds lie between two ticks of a schedule.
  --
  --   p_schedule  * * * * *, */n * * * *, m * * * * (hourly), or "n seconds"
  --
  -- Errors  JB001 for any other text; six fields with seconds in front are no cron syntax, "30 seconds" says it
begin
  if p_schedule = '* * * * *' then
    return 60;
  elsif p_schedule ~ '^\*/[1-9][0-9]? \* \* \* \*$' then
    return 60 * substring(p_schedule from '[0-9]+')::integer;
  elsif p_schedule ~ '^[0-5]?[0-9] \* \* \* \*$' then
    return 3600;
  elsif p_schedule ~ '^([1-9]|[1-5][0-9]) seconds$' then
    return substring(p_schedule from '[0-9]+')::integer;
  end if;
  raise exception using errcode = 'JB001', message = format('schedule is %L', p_schedule),
    hint = 'give * * * * *, */5 * * * *, 0 * * * *, or "30 seconds" (1 to 59)';
end
$$;

create or replace function media.check_setting(p_name text, p_value text) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse an unknown name and a value that nothing could run with.
  --
  -- Errors  JB001 the value, JB002 the name
declare
  v_plain constant text := split_part(p_name, '.', 1);
begin
  if not exists (select from media.settings s where s.name = v_plain) then
    perform bridge.refuse(format('unknown setting %L', p_name), 'see: select name, value, about from media.settings', 'JB002');
  elsif p_name <> v_plain and (v_plain not in ('iterations', 'delay')
      or split_part(p_name, '.', 2) not in ('process', 'thumbnail', 'analysis', 'card')) then
    perform bridge.refuse(format('unknown setting %L', p_name), 'iterations and delay may be given for process, thumbnail, analysis or card', 'JB002');
  elsif v_plain = 'schedule' then
    perform media.schedule_seconds(p_value);
  elsif v_plain in ('iterations', 'delay', 'max_attempts', 'alert_above', 'alert_after') and p_value !~ '^[0-9]{1,8}$' then
    perform bridge.refuse(format('%s is %L', p_name, p_value), 'give a whole number that is not negative');
  elsif v_plain = 'environment' and p_value !~ '^[a-z0-9_-]{0,40}$' then
    perform bridge.refuse(format('environment is %L', p_value), 'give lower-case letters, digits, - and _, as staging');
  elsif v_plain = 'alert_url' and p_value !~ '^(https?://\S+)?$' then
    perform bridge.refuse(format('alert_url is %L', p_value), 'give an http or https address, or an empty text for none');
  end if;
end
$$;

create or replace function media.pace(p_job_type text default 'process') returns table (iterations integer, delay interval, tick interval, lane text)
  language sql stable set search_path = pg_catalog, pg_temp
  -- The pace that holds for a job type. Types without a setting of their own share one lane; any other has its own.
  begin atomic
    select media.get('iterations', p_job_type)::integer, make_interval(secs => media.get('delay', p_job_type)::integer / 1000.0),
      make_interval(secs => media.schedule_seconds(media.get('schedule'))),
      case when exists (select from media.settings s where s.name in ('iterations.' || p_job_type, 'delay.' || p_job_type)) then p_job_type else '' end;
  end;

create or replace function media.capacity(p_job_type text default 'process') returns numeric language sql stable set search_path = pg_catalog, pg_temp
  -- Jobs an hour that the settings allow: 300 by default (5 a minute, a second apart). Null when they set no bound.
  begin atomic
    select round(least(nullif(p.iterations, 0) * 3600 / extract(epoch from p.tick), 3600 / nullif(extract(epoch from p.delay), 0)))
    from media.pace(p_job_type) p;
  end;
