"""Calls of SQL functions, performed by a drainer where pg_cron does not."""

from __future__ import annotations

import logging
from contextlib import closing
from threading import Thread
from typing import TYPE_CHECKING

from bridge.errors import BridgeError
from bridge.queries import calls
from bridge.queries.connection import connect

if TYPE_CHECKING:
    from bridge.queries.connection import Connection
    from bridge.settings import Settings

__all__ = ["Calls"]

log = logging.getLogger("bridge.drainer")


class Calls:
    """Performs calls one at a time, in a thread with a connection of its own: a function may take an hour, and jobs should not wait.

    The connection is new each time, so that nothing of what functions leave in a session lasts. When the drainer ends, Postgres brings
    the call in hand to its end by itself.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread: Thread | None = None

    def look(self, connection: Connection) -> None:
        """Begin to perform calls when some wait; stop those that are over while one is performed.

        Raises:
            ServerError: the database went away.
        """
        if self._thread is not None and self._thread.is_alive():
            calls.stop_calls(connection)
        elif calls.wait(connection):
            # A daemon: a call that takes long must not keep the process from ending.
            self._thread = Thread(target=self._perform, name="bridge-calls", daemon=True)
            self._thread.start()

    def _perform(self) -> None:
        try:
            with closing(connect(self._settings.require_database(), name="bridge calls", timeout=self._settings.timeout)) as connection:
                calls.run_calls(connection)
        except BridgeError as error:
            log.warning("calls were broken off error=%s", error)
