"""How a drainer hears of ready jobs: by NOTIFY, or by looking often while commits queue for it; and how long it may sleep."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from bridge.queries import dispatch, listeners
from bridge.queries.connection import is_pooled

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from threading import Event

    from bridge.queries.connection import Connection

__all__ = ["Listening"]

log = logging.getLogger("bridge.drainer")

# While windows are full, or another drainer claims: pauses adapt so that a look finds about this many jobs' room, not one job's.
_FAIR_SHIPMENT = 100
_SHORTEST, _LONGEST = 0.01, 0.25  # seconds
_EVERY = 1.0  # seconds between two looks at the crowd
_QUEUE = 3  # commits that wait for their turn to notify
_SCARCE = 10  # jobs a second that become ready: fewer are told one by one, whatever the disk
_REMEMBERED = 30.0  # seconds that what a drainer has said is surely remembered: the tick forgets it after a minute
_LASTING = 1.5  # seconds in a crowd: where it was over at the first look, others than those who enqueue had queued
_LONGEST_PATIENCE = 64.0  # seconds until it believes in a crowd again, which grow with each such one


class Listening:
    """Whether a drainer wants to be told, and whether it is.

    Args:
        queues: those that it serves; none stands for all.
        poll: seconds that it may sleep when nothing is to be expected.
        stop: ends a wait behind a pooler.

    Of all commits of a server that notify, one has its turn at a time, until its WAL is on disk. Where so many enqueue that they queue
    for that, drainers look by themselves, and nobody has to notify.
    """

    def __init__(self, queues: Collection[str], poll: float, stop: Event) -> None:
        self._queues = sorted(queues) or [""]
        self._poll = poll
        self._stop = stop
        self._pause = _SHORTEST
        self._in_crowd = False
        self._turned_at = -math.inf  # when that was last changed
        self._patience = 0.0
        self._told: set[str] = set()
        self._look_at = math.inf  # at all queues
        self._seen: tuple[float, int] | None = None  # when it last looked, and how many jobs had become ready by then
        self._said: tuple[Connection, list[str]] | None = None
        self._said_at = 0.0
        self._horizon: str | None = None

    def wanted(self, connection: Connection) -> list[str]:
        """The queues that it wants to be told of, as ``bridge.report_drainer`` takes them; behind a pooler nobody can be told."""
        return [] if self._in_crowd or is_pooled(connection) else self._queues

    def look(self, connection: Connection) -> bool:
        """See each second whether there is a crowd; whether that has changed, so that it should be reported now."""
        if is_pooled(connection):
            self._in_crowd = False
            return False
        now = time.monotonic()
        if self._seen is not None and now - self._seen[0] < _EVERY:
            return False
        crowd = listeners.crowd(connection)
        before, self._seen = self._seen, (now, crowd.ready)
        scarce = before is None or crowd.ready - before[1] < _SCARCE * (now - before[0])
        if not (self._is_over(now, scarce=scarce) if self._in_crowd else self._begins(now, crowd.waiting)):
            return False
        self._in_crowd, self._turned_at = not self._in_crowd, now
        log.info("looks by itself, commits queue to notify waiting=%d" if self._in_crowd else "listens waiting=%d", crowd.waiting)
        return True

    def _begins(self, now: float, waiting: int) -> bool:
        return waiting >= _QUEUE and now - self._turned_at >= self._patience

    def _is_over(self, now: float, *, scarce: bool) -> bool:
        """Few jobs come. Where it was so from the first, it would begin anew for ever."""
        if scarce:
            lasted = now - self._turned_at >= _LASTING
            self._patience = 0.0 if lasted else min(max(self._patience * 2, _EVERY), _LONGEST_PATIENCE)
        return scarce

    def reported(self, connection: Connection, wanted: list[str]) -> None:
        """It has said what it wants. Where that is new, or may have been forgotten, whoever has an open transaction may not know of it."""
        said = (connection, wanted)
        if wanted and (said != self._said or time.monotonic() - self._said_at > _REMEMBERED):
            self._horizon = listeners.horizon(connection)
        self._said, self._said_at = said, time.monotonic()

    def wait(self, connection: Connection, published: int, ready: Callable[[], bool], *, until: float) -> None:
        """Sleep until somebody tells of a ready job, or as long as nothing is to be expected.

        Who is told of one queue without a pause looks at all of them in time: others may have got room meanwhile.

        Args:
            connection: of the drainer.
            published: jobs that the last look has found.
            ready: whether there are jobs that full windows or other claims hold up.
            until: when the next duty is due, on the monotonic clock.
        """
        # Where many come the next is told at once, and nothing is asked meanwhile.
        patience = 0.0 if self._in_crowd or is_pooled(connection) else min(_SHORTEST, until - time.monotonic())
        self._told = self._notices(connection, max(patience, 0.0))
        pause = _LONGEST if self._told else self.pause(connection, published, held_back=ready())
        self._look_at = min(self._look_at, time.monotonic() + pause)
        if not self._told:
            self._told = self._notices(connection, max(_SHORTEST, min(self._look_at, until) - time.monotonic()))
        if time.monotonic() >= self._look_at:
            self._told = set()

    def told(self) -> set[str]:
        """The queues of which somebody has told, once; none when it is time to look at all."""
        told, self._told = self._told, set()
        if not told:
            self._look_at = math.inf
        return told

    def pause(self, connection: Connection, published: int, *, held_back: bool) -> float:
        """Seconds until the next look: less while ready jobs are held back, and while jobs may come that nobody tells of.

        Args:
            connection: of the drainer.
            published: jobs that the last look has found.
            held_back: full windows or other claims hold up ready jobs.
        """
        self._pause = max(self._pause / 2, _SHORTEST) if published >= _FAIR_SHIPMENT else min(self._pause * 2, _LONGEST)
        if held_back:
            return self._pause
        if self._in_crowd:
            return _SHORTEST
        return min(self._poll, dispatch.next_look(connection)) if self._is_told(connection) else self._pause

    def hurry(self, connection: Connection) -> None:
        """There was more than one look finds: all queues are looked at without a pause, and the next one is short."""
        self._pause = _SHORTEST
        self.forget(connection)

    def forget(self, connection: Connection) -> None:
        """All queues will be looked at: what was told meanwhile is let go, or it would pile up."""
        self._notices(connection, 0.0)

    def _notices(self, connection: Connection, patience: float) -> set[str]:
        if is_pooled(connection):
            self._stop.wait(patience)
            return set()
        return {notice.payload for notice in connection.notifies(timeout=patience, stop_after=1)}

    def _is_told(self, connection: Connection) -> bool:
        """Whether all that becomes ready from now on is told, or nothing is, behind a pooler."""
        told = self._horizon is None
        if self._horizon is not None and listeners.has_passed(connection, self._horizon):
            self._horizon = None  # some may have ended since the last look: one more is due
        return told
