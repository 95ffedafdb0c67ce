"""Making, reading, waiting for and steering jobs from Python."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from bridge import settings as environment
from bridge import tracing
from bridge.asked import CLASSES, classes, interval, json_text, mapping, plain, require_json, require_several, seconds, several
from bridge.errors import NotFoundError, WaitTimeoutError
from bridge.ids import new_id
from bridge.job import Event, Job, Status, job_id
from bridge.queries import buffered, bulk, jobs
from bridge.queries.connection import Connections, connect
from bridge.transaction import waiting
from bridge.transaction.current import current, named
from bridge.transaction.direct import DirectTransaction
from bridge.transaction.target import made

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from bridge.queries.connection import Connection
    from bridge.transaction.target import Target

__all__ = ["cancel", "enqueue", "enqueue_many", "get", "history", "retry", "wait"]


@cache
def _connections() -> Connections:
    """The connections of this process; the environment is read when the first job is made."""
    settings = environment.load()
    return Connections(settings.require_database(), name="bridge client", timeout=settings.timeout)


def forget_connections() -> None:
    """Close this thread's connection and read the environment again: for tests, which change where the database is."""
    if _connections.cache_info().currsize:
        _connections().close()
    _connections.cache_clear()
    _joins.cache_clear()


@cache
def _joins() -> bool:
    return environment.load().join == "auto"


def _target(given: Any) -> Target | None:
    """The transaction that a job joins; None when it has its own."""
    return named(given) if given is not None else current(_connections(), automatic=_joins())


def connection_for(given: Any, identity: UUID) -> Connection:
    """Where to look for a job: its own transaction sees it before everybody else."""
    target = named(given) if given is not None else made().target(identity)
    return _connections().get() if target is None else target.connection()


def connection_of(given: Any) -> Connection:
    """The connection of the transaction that a caller names, else of the one that he stands in; this thread's own without any."""
    target = _target(given)
    return _connections().get() if target is None else target.connection()


def enqueue(  # noqa: PLR0913 - its SQL twin fixes the list
    task: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    connection: Any = None,
    queue: str = "celery",
    priority: int = 0,
    run_at: datetime | None = None,
    delay: float | timedelta | None = None,
    max_attempts: int | None = None,
    backoff: float | Sequence[float] | Mapping[str, float] | None = None,
    unique_key: str | None = None,
    on_conflict: str = "skip",
    depends_on: Sequence[UUID] | None = None,
    timeout: float | timedelta | None = None,
    expires_at: datetime | None = None,
    headers: Mapping[str, Any] | None = None,
    retry_on: Sequence[str | type[BaseException]] | None = None,
    never_on: Sequence[str | type[BaseException]] | None = None,
    soft_timeout: float | timedelta | None = None,
    deadline: float | timedelta | None = None,
    serial_key: str | None = None,
    unique_until: str | None = None,
    unique_for: float | timedelta | None = None,
    webhook: str | Mapping[str, Any] | None = None,
    on_parent_failure: str | None = None,
    batch: UUID | None = None,
) -> UUID:
    """Enqueue one job.

    With ``connection`` it belongs to that transaction: it exists when that commits, and never existed when it rolls back. Without, it
    joins what ``using`` names, or an open transaction of SQLAlchemy or Django on the same database; else it is committed when this
    returns. In a transaction of SQLAlchemy or Django, jobs are sent together before its commit, and an error that only Postgres can find
    comes then.

    Args:
        task: registered name of a Celery task.
        args: positional arguments; JSON values.
        kwargs: keyword arguments; JSON values.
        connection: whose transaction to join: a psycopg 3 connection; a SQLAlchemy Session, Connection or their asyncio twins; one of
            Django's connections.
        queue: the Celery queue.
        priority: 0 to 9, higher is sooner.
        run_at: when it is due, with a time zone; not together with delay.
        delay: seconds, or a timedelta, from now.
        max_attempts: how often it may fail before it is failed; 1 = no retry; None: as its retry policy says, else 3.
        backoff: wait between attempts: seconds, a list of seconds, or a mapping of base, factor, cap and jitter.
        unique_key: at most one job has it, until that job ends.
        on_conflict: when another job has that key: "skip" returns its id, "raise" raises; of one that has not begun, "replace" exchanges
            the content, "move" the time when it is due, "debounce" both, and its id is returned.
        depends_on: ids of jobs that must succeed first.
        timeout: seconds, or a timedelta: hard limit of one attempt.
        expires_at: a job not started by then ends as expired.
        headers: further headers of the message.
        retry_on: classes of errors, or their names: further attempts only after these, or what derives from them.
        never_on: no further attempt after these.
        soft_timeout: seconds, or a timedelta: soft limit of one attempt, at which the task gets SoftTimeLimitExceeded.
        deadline: seconds, or a timedelta, from when it is due: no attempt starts later, and one that still runs is stopped.
        serial_key: jobs that have the same run one at a time, in the order in which they became due; a retry comes before the next.
        unique_until: when the key is free again: "started", or "finished", the default; with "replace", "move" and "debounce" the
            default is "started", because what runs cannot be changed.
        unique_for: seconds, or a timedelta, from this call: how long the key is taken instead, whatever becomes of the job.
        webhook: where its end is posted to: an address, or a mapping of url, events, secret and result as for ``set_webhook``.
        on_parent_failure: when a job of depends_on does not succeed: "cancel" this one (None is the same); "run" it anyway; "wait" until
            that job is redriven and succeeds.
        batch: the batch that it belongs to, see ``create_batch``.

    Returns:
        The job's id; that of the other job when it has the unique key.

    Raises:
        InvalidArgumentError: an argument can never work; nothing was written.
        ConflictError: the unique key is taken and on_conflict is "raise", or the job that has it has begun and cannot be changed.
        ServerError: the database cannot be reached, or went away before it answered: then nobody knows whether the job is there. A call
            with a unique key can be repeated without making a second one.
    """
    if headers or webhook:
        require_json(task, headers=mapping("headers", headers), webhook=webhook)
    options = {
        "queue": queue,
        "priority": priority,
        "run_at": run_at,
        "delay": interval(delay),
        "max_attempts": max_attempts,
        "unique_key": unique_key,
        "on_conflict": on_conflict,
        "depends_on": several("depends_on", depends_on) if depends_on else None,
        "timeout": interval(timeout),
        "expires_at": expires_at,
        "retry_on": classes("retry_on", retry_on),
        "never_on": classes("never_on", never_on),
        "soft_timeout": interval(soft_timeout),
        "deadline": interval(deadline),
        "serial_key": serial_key,
        "unique_until": unique_until,
        "unique_for": interval(unique_for),
        "on_parent_failure": on_parent_failure,
        "batch": batch,
    }
    with tracing.enqueue_span(task, queue, headers) as carried:
        documents = {"backoff": backoff, "headers": carried, "webhook": webhook}
        return _make({"task": task, "args": several("args", args), "kwargs": mapping("kwargs", kwargs)}, options, documents, connection)


def _make(content: dict[str, Any], options: dict[str, Any], documents: dict[str, Any], connection: Any) -> UUID:
    """Make one job, at once or with the transaction that it joins; ``documents`` are those of its options that are JSON."""
    target = _target(connection)
    if target is None:
        args, kwargs = (json_text(f"task {content['task']}", name, content[name]) for name in ("args", "kwargs"))
        given = {**options, **{name: None if value is None else jobs.jsonb(value) for name, value in documents.items()}}
        return jobs.enqueue(_connections().get(), content["task"], args, kwargs, given)
    job = plain({**options, **content, **documents})
    require_json(content["task"], **job)
    return target.enqueue(buffered.job_row(new_id(), job), answer=options["unique_key"] is not None)


def enqueue_many(jobs_to_make: Iterable[Mapping[str, Any]], *, connection: Any = None) -> Sequence[UUID]:
    """Enqueue many jobs at once, all or none.

    They are sent in pages as they come, so a generator of millions needs the memory of two pages, and 16 bytes a job for the ids. In a
    transaction of SQLAlchemy or Django they wait in memory for its commit, as ``enqueue`` has it.

    Args:
        jobs_to_make: mappings whose keys are the argument names of ``enqueue``; durations in seconds. ``depends_on`` may name earlier jobs
            of this call by their number, from 0.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        The ids, in the same order; of a job whose unique key another has, that one's.

    Raises:
        InvalidArgumentError: some of them can never work; the message names up to 20, and ``faults`` tells more of each.
        ConflictError: the unique key of one that is not to be skipped is taken; as above.
    """
    require_several("jobs", jobs_to_make)
    with tracing.bulk_span(jobs_to_make) as traced:
        return _make_many(traced, _target(connection))


def _make_many(jobs_to_make: Iterable[Mapping[str, Any]], target: Target | None) -> Sequence[UUID]:
    if target is None:
        return bulk.enqueue_many(_connections().get(), jobs_to_make, own=True)
    if isinstance(target, DirectTransaction):
        return target.enqueue_many(jobs_to_make)
    made: list[UUID] = []
    for number, job in enumerate(bulk.with_parents(jobs_to_make, made)):
        row = plain({name: classes(name, value) if name in CLASSES else value for name, value in job.items()})
        require_json(f"{row.get('task')} (job {number})", **row)
        made.append(target.enqueue(buffered.job_row(new_id(), row), answer=row.get("unique_key") is not None))
    return made


def get(identity: UUID | str, *, connection: Any = None) -> Job:
    """One job as it is now.

    Args:
        identity: its id, or its Celery task id.
        connection: see it as this transaction does.

    Raises:
        NotFoundError: there is no such job.
    """
    job = jobs.get(connection_for(connection, job_id(identity)), job_id(identity))
    if job is None:
        raise NotFoundError(f"job {identity} does not exist", "bridge jobs list shows those that do")
    return job


def history(identity: UUID | str, *, connection: Any = None) -> list[Event]:
    """The whole life of a job so far, oldest first.

    Raises:
        NotFoundError: there is no such job.
    """
    return jobs.history(connection_for(connection, job_id(identity)), job_id(identity))


def wait(*identities: UUID | str | Iterable[UUID | str], timeout: float | None = None) -> list[Job]:
    """Wait until all of these jobs have ended, woken by NOTIFY.

    Args:
        identities: ids or Celery task ids, one by one or in a list.
        timeout: seconds for all of them; None waits for ever.

    Returns:
        The jobs, in the order given.

    Raises:
        NotFoundError: one of them does not exist.
        UncommittedError: one of them was made in a transaction that has not committed.
        WaitTimeoutError: one of them had not ended; it goes on.
    """
    limit = seconds("timeout", timeout)
    wanted = [job_id(each) for given in identities for each in ([given] if isinstance(given, UUID | str) else several("identities", given))]
    waiting.refuse_uncommitted(_connections(), wanted)
    for identity in wanted:
        get(identity)
    settings = environment.load()
    with connect(settings.require_database(), name="bridge wait", timeout=settings.timeout) as connection:
        ended = {job.id: job for job in jobs.wait(connection, wanted, limit)}
    late = [str(identity) for identity in wanted if identity not in ended]
    if late:
        raise WaitTimeoutError(f"not ended after {timeout} s: {', '.join(late)}", "they go on; wait again or look with bridge jobs show")
    return [ended[identity] for identity in wanted]


def cancel(identity: UUID | str, *, terminate: bool = True, signal: str = "TERM", connection: Any = None) -> Status:
    """Cancel a job: what waits never runs, what runs is asked to stop.

    Args:
        identity: its id, or its Celery task id.
        terminate: stop what runs; False lets it come to its end and gives it no further attempt.
        signal: what the process of the run gets.
        connection: whose transaction to join.

    Returns:
        ``cancelled``, ``running`` (asked to stop), or the final status of a job that had ended.

    Raises:
        InvalidArgumentError: there is no such signal.
        NotFoundError: there is no such job.
    """
    return jobs.cancel(connection_for(connection, job_id(identity)), job_id(identity), terminate=terminate, signal=signal)


def retry(identity: UUID | str, *, by: str | None = None, note: str | None = None, connection: Any = None) -> Status:
    """Run an ended job again under the same id, or a scheduled one at once.

    Args:
        identity: its id, or its Celery task id.
        by: who does it, for the history; the role of the session where nobody is named.
        note: why, for the history.
        connection: whose transaction to join.

    Raises:
        NotFoundError: there is no such job.
        ConflictError: another job has its unique key.
        WrongStateError: it has not ended and is not scheduled.
    """
    return jobs.retry(connection_for(connection, job_id(identity)), job_id(identity), by, note)
