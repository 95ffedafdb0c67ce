-- What people read. A view is replaced only when its text changes (see bridge.define_view).

select bridge.define_view('live_jobs', $view$
  select j.id, coalesce(j.task_id, j.id::text) as task_id, j.task, j.queue,
    case when i.state = 'claimed' then 'queued' when i.seq is not null then i.state when r.seq is not null or h.seq is not null then 'queued'
      when s.seq is not null then 'scheduled' else 'blocked' end as status,
    j.args, j.kwargs, null::json as result, j.error, i.progress, 9 - j.rank as priority,
    j.attempts + (i.run is not null)::integer as attempts,
    coalesce(case when j.options ? 'max_attempts' then j.max_attempts end, t.max_attempts, q.max_attempts, j.max_attempts)::integer as max_attempts,
    w.name as worker, j.created_at,
    greatest(j.updated_at, i.published_at, i.started_at) as updated_at, j.run_at, i.started_at, null::timestamptz as finished_at,
    j.losses::integer as losses, j.seq, i.pid, j.expires_at, j.unique_key, null::jsonb as outcome, j.headers, j.content_type is not null as opaque,
    i.cancelled_at, j.batch, null::timestamptz as discarded_at
  from bridge.job j
  left join bridge.inflight i on i.seq = j.seq
  left join bridge.ready r on r.seq = j.seq
  left join bridge.held h on h.seq = j.seq
  left join bridge.scheduled s on s.seq = j.seq
  left join bridge.worker w on w.id = i.worker
  left join bridge.retry_policy t on t.scope = 'task' and t.name = j.task
  left join bridge.retry_policy q on q.scope = 'queue' and q.name = j.queue
$view$);

-- History is joined with nothing: only so a page of it is read from its index, in the order that was asked for.
select bridge.define_view('jobs', $view$
  select l.id, l.task_id, l.task, l.queue, l.status, l.args, l.kwargs, l.result, l.error, l.progress, l.priority, l.attempts, l.max_attempts,
    l.worker, l.created_at, l.updated_at, l.run_at, l.started_at, l.finished_at, l.losses, l.seq, l.pid, l.expires_at, l.unique_key, l.outcome,
    l.headers, l.opaque, l.cancelled_at, l.batch, l.discarded_at
  from bridge.live_jobs l
  union all
  select f.id, coalesce(f.task_id, f.id::text), f.task, f.queue, f.status, f.args, f.kwargs, f.result, f.error, f.progress, 9 - f.rank,
    f.attempts::integer, f.max_attempts::integer, (select w.name from bridge.worker w where w.id = f.worker), f.created_at, f.finished_at,
    f.run_at, f.started_at, f.finished_at, f.losses::integer, f.seq, null::integer, f.expires_at, f.unique_key, f.outcome, f.headers,
    f.content_type is not null, null::timestamptz, f.batch, f.discarded_at
  from bridge.finished f
$view$);

select bridge.define_view('failed_jobs', $view$
  select f.id, coalesce(f.task_id, f.id::text) as task_id, f.task, f.queue, f.args, f.kwargs, f.error, f.attempts::integer as attempts,
    f.max_attempts::integer as max_attempts, f.created_at, f.started_at, f.finished_at, f.discarded_at
  from bridge.finished f where f.status = 'failed'
$view$);

-- Failed jobs that are kept for redrive: all that nobody has discarded.
select bridge.define_view('dead_jobs', $view$
  select f.id, coalesce(f.task_id, f.id::text) as task_id, f.task, f.queue, f.args, f.kwargs, f.error, f.attempts::integer as attempts,
    f.max_attempts::integer as max_attempts, f.created_at, f.started_at, f.finished_at, w.name as worker, f.batch
  from bridge.finished f left join bridge.worker w on w.id = f.worker
  where f.status = 'failed' and f.discarded_at is null
$view$);

select bridge.define_view('stuck_jobs', $view$
  select j.id, coalesce(j.task_id, j.id::text) as task_id, j.task, j.queue, case p.status when 'held' then 'queued' else p.status end as status, j.attempts + (p.status = 'running')::integer as attempts,
    w.name as worker, j.created_at, j.run_at, p.since, clock_timestamp() - p.since as age,
    case p.status when 'queued' then 'due and not published: is a drainer alive, is the queue paused or its window full?'
      when 'published' then case when p.taken_by is null then 'with the broker and not started: is a worker consuming this queue?'
        else 'taken by a worker that reports nothing: see unreported_jobs' end
      when 'held' then 'held back by a limit, or by others of its serial key: see bridge.limits'
      when 'blocked' then 'it has replaced itself by tasks of which the last has not come: has one of them been cancelled?'
      else 'running for long: is its worker busy with it?' end as reason
  from (
    select r.seq, 'queued' as status, r.since, null::uuid as worker, null::text[] as taken_by from bridge.ready r
    union all
    select h.seq, 'held', h.since, null, null from bridge.held h
    union all
    select i.seq, case i.state when 'claimed' then 'queued' else i.state end, coalesce(i.started_at, i.published_at, i.claimed_at), i.worker,
      i.taken_by
    from bridge.inflight i
    union all
    select b.seq, 'blocked', r.since, null, null from bridge.replaced r join bridge.blocked b on b.seq = r.seq
  ) p
  join bridge.job j on j.seq = p.seq
  left join bridge.worker w on w.id = p.worker
  where p.since < clock_timestamp() - (select bridge.seconds('stuck_after'))
$view$);

-- A limit of null is none, but the planner reckons with a tenth. It adds up all days of history, though only one or two of them are read,
-- and would have the plan compiled for it, which takes longer than the plan.
select bridge.define_view('job_queue_stats', $view$
  select q.queue,
    coalesce(l.blocked, 0) as blocked, coalesce(l.scheduled, 0) as scheduled, coalesce(l.queued, 0) as queued,
    coalesce(l.published, 0) as published, coalesce(l.running, 0) as running,
    coalesce(h.succeeded, 0) as succeeded_last_hour, coalesce(h.failed, 0) as failed_last_hour,
    coalesce(h.cancelled, 0) as cancelled_last_hour, coalesce(h.expired, 0) as expired_last_hour,
    l.oldest_queued_at, h.average_seconds, p.paused_at, p.pause, w."window"
  from (
    select v.queue, count(*) filter (where v.status = 'blocked') as blocked, count(*) filter (where v.status = 'scheduled') as scheduled,
      count(*) filter (where v.status = 'queued') as queued, count(*) filter (where v.status = 'published') as published,
      count(*) filter (where v.status = 'running') as running,
      least((select min(r.since) from bridge.ready r where r.queue = v.queue),
        (select min(h.since) from bridge.lane o join bridge.held h on h.lane = o.id where o.queue = v.queue)) as oldest_queued_at
    from bridge.live_jobs v group by v.queue
  ) l
  full join (
    select f.queue, count(*) filter (where f.status = 'succeeded') as succeeded, count(*) filter (where f.status = 'failed') as failed,
      count(*) filter (where f.status = 'cancelled') as cancelled, count(*) filter (where f.status = 'expired') as expired,
      avg(extract(epoch from f.finished_at - f.started_at)) as average_seconds
    from (
      select f.queue, f.status, f.started_at, f.finished_at from bridge.finished f where f.finished_at > now() - interval '1 hour'
      limit (select null::bigint)
    ) f group by f.queue
  ) h on h.queue = l.queue
  full join (
    select q.name from bridge.queue q union select p.name from bridge.paused p where p.kind = 'queue'
  ) n on n.name = coalesce(l.queue, h.queue)
  cross join lateral (select coalesce(l.queue, h.queue, n.name) as queue) q
  left join lateral (
    select min(p.paused_at) as paused_at,
      case when bool_and(p.breaker) then 'breaker' when bool_or(p.hard and not p.breaker) then 'hard' else 'soft' end as pause
    from bridge.paused p where (p.kind = 'queue' and p.name = q.queue) or p.kind = 'everything' having count(*) > 0
  ) p on true
  left join bridge.queue w on w.name = q.queue
$view$);

-- Every attempt of every job: those that were followed by another, and the one that runs or ended it.
select bridge.define_view('attempts', $view$
  select a.id, a.attempt::integer as attempt, a.outcome, w.name as worker, a.started_at, a.ended_at, a.error, a.result, a.run,
    a.reason
  from bridge.attempt a left join bridge.worker w on w.id = a.worker where a.run is not null
  union all
  select f.id, f.attempts::integer, f.status, w.name, f.started_at, f.finished_at, f.error, f.result, f.run,
    bridge.why_ended(f.status, f.attempts, f.max_attempts, f.outcome)
  from bridge.finished f left join bridge.worker w on w.id = f.worker where f.run is not null
  union all
  select j.id, j.attempts + 1, 'running', w.name, i.started_at, null, null, null, i.run,
    case when i.cancelled_at is not null then 'somebody has cancelled it' when i.stop_signal is not null then 'its deadline has passed: it is being stopped' end
  from bridge.inflight i join bridge.job j on j.seq = i.seq left join bridge.worker w on w.id = i.worker where i.run is not null
$view$);

select bridge.define_view('workers', $view$
  select w.name, case when w.stopped_at is not null then 'stopped' when w.lost_at is not null
      or w.seen_at < clock_timestamp() - bridge.seconds('worker_lost') then 'lost' else 'alive' end as status,
    w.pid, w.pool, w.concurrency, w.queues, cardinality(w.holding) as holding, w.software, w.started_at, w.seen_at, w.clock_skew, w.id
  from bridge.worker w
$view$);

select bridge.define_view('drainers', $view$
  select d.name, case when d.stopped_at is not null then 'stopped' when d.seen_at < clock_timestamp() - interval '15 seconds' then 'lost'
      else 'alive' end as status,
    d.pid, d.published, d.software, d.started_at, d.seen_at, d.clock_skew, d.broker, d.id
  from bridge.drainer d
$view$);

-- Jobs whose message a worker without our plugin took: they ran, or did not, and nobody reports it. See settle_unreported.
select bridge.define_view('unreported_jobs', $view$
  select j.id, coalesce(j.task_id, j.id::text) as task_id, j.task, j.queue, i.taken_by, i.published_at, i.missing_since
  from bridge.inflight i join bridge.job j on j.seq = i.seq
  where i.state = 'published' and i.taken_by is not null
$view$);
