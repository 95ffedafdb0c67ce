-- Metrics: what graphs and alerts are drawn from. What there is now is read when somebody asks; what has ended is counted by the tick, from
-- history and once, so that counters never fall, whatever retention drops, and no run pays for them.

do $$
declare
  v_day text;
begin
  if to_regclass('bridge.tally') is null then
    create table bridge.tally (
      since        timestamptz not null,     -- of the slice that it counts; -infinity: of all before
      kind         text not null,            -- ended: jobs; attempt: attempts that ended no job
      queue        text not null,
      task         text not null,
      outcome      text not null,
      number       bigint not null,
      run_seconds  double precision not null,
      wait_seconds double precision not null,
      primary key (since, kind, queue, task, outcome)
    ) with (fillfactor = 50);
    -- A slice of time is counted at once, and again when all transactions that were open then are over: then it is settled.
    create table bridge.tally_slice (
      since   timestamptz primary key,
      until   timestamptz not null,
      horizon xid8 not null                  -- transactions before this one may still bring rows into it
    );
    insert into bridge.tally_slice values (clock_timestamp() - interval '1 second', clock_timestamp() - interval '1 second',
      pg_snapshot_xmax(pg_current_snapshot()));
    -- Queues, and pairs of queue and task, that are counted by name; an empty task stands for the queue itself.
    create table bridge.tally_name (
      queue text not null,
      task  text not null,
      primary key (queue, task)
    );
    -- tally: what was tried again lately. Days that are over go without: an upgrade must not read them while writers wait.
    create index attempt_ended on only bridge.attempt (ended_at);
    for v_day in
      select c.relname from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
      where i.inhparent = 'bridge.attempt'::regclass and c.relname >= 'attempt_' || to_char(clock_timestamp() at time zone 'utc', 'YYYYMMDD')
    loop
      execute format('create index %I on bridge.%I (ended_at)', v_day || '_ended_at_idx', v_day);
      execute format('alter index bridge.attempt_ended attach partition bridge.%I', v_day || '_ended_at_idx');
    end loop;
  end if;
end
$$;

insert into bridge.setting (name, value, about) values
  ('metric_names', '300', 'queues that metrics name, and as many pairs of queue and task; what comes later is counted as "(other)"')
on conflict (name) do update set about = excluded.about where bridge.setting.about <> excluded.about;

create or replace function bridge.count_ended(p_since timestamptz, p_until timestamptz) returns setof bridge.tally language plpgsql stable
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_custom_plan as $$
  -- Count the jobs that ended in a slice of time, and the attempts that another followed. Rows carry p_since.
  --
  -- Index  finished_task_status, by hops from task to task in the days of the slice; attempt_ended
declare
  v_first constant timestamptz := date_trunc('day', p_since, 'UTC');
  v_after constant timestamptz := date_trunc('day', p_until, 'UTC') + interval '1 day';
begin
  return query
    with recursive name (task) as (
      (select f.task from bridge.finished f where f.finished_at >= v_first and f.finished_at < v_after order by f.task limit 1)
      union all
      select (select f.task from bridge.finished f where f.finished_at >= v_first and f.finished_at < v_after and f.task > n.task
        order by f.task limit 1)
      from name n where n.task is not null
    )
    select p_since, 'ended', c.queue, n.task, s.status, c.number, c.run_seconds, c.wait_seconds
    from name n cross join unnest(bridge.final_statuses()) s (status) cross join lateral (
      select f.queue, count(*) as number,
        coalesce(sum(extract(epoch from f.finished_at - f.started_at)), 0)::double precision as run_seconds,
        coalesce(sum(greatest(extract(epoch from f.started_at - f.run_at), 0)), 0)::double precision as wait_seconds
      from bridge.finished f
      where f.task = n.task and f.status = s.status and f.finished_at >= p_since and f.finished_at < p_until
      group by f.queue) c
    where n.task is not null;
  return query
    select p_since, 'attempt', coalesce(a.queue, '(unknown)'), coalesce(a.task, '(unknown)'), a.outcome, count(*),
      coalesce(sum(extract(epoch from a.ended_at - a.started_at)), 0)::double precision, 0::double precision
    from bridge.attempt a where a.ended_at >= p_since and a.ended_at < p_until group by 3, 4, 5;
end
$$;

create or replace function bridge.name_counts(p_counts bridge.tally[]) returns setof bridge.tally language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- The same counts under the names that metrics show. New names are taken up, the most frequent first, while there is room; a name that
  -- is shown stays.
declare
  v_most constant integer := bridge.setting('metric_names');
begin
  insert into bridge.tally_name (queue, task)
  select c.queue, '' from unnest(p_counts) c where not exists (select from bridge.tally_name n where n.queue = c.queue and n.task = '')
  group by c.queue order by sum(c.number) desc, c.queue
  limit greatest(v_most - (select count(*) from bridge.tally_name n where n.task = ''), 0) on conflict do nothing;
  insert into bridge.tally_name (queue, task)
  select c.queue, c.task from unnest(p_counts) c
  where c.task <> '' and not exists (select from bridge.tally_name n where n.queue = c.queue and n.task = c.task)
    and exists (select from bridge.tally_name n where n.queue = c.queue and n.task = '')
  group by c.queue, c.task order by sum(c.number) desc, c.queue, c.task
  limit greatest(v_most - (select count(*) from bridge.tally_name n where n.task <> ''), 0) on conflict do nothing;
  return query
    select c.since, c.kind, coalesce(q.queue, '(other)'), coalesce(t.task, '(other)'), c.outcome, sum(c.number)::bigint, sum(c.run_seconds), sum(c.wait_seconds)
    from unnest(p_counts) c
    left join bridge.tally_name q on q.queue = c.queue and q.task = ''
    left join bridge.tally_name t on t.queue = c.queue and t.task = c.task and t.task <> ''
    group by 1, 2, 3, 4, 5;
end
$$;

create or replace function bridge.add_counts(p_since timestamptz, p_counts bridge.tally[]) returns void language sql set search_path = pg_catalog, pg_temp
  -- Add counts to those of a slice.
  begin atomic
    insert into bridge.tally as t (since, kind, queue, task, outcome, number, run_seconds, wait_seconds)
    select p_since, c.kind, c.queue, c.task, c.outcome, c.number, c.run_seconds, c.wait_seconds from unnest(p_counts) c
    on conflict (since, kind, queue, task, outcome) do update set number = t.number + excluded.number,
      run_seconds = t.run_seconds + excluded.run_seconds, wait_seconds = t.wait_seconds + excluded.wait_seconds;
  end;

create or replace function bridge.settle_slice(p_slice bridge.tally_slice) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Nothing more can come into a slice: count it again, for what was committed late, and add it to what is settled. Jobs that have been
  -- run again since are in history no more, and were counted: the larger number is right.
declare
  v_again constant bridge.tally[] := array(select c from bridge.count_ended(p_slice.since, p_slice.until) c);
  v_shown constant bridge.tally[] := array(select c from bridge.name_counts(v_again) c);
  v_counts bridge.tally[];
begin
  select array_agg(row (p_slice.since, kind, queue, task, outcome, greatest(a.number, t.number), greatest(a.run_seconds, t.run_seconds),
    greatest(a.wait_seconds, t.wait_seconds))::bridge.tally) into v_counts
  from unnest(v_shown) a full join (select c.* from bridge.tally c where c.since = p_slice.since) t using (kind, queue, task, outcome);
  delete from bridge.tally t where t.since = p_slice.since;
  delete from bridge.tally_slice s where s.since = p_slice.since;
  perform bridge.add_counts('-infinity', v_counts);
end
$$;

create or replace function bridge.tally_ends(p_now timestamptz default clock_timestamp(), p_after interval default interval '10 seconds')
  returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Bring the counters of what has ended up to date; the tick calls it.
  --
  --   p_after  do nothing when less time than this is new
  --
  -- What ended is in history under the moment of its end, and seen when its transaction has committed, which may be much later. So a slice
  -- is counted at once and settled when every transaction is over that was open then; one that stays open holds up nothing but that.
  -- After a time without ticks it catches up by five minutes a call, so that none is long.
  --
  -- The newest second before this transaction is left for the next time: of a row that is being written, the clock may have been read and
  -- its transaction not have a number yet. So whatever may still bring rows into the slice has a lower number than this one. (The xmax of
  -- a snapshot would not do: it is that of the last to have ended, and one, and those that are open may have higher ones.)
  --
  -- Returns  how many slices are not settled; null when nothing was done
  -- Locks    an advisory lock, tried and never waited for
declare
  v_until timestamptz := least(p_now, clock_timestamp(), transaction_timestamp()) - interval '1 second';
  v_last bridge.tally_slice;
  v_slice bridge.tally_slice;
  v_counts bridge.tally[];
begin
  if not pg_try_advisory_xact_lock(hashtextextended('bridge.tally', 0)) then
    return null;
  end if;
  select s.* into v_last from bridge.tally_slice s order by s.since desc limit 1;
  -- A snapshot from before would not see what the clock says.
  if v_last.until > v_until - p_after or current_setting('transaction_isolation') <> 'read committed' then
    return null;
  end if;
  v_until := least(v_until, v_last.until + interval '5 minutes');
  for v_slice in
    select s.* from bridge.tally_slice s
    where s.horizon <= pg_snapshot_xmin(pg_current_snapshot()) or s.until < v_until - interval '1 day' order by s.since
  loop
    perform bridge.settle_slice(v_slice);
  end loop;
  -- Slices that wait are a minute long, so that a transaction that is open for hours makes few.
  update bridge.tally_slice s set until = v_until, horizon = pg_current_xact_id()
  where s.since = v_last.since and s.since > v_until - interval '1 minute' returning s.* into v_slice;
  if not found then
    insert into bridge.tally_slice values (v_last.until, v_until, pg_current_xact_id()) returning * into v_slice;
  end if;
  v_counts := array(select c from bridge.count_ended(v_last.until, v_until) c);
  perform bridge.add_counts(v_slice.since, array(select c from bridge.name_counts(v_counts) c));
  return (select count(*) from bridge.tally_slice);
end
$$;

create or replace function bridge.sample_of(p_table regclass, p_pages integer) returns real language sql stable set search_path = pg_catalog, pg_temp
  -- The percentage of a table's pages that makes so many of them, as TABLESAMPLE takes it.
  return least(100, 100.0 * p_pages / greatest(pg_relation_size(p_table) / current_setting('block_size')::integer, 1));

create or replace function bridge.ready_by_queue(p_most integer default 5000, p_pages integer default 256)
  returns table (queue text, jobs bigint, oldest timestamptz) language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
  set enable_bitmapscan = off set jit = off as $$
  -- How many jobs of each queue are ready, and since when the first of them. Above p_most, a sample of p_pages tells how many.
  --
  -- Index  ready_pkey
begin
  return query
  with few as materialized (
    select h.queue, min(h.since) as oldest, bridge.count_ready(h.queue, p_most + 1) as jobs from bridge.ready_heads() h group by h.queue
  ), sample as materialized (
    select r.queue, count(*) * 100 / bridge.sample_of('bridge.ready', p_pages) as jobs
    from bridge.ready r tablesample system (bridge.sample_of('bridge.ready', p_pages))
    where exists (select from few w where w.jobs > p_most) group by r.queue
  )
  select w.queue, case when w.jobs <= p_most then w.jobs else greatest(w.jobs, s.jobs)::bigint end, w.oldest
  from few w left join sample s on s.queue = w.queue;
end
$$;

create or replace function bridge.delayed_by_queue(p_most integer default 5000, p_pages integer default 32)
  returns table (queue text, status text, jobs bigint) language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
  set jit = off as $$
  -- How many jobs of each queue are scheduled or blocked. Above p_most, a sample of p_pages tells of the scheduled ones: their rows do not
  -- name the queue.
  --
  -- Index  job_pkey, a probe a row
declare
  v_sample constant real := case when (select count(*) from (select from bridge.scheduled limit p_most + 1) s) <= p_most then 100
    else bridge.sample_of('bridge.scheduled', p_pages) end;
begin
  if v_sample = 100 then
    return query select j.queue, 'scheduled', count(*) from bridge.scheduled s
      cross join lateral (select o.queue from bridge.job o where o.seq = s.seq offset 0) j group by j.queue;
  else
    return query
      select j.queue, 'scheduled', round(count(*) * 100 / v_sample)::bigint
      from bridge.scheduled s tablesample system (v_sample)
      cross join lateral (select o.queue from bridge.job o where o.seq = s.seq offset 0) j group by j.queue;
  end if;
  return query
    select j.queue, 'blocked', count(*) from (select b.seq from bridge.blocked b limit p_most) b
    cross join lateral (select o.queue from bridge.job o where o.seq = b.seq offset 0) j group by j.queue;
end
$$;

create or replace function bridge.live_samples(p_now timestamptz) returns table (name text, labels jsonb, value double precision)
  language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Live jobs by queue and status, and how long the oldest of a status is in it. Queues beyond the setting metric_names are one, "(other)".
declare
  v_most constant integer := bridge.setting('metric_names');
begin
  return query
    with place as (
      select r.queue, 'queued' as status, r.jobs, r.oldest from bridge.ready_by_queue() r
      union all
      select l.queue, 'queued', count(*), min(h.since) from bridge.held h join bridge.lane l on l.id = h.lane group by l.queue
      union all
      select i.queue, case i.state when 'claimed' then 'queued' else i.state end, count(*),
        min(coalesce(i.started_at, i.published_at, i.claimed_at))
      from bridge.flying() i group by 1, 2
      union all
      select d.queue, d.status, d.jobs, null from bridge.delayed_by_queue() d
    ), named as (
      -- Those that have a name already, then the fullest, as long as there is room.
      select q.queue, row_number() over (order by n.queue is null, q.jobs desc, q.queue) <= v_most as shown
      from (select coalesce(p.queue, t.queue) as queue, coalesce(sum(p.jobs), 0) as jobs
        from place p full join (select m.queue from bridge.tally_name m where m.task = '') t on t.queue = p.queue group by 1) q
      left join bridge.tally_name n on n.queue = q.queue and n.task = ''
    ), counted as (
      select case when n.shown then n.queue else '(other)' end as queue, s.status, coalesce(sum(p.jobs), 0) as jobs, min(p.oldest) as oldest
      from named n cross join unnest(bridge.live_statuses()) s (status) left join place p on p.queue = n.queue and p.status = s.status
      group by 1, 2
    )
    select 'bridge_jobs', jsonb_build_object('queue', c.queue, 'status', c.status), c.jobs::double precision from counted c
    union all
    select 'bridge_oldest_job_age_seconds', jsonb_build_object('queue', c.queue, 'status', c.status),
      coalesce(greatest(extract(epoch from p_now - c.oldest), 0), 0)::double precision
    from counted c where c.status in ('queued', 'published', 'running');
end
$$;

create or replace function bridge.ended_samples() returns table (name text, labels jsonb, value double precision) language sql stable
  set search_path = pg_catalog, pg_temp
  -- Counters of what has ended.
  begin atomic
    with total as (
      select t.kind, t.queue, t.task, t.outcome, sum(t.number) as number, sum(t.run_seconds) as run_seconds, sum(t.wait_seconds) as wait_seconds
      from bridge.tally t group by 1, 2, 3, 4
    )
    select case t.kind when 'ended' then 'bridge_jobs_ended_total' else 'bridge_attempts_total' end,
      jsonb_build_object('queue', t.queue, 'task', t.task, 'outcome', t.outcome), t.number::double precision from total t
    union all
    select s.name, jsonb_build_object('queue', t.queue, 'task', t.task), s.seconds
    from (select e.queue, e.task, sum(e.run_seconds) as run_seconds, sum(e.wait_seconds) as wait_seconds from total e where e.kind = 'ended'
      group by 1, 2) t
    cross join lateral (values ('bridge_job_run_seconds_total', t.run_seconds), ('bridge_job_wait_seconds_total', t.wait_seconds)) s (name, seconds)
    union all
    select 'bridge_jobs_enqueued_total', '{}'::jsonb, case when q.is_called then q.last_value else 0 end::double precision
    from bridge.job_seq_seq q
    union all
    select 'bridge_tally_age_seconds', '{}'::jsonb, extract(epoch from clock_timestamp() - max(s.until))::double precision from bridge.tally_slice s;
  end;

create or replace function bridge.dead_count(p_most integer default 100000) returns bigint language sql stable set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off
  -- How many dead letters there are; of more than p_most, p_most.
  --
  -- Index  finished_dead
  begin atomic
    select count(*) from (select f.finished_at from bridge.finished f where f.status = 'failed' and f.discarded_at is null limit p_most) d;
  end;

create or replace function bridge.process_samples(p_now timestamptz) returns table (name text, labels jsonb, value double precision)
  language sql stable set search_path = pg_catalog, pg_temp
  -- Who works, who ticks, what is held back. A process that is lost or has stopped is counted for an hour.
  begin atomic
    select 'bridge_info', jsonb_build_object('version', bridge.version()), 1::double precision
    union all
    select 'bridge_dead_jobs', '{}', bridge.dead_count()
    union all
    select 'bridge_workers', jsonb_build_object('status', s.status), count(w.id)
    from unnest(array['alive', 'lost', 'stopped']) s (status)
    left join bridge.workers w on w.status = s.status and w.seen_at > p_now - interval '1 hour' group by s.status
    union all
    select 'bridge_worker_slots', '{}', coalesce(sum(w.concurrency), 0) from bridge.workers w where w.status = 'alive'
    union all
    select 'bridge_drainers', jsonb_build_object('status', s.status), count(d.id)
    from unnest(array['alive', 'lost', 'stopped']) s (status)
    left join bridge.drainers d on d.status = s.status and d.seen_at > p_now - interval '1 hour' group by s.status
    union all
    -- Where nobody has ticked yet: since the installation.
    select 'bridge_tick_age_seconds', '{}', extract(epoch from p_now - case when isfinite(t.ticked_at) then t.ticked_at else t.steady_since end)
    from bridge.tick_state t
    union all
    select 'bridge_schedules', jsonb_build_object('status', k.status), count(s.name)
    from unnest(array['active', 'paused', 'ended']) k (status) left join bridge.schedule s
      on k.status = case when not s.enabled then 'paused' when s.next_at is null then 'ended' else 'active' end group by k.status
    union all
    select 'bridge_schedule_lateness_seconds', '{}', coalesce(greatest(extract(epoch from p_now - min(s.next_at)), 0), 0)
    from bridge.schedule s where s.enabled
    union all
    select 'bridge_pauses', jsonb_build_object('kind', k.kind), count(p.kind)
    from unnest(array['queue', 'task', 'everything']) k (kind) left join bridge.paused p on p.kind = k.kind group by k.kind
    union all
    select 'bridge_breakers', jsonb_build_object('state', k.state), count(b.kind)
    from unnest(array['closed', 'half_open', 'open']) k (state) left join bridge.breaker b on b.state = k.state group by k.state;
  end;

create or replace function bridge.table_samples() returns table (name text, labels jsonb, value double precision) language sql stable
  set search_path = pg_catalog, pg_temp
  -- Sizes and dead rows of the tables that grow or move; of partitioned ones, of all partitions together.
  begin atomic
    with part as (
      select t.name, coalesce(i.inhrelid, c.oid) as relation
      from unnest(array['job', 'ready', 'held', 'lane', 'scheduled', 'blocked', 'inflight', 'dependency', 'unique_key', 'permit', 'worker',
        'finished', 'attempt', 'log_line', 'job_note', 'result', 'schedule_run', 'tally']) t (name)
      join pg_catalog.pg_class c on c.oid = pg_catalog.to_regclass('bridge.' || t.name)
      left join pg_catalog.pg_inherits i on i.inhparent = c.oid
    ), figure as (
      select p.name, sum(pg_catalog.pg_total_relation_size(p.relation)) as bytes, sum(pg_catalog.pg_stat_get_dead_tuples(p.relation)) as dead
      from part p group by p.name
    )
    select s.name, jsonb_build_object('table', f.name), s.value
    from figure f cross join lateral (values ('bridge_table_bytes', f.bytes::double precision), ('bridge_table_dead_rows', f.dead::double precision)) s (name, value);
  end;

create or replace function bridge.metric_catalog() returns table (name text, type text, help text) language sql immutable set search_path = pg_catalog, pg_temp
  -- Every metric that bridge.metrics() has series of, now or at other times.
  begin atomic
    select v.* from (values
      ('bridge_info', 'gauge', 'The installed schema, always 1'),
      ('bridge_jobs', 'gauge', 'Jobs that have not ended, by queue and status'),
      ('bridge_oldest_job_age_seconds', 'gauge', 'How long the oldest job of a queue has been queued, published or running; 0 when there is none'),
      ('bridge_jobs_enqueued_total', 'counter', 'Numbers given to jobs; those of transactions that rolled back are among them'),
      ('bridge_jobs_ended_total', 'counter', 'Jobs that ended, by queue, task and outcome'),
      ('bridge_job_run_seconds_total', 'counter', 'Seconds from start to end of the last run of jobs that ended'),
      ('bridge_job_wait_seconds_total', 'counter', 'Seconds from due to start of the last run of jobs that ended'),
      ('bridge_attempts_total', 'counter', 'Attempts that did not end their job, by queue, task and outcome'),
      ('bridge_dead_jobs', 'gauge', 'Dead letters, counted up to 100000'),
      ('bridge_workers', 'gauge', 'Workers by status; lost and stopped ones of the last hour'),
      ('bridge_worker_slots', 'gauge', 'Jobs that living workers can run at once'),
      ('bridge_drainers', 'gauge', 'Drainers by status; lost and stopped ones of the last hour'),
      ('bridge_tick_age_seconds', 'gauge', 'Seconds since the last tick'),
      ('bridge_tally_age_seconds', 'gauge', 'Seconds since the counters of what has ended were brought up to date'),
      ('bridge_schedules', 'gauge', 'Schedules by status'),
      ('bridge_schedule_lateness_seconds', 'gauge', 'Seconds since the slot that is due for longest and has not run; 0 when none is'),
      ('bridge_pauses', 'gauge', 'What is held back as a whole, by a person or a circuit breaker'),
      ('bridge_breakers', 'gauge', 'Circuit breakers by state'),
      ('bridge_messages_refused_total', 'counter', 'Messages that workers refused which run signed ones alone, by reason'),
      ('bridge_table_bytes', 'gauge', 'Bytes of a table with its indexes and partitions'),
      ('bridge_table_dead_rows', 'gauge', 'Dead rows of a table that vacuum has not removed, as statistics have it')
    ) v (name, type, help);
  end;

create or replace function bridge.metrics(p_now timestamptz default clock_timestamp())
  returns table (name text, type text, help text, labels jsonb, value double precision) language sql stable security definer set search_path = pg_catalog, pg_temp
  -- All series that there are now, under Prometheus' conventions: what /metrics shows, snapshots keep and bridge top draws.
  --
  -- Returns  one row a series, in the catalog's order of names; counters never fall
  begin atomic
    select c.name, c.type, c.help, s.labels, s.value
    from (select l.name, l.labels, l.value from bridge.live_samples(p_now) l
      union all select e.name, e.labels, e.value from bridge.ended_samples() e
      union all select p.name, p.labels, p.value from bridge.process_samples(p_now) p
      union all select t.name, t.labels, t.value from bridge.table_samples() t
      union all select r.name, r.labels, r.value from bridge.refused_samples() r
    ) s join bridge.metric_catalog() c on c.name = s.name
    order by c.name, s.labels;
  end;
