"""Reading what schedules have done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.errors import NotFoundError
from bridge.queries.answers import records

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["history", "slow", "stats", "too_often"]


def history(
    connection: Connection, name: str, *, status: str | None, trigger_type: str | None, n: int, before: int | None
) -> list[dict[str, Any]]:
    """Call ``bridge.schedule_history``."""
    query = (
        "select * from bridge.schedule_history(%(name)s, status => %(status)s::text, trigger_type => %(trigger)s::text,"
        " n => %(n)s::integer, before => %(before)s::bigint)"
    )
    values = {"name": name, "status": status, "trigger": trigger_type, "n": n, "before": before}
    return records(connection, query, values)


def stats(connection: Connection, name: str | None) -> list[dict[str, Any]]:
    """Rows of the view ``bridge.schedule_stats``: of one schedule, or all by name.

    Raises:
        NotFoundError: there is no such schedule.
    """
    if name is None:
        return records(connection, "select * from bridge.schedule_stats order by schedule", {})
    found = records(connection, "select * from bridge.schedule_stats where schedule = %(name)s", {"name": name})
    if not found:
        raise NotFoundError(f"schedule {name!r} does not exist", '"bridge schedules list" shows those that do')
    return found


def slow(connection: Connection) -> list[dict[str, Any]]:
    """All rows of the view ``bridge.slow_schedules``, by name."""
    return records(connection, "select * from bridge.slow_schedules order by schedule, started_at", {})


def too_often(connection: Connection) -> list[dict[str, Any]]:
    """All rows of the view ``bridge.too_often_schedules``, by name and kind."""
    return records(connection, "select * from bridge.too_often_schedules order by schedule, kind, other", {})
