"""Changing jobs that have not started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.job import Status
from bridge.queries.answers import value

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["move", "reschedule", "set_priority"]


def set_priority(connection: Connection, identity: UUID, priority: int) -> Status:
    """Call ``bridge.set_priority``."""
    return Status(value(connection, "select bridge.set_priority(%s, %s::integer)", (identity, priority)))


def move(connection: Connection, identity: UUID, queue: str) -> Status:
    """Call ``bridge.move``."""
    return Status(value(connection, "select bridge.move(%s, %s::text)", (identity, queue)))


def reschedule(connection: Connection, identity: UUID, run_at: datetime | None, delay: timedelta | None) -> Status:
    """Call ``bridge.reschedule``."""
    return Status(value(connection, "select bridge.reschedule(%s, %s::timestamptz, %s::interval)", (identity, run_at, delay)))
