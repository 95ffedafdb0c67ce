"""Making, reading and steering jobs."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row
from psycopg.types.json import Jsonb, JsonbLoader, JsonLoader

from bridge.job import Event, Job, Status
from bridge.queries.answers import columns
from bridge.queries.connection import plainly, translated
from bridge.queries.runs import call_that_ends
from bridge.queries.waiting import registered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from psycopg import Cursor
    from psycopg.rows import RowMaker

    from bridge.queries.connection import Connection

__all__ = [
    "Content",
    "attempts",
    "cancel",
    "enqueue",
    "enqueue_message",
    "get",
    "history",
    "jsonb",
    "many",
    "retry",
    "retry_run",
    "wait",
    "was_made_in",
]

_NAMES = tuple(field.name for field in fields(Job))
_COLUMNS = ", ".join(_NAMES)
_LONGEST_SLEEP = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Content:
    """What a Celery call makes of a job, ready for its row: JSON parts as text, or the whole body as bytes."""

    id: UUID
    task_id: str | None
    task: str
    queue: str
    rank: int
    args: str
    kwargs: str
    embed: str | None
    payload: bytes | None
    content_type: str | None
    content_encoding: str | None
    headers: str
    properties: str
    expires_at: datetime | None
    run_at: datetime | None
    chord: str | None = None
    options: str | None = None
    links: str | None = None
    fresh: bool = False  # its id was made for this call, and it has no stamps

    def content(self) -> tuple[Any, ...]:
        """The parameters that ``enqueue_message`` and ``retry_run`` share, in their order."""
        return (
            self.task, self.queue, self.rank, self.args, self.kwargs, self.embed, self.payload, self.content_type,
            self.content_encoding, self.headers, self.properties, self.expires_at, self.run_at,
        )  # fmt: skip


def enqueue(connection: Connection, task: str, args: str, kwargs: str, options: dict[str, Any]) -> UUID:
    """Call ``bridge.enqueue`` with JSON texts; ``options`` are further arguments of it by name, of which None has the default."""
    given = {"task": task, "args": args, "kwargs": kwargs, **{name: value for name, value in options.items() if value is not None}}
    with translated():
        row = connection.execute(_call(tuple(given)), tuple(given.values())).fetchone()
    assert row is not None  # noqa: S101 - a function returns a row
    return row[0]  # type: ignore[no-any-return]


@lru_cache(maxsize=100)
def _call(names: tuple[str, ...]) -> bytes:
    arguments = ", ".join(f"{name} => %s{_CASTS.get(name, '')}" for name in names)
    return f"select bridge.enqueue({arguments})".encode()


_CASTS = {
    **dict.fromkeys(["args", "kwargs"], "::jsonb"),
    **dict.fromkeys(["task", "queue", "unique_key", "on_conflict", "serial_key", "unique_until"], "::text"),
    **dict.fromkeys(["priority", "max_attempts"], "::integer"),
    **dict.fromkeys(["run_at", "expires_at"], "::timestamptz"),
    **dict.fromkeys(["delay", "timeout", "soft_timeout", "deadline", "unique_for"], "::interval"),
    **dict.fromkeys(["retry_on", "never_on"], "::text[]"),
    "depends_on": "::uuid[]",
    "on_parent_failure": "::text",
    "batch": "::uuid",
}


def enqueue_message(connection: Connection, content: Content) -> UUID:
    """Call ``bridge.enqueue_message``; the id of the job that stands for the call: another's when that has its unique key."""
    with translated():
        row = connection.execute(
            "select bridge.enqueue_message(%s, %s, %s, %s, %s::smallint, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (content.id, content.task_id, *content.content(), content.chord, content.options, content.links, content.fresh),
        ).fetchone()
    return content.id if row is None or row[0] is None else row[0]


def retry_run(connection: Connection, seq: int, run: UUID, token: str, content: Content, error: str | None) -> bool:
    """Call ``bridge.retry_run``; False when the run has been superseded. Makes the day's partition when there is none, and repeats."""
    query = "select bridge.retry_run(%s, %s, %s, %s, %s::smallint, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
    return bool(call_that_ends(connection, query, (seq, run, *content.content(), error, token)))


def jsonb(value: Any) -> Jsonb:
    """Mark a value as JSON for a parameter."""
    return Jsonb(value)


def _job_rows(cursor: Cursor[Any]) -> RowMaker[Job]:
    """A row factory: rows of ``_COLUMNS`` as jobs."""
    del cursor

    def job(values: Sequence[Any]) -> Job:
        named = dict(zip(_NAMES, values, strict=True))
        return Job(**{**named, "status": Status(named["status"])})

    return job


class _Json(JsonLoader):
    """Reads documents; one that is nested deeper than Python goes stays the text that it is, so that its row can be read at all."""

    def load(self, data: Any) -> Any:
        """One value."""
        try:
            return super().load(data)
        except RecursionError:
            return bytes(data).decode()


class _Jsonb(_Json, JsonbLoader):
    """The same of jsonb."""


def _job_cursor(connection: Connection) -> Cursor[Job]:
    """A cursor whose rows are jobs, also on a connection that a framework has taught to read jsonb as text."""
    cursor = connection.cursor(row_factory=_job_rows)
    cursor.adapters.register_loader("json", _Json)
    cursor.adapters.register_loader("jsonb", _Jsonb)
    return cursor


def get(connection: Connection, identity: UUID) -> Job | None:
    """One job, by one statement: a job that moves is seen in one place."""
    with translated(), _job_cursor(connection) as cursor:
        return cursor.execute(f"select {_COLUMNS} from bridge.jobs where id = %s", (identity,)).fetchone()


def was_made_in(connection: Connection, identity: UUID, job: UUID, run: UUID) -> bool:
    """Whether a job was made, or made anew, since a run of another began."""
    query = """select exists (select from bridge.jobs j where j.id = %s
        and j.created_at >= (select max(a.started_at) from bridge.attempts a where a.id = %s and a.run = %s))"""
    with translated():
        row = connection.execute(query, (identity, job, run)).fetchone()
    return bool(row and row[0])


def many(connection: Connection, identities: Sequence[UUID]) -> list[Job]:
    """The jobs with these ids that there are, the last changed first."""
    query = f"select {_COLUMNS} from bridge.jobs where id = any(%s) order by updated_at desc"
    with translated(), _job_cursor(connection) as cursor:
        return cursor.execute(query, (list(identities),)).fetchall()


def attempts(connection: Connection, identity: UUID) -> list[dict[str, Any]]:
    """Every attempt of a job, oldest first: attempt, outcome, worker, started_at, ended_at, error."""
    query = "select attempt, outcome, worker, started_at, ended_at, error from bridge.attempts where id = %s order by ended_at nulls last"
    with translated():
        cursor = plainly(connection).execute(query, (identity,))
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]


def history(connection: Connection, identity: UUID) -> list[Event]:
    """Call ``bridge.history``."""
    with translated(), connection.cursor(row_factory=class_row(Event)) as cursor:
        return cursor.execute(f"select {columns(Event)} from bridge.history(%(id)s)".encode(), {"id": identity}).fetchall()


def cancel(connection: Connection, identity: UUID, *, terminate: bool = True, signal: str = "TERM") -> Status:
    """Call ``bridge.cancel``."""
    return Status(_one(connection, "select bridge.cancel(%s, %s, %s)", identity, terminate, signal))


def retry(connection: Connection, identity: UUID, by: str | None = None, note: str | None = None) -> Status:
    """Call ``bridge.retry``."""
    return Status(_one(connection, "select bridge.retry(%s, %s::text, %s::text)", identity, by, note))


def _one(connection: Connection, query: str, *values: Any) -> str:
    with translated():
        row = plainly(connection).execute(query.encode(), values).fetchone()
    return str(row[0]) if row else ""


def wait(connection: Connection, identities: Sequence[UUID], timeout: float | timedelta | None = None) -> Iterator[Job]:
    """Yield each of these jobs once, when it has ended.

    Args:
        connection: one on which nobody else listens meanwhile.
        identities: the jobs.
        timeout: seconds for all of them together; None waits for ever.
    """
    left = set(identities)
    asked: set[UUID] | None = None
    deadline = None if timeout is None else time.monotonic() + (timeout if isinstance(timeout, int | float) else timeout.total_seconds())
    with translated(), registered(connection, left) as waiter:
        while True:
            for job in _ended(connection, left if asked is None else asked & left):
                left.discard(job.id)
                yield job
            pause = _LONGEST_SLEEP if deadline is None else min(_LONGEST_SLEEP, deadline - time.monotonic())
            if not left or pause <= 0:
                return
            asked = waiter.sleep(pause)


def _ended(connection: Connection, identities: set[UUID]) -> list[Job]:
    with _job_cursor(connection) as cursor:
        query = f"select {_COLUMNS} from bridge.jobs where id = any(%s) and finished_at is not null"
        return cursor.execute(query, (list(identities),)).fetchall()
