"""The run that is being executed in this process and thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery._state import get_current_task

from bridge.application import membership
from bridge.job import job_id
from bridge.queries import notes as queries
from bridge.worker import notes, outcome

if TYPE_CHECKING:
    from bridge.application import Membership
    from bridge.worker.fence import Run

__all__ = ["checkpoint", "log", "progress", "save_checkpoint"]


def _current() -> tuple[Membership, Run, Any] | None:
    """The application, the run and the job's id; None where no task of a row runs, or its outcome is written."""
    task = get_current_task()
    run = outcome.run_of(getattr(task, "request", None))
    joined = membership(task.app) if task is not None else None
    return None if run is None or joined is None else (joined, run, job_id(task.request.id))


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
    return outcome.patiently(lambda: queries.save_checkpoint(joined.connections.get(), identity, data, run.id))


def checkpoint() -> Any:
    """What an attempt of the current run's job has saved last; None when there is nothing, or no current run."""
    found = _current()
    if found is None:
        return None
    joined, _, identity = found
    return outcome.patiently(lambda: queries.checkpoint(joined.connections.get(), identity))
