"""A soft time limit for one job of a bundle. The pool's own is for whole messages."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from billiard.pool import SIG_SOFT_TIMEOUT
from billiard.process import current_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["SoftLimits"]


class SoftLimits:
    """Sends a pool's process the signal that the pool would send it; its handler raises SoftTimeLimitExceeded where the task is."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._due: float | None = None
        self._thread: threading.Thread | None = None

    def of(self, seconds: float | None) -> AbstractContextManager[None]:
        """Limit what runs inside. Threads, greenlets and the main process know no soft limits, with bundles or without."""
        is_pools = current_process().name != "MainProcess" and threading.current_thread() is threading.main_thread()
        return self._limited(seconds) if seconds and is_pools and SIG_SOFT_TIMEOUT is not None else nullcontext()

    @contextmanager
    def _limited(self, seconds: float) -> Iterator[None]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="bridge-soft-limit", daemon=True)
            self._thread.start()
        self._set(time.monotonic() + seconds)
        try:
            yield
        finally:
            self._set(None)

    def _set(self, due: float | None) -> None:
        with self._change:
            self._due = due
            self._change.notify()

    def _watch(self) -> None:
        with self._change:
            while True:
                left = None if self._due is None else self._due - time.monotonic()
                if left is not None and left <= 0:
                    self._due = None
                    os.kill(os.getpid(), SIG_SOFT_TIMEOUT)
                else:
                    # A limit of centuries is more than a lock waits for.
                    self._change.wait(None if left is None else min(threading.TIMEOUT_MAX, left))
