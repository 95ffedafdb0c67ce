-- The schema itself, and the guard that keeps an older release from writing over a newer one.
--
-- Apply with `bridge install`, or `cat sql/*.sql | psql -1 "$DSN"`; repeating it is safe, also under load: tables and indexes are made
-- behind a catalog check, because "if not exists" waits for live traffic even when there is nothing to do.

-- Whoever comes later waits behind a lock that is waited for, so not for long; below deadlock_timeout, so that of two who wait for each
-- other this gives way. `bridge install` tries again by itself.
set local lock_timeout = '800ms';
set local client_min_messages = warning;

-- What somebody has in schema public must not be taken for an operator or a function that is meant here. The last file puts it back.
select set_config('bridge.search_path', 'was ' || current_setting('search_path'), true), set_config('search_path', 'pg_catalog, pg_temp', true);

create schema if not exists bridge;

do $$
declare
  v_installed text;
begin
  if to_regprocedure('bridge.version()') is not null then
    execute 'select bridge.version()' into v_installed;
    if string_to_array(v_installed, '.')::int[] > string_to_array('0.2.0', '.')::int[] then
      raise exception using errcode = 'JB005',
        message = format('schema is at %s, these files are 0.2.0', v_installed),
        hint = 'install with the newer release; going back is not supported';
    end if;
  end if;
end
$$;

create or replace function bridge.version() returns text language sql immutable parallel safe set search_path = pg_catalog, pg_temp
  -- The release that this schema belongs to; every process compares it with its own when it starts.
  return '0.2.0';

create or replace function bridge.serves_from() returns text language sql immutable parallel safe set search_path = pg_catalog, pg_temp
  -- The oldest release whose processes work on this schema: those from there on may stand beside it while they are being replaced. It is
  -- raised in the release after the one in which what the older ones call is taken away.
  return '0.1.0';

create or replace function bridge.new_id() returns uuid language plpgsql volatile parallel safe set search_path = pg_catalog, pg_temp as $$
  -- A time-ordered random id (the layout of RFC 9562, version 7): neighbours in time are neighbours in every index.
begin
  return encode(set_byte(overlay(uuid_send(gen_random_uuid())
      placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
    6, (get_byte(uuid_send(gen_random_uuid()), 6) & 15) | 112), 'hex')::uuid;
end
$$;

create or replace function bridge.define_view(p_name text, p_query text, p_schema text default 'bridge') returns void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- Create or replace a view, only when its text has changed: replacing takes a lock that readers would wait behind.
  --
  --   p_name    the view's name
  --   p_query   its query, whole; columns may only be added at the end
  --   p_schema  where it stands; pipelines give their own
declare
  v_mark constant text := 'text ' || md5(p_query);
begin
  if obj_description(to_regclass(format('%I.%I', p_schema, p_name)), 'pg_class') is not distinct from v_mark then
    return;
  end if;
  execute format('create or replace view %I.%I as %s', p_schema, p_name, p_query);
  execute format('comment on view %I.%I is %L', p_schema, p_name, v_mark);
end
$$;
