"""How a drainer goes about queues that the broker has refused messages of, and messages that it breaks off at."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.queries.dispatch import Claimed

__all__ = ["LONGEST_PAUSE", "Holds", "Suspicion"]

LONGEST_PAUSE = 15.0  # seconds between two tries to reconnect, or to publish to a queue that refuses, at most
_MOST_SUSPECTS = 1000  # jobs that are remembered
_FIRST_HOLD = 1.0  # seconds that a queue is left alone after a refusal


class Holds:
    """Queues that the broker refuses messages of: each waits a while, ever longer while it takes nothing at all."""

    def __init__(self) -> None:
        self._pauses: dict[str, float] = {}
        self._until: dict[str, float] = {}

    def __contains__(self, queue: str) -> bool:
        return time.monotonic() < self._until.get(queue, 0.0)

    def hold(self, queue: str, *, took_some: bool) -> float:
        """Leave this queue alone for the seconds that are returned."""
        pause = _FIRST_HOLD if took_some else min(2 * self._pauses.get(queue, _FIRST_HOLD / 2), LONGEST_PAUSE)
        self._pauses[queue], self._until[queue] = pause, time.monotonic() + pause
        return pause

    def refused(self) -> list[str]:
        """Queues that wait, or did a moment ago."""
        return [queue for queue, until in self._until.items() if time.monotonic() < until + LONGEST_PAUSE]

    def release(self, queue: str) -> None:
        """It takes messages again."""
        self._pauses.pop(queue, None)
        self._until.pop(queue, None)


class Suspicion:
    """Finds the message that a broker breaks off at: of its shipment it takes no other either, and it does not say which one it was.

    The jobs of that queue go out one at a time for a while. A job is found out when that has happened to it twice, alone and each time on a
    new connection: once may be the broker's doing.
    """

    def __init__(self) -> None:
        self._left: Counter[str] = Counter()  # jobs of each queue that are still to go out one at a time
        self._seen_alone: dict[str, None] = {}  # their ids, the oldest first

    def limit(self, queue: str, shipment: int) -> int:
        """How many jobs of a queue may go out together."""
        return 1 if self._left[queue] > 0 else shipment

    def sent(self, queue: str, count: int) -> None:
        """So many went well."""
        self._left[queue] -= count
        self._left += Counter()  # what is over is forgotten

    def accuse(self, jobs: Sequence[Claimed]) -> bool:
        """This shipment was broken off by something that was in it; whether it is certain that it was its only job."""
        queue = jobs[0].queue
        self._left[queue] = max(self._left[queue], len(jobs))
        if len(jobs) > 1:
            return False
        if jobs[0].id in self._seen_alone:
            del self._seen_alone[jobs[0].id]
            return True
        self._seen_alone[jobs[0].id] = None
        if len(self._seen_alone) > _MOST_SUSPECTS:
            del self._seen_alone[next(iter(self._seen_alone))]
        return False
