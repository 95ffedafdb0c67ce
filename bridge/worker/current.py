"""The run that is being executed in this process and thread."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery._state import _task_stack, get_current_task, get_current_worker_task
from celery.utils.threads import get_ident

from bridge.application import membership
from bridge.job import job_id
from bridge.queries import notes as queries
from bridge.worker import notes, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.application import Membership
    from bridge.queries.connection import Connection
    from bridge.worker.fence import Run

__all__ = ["checkpoint", "in_hand", "log", "progress", "save_checkpoint"]


def _current() -> tuple[Membership, Run, Any] | None:
    """The application, the run and the job's id; None where no task of a row runs, or its outcome is written, or is about to be."""
    task = get_current_task()
    run = outcome.run_of(getattr(task, "request", None))
    joined = membership(task.app) if task is not None else None
    return None if run is None or joined is None or outcome.tells_no_more(run) else (joined, run, job_id(task.request.id))


def progress(value: dict[str, Any]) -> None:
    """Note progress on the current run's row; without a current run, do nothing."""
    found = _current()
    if found is not None:
        outcome.progressed(found[0], found[1], value)


def log(message: str, level: str) -> None:
    """Add a line to the current run's log; without a current run, do nothing."""
    found = _current()
    if found is not None:
        notes.add_line(found[0], found[1], level, message)


def save_checkpoint(data: str) -> bool:
    """Keep what the next attempt can go on from, as JSON text; an outage of Postgres is waited out.

    Returns:
        Whether it was saved: not without a current run, or when it is superseded.

    Raises:
        PayloadTooLargeError: it is larger than the setting ``max_checkpoint``.
    """
    found = _current()
    if found is None:
        return False
    joined, run, identity = found

    def save(connection: Connection) -> bool:
        return queries.save_checkpoint(connection, identity, data, run.id)

    return outcome.patiently(lambda: joined.channels.get().ask(save))


def checkpoint() -> Any:
    """What an attempt of the current run's job has saved last; None when there is nothing, or no current run."""
    found = _current()
    if found is None:
        return None
    joined, _, identity = found
    return outcome.patiently(lambda: joined.channels.get().ask(lambda connection: queries.checkpoint(connection, identity)))


@contextmanager
def in_hand() -> Iterator[Any]:
    """The task that a worker is running here, None without one; in this block Celery, too, knows of it.

    It does not where SQLAlchemy's ``run_sync`` has called: that is a greenlet of its own, and Celery keeps what runs by greenlets.
    """
    task = get_current_worker_task()
    outer = getattr(get_ident(), "parent", None)
    if task is not None or outer is None:
        yield task
        return
    task = _top(_task_stack, outer)
    if task is None:
        yield None
        return
    _task_stack.push(task)
    task.request_stack.push(_top(task.request_stack, outer))
    try:
        yield task
    finally:
        task.request_stack.pop()
        _task_stack.pop()


def _top(stack: Any, greenlet: Any) -> Any:
    """What is on top of one of Celery's stacks for a greenlet, or for one that it came from."""
    kept = getattr(getattr(stack, "_local", None), "__storage__", {})
    while greenlet is not None:
        found = kept.get(greenlet, {}).get("stack")
        if found:
            return found[-1]
        greenlet = greenlet.parent
    return None
