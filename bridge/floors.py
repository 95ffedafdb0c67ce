"""When a drainer has the floors of its queues raised: where claims, ticks and looks begin, see sql/81_floor.sql."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bridge.queries import dispatch

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["Floors"]

_EVERY = 1.0  # seconds
_JOBS = 2000  # or so many claimed: what a look passes between two raises is a matter of a millisecond


class Floors:
    """What this drainer has claimed since floors were last raised."""

    def __init__(self) -> None:
        self._queues: set[str] = set()
        self._jobs = 0
        self._look: dict[str, Any] | None = None
        self._due = 0.0

    def claimed(self, queue: str, jobs: int) -> None:
        """So many jobs of a queue were claimed."""
        if jobs:
            self._queues.add(queue)
            self._jobs += jobs

    def raise_if_due(self, connection: Connection) -> None:
        """Raise them in a transaction of its own, when enough jobs were claimed or a second has gone."""
        wanted = self._queues or self._look or not self._due  # the first call takes away floors that are wrong
        if not wanted or (self._jobs < _JOBS and time.monotonic() < self._due):
            return
        look = dispatch.raise_floors(connection, self._queues, self._look)
        if look is None or look != self._look:  # else it waits still, and these queues with it
            self._queues.clear()
        self._look = look
        self._jobs, self._due = 0, time.monotonic() + _EVERY
