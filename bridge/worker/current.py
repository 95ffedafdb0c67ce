"""The run that is being executed in this process and thread."""

from __future__ import annotations

from typing import Any

from celery._state import get_current_task

from bridge.application import membership
from bridge.worker import outcome

__all__ = ["progress"]


def progress(value: dict[str, Any]) -> None:
    """Note progress on the current run's row; without a current run, do nothing."""
    task = get_current_task()
    run = outcome.run_of(getattr(task, "request", None))
    joined = membership(task.app) if task is not None else None
    if run is not None and joined is not None:
        outcome.progressed(joined, run, value)
