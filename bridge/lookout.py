"""A look at who consumes the queues, which a drainer takes now and then without waiting for it."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.broker.fleet import Consumer

__all__ = ["Lookout"]

log = logging.getLogger("bridge.drainer")

_GIVE_UP = 30.0  # seconds after which a look at a broker that has gone deaf is left behind


class Lookout:
    """At most one look at a time, in a thread of its own: the answers take a second, and jobs should not wait for them."""

    def __init__(self) -> None:
        self._look: Future[list[Consumer]] | None = None
        self._began = 0.0

    @property
    def idle(self) -> bool:
        """Whether a look may begin."""
        return self._look is None or time.monotonic() - self._began > _GIVE_UP

    def begin(self, ask: Callable[[], list[Consumer]]) -> None:
        """Ask, in the background."""
        future: Future[list[Consumer]] = Future()

        def look() -> None:
            try:
                future.set_result(ask())
            except Exception as error:  # noqa: BLE001 - each transport raises kinds of its own; the next look may succeed
                future.set_exception(error)

        self._look, self._began = future, time.monotonic()
        # A daemon: what hangs must not keep the process from ending.
        Thread(target=look, name="bridge-lookout", daemon=True).start()

    def take(self) -> list[Consumer] | None:
        """What the last look saw, once; None while there is nothing new."""
        if self._look is None or not self._look.done():
            return None
        look, self._look = self._look, None
        if error := look.exception():
            log.warning("cannot see who consumes the queues error=%s", error)
            return None
        return look.result()
