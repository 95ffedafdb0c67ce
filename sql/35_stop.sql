-- What a worker that stops gives back: deliveries that it has not begun, and runs that its stopping broke off.

create or replace function bridge.release(p_tokens uuid[]) returns integer language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- A worker that stops gives back the deliveries it holds and has not begun: they are due again at once, uncharged. Their tokens die with
  -- the rows, so a message that it still puts back into the broker is a copy that starts nothing.
  --
  -- Returns  how many
  -- Locks    their rows, in the order of their numbers
declare
  v_count integer;
begin
  with freed as (
    delete from bridge.inflight i where i.seq = any (array (
      select o.seq from bridge.inflight o where o.token = any (p_tokens) and o.state <> 'running' order by o.seq for update))
    returning i.seq
  ), placed as (
    select bridge.make_ready(j.seq, j.queue, j.rank, j.size, p_first => true)
    from freed f cross join lateral (select j.seq, j.queue, j.rank, j.size from bridge.job j where j.seq = f.seq offset 0) j
  )
  select count(*) into v_count from placed;
  return v_count;
end
$$;

create or replace function bridge.stop_worker(p_id uuid) returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- A worker says good-bye. Its processes have ended: what it held, and runs that its stopping broke off, are due again at once and cost
  -- neither an attempt nor a loss.
  --
  -- Returns  how many jobs it gave back
  -- Errors   23514 when no partition holds today: call bridge.make_days and repeat
  -- Locks    its row of worker, then what it holds, in the order of the numbers; runs that nobody has in hand (skip locked) come last, so
  --          that it waits for nobody while it has one
declare
  v_row bridge.inflight;
  v_held uuid[];
  v_count integer;
begin
  select w.holding into v_held from bridge.worker w where w.id = p_id;
  update bridge.worker w set stopped_at = clock_timestamp(), seen_at = clock_timestamp(), holding = '{}' where w.id = p_id;
  v_count := bridge.release(coalesce(v_held, '{}'));
  -- Not what a transaction is completing that its process has left behind: the sweep takes that, should it roll back.
  for v_row in
    delete from bridge.inflight i where i.seq = any (array (
      select o.seq from bridge.inflight o where o.worker = p_id and o.state = 'running' for update skip locked))
    returning i.*
  loop
    if v_row.cancelled_at is null then
      perform bridge.again(v_row, 'released', null, clock_timestamp());
    elsif v_row.together then
      perform bridge.put_back(v_row);
    else
      perform bridge.end_job(v_row.seq, 'cancelled', null, null, null, 1, v_row.started_at, v_row.run, v_row.worker, v_row.progress);
    end if;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
