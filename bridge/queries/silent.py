"""Workers that consume our queues and report nothing, and what they took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["Unreported", "may_look", "note_silent", "reporting", "set_aside", "unreported"]


@dataclass(frozen=True, slots=True)
class Unreported:
    """Jobs that workers took which report nothing: how many, the id of the oldest, and the workers' names."""

    jobs: int
    oldest: str
    taken_by: list[str]


def may_look(connection: Connection) -> bool:
    """Whether it is time to ask who consumes the queues; of several drainers one gets True."""
    row = connection.execute("select bridge.may_look()").fetchone()
    return bool(row and row[0])


def note_silent(connection: Connection, names: Sequence[str], queues: Sequence[str]) -> None:
    """All have been asked: these consume these queues and run without our plugin."""
    connection.execute("select bridge.note_silent(%s::text[], %s::text[])", (list(names), list(queues)))


def set_aside(connection: Connection, tokens: Collection[UUID]) -> dict[str, int]:
    """Give up waiting for what a worker took that reports nothing; how many jobs, by queue."""
    return dict(connection.execute("select queue, jobs from bridge.set_aside(%s::uuid[])", (list(tokens),)).fetchall())


def reporting(connection: Connection, plugins: Collection[UUID]) -> set[UUID]:
    """Those of these ids under which a worker has reported."""
    with translated():
        return {row[0] for row in connection.execute("select w.id from bridge.workers w where w.id = any(%s)", (list(plugins),))}


def unreported(connection: Connection) -> Unreported | None:
    """What workers took that report nothing; None when there is nothing."""
    query = """
        select count(distinct u.id), (array_agg(u.task_id order by u.published_at))[1], array_agg(distinct n.name order by n.name)
        from bridge.unreported_jobs u, unnest(u.taken_by) n (name) having count(*) > 0"""
    with translated():
        row = connection.execute(query).fetchone()
    return Unreported(*row) if row else None
