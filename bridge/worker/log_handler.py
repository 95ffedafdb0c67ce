"""What a task logs by Python's logging, in the log of its job."""

from __future__ import annotations

import logging
import threading

from bridge.job import LEVELS
from bridge.worker import current

__all__ = ["LogHandler"]

_OURS = ("bridge", "psycopg")  # what writes the log does not log into it


class _Emitting(threading.local):
    """Whether this thread is writing a line already: what that logs is no line."""

    busy = False


class LogHandler(logging.Handler):
    """Adds what a task logs by Python's logging to the log of its job; records of anything else it lets pass.

    ``BRIDGE_JOB_LOGS=info`` adds one to the loggers of a worker; by hand, ``logging.getLogger("shop").addHandler(bridge.LogHandler())``.
    Records count that are logged in the task's own thread.
    """

    def __init__(self, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self._emitting = _Emitting()

    def emit(self, record: logging.LogRecord) -> None:
        """Add one record."""
        if self._emitting.busy or record.name.partition(".")[0] in _OURS or getattr(record, "bridge_noted", False):
            return
        self._emitting.busy = True
        try:
            record.bridge_noted = True  # a logger and its parent may both have a handler
            current.log(self.format(record), _level(record.levelno))
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)
        finally:
            self._emitting.busy = False


def _level(number: int) -> str:
    """The name of the highest level that a number reaches."""
    return LEVELS[min(max(number // 10 - 1, 0), len(LEVELS) - 1)]
