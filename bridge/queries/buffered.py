"""Jobs that travel together in one statement of one text parameter, which any driver of Postgres can run.

What is gathered in a caller's transaction is sent through the caller's own connection, be it psycopg's, SQLAlchemy's or Django's.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from bridge.errors import BridgeError, InvalidArgumentError, ServerError, from_sqlstate
from bridge.queries.connection import plainly, translated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from bridge.queries.connection import Connection
    from bridge.queries.jobs import Content

__all__ = ["HAS_WRITTEN", "Row", "enqueue_statement", "job_row", "message_row", "our_errors", "parameter", "send"]

# Whether the transaction has changed or locked anything: Postgres gives out a transaction id only then.
HAS_WRITTEN = "select pg_catalog.pg_current_xact_id_if_assigned() is not null"


@dataclass(frozen=True, slots=True)
class Row:
    """One job, ready to be sent.

    Attributes:
        id: made here, so that the caller has it before Postgres has the job.
        text: the job as JSON, for ``bridge.enqueue_buffered``.
    """

    id: UUID
    text: str


def job_row(identity: UUID, job: Mapping[str, Any]) -> Row:
    """A job by the argument names of ``bridge.enqueue``; JSON values only."""
    return Row(identity, json.dumps({"id": str(identity), "job": dict(job)}))


def message_row(content: Content) -> Row:
    """A job that a Celery call has made: its JSON parts go in as the texts that they are."""
    plain = {
        "id": str(content.id), "task_id": content.task_id, "task": content.task, "queue": content.queue, "rank": content.rank,
        "payload": None if content.payload is None else f"\\x{content.payload.hex()}", "content_type": content.content_type,
        "content_encoding": content.content_encoding, "expires_at": content.expires_at and content.expires_at.isoformat(),
        "run_at": content.run_at and content.run_at.isoformat(), "chord": content.chord, "fresh": content.fresh,
    }  # fmt: skip
    texts = {
        "args": content.args, "kwargs": content.kwargs, "embed": content.embed, "headers": content.headers,
        "properties": content.properties, "options": content.options, "links": content.links,
    }  # fmt: skip
    parts = "".join(f', "{name}": {text}' for name, text in texts.items() if text is not None)
    return Row(content.id, json.dumps(plain).removesuffix("}") + parts + "}")


def enqueue_statement(placeholder: str) -> str:
    """The statement that makes jobs of one parameter, as this driver writes parameters."""
    return f"select bridge.enqueue_buffered({placeholder}::text::json)"


def parameter(rows: Sequence[Row]) -> str:
    """The rows as that statement's parameter."""
    return f"[{', '.join(row.text for row in rows)}]"


def send(connection: Connection, rows: Sequence[Row]) -> list[UUID]:
    """Make the jobs on a psycopg connection.

    Inside ``with connection.pipeline()`` nothing is waited for: the ids are those of the rows, and an error comes from the pipeline's end.
    """
    with translated():
        cursor = plainly(connection).execute(enqueue_statement("%s").encode(), (parameter(rows),))
        if connection.pgconn.pipeline_status:
            return [row.id for row in rows]
        return [row[0] for row in cursor]


@contextmanager
def our_errors() -> Iterator[None]:
    """Raise our own exceptions for errors that another library has wrapped around the driver's.

    Raises:
        BridgeError: as the SQL function said it, or as ``translated`` says it.
    """
    try:
        yield
    except BridgeError:
        raise
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, psycopg.Error):
                with translated():
                    raise cause  # noqa: B904 - it is the cause
            _raise_foreign(cause)
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it wraps, and so on; SQLAlchemy calls it ``orig``."""
    while error is not None:
        yield error
        error = getattr(error, "orig", None) or error.__cause__


def _raise_foreign(error: BaseException) -> None:
    """Another driver's error: asyncpg and psycopg2 keep the SQLSTATE and the hint under these names."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    hint = getattr(error, "hint", None)
    if not isinstance(state, str) or getattr(error, "orig", None) is not None:
        return
    inner = error.__cause__ if hint is None and getattr(error.__cause__, "sqlstate", None) == state else error
    message = str(getattr(inner, "message", None) or inner)
    own = from_sqlstate(state, message, getattr(inner, "hint", None), getattr(inner, "detail", None))
    if own is not None:
        raise own from error
    if state == "42883":
        raise BridgeError("schema bridge is missing or of another release", 'run "bridge install"') from error
    if state.startswith("22"):
        raise InvalidArgumentError(message) from error
    if state.startswith("08"):
        raise ServerError(f"the database went away: {message}", "repeat the call") from error
