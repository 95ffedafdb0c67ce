-- Waiting for ends in SQL. Programs that can be notified ask bridge.wait_for, and listen.

create or replace function bridge.wait(ids uuid[], timeout interval default '1 minute')
  returns table (id uuid, status text, result json, error json, finished_at timestamptz)
  language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Wait until all of these jobs have ended, or the time is over. It looks again and again, after pauses that grow to a fifth of a second,
  -- because a function cannot be notified; a program LISTENs instead (see bridge.wait_for), as bridge.wait does in Python.
  --
  --   ids      of jobs that are committed
  --   timeout  at most a day. The statement keeps its snapshot for as long, which vacuum waits for: minutes, not hours
  --
  -- Returns  the jobs in the order given, as they are at the end: finished_at is null of one that has not ended
  -- Errors   JB001 the timeout, JB002 an id that is none, JB006 where the wait could never end
declare
  v_deadline timestamptz;
  v_top constant xid8 := pg_current_xact_id_if_assigned();
  v_pause double precision := 0.005;
  v_id uuid;
begin
  if wait.timeout not between interval '0' and interval '1 day' then
    perform bridge.refuse(format('timeout is %s', wait.timeout), 'give an interval up to one day');
  elsif current_setting('transaction_isolation') <> 'read committed' then
    perform bridge.refuse(format('a transaction of isolation %s sees no job end', current_setting('transaction_isolation')),
      'wait in one of isolation read committed', 'JB006');
  end if;
  if bridge.tenants_are_on() then
    perform bridge.require_own(wait.ids);
  end if;
  select i into v_id from unnest(wait.ids) i where not exists (select from bridge.jobs j where j.id = i) limit 1;
  if found or wait.ids is null then
    perform bridge.refuse(format('job %s does not exist', coalesce(v_id::text, 'null')), 'see: select id, status from bridge.jobs', 'JB002');
  end if;
  -- A row that is seen and whose transaction is not over can only be our own. Older ones need no look at their transaction.
  select j.id into v_id from bridge.job j where v_top is not null and j.id = any (wait.ids) and age(j.xmin) <= age(v_top::xid)
    and pg_xact_status((v_top::text::bigint >> 32 << 32 | j.xmin::text::bigint)::text::xid8) = 'in progress' limit 1;
  if found then
    perform bridge.refuse(format('job %s was made in this transaction', v_id), 'commit first: it cannot run before', 'JB006');
  end if;
  v_deadline := clock_timestamp() + coalesce(wait.timeout, interval '1 minute');
  while clock_timestamp() < v_deadline and exists (select from bridge.job j where j.id = any (wait.ids)) loop
    perform pg_sleep(least(v_pause, greatest(extract(epoch from v_deadline - clock_timestamp()), 0.001)));
    v_pause := least(v_pause * 1.5, 0.2);
  end loop;
  return query select j.id, j.status, j.result, j.error, j.finished_at
    from unnest(wait.ids) with ordinality i (id, place) join bridge.jobs j on j.id = i.id order by i.place;
end
$$;
