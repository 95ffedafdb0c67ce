-- When a schedule is due: cron expressions and intervals, read and counted in the schedule's own time zone.
--
-- The rules are Vixie's, as Debian's cron and pg_cron have them. Day of the month and day of the week: either matches when both are
-- restricted; both must match when one begins with * (or the day of the week with &, which is ours). Daylight saving: a time that the
-- clock jumps over runs at the end of the jump, a time that comes twice runs the first time. That is so for fixed times; where the
-- minute or the hour begins with *, the clock is followed as it is: what is jumped over does not run, what comes twice runs twice.

do $$
begin
  if to_regtype('bridge.cron_plan') is null then
    create type bridge.cron_plan as (
      every    bigint,                       -- seconds between two slots; then the rest is null
      minutes  integer[],
      hours    integer[],
      days     integer[],                    -- of the month
      months   integer[],
      weekdays integer[],                    -- 0 is Sunday
      last_day boolean,                      -- the last day of the month as well
      match_both boolean,                     -- the day of the month and of the week must match, not one of them
      fixed    boolean                       -- a time of day, not a pattern over minutes or hours
    );
  end if;
end
$$;

create or replace function bridge.refuse_cron(p_cron text, p_position integer, p_what text, p_hint text) returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Refuse an expression by the character from which on it cannot be read.
begin
  perform bridge.refuse(format('cron %L, character %s: %s', p_cron, p_position, p_what), p_hint);
end
$$;

create or replace function bridge.cron_number(p_cron text, p_position integer, p_word text, p_field integer) returns integer
  language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- A number or a name (at least its first three letters) of one field, 1 to 5.
declare
  v_kind constant text := (array['minute', 'hour', 'day of the month', 'month', 'day of the week'])[p_field];
  v_low constant integer := (array[0, 0, 1, 1, 0])[p_field];
  v_high constant integer := (array[59, 23, 31, 12, 7])[p_field];
  v_names constant text[] := case p_field
    when 4 then array['january', 'february', 'march', 'april', 'may', 'june', 'july', 'august', 'september', 'october', 'november', 'december']
    when 5 then array['sunday', 'monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday'] else array[]::text[] end;
  v_found integer;
  v_near text;
begin
  if p_word ~ '^[0-9]{1,4}$' then
    if p_word::integer between v_low and v_high then
      return p_word::integer;
    end if;
    perform bridge.refuse_cron(p_cron, p_position, format('%s %s does not exist', v_kind, p_word), format('give %s to %s', v_low, v_high));
  end if;
  select n.place - 1 + v_low into v_found from unnest(v_names) with ordinality n (name, place)
  where length(p_word) >= 3 and starts_with(n.name, lower(p_word));
  if v_found is null then
    select string_agg(left(n.name, 3), ' or ') into v_near from unnest(v_names) n (name) where left(n.name, 1) = lower(left(p_word, 1));
    perform bridge.refuse_cron(p_cron, p_position, format('%L is no %s', p_word, v_kind),
      coalesce('did you mean ' || v_near || '?', format('give %s to %s, a range as %s-%s, steps as */5, or *', v_low, v_high, v_low, v_low + 4)));
  end if;
  return v_found;
end
$$;

create or replace function bridge.cron_part(p_cron text, p_position integer, p_part text, p_field integer) returns integer[]
  language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- The numbers that one element of a field's list means; -1 stands for the last day of the month.
declare
  v_words constant text[] := regexp_match(p_part, '^(?:(\*)|([^*/-]+)(?:-([^*/-]+))?)(?:/([0-9]{1,4}))?$');
  v_low constant integer := (array[0, 0, 1, 1, 0])[p_field];
  v_high constant integer := (array[59, 23, 31, 12, 6])[p_field];
  v_step constant integer := coalesce(v_words[4], '1')::integer;
  v_from integer := v_low;
  v_to integer := v_high;
begin
  if p_field = 3 and lower(p_part) in ('l', '$') then
    return array[-1];
  elsif v_words is null or p_part ~ '[?#]' or p_part ~* '^[0-9]+[lw]$' then
    perform bridge.refuse_cron(p_cron, p_position, case when p_part = '' then 'an element is empty' else format('%L cannot be read', p_part) end,
      case when p_part = '?' then 'write * for any' when p_part ~* '[#lw]' then 'only L, the last day of the month, is known'
        else 'give a number, a range as 1-5, a list as 1,15, steps as */15, or *' end);
  elsif v_step = 0 then
    perform bridge.refuse_cron(p_cron, p_position + strpos(p_part, '/'), 'steps of 0 lead nowhere', 'give steps of 1 or more');
  end if;
  if v_words[2] is not null then
    v_from := bridge.cron_number(p_cron, p_position, v_words[2], p_field);
    v_to := case when v_words[3] is not null then bridge.cron_number(p_cron, p_position + strpos(p_part, '-'), v_words[3], p_field)
      when v_words[4] is not null then v_high else v_from end;
    if p_field = 5 and v_to = 0 and v_from > 0 then
      v_to := 7;   -- fri-sun
    end if;
  end if;
  if v_from > v_to then
    perform bridge.refuse_cron(p_cron, p_position, format('the range %s runs backwards', p_part),
      format('write %s-%s,%s-%s', v_words[2], v_high, v_low, v_words[3]));
  end if;
  return array(select case when p_field = 5 then g % 7 else g end from generate_series(v_from, v_to, v_step) g);
end
$$;

create or replace function bridge.cron_field(p_cron text, p_position integer, p_text text, p_field integer) returns integer[]
  language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- The numbers that one field means, each once, in their order.
declare
  v_position integer := p_position;
  v_part text;
  v_all integer[] := array[]::integer[];
begin
  -- Most fields are a star or one number. A tick reads the expression of every schedule that is due: so it takes a quarter of the time.
  if p_text = '*' then
    return array(select g from generate_series((array[0, 0, 1, 1, 0])[p_field], (array[59, 23, 31, 12, 6])[p_field]) g);
  elsif p_text ~ '^[0-9]{1,2}$' and p_text::integer between (array[0, 0, 1, 1, 0])[p_field] and (array[59, 23, 31, 12, 6])[p_field] then
    return array[p_text::integer];
  end if;
  foreach v_part in array string_to_array(p_text, ',') loop
    v_all := v_all || bridge.cron_part(p_cron, v_position, v_part, p_field);
    v_position := v_position + length(v_part) + 1;
  end loop;
  return array(select distinct n from unnest(v_all) n order by n);
end
$$;

create or replace function bridge.cron_interval(p_cron text) returns bigint language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- The seconds of "30 seconds", "every 15 minutes", "every day"; null when it is no interval.
declare
  v_words constant text[] := regexp_match(btrim(lower(p_cron)), '^(every\s+)?(?:([0-9]{1,9})\s*)?(s|sec|second|m|min|minute|h|hour|d|day|w|week)s?$');
  v_seconds bigint;
begin
  if v_words is null or coalesce(v_words[1], v_words[2]) is null then
    if lower(p_cron) ~ '^\s*every\M' then
      perform bridge.refuse_cron(p_cron, strpos(lower(p_cron), 'every') + 6, 'no interval', 'write "every 15 minutes", "every 2 hours", "every day"');
    end if;
    return null;
  end if;
  v_seconds := coalesce(v_words[2], '1')::bigint
    * (case left(v_words[3], 1) when 's' then 1 when 'm' then 60 when 'h' then 3600 when 'd' then 86400 else 604800 end);
  if v_seconds = 0 then
    perform bridge.refuse_cron(p_cron, strpos(p_cron, v_words[2]), 'an interval of 0 never ends', 'give 1 second or more');
  end if;
  return v_seconds;
end
$$;

create or replace function bridge.parse_cron(p_cron text) returns bridge.cron_plan language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Read an expression: five fields, @hourly and its like, "30 seconds", "every 15 minutes".
  --
  -- Errors  JB001 with the character from which on it cannot be read
declare
  v_text constant text := case lower(btrim(p_cron)) when '@yearly' then '0 0 1 1 *' when '@annually' then '0 0 1 1 *' when '@monthly' then '0 0 1 * *'
    when '@weekly' then '0 0 * * 0' when '@daily' then '0 0 * * *' when '@midnight' then '0 0 * * *' when '@hourly' then '0 * * * *' else p_cron end;
  v_fields constant text[] := regexp_split_to_array(btrim(v_text, E' \t\n\r'), '\s+');
  v_plan bridge.cron_plan;
  v_places integer[] := array[]::integer[];
  v_position integer := 1;
begin
  v_plan.every := bridge.cron_interval(p_cron);
  if v_plan.every is not null then
    return v_plan;
  elsif btrim(coalesce(p_cron, '')) = '' then
    perform bridge.refuse(format('cron is %s', coalesce('empty' || left(p_cron, 0), 'null')), 'give five fields as 0 6 * * mon-fri, @daily, or "every 15 minutes"');
  elsif v_text like '@%' then
    perform bridge.refuse_cron(p_cron, 1, format('%s is not known', v_text), coalesce('did you mean '
      || bridge.nearest(btrim(p_cron), array['@hourly', '@daily', '@midnight', '@weekly', '@monthly', '@yearly', '@annually']) || '?',
      'give @hourly, @daily, @weekly, @monthly or @yearly'));
  elsif cardinality(v_fields) <> 5 then
    perform bridge.refuse_cron(p_cron, length(p_cron), format('there are %s fields', cardinality(v_fields)), case cardinality(v_fields)
      when 6 then 'give five: minute, hour, day, month, weekday; seconds are no field, "30 seconds" is an interval'
      else 'give five: minute, hour, day, month, weekday' end);
  end if;
  for i in 1..5 loop
    v_position := v_position + strpos(substr(v_text, v_position), v_fields[i]) - 1;
    v_places := v_places || v_position;
    v_position := v_position + length(v_fields[i]);
  end loop;
  v_plan.minutes := bridge.cron_field(p_cron, v_places[1], v_fields[1], 1);
  v_plan.hours := bridge.cron_field(p_cron, v_places[2], v_fields[2], 2);
  v_plan.days := bridge.cron_field(p_cron, v_places[3], v_fields[3], 3);
  v_plan.months := bridge.cron_field(p_cron, v_places[4], v_fields[4], 4);
  v_plan.weekdays := bridge.cron_field(p_cron, v_places[5] + (v_fields[5] like '&%')::integer, ltrim(v_fields[5], '&'), 5);
  v_plan.last_day := -1 = any (v_plan.days);
  v_plan.days := array_remove(v_plan.days, -1);
  v_plan.match_both := v_fields[3] like '*%' or v_fields[5] like '*%' or v_fields[5] like '&%';
  v_plan.fixed := v_fields[1] not like '*%' and v_fields[2] not like '*%';
  if v_plan.match_both and not v_plan.last_day and not exists (
      select from unnest(v_plan.days) d, unnest(v_plan.months) m where d <= case when m = 2 then 29 when m in (4, 6, 9, 11) then 30 else 31 end) then
    perform bridge.refuse_cron(p_cron, v_places[3], 'these months have no such day', 'write L for the last day of the month');
  end if;
  return v_plan;
end
$$;

create or replace function bridge.check_zone(p_zone text) returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse what is no name of the tz database. Postgres takes more, but an offset as UTC+3 means the opposite of what it seems to.
  --
  -- Returns  the name as the database spells it
declare
  v_name text;
begin
  -- The list of all names is read from files, 100 ms. What has this shape is either one of them or an error.
  if p_zone = 'UTC' or p_zone ~ '^[A-Za-z_]+(/[A-Za-z_-]+)+$' then
    begin
      perform now() at time zone p_zone;
      return p_zone;
    exception when invalid_parameter_value then
      null;
    end;
  end if;
  select n.name into v_name from pg_catalog.pg_timezone_names n where lower(n.name) = lower(p_zone) and n.name !~ '^(posix|right)/'
  order by n.name <> p_zone limit 1;
  if v_name is null then
    v_name := bridge.nearest(p_zone, array(select n.name from pg_catalog.pg_timezone_names n where n.name !~ '^(posix|right|Etc)/'), 3);
    perform bridge.refuse(format('timezone %L is not known', coalesce(p_zone, 'null')),
      coalesce('did you mean ' || v_name || '?', 'give a name as Europe/Berlin or UTC; see pg_timezone_names'));
  end if;
  return v_name;
end
$$;

create or replace function bridge.next_time(p_plan bridge.cron_plan, p_day date, p_after timestamp) returns timestamp language plpgsql immutable
  set search_path = pg_catalog, pg_temp as $$
  -- The first time of one day, by the clock on the wall, after another; null when the day has none left.
declare
  v_hour integer := -1;
  v_minute integer;
begin
  if p_after::date > p_day then
    return null;
  elsif p_after::date = p_day then
    v_hour := extract(hour from p_after)::integer;
    if v_hour = any (p_plan.hours) then
      select min(m) into v_minute from unnest(p_plan.minutes) m where m > extract(minute from p_after);
    end if;
  end if;
  if v_minute is null then
    select min(h) into v_hour from unnest(p_plan.hours) h where h > v_hour;
    v_minute := p_plan.minutes[1];
  end if;
  return p_day + make_interval(hours => v_hour, mins => v_minute);
end
$$;

create or replace function bridge.clock_change(p_zone text, p_from timestamptz, p_minutes integer) returns timestamptz language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- The moment at which a zone's clock is set, to the minute, where it is set once within so many minutes from a moment on.
declare
  v_before constant interval := (p_from at time zone p_zone) - (p_from at time zone 'UTC');
  v_low integer := 0;                        -- still the old offset
  v_high integer := p_minutes;               -- the new one
  v_middle integer;
  v_at timestamptz;
begin
  while v_high - v_low > 1 loop
    v_middle := (v_low + v_high) / 2;
    v_at := p_from + make_interval(mins => v_middle);
    if (v_at at time zone p_zone) - (v_at at time zone 'UTC') = v_before then
      v_low := v_middle;
    else
      v_high := v_middle;
    end if;
  end loop;
  return p_from + make_interval(mins => v_high);
end
$$;

create or replace function bridge.day_slot(p_plan bridge.cron_plan, p_zone text, p_day date, p_after timestamptz) returns timestamptz
  language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The first slot of one local day after a moment; null when the day has none left.
declare
  v_from constant timestamptz := (p_day::timestamp at time zone p_zone) - interval '3 hours';
  v_to constant timestamptz := ((p_day + 1)::timestamp at time zone p_zone) + interval '3 hours';
  v_old constant interval := (v_from at time zone p_zone) - (v_from at time zone 'UTC');
  v_new constant interval := (v_to at time zone p_zone) - (v_to at time zone 'UTC');
  v_utc constant timestamp := p_after at time zone 'UTC';
  v_change timestamp;
  v_time timestamp;
begin
  if v_old = v_new then
    return (bridge.next_time(p_plan, p_day, v_utc + v_old) - v_old) at time zone 'UTC';
  end if;
  -- The clock is set on this day, or close to it. Before, while, and after it is:
  v_change := bridge.clock_change(p_zone, v_from, (extract(epoch from v_to - v_from) / 60)::integer) at time zone 'UTC';
  v_time := bridge.next_time(p_plan, p_day, v_utc + v_old);
  if v_time < v_change + v_old then
    return (v_time - v_old) at time zone 'UTC';
  elsif p_plan.fixed and v_new > v_old and v_utc < v_change
    and bridge.next_time(p_plan, p_day, v_change + v_old - interval '1 minute') < v_change + v_new then
    return v_change at time zone 'UTC';
  end if;
  v_time := v_change + case when p_plan.fixed then greatest(v_old, v_new) else v_new end;
  return (bridge.next_time(p_plan, p_day, greatest(v_time - interval '1 minute', v_utc + v_new)) - v_new) at time zone 'UTC';
end
$$;

create or replace function bridge.next_slot(p_plan bridge.cron_plan, p_zone text, p_after timestamptz, p_anchor timestamptz default 'epoch')
  returns timestamptz language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The first slot after a moment: days that match are tried one after the other. (Until 2011 there was a clock that was set back over a
  -- midnight which it had passed, in Newfoundland; there, that day's order would be another.)
  --
  --   p_anchor  where intervals are counted from: a slot itself, and the first
  --
  -- Returns  null when there is none in the coming 41 years (a 29 February on a chosen weekday can be 40 years away)
declare
  v_day date := least(p_after at time zone p_zone, (p_after + interval '1 hour') at time zone p_zone)::date;
  v_last constant date := v_day + 15000;
  v_slot timestamptz;
  v_month_day boolean;
  v_week_day boolean;
begin
  if p_plan.every is not null then
    return p_anchor + greatest(floor(extract(epoch from p_after - p_anchor) / p_plan.every) + 1, 0) * p_plan.every * interval '1 second';
  end if;
  while v_day < v_last loop
    if extract(month from v_day) <> all (p_plan.months) then
      v_day := date_trunc('month', v_day) + interval '1 month';
      continue;
    end if;
    v_month_day := extract(day from v_day) = any (p_plan.days) or (p_plan.last_day and extract(day from v_day + 1) = 1);
    v_week_day := extract(dow from v_day) = any (p_plan.weekdays);
    if (p_plan.match_both and v_month_day and v_week_day) or (not p_plan.match_both and (v_month_day or v_week_day)) then
      v_slot := bridge.day_slot(p_plan, p_zone, v_day, p_after);
      if v_slot is not null then
        return v_slot;
      end if;
    end if;
    v_day := v_day + 1;
  end loop;
  return null;
end
$$;

create or replace function bridge.last_slot(p_plan bridge.cron_plan, p_zone text, p_until timestamptz, p_anchor timestamptz default 'epoch')
  returns timestamptz language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The last slot up to a moment, that moment included; null when there is none in 41 years. Looks back twice as far each time, then
  -- halves the way to it.
declare
  v_low timestamptz := p_until;              -- a slot follows it that is not too late, once it was found
  v_high timestamptz;                        -- none does
  v_middle timestamptz;
  v_back interval := interval '1 minute';
begin
  if p_plan.every is not null then
    v_low := p_anchor + floor(extract(epoch from p_until - p_anchor) / p_plan.every) * p_plan.every * interval '1 second';
    return case when v_low >= p_anchor then v_low end;
  end if;
  loop
    v_high := v_low;
    v_low := p_until - v_back;
    exit when bridge.next_slot(p_plan, p_zone, v_low, p_anchor) <= p_until;
    if v_back > interval '41 years' then
      return null;
    end if;
    v_back := 2 * v_back;
  end loop;
  while v_high - v_low > interval '1 minute' loop
    v_middle := v_low + (v_high - v_low) / 2;
    if bridge.next_slot(p_plan, p_zone, v_middle, p_anchor) <= p_until then
      v_low := v_middle;
    else
      v_high := v_middle;
    end if;
  end loop;
  return bridge.next_slot(p_plan, p_zone, v_low, p_anchor);
end
$$;

create or replace function bridge.next_runs(cron text, timezone text default 'UTC', n integer default 5, after timestamptz default now())
  returns setof timestamptz language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
  -- Preview: the next moments at which an expression is due.
  --
  --   cron      as in bridge.schedule
  --   timezone  whose clock it is read by
  --   n         how many, 1 to 1000
  --   after     from when on; that moment itself is not among them
  --
  -- Errors  JB001 an expression that cannot be read, with the character; an unknown time zone; n or after out of bounds
declare
  v_plan constant bridge.cron_plan := bridge.parse_cron(next_runs.cron);
  v_zone constant text := bridge.check_zone(next_runs.timezone);
  v_slot timestamptz := next_runs.after;
begin
  if n is null or n not between 1 and 1000 then
    perform bridge.refuse(format('n is %s', coalesce(n::text, 'null')), 'give 1 to 1000');
  elsif next_runs.after not between '0001-01-01 00:00+00' and '9900-01-01 00:00+00' then
    perform bridge.refuse(format('after is %s', next_runs.after), 'give a moment from the year 1 to 9900');
  end if;
  for i in 1..n loop
    v_slot := bridge.next_slot(v_plan, v_zone, v_slot);
    exit when v_slot is null;
    return next v_slot;
  end loop;
end
$$;
