"""Dead letters from Python: run them again, with other arguments where that helps, or put them away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.asked import interval, mapping, require_json_of, several
from bridge.bulk import Counts, Filter, Operation, jsonable, run
from bridge.client import connection_for, connection_of
from bridge.job import Status, job_id
from bridge.queries import jobs, selection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta
    from uuid import UUID

__all__ = ["DISCARD", "REDRIVE", "discard", "discard_jobs", "edits", "redrive", "redrive_jobs"]

REDRIVE, DISCARD = (Operation(name, (Status.FAILED.value,), dead=True) for name in ("redrive_jobs", "discard_jobs"))


def edits(
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    queue: str | None,
    priority: int | None,
    delay: float | timedelta | None,
    max_attempts: int | None,
) -> dict[str, Any]:
    """What a redrive changes, as the SQL functions take it; None leaves a part as it is.

    Raises:
        InvalidArgumentError: an argument is no JSON.
    """
    require_json_of("the redrive", {"args": args, "kwargs": kwargs})
    return {
        "args": None if args is None else jobs.jsonb(several("args", args)),
        "kwargs": None if kwargs is None else jobs.jsonb(mapping("kwargs", kwargs)),
        "queue": queue, "priority": priority, "delay": interval(delay), "max_attempts": max_attempts,
    }  # fmt: skip


def redrive(
    identity: UUID | str,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue: str | None = None,
    priority: int | None = None,
    delay: float | timedelta | None = None,
    max_attempts: int | None = None,
    by: str | None = None,
    note: str | None = None,
    connection: Any = None,
) -> Status:
    """Run a dead letter again, under the same id, with all its attempts before it. What is None stays as it was.

    Args:
        identity: its id, or its Celery task id.
        args: other positional arguments; the old ones stay readable in ``bridge.job_note``.
        kwargs: other keyword arguments.
        queue: another queue.
        priority: 0 to 9, higher is sooner.
        delay: seconds, or a timedelta, from now.
        max_attempts: how often it may fail from now on; None: as often as at first.
        by: who does it, for the history; the role of the session where nobody is named.
        note: why, for the history.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        ``queued``, or ``scheduled`` with a delay.

    Raises:
        InvalidArgumentError: an argument can never work, or the arguments are kept as bytes and cannot be edited.
        NotFoundError: there is no such job.
        ConflictError: another job has its unique key.
        WrongStateError: it is no dead letter: it lives, has ended otherwise, or was discarded.
    """
    named = {**edits(args, kwargs, queue, priority, delay, max_attempts), "by": by, "note": note}
    return Status(selection.redrive(connection_for(connection, job_id(identity)), job_id(identity), named))


def redrive_jobs(
    wanted: Filter,
    *,
    dry_run: bool = False,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue: str | None = None,
    priority: int | None = None,
    delay: float | timedelta | None = None,
    max_attempts: int | None = None,
    by: str | None = None,
    note: str | None = None,
    connection: Any = None,
) -> Counts:
    """Run again the dead letters that a filter chooses: as ``redrive`` does, the first that ended first.

    Args:
        wanted: see ``Filter``.
        dry_run: count, change nothing.
        args: as for ``redrive``, and so are those that follow.
        kwargs: other keyword arguments.
        queue: another queue.
        priority: another priority.
        delay: not at once.
        max_attempts: how often each may fail from now on.
        by: who does it.
        note: why.
        connection: whose transaction to join. Without one, each page of 500 jobs is committed by itself.

    Raises:
        InvalidArgumentError: the filter names nothing, or what there is not; or an argument can never work, for the job that is named. Of
            its page none is redriven then; pages before it are.
    """
    named = {**edits(args, kwargs, queue, priority, delay, max_attempts), "by": by, "note": note}
    return run(connection_of(connection), REDRIVE, jsonable(wanted), dry_run=dry_run, **named)


def discard(identity: UUID | str, *, by: str | None = None, note: str | None = None, connection: Any = None) -> None:
    """Take a job out of the dead letters: it stays failed and readable, with a note, and no redrive of many finds it.

    Args:
        identity: its id, or its Celery task id.
        by: who does it, for the history; the role of the session where nobody is named.
        note: why, for the history.
        connection: whose transaction to join, as for ``enqueue``.

    Raises:
        NotFoundError: there is no such job.
        WrongStateError: it is no dead letter.
    """
    selection.discard(connection_for(connection, job_id(identity)), job_id(identity), {"by": by, "note": note})


def discard_jobs(
    wanted: Filter, *, dry_run: bool = False, by: str | None = None, note: str | None = None, connection: Any = None
) -> Counts:
    """Discard the dead letters that a filter chooses, the first that ended first.

    Args:
        wanted: see ``Filter``.
        dry_run: count, change nothing.
        by: who does it.
        note: why.
        connection: whose transaction to join. Without one, each page of 500 jobs is committed by itself.

    Raises:
        InvalidArgumentError: the filter names nothing, or what there is not.
    """
    return run(connection_of(connection), DISCARD, jsonable(wanted), dry_run=dry_run, by=by, note=note)
