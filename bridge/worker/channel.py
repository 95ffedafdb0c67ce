"""A pool process's own ways to Postgres for starts and finishes: one a thread, shared where there are very many (or greenlets).

A start is waited for: the fence must have answered before the task begins. A finish is only sent, on a connection of its own: its
commit reaches the disk while the process fetches, starts and runs its next task, and its answer is read before the next finish. Should
none come, a small thread reads the answer a moment later; should the connection break before, whoever notices sends the finish again,
until Postgres has taken it.

Outcomes are sent together while a bundle runs, and in streaming mode: there one that comes soon after others were sent waits for more.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, TypeVar

import psycopg
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from bridge.errors import BridgeError
from bridge.queries import runs
from bridge.queries.connection import OUTAGE, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from bridge.queries.connection import Connection
    from bridge.queries.runs import Finish, Wanted
    from bridge.settings import Settings
    from bridge.worker.board import Board

__all__ = ["Channels", "RunChannel"]

log = logging.getLogger("bridge.worker")

Answer = TypeVar("Answer")
_REFUSAL = (BridgeError, psycopg.Error)
_TRIES = 6  # times that an outcome is offered which Postgres refuses: a new release may be being installed
_UNREAD = 0.2  # seconds that an answer may wait for a next finish to read it
_SHORTEST = 0.01  # seconds between two looks, whatever streaming mode asks for
_ANSWERED = 5.0  # seconds of silence until a finish is sent again
_TOGETHER, _SMALL = 200, 16 << 10  # outcomes of one statement in streaming mode, and characters of a result that waits for others
_MOST = 16  # channels of a process, two connections each; threads and greenlets beyond that share them, each for a statement at a time


class RunChannel:
    """A connection for starts, one for finishes, and at most one answer that is still to be read."""

    def __init__(self, settings: Settings, board: Board) -> None:
        self._settings, self._board = settings, board
        self._starts: Connection | None = None
        self._connection: Connection | None = None
        self._starting = threading.Lock()
        self._lock = threading.Lock()  # of the finish and its connection
        self._bundles = 0  # that run on this channel at the moment
        self._again: list[Finish] = []  # those whose answers were lost
        self._kept: list[Finish] = []  # not sent yet
        self._kept_at = 0.0
        self._unread: list[Finish] = []  # sent together
        self._sent_at = 0.0

    def start(self, seq: int, token: str, worker: UUID, pid: int, run: UUID | None = None) -> UUID | None:
        """Ask the fence; the run's id, or None when this copy must not run. With the same ``run`` it may be asked again.

        Raises:
            ServerError: Postgres is away.
        """
        return self.ask(lambda connection: runs.start(connection, seq, token, worker, pid, run))

    def ask(self, question: Callable[[Connection], Answer]) -> Answer:
        """Put a question where starts are asked for: what runs have to tell needs no connection of its own.

        Raises:
            ServerError: Postgres is away.
        """
        with self._starting:
            try:
                if self._starts is None or self._starts.closed:
                    self._starts = self._connect()
                return question(self._starts)
            except OUTAGE:
                if self._starts is not None:
                    self._starts.close()
                raise

    def start_many(self, wanted: Sequence[Wanted], worker: UUID, pid: int) -> set[int]:
        """Ask the fence for a slice of a bundle; the numbers of those that may run. It may be asked again, as ``start``.

        Raises:
            ServerError: Postgres is away.
        """
        return self.ask(lambda connection: runs.start_many(connection, wanted, worker, pid))

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """While a bundle runs, keep outcomes for a moment, to send them together."""
        with self._lock:
            self._bundles += 1
        try:
            yield
        finally:
            with self._lock:
                self._bundles -= 1
                self._flush()

    def finish(self, finish: Finish) -> None:
        """Send the outcome of a run; it is repeated until Postgres has taken it."""
        with self._lock:
            self._kept.append(finish)
            if len(self._kept) == 1:
                self._kept_at = time.monotonic()
            if not self._board.hold(finish) or not self._waits_for_more(finish):
                self._flush()

    def _waits_for_more(self, last: Finish) -> bool:
        """Whether what is kept should be sent with what comes. After a quiet while it is not: nobody should wait for one job's result."""
        if self._bundles:
            return True
        is_soon = time.monotonic() - self._sent_at < self._settings.streaming
        return is_soon and len(self._kept) < _TOGETHER and len(last.result or "") < _SMALL

    def flush(self) -> None:
        """Send what is kept."""
        with self._lock:
            self._flush()

    def settle(self) -> None:
        """Send what is kept, and read the answer of what was sent last, whenever it comes."""
        with self._lock:
            self._flush()
            self._settle()

    def settle_old(self) -> None:
        """Send what has been kept for a while, and read an answer that no other finish has come to read."""
        now = time.monotonic()
        if self._kept and now - self._kept_at > _pause(self._settings):
            self.flush()
        elif self._unread and now - self._sent_at > _UNREAD:
            self.settle()

    def _flush(self) -> None:
        if not self._kept:
            return
        self._settle()
        self._unread, self._kept, self._sent_at = sorted(self._kept, key=lambda one: one.seq), [], time.monotonic()
        try:
            if len(self._unread) == 1:
                runs.send_finish(self._connected(), self._unread[0])
            else:
                runs.send_finish_many(self._connected(), self._unread)
        except OUTAGE:
            self._settle_again()

    def _settle(self) -> None:
        if not self._unread:
            return
        try:
            late = self._superseded()
        except _REFUSAL:
            self._settle_again()
            return
        for place, finish in enumerate(self._unread, 1):
            self._noted(finish, counted=place not in late)
        self._unread = []
        self._board.answered(self._kept)

    def _superseded(self) -> set[int]:
        """The answer to what was sent last: the places, from 1, of what was kept aside."""
        if len(self._unread) == 1:
            return set() if runs.read_finish(self._connected(), self._unread[0]) else {1}
        return set(runs.read_finish_many(self._connected(), self._unread))

    def _settle_again(self) -> None:
        """The answer is lost with its connection, or one of them is refused: each is sent again, by itself.

        A finish that arrived is answered with "superseded".
        """
        self._drop()
        self._again, self._unread = self._unread, []
        for finish in self._again:
            self._insist(finish)
        self._again = []
        self._board.answered(self._kept)

    @property
    def unanswered(self) -> list[Finish]:
        """The outcomes that have no answer yet."""
        return [*self._kept, *self._unread, *self._again]

    def _insist(self, finish: Finish) -> None:
        waiting = Retrying(retry=retry_if_exception_type(OUTAGE), wait=wait_random_exponential(multiplier=0.1, max=5), reraise=True)
        trying = Retrying(
            retry=retry_if_exception_type(_REFUSAL), stop=stop_after_attempt(_TRIES), reraise=True,
            wait=wait_random_exponential(multiplier=0.5, max=5),
        )  # fmt: skip
        try:
            self._noted(finish, counted=trying(waiting, self._finish_anew, finish))
        except _REFUSAL as error:
            # Not an outage: it would be refused for ever, and every task after it with it. Nobody names the run any more: it is lost.
            log.error("outcome dropped, postgres refuses it: the job runs again outcome=%s error=%s", finish, error)  # noqa: TRY400

    def _finish_anew(self, finish: Finish) -> bool:
        try:
            return runs.finish(self._connected(), finish)
        except _REFUSAL:
            self._drop()
            raise

    @staticmethod
    def _noted(finish: Finish, *, counted: bool) -> None:
        if not counted:
            log.warning("outcome kept aside, the run was superseded or is recorded already seq=%d run=%s", finish.seq, finish.run)

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect(min(_ANSWERED, self._settings.timeout))
            runs.prepare_finishes(self._connection)
        return self._connection

    def _connect(self, patience: float | None = None) -> Connection:
        return connect(self._settings.require_database(), name="bridge run", timeout=self._settings.timeout, patience=patience)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _pause(settings: Settings) -> float:
    """Seconds between two looks at what is kept, and how old that may be at one; in streaming mode half of what both may be together."""
    return max(settings.streaming / 2, _SHORTEST) if settings.streaming else _UNREAD


class Channels:
    """The channels of one process, made after its fork, and the thread that reads answers nobody else came to read."""

    def __init__(self, settings: Settings, board: Board) -> None:
        self._settings, self._board = settings, board
        self._local = threading.local()
        self._all: list[RunChannel] = []
        self._lock = threading.Lock()
        self._turns = count()
        self._reader: threading.Thread | None = None

    def get(self) -> RunChannel:
        """The channel of this thread or greenlet."""
        channel: RunChannel | None = getattr(self._local, "channel", None)
        if channel is None:
            channel = self._local.channel = self._next()
        return channel

    def _next(self) -> RunChannel:
        with self._lock:
            if len(self._all) < _MOST:
                self._all.append(RunChannel(self._settings, self._board))
                self._start_reader()
                return self._all[-1]
            return self._all[next(self._turns) % _MOST]

    def unanswered(self) -> set[str]:
        """The tokens of deliveries whose outcome has no answer yet."""
        return {finish.token for channel in list(self._all) for finish in channel.unanswered}

    def settle(self) -> None:
        """Read every answer that is still to be read, before the process ends."""
        for channel in list(self._all):
            channel.settle()

    def _start_reader(self) -> None:
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name="bridge-settle", daemon=True)
            self._reader.start()

    def _read(self) -> None:
        while True:
            time.sleep(_pause(self._settings))
            for channel in list(self._all):
                channel.settle_old()
