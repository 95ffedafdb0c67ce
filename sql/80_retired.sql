-- What earlier releases had and this one has no more, dropped in the transaction that installs the rest. What a process of 0.1.0 calls
-- stays while bridge.serves_from() names that release.

drop function if exists bridge.cleanup(boolean, timestamptz);
drop function if exists bridge.clean_cron_log(timestamptz, boolean);
drop function if exists bridge.clean_notes(timestamptz, boolean, integer);
drop function if exists bridge.clean_checkpoints(timestamptz, boolean);
drop function if exists bridge.forget_links(timestamptz);
drop function if exists bridge.drop_days(date, timestamptz, boolean);
drop function if exists bridge.drop_table_days(text, text, date, timestamptz);
drop function if exists bridge.outliving(text, text, date, timestamptz);
drop function if exists bridge.old_days(text, date);
drop function if exists bridge.kept_condition(text, timestamptz);
drop function if exists bridge.check_rows(bridge.job_request[], integer[], text[], text[], text[]);
drop function if exists bridge.take_dead(uuid);  -- bridge.take_ended
-- It has got the arguments expected_duration, function and webhook.
drop function if exists bridge.schedule(text, text, text, jsonb, jsonb, text, text, integer, integer, jsonb, interval, interval, jsonb, interval,
  timestamptz, timestamptz, text, text, interval, boolean);
drop function if exists bridge.set_webhook(text, text, text, text, text[], text, boolean, text);  -- without headers
drop function if exists bridge.start(bigint, uuid, uuid, integer);  -- without the run's id
drop function if exists bridge.lose(bigint, uuid, text);  -- whoever had begun it
drop function if exists bridge.end_delivery(bigint, uuid, uuid, text, json, boolean, jsonb);
drop function if exists bridge.report_worker(uuid, text, integer, text, integer, text[], text, uuid[], timestamptz);  -- without bundles
drop function if exists bridge.enqueue_message(uuid, text, text, text, smallint, json, json, json, bytea, text, text, json, json, timestamptz,
  timestamptz, text, jsonb, jsonb);  -- without whether its id is fresh
drop function if exists bridge.report_drainer(uuid, text, integer, text, bigint, timestamptz, jsonb, boolean);  -- without who listens

-- A function of ours has one signature. With another beside it, of a version that was never released for example, calls of both are
-- ambiguous: what this install has not just made goes.
do $$
declare
  v_other regprocedure;
begin
  for v_other in
    select o.oid::regprocedure from pg_catalog.pg_proc o where o.pronamespace = 'bridge'::regnamespace and exists (
      select from pg_catalog.pg_proc n where n.pronamespace = o.pronamespace and n.proname = o.proname and age(n.xmin) < age(o.xmin))
  loop
    execute format('drop routine %s', v_other);
  end loop;
end
$$;
