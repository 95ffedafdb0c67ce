"""Circuit breakers from Python: queues and tasks that are held back by themselves while too many attempts fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.asked import interval
from bridge.client import connection_of
from bridge.queries import breakers as queries

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["breakers", "remove_breaker", "reset_breaker", "set_breaker"]


def set_breaker(
    queue: str | None = None,
    *,
    task: str | None = None,
    ratio: float = 0.5,
    minimum: int = 20,
    within: float | timedelta = 300.0,
    cooldown: float | timedelta = 60.0,
    probes: int = 1,
    connection: Any = None,
) -> str:
    """Hold a queue or a task back by itself while too many of its attempts fail. Saying the same again changes nothing.

    Args:
        queue: of this queue.
        task: of this task; one of the two.
        ratio: it opens when this part of all attempts has failed, above 0 and up to 1.
        minimum: of at least so many attempts; fewer prove nothing.
        within: seconds; attempts that ended longer ago do not count.
        cooldown: seconds after it opened until probes are let out.
        probes: when so many jobs have succeeded it closes; the first that fails opens it again.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        "created", "changed" or "unchanged".

    Raises:
        InvalidArgumentError: an argument can never work.
    """
    named = {
        "queue": queue, "task": task, "ratio": ratio, "minimum": minimum, "within": interval(within), "cooldown": interval(cooldown),
        "probes": probes,
    }  # fmt: skip
    return queries.set_breaker(connection_of(connection), named)


def reset_breaker(queue: str | None = None, *, task: str | None = None, connection: Any = None) -> str:
    """Close a breaker by hand; what failed before counts no more.

    Args:
        queue: the one of this queue.
        task: the one of this task; one of the two.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        The state that it was in: "closed", "open" or "half_open".

    Raises:
        NotFoundError: there is no such breaker.
    """
    return queries.reset_breaker(connection_of(connection), queue, task)


def remove_breaker(queue: str | None = None, *, task: str | None = None, connection: Any = None) -> bool:
    """Remove a breaker; what it held goes on.

    Args:
        queue: the one of this queue.
        task: the one of this task; one of the two.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        False when there was none.
    """
    return queries.remove_breaker(connection_of(connection), queue, task)


def breakers(*, connection: Any = None) -> list[dict[str, Any]]:
    """All breakers with their state, since when and why, as the view ``bridge.breakers`` has them."""
    return queries.breakers(connection_of(connection))
