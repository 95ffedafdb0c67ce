"""Limits of runs at once and of starts in a time: setting, removing and reading them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row

from bridge.queries.answers import by_name, columns, value
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from bridge.queries.connection import Connection

__all__ = ["Key", "Limit", "keys", "limits", "remove_limit", "set_limit"]

_TYPES = {
    **dict.fromkeys(["name", "queue", "task", "key"], "text"),
    **dict.fromkeys(["concurrency", "rate", "burst"], "integer"),
    "per": "interval",
    "fair": "boolean",
}


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit, and how it stands.

    Attributes:
        name: of the limit.
        queue: the queues whose jobs it is about; a name, or a pattern with ``*`` and ``?``.
        task: the tasks, likewise.
        key: what is counted apart; None: all together.
        concurrency: most runs alive at once.
        rate: most jobs published in each interval ``per``.
        per: that interval.
        burst: how many may go at once after a rest.
        fair: keys take turns, without any bound.
        keys: how many values of the key are in use or waited for.
        in_use: runs that count at this moment, from their claim on.
        waiting: jobs that are due and wait at the gate.
        waiting_since: since when the first of them does.
        changed_at: when it was last set to something else.
    """

    name: str
    queue: str
    task: str
    key: str | None
    concurrency: int | None
    rate: int | None
    per: timedelta
    burst: int | None
    fair: bool
    keys: int
    in_use: int
    waiting: int
    waiting_since: datetime | None
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Key:
    """One value of a limit's key, or one serial key.

    Attributes:
        name: of the limit; None: a serial key.
        key: the value; None: jobs that have none, or a limit without a key.
        concurrency: of the limit.
        rate: of the limit.
        in_use: runs that count at this moment; of a serial key 1 while a job has its turn.
        waiting: jobs that are due and wait at the gate.
        waiting_since: since when the first of them does.
        tokens: how many the rate would let through now.
    """

    name: str | None
    key: str | None
    concurrency: int | None
    rate: int | None
    in_use: int
    waiting: int
    waiting_since: datetime | None
    tokens: int | None


def set_limit(connection: Connection, **given: Any) -> str:
    """Call ``bridge.set_limit`` with arguments by name; created, changed or unchanged."""
    return str(value(connection, by_name("set_limit", given, _TYPES), given))


def remove_limit(connection: Connection, name: str) -> bool:
    """Call ``bridge.remove_limit``; False when there was none of this name."""
    return bool(value(connection, "select bridge.remove_limit(%s::text)", (name,)))


def limits(connection: Connection) -> list[Limit]:
    """All rows of the view ``bridge.limits``, by name."""
    with translated(), connection.cursor(row_factory=class_row(Limit)) as cursor:
        return cursor.execute(f"select {columns(Limit)} from bridge.limits order by name".encode()).fetchall()


def keys(connection: Connection, name: str | None, limit: int) -> list[Key]:
    """Values of limits' keys, and serial keys, those first for which most jobs wait.

    Args:
        connection: to the database.
        name: of this limit; None: of all.
        limit: most rows.
    """
    query = """
        select name, key, concurrency, rate, in_use, waiting, waiting_since, tokens from bridge.limit_keys
        where coalesce(owner, 'limit') = 'limit' and (%(name)s::text is null or name = %(name)s)
        order by waiting desc, in_use desc, name, key limit %(limit)s"""
    with translated(), connection.cursor(row_factory=class_row(Key)) as cursor:
        return cursor.execute(query, {"name": name, "limit": limit}).fetchall()
