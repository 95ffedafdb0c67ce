"""A job as people see it: its status, its row, its id."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from bridge.errors import InvalidArgumentError

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["LEVELS", "Event", "Job", "LogLine", "Status", "job_id"]

LEVELS = ("debug", "info", "warning", "error", "critical")  # of a line of a log

# Celery ids that are no uuid become one in this namespace; changing it would orphan such jobs.
_TASK_ID_NAMESPACE = uuid.UUID("6f1c1d3e-5b7a-5d0e-9c55-0a1b9f3a7c11")


class Status(StrEnum):
    """Where a job is in its life; the same words in SQL, Python, the command line and JSON."""

    BLOCKED = "blocked"
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    PUBLISHED = "published"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether a job in this status has ended."""
        return self in {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED}


@dataclass(frozen=True, slots=True)
class Job:
    """One row of ``bridge.jobs`` at one moment; ``outcome`` is what Celery's result needs beyond ``result``."""

    id: uuid.UUID
    task_id: str
    task: str
    queue: str
    status: Status
    args: Any
    kwargs: Any
    result: Any
    error: dict[str, Any] | None
    progress: dict[str, Any] | None
    priority: int
    attempts: int
    max_attempts: int
    worker: str | None
    created_at: datetime
    updated_at: datetime
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    outcome: dict[str, Any] | None

    @property
    def seconds(self) -> float | None:
        """How long its last attempt took; None while there is none."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the log of a job.

    Attributes:
        attempt: number of the attempt that told it.
        at: when.
        level: debug, info, warning, error or critical.
        message: what.
        number: of the line in its run, from 1.
        left_out: how many lines of the same run were left out just before it, because there were too many.
        run: which run; two runs have one attempt number where the first died with its worker.
    """

    attempt: int
    at: datetime
    level: str
    message: str
    number: int
    left_out: int
    run: uuid.UUID


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a job: one row of ``bridge.history``.

    Attributes:
        event: ``enqueued``; of an attempt ``failed``, ``retried``, ``lost``, ``released`` or ``superseded``; ``redriven`` or
            ``discarded``; a final status; last, the status that a job has which has not ended.
        reason: why, in words.
        run: which run it was; None where it was no attempt.
    """

    at: datetime
    event: str
    attempt: int | None
    worker: str | None
    started_at: datetime | None
    ended_at: datetime | None
    error: dict[str, Any] | None
    reason: str | None
    run: uuid.UUID | None


def job_id(task_id: str | uuid.UUID) -> uuid.UUID:
    """The id of a job by its Celery task id: itself when it is a uuid, else the uuid5 of its text.

    Raises:
        InvalidArgumentError: it is no text, or one that is no Unicode.
    """
    if isinstance(task_id, uuid.UUID):
        return task_id
    if not isinstance(task_id, str):
        raise InvalidArgumentError(f"id is a {type(task_id).__name__}", "give a UUID, or the id of a Celery task as a text")
    try:
        return uuid.UUID(task_id)
    except ValueError:
        pass
    try:
        return uuid.uuid5(_TASK_ID_NAMESPACE, task_id)
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"id is {task_id[:80]!r}, which is no Unicode", "give a UUID, or the id of a Celery task") from error
