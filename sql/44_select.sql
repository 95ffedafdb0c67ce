-- Choosing jobs: one filter for everything that is done to many jobs at once, in SQL, Python and on the command line alike.
--
-- A filter is a JSON object; all that it names must hold:
--
--   ids                              a list of job ids
--   status, task, queue              a text or a list of texts; in task, * stands for anything: "mail.*"
--   error                            the class of the last error, "ValueError" or "requests.*", or a list
--   args, kwargs                     what they contain: [7] is anywhere in args, {"tenant": 3} among kwargs
--   batch                            id of a batch
--   created_after, created_before    moments: the first is in, the last is out
--   finished_after, finished_before  the same, of jobs that have ended
--   changed_after                    whatever happened to it last
--   all                              true: nothing else chooses; an operation refuses a filter that says neither
--   max_jobs                         most jobs, 1 to 100000, default 1000

create or replace function bridge.live_statuses() returns text[] language sql immutable set search_path = pg_catalog, pg_temp
  -- Of a job that has not ended.
  return array['blocked', 'scheduled', 'queued', 'published', 'running'];

create or replace function bridge.final_statuses() returns text[] language sql immutable set search_path = pg_catalog, pg_temp
  -- Of a job that has ended.
  return array['succeeded', 'failed', 'cancelled', 'expired'];

create or replace function bridge.texts_of(p_filter jsonb, p_key text) returns text[] language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- What a filter says under a key that takes a text or a list of texts; null when it says nothing.
  --
  -- Errors  JB001 when it says something else
declare
  v_said constant jsonb := p_filter->p_key;
  v_texts text[];
begin
  if v_said is null then
    return null;
  end if;
  if jsonb_typeof(v_said) in ('string', 'array') then
    select array_agg(e.value #>> '{}' order by e.place) into v_texts
    from jsonb_array_elements(case jsonb_typeof(v_said) when 'array' then v_said else jsonb_build_array(v_said) end) with ordinality e (value, place)
    where jsonb_typeof(e.value) = 'string' and e.value #>> '{}' <> '';
  end if;
  if v_texts is null or (jsonb_typeof(v_said) = 'array' and cardinality(v_texts) <> jsonb_array_length(v_said)) then
    perform bridge.refuse(format('%s of the filter is %s', p_key, left(v_said::text, 80)), 'give a text or a list of texts, none of them empty');
  end if;
  return v_texts;
end
$$;

create or replace function bridge.moment_of(p_filter jsonb, p_key text) returns timestamptz language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- What a filter says under a key that takes a moment; null when it says nothing.
  --
  -- Errors  JB001 when it says something else
begin
  if jsonb_typeof(p_filter->p_key) = 'string' then
    return (p_filter->>p_key)::timestamptz;
  elsif p_filter->p_key is not null then
    perform bridge.refuse(format('%s of the filter is %s', p_key, left((p_filter->p_key)::text, 80)), 'give a moment: "2031-01-31T12:00:00Z"');
  end if;
  return null;
exception when data_exception then
  perform bridge.refuse(format('%s of the filter is %L', p_key, p_filter->>p_key), 'give a moment: "2031-01-31T12:00:00Z"');
  return null;
end
$$;

create or replace function bridge.uuids_of(p_filter jsonb, p_key text) returns uuid[] language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- What a filter says under a key that takes ids; null when it says nothing.
  --
  -- Errors  JB001 when one of them is no id
declare
  v_texts constant text[] := bridge.texts_of(p_filter, p_key);
  v_wrong text;
begin
  select t into v_wrong from unnest(v_texts) t where t !~* '^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$' limit 1;
  if found then
    perform bridge.refuse(format('%s of the filter names %L', p_key, left(v_wrong, 80)), 'give ids as bridge.jobs shows them');
  end if;
  return v_texts::uuid[];
end
$$;

create or replace function bridge.patterns_of(p_filter jsonb, p_key text) returns text[] language sql immutable set search_path = pg_catalog, pg_temp
  -- What a filter says under a key whose texts may have a * for anything, as patterns of LIKE; null when it says nothing.
  return (select array_agg(replace(regexp_replace(t, '([\\%_])', '\\\1', 'g'), '*', '%')) from unnest(bridge.texts_of(p_filter, p_key)) t);

create or replace function bridge.check_max_jobs(p_count integer) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a number of jobs of one call that is none.
begin
  if p_count is null or p_count not between 1 and 100000 then
    perform bridge.refuse(format('max_jobs is %s', coalesce(p_count::text, 'null')), 'give 1 to 100000, and call again for more');
  end if;
end
$$;

create or replace function bridge.max_jobs_of(p_filter jsonb) returns integer language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Most jobs that a filter chooses.
  --
  -- Errors  JB001 when it is no number from 1 to 100000
begin
  if p_filter->'max_jobs' is null then
    return 1000;
  elsif jsonb_typeof(p_filter->'max_jobs') <> 'number' or (p_filter->>'max_jobs')::numeric not between 1 and 100000
      or (p_filter->>'max_jobs')::numeric <> trunc((p_filter->>'max_jobs')::numeric) then
    perform bridge.refuse(format('max_jobs of the filter is %s', left((p_filter->'max_jobs')::text, 80)), 'give 1 to 100000, and call again for more');
  end if;
  return (p_filter->>'max_jobs')::numeric;
end
$$;

create or replace function bridge.check_filter(p_filter jsonb) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a filter that names what there is not, has a value of the wrong kind, or contradicts itself.
declare
  v_keys constant text[] := array['ids', 'status', 'task', 'queue', 'error', 'args', 'kwargs', 'batch', 'created_after', 'created_before',
    'finished_after', 'finished_before', 'changed_after', 'all', 'max_jobs'];
  v_key text;
begin
  if jsonb_typeof(p_filter) is distinct from 'object' then
    perform bridge.refuse(format('filter is %s', coalesce('a JSON ' || jsonb_typeof(p_filter), 'null')), 'give an object: {"task": "mail.*"}');
  end if;
  for v_key in select k from jsonb_object_keys(p_filter) k loop
    if v_key <> all (v_keys) then
      perform bridge.refuse(format('filter names %L', v_key), format('it may name %s', array_to_string(v_keys, ', ')));
    elsif p_filter->v_key = 'null' then
      perform bridge.refuse(format('%s of the filter is null', v_key), 'leave it out, or give what to look for');
    end if;
  end loop;
  if jsonb_typeof(p_filter->'args') <> 'array' then
    perform bridge.refuse(format('args of the filter is a JSON %s', jsonb_typeof(p_filter->'args')), 'give an array of what they contain: [7]');
  elsif jsonb_typeof(p_filter->'kwargs') <> 'object' then
    perform bridge.refuse(format('kwargs of the filter is a JSON %s', jsonb_typeof(p_filter->'kwargs')), 'give an object: {"tenant": 3}');
  elsif p_filter->'all' <> 'true' then
    perform bridge.refuse(format('all of the filter is %s', left((p_filter->'all')::text, 80)), 'give true, or leave it out');
  elsif p_filter ? 'all' and p_filter - 'all' - 'max_jobs' <> '{}' then
    perform bridge.refuse(format('filter names all and %s', (select string_agg(k, ', ') from jsonb_object_keys(p_filter - 'all' - 'max_jobs') k)),
      'give one or the other');
  elsif bridge.moment_of(p_filter, 'created_after') >= bridge.moment_of(p_filter, 'created_before') then
    perform bridge.refuse('created_after of the filter is not before created_before', 'give the earlier moment first');
  elsif bridge.moment_of(p_filter, 'finished_after') >= bridge.moment_of(p_filter, 'finished_before') then
    perform bridge.refuse('finished_after of the filter is not before finished_before', 'give the earlier moment first');
  end if;
end
$$;

create or replace function bridge.require_filter(p_filter jsonb) returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a filter by which something would be done to all jobs without being said so.
begin
  perform bridge.check_filter(p_filter);
  if p_filter - 'max_jobs' = '{}' then
    perform bridge.refuse('filter names nothing', 'say which jobs are meant, {"task": "mail.*"}, or {"all": true}');
  end if;
end
$$;

create or replace function bridge.statuses_of(p_filter jsonb, p_statuses text[]) returns text[] language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- The statuses that a filter leaves of those that an operation is for.
  --
  -- Errors  JB001 when it names another, or asks when a job ended that has not
declare
  v_named text[] := array(select distinct t from unnest(coalesce(bridge.texts_of(p_filter, 'status'), p_statuses)) t);
  v_wrong text;
begin
  select s into v_wrong from unnest(v_named) s where s <> all (p_statuses) limit 1;
  if found then
    perform bridge.refuse(format('status of the filter is %L', left(v_wrong, 80)), format('here it is one of %s', array_to_string(p_statuses, ', ')));
  end if;
  if p_filter ?| array['finished_after', 'finished_before'] then
    select coalesce(array_agg(s), '{}') into v_named from unnest(v_named) s where s = any (bridge.final_statuses());
    if v_named = '{}' then
      perform bridge.refuse('filter asks when jobs ended, of jobs that have not', 'leave finished_after and finished_before out');
    end if;
  end if;
  return v_named;
end
$$;

create or replace function bridge.conditions_of(p_filter jsonb, p_changed text) returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- What a filter says, but for status and task, as SQL over a row v. Values are in it as literals: each filter gets a plan of its own.
  --
  --   p_changed  the column that says when the row changed last
declare
  v_sql text := 'true';
  v_key text;
begin
  foreach v_key in array array['queue', 'error', 'ids', 'batch', 'created_after', 'created_before', 'finished_after', 'finished_before', 'changed_after', 'args', 'kwargs'] loop
    continue when not p_filter ? v_key;
    v_sql := v_sql || case v_key
      when 'queue' then format(' and v.queue = any (%L::text[])', bridge.texts_of(p_filter, 'queue'))
      when 'error' then format(' and (v.error->>''type'' like any (%1$L::text[]) or concat_ws(''.'', v.error->>''module'', v.error->>''type'') like any (%1$L::text[]))',
        bridge.patterns_of(p_filter, 'error'))
      when 'ids' then format(' and v.id = any (%L::uuid[])', bridge.uuids_of(p_filter, 'ids'))
      when 'batch' then format(' and v.batch = any (%L::uuid[])', bridge.uuids_of(p_filter, 'batch'))
      when 'created_after' then format(' and v.created_at >= %L::timestamptz', bridge.moment_of(p_filter, v_key))
      when 'created_before' then format(' and v.created_at < %L::timestamptz', bridge.moment_of(p_filter, v_key))
      when 'finished_after' then format(' and v.finished_at >= %L::timestamptz', bridge.moment_of(p_filter, v_key))
      when 'finished_before' then format(' and v.finished_at < %L::timestamptz', bridge.moment_of(p_filter, v_key))
      when 'changed_after' then format(' and v.%I >= %L::timestamptz', p_changed, bridge.moment_of(p_filter, v_key))
      else format(' and v.%I::jsonb @> %L::jsonb', v_key, p_filter->v_key) end;
  end loop;
  return v_sql;
end
$$;

create or replace function bridge.ended_tasks(p_filter jsonb) returns text[] language plpgsql stable set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- The names of the tasks that a filter chooses in history: those that it names, or what there is of its patterns, found by hops from name
  -- to name, whatever the number of jobs.
  --
  -- Index  finished_task_status
declare
  v_patterns constant text[] := bridge.patterns_of(p_filter, 'task');
  v_name text;
  v_names text[] := array[]::text[];
begin
  if not exists (select from unnest(bridge.texts_of(p_filter, 'task')) t where t like '%*%') and v_patterns is not null then
    return array(select distinct t from unnest(bridge.texts_of(p_filter, 'task')) t);
  end if;
  select f.task into v_name from bridge.finished f order by f.task limit 1;
  while v_name is not null loop
    if v_patterns is null or v_name like any (v_patterns) then
      v_names := v_names || v_name;
    end if;
    select f.task into v_name from bridge.finished f where f.task > v_name order by f.task limit 1;
  end loop;
  return v_names;
end
$$;

create or replace function bridge.ended_query(p_filter jsonb, p_statuses text[], p_newest boolean, p_dead boolean) returns text
  language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The statement by which a filter chooses ended jobs: id, and at, when the job ended.
  --
  --   p_dead  those alone that nobody has discarded
  --
  -- Index  finished_id with ids, finished_batch with a batch; finished_task_status, once for each task and status that there is, where tasks are named or successes are
  --        among them; finished_dead or finished_unsuccessful otherwise
declare
  v_where constant text := bridge.conditions_of(p_filter, 'finished_at') || case when p_dead then ' and v.discarded_at is null' else '' end;
  v_order constant text := format('order by v.finished_at %s limit %s', case when p_newest then 'desc' else 'asc' end, bridge.max_jobs_of(p_filter));
  v_patterns constant text[] := bridge.patterns_of(p_filter, 'task');
  v_tasks constant text := case when v_patterns is null then '' else format(' and v.task like any (%L::text[])', v_patterns) end;
begin
  if p_filter ?| array['ids', 'batch'] or (v_patterns is null and 'succeeded' <> all (p_statuses)) then
    return format('select v.id, v.finished_at as at, v.seq from bridge.finished v where v.status = any (%L::text[])%s and %s %s',
      p_statuses, v_tasks, v_where, v_order);
  end if;
  return format('select o.id, o.finished_at as at, o.seq from unnest(%L::text[]) t (task) cross join unnest(%L::text[]) s (status)
    cross join lateral (select v.id, v.finished_at, v.seq from bridge.finished v where v.task = t.task and v.status = s.status and %s %s) o',
    bridge.ended_tasks(p_filter), p_statuses, v_where, v_order);
end
$$;

create or replace function bridge.live_query(p_filter jsonb, p_statuses text[], p_newest boolean) returns text language plpgsql stable
  set search_path = pg_catalog, pg_temp as $$
  -- The statement by which a filter chooses live jobs: id, and at, when the job was made, or with p_newest when it last changed.
declare
  v_patterns constant text[] := bridge.patterns_of(p_filter, 'task');
begin
  return format('select v.id, v.%1$I as at, v.seq from bridge.live_jobs v where %2$s%3$s%4$s order by v.%5$s limit %6$s',
    case when p_newest then 'updated_at' else 'created_at' end, bridge.conditions_of(p_filter, 'updated_at'),
    case when v_patterns is null then '' else format(' and v.task like any (%L::text[])', v_patterns) end,
    case when p_statuses @> bridge.live_statuses() then '' else format(' and v.status = any (%L::text[])', p_statuses) end,
    case when p_newest then 'updated_at desc' else 'seq' end, bridge.max_jobs_of(p_filter));
end
$$;

create or replace function bridge.select_jobs(filter jsonb default '{}',
    p_statuses text[] default array['blocked', 'scheduled', 'queued', 'published', 'running', 'succeeded', 'failed', 'cancelled', 'expired'],
    p_newest boolean default false, p_dead boolean default false)
  returns setof uuid language plpgsql stable security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  -- The ids of the jobs that a filter chooses; the head of this file says what it may name.
  --
  --   p_statuses  the statuses that the caller can do something with: what the filter does not have to say
  --   p_newest    the last changed first; otherwise the first made, and of ended jobs the first that ended
  --   p_dead      dead letters alone
  --
  -- Returns  at most max_jobs ids. Whoever locks them does it in this order: two who do it at once wait for each other, never in a circle
  -- Errors   JB001 when the filter names what there is not, or contradicts itself
declare
  v_statuses text[];
  v_live text[];
  v_final text[];
  v_queries text[] := array[]::text[];
begin
  perform bridge.check_filter(select_jobs.filter);
  v_statuses := bridge.statuses_of(select_jobs.filter, p_statuses);
  select coalesce(array_agg(s) filter (where s = any (bridge.live_statuses())), '{}'), coalesce(array_agg(s) filter (where s = any (bridge.final_statuses())), '{}')
  into v_live, v_final from unnest(v_statuses) s;
  if v_live || v_final = '{}' then
    return;
  end if;
  if v_live <> '{}' then
    v_queries := v_queries || format('(%s)', bridge.live_query(select_jobs.filter, v_live, p_newest));
  end if;
  if v_final <> '{}' then
    v_queries := v_queries || format('(%s)', bridge.ended_query(select_jobs.filter, v_final, p_newest, p_dead));
  end if;
  return query execute format('select c.id from (%s) c (id, at, seq) order by c.at %s, c.seq limit %s', array_to_string(v_queries, ' union all '),
    case when p_newest then 'desc' else 'asc' end, bridge.max_jobs_of(select_jobs.filter));
end
$$;

create or replace function bridge.hold_chosen(p_ids uuid[], p_filter jsonb, p_statuses text[]) returns uuid[] language plpgsql
  set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Lock the places of jobs that a filter has chosen; see bridge.hold_places.
  --
  -- Returns  those that it chooses still, in the same order: while others had them in hand, some have ended, or are what was not meant
begin
  if p_ids = '{}' then
    return p_ids;
  end if;
  perform bridge.hold_places(p_ids);
  return array(select bridge.select_jobs(p_filter - 'all' || jsonb_build_object('ids', p_ids), p_statuses));
end
$$;

create or replace function bridge.bulk_report(p_filter jsonb, p_matched integer, p_changed integer, p_dry_run boolean) returns jsonb
  language sql immutable set search_path = pg_catalog, pg_temp
  -- What a bulk operation answers: how many jobs the filter chose, how many were changed, how many had moved on meanwhile, and whether there
  -- may be more than max_jobs. A dry run changes none.
  return jsonb_build_object('matched', p_matched, 'changed', p_changed, 'skipped', case when p_dry_run then 0 else p_matched - p_changed end,
    'more', p_matched >= bridge.max_jobs_of(p_filter));
