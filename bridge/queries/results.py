"""Results as Celery's result backend asks for them."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from bridge.queries.connection import translated
from bridge.queries.waiting import registered

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from datetime import datetime, timedelta
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = [
    "Scope",
    "Stored",
    "Value",
    "clean",
    "delete_group",
    "forget",
    "many",
    "restore_group",
    "save_group",
    "store",
    "wait",
]

_READY = {"SUCCESS", "FAILURE", "REVOKED"}  # Celery's final states


@dataclass(frozen=True, slots=True)
class Stored:
    """What ``bridge.results`` knows of one task id; JSON parts are text.

    ``status`` is its job's; where a result stored beside a job is newer, or there is no job, it is None and ``state`` is Celery's word.
    """

    id: UUID
    task_id: str
    status: str | None
    state: str | None
    result: str | None
    error: str | None
    outcome: str | None
    progress: str | None
    task: str | None
    queue: str | None
    worker: str | None
    pid: int | None
    attempts: int | None
    headers: str | None
    args: str | None
    kwargs: str | None
    payload: bytes | None
    content_type: str | None
    content_encoding: str | None
    done_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come."""
        return self.state in _READY if self.status is None else self.done_at is not None


@dataclass(frozen=True, slots=True)
class Value:
    """A value or an error as the columns ``result``, ``error`` and ``outcome``; JSON text."""

    result: str | None = None
    error: str | None = None
    outcome: str | None = None


_COLUMNS = ", ".join(field.name for field in fields(Stored))


@dataclass(frozen=True, slots=True)
class Scope:
    """What a reader wants of results: also the arguments, and for how long after a job's end its result counts (None: always)."""

    arguments: bool = False
    keeping: timedelta | None = None


def many(connection: Connection, identities: Collection[UUID], scope: Scope) -> list[Stored]:
    """Call ``bridge.results``."""
    query = f"select {_COLUMNS} from bridge.results(%s, %s, %s)"
    with translated():
        return [Stored(*row) for row in connection.execute(query, (list(identities), scope.arguments, scope.keeping))]


def store(connection: Connection, identity: UUID, task_id: str, state: str, value: Value, expires: timedelta | None) -> bool:
    """Call ``bridge.store_result``; False when the id has succeeded already."""
    values = (identity, task_id, state, value.result, value.error, value.outcome, expires)
    with translated():
        row = connection.execute("select bridge.store_result(%s, %s, %s, %s, %s, %s, %s)", values).fetchone()
    return bool(row and row[0])


def forget(connection: Connection, identity: UUID) -> bool:
    """Call ``bridge.forget``."""
    with translated():
        row = connection.execute("select bridge.forget(%s)", (identity,)).fetchone()
    return bool(row and row[0])


def save_group(connection: Connection, identity: UUID, members: str, expires: timedelta | None) -> None:
    """Call ``bridge.save_group``."""
    with translated():
        connection.execute("select bridge.save_group(%s, %s, %s)", (identity, members, expires))


def restore_group(connection: Connection, identity: UUID) -> str | None:
    """Call ``bridge.restore_group``."""
    with translated():
        row = connection.execute("select bridge.restore_group(%s)", (identity,)).fetchone()
    return row[0] if row else None


def delete_group(connection: Connection, identity: UUID) -> None:
    """Call ``bridge.delete_group``."""
    with translated():
        connection.execute("select bridge.delete_group(%s)", (identity,))


def clean(connection: Connection) -> int:
    """Call ``bridge.clean_results``."""
    with translated():
        row = connection.execute("select bridge.clean_results()").fetchone()
    return int(row[0]) if row else 0


def wait(
    connection: Connection, identities: Collection[UUID], scope: Scope, *, until: float | None, interval: float,
    waking: Callable[[], None] | None = None, seen: Callable[[Stored], None] | None = None,
) -> Iterator[Stored]:  # fmt: skip
    """Yield what is known of each of these ids once, when nothing more is to come.

    Args:
        connection: one on which nobody else listens meanwhile.
        identities: the ids.
        scope: as in ``many``.
        until: the moment, on the monotonic clock, at which it ends; None waits for ever.
        interval: most seconds between two calls of ``waking``.
        waking: called after every sleep.
        seen: called with each one that is looked at and has not ended.
    """
    left = set(identities)
    asked: set[UUID] | None = None
    with translated(), registered(connection, left) as waiter:
        while left:
            for stored in many(connection, left if asked is None else asked & left, scope):
                if stored.ended:
                    left.discard(stored.id)
                    yield stored
                elif seen is not None:
                    seen(stored)
            pause = interval if until is None else min(interval, until - time.monotonic())
            if not left or pause <= 0:
                return
            asked = waiter.sleep(pause)
            if waking is not None:
                waking()
