"""Something that a test has going on beside it, again and again."""

from __future__ import annotations

import threading


class Background:
    """Calls `step` in a thread until `stop`, which fails when a step has.

    Attributes:
        pause: seconds between two steps.
    """

    pause = 0.0

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on)
        self._thread.start()

    def step(self) -> None:
        """Do it once."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it after the step that it is at."""
        self._stop.set()
        self._thread.join(30)
        assert self._error is None, self._error

    def _go_on(self) -> None:
        try:
            while not self._stop.wait(self.pause):
                self.step()
        except BaseException as error:  # noqa: BLE001 - shown by stop
            self._error = error
