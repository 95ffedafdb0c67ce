"""A small process that outlives a killed stack and ends what the stack had started.

The kernel's word to a child of a dead parent does not reach grandchildren, as a worker's pool children are, and a worker that
has lost its broker can hang while it shuts down. The guard notices the death by the end of its input.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from bridge.local.process import Process

DISMISSED = "done\n"


class Guard:
    """The stack's side of the guard; it works from `__init__` on."""

    def __init__(self) -> None:
        # Isolated and without site packages: it starts in 20 ms and imports nothing of ours.
        command = [sys.executable, "-I", "-S", __file__]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603

    def watch(self, process: Process, number: signal.Signals = signal.SIGKILL) -> Self:
        """From now on, send this signal to the process and its group when we die."""
        self._write(f"{process.pid} {int(number)}\n")
        return self

    def dismiss(self) -> None:
        """Everything has been stopped: end without a signal to anybody, whose numbers may be somebody else's by now."""
        self._write(DISMISSED)
        self._child.communicate()

    def _write(self, line: str) -> None:
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.write(line)
                self._child.stdin.flush()


def main() -> None:
    """Read `pid signal` a line; end quietly on `done`, and on the end of input signal all of them."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watched: list[tuple[int, int]] = []
    for line in sys.stdin:
        if line == DISMISSED:
            return
        pid, number = map(int, line.split())
        watched.append((pid, number))
    for pid, number in reversed(watched):
        # Whoever is gone already needs no signal.
        with contextlib.suppress(OSError):
            os.killpg(pid, number)


if __name__ == "__main__":
    main()
