"""One connection that several writers share, inside a transaction that somebody else ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.queries.connection import Connection

__all__ = ["Shared"]

Answer = TypeVar("Answer")


class _Plain:
    """A connection as psycopg has it, whatever cursors and adapters its framework has given it: Django's leave JSON as text."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def cursor(self, *, row_factory: Any = tuple_row) -> psycopg.Cursor[Any]:
        """A new cursor."""
        cursor = psycopg.Cursor(self._connection, row_factory=row_factory)
        cursor._adapters = AdaptersMap(psycopg.adapters)  # noqa: SLF001 - a cursor takes its connection's
        return cursor

    def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool = False) -> psycopg.Cursor[Any]:
        """Run a statement."""
        return self.cursor().execute(query, params, prepare=prepare, binary=binary)


class Shared:
    """Stands where an application has its own connections.

    An error of the database inside a task would break the transaction for good, so a savepoint is set when a run has started: what the
    task wrote is gone then, and its failure can still be noted.

    Args:
        connection: gives the connection, after everything that waits to be sent there.
        dsn: where the application's own connections lead.
        timeout: seconds, as theirs.
    """

    def __init__(self, connection: Callable[[], Connection], dsn: str, timeout: float) -> None:
        self.dsn = dsn
        self.timeout = timeout
        self._connection = connection
        self._saved: Connection | None = None

    def get(self) -> Connection:
        """The connection, fit for use."""
        if self._saved is not None and self._saved.info.transaction_status is TransactionStatus.INERROR:
            self._saved.execute("rollback to savepoint bridge_run")
        return cast("Connection", _Plain(self._connection()))

    def ask(self, question: Callable[[Connection], Answer]) -> Answer:
        """Put a question, once: a transaction does not outlive its connection."""
        return question(self.get())

    def save(self) -> None:
        """Set the savepoint. It is never released: a framework may have savepoints above it that it still counts on."""
        connection = self._connection()
        if connection.info.transaction_status is TransactionStatus.INTRANS:
            connection.execute("savepoint bridge_run")
            self._saved = connection

    def close(self) -> None:
        """Nothing: the connection is somebody else's."""
