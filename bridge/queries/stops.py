"""How a worker hears at once that a run of its own is to be stopped."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

from bridge.queries.connection import is_pooled, translated

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["listen_for_stops", "wait_for_stop"]


def listen_for_stops(connection: Connection, identity: UUID, heard: Callable[[], None]) -> None:
    """From now on, be notified when a run of this worker is to be stopped; ``heard`` is called when that arrives beside an answer.

    Behind a pooler it does nothing: the reports must do.
    """
    if not is_pooled(connection):
        connection.add_notify_handler(lambda notice: heard() if notice.payload == str(identity) else None)
        connection.execute("listen bridge_stop")


def wait_for_stop(connection: Connection, identity: UUID, wake: int, timeout: float) -> None:
    """Wait until a run of this worker is to be stopped, something can be read from ``wake``, or ``timeout`` seconds are over.

    Raises:
        ServerError: the connection broke.
    """
    deadline = time.monotonic() + timeout
    pgconn = connection.pgconn
    with translated():
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([pgconn.socket, wake], [], [], left)
            if wake in ready:
                return
            pgconn.consume_input()
            while (notice := pgconn.notifies()) is not None:
                if notice.extra.decode() == str(identity):
                    return
