-- What people read of jobs that belong together: batches with counts, and everything that is connected with a job.

select bridge.define_view('batches', $view$
  select b.id, b.name, bridge.batch_status(b) as status, c.total, c.total - c.live as ended,
    case when c.total = 0 then (b.ended_at is not null)::integer::double precision else (c.total - c.live)::double precision / c.total end as progress,
    c.blocked, c.scheduled, c.queued, c.published, c.running, c.succeeded, c.failed, c.cancelled, c.expired,
    b.callback, b.callback_on, case when b.called_at is not null then md5('bridge.batch ' || b.id)::uuid end as callback_job,
    b.created_at, b.sealed_at, b.cancelled_at, b.ended_at
  from bridge.batch b cross join lateral (
    select count(*) as total, count(*) filter (where v.finished_at is null) as live, count(*) filter (where v.status = 'blocked') as blocked,
      count(*) filter (where v.status = 'scheduled') as scheduled, count(*) filter (where v.status = 'queued') as queued,
      count(*) filter (where v.status = 'published') as published, count(*) filter (where v.status = 'running') as running,
      count(*) filter (where v.status = 'succeeded') as succeeded, count(*) filter (where v.status = 'failed') as failed,
      count(*) filter (where v.status = 'cancelled') as cancelled, count(*) filter (where v.status = 'expired') as expired
    from bridge.jobs v where v.batch = b.id) c
$view$);

create or replace function bridge.connected(p_id uuid, p_limit integer) returns uuid[] language plpgsql stable set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- The ids of everything that links connect with an id, it among them, nearest first.
  --
  -- Index    link_pkey, link_below
begin
  return (
    with recursive node (id) as (
      select p_id
      union
      select l.other from node n cross join lateral (
        select d.below as other from bridge.link d where d.above = n.id union all select u.above from bridge.link u where u.below = n.id) l
    )
    select array_agg(f.id) from (select n.id from node n limit p_limit) f);
end
$$;

create or replace function bridge.workflow(id uuid, max_nodes integer default 10000) returns table (
    node uuid, kind text, name text, status text, parents uuid[], relations text[], queue text, attempts integer, error text,
    created_at timestamptz, started_at timestamptz, finished_at timestamptz)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  -- Everything that is connected with a job, a batch or a group of Celery's, one row a node: by depends_on, batches, and Celery's chains,
  -- groups and chords.
  --
  --   id         of any of them
  --   max_nodes  most rows, those nearest to it
  --
  -- Returns  node: its id. kind: job, batch, group, or step (a task of a chain or chord that has no row yet; its status is planned). status: of a batch
  --          as in bridge.batches; of a group how far its members are. parents: the nodes it comes after, and relations what each is to
  --          it: depends_on, batch, callback (of that batch), called (by that job), group, chain, chord
  -- Errors   JB002 when there is nothing of that id
declare
  v_nodes uuid[];
begin
  if workflow.max_nodes is null or workflow.max_nodes not between 1 and 100000 then
    perform bridge.refuse(format('max_nodes is %s', coalesce(workflow.max_nodes::text, 'null')), 'give 1 to 100000');
  end if;
  v_nodes := bridge.connected(workflow.id, workflow.max_nodes);
  if cardinality(v_nodes) = 1 and not exists (select from bridge.job j where j.id = workflow.id)
    and not exists (select from bridge.finished f where f.id = workflow.id) and not exists (select from bridge.batch b where b.id = workflow.id) then
    perform bridge.refuse(format('nothing is known of %s', coalesce(workflow.id::text, 'null')), 'give the id of a job, a batch or a group', 'JB002');
  end if;
  return query
  with node as (
    select n.id, n.place from unnest(v_nodes) with ordinality n (id, place)
  ), content as (
    select j.id, coalesce(j.task_id, j.id::text) as task_id, j.embed from bridge.job j where j.id = any (v_nodes)
    union all
    select f.id, coalesce(f.task_id, f.id::text), f.embed from bridge.finished f where f.id = any (v_nodes)
  ), step as (
    -- What messages carry of later tasks, those that are no rows yet among them. Of the parts of a chord each carries its body.
    select i.id, max(s.task) as task, array_agg(distinct a.id) as parents, max(s.kind) as kind
    from content c cross join lateral bridge.steps_after(c.task_id, c.embed) s
    cross join lateral (select coalesce(bridge.step_id(s.id), (select k.id from content k where k.task_id = s.id)) as id) i
    cross join lateral (select coalesce(bridge.step_id(u), (select k.id from content k where k.task_id = u)) as id from unnest(s.after) u) a
    where c.embed is not null and a.id is not null group by i.id
  ), edge as (
    select l.below as id, l.above as parent, case l.kind when 'depends' then 'depends_on' else l.kind end as relation from bridge.link l
    where l.below = any (v_nodes) and l.above = any (v_nodes)
    union
    select s.id, p, s.kind from step s cross join unnest(s.parents) p where s.id is not null
      and not exists (select from bridge.link l where l.below = s.id and l.above = p and l.kind <> 'called')
  ), kept as (
    -- A chain's step was also called by the step before it, and a chord's body has the group of its header, says Celery: that is left out.
    select e.* from edge e where case e.relation
      when 'called' then not exists (select from edge o where o.id = e.id and o.parent = e.parent and o.relation <> 'called')
      when 'group' then not exists (select from edge o join edge m on m.id = o.parent and m.parent = e.parent and m.relation = 'group'
        where o.id = e.id and o.relation = 'chord') else true end
  ), named as (
    select k.id, array_agg(k.parent order by k.parent, k.relation) as parents, array_agg(k.relation order by k.parent, k.relation) as relations
    from kept k group by k.id
  ), found as (
    select n.place, v.id, 'job' as kind, v.task as name, v.status, v.queue, v.attempts, v.error->>'message' as error, v.created_at, v.started_at, v.finished_at
    from bridge.jobs v join node n on n.id = v.id where v.id = any (v_nodes)
    union all
    select n.place, b.id, 'batch', coalesce(b.name, 'batch'), bridge.batch_status(b), null, null, null, b.created_at, null, b.ended_at
    from node n join bridge.batch b on b.id = n.id
  ), whole as (
    select f.* from found f
    union all
    select n.place, n.id, 'group', 'group', case when count(v.id) = 0 then 'planned' when bool_or(v.finished_at is null) then 'running'
      when bool_and(v.status = 'succeeded') then 'succeeded' else 'failed' end, null, null, null, min(v.created_at), min(v.started_at),
      case when bool_and(v.finished_at is not null) then max(v.finished_at) end
    from node n join kept k on k.parent = n.id and k.relation = 'group' left join found v on v.id = k.id
    where not exists (select from found f where f.id = n.id)
    group by n.place, n.id
    union all
    select null, s.id, case when v.id is null then 'step' else 'job' end, coalesce(v.task, s.task), coalesce(v.status, 'planned'), v.queue, v.attempts,
      v.error->>'message', v.created_at, v.started_at, v.finished_at
    from step s left join bridge.jobs v on v.id = s.id where s.id is not null and s.id <> all (v_nodes)
  )
  select w.id, w.kind, w.name, w.status, coalesce(d.parents, '{}'), coalesce(d.relations, '{}'), w.queue, w.attempts, w.error, w.created_at,
    w.started_at, w.finished_at
  from whole w left join named d on d.id = w.id order by w.created_at nulls last, w.place limit workflow.max_nodes;
end
$$;

create or replace function bridge.step_id(p_task_id text) returns uuid language sql immutable set search_path = pg_catalog, pg_temp
  -- The id that a Celery id will have as a job's, where it is a uuid; null elsewhere.
  return case when p_task_id ~* '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$' then p_task_id::uuid end;
