"""A transaction of the caller's that jobs join, and the rows on their way into it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

if TYPE_CHECKING:
    from uuid import UUID

    from bridge.queries.buffered import Row
    from bridge.queries.connection import Connection

__all__ = ["REMEMBERED", "Buffer", "Made", "Target", "here", "made"]

_MOST_ROWS = 1000
_MOST_BYTES = 4 << 20  # as a drainer's shipment: what Postgres and we can hold at once without noticing
REMEMBERED = 10_000  # jobs of open transactions: who waits for one of them is told so


class Target(Protocol):
    """A transaction that jobs join."""

    def enqueue(self, row: Row, *, answer: bool = False) -> UUID:
        """Make a job in it.

        Args:
            row: the job.
            answer: Postgres decides the id (a unique key), so send it now; otherwise it may wait for others, until the commit.

        Returns:
            The job's id.
        """

    def connection(self) -> Connection:
        """Its psycopg connection, after all jobs that were waiting have been sent."""

    @property
    def open(self) -> bool:
        """Whether it can still be committed."""

    @property
    def commits_each(self) -> bool:
        """Whether there is no transaction: every statement commits by itself."""

    def ask(self, statement: str, *values: str | None) -> Any:
        """Run one of our statements in it, after all jobs that were waiting have been sent; its single value.

        Args:
            statement: with its parameters, all texts, as ``{0}``, ``{1}`` …
            *values: the parameters.

        Raises:
            InvalidArgumentError: it is asyncio's, and nothing awaits us.
        """

    def address(self) -> str:
        """The DSN or URL of its database, password included."""

    def roll_back(self) -> None:
        """Roll it back, for a task that has ended and left it open."""


class Buffer:
    """Rows of one savepoint that wait to be sent; bounded by whoever asks ``full``."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self.rows)

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows.append(row)
        self._bytes += len(row.text)

    def full(self, times: int = 1) -> bool:
        """Whether it should be sent; ``times`` as much where that may be impossible for a while."""
        return len(self.rows) >= _MOST_ROWS * times or self._bytes >= _MOST_BYTES * times

    def take(self) -> list[Row]:
        """All rows, which are forgotten here."""
        taken, self.rows, self._bytes = self.rows, [], 0
        return taken


def here() -> tuple[int, int, Any]:
    """The process, thread and asyncio task that run this: a transaction is joined by the one that uses it, and by no other.

    The process, because after a fork the child's thread has the number of its parent's, and a copy of its open transactions.
    """
    try:
        task: Any = asyncio.current_task()
    except RuntimeError:
        task = None
    return os.getpid(), threading.get_ident(), None if task is None else id(task)


class Made:
    """Jobs of transactions that may still be open, newest last, so that nobody waits for one from inside of its transaction."""

    def __init__(self) -> None:
        self._targets: OrderedDict[UUID, tuple[ref[Target], tuple[int, int, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, identity: UUID, target: Target) -> None:
        """Remember who made this job."""
        with self._lock:
            self._targets[identity] = ref(target), here()
            while len(self._targets) > REMEMBERED:
                self._targets.popitem(last=False)

    def __contains__(self, identity: UUID) -> bool:
        return identity in self._targets

    def target(self, identity: UUID) -> Target | None:
        """The transaction that made this job, while it is open, for the thread and task that made it: others must not use it."""
        held, maker = self._targets.get(identity, (None, None))
        target = held() if held is not None and maker == here() else None
        return target if target is not None and target.open else None

    def forget(self, identity: UUID) -> None:
        """It is there for everybody."""
        with self._lock:
            self._targets.pop(identity, None)


@cache
def made() -> Made:
    """What this process has made in its callers' transactions."""
    return Made()
