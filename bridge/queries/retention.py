"""How long ended jobs are kept, cleanups and their log, advice on storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from bridge.errors import InvalidArgumentError
from bridge.queries.answers import records, value
from bridge.queries.connection import endless, stands_alone, translated

if TYPE_CHECKING:
    from datetime import timedelta

    from bridge.queries.connection import Connection

__all__ = [
    "begin_cleanup",
    "cleanup",
    "cleanups",
    "create_archive",
    "remove_retention",
    "retentions",
    "set_archive",
    "set_retention",
    "step",
    "tables_of",
    "under_way",
    "upkeep",
]

_COLUMNS = "operation, table_name, status, found, deleted, kept, archived, detail"


def set_retention(connection: Connection, queue: str | None, status: str | None, keep: timedelta | None) -> str:
    """Call ``bridge.set_retention``; created, changed or unchanged."""
    query = "select bridge.set_retention(%(queue)s::text, %(status)s::text, %(keep)s::interval)"
    return str(value(connection, query, {"queue": queue, "status": status, "keep": keep}))


def remove_retention(connection: Connection, queue: str | None, status: str | None) -> bool:
    """Call ``bridge.remove_retention``; False when there was no such rule."""
    query = "select bridge.remove_retention(%(queue)s::text, %(status)s::text)"
    return bool(value(connection, query, {"queue": queue, "status": status}))


def retentions(connection: Connection) -> list[dict[str, Any]]:
    """All rows of the view ``bridge.retentions``, the most special first."""
    query = """
        select * from bridge.retentions
        order by array_position(array['queue and status', 'queue', 'status', 'dead_retention', 'retention'], about), queue, status"""
    return records(connection, query, {})


def create_archive(connection: Connection, name: str) -> str:
    """Call ``bridge.create_archive``; the table's name."""
    return str(value(connection, "select bridge.create_archive(%(name)s)::text", {"name": name}))


def set_archive(connection: Connection, archive: str | None) -> str:
    """Call ``bridge.set_archive``; set, removed or unchanged.

    Raises:
        InvalidArgumentError: there is no such table, or it cannot take them.
    """
    try:
        return str(value(connection, "select bridge.set_archive(%(archive)s::regclass)", {"archive": archive}))
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        message = error.diag.message_primary or str(error)
        if '"bridge"' in message:  # it is the schema that is missing
            raise
        raise InvalidArgumentError(message, "give a table that is there, with its schema") from error


def cleanup(connection: Connection, *, dry_run: bool, by: str | None) -> list[dict[str, Any]]:
    """Call ``bridge.cleanup``: one transaction; a row a table."""
    query = f"select {_COLUMNS} from bridge.cleanup(%(dry_run)s, by => %(by)s)"
    if not stands_alone(connection):
        return records(connection, query, {"dry_run": dry_run, "by": by})
    with translated(), endless(connection), connection.transaction():
        value(connection, "select set_config('statement_timeout', '0', true)")  # a dry run reads tables whole
        return records(connection, query, {"dry_run": dry_run, "by": by})


def begin_cleanup(connection: Connection, by: str | None) -> int | None:
    """Begin a cleanup, or join the one that is under way; its number, None when another is at it at this moment."""
    number: int | None = value(connection, "select bridge.begin_cleanup(coalesce(%(by)s, session_user))", {"by": by})
    return number


def step(connection: Connection) -> bool | None:
    """The next batch of the cleanup under way; whether there is more, None when another is at it at this moment."""
    more: bool | None = value(connection, "select bridge.cleanup_step()", {})
    return more


def under_way(connection: Connection, number: int) -> dict[str, Any] | None:
    """What a cleanup is at: the table, how many rows went from it, how many tables are left; None when it is over."""
    query = """
        select c.table_name, c.operation, c.deleted + c.kept as rows, count(*) over ()::integer as left
        from bridge.cleanups c where c.cleanup = %(number)s and c.status in ('waiting', 'running') order by c.id limit 1"""
    return next(iter(records(connection, query, {"number": number})), None)


def tables_of(connection: Connection, number: int) -> list[dict[str, Any]]:
    """What a cleanup did, a row a table in which something was found."""
    return records(connection, f"select {_COLUMNS} from bridge.cleanups where cleanup = %(number)s order by id", {"number": number})


def cleanups(connection: Connection, number: int | None, limit: int) -> list[dict[str, Any]]:
    """The last cleanups, newest first; or the tables of one."""
    query = f"""
        select id, at, by, duration, {_COLUMNS} from bridge.cleanups c
        where case when %(number)s::bigint is null then c.operation = 'cleanup' else c.cleanup = %(number)s end
        order by case when %(number)s::bigint is null then -c.id else c.id end limit %(limit)s"""
    return records(connection, query, {"number": number, "limit": limit})


def upkeep(connection: Connection) -> list[dict[str, Any]]:
    """All rows of ``bridge.upkeep()``, worst first."""
    return records(connection, "select kind, name, severity, found, remedy, value::float8 as value from bridge.upkeep()", {})
