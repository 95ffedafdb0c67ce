"""Changing jobs that have not started, from Python: their priority, their queue, the time they are due; one, or many by a filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.asked import interval
from bridge.bulk import Counts, Filter, Operation, jsonable, run
from bridge.client import connection_for, connection_of
from bridge.job import Status, job_id
from bridge.queries import changes

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from uuid import UUID

__all__ = ["MOVE", "RESCHEDULE", "SET_PRIORITY", "move", "move_jobs", "reschedule", "reschedule_jobs", "set_priority", "set_priority_jobs"]

_WAITING = ("blocked", "scheduled", "queued", "published")
SET_PRIORITY, MOVE, RESCHEDULE = (Operation(name, _WAITING) for name in ("set_priority_jobs", "move_jobs", "reschedule_jobs"))


def set_priority(identity: UUID | str, priority: int, *, connection: Any = None) -> Status:
    """Give a job that has not started another priority; one that is published is taken back, so that it holds.

    Args:
        identity: its id, or its Celery task id.
        priority: 0 to 9, higher is sooner.
        connection: whose transaction to join, as for ``cancel``.

    Returns:
        Its status after that.

    Raises:
        InvalidArgumentError: the priority is none.
        NotFoundError: there is no such job.
        WrongStateError: it has started.
    """
    return changes.set_priority(connection_for(connection, job_id(identity)), job_id(identity), priority)


def move(identity: UUID | str, queue: str, *, connection: Any = None) -> Status:
    """Move a job that has not started to another queue; one that is published is taken back.

    Args:
        identity: its id, or its Celery task id.
        queue: the name of a Celery queue.
        connection: whose transaction to join, as for ``cancel``.

    Returns:
        Its status after that.

    Raises:
        InvalidArgumentError: the queue is no name.
        NotFoundError: there is no such job.
        WrongStateError: it has started.
    """
    return changes.move(connection_for(connection, job_id(identity)), job_id(identity), queue)


def reschedule(
    identity: UUID | str, run_at: datetime | None = None, *, delay: float | timedelta | None = None, connection: Any = None
) -> Status:
    """Have a job that has not started run at another time: sooner, later, or at once.

    Args:
        identity: its id, or its Celery task id.
        run_at: when it is due, with a time zone; not together with delay.
        delay: seconds, or a timedelta, from now.
        connection: whose transaction to join, as for ``cancel``.

    Returns:
        Its status after that.

    Raises:
        InvalidArgumentError: not one of run_at and delay is given, or the job has expired by then.
        NotFoundError: there is no such job.
        WrongStateError: it has started.
    """
    return changes.reschedule(connection_for(connection, job_id(identity)), job_id(identity), run_at, interval(delay))


def set_priority_jobs(wanted: Filter, priority: int, *, dry_run: bool = False, connection: Any = None) -> Counts:
    """Give the jobs that a filter chooses, of those that have not started, another priority.

    Args:
        wanted: see ``Filter``.
        priority: 0 to 9, higher is sooner.
        dry_run: count, change nothing.
        connection: whose transaction to join, as for ``enqueue``. Without one, each page of 500 jobs is committed by itself.

    Raises:
        InvalidArgumentError: the filter names nothing, or what there is not; or the priority is none.
    """
    return run(connection_of(connection), SET_PRIORITY, jsonable(wanted), dry_run=dry_run, priority=priority)


def move_jobs(wanted: Filter, queue: str, *, dry_run: bool = False, connection: Any = None) -> Counts:
    """Move the jobs that a filter chooses, of those that have not started, to another queue.

    Args:
        wanted: see ``Filter``.
        queue: the name of a Celery queue.
        dry_run: count, change nothing.
        connection: whose transaction to join, as for ``enqueue``. Without one, each page of 500 jobs is committed by itself.

    Raises:
        InvalidArgumentError: the filter names nothing, or what there is not; or the queue is no name.
    """
    return run(connection_of(connection), MOVE, jsonable(wanted), dry_run=dry_run, queue=queue)


def reschedule_jobs(
    wanted: Filter,
    run_at: datetime | None = None,
    *,
    delay: float | timedelta | None = None,
    dry_run: bool = False,
    connection: Any = None,
) -> Counts:
    """Have the jobs that a filter chooses, of those that have not started, run at another time.

    Args:
        wanted: see ``Filter``.
        run_at: when they are due, with a time zone; not together with delay.
        delay: seconds, or a timedelta, from now.
        dry_run: count, change nothing.
        connection: whose transaction to join, as for ``enqueue``. Without one, each page of 500 jobs is committed by itself.

    Returns:
        The counts; those that would have expired by then are skipped.

    Raises:
        InvalidArgumentError: the filter names nothing, or what there is not; or not one of run_at and delay is given.
    """
    return run(connection_of(connection), RESCHEDULE, jsonable(wanted), dry_run=dry_run, run_at=run_at, delay=interval(delay))
