"""Waiting for ends: woken by NOTIFY, with a look now and then in case that one was missed.

Behind a pooler nobody can be woken: a session that listens is somebody else's by then. There it is looked again and again, after pauses
that grow to half a second.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import UUID

import psycopg

from bridge.queries.connection import is_pooled

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from bridge.queries.connection import Connection

__all__ = ["Waiter", "registered"]

_FIRST_NAP, _LONGEST_NAP = 0.01, 0.5  # seconds between two looks behind a pooler
_RECHECK = 1.0  # seconds between two looks at everything: NOTIFY is only the fast way


class Waiter:
    """Sleeps until one of the awaited may have ended."""

    def __init__(self, connection: Connection, recheck: float) -> None:
        self._connection = connection
        self._recheck = recheck
        self._looked_at = time.monotonic()
        self._nap = _FIRST_NAP

    def sleep(self, seconds: float) -> set[UUID] | None:
        """Sleep at most so long; gives the ids that are said to have ended, or None when it is time to look at all of them."""
        if is_pooled(self._connection):
            time.sleep(max(0.0, min(seconds, self._nap)))
            self._nap = min(2 * self._nap, _LONGEST_NAP)
            return None
        left = self._looked_at + self._recheck - time.monotonic()
        heard = self._connection.notifies(timeout=max(0.0, min(seconds, left)), stop_after=1)
        named = {identity for notice in heard if (identity := _job_of(notice.payload))}
        if named and left > 0:
            return named
        self._looked_at = time.monotonic()
        return None


def _job_of(payload: str) -> UUID | None:
    """The job that a notice tells of; None for any other word: whoever may connect may notify on any channel."""
    with suppress(ValueError):
        return UUID(payload)
    return None


@contextmanager
def registered(connection: Connection, identities: Collection[UUID], recheck: float = _RECHECK) -> Iterator[Waiter]:
    """Ask to be woken when one of these ends, until the block is left.

    The order that loses no wake-up: listen, register, look, then sleep; the look is the caller's.

    Args:
        connection: one on which nobody else listens meanwhile.
        identities: of jobs, or of results stored without one.
        recheck: seconds between two looks at all of them.
    """
    if is_pooled(connection):
        yield Waiter(connection, recheck)
        return
    connection.execute("listen bridge_done")
    try:
        connection.execute("select bridge.wait_for(%s)", (list(identities),))
        yield Waiter(connection, recheck)
    finally:
        with suppress(psycopg.OperationalError):  # it broke while we waited: nothing to undo
            connection.execute("select bridge.forget_waiter(%s)", (list(identities),))
            connection.execute("unlisten bridge_done")
