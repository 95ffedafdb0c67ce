-- The media pipeline: a row in media.uploads becomes a job, under the names that its runbooks use. Everything that makes a job a job
-- (attempts, retries, progress, history) is bridge's; here are only names, pace and alerts.
--
-- Apply after `bridge install`, with `bridge install --pipeline media` or `cat tasks/media/sql/*.sql | psql -1 "$DSN"`; repeating it is
-- safe, and keeps what an operator has set.

set local lock_timeout = '5s';
set local client_min_messages = warning;

do $$
begin
  if to_regprocedure('bridge.version()') is null then
    raise exception using errcode = 'JB005', message = 'schema bridge is not installed in this database', hint = 'run "bridge install" first';
  end if;
end
$$;

create schema if not exists media;
