"""A pool process's own ways to Postgres for starts and finishes: one a thread, shared where there are very many (or greenlets).

A start is waited for: the fence must have answered before the task begins. A finish is only sent, on a connection of its own: its
commit reaches the disk while the process fetches, starts and runs its next task, and its answer is read before the next finish. Should
none come, a small thread reads the answer a moment later; should the connection break before, whoever notices sends the finish again,
until Postgres has taken it.
"""

from __future__ import annotations

import logging
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, TypeVar

import psycopg
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from bridge.errors import BridgeError
from bridge.queries import runs
from bridge.queries.connection import OUTAGE, connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from bridge.queries.connection import Connection
    from bridge.queries.runs import Finish
    from bridge.settings import Settings
    from bridge.worker.board import Board

__all__ = ["Channels", "RunChannel"]

log = logging.getLogger("bridge.worker")

Answer = TypeVar("Answer")
_REFUSAL = (BridgeError, psycopg.Error)
_TRIES = 6  # times that an outcome is offered which Postgres refuses: a new release may be being installed
_UNREAD = 0.2  # seconds that an answer may wait for a next finish to read it
_ANSWERED = 5.0  # seconds of silence until a finish is sent again
_MOST = 16  # channels of a process, two connections each; threads and greenlets beyond that share them, each for a statement at a time


class RunChannel:
    """A connection for starts, one for finishes, and at most one finish whose answer is still to be read."""

    def __init__(self, settings: Settings, board: Board) -> None:
        self._settings, self._board = settings, board
        self._starts: Connection | None = None
        self._connection: Connection | None = None
        self._starting = threading.Lock()
        self._lock = threading.Lock()  # of the finish and its connection
        self._unread: Finish | None = None
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

    def finish(self, finish: Finish) -> None:
        """Send the outcome of a run; it is repeated until Postgres has taken it."""
        with self._lock:
            self._settle()
            self._unread, self._sent_at = finish, time.monotonic()
            self._board.write(finish.token)
            try:
                runs.send_finish(self._connected(), finish)
            except OUTAGE:
                self._settle_again()

    def settle(self) -> None:
        """Read the answer of the last finish, whenever it comes."""
        with self._lock:
            self._settle()

    def settle_old(self) -> None:
        """Read an answer that no other finish has come to read."""
        if self._unread is not None and time.monotonic() - self._sent_at > _UNREAD:
            self.settle()

    def _settle(self) -> None:
        if self._unread is None:
            return
        try:
            self._noted(runs.read_finish(self._connected(), self._unread))
        except _REFUSAL:
            self._settle_again()

    def _settle_again(self) -> None:
        """The answer is lost with its connection: the finish is sent again, which a finish that arrived answers with "superseded"."""
        waiting = Retrying(retry=retry_if_exception_type(OUTAGE), wait=wait_random_exponential(multiplier=0.1, max=5), reraise=True)
        trying = Retrying(
            retry=retry_if_exception_type(_REFUSAL), stop=stop_after_attempt(_TRIES), reraise=True,
            wait=wait_random_exponential(multiplier=0.5, max=5),
        )  # fmt: skip
        try:
            self._noted(trying(waiting, self._finish_anew))
        except _REFUSAL as error:
            # Not an outage: it would be refused for ever, and every task after it with it. Nobody names the run any more: it is lost.
            log.error("outcome dropped, postgres refuses it: the job runs again outcome=%s error=%s", self._unread, error)  # noqa: TRY400
            self._forget()

    def _finish_anew(self) -> bool:
        self._drop()
        return self._unread is None or runs.finish(self._connected(), self._unread)

    def _noted(self, counted: bool) -> None:  # noqa: FBT001 - the answer itself
        if not counted and self._unread is not None:
            log.warning(
                "outcome kept aside, the run was superseded or is recorded already seq=%d run=%s", self._unread.seq, self._unread.run
            )
        self._forget()

    def _forget(self) -> None:
        self._unread = None
        self._board.write(None)

    @property
    def unread(self) -> Finish | None:
        """The finish whose answer is still to be read."""
        return self._unread

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect(min(_ANSWERED, self._settings.timeout))
        return self._connection

    def _connect(self, patience: float | None = None) -> Connection:
        return connect(self._settings.require_database(), name="bridge run", timeout=self._settings.timeout, patience=patience)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


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
        return {finish.token for channel in list(self._all) if (finish := channel.unread) is not None}

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
            time.sleep(_UNREAD)
            for channel in list(self._all):
                channel.settle_old()
