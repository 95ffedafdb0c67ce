"""Making, steering and reading schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row

from bridge.errors import NotFoundError
from bridge.queries.answers import records, value
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["Troubles", "find", "get", "next_runs", "next_runs_of", "pause", "resume", "run", "runs", "schedule", "troubles", "unschedule"]

_CASTS = {
    **dict.fromkeys(["name", "cron", "task", "timezone", "queue", "overlap", "missed", "function"], "::text"),
    **dict.fromkeys(["priority", "max_attempts"], "::integer"),
    **dict.fromkeys(["starts_at", "ends_at"], "::timestamptz"),
    **dict.fromkeys(["timeout", "expires", "jitter", "missed_within", "expected_duration"], "::interval"),
    "enabled": "::boolean",
    "webhook": "::jsonb",
}


@dataclass(frozen=True, slots=True)
class Troubles:
    """How many schedules there are, and the names of those that a person should look at.

    Attributes:
        late: due for longer than ``slot_grace``.
        failed: whose last run failed, with its error.
        slow: whose last run, or one under way, takes longer than it should.
        often: whose work is done more often than it should be, with the reason.
    """

    total: int
    paused: int
    late: list[str]
    failed: list[str]
    slow: list[str]
    often: list[str]


def schedule(connection: Connection, named: dict[str, Any]) -> str:
    """Call ``bridge.schedule`` with arguments by name; created, changed or unchanged."""
    call = ", ".join(f"{name} => %({name})s{_CASTS.get(name, '')}" for name in named)
    return str(value(connection, f"select bridge.schedule({call})", named))


def unschedule(connection: Connection, name: str) -> bool:
    """Call ``bridge.unschedule``; False when there was none of this name."""
    return bool(value(connection, "select bridge.unschedule(%(name)s)", {"name": name}))


def pause(connection: Connection, name: str) -> None:
    """Call ``bridge.pause_schedule``."""
    value(connection, "select bridge.pause_schedule(%(name)s)", {"name": name})


def resume(connection: Connection, name: str) -> datetime | None:
    """Call ``bridge.resume_schedule``; the next slot."""
    return value(connection, "select bridge.resume_schedule(%(name)s)", {"name": name})  # type: ignore[no-any-return]


def run(connection: Connection, name: str) -> UUID:
    """Call ``bridge.run_schedule``; the job's id."""
    return value(connection, "select bridge.run_schedule(%(name)s)", {"name": name})  # type: ignore[no-any-return]


def next_runs(connection: Connection, cron: str, timezone: str, n: int, after: datetime | None) -> list[datetime]:
    """Call ``bridge.next_runs``; from now on when ``after`` is None."""
    query = "select bridge.next_runs(%(cron)s, %(timezone)s, %(n)s, coalesce(%(after)s::timestamptz, now()))"
    with translated():
        rows = connection.execute(query, {"cron": cron, "timezone": timezone, "n": n, "after": after})
        return [row[0] for row in rows]


def next_runs_of(connection: Connection, name: str, n: int) -> list[datetime]:
    """Call ``bridge.next_runs_of``."""
    with translated():
        return [row[0] for row in connection.execute("select bridge.next_runs_of(%(name)s, %(n)s)", {"name": name, "n": n})]


def find(connection: Connection) -> list[dict[str, Any]]:
    """All rows of the view ``bridge.schedules``, by name."""
    return records(connection, "select * from bridge.schedules order by name", {})


def get(connection: Connection, name: str) -> dict[str, Any]:
    """One row of the view ``bridge.schedules``.

    Raises:
        NotFoundError: there is no such schedule.
    """
    found = records(connection, "select * from bridge.schedules where name = %(name)s", {"name": name})
    if not found:
        raise NotFoundError(f"schedule {name!r} does not exist", '"bridge schedules list" shows those that do')
    return found[0]


def runs(connection: Connection, name: str, limit: int) -> list[dict[str, Any]]:
    """The last runs of a schedule, newest first, as the view ``bridge.schedule_runs`` has them."""
    query = "select * from bridge.schedule_runs where schedule = %(name)s order by id desc limit %(limit)s"
    return records(connection, query, {"name": name, "limit": limit})


def troubles(connection: Connection) -> Troubles:
    """What is wrong with schedules, paused ones left out."""
    query = "select t.total, t.paused, t.late, t.failed, t.slow, t.often from bridge.schedule_troubles() t"
    with translated(), connection.cursor(row_factory=class_row(Troubles)) as cursor:
        found = cursor.execute(query, {}).fetchone()
    assert found is not None  # noqa: S101 - an aggregate gives a row
    return found
