"""Making, removing and reading retry policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

from bridge.queries.connection import translated

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["policies", "remove_retry", "set_retry"]

_CASTS = {
    **dict.fromkeys(["task", "queue"], "::text"),
    "max_attempts": "::integer",
    **dict.fromkeys(["retry_on", "never_on"], "::text[]"),
    **dict.fromkeys(["timeout", "soft_timeout", "deadline"], "::interval"),
}


def set_retry(connection: Connection, named: dict[str, Any]) -> str:
    """Call ``bridge.set_retry`` with arguments by name; created, changed or unchanged."""
    call = ", ".join(f"{name} => %({name})s{_CASTS.get(name, '')}" for name in named)
    return str(_value(connection, f"select bridge.set_retry({call})", named))


def remove_retry(connection: Connection, task: str | None, queue: str | None) -> bool:
    """Call ``bridge.remove_retry``; False when there was none."""
    query = "select bridge.remove_retry(task => %(task)s::text, queue => %(queue)s::text)"
    return bool(_value(connection, query, {"task": task, "queue": queue}))


def policies(connection: Connection) -> list[dict[str, Any]]:
    """All rows of the view ``bridge.retry_policies``, tasks before queues, by name."""
    query = "select * from bridge.retry_policies order by task nulls last, queue"
    with translated(), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query).fetchall()


def _value(connection: Connection, query: str, values: dict[str, Any]) -> Any:
    with translated():
        row = connection.execute(query.encode(), values).fetchone()
    return row[0] if row else None
