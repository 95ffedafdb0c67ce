-- Workers without our plugin, as there are on the first day of a move and when one is forgotten. They run jobs and report nothing. A job
-- that one of them may have taken is never published again by itself: it would run for ever. It is set aside until somebody decides.

create or replace function bridge.may_look() returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set jit = off as $$
  -- Whether the caller should ask all workers now who consumes which queue: something is in flight, and nobody has asked within the
  -- last 4 seconds. Of several drainers one gets true.
  --
  -- Index  inflight_live, inflight_aside
begin
  update bridge.look l set asked_at = clock_timestamp()
  where l.asked_at < clock_timestamp() - interval '4 seconds' and (exists (select from bridge.flights() f cross join lateral (
      select from bridge.inflight i where i.queue = f.queue and i.pos >= f.low and i.taken_by is null limit 1) i)
    or exists (select from bridge.inflight i where i.taken_by is not null));
  return found;
end
$$;

create or replace function bridge.note_silent(p_names text[], p_queues text[]) returns void language plpgsql
  security definer set search_path = pg_catalog, pg_temp as $$
  -- Keep what a look has seen, as far as it is of use: the workers without our plugin, none or more. One that has it runs nothing that
  -- it has not started in Postgres, so that what it lets fall may be published again.
  --
  --   p_names, p_queues  one entry for each queue that such a worker consumes
begin
  insert into bridge.silent_worker as s (name, queue, seen_at)
  select a.name, a.queue, clock_timestamp() from unnest(p_names, p_queues) a (name, queue)
  group by a.queue, a.name order by a.queue, a.name
  on conflict on constraint silent_worker_is_seen_in_one_row do update set seen_at = excluded.seen_at;
  update bridge.look set answered_at = clock_timestamp();
end
$$;

create or replace function bridge.set_aside(p_tokens uuid[]) returns table (queue text, jobs bigint) language plpgsql security definer
  set search_path = pg_catalog, pg_temp as $$
  -- Give up waiting for published jobs whose messages are gone where a worker may have taken them that reports nothing. They stay
  -- published, outside of the window, and show in unreported_jobs. Should such a message come back, it starts its job as ever.
  --
  -- Returns  how many, by queue
  -- Locks    their rows, in the order of their numbers
begin
  return query
  with taken as (
    update bridge.inflight i set taken_by = bridge.silent_workers(i.queue, i.published_at)
    where i.seq = any (array (
        select o.seq from bridge.inflight o where o.token = any (p_tokens) and o.state = 'published' order by o.seq for update))
      and i.missing_since is not null and i.taken_by is null and bridge.silent_workers(i.queue, i.published_at) is not null
    returning i.queue, i.seq, i.permits
  ), freed as (
    update bridge.permit p set freed = true from taken t where p.bucket = any (t.permits) and p.seq = t.seq
  )
  select t.queue, count(*) from taken t group by t.queue;
end
$$;

create or replace function bridge.settle_unreported(ran boolean, task text default null, queue text default null, max_jobs integer default 1000)
  returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Say what became of jobs that workers without our plugin took (see unreported_jobs), oldest first.
  --
  --   ran          true: they ran; each ends as succeeded, without a result, and what waits for it goes on
  --                false: they did not, or may run again; each is due at once, and an old message of it is refused
  --   task, queue  only of these; null for all
  --
  -- Returns  how many jobs
  -- Errors   JB001 when max_jobs is not 1 to 100000
declare
  v_row record;
  v_count integer := 0;
begin
  perform bridge.check_max_jobs(settle_unreported.max_jobs);
  for v_row in
    select i.seq, i.token, i.taken_by from bridge.inflight i join bridge.job j on j.seq = i.seq
    where i.state = 'published' and i.taken_by is not null and (settle_unreported.task is null or j.task = settle_unreported.task)
      and (settle_unreported.queue is null or j.queue = settle_unreported.queue)
    order by i.published_at limit settle_unreported.max_jobs for update of i skip locked
  loop
    if ran then
      delete from bridge.inflight i where i.seq = v_row.seq;
      perform bridge.end_job(v_row.seq, 'succeeded', null, null, jsonb_build_object('taken_by', v_row.taken_by), 1, null, null, null, null);
    else
      perform bridge.lose(v_row.seq, v_row.token, 'taken by a worker that reports nothing');
    end if;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
