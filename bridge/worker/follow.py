"""Whether Celery itself makes a call, for what follows a task: the next step of its chain, its callbacks, its chord."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from celery._state import get_current_task

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["sent_by_tracer"]

_TRACER, _TRACE = "celery.app.trace", "trace_task"
_TASK = "__protected_call__"  # the tracer's own wrapper of a task's function
# Whose functions the tracer calls to send what follows; a task's function is the user's, or Task.__call__.
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
