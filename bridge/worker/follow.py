"""What follows a task: whether Celery's tracer makes such a call, and making them in its place."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery import group, maybe_signature
from celery._state import get_current_task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["follow", "followed", "rows_alone", "sent_by_tracer", "takes_rows_alone"]

_TRACER, _TRACE = "celery.app.trace", "trace_task"
_TASK = "__protected_call__"  # the tracer's own wrapper of a task's function
# Whose functions the tracer calls to send what follows; a task's function is the user's, or Task.__call__.
_rows_alone: ContextVar[bool] = ContextVar("bridge_rows_alone", default=False)
_FOLLOWERS = ("celery.app.trace", "celery.canvas", "celery.backends", "bridge.results")


def sent_by_tracer() -> bool:
    """Whether the call comes from Celery's tracer, after the task's function has returned, and not from that function."""
    if get_current_task() is None:
        return False
    inner: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the way to one's callers
    while frame is not None:
        if frame.f_code.co_name == _TRACE and frame.f_globals.get("__name__") == _TRACER:
            return inner is not None and _follows(inner)
        inner, frame = frame, frame.f_back
    return False


def _follows(frame: FrameType) -> bool:
    return frame.f_code.co_name != _TASK and str(frame.f_globals.get("__name__")).startswith(_FOLLOWERS)


@contextmanager
def rows_alone() -> Iterator[None]:
    """Refuse calls in this block that make no row: what a transaction cannot hold would be sent also when it rolls back."""
    token = _rows_alone.set(True)
    try:
        yield
    finally:
        _rows_alone.reset(token)


def takes_rows_alone() -> bool:
    """Whether the call stands in such a block."""
    return _rows_alone.get()


def followed(request: Any) -> bool:
    """Whether callbacks or a next step of its chain follow a task."""
    return bool(request.callbacks or request.chain)


def follow(task: Any, request: Any, result: Any) -> None:
    """Make the calls that Celery's tracer would make after the function has returned: callbacks, then the next step of the chain."""
    app = task.app
    parent = {"parent_id": request.id, "root_id": request.root_id or request.id}
    if app.conf.task_inherit_parent_priority:
        parent["priority"] = (request.delivery_info or {}).get("priority")
    for callback in _callbacks(app, request.callbacks or ()):
        callback.apply_async((result,), **parent)
    if request.chain:
        maybe_signature(request.chain[-1], app=app).apply_async((result,), chain=request.chain[:-1], **parent)


def _callbacks(app: Any, given: Any) -> list[Any]:
    """Each group by itself, and all single tasks of several callbacks as one group, as the tracer sends them."""
    callbacks = [maybe_signature(callback, app=app) for callback in given]
    if len(callbacks) < 2:  # noqa: PLR2004 - one alone is sent as it is
        return callbacks
    tasks = [callback for callback in callbacks if not isinstance(callback, group)]
    return [*(callback for callback in callbacks if isinstance(callback, group)), *([group(tasks, app=app)] if tasks else [])]
