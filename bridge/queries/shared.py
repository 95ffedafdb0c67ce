"""One connection that several writers share, inside a transaction that somebody else ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.queries.connection import Connection

__all__ = ["Shared"]


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
        return self._connection()

    def save(self) -> None:
        """Set the savepoint. It is never released: a framework may have savepoints above it that it still counts on."""
        connection = self._connection()
        if connection.info.transaction_status is TransactionStatus.INTRANS:
            connection.execute("savepoint bridge_run")
            self._saved = connection

    def close(self) -> None:
        """Nothing: the connection is somebody else's."""
