"""What runs tell while they run, written at most twice a second for each, and always before their outcome.

The first thing is written at once: of a process that dies a moment later, it is what one wants to know. What follows within half a
second waits, the newest progress in place of the one before, and is written by a small thread, or by the end of the run.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import psycopg

from bridge.errors import BridgeError
from bridge.queries import notes as queries
from bridge.queries.connection import OUTAGE, Connections

if TYPE_CHECKING:
    from bridge.application import Membership
    from bridge.worker.fence import Run

__all__ = ["INTERVAL", "LINE", "Lines", "Teller", "add_line", "set_progress", "settle"]

log = logging.getLogger("bridge.worker")

INTERVAL = 0.5  # seconds between two writes of a run
LINE = 8192  # characters of a line's message; what is longer is cut
_LOOK = 0.1  # seconds between two looks at what waits
_HALF_LINES, _HALF_BYTES = 500, 128 << 10  # of what is kept in memory until it is written: the first of it, and the last


class _Line:
    """One line, and what was left out before it."""

    __slots__ = ("at", "left_out", "left_out_bytes", "level", "message", "size")

    def __init__(self, level: str, message: str) -> None:
        self.at = time.monotonic()
        self.level = level
        self.message = message if len(message) <= LINE else f"{message[:LINE]} … ({len(message) - LINE} characters cut)"
        self.size = len(self.message.encode())
        self.left_out = self.left_out_bytes = 0


class Lines:
    """Lines that wait to be written: when there are too many, those in the middle are left out, and counted."""

    def __init__(self) -> None:
        self._first: list[_Line] = []
        self._last: deque[_Line] = deque()
        self._first_bytes = self._last_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._first)

    def add(self, line: _Line) -> None:
        """Keep a line."""
        if not self._last and len(self._first) < _HALF_LINES and self._first_bytes + line.size <= _HALF_BYTES:
            self._first.append(line)
            self._first_bytes += line.size
            return
        self._last.append(line)
        self._last_bytes += line.size
        while len(self._last) > 1 and (len(self._last) > _HALF_LINES or self._last_bytes > _HALF_BYTES):
            self._leave_out(self._last.popleft())

    def _leave_out(self, line: _Line) -> None:
        self._last_bytes -= line.size
        self._last[0].left_out += line.left_out + 1
        self._last[0].left_out_bytes += line.left_out_bytes + line.size

    def all(self) -> list[_Line]:
        """The lines, oldest first."""
        return [*self._first, *self._last]

    def text(self) -> str | None:
        """As ``bridge.note`` takes them; None when there are none."""
        now = time.monotonic()
        rows = [[now - line.at, line.level, line.message, line.left_out, line.left_out_bytes] for line in self.all()]
        return json.dumps(rows) if rows else None


class Notes:
    """What one run has to tell and has not told yet."""

    def __init__(self) -> None:
        self.progress: str | None = None
        self.lines = Lines()
        self.sent_at = float("-inf")
        self.superseded = False
        self.kept = threading.Lock()  # of what waits
        self.writing = threading.RLock()  # one write after the other

    def take(self) -> tuple[str | None, Lines]:
        """What is to be written now."""
        with self.kept:
            taken, self.progress, self.lines = (self.progress, self.lines), None, Lines()
        return taken

    def put_back(self, progress: str | None, lines: Lines) -> None:
        """It could not be written: it waits before what has come since."""
        with self.kept:
            self.progress = progress if self.progress is None else self.progress
            for line in self.lines.all():
                lines.add(line)
            self.lines = lines


class Teller(threading.Thread):
    """Writes what waits, for all runs of one process. It begins with the first that does, and has a connection of its own."""

    def __init__(self, joined: Membership) -> None:
        super().__init__(name="bridge-teller", daemon=True)
        self._joined = joined
        self._runs: dict[int, Run] = {}
        self._stirred = threading.Event()
        self._lock = threading.Lock()

    def add(self, run: Run) -> None:
        """Write what this run has to tell when it is time."""
        with self._lock:
            self._runs[id(run)] = run
            if self.ident is None:
                self.start()
        self._stirred.set()

    def forget(self, run: Run) -> None:
        """The run has told all."""
        with self._lock:
            self._runs.pop(id(run), None)

    def run(self) -> None:
        """Look at what waits, until the process ends."""
        while self._stirred.wait():
            time.sleep(_LOOK)
            for run in self._due():
                try:
                    _write(self._joined, run)
                except OUTAGE as error:
                    log.debug("notes of a run wait, postgres is away error=%s", error)
                    self.add(run)

    def _due(self) -> list[Run]:
        now = time.monotonic()
        with self._lock:
            due = [run for run in self._runs.values() if run.notes is None or now - run.notes.sent_at >= INTERVAL]
            for run in due:
                del self._runs[id(run)]
            if not self._runs:
                self._stirred.clear()
        return due


def set_progress(joined: Membership, run: Run, value: str) -> None:
    """Note how far a run has come; JSON text. What it said before and nobody has written is forgotten."""
    notes = _of(run)
    with notes.kept:
        notes.progress = value
    _tell(joined, run, notes)


def add_line(joined: Membership, run: Run, level: str, message: str) -> None:
    """Add a line to the log of a run."""
    notes = _of(run)
    # Halves of a surrogate pair and NUL are nothing that Postgres can hold as text.
    line = _Line(level, message.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}"))
    with notes.kept:
        notes.lines.add(line)
    _tell(joined, run, notes)


def settle(joined: Membership, run: Run) -> None:
    """Write what is left to tell, before the run's outcome.

    Raises:
        ServerError: Postgres is away; it waits.
    """
    if run.notes is None:
        return
    _write(joined, run)
    if isinstance(joined.connections, Connections):
        joined.teller.forget(run)


def _of(run: Run) -> Notes:
    if run.notes is None:
        run.notes = Notes()
    return run.notes


def _tell(joined: Membership, run: Run, notes: Notes) -> None:
    if notes.superseded:
        notes.take()
    elif time.monotonic() - notes.sent_at >= INTERVAL:
        try:
            _write(joined, run)
        except OUTAGE:
            joined.teller.add(run)
    elif isinstance(joined.connections, Connections):
        joined.teller.add(run)  # else a test's transaction, which belongs to one thread: the end of the run writes


def _write(joined: Membership, run: Run) -> None:
    """Write what a run has to tell.

    Raises:
        ServerError: Postgres is away; it waits.
    """
    notes = _of(run)
    with notes.writing:
        progress, lines = notes.take()
        if progress is None and not lines:
            return
        notes.sent_at = time.monotonic()
        try:
            asked = (run.delivery.seq, run.id, progress, lines.text())
            notes.superseded = not joined.channels.get().ask(lambda connection: queries.note(connection, *asked))
        except OUTAGE:
            notes.put_back(progress, lines)
            raise
        except (BridgeError, psycopg.Error) as error:
            log.warning("notes of a run are lost, postgres refuses them delivery=%s error=%s", run.delivery, error)
