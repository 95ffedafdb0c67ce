"""Saying that the work of a job is done: in its own task's transaction, or by hand of a job that has not started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from bridge.asked import json_text
from bridge.client import connection_for
from bridge.errors import InvalidArgumentError
from bridge.job import job_id
from bridge.queries import completion as queries

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["complete"]


@overload
def complete(session: Any, result: Any = None) -> Any: ...


@overload
def complete(*, id: UUID | str, result: Any = None, connection: Any = None) -> Any: ...


def complete(session: Any = None, result: Any = None, *, id: UUID | str | None = None, connection: Any = None) -> Any:  # noqa: A002 - as in SQL
    """End the current job as succeeded in the transaction of its task's own writes: both commit, or neither.

    What follows the job is written in the same transaction: callbacks, the next step of its chain, its part of a chord, jobs that depend
    on it. Whoever dies after the commit, the job does not run again; whoever dies before, nothing of the run stands, and the job does.

    It neither commits nor rolls back: commit before the task returns, and soon, because the job's row is locked until then. When the
    transaction rolls back the run goes on: it may complete again, return or fail. After the commit, nothing that happens to the task
    changes its outcome any more.

    With ``id`` instead of a session, for people: a job that has not started ends as succeeded, because its work is done otherwise, and
    what waits for it goes on.

    Args:
        session: the transaction: a psycopg 3 connection; a SQLAlchemy Session or Connection; one of Django's connections. In a coroutine:
            ``await session.run_sync(lambda session: bridge.complete(session, result))``.
        result: what the task is going to return, as JSON or by the result serializer; by hand, what it would have returned, as JSON.
        id: of a job that has not started, or its Celery task id.
        connection: with ``id``, whose transaction to join, as for ``cancel``.

    Returns:
        The result, so that a task can end with ``return bridge.complete(session, result)`` within the block that commits.

    Raises:
        WrongStateError: it is called outside of a job's run, or a second time; or the run is over already, or was cancelled: then the
            transaction is broken, and nothing of it can be committed. By hand: the job runs, or has ended.
        InvalidArgumentError: not one of session and id is given; the transaction is of another database than the queue's, or there is
            none (autocommit); a task that follows is no row (``bridge=False``), so that no transaction can hold it; or, by hand, a later
            step of a Celery chain or a callback follows the job, or the result is no JSON.
        NotFoundError: there is no job of that id.
    """
    if (session is None) == (id is None) or (session is not None and connection is not None):
        raise InvalidArgumentError(
            f"session is {session!r}, id is {id!r} and connection is {connection!r}",
            "give a session in a job's own task, or the id of a job that has not started, with a connection if you like",
        )
    if id is None:
        from bridge.worker.completion import complete as complete_run  # noqa: PLC0415 - producers need no Celery worker

        return complete_run(session, result)
    text = None if result is None else json_text(f"job {id}", "result", result)
    queries.by_hand(connection_for(connection, job_id(id)), job_id(id), text)
    return result
