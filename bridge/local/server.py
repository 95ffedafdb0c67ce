"""What servers of our own have in common: a folder that one process holds, and the server that it started there."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from bridge.errors import ServerError
from bridge.local.home import FolderLock

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.local.process import Process


# What a server is given of our environment. The rest is no business of its: secrets of ours and of the application are in it, and as root
# we start servers as another user.
_NEEDED = {"PATH", "HOME", "TMPDIR", "TZ", "TZDIR", "USER", "LOGNAME", "SHELL"}
_LIBRARIES = ("LD_", "DYLD_")


def server_environment() -> dict[str, str]:
    """The environment of a server that is not ours: where programs and libraries are, in the language of programs."""
    kept = {name: value for name, value in os.environ.items() if name in _NEEDED or name.startswith(_LIBRARIES)}
    return kept | {"LC_ALL": "C"}


class Server:
    """A server in a folder of its own.

    Args:
        name: what errors call it.
        directory: ours alone.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory.absolute()
        self._lock = FolderLock(self.directory / "lock")
        self._process: Process | None = None

    def stop(self) -> None:
        """End it in its own way, with what that writes; bounded, and safe to repeat."""
        if self._process is not None:
            self._process.stop()
        self._lock.release()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal and wait for its end: a crash, after which ``start`` begins from what is on disk.

        Raises:
            ServerError: it was never started.
        """
        self.process.kill(number)
        self.process.wait(30.0)

    @property
    def process(self) -> Process:
        """The server's main process.

        Raises:
            ServerError: it was never started.
        """
        if self._process is None:
            raise ServerError(f"{self.name} in {self.directory} was not started")
        return self._process

    @property
    def alive(self) -> bool:
        """Whether we started it and it still runs."""
        return self._process is not None and self._process.alive

    def _hold(self) -> None:
        """Keep other processes out of the folder until ``stop``.

        Raises:
            ServerError: one of them holds it.
        """
        if not self._lock.acquire():
            raise ServerError(f"{self.name} in {self.directory} is held by another process ({self._lock.read()}): stop that one first")
