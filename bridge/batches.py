"""Batches from Python: sets of jobs that are counted, with a task that is called when all of them have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge import settings as environment
from bridge.asked import mapping, require_json, seconds, several
from bridge.client import connection_of
from bridge.errors import NotFoundError, WaitTimeoutError
from bridge.queries import batches, jobs
from bridge.queries.connection import connect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from bridge.queries.batches import Batch

__all__ = ["cancel_batch", "create_batch", "get_batch", "seal_batch", "wait_batch"]


def create_batch(
    name: str | None = None,
    *,
    callback: str | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    queue: str = "celery",
    callback_on: str = "complete",
    connection: Any = None,
) -> UUID:
    """Make a batch; jobs are added by ``enqueue(..., batch=id)``, until it is sealed and its last job has ended.

    Args:
        name: for people; need not be unique.
        callback: name of the task that is called once when the batch has ended; it finds the batch's id in its header ``bridge_batch``.
        args: positional arguments of the callback; JSON values.
        kwargs: keyword arguments of the callback; JSON values.
        queue: the callback's.
        callback_on: "complete", however the jobs have ended, or "success": when all of them have succeeded, after redriving if need be.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        Its id.

    Raises:
        InvalidArgumentError: an argument can never work.
    """
    positional, by_name = several("args", args), mapping("kwargs", kwargs)
    require_json(f"{callback} (callback of a batch)", args=positional, kwargs=by_name)
    named = {
        "name": name, "callback": callback, "args": jobs.jsonb(positional), "kwargs": jobs.jsonb(by_name), "queue": queue,
        "callback_on": callback_on,
    }  # fmt: skip
    return batches.create(connection_of(connection), named)


def seal_batch(identity: UUID, *, connection: Any = None) -> str:
    """Say that all jobs have been added, but those that its own jobs may add: it ends with the last of them, at once when there is none.

    Returns:
        Its status: "running", or how it ended.

    Raises:
        NotFoundError: there is no such batch.
    """
    return batches.seal(connection_of(connection), identity)


def cancel_batch(identity: UUID, *, connection: Any = None) -> int:
    """Cancel a batch: what waits never runs, what runs is asked to stop, no job is added any more, and its callback is not called.

    Returns:
        How many jobs were cancelled or asked to stop; 0 when it had ended.

    Raises:
        NotFoundError: there is no such batch.
    """
    return batches.cancel(connection_of(connection), identity)


def get_batch(identity: UUID, *, connection: Any = None) -> Batch:
    """A batch as it is now, with its counts.

    Raises:
        NotFoundError: there is no such batch.
    """
    return _found(identity, batches.get(connection_of(connection), identity))


def wait_batch(identity: UUID, timeout: float | None = None) -> Batch:
    """Wait until a batch has ended, woken by NOTIFY.

    Args:
        identity: the batch; it must have been committed, and is waited for ever while nobody seals it.
        timeout: seconds; None waits for ever.

    Raises:
        NotFoundError: there is no such batch.
        WaitTimeoutError: it had not ended; it goes on.
    """
    limit = seconds("timeout", timeout)
    settings = environment.load()
    with connect(settings.require_database(), name="bridge wait_batch", timeout=settings.timeout) as connection:
        batch = _found(identity, batches.wait(connection, identity, limit))
    if batch.ended_at is None:
        raise WaitTimeoutError(f"batch {identity} is {batch.status} after {timeout} s", "it goes on; an open one is to be sealed first")
    return batch


def _found(identity: UUID, batch: Batch | None) -> Batch:
    if batch is None:
        raise NotFoundError(f"batch {identity} does not exist", "bridge batches list shows those that do")
    return batch
