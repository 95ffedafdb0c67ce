"""Boundaries in the main process of a worker: tasks.py asks for them where it is loaded by a worker of the laboratory."""

from __future__ import annotations

from typing import Any

from bridge.queries import runs
from bridge.worker.request import RowRequest
from laboratory.boundary import first, then


def wrap() -> None:
    """Put the boundaries into this process."""
    request: Any = RowRequest
    request.__init__ = then(request.__init__, "taken")
    runs.report_worker = then(first(runs.report_worker, "reporting"), "reported")
    runs.stop_worker = first(runs.stop_worker, "leaving")
