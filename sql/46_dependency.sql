-- Jobs that wait for others: what the end of a parent means for its children.
--
-- An end never waits for another and shares no row with it. It takes its own rows of `dependency` away and looks for one more row of the
-- same child. A row that somebody else is taking away at this moment can be told by its xmax; where no other kind is left, neither end
-- can know of the other, and the child goes on a list, `second_look`, which the sweep reads.

create or replace function bridge.in_hand(p_xmax xid) returns boolean language sql stable set search_path = pg_catalog, pg_temp
  -- Whether a row that can be seen is being taken away, or is locked, by a transaction that has not ended; asked without waiting for it.
  -- An xmax older than all running transactions is what a rollback or a lock has left.
  return p_xmax <> '0'::xid and age(p_xmax) <= age(pg_snapshot_xmin(pg_current_snapshot())::xid);

create or replace function bridge.made_here(p_xmin xid) returns boolean language sql stable set search_path = pg_catalog, pg_temp
  -- Whether a row that can be seen was written by this very transaction, so that nobody else can have ended it. The 32 bits of an xmin
  -- are completed by those of our own number.
  return coalesce(pg_xact_status(greatest(pg_current_xact_id()::text::bigint
    - (((pg_current_xact_id()::text::bigint - p_xmin::text::bigint + 2147483648) & 4294967295) - 2147483648), 3)::text::xid8) = 'in progress', false);

create or replace function bridge.parents_of(p_ids uuid[], p_on_failure text) returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The numbers of those parents that a job will have to wait for.
  --
  --   p_on_failure  of the job: cancel, run or wait; one that waits also waits for a parent that has failed, until that is redriven
  --
  -- Errors  JB001 an id that never existed, a parent whose end lets the job never run
declare
  v_id uuid;
  v_status text;
  v_parents bigint[];
begin
  select array_agg(j.seq) into v_parents from bridge.job j where j.id = any (p_ids);
  if cardinality(v_parents) = cardinality(p_ids) then
    return v_parents;  -- all live, as a rule: history need not be asked
  end if;
  for v_id, v_status in
    select p.id, f.status from unnest(p_ids) p (id)
    left join bridge.job j on j.id = p.id left join bridge.finished f on f.id = p.id
    where j.id is null and case coalesce(p_on_failure, 'cancel') when 'run' then f.status is null when 'wait' then f.discarded_at is not null or coalesce(f.status, 'cancelled') = 'cancelled'
      else f.status is distinct from 'succeeded' end
  loop
    perform bridge.refuse(format('depends_on names job %s, which %s', coalesce(v_id::text, 'null'), coalesce('ended as ' || v_status, 'does not exist')),
      'name jobs that exist and have not failed'
        || case when v_status is null then '' when p_on_failure = 'wait' then ', or use on_parent_failure => ''run'''
          else ', or use on_parent_failure => ''run'' or ''wait''' end);
  end loop;
  select coalesce(array_agg(p.seq), '{}') into v_parents from (
    select j.seq from bridge.job j where j.id = any (p_ids)
    union
    select f.seq from bridge.finished f where p_on_failure = 'wait' and f.id = any (p_ids) and f.status in ('failed', 'expired')
      and f.discarded_at is null) p;
  return v_parents;
end
$$;

create or replace function bridge.block(p_child bigint, p_run_at timestamptz, p_parents bigint[], p_on_failure text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Have a job, which is in no place, wait for others. A parent that ends before this transaction does sees nothing of its child: the child
  -- is looked at again after the commit, unless its parents are of this transaction too.
begin
  insert into bridge.dependency (parent, child) select p, p_child from unnest(p_parents) p on conflict do nothing;
  insert into bridge.blocked (seq, run_at, on_failure) values (p_child, p_run_at, nullif(p_on_failure, 'cancel'));
  insert into bridge.second_look (child) select p_child
  where (select count(*) from bridge.job j where j.seq = any (p_parents) and bridge.made_here(j.xmin)) < cardinality(p_parents);
end
$$;

create or replace function bridge.link_job(p_id uuid, p_parents uuid[], p_batch uuid, p_now timestamptz) returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Remember what a job depends on, and its batch.
begin
  insert into bridge.link (above, below, kind, made_at)
  select p, p_id, 'depends', p_now from unnest(p_parents) p union select p_batch, p_id, 'batch', p_now where p_batch is not null
  on conflict do nothing;
end
$$;

create or replace function bridge.link_message(p_id uuid, p_links jsonb) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Remember what Celery says of a task: who called it, its group.
begin
  insert into bridge.link (above, below, kind, made_at) select l.value::uuid, p_id, l.key, clock_timestamp() from jsonb_each_text(p_links) l
  on conflict do nothing;
  if bridge.tenants_are_on() then
    perform bridge.inherit_tenant(p_id, p_links);
  end if;
end
$$;

create or replace function bridge.unblock(p_children bigint[], p_parent bigint) returns integer language plpgsql set search_path = pg_catalog, pg_temp
  set enable_bitmapscan = off as $$
  -- Make those of some blocked jobs due that wait for nobody any more.
  --
  --   p_parent  who has ended; the rows beside its own are asked first: parents end about in the order of their numbers, and what has
  --             ended lies in the index until vacuum comes
  --
  -- Returns  how many are due now
  -- Locks    the children that are free (skip locked); what is in other hands is looked at again
  -- Index    dependency_child, from the parent's place in it on, and no further than to the first row: a bitmap, or what Postgres makes
  --          of "exists", would read all that the child waits for
declare
  v_free bigint[];
  v_unsure bigint[];
  v_due bigint[];
begin
  with asked as materialized (
    select u.seq, case
      when (select true from bridge.dependency d where d.child = u.seq and d.parent >= p_parent and d.xmax = 0 order by d.parent limit 1)
        or (select true from bridge.dependency d where d.child = u.seq and d.parent < p_parent and d.xmax = 0 order by d.parent desc limit 1)
        or (select true from bridge.dependency d where d.child = u.seq and not bridge.in_hand(d.xmax) limit 1) then 'waits'
      when (select true from bridge.dependency d where d.child = u.seq limit 1) then 'unsure' else 'free' end as state
    from unnest(p_children) u (seq)
  )
  select array_agg(a.seq) filter (where a.state = 'free'), array_agg(a.seq) filter (where a.state = 'unsure') into v_free, v_unsure from asked a;
  with ours as (
    select b.seq from bridge.blocked b where b.seq = any (v_free) and not exists (select from bridge.replaced r where r.seq = b.seq)
    for update of b skip locked
  ), gone as (
    delete from bridge.blocked b using ours o where b.seq = o.seq returning b.seq, b.run_at
  ), placed as (
    select g.seq, bridge.place(j.seq, j.queue, j.rank, j.size, g.run_at)
    from gone g cross join lateral (select j.seq, j.queue, j.rank, j.size from bridge.job j where j.seq = g.seq offset 0) j
  )
  select array_agg(p.seq) into v_due from placed p;
  insert into bridge.second_look (child)
  select b.seq from bridge.blocked b where b.seq = any (v_unsure || v_free) and not exists (select from bridge.replaced r where r.seq = b.seq);
  return coalesce(cardinality(v_due), 0);
end
$$;

create or replace function bridge.release_children(p_seq bigint, p_status text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A job has ended: those that waited for it alone are due now. When it did not succeed, each as it was asked: it is cancelled, runs
  -- anyway, or waits for the job to be redriven.
  --
  -- Locks    its own rows of dependency, and children that nobody else has in hand (skip locked): an end never waits for another
declare
  v_children bigint[];
begin
  if p_status <> 'succeeded' then
    perform bridge.fail_children(p_seq, p_status);
    return;
  end if;
  with gone as (delete from bridge.dependency d where d.parent = p_seq returning d.child)
  select array_agg(g.child) into v_children from gone g;
  perform bridge.unblock(v_children, p_seq);
end
$$;

create or replace function bridge.fail_children(p_seq bigint, p_status text, p_budget integer default 2000) returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- A job has ended without success: cancel what waits for it, and what waits for that, generation by generation.
  --
  -- Children that wait for a redrive are left, unless it was cancelled or discarded; those that run anyway have one parent less.
  --
  --   p_budget  most jobs to cancel here; the sweep goes on with the rest
declare
  v_status text := p_status;
  v_budget integer := p_budget;
  v_parents bigint[];                        -- of these rows of dependency, which are taken away, to the same length:
  v_children bigint[];
  v_taken bigint[];
  v_child bigint;
begin
  with gone as (
    delete from bridge.dependency d where d.parent = p_seq
      and not (p_status in ('failed', 'expired') and exists (select from bridge.blocked b where b.seq = d.child and b.on_failure = 'wait'))
    returning d.parent, d.child
  )
  select array_agg(g.parent), array_agg(g.child) into v_parents, v_children from gone g;
  while v_children is not null loop
    perform bridge.unblock(array_agg(b.seq), p_seq) from bridge.blocked b where b.seq = any (v_children) and b.on_failure = 'run';
    with ours as (
      select b.seq from bridge.blocked b where b.seq = any (v_children) and b.on_failure is distinct from 'run' limit v_budget
      for update skip locked
    ), gone as (
      delete from bridge.blocked b using ours o where b.seq = o.seq returning b.seq
    )
    select array_agg(g.seq) into v_taken from gone g;
    v_budget := v_budget - coalesce(cardinality(v_taken), 0);
    with kept as (
      insert into bridge.dependency (parent, child)
      select distinct e.parent, e.child from unnest(v_parents, v_children) e (parent, child) join bridge.blocked b on b.seq = e.child
      where b.on_failure is distinct from 'run' returning parent, child
    )
    insert into bridge.second_look (child, parent) select k.child, k.parent from kept k;
    -- Their own children are taken before they end, so that each end finds none: a long line of jobs would be as deep a call.
    with gone as (delete from bridge.dependency d where d.parent = any (v_taken) returning d.parent, d.child)
    select array_agg(g.parent), array_agg(g.child) into v_parents, v_children from gone g;
    foreach v_child in array coalesce(v_taken, '{}') loop
      perform bridge.end_job(v_child, 'cancelled', null, json_build_object('type', 'ParentFailed', 'message',
        format('a job that it depends on ended as %s', v_status), 'traceback', null), null, 0, null, null, null, null);
    end loop;
    v_status := 'cancelled';
  end loop;
end
$$;

create or replace function bridge.settle_child(p_child bigint, p_parents bigint[]) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Look again at a blocked job, some of whose parents may have ended without seeing it, and do what those ends would have done.
  --
  --   p_parents  numbers of the parents to ask; null for all
  --
  -- Returns  1 when it is due now, else 0
  -- Locks    the child, and its rows of dependency on parents that have ended (skip locked): one that is just being run again is asked later
declare
  v_mode text;
  v_status text;
  v_ours bigint[];
  v_done bigint[];
  v_busy bigint[];
  v_moved bigint[];
begin
  select coalesce(b.on_failure, 'cancel') into v_mode from bridge.blocked b where b.seq = p_child for update skip locked;
  if not found then
    insert into bridge.second_look (child) select b.seq from bridge.blocked b where b.seq = p_child;  -- it is in other hands
    return 0;
  end if;
  v_ours := array(select d.parent from bridge.dependency d where d.child = p_child and (p_parents is null or d.parent = any (p_parents))
    and not exists (select from bridge.job j where j.seq = d.parent) for update skip locked);
  select max(e.status) filter (where v_mode <> 'run' and (e.status in ('cancelled', 'discarded') or (v_mode = 'cancel' and e.status in ('failed', 'expired')))),
    array_agg(e.parent) filter (where e.status = 'succeeded' or (v_mode = 'run' and e.status in ('failed', 'expired', 'cancelled', 'discarded'))),
    array_agg(e.parent) filter (where e.status = 'busy'), array_agg(e.parent) filter (where e.status = 'moved')
  into v_status, v_done, v_busy, v_moved from (
    select d.parent, case when j.seq is null and d.parent <> all (v_ours) then 'busy' when j.seq is null then coalesce(f.status, 'moved')
      when j.xmax = 0 then 'lives' when bridge.in_hand(j.xmax) then 'busy' else 'lives' end as status
    from bridge.dependency d left join bridge.job j on j.seq = d.parent
    left join lateral (select case when f.discarded_at is null then f.status else 'discarded' end as status from bridge.finished f
      where j.seq is null and f.seq = d.parent limit 1) f on true
    where d.child = p_child and (p_parents is null or d.parent = any (p_parents))) e;
  if v_status is not null then
    delete from bridge.blocked b where b.seq = p_child;
    perform bridge.end_job(p_child, 'cancelled', null, json_build_object('type', 'ParentFailed', 'message',
      format('a job that it depends on ended as %s', v_status), 'traceback', null), null, 0, null, null, null, null);
    delete from bridge.dependency d where d.child = p_child and d.parent = any (v_ours);
    return 0;
  end if;
  delete from bridge.dependency d where d.child = p_child and d.parent = any (v_done || v_moved);
  insert into bridge.second_look (child, parent) select p_child, p from unnest(v_busy) p;
  if v_moved is not null then
    perform bridge.find_parents(p_child, v_mode);
  end if;
  return bridge.unblock(array[p_child], 0);
end
$$;

create or replace function bridge.find_parents(p_child bigint, p_on_failure text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A parent was retried while its child was being enqueued, and has another number now: the links know its id. All parents that are not
  -- waited for are asked again.
begin
  with missing as (
    insert into bridge.dependency (parent, child)
    select p.seq, p_child from bridge.job c join bridge.link l on l.below = c.id and l.kind = 'depends'
    cross join lateral (select j.seq from bridge.job j where j.id = l.above
      union all select f.seq from bridge.finished f where f.id = l.above and f.status <> 'succeeded' and p_on_failure <> 'run') p
    where c.seq = p_child and not exists (select from bridge.dependency d where d.parent = p.seq and d.child = p_child)
    on conflict do nothing returning parent
  )
  insert into bridge.second_look (child, parent) select p_child, m.parent from missing m;
end
$$;

create or replace function bridge.settle_late(p_limit integer) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Go through the list of children and batches that ends could not settle by themselves, oldest entries first.
  --
  -- Returns  how many jobs are due now
declare
  v_row record;
  v_count integer := 0;
begin
  for v_row in
    with taken as (
      delete from bridge.second_look s where s.pos = any (array (
        select o.pos from bridge.second_look o order by o.pos limit p_limit for update skip locked))
      returning s.pos, s.child, s.parent, s.batch
    )
    select t.child, t.batch, case when bool_and(t.parent is not null) then array_agg(t.parent) end as parents
    from taken t group by t.child, t.batch order by min(t.pos)
  loop
    if v_row.batch is not null then
      perform bridge.end_batch(v_row.batch);
    else
      v_count := v_count + bridge.settle_child(v_row.child, v_row.parents);
    end if;
  end loop;
  return v_count;
end
$$;

create or replace function bridge.follow_retry(p_old bigint, p_new bigint, p_status text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- An ended job is live again under another number. What waits for its redrive waits for that; what the sweep was still to release for a
  -- success is released.
begin
  if p_status = 'succeeded' then
    perform bridge.release_children(p_old, p_status);
  else
    update bridge.dependency d set parent = p_new where d.parent = p_old;
  end if;
end
$$;

create or replace function bridge.make_way(p_id uuid, p_new bigint) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- An ended job gives way to a new one of its id; what waits for its redrive waits for that.
declare
  v_old record;
begin
  if not exists (select from bridge.finished f where f.id = p_id) then  -- as nearly always, and half the price of a delete from all days
    return;
  end if;
  delete from bridge.finished f where f.id = p_id returning f.seq, f.status into v_old;
  if found then
    perform bridge.follow_retry(v_old.seq, p_new, v_old.status);
  end if;
end
$$;

create or replace function bridge.forget_parents(p_before timestamptz, p_dry_run boolean default false, p_limit integer default 2000) returns integer
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A job that still waits for the redrive of one that is not even history any more is cancelled. A cleanup calls it.
  --
  --   p_before  null: nothing is too old; which moment it is does not matter, history says what there is
  --
  -- Returns  how many such jobs
declare
  v_children constant bigint[] := array(select distinct d.child from bridge.dependency d join bridge.blocked b on b.seq = d.child
    where not exists (select from bridge.job j where j.seq = d.parent) and not exists (select from bridge.finished f where f.seq = d.parent)
      and p_before is not null limit p_limit);
  v_child bigint;
begin
  if not p_dry_run then
    foreach v_child in array v_children loop
      if bridge.leave_waiting(v_child) then
        perform bridge.end_job(v_child, 'cancelled', null, '{"type": "ParentFailed", "message": "a job that it depends on is not kept any more",
          "traceback": null}', null, 0, null, null, null, null);
      end if;
    end loop;
    delete from bridge.dependency d where not exists (select from bridge.job j where j.seq = d.parent)
      and not exists (select from bridge.blocked b where b.seq = d.child);
  end if;
  return cardinality(v_children);
end
$$;
