-- What people read about schedules.

-- Every run of every schedule; one whose job has not ended, or has just, shows what the job says.
select bridge.define_view('schedule_runs', $view$
  select r.id, r.schedule, r.slot, r.trigger_type, case when r.status = 'open' then coalesce(j.status, 'unknown') else r.status end as status,
    r.job as job_id, r.created_at, coalesce(j.started_at, r.started_at) as started_at, coalesce(j.finished_at, r.finished_at) as finished_at,
    coalesce(j.finished_at, r.finished_at) - coalesce(j.started_at, r.started_at) as duration,
    coalesce(j.error->>'message', r.error) as error, r.reason
  from bridge.schedule_run r
  left join lateral (
    -- The limit keeps it a lookup by id: joined freely, all jobs might be read.
    select v.status, v.started_at, v.finished_at, v.error from bridge.jobs v where v.id = r.job and r.status = 'open' limit 1
  ) j on true
$view$);

select bridge.define_view('schedules', $view$
  select s.name, s.cron, s.timezone, s.task, s.args, s.kwargs, s.queue, s.priority,
    case when not s.enabled then 'paused' when s.next_at is null then 'ended' else 'active' end as status,
    s.next_at as next_run, l.created_at as last_run, l.status as last_status, l.duration as last_duration, l.error as last_error,
    l.job_id as last_job, s.enabled, s.overlap, s.missed, s.missed_within, s.jitter, s.expires, s.starts_at, s.ends_at, s.max_attempts,
    s.backoff, s.timeout, s.headers, s.created_at, s.updated_at
  from bridge.schedule s
  left join lateral (
    select v.* from bridge.schedule_runs v
    where v.id = (select r.id from bridge.schedule_run r where r.schedule = s.name and r.status <> 'skipped' order by r.id desc limit 1)
  ) l on true
$view$);

-- Of the runs that the log still holds (the setting "retention").
select bridge.define_view('schedule_stats', $view$
  select s.name as schedule, count(r.id) filter (where r.status <> 'skipped') as runs, count(r.id) filter (where r.status = 'succeeded') as succeeded,
    count(r.id) filter (where r.status in ('failed', 'expired', 'cancelled')) as failed, count(r.id) filter (where r.status = 'skipped') as skipped,
    avg(r.duration) as average_duration, percentile_cont(0.95) within group (order by r.duration) as p95_duration,
    max(r.duration) as longest_duration, max(r.created_at) filter (where r.status <> 'skipped') as last_run, s.next_at as next_run
  from bridge.schedule s left join bridge.schedule_runs r on r.schedule = s.name
  group by s.name, s.next_at
$view$);
