"""Making, removing and reading retry policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.queries.answers import by_name, records, value

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["policies", "remove_retry", "set_retry"]

_TYPES = {
    **dict.fromkeys(["task", "queue"], "text"),
    "max_attempts": "integer",
    **dict.fromkeys(["retry_on", "never_on"], "text[]"),
    **dict.fromkeys(["timeout", "soft_timeout", "deadline"], "interval"),
}


def set_retry(connection: Connection, named: dict[str, Any]) -> str:
    """Call ``bridge.set_retry`` with arguments by name; created, changed or unchanged."""
    return str(value(connection, by_name("set_retry", named, _TYPES), named))


def remove_retry(connection: Connection, task: str | None, queue: str | None) -> bool:
    """Call ``bridge.remove_retry``; False when there was none."""
    query = "select bridge.remove_retry(task => %(task)s::text, queue => %(queue)s::text)"
    return bool(value(connection, query, {"task": task, "queue": queue}))


def policies(connection: Connection) -> list[dict[str, Any]]:
    """All rows of the view ``bridge.retry_policies``, tasks before queues, by name."""
    return records(connection, "select * from bridge.retry_policies order by task nulls last, queue")
