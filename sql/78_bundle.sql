-- Bundles: many small jobs of one task in one message. A worker starts a slice of them in one statement and ends them in one, and runs each
-- through Celery's own tracer. What is known of a job is what is known of one that travels alone, but for the moment within a slice: where a
-- worker dies, whose processes nobody is left to ask, each job of the slice may have begun or not. It goes back uncharged, and alone.

do $$
begin
  if not exists (select from pg_catalog.pg_attribute a where a.attrelid = 'bridge.worker'::regclass and a.attname = 'bundles') then
    alter table bridge.worker add column bundles jsonb;  -- {task: most jobs of one message, or why never}; null: it knows no bundles
    alter table bridge.queue add column bundle integer;  -- most jobs of one message; null: as their tasks say
    alter table bridge.inflight add column together boolean;  -- started with others of its bundle, and perhaps not begun
    alter table bridge.job add column alone boolean;  -- in no bundle any more: one that it was in was lost
  end if;
end
$$;

create or replace function bridge.bundles(p_queue text) returns table (task text, jobs integer, children integer) language plpgsql stable
  security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- How many jobs one message of a queue may have, by task: the least that any of its workers says, else what the queue says.
  --
  -- Returns  a row a task, one without a name for all others; no rows while a worker consumes the queue that knows no bundles, or none does.
  --          children is how many jobs all workers together run at once: there should be as many messages as that, or more
declare
  v_children integer;
  v_know boolean;
begin
  select sum(w.concurrency)::integer, bool_and(w.bundles is not null) into v_children, v_know from bridge.worker w
  where w.lost_at is null and w.stopped_at is null and w.seen_at > clock_timestamp() - bridge.seconds('worker_lost') and p_queue = any (w.queues);
  if v_know is not true or bridge.silent_workers(p_queue, clock_timestamp()) is not null then
    return;
  end if;
  return query
  select b.key, min(case when jsonb_typeof(b.value) = 'number' then b.value::text::integer else 0 end), v_children
  from bridge.worker w cross join jsonb_each(w.bundles) b
  where w.lost_at is null and w.stopped_at is null and w.seen_at > clock_timestamp() - bridge.seconds('worker_lost') and p_queue = any (w.queues)
  group by b.key
  union all
  select null, q.bundle, v_children from bridge.queue q where q.name = p_queue and q.bundle is not null;
end
$$;

create or replace function bridge.alone(p_seqs bigint[]) returns bigint[] language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Which of these jobs go into no bundle any more. A question of its own, because a column more of what a claim returns would end drainers
  -- of an older release whose prepared claims have the columns that there were.
  --
  -- Index    job_pkey
begin
  return (select coalesce(array_agg(j.seq), '{}'::bigint[]) from bridge.job j where j.alone and j.seq = any (p_seqs));
end
$$;

create or replace function bridge.unbundled() returns table (task text, option text) language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp as $$
  -- Tasks that ask for bundles and get none, as living workers say, each with its option that works by whole messages.
begin
  return query
  select distinct b.key, b.value #>> '{}' from bridge.worker w cross join jsonb_each(w.bundles) b
  where w.lost_at is null and w.stopped_at is null and jsonb_typeof(b.value) = 'string' order by 1;
end
$$;

create or replace function bridge.set_bundle(queue text, jobs integer default null) returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp as $$
  -- Say how many jobs of a queue one message may have, for tasks that do not say it themselves by their option bridge_bundle.
  --
  --   jobs  null: one, as ever; 1 to 1000
  --
  -- Errors  JB001 when the queue is no name, or jobs is out of bounds
declare
  v_name constant text := (bridge.scope(set_bundle.queue, null, false)).name;
begin
  if jobs not between 1 and 1000 then
    perform bridge.refuse(format('jobs is %s', jobs), 'give 1 to 1000, or null for one');
  end if;
  insert into bridge.queue as q (name, bundle) values (v_name, set_bundle.jobs)
  on conflict (name) do update set bundle = excluded.bundle;
end
$$;

create or replace function bridge.start_many(p_seqs bigint[], p_tokens uuid[], p_worker uuid, p_pid integer, p_runs uuid[]) returns bigint[]
  language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
  -- The start fence for a slice of a bundle: of all copies of each delivery, one starts. Asked again with the same runs it says the same,
  -- and begins their time anew; one that somebody has cancelled meanwhile ends here, because nothing of it has begun.
  --
  --   p_seqs            in ascending order; p_tokens and p_runs belong to them, one each
  --   p_worker, p_pid, p_runs  as in bridge.start
  --
  -- Returns  the numbers of those that may run
  -- Errors   23514 when no partition holds today: call bridge.make_days and repeat
  -- Locks    the rows in the order of their numbers, as bridge.mark_published
declare
  v_together constant boolean := nullif(cardinality(p_seqs) > 1, false);
  v_started bigint[];
  v_keys bigint[];
  v_forced boolean;
begin
  with started as (
    update bridge.inflight i set state = 'running', run = p_runs[array_position(p_seqs, i.seq)], worker = p_worker, pid = p_pid,
      started_at = clock_timestamp(), missing_since = null, taken_by = null,
      pos = case when i.taken_by is null then i.pos else nextval('bridge.inflight_pos_seq') end, together = v_together
    where i.seq = any (p_seqs) and i.token = p_tokens[array_position(p_seqs, i.seq)] and i.state in ('claimed', 'published')
    returning i.seq, i.copied or i.published_at is null as forced, i.frees_key
  )
  select coalesce(array_agg(s.seq), '{}'), array_agg(s.seq) filter (where s.frees_key), bool_or(s.forced) into v_started, v_keys, v_forced from started s;
  if v_keys is not null then
    perform bridge.free_key(k) from unnest(v_keys) k order by k;
  end if;
  if cardinality(v_started) < cardinality(p_seqs) then
    v_started := v_started || bridge.start_again(array (select s from unnest(p_seqs) s where s <> all (v_started)), p_runs);
  elsif not v_forced then
    perform set_config('synchronous_commit', 'off', true);
  end if;
  return v_started;
end
$$;

create or replace function bridge.start_again(p_seqs bigint[], p_runs uuid[]) returns bigint[] language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Of a slice, what has been started before and not begun: it goes on, or ends when somebody has cancelled it.
  --
  -- Returns  the numbers of those that go on
declare
  v_row bridge.inflight;
  v_seqs bigint[] := '{}'::bigint[];
begin
  for v_row in
    select i.* from bridge.inflight i where i.seq = any (p_seqs) and i.run = any (p_runs) and i.state = 'running' order by i.seq for update
  loop
    if v_row.cancelled_at is null then
      update bridge.inflight i set started_at = clock_timestamp() where i.seq = v_row.seq;
      v_seqs := v_seqs || v_row.seq;
    else
      delete from bridge.inflight i where i.seq = v_row.seq;
      perform bridge.end_job(v_row.seq, 'cancelled', null, null, null, 0, null, v_row.run, v_row.worker, null);
    end if;
  end loop;
  return v_seqs;
end
$$;

create or replace function bridge.finish_many(p_seqs bigint[], p_runs uuid[], p_tokens uuid[], p_ids uuid[], p_results text[], p_outcomes text[])
  returns bigint[] language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
  set jit = off as $$
  -- End many jobs that have succeeded, each by the run that has it, as bridge.finish does one.
  --
  --   p_seqs  in ascending order; the other arrays belong to them, one each
  --   p_results, p_outcomes  JSON, or null
  --
  -- A number comes more than once where a process has run a job again after somebody had lost it.
  --
  -- Returns  the places, from 1, of those whose runs have been superseded; their outcomes are kept aside
  -- Errors   23514 as in bridge.finish; nothing of them is written then
  -- Locks    the rows in the order of their numbers, as bridge.mark_published
declare
  v_gone record;
  v_late integer[];
  v_followed record;
begin
  with taken as (
    delete from bridge.inflight i where i.seq = any (p_seqs) and (i.run = any (p_runs) or (i.run is null and i.token = any (p_tokens)))
    returning i.seq, i.worker, i.progress, coalesce(i.started_at, i.published_at, i.claimed_at) as started_at,
      case when i.run is null then array_position(p_tokens, i.token) else array_position(p_runs, i.run) end as at
  ), gone as (
    -- Counted, so that all of them are taken before the first job's row: rows in flight come first in the order of locks.
    delete from bridge.job j using taken t where j.seq = any (p_seqs) and j.seq = t.seq and (select count(*) from taken) > 0
    returning j.*, t.worker, t.progress, t.started_at, t.at
  ), kept as (
    insert into bridge.finished (seq, id, task_id, task, queue, rank, args, kwargs, embed, payload, content_type, content_encoding, headers,
      properties, size, max_attempts, backoff, attempts, losses, unique_key, expires_at, run_at, created_at, finished_at, started_at,
      status, result, progress, run, worker, outcome, chord, options, deadline, batch, serial_key)
    select g.seq, g.id, g.task_id, g.task, g.queue, g.rank, g.args, g.kwargs, g.embed, g.payload, g.content_type, g.content_encoding, g.headers,
      g.properties, g.size, g.max_attempts, g.backoff, g.attempts + 1, g.losses,
      g.unique_key, g.expires_at, g.run_at, g.created_at, clock_timestamp(), g.started_at, 'succeeded', p_results[g.at]::json, g.progress,
      p_runs[g.at], g.worker, p_outcomes[g.at]::jsonb, g.chord, g.options, g.deadline, g.batch, g.serial_key
    from gone g
  )
  select coalesce(array_agg(g.seq), '{}') as seqs, array_agg(g.id) as ids, coalesce(array_agg(g.at), '{}') as places,
    bool_or(g.unique_key is not null or g.chord is not null or g.batch is not null or g.options ? 'webhook') as followed
  into v_gone from gone g;
  -- A statement of its own, as in bridge.let_go.
  if v_gone.followed or exists (select from bridge.callback) or exists (select from bridge.dependency d where d.parent = any (v_gone.seqs))
    or exists (select from bridge.waiter w where w.id = any (v_gone.ids)) or exists (select from bridge.checkpoint c where c.id = any (v_gone.ids))
  then
    for v_followed in
      select f.seq, f.id, f.unique_key, f.chord, f.headers, f.options, f.batch
      from unnest(v_gone.seqs, v_gone.ids) e (seq, id) join bridge.finished f on f.seq = e.seq and f.id = e.id order by f.seq
    loop
      perform bridge.let_go(v_followed.seq, v_followed.id, v_followed.unique_key, 'succeeded', v_followed.chord,
        case when v_followed.chord is not null then (v_followed.headers->>'group_index')::integer end,
        coalesce(v_followed.options ? 'webhook', false), v_followed.batch);
    end loop;
  end if;
  if cardinality(v_gone.seqs) < cardinality(p_seqs) then
    v_late := array (select g from generate_series(1, cardinality(p_seqs)) g where g <> all (v_gone.places));
    perform bridge.keep_late(p_seqs[l], p_runs[l], p_results[l]::json, null, p_ids[l]) from unnest(v_late) l;
  end if;
  return coalesce(v_late, '{}');
end
$$;

create or replace function bridge.unbundle(p_tokens uuid[], p_worker uuid, p_pid integer default null, p_alone boolean default true)
  returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Give back what of a bundle has not been run: it is due again at once, uncharged. What this worker's process had started with others is
  -- among it, because it had not begun.
  --
  --   p_tokens         the deliveries
  --   p_worker, p_pid  who had started some of them; p_pid null where nobody knows the process
  --   p_alone          in no bundle any more, because something in this one ended its process
  --
  -- Returns  how many
  -- Errors   23514 when no partition holds today: call bridge.make_days and repeat
  -- Locks    their rows, in the order of their numbers; runs that nobody has in hand (skip locked)
declare
  v_row bridge.inflight;
  v_seqs bigint[];
  v_count integer;
begin
  if p_alone then
    v_seqs := array (select i.seq from bridge.inflight i where i.token = any (p_tokens) and i.state <> 'running' order by i.seq for update);
    update bridge.job j set alone = true where j.seq = any (v_seqs);
  end if;
  v_count := bridge.release(p_tokens);
  for v_row in
    delete from bridge.inflight i where i.seq = any (array (
      select o.seq from bridge.inflight o
      where o.token = any (p_tokens) and o.state = 'running' and o.worker = p_worker and (p_pid is null or o.pid = p_pid)
      order by o.seq for update skip locked))
    returning i.*
  loop
    if p_alone then
      update bridge.job j set alone = true where j.seq = v_row.seq;
    end if;
    perform bridge.put_back(v_row);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

create or replace function bridge.put_back(p_row bridge.inflight) returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A run that has perhaps not begun is over: its job is due again, or ends when somebody has cancelled it. Returns the job's new status.
declare
  v_job bridge.job;
begin
  if p_row.cancelled_at is not null then
    perform bridge.end_job(p_row.seq, 'cancelled', null, null, null, 0, null, p_row.run, p_row.worker, null);
    return 'cancelled';
  end if;
  v_job := bridge.note_attempt(p_row, 'released', null, clock_timestamp(), 'the bundle that it was in came to its end before it');
  perform bridge.place(v_job.seq, v_job.queue, v_job.rank, v_job.size, clock_timestamp());
  return 'queued';
end
$$;
