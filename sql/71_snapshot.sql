-- What bridge.metrics() said, once a minute, for a while: graphs can be drawn from SQL alone. Counters never fall, so the rate of a while is
-- a difference.

do $$
begin
  if to_regclass('bridge.metric_snapshot') is null then
    create table bridge.metric_snapshot (
      at     timestamptz not null,
      name   text not null,
      labels jsonb not null,
      value  double precision not null
    );
    -- graphs: one metric over a while
    create index metric_snapshot_name on bridge.metric_snapshot (name, at);
    -- collect_metrics: what is too old
    create index metric_snapshot_at on bridge.metric_snapshot (at);

    create table bridge.metric_state (
      only_row     boolean primary key default true check (only_row),
      collected_at timestamptz not null default '-infinity'
    ) with (fillfactor = 50);
    insert into bridge.metric_state default values;
  end if;
end
$$;

insert into bridge.setting (name, value, about) values
  ('metric_interval',  '60',     'seconds between two snapshots of bridge.metrics()'),
  ('metric_retention', '604800', 'seconds that snapshots of metrics are kept')
on conflict (name) do update set about = excluded.about where bridge.setting.about <> excluded.about;

create or replace function bridge.collect_metrics(p_now timestamptz default clock_timestamp()) returns integer language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Keep what bridge.metrics() says now, and forget a page of what is older than metric_retention. The tick does this every metric_interval.
  --
  -- Returns  how many values were kept; null when somebody else is at it
  -- Locks    an advisory lock, tried and never waited for
  -- Index    metric_snapshot_at
declare
  v_before constant timestamptz := p_now - bridge.seconds('metric_retention');
  v_count integer;
begin
  perform bridge.check_now(p_now);
  if not pg_try_advisory_xact_lock(hashtextextended('bridge.metrics', 0)) then
    return null;
  end if;
  update bridge.metric_state s set collected_at = p_now;
  insert into bridge.metric_snapshot (at, name, labels, value)
  select p_now, m.name, m.labels, m.value from bridge.metrics(p_now) m where m.value is not null;
  get diagnostics v_count = row_count;
  delete from bridge.metric_snapshot s where s.ctid = any (array (
    select o.ctid from bridge.metric_snapshot o where o.at < v_before order by o.at limit 2 * v_count + 1000));
  return v_count;
end
$$;

create or replace function bridge.collect_metrics_if_due(p_now timestamptz) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Keep a snapshot when the last is older than metric_interval. A step of the tick, which must not fail.
begin
  if not exists (select from bridge.metric_state s where s.collected_at <= p_now - bridge.seconds('metric_interval') or s.collected_at > p_now) then
    return false;
  end if;
  perform bridge.collect_metrics(p_now);
  return true;
exception when others then
  raise warning 'metrics cannot be kept: %', sqlerrm;
  return false;
end
$$;

create or replace function bridge.metric_growth(p_name text, p_labels jsonb, p_since timestamptz)
  returns table (at timestamptz, labels jsonb, grown double precision) language sql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  -- By how much each series of a counter has grown since the snapshot before; one that was not there yet, from nothing.
  --
  -- Index  metric_snapshot_name
  begin atomic
    select s.at, s.labels, s.value - coalesce(lag(s.value) over (partition by s.labels order by s.at),
      case when s.at > min(s.at) over () then 0 else s.value end)
    from bridge.metric_snapshot s where s.name = p_name and s.at > p_since and s.labels @> p_labels;
  end;

create or replace function bridge.metric_rate(name text, labels jsonb default '{}', past interval default '1 day',
    p_now timestamptz default clock_timestamp())
  returns table (at timestamptz, per_minute double precision) language sql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  -- The rate of a counter over a while, a row a snapshot: by how much its series with these labels have grown a minute since the one before.
  --
  --   name    of the counter, as bridge.metrics() has it
  --   labels  only of series with these; {} for all of them together
  --   past    how far back; more than a thousand years is all there is
  --
  -- Index  metric_snapshot_name
  begin atomic
    select g.at, greatest(sum(g.grown), 0) * 60 / nullif(extract(epoch from g.at - lag(g.at) over (order by g.at))::double precision, 0)
    from bridge.metric_growth(metric_rate.name, metric_rate.labels, case when metric_rate.past > interval '1000 years' then '-infinity'
      else p_now - greatest(metric_rate.past, '0') end) g group by g.at order by g.at;
  end;

create or replace function bridge.health_of_metrics(p_now timestamptz) returns bridge.component language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Whether snapshots are kept as often as they should.
declare
  v_at constant timestamptz := (select nullif(s.collected_at, '-infinity') from bridge.metric_state s);
  v_interval constant interval := bridge.seconds('metric_interval');
begin
  return bridge.condition('metrics', case when v_at is null then 'inactive' when v_at < p_now - 5 * v_interval then 'degraded' else 'healthy' end,
    coalesce('the last snapshot is of ' || bridge.moment(v_at), 'no snapshot was ever kept: nobody has ticked'),
    remedy => case when v_at < p_now - 5 * v_interval then 'see tick; then select bridge.collect_metrics(), which says what is wrong' end,
    last_run => v_at, next_run => v_at + v_interval);
end
$$;

-- How many jobs ended in each minute of the last hour, by queue. Exact, from history; older ones are in bridge.metric_rate.
select bridge.define_view('job_rate_per_minute', $view$
  select date_trunc('minute', f.finished_at) as minute, f.queue, count(*) filter (where f.status = 'succeeded') as succeeded,
    count(*) filter (where f.status = 'failed') as failed, count(*) as ended
  from bridge.finished f where f.finished_at > now() - interval '1 hour' group by 1, 2
$view$);

-- How many jobs ended in each hour of the last day, by queue and task, from snapshots.
select bridge.define_view('job_stats_hourly', $view$
  select date_trunc('hour', g.at) as hour, g.labels->>'queue' as queue, g.labels->>'task' as task,
    coalesce(sum(g.grown) filter (where g.labels->>'outcome' = 'succeeded'), 0)::bigint as succeeded,
    coalesce(sum(g.grown) filter (where g.labels->>'outcome' = 'failed'), 0)::bigint as failed, sum(g.grown)::bigint as ended
  from bridge.metric_growth('bridge_jobs_ended_total', '{}', now() - interval '1 day') g
  where g.grown > 0 group by 1, 2, 3
$view$);
