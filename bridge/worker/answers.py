"""What a worker answers when somebody asks which queues it consumes: its id as well, by which a worker without the plugin is known."""

from __future__ import annotations

from functools import wraps
from typing import Any

from celery.worker.control import Panel

from bridge.application import membership
from bridge.message import PLUGIN

__all__ = ["name_the_plugin"]

_COMMAND = "active_queues"


def name_the_plugin() -> None:
    """Add the worker's id to each queue of its answer; applications of this process that have not joined answer as ever."""
    theirs = Panel.data[_COMMAND]
    if getattr(theirs, "names_the_plugin", False):
        return

    @wraps(theirs)
    def active_queues(state: Any, **options: Any) -> Any:
        joined, queues = membership(state.app), theirs(state, **options)
        return queues if joined is None else [{**queue, PLUGIN: str(joined.worker_id)} for queue in queues]

    active_queues.names_the_plugin = True  # type: ignore[attr-defined]
    Panel.data[_COMMAND] = active_queues
