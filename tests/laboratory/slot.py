"""A place in the world for one process after the other: what runs there is started again when a fault has ended it, as systemd would."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from bridge.local.process import Process
from laboratory.boundary import VARIABLE, order_file, write_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

RESTART = 0.5  # seconds from an end to the next start
LOOK = 0.1  # seconds between two looks of the supervisor


class Slot:
    """One process of the world, and those that were in its place before.

    Attributes:
        name: `worker1`, and the like.
        role: client, drainer, worker.
        process: what runs now, or ran last.
        ends: those that ended with an error of their own: slot, status, end of the log.
        more: environment of the next process, beside the usual.
    """

    def __init__(self, name: str, role: str, command: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        self.name, self.role = name, role
        self._started: list[Process] = []  # each may have left children
        self.ends: list[tuple[str, int, str]] = []
        self.more: dict[str, str] = {}
        self._command = command
        self._order = order_file(folder, name)
        self._env = {**env, VARIABLE: str(self._order)}
        self._folder = folder
        self._down = False
        self._ended: float | None = None
        self.process = self._new()

    def _new(self) -> Process:
        log = self._folder / "logs" / f"{self.name}-{len(self._started)}.log"
        return Process(self.name, self._command, log=log, env={**self._env, **self.more}, cwd=self._folder, death_signal=signal.SIGKILL)

    def start(self) -> None:
        """Start the next process here."""
        process = self._new()
        process.start()
        self.process = process  # not before it runs: others send signals meanwhile
        self._started.append(process)
        self._ended = None

    def restart_if_due(self, now: float) -> None:
        """What the supervisor does at each look."""
        if self.process.alive or self._down:
            return
        if self._ended is None:
            self._ended = now
            if (self.process.returncode or 0) > 0:
                self.ends.append((self.name, self.process.returncode or 0, self.process.log_tail()))
        elif now >= self._ended + RESTART:
            self.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the main process alone."""
        self.process.kill(number)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the main process and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def children(self) -> list[int]:
        """Pids of what it has started: of a worker, the children of its pool."""
        try:
            return [child.pid for child in psutil.Process(self.pid).children()]
        except psutil.NoSuchProcess:
            return []

    def stands(self) -> bool:
        """Whether any process here is stopped."""
        try:
            main = psutil.Process(self.pid)
            return any(one.status() == psutil.STATUS_STOPPED for one in (main, *main.children(recursive=True)))
        except psutil.NoSuchProcess:
            return False

    def stay_down(self) -> None:
        """What ends here is not started again until `let_start`."""
        self._down = True

    def let_start(self) -> None:
        """The supervisor's again."""
        self._down = False

    def arm(self, boundary: str, action: str) -> str | None:
        """Have the process kill or stop itself at a boundary, see boundary.py; the order, or None while there is another."""
        if self._order.exists():
            return None
        return write_order(self._order, boundary, action)

    def is_armed(self, order: str) -> bool:
        """Whether nobody has obeyed this order yet."""
        try:
            return self._order.read_text() == order
        except FileNotFoundError:
            return False

    def disarm(self, order: str | None = None) -> bool:
        """Take an order back, or any; False when it has been obeyed."""
        if order is not None and not self.is_armed(order):
            return False
        try:
            self._order.unlink()
        except FileNotFoundError:
            return False
        return True

    def end(self) -> None:
        """End all that ever ran here."""
        self._down = True
        self.process.kill()
        for process in self._started:
            process.stop()


class Supervisor:
    """Looks after slots in a thread of its own, which is also the one that starts them again: children end with that thread."""

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        self._slots = slots  # more may come
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look after nothing any more. The thread goes on, because processes end with it."""
        self._done.set()

    def _run(self) -> None:
        while not self._done.wait(LOOK):
            for slot in list(self._slots.values()):
                slot.restart_if_due(time.monotonic())
        threading.Event().wait()
