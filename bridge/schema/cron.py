"""pg_cron where it lives in another database of the cluster, and what is to be done with its entries."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import conninfo
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Entry", "plan", "register_elsewhere", "until_heard"]

_CONNECT = 5  # seconds
# Whether pg_cron's launcher has read its table since a moment; unknown to roles that may not see its state.
_HEARD = "select bool_and(state_change > %s) from pg_stat_activity where backend_type = 'pg_cron launcher'"
_HEARD_EVERY, _HEARD_TRIES = 0.25, 12  # seconds, and how often: the launcher looks once a second
_FOUND = """
    select coalesce(jsonb_agg(to_jsonb(e)), '[]') from (
      select distinct on (c.jobname) c.jobname as name, c.schedule, c.command, c.username = current_user as ours
      from cron.job c where c.jobname like 'bridge-%' order by c.jobname, c.username = current_user desc) e"""
_REPEAT = """
    select cron.schedule_in_database(c.jobname, c.schedule, c.command, c.database) from cron.job c
    where c.username = current_user and c.jobname = any (%s)"""
# Making entries for other databases is granted to nobody but superusers.
_LACKS = """
    select string_agg(format('grant %s to %I', g.lacking, current_user), '; ' order by g.place) from (
      select 1, 'usage on schema cron' from pg_namespace n where n.nspname = 'cron' and not has_schema_privilege(n.oid, 'usage')
      union all
      select 2, format('execute on function cron.%I(%s)', p.proname, oidvectortypes(p.proargtypes))
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where n.nspname = 'cron' and (p.proname, p.pronargs) in (('schedule', 3), ('schedule_in_database', 6))
        and not has_function_privilege(p.oid, 'execute')
    ) g (place, lacking)"""


class Entry(NamedTuple):
    """What one of our entries will be in pg_cron's table; add, change or keep; and what to run for that in pg_cron's database."""

    name: str
    schedule: str
    command: str
    action: str
    statement: str


def plan(connection: psycopg.Connection, database: str | None = None) -> list[Entry]:
    """What is to be done so that pg_cron ticks; empty where it is not there, or this role may not look into it.

    Args:
        connection: to our database, with the schema of this release.
        database: the one that pg_cron lives in, when it is another one.
    """
    if database is not None:
        with _connect(connection, database) as there:
            version = _version(there)
            return [] if version is None or _one(there, _LACKS) else list(_plan(connection, there, version))
    version = _version(connection)
    return [] if version is None or _one(connection, "select bridge.cron_lacks()") else list(_plan(connection, connection, version))


def register_elsewhere(connection: psycopg.Connection, database: str) -> str:
    """Make our entries in the pg_cron of another database of the cluster; what operators changed there stays.

    Args:
        connection: to our database; no transaction is open.
        database: the one that pg_cron lives in.

    Returns:
        One sentence on what drives the tick now, and what to do where that could be better.
    """
    try:
        with _connect(connection, database) as there:
            return _register(connection, there, database)
    except psycopg.Error as error:
        return f"pg_cron of database {database} refuses our entries: {str(error).strip().splitlines()[0]}: the drainer ticks"


def _register(connection: psycopg.Connection, there: psycopg.Connection, database: str) -> str:
    version = _version(there)
    if version is None:
        return f"pg_cron is not created in database {database}: the drainer ticks; to change that, there: create extension pg_cron"
    lacks = _one(there, _LACKS)
    if lacks:
        return (
            f"pg_cron {version} of database {database} is not this role's to use: the drainer ticks; to change that, there: {lacks}; "
            f"then bridge install --cron-database {database}"
        )
    entries = list(_plan(connection, there, version))
    with there.transaction():
        for entry in entries:
            if entry.action != "keep":
                there.execute(entry.statement.encode())
    names = [entry.name for entry in entries]
    until_heard(there, lambda: there.execute(_REPEAT, (names,)).rowcount > 0)
    ticks = "by seconds" if entries[0].schedule.endswith("seconds") else "by a loop within each minute"
    return f"pg_cron {version} of database {database} ticks {ticks}"


def until_heard(connection: psycopg.Connection, tell: Callable[[], bool]) -> None:
    """Repeat to pg_cron what is in its table until its launcher has read it: beside an install it may miss that (see bridge.announce_cron).

    Args:
        connection: to the database that pg_cron lives in; no transaction is open.
        tell: writes entries as they are, and commits; false when there are none.
    """
    since = _one(connection, "select clock_timestamp()")
    for _ in range(_HEARD_TRIES):
        if not tell() or connection.execute(_HEARD, (since,)).fetchone() == (True,):
            break
        time.sleep(_HEARD_EVERY)


def _plan(connection: psycopg.Connection, there: psycopg.Connection, version: str) -> Iterator[Entry]:
    query = "select name, schedule, command, action, statement from bridge.cron_plan(%s, %s, %s)"
    for row in connection.execute(query, (version, Jsonb(_one(there, _FOUND)), there is not connection)):
        yield Entry(*row)


def _connect(connection: psycopg.Connection, database: str) -> psycopg.Connection:
    info = connection.info
    dsn = conninfo.make_conninfo(info.dsn, dbname=database, password=info.password, connect_timeout=_CONNECT)
    return psycopg.connect(dsn, autocommit=True)


def _version(connection: psycopg.Connection) -> str | None:
    version: str | None = _one(connection, "select max(e.extversion) from pg_extension e where e.extname = 'pg_cron'")
    return version


def _one(connection: psycopg.Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None
