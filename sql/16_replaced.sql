-- Runs that replace themselves by several tasks, of which the last will have their id (Celery's Task.replace with a chain, a group or a
-- chord). The job lives on: it is blocked until that last task is enqueued, and takes its content then.

do $$
begin
  if to_regclass('bridge.replaced') is null then
    create table bridge.replaced (
      seq   bigint primary key,              -- the job that waits for the last of its replacements, or whose run has just enqueued the first
      since timestamptz not null
    );
    alter table bridge.replaced set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_threshold = 2000000000);
  end if;
end
$$;
