"""Pausing, resuming and draining queues, and reading how they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row

from bridge.queries.answers import columns, records, value
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from bridge.queries.connection import Connection

__all__ = ["Load", "What", "loads", "pause", "pauses", "resume", "set_bundle", "set_window", "stats"]


@dataclass(frozen=True, slots=True)
class What:
    """What is paused or resumed: one queue, one task, or everything. Postgres refuses anything else."""

    queue: str | None = None
    task: str | None = None
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """What of a queue is outside of Postgres at one moment.

    Attributes:
        queue: its name.
        paused: nothing more of it is published.
        publishing: in the hands of drainers.
        published: with the broker, or fetched by a worker, and not started.
        running: have started.
        oldest_started_at: of those that run, the one that runs longest.
    """

    queue: str
    paused: bool
    publishing: int
    published: int
    running: int
    oldest_started_at: datetime | None

    @property
    def total(self) -> int:
        """All of them; 0 when the queue is drained."""
        return self.publishing + self.published + self.running


def pause(connection: Connection, what: What, *, hard: bool, reason: str | None) -> int:
    """Call ``bridge.pause``; how many published jobs were taken back."""
    query = "select bridge.pause(%(queue)s::text, %(task)s::text, %(everything)s, %(hard)s, %(reason)s::text)"
    return int(value(connection, query, {**_named(what), "hard": hard, "reason": reason}))


def resume(connection: Connection, what: What) -> bool:
    """Call ``bridge.resume``; False when it was not paused."""
    return bool(value(connection, "select bridge.resume(%(queue)s::text, %(task)s::text, %(everything)s)", _named(what)))


def set_bundle(connection: Connection, queue: str, jobs: int | None) -> None:
    """Call ``bridge.set_bundle``."""
    value(connection, "select bridge.set_bundle(%(queue)s::text, %(jobs)s::integer)", {"queue": queue, "jobs": jobs})


def set_window(connection: Connection, queue: str, jobs: int | None) -> None:
    """Call ``bridge.set_window``."""
    value(connection, "select bridge.set_window(%(queue)s::text, %(jobs)s::integer)", {"queue": queue, "jobs": jobs})


def loads(connection: Connection, queues: Sequence[str] | None) -> list[Load]:
    """Call ``bridge.drain_state``."""
    with translated(), connection.cursor(row_factory=class_row(Load)) as cursor:
        query = f"select {columns(Load)} from bridge.drain_state(%s::text[])".encode()
        return cursor.execute(query, (None if queues is None else list(queues),)).fetchall()


def stats(connection: Connection) -> list[dict[str, Any]]:
    """All rows of the view ``bridge.job_queue_stats``, by name."""
    return records(connection, "select * from bridge.job_queue_stats order by queue")


def pauses(connection: Connection) -> list[dict[str, Any]]:
    """All rows of the view ``bridge.pauses``."""
    return records(connection, "select * from bridge.pauses order by kind, name")


def _named(what: What) -> dict[str, Any]:
    return {"queue": what.queue, "task": what.task, "everything": what.everything}
