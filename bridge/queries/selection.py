"""Choosing jobs by a filter, and what is done to many of them or to dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.types.json import Jsonb

from bridge.queries import jobs
from bridge.queries.answers import by_name, records, value
from bridge.queries.connection import plainly, translated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from bridge.job import Job
    from bridge.queries.connection import Connection

__all__ = ["discard", "find", "notes", "operate", "redrive", "select"]

_TYPES = {
    **dict.fromkeys(["queue", "by", "note", "signal"], "text"),
    **dict.fromkeys(["priority", "max_attempts"], "integer"),
    **dict.fromkeys(["args", "kwargs"], "jsonb"),
    **dict.fromkeys(["dry_run", "terminate"], "boolean"),
    "delay": "interval", "run_at": "timestamptz",
}  # fmt: skip


def select(connection: Connection, wanted: Mapping[str, Any], statuses: Sequence[str] | None = None, *, dead: bool = False) -> list[UUID]:
    """Call ``bridge.select_jobs``: the ids in the order in which they are to be locked.

    Args:
        connection: where to look.
        wanted: the filter, in JSON values.
        statuses: those that something can be done with; None for all.
        dead: dead letters alone.
    """
    return _select(connection, wanted, statuses, newest=False, dead=dead)


def _select(connection: Connection, wanted: Mapping[str, Any], statuses: Sequence[str] | None, *, newest: bool, dead: bool) -> list[UUID]:
    named = {"newest": newest, "dead": dead, **({} if statuses is None else {"statuses": list(statuses)})}
    further = "".join(f", p_{name} => %({name})s" for name in named)
    with translated():
        found = plainly(connection).execute(f"select bridge.select_jobs(%(filter)s{further})", {"filter": Jsonb(dict(wanted)), **named})
        return [row[0] for row in found]


def find(connection: Connection, wanted: Mapping[str, Any], statuses: Sequence[str] | None = None, *, dead: bool = False) -> list[Job]:
    """The jobs that a filter chooses, the last changed first."""
    return jobs.many(connection, _select(connection, wanted, statuses, newest=True, dead=dead))


def operate(connection: Connection, operation: str, wanted: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Call one of the functions that do something to many: ``cancel_jobs`` and its like.

    Args:
        connection: where.
        operation: the function's name.
        wanted: the filter, in JSON values.
        named: its other arguments; those that are None are left out.

    Returns:
        ``matched``, ``changed``, ``skipped``, ``more``.
    """
    return dict(_call(connection, operation, {"filter": Jsonb(dict(wanted))}, named))


def redrive(connection: Connection, identity: UUID, named: Mapping[str, Any]) -> str:
    """Call ``bridge.redrive`` with its other arguments by name; the new status."""
    return str(_call(connection, "redrive", {"id": identity}, named))


def discard(connection: Connection, identity: UUID, named: Mapping[str, Any]) -> None:
    """Call ``bridge.discard``."""
    _call(connection, "discard", {"id": identity}, named)


def _call(connection: Connection, function: str, first: Mapping[str, Any], named: Mapping[str, Any]) -> Any:
    given = {**first, **{name: argument for name, argument in named.items() if argument is not None}}
    return value(connection, by_name(function, given, _TYPES), given)


def notes(connection: Connection, identity: UUID) -> list[dict[str, Any]]:
    """What people did to a job, oldest first: at, action, by, note, attempts, before."""
    query = "select at, action, by, note, attempts, before from bridge.job_note where id = %s order by at"
    return records(connection, query, (identity,))
