"""Limits from Python: how many runs at once, how many starts in a time, whose turn it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.asked import interval
from bridge.client import connection_of
from bridge.queries import limits as stored

if TYPE_CHECKING:
    from datetime import timedelta

    from bridge.queries.limits import Limit

__all__ = ["limits", "remove_limit", "set_limit"]


def set_limit(
    name: str,
    *,
    queue: str = "*",
    task: str = "*",
    key: str | None = None,
    concurrency: int | None = None,
    rate: int | None = None,
    per: float | timedelta = 1.0,
    burst: int | None = None,
    fair: bool = False,
    connection: Any = None,
) -> str:
    """Hold jobs back so that no more than this run, or start, at once; saying the same again changes nothing.

    A job must have room in every limit that is about it. Drainers see to it, so the bound is one over all workers. What is in flight
    when a limit comes goes on, and counts. Commit soon: claims pass by what a transaction has in hand.

    Args:
        name: of the limit.
        queue: which queues; a name, or a pattern with ``*`` and ``?``.
        task: which tasks, likewise.
        key: count apart what has another value here: ``queue``, ``task``, or a path into the arguments such as ``kwargs.tenant`` or
            ``args.0.id``; several with ``|`` between them, the first that is there counts. Jobs that have none share one more bound.
            Keys take turns.
        concurrency: most runs alive at once, 0 to 1,000,000; 0 lets nothing through; None is no bound.
        rate: most jobs published in each interval ``per``, 1 to 1,000,000; None is no bound.
        per: seconds, or a timedelta: 0.001 s to 30 days.
        burst: how many may go at once after a rest; None is what comes in a tenth of a second, 1 at least.
        fair: keys take turns, without any bound.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        "created", "changed" or "unchanged".

    Raises:
        InvalidArgumentError: an argument can never work, or the limit would bound nothing.
    """
    return stored.set_limit(
        connection_of(connection), name=name, queue=queue, task=task, key=key, concurrency=concurrency, rate=rate, per=interval(per),
        burst=burst, fair=fair,
    )  # fmt: skip


def remove_limit(name: str, *, connection: Any = None) -> bool:
    """Remove a limit; what waited for it alone is due at once.

    Returns:
        False when there was none of this name.
    """
    return stored.remove_limit(connection_of(connection), name)


def limits(*, connection: Any = None) -> list[Limit]:
    """All limits by name, with what is in use of each and what waits."""
    return stored.limits(connection_of(connection))
