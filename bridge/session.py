"""A connection to Postgres of which no wait is endless: a long silence is an outage, whatever the network says.

Kernels notice a dead peer by what it does not acknowledge. A load balancer, a firewall or a pooler acknowledges for others, and a server
that has stopped leaves that to its kernel. Time limits of Postgres's own are of no use there either: their answer does not arrive.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Session", "is_refused_write"]


def is_refused_write(error: psycopg.Error) -> bool:
    """Whether a server says that it takes no writes at all."""
    return isinstance(error, psycopg.errors.ReadOnlySqlTransaction)


class Session(psycopg.Connection[tuple[Any, ...]]):
    """A connection of our own.

    Attributes:
        patience: seconds without a byte until the server that owes an answer is taken for gone; None waits for ever. More than what a
            statement may take: where the network is well, the server says itself what was too long.
        pooled: a pooler stands between, so that two transactions may run in different sessions of the server: nothing is prepared,
            LISTEN hears nothing, and no setting of the session is ours to change.
    """

    patience: float | None = None
    pooled = False

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Wait as psycopg does, with patience. Whoever waits for notices alone waits for no answer, and as long as he says.

        Raises:
            psycopg.OperationalError: the server was silent for too long, or takes no writes; the connection is closed.
        """
        try:
            return super().wait(self._patiently(gen), *args, **options)
        except psycopg.errors.ReadOnlySqlTransaction as error:
            raise self.no_writes(error) from error

    def _patiently(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        try:
            wanted, since = next(gen), time.monotonic()
            while True:
                ready = yield wanted
                if ready:
                    since = time.monotonic()
                elif self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                    self._lose_patience(since)
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value

    def wait_for_socket(self, *, to_write: bool = False) -> None:
        """Wait until the socket can be read, or written to, for callers who speak to libpq themselves.

        Raises:
            psycopg.OperationalError: as above.
        """
        since, ends = time.monotonic(), [self.pgconn.socket]
        reading, writing = ([], ends) if to_write else (ends, [])
        while not any(select.select(reading, writing, [], self.patience)):
            self._lose_patience(since)

    def _lose_patience(self, since: float) -> None:
        if self.patience is None or time.monotonic() - since < self.patience:
            return
        self.pgconn.finish()
        raise psycopg.OperationalError(f"no answer within {self.patience:g} s")

    def no_writes(self, error: psycopg.Error) -> psycopg.OperationalError:
        """What to raise where the server takes no writes: an outage, which a new connection may end. This one is closed.

        A primary that was replaced comes back as a standby; a managed server turns read-only while its disk is full.
        """
        self.close()
        message = error.diag.message_primary or str(error)
        return psycopg.OperationalError(f"the server takes no writes, see default_transaction_read_only: {message}")

    def has_ended(self) -> bool:
        """Whether the other side has said meanwhile that the connection is over; asked of an idle one, it costs no round trip."""
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            try:
                self.pgconn.consume_input()
            except psycopg.OperationalError:
                return True
        return self.closed
