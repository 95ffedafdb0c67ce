"""Changing jobs that have not started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.job import Status
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["move", "reschedule", "set_priority"]


def set_priority(connection: Connection, identity: UUID, priority: int) -> Status:
    """Call ``bridge.set_priority``."""
    return _status(connection, "select bridge.set_priority(%s, %s::integer)", (identity, priority))


def move(connection: Connection, identity: UUID, queue: str) -> Status:
    """Call ``bridge.move``."""
    return _status(connection, "select bridge.move(%s, %s::text)", (identity, queue))


def reschedule(connection: Connection, identity: UUID, run_at: datetime | None, delay: timedelta | None) -> Status:
    """Call ``bridge.reschedule``."""
    return _status(connection, "select bridge.reschedule(%s, %s::timestamptz, %s::interval)", (identity, run_at, delay))


def _status(connection: Connection, query: str, values: tuple[Any, ...]) -> Status:
    with translated():
        row = connection.execute(query.encode(), values).fetchone()
    return Status(row[0] if row else "")
