"""Circuit breakers: making, resetting, reading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.queries.answers import by_name, records, value

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["breakers", "changes", "remove_breaker", "reset_breaker", "set_breaker"]

_TYPES = {
    **dict.fromkeys(["queue", "task"], "text"),
    **dict.fromkeys(["minimum", "probes"], "integer"),
    **dict.fromkeys(["within", "cooldown"], "interval"),
    "ratio": "numeric",
}


def set_breaker(connection: Connection, named: dict[str, Any]) -> str:
    """Call ``bridge.set_breaker`` with arguments by name; created, changed or unchanged."""
    return str(value(connection, by_name("set_breaker", named, _TYPES), named))


def reset_breaker(connection: Connection, queue: str | None, task: str | None) -> str:
    """Call ``bridge.reset_breaker``; the state before."""
    return str(value(connection, "select bridge.reset_breaker(%(queue)s::text, %(task)s::text)", {"queue": queue, "task": task}))


def remove_breaker(connection: Connection, queue: str | None, task: str | None) -> bool:
    """Call ``bridge.remove_breaker``; False when there was none."""
    return bool(value(connection, "select bridge.remove_breaker(%(queue)s::text, %(task)s::text)", {"queue": queue, "task": task}))


def breakers(connection: Connection) -> list[dict[str, Any]]:
    """All rows of the view ``bridge.breakers``, by kind and name."""
    return records(connection, "select * from bridge.breakers order by kind, name", {})


def changes(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """The last rows of the view ``bridge.breaker_changes``, newest first."""
    return records(connection, "select * from bridge.breaker_changes order by id desc limit %(limit)s", {"limit": limit})
