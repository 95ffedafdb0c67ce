-- An upgrade under load: every table that a later file changes is taken at one moment, before anything is changed. Taken one after the other,
-- somebody's claim or report would hold the next and wait for the one before, at every try.

do $$
begin
  if to_regclass('bridge.inflight') is null
    or exists (select from pg_catalog.pg_attribute a where a.attrelid = to_regclass('bridge.worker') and a.attname = 'bundles')
  then
    return;
  end if;
  for v_try in 1 .. 40 loop
    begin
      lock table bridge.inflight, bridge.job, bridge.ready, bridge.finished, bridge.attempt, bridge.queue, bridge.worker in access exclusive mode;
      return;
    exception when lock_not_available or deadlock_detected then
      if v_try = 40 then
        raise;
      end if;
      perform pg_sleep(random() * 0.3);  -- what has waited behind this goes on
    end;
  end loop;
end
$$;
