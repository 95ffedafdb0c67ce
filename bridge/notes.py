"""What a task tells while it runs: how far it is, lines of a log, and a checkpoint for the attempt after it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bridge.client import connection_for
from bridge.errors import InvalidArgumentError
from bridge.job import LEVELS, job_id
from bridge.queries import notes

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from bridge.job import LogLine

__all__ = ["checkpoint", "log", "logs", "progress", "save_checkpoint"]

_MESSAGE = 500  # characters of a message beside progress


def progress(fraction: float, message: str = "", *, job: UUID | str | None = None) -> None:
    """Say in a running task how far it has come; outside of one, or in a task called directly, this does nothing.

    It may be called as often as you like: at most two a second are written, the last one always.

    Args:
        fraction: 0.0 to 1.0.
        message: one line for people; what is longer than 500 characters is cut.
        job: id, or Celery task id, of another job that runs: in a program that a task has started.

    Raises:
        InvalidArgumentError: the fraction is out of bounds.
        NotFoundError: there is no such job.
        WrongStateError: it does not run.
    """
    if not (isinstance(fraction, int | float) and 0.0 <= fraction <= 1.0):
        raise InvalidArgumentError(f"progress is {str(fraction)[:80]}", "give a fraction from 0.0 to 1.0")
    if job is not None:
        notes.progress(connection_for(None, job_id(job)), job_id(job), fraction, message)
        return
    from bridge.worker import current  # noqa: PLC0415 - producers need no Celery worker

    current.progress({"fraction": fraction, "message": str(message)[:_MESSAGE]})


def log(message: str, level: str = "info", *, job: UUID | str | None = None) -> None:
    """Add a line to the log of the running task; outside of one, or in a task called directly, this does nothing.

    Lines are written within half a second, and before the outcome of the run. Of a run that logs more than the settings ``log_lines``
    and ``log_bytes`` allow, the first half of that is kept and the last; what is between is counted.

    Args:
        message: one line; what is longer than 8192 characters is cut.
        level: debug, info, warning, error or critical.
        job: id, or Celery task id, of another job that runs: in a program that a task has started.

    Raises:
        InvalidArgumentError: the level is none.
        NotFoundError: there is no such job.
        WrongStateError: it does not run.
    """
    if level not in LEVELS:
        raise InvalidArgumentError(f"level is {level!r}", f"give one of {', '.join(LEVELS)}")
    if job is not None:
        notes.log(connection_for(None, job_id(job)), job_id(job), message, level)
        return
    from bridge.worker import current  # noqa: PLC0415 - producers need no Celery worker

    current.log(str(message), level)


def logs(identity: UUID | str, *, attempt: int | None = None, since: datetime | None = None, connection: Any = None) -> list[LogLine]:
    """The log of a job, oldest line first, while it runs and after.

    Args:
        identity: its id, or its Celery task id.
        attempt: only lines of this attempt.
        since: only lines from this moment on.
        connection: see it as this transaction does.

    Raises:
        NotFoundError: there is no such job.
    """
    return notes.logs(connection_for(connection, job_id(identity)), job_id(identity), attempt, since)


def save_checkpoint(data: Any, *, job: UUID | str | None = None) -> bool:
    """Keep what the next attempt of the running task can go on from; it is on disk when this returns.

    It survives every retry, also by ``bridge.retry`` after a failure, and is forgotten when the job succeeds. Outside of a task, or in
    one called directly, this does nothing.

    Args:
        data: any JSON value; None forgets what was saved.
        job: id, or Celery task id, of another job: for who wants a job to begin elsewhere.

    Returns:
        Whether it was saved: not when the run was taken for dead and another has the job.

    Raises:
        InvalidArgumentError: it is no JSON.
        PayloadTooLargeError: it is larger than the setting ``max_checkpoint``.
        NotFoundError: there is no such job.
    """
    try:
        text = json.dumps(data, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"checkpoint is not JSON: {error}", "pass numbers, texts, booleans, lists and dicts") from error
    if job is not None:
        return notes.save_checkpoint(connection_for(None, job_id(job)), job_id(job), text, None)
    from bridge.worker import current  # noqa: PLC0415 - producers need no Celery worker

    return current.save_checkpoint(text)


def checkpoint(identity: UUID | str | None = None, *, connection: Any = None) -> Any:
    """What an earlier attempt of the running task has saved last; None when there is nothing.

    Args:
        identity: of another job; None means the task that runs.
        connection: see it as this transaction does.
    """
    if identity is not None:
        return notes.checkpoint(connection_for(connection, job_id(identity)), job_id(identity))
    from bridge.worker import current  # noqa: PLC0415 - producers need no Celery worker

    return current.checkpoint()
