"""What a worker asks of Postgres for every job: one statement at the start, one at the end, both prepared."""

from __future__ import annotations

import select
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from bridge.queries.connection import is_pooled, translated
from bridge.session import Session, is_refused_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from bridge.queries.connection import Connection

__all__ = [
    "Finish",
    "NeverRan",
    "Wanted",
    "call_that_ends",
    "end_delivery",
    "fail",
    "finish",
    "finish_many",
    "heartbeat_interval",
    "lose",
    "make_days",
    "mark_replaced",
    "never_ran",
    "note_refused",
    "prepare",
    "prepare_finishes",
    "release",
    "report_worker",
    "start",
    "start_many",
    "step_aside",
    "stop_worker",
    "unbundle",
]

# These two go around psycopg's cursor: a tenth of a small job's time is spent there otherwise.
_PREPARED = {
    b"bridge_start": b"select bridge.start($1::bigint, $2::uuid, $3::uuid, $4::integer, $5::uuid)",
    b"bridge_finish": b"select bridge.finish($1::bigint, $2::uuid, $3, $4::json, $5::json, $6::jsonb, $7::uuid, $8::uuid)",
    b"bridge_start_many": b"select bridge.start_many($1::bigint[], $2::uuid[], $3::uuid, $4::integer, $5::uuid[])",
    b"bridge_finish_many": b"select bridge.finish_many($1::bigint[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[])",
}
_UNPREPARED = b"26000"  # invalid_sql_statement_name: first use on this connection


@dataclass(frozen=True, slots=True)
class Finish:
    """The outcome of a run; JSON parts are text."""

    seq: int
    run: UUID
    token: str
    job: UUID
    status: str
    result: str | None = None
    error: str | None = None
    outcome: str | None = None

    def values(self) -> list[bytes | None]:
        """The parameters of ``bridge.finish``."""
        texts = (self.status, self.result, self.error, self.outcome, self.token, self.job.hex)
        return [b"%d" % self.seq, self.run.hex.encode(), *(None if text is None else text.encode() for text in texts)]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A delivery that a bundle has brought, and the id that its run is to have."""

    seq: int
    token: str
    run: UUID


@dataclass(frozen=True, slots=True)
class NeverRan:
    """A task that waited for one that failed; JSON parts are text."""

    id: UUID
    task_id: str | None
    task: str
    queue: str
    args: str
    kwargs: str
    error: str


def start(connection: Connection, seq: int, token: str, worker: UUID, pid: int, run: UUID | None = None) -> UUID | None:
    """The start fence: the id of the run, or None when this copy must not run.

    With the id that the run is to have, the question may be repeated when its answer was lost.
    """
    named = None if run is None else run.hex.encode()
    with translated():
        value = _execute(connection, b"bridge_start", [b"%d" % seq, token.encode(), worker.hex.encode(), b"%d" % pid, named])
    return None if value is None else UUID(value.decode())


def finish(connection: Connection, outcome: Finish) -> bool:
    """End a job by its run and wait for the answer: False when the run has been superseded.

    Makes the day's partition when there is none, and repeats.
    """
    with translated():
        try:
            return _execute(connection, b"bridge_finish", outcome.values()) == b"t"
        except psycopg.errors.CheckViolation:
            make_days(connection)
            return _execute(connection, b"bridge_finish", outcome.values()) == b"t"


def send_finish(connection: Connection, outcome: Finish) -> None:
    """Send what ``finish`` would; ``read_finish`` must follow before anything else on this connection."""
    with translated():
        _send(connection, b"bridge_finish", outcome.values())


def read_finish(connection: Connection, outcome: Finish) -> bool:
    """Wait for the answer of ``send_finish``; an outcome that could not be taken yet is sent again."""
    with translated():
        try:
            return _read(connection) == b"t"
        except (psycopg.errors.CheckViolation, psycopg.errors.InvalidSqlStatementName):
            return finish(connection, outcome)


def start_many(connection: Connection, wanted: Sequence[Wanted], worker: UUID, pid: int) -> set[int]:
    """The start fence for a slice of a bundle: the numbers of those that may run. It may be asked again, as ``start``.

    Makes the day's partition when there is none, and repeats: what was cancelled meanwhile ends here.
    """
    columns = [_array(str(one.seq) for one in wanted), _array(one.token for one in wanted)]
    values = [*columns, worker.hex.encode(), b"%d" % pid, _array(one.run.hex for one in wanted)]
    return set(_numbers(_with_days(connection, lambda: _execute(connection, b"bridge_start_many", values))))


def finish_many(connection: Connection, outcomes: Sequence[Finish]) -> list[int]:
    """End jobs that have succeeded and wait for the answer: the places, from 1, of those whose runs have been superseded."""
    return _numbers(_with_days(connection, lambda: _execute(connection, b"bridge_finish_many", _columns(outcomes))))


def send_finish_many(connection: Connection, outcomes: Sequence[Finish]) -> None:
    """Send what ``finish_many`` would; ``read_finish_many`` must follow before anything else on this connection."""
    with translated():
        _send(connection, b"bridge_finish_many", _columns(outcomes))


def read_finish_many(connection: Connection, outcomes: Sequence[Finish]) -> list[int]:
    """Wait for the answer of ``send_finish_many``; outcomes that could not be taken yet are sent again."""
    with translated():
        try:
            return _numbers(_read(connection))
        except (psycopg.errors.CheckViolation, psycopg.errors.InvalidSqlStatementName):
            return finish_many(connection, outcomes)


def unbundle(connection: Connection, tokens: Sequence[str], worker: UUID, pid: int | None, *, alone: bool) -> int:
    """Give back what of a bundle has not been run; how many. ``alone``: they are in no bundle any more."""
    query = "select bridge.unbundle(%s::uuid[], %s, %s, %s)"
    return int(call_that_ends(connection, query, (list(tokens), worker, pid, alone)) or 0)


def _with_days(connection: Connection, ask: Callable[[], bytes | None]) -> bytes | None:
    with translated():
        try:
            return ask()
        except psycopg.errors.CheckViolation:
            make_days(connection)
            return ask()


def _columns(outcomes: Sequence[Finish]) -> list[bytes]:
    """The parameters of ``bridge.finish_many``."""
    rows = [(str(one.seq), one.run.hex, one.token, one.job.hex, one.result, one.outcome) for one in outcomes]
    return [_array(column) for column in zip(*rows, strict=True)]


def _array(values: Iterable[str | None]) -> bytes:
    """An array as Postgres reads its text."""
    return b"{%s}" % ",".join("NULL" if value is None else _quoted(value) for value in values).encode()


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _numbers(array: bytes | None) -> list[int]:
    return [int(number) for number in (array or b"{}")[1:-1].split(b",") if number]


def prepare(connection: Connection) -> None:
    """Prepare both statements ahead, for a connection inside a transaction, which the failed first use of one would end."""
    known = {row[0].encode() for row in connection.execute("select name from pg_prepared_statements")}
    for name, text in _PREPARED.items():
        if name not in known:
            _prepare(connection, name, text)


def prepare_finishes(connection: Connection) -> None:
    """Have a connection know how runs end: a first outcome that is refused until it is sent again is lost with all of its worker.

    What a schema refuses to prepare is told where it is used.
    """
    with translated():
        for name in () if is_pooled(connection) else (b"bridge_finish", b"bridge_finish_many"):
            with suppress(psycopg.ProgrammingError):
                _prepare(connection, name, _PREPARED[name])


def _prepare(connection: Connection, name: bytes, text: bytes) -> None:
    connection.pgconn.send_prepare(name, text)
    _flush(connection)
    _result(connection, psycopg.pq.ExecStatus.COMMAND_OK)


def _execute(connection: Connection, name: bytes, values: Sequence[Any]) -> bytes | None:
    """Run one of the prepared statements; its single value as text."""
    _send(connection, name, values)
    try:
        return _read(connection)
    except psycopg.errors.InvalidSqlStatementName:
        _prepare(connection, name, _PREPARED[name])
        _send(connection, name, values)
        return _read(connection)


def _send(connection: Connection, name: bytes, values: Sequence[Any]) -> None:
    pgconn = connection.pgconn
    if is_pooled(connection):
        pgconn.send_query_params(_PREPARED[name], values)
    else:
        pgconn.send_query_prepared(name, values)
    _flush(connection)


def _flush(connection: Connection) -> None:
    while connection.pgconn.flush():
        _wait(connection, to_write=True)


def _read(connection: Connection) -> bytes | None:
    """The single value of the statement that was sent; other threads run meanwhile."""
    return _result(connection, psycopg.pq.ExecStatus.TUPLES_OK).get_value(0, 0)


def _result(connection: Connection, wanted: psycopg.pq.ExecStatus) -> psycopg.pq.abc.PGresult:
    result, end = _next_result(connection), True
    while end:  # the end mark frees the connection for the next statement
        end = _next_result(connection) is not None
    if result is None:
        raise psycopg.OperationalError("the connection gave no answer")
    if result.status != wanted:
        error = psycopg.errors.error_from_result(result)
        raise connection.no_writes(error) if isinstance(connection, Session) and is_refused_write(error) else error
    return result


def _next_result(connection: Connection) -> psycopg.pq.abc.PGresult | None:
    pgconn = connection.pgconn
    while pgconn.is_busy():
        _wait(connection)
        pgconn.consume_input()
    return pgconn.get_result()


def _wait(connection: Connection, *, to_write: bool = False) -> None:
    """Wait for the socket. A caller's own connection has the patience that its kernel has."""
    if isinstance(connection, Session):
        connection.wait_for_socket(to_write=to_write)
    else:
        ends = [connection.pgconn.socket]
        select.select([] if to_write else ends, ends if to_write else [], [])


def fail(
    connection: Connection, seq: int, run: UUID, token: str, job: UUID, error: str, *, final: bool, outcome: str | None
) -> str | None:  # fmt: skip
    """A run failed; the job's new status, also when it is told again, or None when the run has been superseded."""
    return _status(connection, "select bridge.fail(%s, %s, %s, %s, %s, %s, %s)", (seq, run, error, final, outcome, token, job))


def end_delivery(
    connection: Connection, seq: int, token: str, worker: UUID, status: str, error: str | None, *, final: bool, outcome: str | None,
    pid: int | None,
) -> str | None:  # fmt: skip
    """A main process ends what never ran, or a run of its own; the job's new status, or None when it is not its to end."""
    values = (seq, token, worker, status, error, final, outcome, pid)
    return _status(connection, "select bridge.end_delivery(%s, %s, %s, %s, %s, %s, %s, %s)", values)


def mark_replaced(connection: Connection, seq: int, run: UUID, token: str) -> None:
    """A run is about to enqueue the first of the tasks that replace it, of which the last will have its id."""
    with translated():
        connection.execute("select bridge.mark_replaced(%s, %s, %s)", (seq, run, token))


def step_aside(connection: Connection, seq: int, run: UUID, token: str) -> bool:
    """A run that has replaced itself is over; False when it was superseded, by the task that has its id now for example."""
    return bool(call_that_ends(connection, "select bridge.step_aside(%s, %s, %s)", (seq, run, token)))


def lose(connection: Connection, seq: int, token: str, reason: str, worker: UUID, pid: int | None) -> str | None:
    """The process that had a delivery is dead; the job's new status, or None when the delivery is no longer its own."""
    return _status(connection, "select bridge.lose(%s, %s, %s, %s, %s)", (seq, token, reason, worker, pid))


def _status(connection: Connection, query: str, values: tuple[Any, ...]) -> str | None:
    """Call a function that may end a job; its new status."""
    value: str | None = call_that_ends(connection, query, values)
    return value


def call_that_ends(connection: Connection, query: str, values: tuple[Any, ...]) -> Any:
    """Call a function that writes history; makes the day's partition when there is none, and repeats."""
    with translated():
        try:
            row = connection.execute(query.encode(), values).fetchone()
        except psycopg.errors.CheckViolation:
            make_days(connection)
            row = connection.execute(query.encode(), values).fetchone()
    return row[0] if row else None


def never_ran(connection: Connection, job: NeverRan) -> bool:
    """Write the row of a task that will never run; False when there is one of that id already."""
    values = (job.id, job.task_id, job.task, job.queue, job.args, job.kwargs, job.error)
    return bool(call_that_ends(connection, "select bridge.never_ran(%s, %s, %s, %s, %s, %s, %s)", values))


def make_days(connection: Connection) -> int:
    """Make the partitions of the coming days."""
    row = connection.execute("select bridge.make_days()").fetchone()
    return int(row[0]) if row else 0


def report_worker(
    connection: Connection, identity: UUID, *, name: str, pid: int, pool: str, concurrency: int, queues: Sequence[str], software: str,
    holding: Sequence[str], clock: datetime, bundles: dict[str, int | str] | None = None,
) -> dict[str, str]:  # fmt: skip
    """One heartbeat; of held runs that somebody has cancelled, the signals to stop them with, by token."""
    row = connection.execute(
        "select bridge.report_worker(%s, %s, %s, %s, %s, %s, %s, %s::uuid[], %s, %s)",
        (identity, name, pid, pool, concurrency, list(queues), software, list(holding), clock, None if bundles is None else Jsonb(bundles)),
    ).fetchone()
    return dict(row[0]) if row else {}


def note_refused(connection: Connection, worker: str, counts: dict[str, int]) -> None:
    """Add to how many messages were refused, by reason."""
    connection.execute("select bridge.note_refused(%s, %s)", (worker, Jsonb(counts)))


def heartbeat_interval(connection: Connection) -> float:
    """Seconds between two reports of a worker, as operators have set it."""
    row = connection.execute("select bridge.setting('heartbeat')").fetchone()
    return float(row[0]) if row else 5.0


def release(connection: Connection, tokens: Sequence[str]) -> int:
    """Give back deliveries that have not begun; how many."""
    row = connection.execute("select bridge.release(%s::uuid[])", (list(tokens),)).fetchone()
    return int(row[0]) if row else 0


def stop_worker(connection: Connection, identity: UUID) -> int:
    """Say good-bye; how many jobs the worker gave back. Makes the day's partition when there is none, and repeats."""
    return int(call_that_ends(connection, "select bridge.stop_worker(%s)", (identity,)) or 0)
