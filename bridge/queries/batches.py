"""Batches: making, steering and reading them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row

from bridge.queries.answers import by_name, columns, value
from bridge.queries.connection import translated
from bridge.queries.waiting import registered

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["Batch", "cancel", "create", "find", "get", "seal", "wait"]

_TYPES = {**dict.fromkeys(["name", "callback", "queue", "callback_on"], "text"), **dict.fromkeys(["args", "kwargs"], "jsonb")}
_LONGEST_SLEEP = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Batch:
    """One row of ``bridge.batches`` at one moment.

    Attributes:
        status: open (not sealed), running, succeeded, failed (all have ended, not all have succeeded) or cancelled.
        total: its jobs; those of which ``ended`` have ended, the others counted by their status below.
        progress: the fraction of them that has ended.
        callback: the task that is called when it has ended, ``callback_on`` says how; ``callback_job`` is its job, once it is made.
        ended_at: when its last job had ended; also of one that was cancelled.
    """

    id: UUID
    name: str | None
    status: str
    total: int
    ended: int
    progress: float
    blocked: int
    scheduled: int
    queued: int
    published: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    callback: str | None
    callback_on: str
    callback_job: UUID | None
    created_at: datetime
    sealed_at: datetime | None
    cancelled_at: datetime | None
    ended_at: datetime | None


def create(connection: Connection, named: dict[str, Any]) -> UUID:
    """Call ``bridge.create_batch`` with arguments by name."""
    return value(connection, by_name("create_batch", named, _TYPES), named)  # type: ignore[no-any-return]


def seal(connection: Connection, identity: UUID) -> str:
    """Call ``bridge.seal_batch``; its status."""
    return str(value(connection, "select bridge.seal_batch(%(id)s)", {"id": identity}))


def cancel(connection: Connection, identity: UUID) -> int:
    """Call ``bridge.cancel_batch``; how many jobs were cancelled or asked to stop."""
    return int(value(connection, "select bridge.cancel_batch(%(id)s)", {"id": identity}))


def get(connection: Connection, identity: UUID) -> Batch | None:
    """One batch."""
    with translated(), connection.cursor(row_factory=class_row(Batch)) as cursor:
        return cursor.execute(f"select {columns(Batch)} from bridge.batches where id = %s".encode(), (identity,)).fetchone()


def find(connection: Connection, status: str | None, limit: int) -> list[Batch]:
    """Batches, newest first."""
    query = f"""
        select {columns(Batch)} from bridge.batches
        where %(status)s::text is null or status = %(status)s order by created_at desc limit %(limit)s"""
    with translated(), connection.cursor(row_factory=class_row(Batch)) as cursor:
        return cursor.execute(query.encode(), {"status": status, "limit": limit}).fetchall()


def wait(connection: Connection, identity: UUID, timeout: float | None) -> Batch | None:
    """Wait until a batch has ended.

    Args:
        connection: one on which nobody else listens meanwhile.
        identity: the batch.
        timeout: seconds; None waits for ever.

    Returns:
        The batch as it is then, also when the time was over; None when there is none.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with translated(), registered(connection, [identity]) as waiter:
        while True:
            batch = get(connection, identity)
            pause = _LONGEST_SLEEP if deadline is None else min(_LONGEST_SLEEP, deadline - time.monotonic())
            if batch is None or batch.ended_at is not None or pause <= 0:
                return batch
            waiter.sleep(pause)
