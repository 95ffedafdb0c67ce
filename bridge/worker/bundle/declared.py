"""What a worker says of its tasks, so that drainers know what to bundle."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request
from kombu.utils.imports import symbol_by_name

from bridge.errors import InvalidArgumentError
from bridge.message import BUNDLE_TASK
from bridge.worker.request import RowRequest

__all__ = ["OPTION", "declared", "option_of"]

OPTION = "bridge_bundle"
_MOST = 1000
_POOLS = ("prefork", "solo", "threads", "thread")
_READABLE = {"json", "application/json"}


def option_of(task: Any) -> int | None:
    """The option ``bridge_bundle`` of a task: most jobs of one message; None where it says nothing.

    Raises:
        InvalidArgumentError: it is no whole number from 1 to 1000, nor False or None.
    """
    given = getattr(task, OPTION, None)
    if given is None:
        return None
    size = 1 if given is False else given
    if not isinstance(size, int) or size is True or not 1 <= size <= _MOST:
        raise InvalidArgumentError(f"{OPTION} of task {task.name} is {given!r}", f"give a whole number from 1 to {_MOST}, or False")
    return size


def declared(app: Any, worker: Any) -> dict[str, int | str] | None:
    """What the worker reports: by task how many jobs one message may have, or why only one; None for a worker that can take no bundles.

    Args:
        app: the application.
        worker: Celery's worker.

    Raises:
        InvalidArgumentError: as ``option_of``.
    """
    kind = worker.pool_cls.__module__.rpartition(".")[2]
    if kind not in _POOLS or not _READABLE & set(app.conf.accept_content):
        return None
    found: dict[str, int | str] = {}
    for name, task in app.tasks.items():
        if name == BUNDLE_TASK:
            continue
        size, obstacle = option_of(task), _obstacle(task, worker)
        if obstacle is not None:
            found[name] = obstacle if size is not None and size > 1 else 1
        elif size is not None:
            found[name] = size
    return found


def _obstacle(task: Any, worker: Any) -> str | None:
    """What of a task works by whole messages, so that its jobs cannot share one."""
    if task.time_limit or worker.time_limit:
        return "time_limit"
    if task.rate_limit:
        return "rate_limit"
    theirs = symbol_by_name(task.Request)
    if (theirs.__bases__[1] if issubclass(theirs, RowRequest) else theirs) is not Request:  # mixed with ours, see compose_requests
        return "Request"
    return None
