"""How the process that makes jobs meets the database: a connection of its own, what an outage raises there, how much waits."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import psycopg
from kombu.exceptions import KombuError

from bridge import settings
from bridge.errors import ServerError
from bridge.queries.connection import connect

BACKLOG = 600  # live jobs at which the load waits
LOOK = 2.0  # seconds between two looks at it
UNKNOWN = (ServerError, psycopg.OperationalError, KombuError, OSError)  # a call may have been made all the same


def bridge_connection() -> psycopg.Connection[Any]:
    """A connection of the caller's own. It gives a forgotten line up: the load must not end with its first one."""
    return connect(settings.load().require_database(), name="load", timeout=5)


class Backlog:
    """How much waits, looked at every now and then: a machine that cannot keep up is not to be asked for more and more."""

    def __init__(self) -> None:
        self._due, self._long = 0.0, False

    def is_long(self) -> bool:
        """Whether to wait; as before while nobody can tell."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + LOOK
            with suppress(*UNKNOWN), bridge_connection() as connection:
                row = connection.execute("select count(*) from bridge.job").fetchone()
                self._long = bool(row and row[0] > BACKLOG)
        return self._long
