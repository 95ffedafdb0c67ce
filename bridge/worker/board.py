"""What the processes of a pool tell their main process without a word: outcomes that Postgres has not answered, jobs that they are at.

It is memory that they share, made before the pool forks. A task is over for the main process when its function has returned; its row runs
until Postgres has taken the outcome, which a busy server may do seconds later. So the main process goes on naming such a run, and where a
process dies it knows what that had achieved. It tells the processes one thing: to begin no more.
"""

from __future__ import annotations

import marshal
import mmap
import os
import struct
from typing import TYPE_CHECKING, Any
from uuid import UUID

from billiard.process import current_process
from celery.worker import state

from bridge.queries.runs import Finish

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Board"]

_PROCESSES = 512  # of a pool, at most
_PLACES = 2 * _PROCESSES  # the second of a process is for one whose predecessor has left outcomes in the first
_PLACE = 256 << 10  # bytes of each; what is never written takes no memory
_AT = struct.Struct("=qq")  # a process, and the number of the job that it is at; 0 for none
_LENGTH = struct.Struct("=i")  # of an outcome, and before the first of all of them together
_HEAD = _AT.size + _LENGTH.size


class Board:
    """One a worker. Where the pool's processes are threads nothing is written here: the main process sees what they know."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1 + _PLACES * _PLACE)
        self._main = os.getpid()
        self._own: tuple[int, int | None] = (self._main, None)  # a process, and where it writes

    def begin(self, seq: int) -> None:
        """This process begins a job of a bundle; 0: it has ended one."""
        place = self._mine()
        if place is not None:
            _AT.pack_into(self._memory, place, os.getpid(), seq)

    def hold(self, finish: Finish) -> bool:
        """This process has an outcome for Postgres; False when there is no room to keep its content, or not even its name."""
        place = self._mine()
        if place is None or self._add(place, _packed(finish)):
            return True
        self._add(place, marshal.dumps((finish.token,)))
        return False

    def answered(self, others: Iterable[Finish]) -> None:
        """Postgres has answered all outcomes of this process but these."""
        place = self._mine()
        if place is not None:
            self._set_used(place, 0)
            for finish in others:
                self.hold(finish)

    def at(self, process: int | None) -> int | None:
        """The number of the job that a process is at, or was when it died; None where it is at none."""
        place = self._place_of(process)
        return None if place is None else _AT.unpack_from(self._memory, place)[1] or None

    def held(self, process: int | None) -> list[Finish]:
        """The outcomes of a process that had no answer when it died, in the order of their numbers."""
        place = self._place_of(process)
        found = [] if place is None else [finish for _, finish in self._read(place) if finish is not None]
        return sorted(found, key=lambda one: one.seq)

    def orphans(self) -> list[int]:
        """The processes that have died with outcomes that had no answer, until ``forget`` is told of them."""
        return [self._process(place) for place in self._places() if self._used(place) and not self._is_alive(place)]

    def forget(self, process: int) -> None:
        """The outcomes of a process are written; while it lives, it says so itself."""
        place = self._place_of(process)
        if place is not None and not self._is_alive(place):
            self._set_used(place, 0)

    def unanswered(self) -> set[str]:
        """The tokens of outcomes that have no answer; of dead processes, those that the main process can still write."""
        used = [(place, self._is_alive(place)) for place in self._places() if self._used(place)]
        return {token for place, is_alive in used for token, finish in self._read(place) if is_alive or finish is not None}

    def leave(self) -> None:
        """The worker stops: processes begin no further job of the bundles that they have."""
        self._memory[0] = 1

    @property
    def is_left(self) -> bool:
        """Whether it stops. Where tasks run in the main process, its signal's handler has noted that before anybody could say it here."""
        return bool(self._memory[0]) or state.should_stop is not None or state.should_terminate is not None

    def _mine(self) -> int | None:
        """Where this process writes, from that of one that has ended perhaps; None in the main process."""
        pid, place = self._own
        if pid != os.getpid():
            place = self._taken()
            self._own = os.getpid(), place
        return place

    def _taken(self) -> int | None:
        index = getattr(current_process(), "index", None)
        if index is None:
            return None
        first = int(index) % _PROCESSES
        place, second = (1 + number * _PLACE for number in (first, first + _PROCESSES))
        if self._used(place):  # the main process has not written that yet
            place = second
        self._set_used(place, 0)
        _AT.pack_into(self._memory, place, os.getpid(), 0)
        return place

    @staticmethod
    def _places() -> Iterator[int]:
        return (1 + number * _PLACE for number in range(_PLACES))

    def _place_of(self, process: int | None) -> int | None:
        return next((place for place in self._places() if self._process(place) == process), None)

    def _process(self, place: int) -> int:
        return int(_AT.unpack_from(self._memory, place)[0])

    def _is_alive(self, place: int) -> bool:
        try:
            os.kill(self._process(place), 0)
        except ProcessLookupError:
            return False
        return True

    def _used(self, place: int) -> int:
        return int(_LENGTH.unpack_from(self._memory, place + _AT.size)[0])

    def _set_used(self, place: int, used: int) -> None:
        _LENGTH.pack_into(self._memory, place + _AT.size, used)

    def _add(self, place: int, data: bytes) -> bool:
        used = self._used(place)
        at = place + _HEAD + used
        if at + _LENGTH.size + len(data) > place + _PLACE:
            return False
        _LENGTH.pack_into(self._memory, at, len(data))
        self._memory[at + _LENGTH.size : at + _LENGTH.size + len(data)] = data
        self._set_used(place, used + _LENGTH.size + len(data))
        return True

    def _read(self, place: int) -> Iterator[tuple[str, Finish | None]]:
        """The entries of a place. Its process may be writing: what cannot be read is not there yet, or no more."""
        at = place + _HEAD
        end = at + self._used(place)
        while at < end:
            (length,) = _LENGTH.unpack_from(self._memory, at)
            at += _LENGTH.size
            try:
                token, *parts = marshal.loads(self._memory[at : at + length])  # noqa: S302 - our own processes have written it
            except (EOFError, ValueError, TypeError):
                return
            yield token, _unpacked(token, *parts) if parts else None
            at += length


def _packed(finish: Finish) -> bytes:
    """An outcome as bytes, its token first; a tenth of what pickle takes for it, and each job pays it."""
    return marshal.dumps((
        finish.token, finish.seq, finish.run.bytes, finish.job.bytes, finish.status, finish.result, finish.error, finish.outcome,
    ))  # fmt: skip


def _unpacked(token: str, seq: int, run: bytes, job: bytes, *texts: Any) -> Finish:
    return Finish(seq, UUID(bytes=run), token, UUID(bytes=job), *texts)
