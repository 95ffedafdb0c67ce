"""What a worker asks of Postgres for every job: one statement at the start, one at the end, both prepared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from bridge.queries.connection import Connection

__all__ = ["end_delivery", "fail", "finish", "lose", "make_days", "progress", "report_worker", "start", "stop_worker"]

# A call of these four goes around psycopg's cursor: a tenth of a job's time is spent there otherwise.
_PREPARED = {
    "start": (b"bridge_start", b"select bridge.start($1::bigint, $2::uuid, $3::uuid, $4::integer)"),
    "finish": (b"bridge_finish", b"select bridge.finish($1::bigint, $2::uuid, $3, $4::json, $5::json, $6::jsonb)"),
}


def _execute(connection: Connection, name: str, values: Sequence[Any]) -> bytes | None:
    """Run one of the prepared statements; its single value as text."""
    statement, query = _PREPARED[name]
    pgconn = connection.pgconn
    result = pgconn.exec_prepared(statement, values)
    if result.status == psycopg.pq.ExecStatus.FATAL_ERROR and result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"26000":
        pgconn.prepare(statement, query)  # first use on this connection
        result = pgconn.exec_prepared(statement, values)
    if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
        raise psycopg.errors.error_from_result(result)
    return result.get_value(0, 0)


def start(connection: Connection, seq: int, token: str, worker: UUID, pid: int) -> UUID | None:
    """The start fence: the id of the run, or None when this copy must not run."""
    with translated():
        value = _execute(connection, "start", [b"%d" % seq, token.encode(), worker.hex.encode(), b"%d" % pid])
    return None if value is None else UUID(value.decode())


def finish(connection: Connection, seq: int, run: UUID, status: str, result: str | None, error: str | None, outcome: str | None) -> bool:
    """End a job by its run; JSON parts as text. False when the run has been superseded.

    Makes the day's partition when there is none, and repeats.
    """
    texts = (status, result, error, outcome)
    values: list[bytes | None] = [b"%d" % seq, run.hex.encode(), *(None if text is None else text.encode() for text in texts)]
    with translated():
        try:
            return _execute(connection, "finish", values) == b"t"
        except psycopg.errors.CheckViolation:
            make_days(connection)
            return _execute(connection, "finish", values) == b"t"


def fail(connection: Connection, seq: int, run: UUID, error: str, *, final: bool, outcome: str | None) -> str | None:
    """A run failed; the job's new status, or None when the run has been superseded."""
    with translated():
        row = connection.execute("select bridge.fail(%s, %s, %s, %s, %s)", (seq, run, error, final, outcome)).fetchone()
    return row[0] if row else None


def end_delivery(
    connection: Connection,
    seq: int,
    token: str,
    worker: UUID,
    status: str,
    error: str | None,
    *,
    final: bool,
    outcome: str | None,
) -> str | None:
    """A main process ends what never ran, or a run of its own; the job's new status, or None when it is not its to end."""
    with translated():
        row = connection.execute(
            "select bridge.end_delivery(%s, %s, %s, %s, %s, %s, %s)", (seq, token, worker, status, error, final, outcome)
        ).fetchone()
    return row[0] if row else None


def lose(connection: Connection, seq: int, token: str, reason: str) -> str | None:
    """The process that had a delivery is dead; the job's new status, or None when the delivery is no longer its own."""
    with translated():
        row = connection.execute("select bridge.lose(%s, %s, %s)", (seq, token, reason)).fetchone()
    return row[0] if row else None


def progress(connection: Connection, seq: int, run: UUID, value: str) -> bool:
    """Note how far a run has come; False when it has been superseded."""
    with translated():
        row = connection.execute("select bridge.progress(%s, %s, %s)", (seq, run, value)).fetchone()
    return bool(row and row[0])


def make_days(connection: Connection) -> int:
    """Make the partitions of the coming days."""
    row = connection.execute("select bridge.make_days()").fetchone()
    return int(row[0]) if row else 0


def report_worker(
    connection: Connection, identity: UUID, *, name: str, pid: int, pool: str, concurrency: int, queues: Sequence[str], software: str,
    holding: Sequence[str], clock: datetime,
) -> list[UUID]:  # fmt: skip
    """One heartbeat; the tokens of held runs that somebody has cancelled."""
    row = connection.execute(
        "select bridge.report_worker(%s, %s, %s, %s, %s, %s, %s, %s::uuid[], %s)",
        (identity, name, pid, pool, concurrency, list(queues), software, list(holding), clock),
    ).fetchone()
    return list(row[0]) if row else []


def stop_worker(connection: Connection, identity: UUID) -> None:
    """Say good-bye."""
    connection.execute("select bridge.stop_worker(%s)", (identity,))
