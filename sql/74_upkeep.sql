-- Advice to whoever looks after the database: what keeps dead rows alive, what grows without need, which settings of tables differ from
-- ours and why ours are so. Everything here reads, and says a command; none of them is run by itself.

create or replace function bridge.storage_options() returns table (table_name text, options text[], reason text) language sql immutable
  set search_path = pg_catalog, pg_temp
  -- The storage settings of our tables, and why; docs/upkeep.md says the same, and a test compares both with the catalog. The kinds:
  --
  --   hot     rows live seconds: vacuum by a fixed number of dead rows, at full speed, and no statistics, because those of an empty table
  --           would mislead cached plans for ever
  --   updated rows are changed in place again and again, in columns without an index: free room on each page keeps them there
  begin atomic
    with kind (name, options, reason) as (values
      ('hot', array['autovacuum_vacuum_scale_factor=0', 'autovacuum_vacuum_threshold=5000', 'autovacuum_vacuum_cost_delay=0', 'autovacuum_analyze_threshold=2000000000'],
        'rows live seconds: a share of the table says nothing; a claim of 50 jobs reads 2610 pages, 3077 past 5000 dead rows, 3922 past 20000'),
      ('updated', array['fillfactor=50'], 'few rows, updated with every report: half of each page is free for the new versions, so that no index changes'))
    select t.name, k.options, k.reason from unnest(array['ready', 'scheduled', 'blocked', 'dependency', 'second_look', 'held', 'permit', 'chord_part']) t (name)
      join kind k on k.name = 'hot'
    union all select t.name, k.options, k.reason from unnest(array['worker', 'drainer', 'silent_worker', 'tick_state', 'look']) t (name)
      join kind k on k.name = 'updated'
    union all select 'job', k.options || 'toast_tuple_target=4080'::text, k.reason || '; rows of up to half a page lie here as a whole, as in finished' from kind k where k.name = 'hot'
    union all values
      ('inflight', array['fillfactor=60', 'autovacuum_vacuum_scale_factor=0', 'autovacuum_vacuum_threshold=2000', 'autovacuum_vacuum_cost_delay=0',
        'autovacuum_analyze_threshold=2000000000'],
        'as job; each row is updated twice in place (published, running), so 40 of 100 bytes are left free and vacuum comes after 2000'),
      ('bucket', array['fillfactor=50', 'autovacuum_vacuum_scale_factor=0', 'autovacuum_vacuum_threshold=5000', 'autovacuum_vacuum_cost_delay=0',
        'autovacuum_analyze_threshold=2000000000'], 'as job; each claim updates its buckets in place'),
      ('lane', array['fillfactor=70', 'autovacuum_vacuum_scale_factor=0', 'autovacuum_vacuum_threshold=5000', 'autovacuum_vacuum_cost_delay=0',
        'autovacuum_analyze_threshold=2000000000'], 'as job; a turn updates its lane, and an index with it'),
      ('checkpoint', array['fillfactor=50', 'autovacuum_vacuum_scale_factor=0', 'autovacuum_vacuum_threshold=2000', 'autovacuum_vacuum_cost_delay=0'],
        'a run saves again and again, in place; few rows, some of them large'),
      ('schedule', array['fillfactor=70'], 'each slot moves next_at on; an index has it, so room on the page saves the others alone'),
      ('alert', array['fillfactor=70'], 'an alert that stays open is updated at each look'),
      ('alert_state', array['fillfactor=50'], 'one row, updated at each look'),
      ('metric_state', array['fillfactor=50'], 'one row, updated with every snapshot'),
      ('tally', array['fillfactor=50'], 'counters, updated in place again and again'),
      ('chord', array['autovacuum_analyze_threshold=2000000000'], 'mostly empty: statistics of that would mislead cached plans'),
      ('untold', array['autovacuum_vacuum_scale_factor=0', 'autovacuum_vacuum_threshold=2000', 'autovacuum_analyze_threshold=2000000000'], 'as job; rare'),
      ('replaced', array['autovacuum_vacuum_scale_factor=0', 'autovacuum_vacuum_threshold=5000', 'autovacuum_analyze_threshold=2000000000'], 'as job; rare');
  end;

create or replace function bridge.advise_horizon(p_age interval, p_lag bigint)
  returns table (kind text, name text, severity text, found text, remedy text, value numeric) language sql stable set search_path = pg_catalog, pg_temp
  -- What keeps dead rows from being vacuumed: sessions, prepared transactions, replication slots, standbys.
  --
  --   p_age  a transaction may be so old
  --   p_lag  transactions that a slot in use may hold back
  begin atomic
    select 'snapshot', a.pid::text, 'warning', format('pid %s (%s, role %s, %s) has held a snapshot or a transaction id for %s', a.pid,
        coalesce(nullif(a.application_name, ''), a.backend_type), coalesce(a.usename, 'none'), coalesce(a.state, 'no state'), date_trunc('second', x.age)),
      format('select pg_terminate_backend(%s)', a.pid) || case when a.state like 'idle in transaction%'
        then '; so that such sessions end by themselves: alter role ' || quote_ident(a.usename) || ' set idle_in_transaction_session_timeout = ''5min''' else '' end,
      extract(epoch from x.age)
    from pg_catalog.pg_stat_activity a, lateral (select clock_timestamp() - a.xact_start) x (age)
    where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid() and x.age > p_age
      and (a.datname = current_database() or a.backend_type = 'walsender') and a.backend_type <> 'autovacuum worker'
    union all
    select 'prepared', p.gid, 'warning', format('prepared transaction %L of %s is open for %s', p.gid, p.owner, date_trunc('second', clock_timestamp() - p.prepared)),
      format('in database %I: rollback prepared %L (or commit prepared)', p.database, p.gid), extract(epoch from clock_timestamp() - p.prepared)
    from pg_catalog.pg_prepared_xacts p where p.database = current_database() and p.prepared < clock_timestamp() - p_age
    union all
    select 'snapshot', current_user, 'info', format('%s does not see what sessions of other roles hold', current_user), format('grant pg_read_all_stats to %I', current_user), null
    where not pg_has_role('pg_read_all_stats', 'usage')
    union all
    select 'slot', s.slot_name, case when s.wal_status in ('unreserved', 'lost') then 'error' else 'warning' end,
      concat_ws('; ', format('replication slot %s is %s', s.slot_name, case when s.active then 'in use' else 'read by nobody' end),
        'it holds back vacuum by ' || x.lag || ' transactions', 'and ' || pg_size_pretty(x.wal) || ' of WAL', 'its WAL is ' || s.wal_status),
      case when s.active then 'see what keeps its reader' else 'start its reader, or: ' || format('select pg_drop_replication_slot(%L)', s.slot_name) end
        || case when current_setting('max_slot_wal_keep_size') = '-1' then '; alter system set max_slot_wal_keep_size = ''10GB'' bounds the WAL' else '' end,
      coalesce(x.lag, x.wal)
    from pg_catalog.pg_replication_slots s, lateral (select greatest(age(s.xmin), age(s.catalog_xmin)),
        case when not pg_is_in_recovery() then pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) end) x (lag, wal)
    where not s.active or x.lag > p_lag or x.wal > 1073741824 or s.wal_status in ('unreserved', 'lost');
  end;

create or replace function bridge.advise_wraparound()
  returns table (kind text, name text, severity text, found text, remedy text, value numeric) language sql stable set search_path = pg_catalog, pg_temp
  -- Transaction ids that run out: autovacuum begins at autovacuum_freeze_max_age, Postgres stops taking writes near two thousand million.
  begin atomic
    select 'wraparound', x.name, case when x.age > 1200000000 then 'error' else 'warning' end, format('the oldest transaction id of %s is %s transactions old', x.name, x.age),
      x.remedy, x.age::numeric
    from (
      select format('database %I', d.datname), greatest(age(d.datfrozenxid), mxid_age(d.datminmxid)), 'end what holds the horizon (rows snapshot, prepared, slot), then: vacuumdb --freeze '
        || quote_ident(d.datname) from pg_catalog.pg_database d where d.datname = current_database()
      union all
      select c.oid::regclass::text, age(c.relfrozenxid), 'vacuum (freeze) ' || c.oid::regclass from pg_catalog.pg_class c
      where c.relnamespace = 'bridge'::regnamespace and c.relkind = 'r') x (name, age, remedy)
    where x.age > 2 * current_setting('autovacuum_freeze_max_age')::bigint;
  end;

create or replace function bridge.advise_indexes(p_bytes bigint)
  returns table (kind text, name text, severity text, found text, remedy text, value numeric) language sql stable set search_path = pg_catalog, pg_temp
  -- Indexes that are not valid, and those of our tables that have grown far beyond what their rows need.
  --
  -- A page of a B-tree is given back only when it is quite empty, so a table through which millions of rows have passed may keep an index
  -- that its few rows do not fill (Postgres's manual, "Routine Reindexing"). An entry of ours takes 20 to 80 bytes, and pages are half full
  -- at worst after splits: more than 400 bytes a live row in an index from p_bytes on is bloat. Nothing beyond the statistics of
  -- Postgres is read for that, no extension is needed.
  --
  --   p_bytes  smaller ones are left alone
  begin atomic
    select 'invalid_index', i.indexrelid::regclass::text, 'error', format('index %s is not valid: a concurrent build broke off; it is written to and never read', i.indexrelid::regclass),
      format('drop index concurrently %s, if it ends in _ccnew or _ccold; else: reindex index concurrently %1$s', i.indexrelid::regclass), null::numeric
    from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indrelid
    where c.relnamespace = 'bridge'::regnamespace and c.relkind = 'r' and not i.indisvalid
    union all
    select 'index_bloat', x.name, 'info', format('%s takes %s for %s rows of %s', x.name, pg_size_pretty(x.bytes), x.rows, x.table_name),
      format('reindex index concurrently %s', x.name), x.bytes::numeric
    from (select i.indexrelid::regclass::text, c.oid::regclass::text, pg_catalog.pg_relation_size(i.indexrelid), greatest(pg_catalog.pg_stat_get_live_tuples(c.oid), 1)
      from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indrelid join pg_catalog.pg_class n on n.oid = i.indexrelid
        join pg_catalog.pg_am a on a.oid = n.relam and a.amname = 'btree'
      where c.relnamespace = 'bridge'::regnamespace and c.relkind = 'r' and not c.relispartition
        -- without statistics of what came in, after a crash, the number of rows is not known either
        and pg_catalog.pg_stat_get_tuples_inserted(c.oid) > 0) x (name, table_name, bytes, rows)
    where x.bytes >= p_bytes and x.bytes / x.rows > 400;
  end;

create or replace function bridge.advise_vacuum()
  returns table (kind text, name text, severity text, found text, remedy text, value numeric) language sql stable set search_path = pg_catalog, pg_temp
  -- Tables that vacuum does not keep up with, and storage settings that are not ours.
  begin atomic
    select 'vacuum', 'autovacuum', 'error', 'autovacuum is off for the whole server: dead rows stay in the way of every claim',
      'alter system set autovacuum = on; select pg_reload_conf()', null::numeric where current_setting('autovacuum') = 'off'
    union all
    select 'vacuum', s.relid::regclass::text, 'warning', format('%s has %s dead rows, last vacuumed %s', s.relid::regclass, s.n_dead_tup,
        coalesce(date_trunc('second', greatest(s.last_autovacuum, s.last_vacuum))::text, 'never')),
      format('vacuum %s; where that does not help, something holds the horizon (rows snapshot, prepared, slot); where it does, lower autovacuum_naptime', s.relid::regclass),
      s.n_dead_tup::numeric
    from pg_catalog.pg_stat_user_tables s where s.schemaname = 'bridge' and s.n_dead_tup > 200000 and s.n_dead_tup > s.n_live_tup
    union all
    select 'options', 'bridge.' || o.table_name, 'info', format('%s: %s (ours: %s)', o.table_name, coalesce(array_to_string(c.reloptions, ', '), 'default'), array_to_string(o.options, ', ')),
      format('alter table bridge.%I set (%s), because: %s', o.table_name, array_to_string(o.options, ', '), o.reason), null
    from bridge.storage_options() o join pg_catalog.pg_class c on c.oid = to_regclass('bridge.' || o.table_name)
    where not coalesce(c.reloptions, '{}') @> o.options;
  end;

create or replace function bridge.advise_cleanup()
  returns table (kind text, name text, severity text, found text, remedy text, value numeric) language sql stable set search_path = pg_catalog, pg_temp
  -- Cleanups that do not come, or fail; days that were left half detached.
  begin atomic
    select 'cleanup', 'late', 'warning', format('the last cleanup began %s ago', date_trunc('second', clock_timestamp() - l.began_at)),
      'call bridge.cleanup_loop(); then see why neither pg_cron nor a tick does it: bridge doctor', extract(epoch from clock_timestamp() - l.began_at)
    from (select max(l.began_at) as began_at from bridge.cleanup_log l where l.operation = 'cleanup') l where l.began_at < clock_timestamp() - interval '3 days'
    union all
    select 'cleanup', coalesce(l.table_name, ''), case l.status when 'failed' then 'warning' else 'info' end, format('%s could not be cleaned: %s', l.table_name, l.detail),
      'mend it, then: call bridge.cleanup_loop()', null::numeric
    from bridge.cleanup_log l
    where l.cleanup = (select max(c.id) from bridge.cleanup_log c where c.operation = 'cleanup') and (l.status = 'failed' or (l.status = 'left' and l.table_name like 'cron.%'))
    union all
    select 'partition', i.inhrelid::regclass::text, 'warning', format('%s is half detached', i.inhrelid::regclass),
      format('alter table %s detach partition %s finalize', i.inhparent::regclass, i.inhrelid::regclass), null
    from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhparent where c.relnamespace = 'bridge'::regnamespace and i.inhdetachpending;
  end;

create or replace function bridge.upkeep(snapshot_age interval default '5 minutes', slot_lag bigint default 1000000, index_size bigint default 33554432)
  returns table (kind text, name text, severity text, found text, remedy text, value numeric) language sql stable security definer set search_path = pg_catalog, pg_temp
  -- What the database needs of whoever looks after it, worst first; no row when there is nothing to do. Each with a command.
  --
  --   snapshot_age  a transaction may keep dead rows so long
  --   slot_lag      transactions that a replication slot in use may be behind
  --   index_size    bytes from which an index may count as bloated
  --
  -- Returns  severity: error, warning, or info
  begin atomic
    select a.* from (
      select * from bridge.advise_horizon(upkeep.snapshot_age, upkeep.slot_lag)
      union all select * from bridge.advise_wraparound()
      union all select * from bridge.advise_indexes(upkeep.index_size)
      union all select * from bridge.advise_vacuum()
      union all select * from bridge.advise_cleanup()) a (kind, name, severity, found, remedy, value)
    order by array_position(array['error', 'warning', 'info'], a.severity), a.kind, a.value desc nulls last;
  end;
