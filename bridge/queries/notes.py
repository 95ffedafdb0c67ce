"""What a run tells while it runs: progress, lines of a log, a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row

from bridge.job import LogLine
from bridge.queries.answers import value
from bridge.queries.connection import stands_alone, translated
from bridge.queries.runs import call_that_ends

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["checkpoint", "log", "logs", "note", "progress", "save_checkpoint"]

# Nobody waits for the disk because of a line of a log: a crash of Postgres may forget the last of them.
_NOTE = "select bridge.note(%s, %s, %s, %s)"
_NOTE_SOON = f"{_NOTE} from (select set_config('synchronous_commit', 'off', true)) soon"


def note(connection: Connection, seq: int, run: UUID, progress: str | None, lines: str | None) -> bool:
    """Call ``bridge.note``; False when the run has been superseded. Makes the day's partition when there is none, and repeats."""
    query = _NOTE_SOON if stands_alone(connection) else _NOTE
    return bool(call_that_ends(connection, query, (seq, run, progress, lines)))


def progress(connection: Connection, identity: UUID, fraction: float, message: str) -> None:
    """Call ``bridge.progress``: for whatever run has the job."""
    call_that_ends(connection, "select bridge.progress(%s, %s, %s)", (identity, fraction, message))


def log(connection: Connection, identity: UUID, message: str, level: str) -> None:
    """Call ``bridge.log``: for whatever run has the job. Makes the day's partition when there is none, and repeats."""
    call_that_ends(connection, "select bridge.log(%s, %s, %s)", (identity, message, level))


def logs(connection: Connection, identity: UUID, attempt: int | None, since: datetime | None) -> list[LogLine]:
    """Call ``bridge.logs``: the lines of a job, oldest first."""
    query = "select attempt_number as attempt, at, level, message, number, left_out, run from bridge.logs(%s, %s::integer, %s::timestamptz)"
    with translated(), connection.cursor(row_factory=class_row(LogLine)) as cursor:
        return cursor.execute(query, (identity, attempt, since)).fetchall()


def save_checkpoint(connection: Connection, identity: UUID, data: str, run: UUID | None) -> bool:
    """Call ``bridge.save_checkpoint``; ``data`` is JSON text. False when another run has the job."""
    return bool(value(connection, "select bridge.save_checkpoint(%s, %s, %s)", (identity, data, run)))


def checkpoint(connection: Connection, identity: UUID) -> Any:
    """Call ``bridge.checkpoint``; None when there is nothing."""
    return value(connection, "select bridge.checkpoint(%s)", (identity,))
