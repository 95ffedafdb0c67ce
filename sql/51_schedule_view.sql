-- What people read about schedules.

-- Every run of every schedule; one whose job has not ended, or has just, shows what the job says.
select bridge.define_view('schedule_runs', $view$
  select r.id, r.schedule, r.slot, r.trigger_type, case when r.status = 'open' then coalesce(j.status, 'unknown') else r.status end as status,
    r.job as job_id, r.created_at, coalesce(j.started_at, r.started_at) as started_at, coalesce(j.finished_at, r.finished_at) as finished_at,
    coalesce(j.finished_at, r.finished_at) - coalesce(j.started_at, r.started_at) as duration,
    coalesce(j.error->>'message', r.error) as error, r.reason, coalesce(r.due_at, r.slot) as due_at,
    coalesce(j.first_started_at, r.first_started_at) - coalesce(r.due_at, r.slot) as late_by, coalesce(j.attempts, r.attempts) as attempts, r.rows,
    coalesce(left(j.result::text, 500), r.result) as result
  from bridge.schedule_run r
  left join lateral (
    -- The limit keeps it a lookup by id: joined freely, all jobs might be read.
    select v.status, v.started_at, v.finished_at, v.error, v.attempts, v.result,
      least(v.started_at, case when v.attempts > 1 or v.losses > 0 then (select min(a.started_at) from bridge.attempt a where a.id = v.id) end)
        as first_started_at
    from bridge.jobs v where v.id = r.job and r.status = 'open' limit 1
  ) j on true
$view$);

select bridge.define_view('schedules', $view$
  select s.name, s.cron, s.timezone, s.task, s.args, s.kwargs, s.queue, s.priority,
    case when not s.enabled then 'paused' when s.next_at is null then 'ended' else 'active' end as status,
    s.next_at as next_run, l.created_at as last_run, l.status as last_status, l.duration as last_duration, l.error as last_error,
    l.job_id as last_job, s.enabled, s.overlap, s.missed, s.missed_within, s.jitter, s.expires, s.starts_at, s.ends_at, s.max_attempts,
    s.backoff, s.timeout, s.headers, s.created_at, s.updated_at, s.expected_duration, s.function, s.webhook, s.role
  from bridge.schedule s
  left join lateral (
    select v.* from bridge.schedule_runs v
    where v.id = (select r.id from bridge.schedule_run r where r.schedule = s.name and r.status <> 'skipped' order by r.id desc limit 1)
  ) l on true
$view$);

-- Counts, average and longest are of all runs, those that cleanup has forgotten among them; the 95th percentile, the median and how late runs
-- began are of those that the log holds. A run counts as ended when the tick has noted it, a second later.
select bridge.define_view('schedule_stats', $view$
  select s.name as schedule, coalesce(r.runs, 0) + coalesce(p.runs, 0) as runs, coalesce(r.succeeded, 0) + coalesce(p.succeeded, 0) as succeeded,
    coalesce(r.failed, 0) + coalesce(p.failed, 0) as failed, coalesce(r.skipped, 0) + coalesce(p.skipped, 0) as skipped,
    (coalesce(r.duration, '0') + coalesce(p.duration, '0')) / nullif(coalesce(r.timed, 0) + coalesce(p.timed, 0), 0) as average_duration, r.p95_duration,
    greatest(r.longest, p.longest) as longest_duration, r.last_run, s.next_at as next_run, r.median_duration, s.expected_duration, r.average_late,
    r.p95_late, coalesce(r.live, 0) as live, least(p.since, r.since) as since
  from bridge.schedule s
  left join bridge.schedule_past p on p.schedule = s.name
  left join (
    select r.schedule, count(*) filter (where r.status <> 'skipped') as runs, count(*) filter (where r.status = 'succeeded') as succeeded,
      count(*) filter (where r.status in ('failed', 'expired', 'cancelled')) as failed, count(*) filter (where r.status = 'skipped') as skipped,
      count(*) filter (where r.status in ('open', 'waiting')) as live, count(r.finished_at - r.started_at) as timed, sum(r.finished_at - r.started_at) as duration,
      max(r.finished_at - r.started_at) as longest, percentile_cont(0.95) within group (order by r.finished_at - r.started_at) as p95_duration,
      percentile_cont(0.5) within group (order by r.finished_at - r.started_at) as median_duration,
      avg(r.first_started_at - coalesce(r.due_at, r.slot)) as average_late,
      percentile_cont(0.95) within group (order by r.first_started_at - coalesce(r.due_at, r.slot)) as p95_late,
      max(r.created_at) filter (where r.status <> 'skipped') as last_run, min(r.created_at) as since
    from bridge.schedule_run r group by r.schedule
  ) r on r.schedule = s.name
$view$);
