-- Making a whole graph of jobs in one call, and adding to one: jobs name each other, and circles are refused.

create or replace function bridge.sort_flow(p_refs text[], p_parents integer[], p_children integer[]) returns integer[] language plpgsql immutable
  set search_path = pg_catalog, pg_temp as $$
  -- Bring jobs into an order in which each comes after its parents.
  --
  --   p_refs      their names
  --   p_parents   of each pair the place of the parent in p_refs, sorted
  --   p_children  and that of its child
  --
  -- Errors  JB001 naming a circle
declare
  v_count constant integer := cardinality(p_refs);
  v_pairs constant integer := coalesce(cardinality(p_parents), 0);
  v_first integer[] := array_fill(0, array[v_count]);  -- of each job, where its pairs begin
  v_needs integer[] := array_fill(0, array[v_count]);  -- how many of its parents are not in the order yet
  v_order integer[] := array[]::integer[];
  v_found integer := 0;
  v_at integer := 0;
  v_pair integer;
begin
  for i in 1..v_pairs loop
    v_needs[p_children[i]] := v_needs[p_children[i]] + 1;
    if v_first[p_parents[i]] = 0 then
      v_first[p_parents[i]] := i;
    end if;
  end loop;
  for i in 1..v_count loop
    if v_needs[i] = 0 then
      v_found := v_found + 1;
      v_order[v_found] := i;
    end if;
  end loop;
  while v_at < v_found loop
    v_at := v_at + 1;
    v_pair := v_first[v_order[v_at]];
    while v_pair between 1 and v_pairs and p_parents[v_pair] = v_order[v_at] loop
      v_needs[p_children[v_pair]] := v_needs[p_children[v_pair]] - 1;
      if v_needs[p_children[v_pair]] = 0 then
        v_found := v_found + 1;
        v_order[v_found] := p_children[v_pair];
      end if;
      v_pair := v_pair + 1;
    end loop;
  end loop;
  if v_found < v_count then
    perform bridge.refuse_circle(p_refs, p_parents, p_children, v_needs);
  end if;
  return v_order;
end
$$;

create or replace function bridge.refuse_circle(p_refs text[], p_parents integer[], p_children integer[], p_needs integer[]) returns void
  language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Name one of the circles among jobs of which each still needs another.
declare
  v_above integer[] := array_fill(0, array[cardinality(p_refs)]);
  v_place integer[] := array_fill(0, array[cardinality(p_refs)]);  -- in the path
  v_path text[] := array[]::text[];
  v_now integer;
begin
  for i in 1..cardinality(p_parents) loop
    if p_needs[p_parents[i]] > 0 and p_needs[p_children[i]] > 0 then
      v_above[p_children[i]] := p_parents[i];
      v_now := p_children[i];
    end if;
  end loop;
  while v_place[v_now] = 0 loop
    v_path := v_path || p_refs[v_now];
    v_place[v_now] := cardinality(v_path);
    v_now := v_above[v_now];
  end loop;
  perform bridge.refuse_path(v_path[v_place[v_now]:] || p_refs[v_now]);
end
$$;

create or replace function bridge.refuse_path(p_path text[]) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a circle of jobs, each of which depends on the next; a long one is named by its beginning and its end.
begin
  perform bridge.refuse(format('depends_on goes in a circle: %s', case when cardinality(p_path) > 12
      then array_to_string(p_path[:6], ' → ') || format(' → … (%s jobs) → ', cardinality(p_path) - 11) || array_to_string(p_path[cardinality(p_path) - 4:], ' → ')
      else array_to_string(p_path, ' → ') end),
    'each job must be able to come after those it depends on');
end
$$;

create or replace function bridge.check_flow(p_jobs jsonb) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse what is no list of jobs that name each other.
declare
  v_wrong text;
  v_hint text;
begin
  if jsonb_typeof(p_jobs) is distinct from 'array' then
    perform bridge.refuse(format('jobs is %s', coalesce('a JSON ' || jsonb_typeof(p_jobs), 'null')), 'give a JSON array of objects');
  end if;
  select format('jobs[%s] is a JSON %s', e.n - 1, jsonb_typeof(e.job)), 'give an object with ref, task and what else bridge.enqueue takes'
  into v_wrong, v_hint from jsonb_array_elements(p_jobs) with ordinality e (job, n) where jsonb_typeof(e.job) <> 'object' limit 1;
  if v_wrong is null then
    select format('jobs[%s]: ref is %s', e.n - 1, coalesce(e.job->>'ref', 'missing')), 'give each job a text of its own, by which others name it'
    into v_wrong, v_hint from jsonb_array_elements(p_jobs) with ordinality e (job, n)
    where jsonb_typeof(e.job->'ref') is distinct from 'string' or e.job->>'ref' = '' limit 1;
  end if;
  if v_wrong is null then
    select format('jobs[%s]: ref %s is that of jobs[%s] too', max(e.n) - 1, e.job->>'ref', min(e.n) - 1), 'give each job a ref of its own'
    into v_wrong, v_hint from jsonb_array_elements(p_jobs) with ordinality e (job, n) group by e.job->>'ref' having count(*) > 1 limit 1;
  end if;
  if v_wrong is null then
    select format('jobs[%s]: depends_on is a JSON %s', e.n - 1, jsonb_typeof(e.job->'depends_on')), 'give a list of refs of this call and ids of jobs'
    into v_wrong, v_hint from jsonb_array_elements(p_jobs) with ordinality e (job, n)
    where jsonb_typeof(e.job->'depends_on') not in ('array', 'null') limit 1;
  end if;
  if v_wrong is null then
    with refs as (select e.job->>'ref' as ref from jsonb_array_elements(p_jobs) e (job))
    select format('jobs[%s]: depends_on names %L, which is neither a ref of this call nor an id', e.n - 1, d.name), 'name refs as they are written, or ids of jobs'
    into v_wrong, v_hint from jsonb_array_elements(p_jobs) with ordinality e (job, n)
    cross join jsonb_array_elements_text(coalesce(nullif(e.job->'depends_on', 'null'), '[]')) d (name)
    where d.name not in (select r.ref from refs r) and d.name !~* '^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$' limit 1;
  end if;
  if v_wrong is not null then
    perform bridge.refuse(v_wrong, v_hint);
  end if;
end
$$;

create or replace function bridge.enqueue_flow(jobs jsonb) returns table (ref text, id uuid) language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Enqueue a graph of jobs at once, all or none. They name each other: no id needs to be known before.
  --
  --   jobs  a JSON array of objects whose keys are the argument names of bridge.enqueue, and a ref: a text by which depends_on of others
  --         names the job, in any order; depends_on may name ids of existing jobs too. For example
  --         [{"ref": "fetch", "task": "shop.fetch"}, {"ref": "report", "task": "shop.report", "depends_on": ["fetch"]}]
  --
  -- Returns  each ref with its job's id, in the order of the array
  -- Errors   JB001 a circle, with the refs that make it; else as bridge.enqueue; the message says which element of the array
declare
  v_refs text[];
  v_jobs jsonb[];
  v_places jsonb;
  v_parents integer[];
  v_children integer[];
  v_ids uuid[] := array[]::uuid[];
  v_number integer;
  v_job jsonb;
  v_fault jsonb;
  v_message text;
  v_hint text;
  v_code text;
begin
  perform bridge.check_flow(jobs);
  select coalesce(array_agg(e.job->>'ref' order by e.n), '{}'), array_agg(e.job - 'ref' order by e.n), jsonb_object_agg(e.job->>'ref', e.n)
  into v_refs, v_jobs, v_places from jsonb_array_elements(jobs) with ordinality e (job, n);
  select array_agg(p.parent order by p.parent, p.child), array_agg(p.child order by p.parent, p.child) into v_parents, v_children from (
    select distinct (v_places->>n.name)::integer as parent, e.number::integer as child
    from unnest(v_jobs) with ordinality e (job, number) cross join jsonb_array_elements_text(coalesce(nullif(e.job->'depends_on', 'null'), '[]')) n (name)
    where v_places ? n.name) p;
  perform bridge.hold_options(v_jobs);
  foreach v_number in array bridge.sort_flow(v_refs, v_parents, v_children) loop
    v_job := v_jobs[v_number];
    if jsonb_typeof(v_job->'depends_on') = 'array' then
      v_job := jsonb_set(v_job, '{depends_on}', coalesce((select jsonb_agg(coalesce(v_ids[(v_places->>n)::integer]::text, n))
        from jsonb_array_elements_text(v_job->'depends_on') n), '[]'));
    end if;
    v_ids[v_number] := bridge.enqueue_as(bridge.new_id(), bridge.request_of(v_job, clock_timestamp()));
  end loop;
  return query select r.ref, r.id from unnest(v_refs, v_ids) r (ref, id);
exception when others then
  -- One block around all: a savepoint a row would cost more than the row.
  get stacked diagnostics v_message = message_text, v_hint = pg_exception_hint, v_code = returned_sqlstate;
  if v_number is null or v_message like 'jobs[%' or v_code !~ '^(JB|22)' then
    raise;
  end if;
  v_fault := bridge.fault(v_number - 1, v_job, v_code, v_message, v_hint);
  perform bridge.refuse(format('jobs[%s] (%s): %s', v_number - 1, v_refs[v_number], v_fault->>'message'), v_fault->>'hint', v_fault->>'code');
end
$$;

create or replace function bridge.refuse_circle_through(p_child bigint, p_parent bigint) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Refuse to have a job wait for another that waits, directly or not, for the first.
declare
  v_nodes bigint[];
  v_from bigint[];
  v_path bigint[] := array[p_child];
begin
  with recursive up (node, below) as (
    select p_parent, null::bigint
    union
    select d.parent, u.node from up u join bridge.dependency d on d.child = u.node
  )
  select array_agg(u.node), array_agg(u.below) into v_nodes, v_from from up u;
  if p_child <> all (v_nodes) then
    return;
  end if;
  while v_path[1] <> p_parent loop
    v_path := v_from[array_position(v_nodes, v_path[1])] || v_path;
  end loop;
  perform bridge.refuse_path(array(select j.id::text from unnest(p_child || v_path) with ordinality p (seq, n) join bridge.job j on j.seq = p.seq
    order by p.n));
end
$$;

create or replace function bridge.refuse_child(p_id uuid) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Say why a job cannot be made to wait. One that waits in Postgres alone is not refused: it is to be looked for again.
  --
  -- Errors  JB002 there is no such job; JB006 it is on its way, runs, has replaced itself, or has ended
declare
  v_status constant text := (select case when j.id is null then 'has ended as ' || v.status when r.seq is not null then 'has replaced itself'
      when i.state = 'claimed' then 'is being published' else 'is ' || v.status end
    from bridge.jobs v left join bridge.job j on j.id = v.id left join bridge.inflight i on i.seq = j.seq left join bridge.replaced r on r.seq = j.seq
    where v.id = p_id);
begin
  if v_status is null then
    perform bridge.refuse(format('child %s does not exist', coalesce(p_id::text, 'null')), 'name a job that waits', 'JB002');
  elsif v_status not in ('is blocked', 'is scheduled', 'is queued') then
    perform bridge.refuse(format('child %s %s', p_id, v_status), 'only a job that is blocked, scheduled or queued can be made to wait', 'JB006');
  end if;
end
$$;

create or replace function bridge.add_dependency(child uuid, parent uuid, on_parent_failure text default null) returns text language plpgsql
  security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Have a job that has not begun wait for another as well.
  --
  --   on_parent_failure  of the child, for all of its parents: cancel, run or wait; null leaves it as it is, cancel at first
  --
  -- Returns  the child's status: blocked; what it was where the parent has ended already, with an end that the child need not wait for
  -- Locks    one caller at a time, so that two cannot close a circle together; then the row of the child's place
  -- Errors   JB001 a circle, or a parent that failed; JB002 no such job; JB006 the child is published, runs or has ended
declare
  v_child bigint;
  v_mode text;
  v_parents bigint[];
begin
  perform pg_advisory_xact_lock(hashtextextended('bridge.add_dependency', 0));
  perform bridge.check_on_failure(add_dependency.on_parent_failure);
  loop  -- each time round, the child has moved on
    select j.seq, coalesce(add_dependency.on_parent_failure, b.on_failure) into v_child, v_mode
    from bridge.job j left join bridge.blocked b on b.seq = j.seq where j.id = add_dependency.child;
    if not found then
      perform bridge.refuse_child(add_dependency.child);
      continue;
    end if;
    v_parents := bridge.parents_of(array[add_dependency.parent], v_mode);
    exit when v_parents = '{}' and add_dependency.child <> add_dependency.parent;
    perform bridge.refuse_circle_through(v_child, coalesce(v_parents[1], v_child));
    if not exists (select from bridge.replaced r where r.seq = v_child) and bridge.leave_unpublished(v_child) then
      perform bridge.block(v_child, (select j.run_at from bridge.job j where j.seq = v_child), v_parents, v_mode);
      exit;
    end if;
    perform bridge.refuse_child(add_dependency.child);
  end loop;
  if v_parents = '{}' and add_dependency.on_parent_failure is not null then
    update bridge.blocked b set on_failure = nullif(v_mode, 'cancel') where b.seq = v_child;
  end if;
  insert into bridge.link (above, below, kind, made_at) values (add_dependency.parent, add_dependency.child, 'depends', clock_timestamp())
  on conflict do nothing;
  return (select v.status from bridge.jobs v where v.id = add_dependency.child);
end
$$;

create or replace function bridge.check_on_failure(p_mode text) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a word for what a job does when a parent fails that is none.
begin
  if p_mode not in ('cancel', 'run', 'wait') then
    perform bridge.refuse(format('on_parent_failure is %L', p_mode), 'give cancel, run or wait');
  end if;
end
$$;
