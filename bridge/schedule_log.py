"""What schedules have done, from Python: their runs, their statistics, those that are slow, and those that run too often."""

from __future__ import annotations

from typing import Any

from bridge.client import connection_of
from bridge.queries import schedule_log

__all__ = ["schedule_history", "schedule_stats", "slow_schedules", "too_often_schedules"]


def schedule_history(
    name: str,
    *,
    status: str | None = None,
    trigger_type: str | None = None,
    n: int = 20,
    before: int | None = None,
    connection: Any = None,
) -> list[dict[str, Any]]:
    """The last runs of a schedule, newest first, as the view ``bridge.schedule_runs`` has them.

    Args:
        name: of a schedule, or of one that was removed while the log still holds its runs.
        status: only these: a status of a job, "waiting", "skipped" or "unknown". A run counts as ended when the tick has noted it.
        trigger_type: only these: "scheduled", "manual" or "catch_up".
        n: how many, 1 to 10000.
        before: only runs with a smaller ``id``: the last of a page gives the next one.
        connection: whose transaction to read in, as for ``enqueue``.

    Raises:
        NotFoundError: there is no such schedule and no run of one.
        InvalidArgumentError: an argument is none of these.
    """
    return schedule_log.history(connection_of(connection), name, status=status, trigger_type=trigger_type, n=n, before=before)


def schedule_stats(name: str | None = None, *, connection: Any = None) -> list[dict[str, Any]]:
    """Counts and durations of all schedules by name, or of one, as the view ``bridge.schedule_stats`` has them.

    Raises:
        NotFoundError: there is no such schedule.
    """
    return schedule_log.stats(connection_of(connection), name)


def slow_schedules(*, connection: Any = None) -> list[dict[str, Any]]:
    """Schedules whose last run, or one under way, takes longer than it should, as the view ``bridge.slow_schedules`` has them."""
    return schedule_log.slow(connection_of(connection))


def too_often_schedules(*, connection: Any = None) -> list[dict[str, Any]]:
    """Schedules whose work is done more often than it should be, with the reason, as the view ``bridge.too_often_schedules`` has them."""
    return schedule_log.too_often(connection_of(connection))
