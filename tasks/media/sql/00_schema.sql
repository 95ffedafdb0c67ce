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

create or replace function media.define_view(p_name text, p_query text) returns void language plpgsql set search_path = '' as $$
  -- Create or replace one view of this schema, only when its text has changed: replacing takes a lock that readers would wait behind.
  --
  --   p_name   the view's name
  --   p_query  its query, whole; columns may only be added at the end
declare
  v_mark constant text := 'text ' || md5(p_query);
begin
  if obj_description(to_regclass('media.' || quote_ident(p_name)), 'pg_class') is not distinct from v_mark then
    return;
  end if;
  execute format('create or replace view media.%I as %s', p_name, p_query);
  execute format('comment on view media.%I is %L', p_name, v_mark);
end
$$;
