-- Limits as people read them: what is in use and what waits.

select bridge.define_view('limit_keys', $view$
  select l.name, b.key, l.concurrency, l.rate, coalesce(u.in_use, 0) as in_use, coalesce(w.waiting, 0) as waiting, w.waiting_since,
    case when l.rate is not null then floor(least(l.burst, coalesce(b.tokens, l.burst)
      + l.pace * greatest(extract(epoch from clock_timestamp() - b.refilled_at), 0)))::integer end as tokens, l.owner
  from (
    select o.id, max(o.job_limit) as job_limit, max(o.key) as key, max(o.tokens) as tokens, max(o.refilled_at) as refilled_at from (
      select b.id, b.job_limit, b.key, b.tokens, b.refilled_at from bridge.bucket b
      union all
      select u.id, u.job_limit, u.key, null, null from bridge.lane l cross join lateral unnest(l.buckets, l.limits, l.keys) u (id, job_limit, key)
    ) o group by o.id
  ) b
  left join bridge.job_limit l on l.id = b.job_limit
  left join (select p.bucket, count(*) as in_use from bridge.permit p where not p.freed group by p.bucket) u on u.bucket = b.id
  left join (
    select u.id, sum(h.jobs)::bigint as waiting, min(h.since) as waiting_since
    from (select h.lane, count(*) as jobs, min(h.since) as since from bridge.held h group by h.lane) h
    join bridge.lane l on l.id = h.lane cross join lateral unnest(l.buckets) u (id) group by u.id
  ) w on w.id = b.id
  where b.job_limit = 0 or l.id is not null
$view$);

select bridge.define_view('limits', $view$
  select l.name, l.queue, l.task, l.key, l.concurrency, l.rate, l.per, l.burst, l.fair, coalesce(k.keys, 0) as keys, coalesce(k.in_use, 0) as in_use,
    coalesce(k.waiting, 0) as waiting, k.waiting_since, least(l.changed_at, clock_timestamp()) as changed_at
  from bridge.job_limit l
  left join (
    select k.name, count(*) as keys, sum(k.in_use)::bigint as in_use, sum(k.waiting)::bigint as waiting, min(k.waiting_since) as waiting_since
    from bridge.limit_keys k where k.owner = 'limit' group by k.name
  ) k on k.name = l.name
  where l.owner = 'limit'
$view$);
