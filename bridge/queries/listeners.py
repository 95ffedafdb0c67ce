"""Who is told of ready jobs, and how many commits wait for their turn to tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["Crowd", "crowd", "has_passed", "horizon"]


class Crowd(NamedTuple):
    """Commits that wait for their turn to notify, and how many jobs have become ready since the schema was made."""

    waiting: int
    ready: int


def crowd(connection: Connection) -> Crowd:
    """How it stands now."""
    return Crowd(*connection.execute("select waiting, ready from bridge.crowd()").fetchone())  # type: ignore[misc]


def horizon(connection: Connection) -> str:
    """A number that is higher than that of any transaction so far; the xmax of a snapshot need not be."""
    return str(connection.execute("select pg_current_xact_id()::text").fetchone()[0])  # type: ignore[index]


def has_passed(connection: Connection, horizon: str) -> bool:
    """Whether every transaction with a lower number has ended."""
    row = connection.execute("select pg_snapshot_xmin(pg_current_snapshot()) >= %s::xid8", (horizon,)).fetchone()
    return bool(row and row[0])
