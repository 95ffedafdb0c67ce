"""What becomes of a run or a delivery, written to its row; an outage of Postgres is waited out, because an outcome exists only once."""

from __future__ import annotations

import json
import re
import traceback as tracebacks
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from celery.exceptions import NotRegistered, Reject
from kombu.exceptions import EncodeError
from kombu.serialization import dumps
from tenacity import Retrying, retry_if_exception_type, wait_random_exponential

from bridge.errors import PermanentError, ServerError
from bridge.job import Status
from bridge.message import HEADER, Delivery
from bridge.queries import jobs, runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.application import Membership
    from bridge.queries.jobs import Content
    from bridge.queries.runs import NeverRan
    from bridge.worker.fence import Run

__all__ = [
    "argument_texts",
    "delivery_of",
    "ended_outside",
    "error_of",
    "failed",
    "is_final",
    "is_of_a_row",
    "json_text",
    "lost",
    "never_ran",
    "noted_error",
    "progressed",
    "result_columns",
    "run_of",
    "succeeded",
]

_NOT_A_NUMBER = re.compile(r"NaN|Infinity")
Written = TypeVar("Written")

_TRACEBACK_SIZE = 64 << 10  # characters kept of a traceback's end


def run_of(request: Any) -> Run | None:
    """The run that a request carries in a pool's child, while nobody has settled it."""
    run: Run | None = getattr(request, "bridge_run", None)
    return run if run is not None and not run.settled else None


def delivery_of(request: Any) -> Delivery | None:
    """The delivery that a request came with; None when a run has it, or the message is not ours."""
    if getattr(request, "bridge_run", None) is not None:
        return None
    return Delivery.parse(getattr(request, HEADER, None))


def is_of_a_row(request: Any) -> bool:
    """Whether a request came with a row's delivery, in whatever process."""
    return Delivery.parse(getattr(request, HEADER, None)) is not None


def patiently(write: Callable[[], Written]) -> Written:
    """Repeat a write until Postgres takes it: seconds of outage must not cost a finished run."""
    again = retry_if_exception_type((ServerError, psycopg.OperationalError))
    return Retrying(retry=again, wait=wait_random_exponential(multiplier=0.1, max=5), reraise=True)(write)


def json_text(value: Any) -> str:
    """JSON text of a value, by Celery's own encoder (dates, decimals, uuids …).

    Raises:
        kombu.exceptions.EncodeError: it has none.
    """
    text: str = dumps(value, serializer="json")[2]
    return text


def argument_texts(args: Any, kwargs: Any) -> tuple[str, str]:
    """Arguments as JSON texts; empty ones where Postgres would not take them."""
    try:
        texts = json_text(list(args or ())), json_text(dict(kwargs or {}))
    except EncodeError:
        return "[]", "{}"
    return texts if all(map(_is_fit, texts)) else ("[]", "{}")


def _is_fit(text: str) -> bool:
    return "\\u0000" not in text and "\\ud" not in text and _is_strict(text)


def result_columns(value: Any) -> tuple[str | None, str | None]:
    """A return value as the columns ``result`` and ``outcome``.

    Python's JSON knows NaN and infinities, Postgres's does not: such a value is kept as text beside the row's result, and read from there.

    Raises:
        kombu.exceptions.EncodeError: it has no JSON form.
    """
    text = json_text(value)
    if _NOT_A_NUMBER.search(text) and not _is_strict(text):
        return None, json.dumps({"json": text})
    return text, None


def _is_strict(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError:
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def error_of(exc: Any, traceback: Any) -> dict[str, Any]:
    """The error of a row: type, message and the end of the traceback."""
    text = str(traceback) if traceback else None
    if text is None and isinstance(exc, BaseException) and exc.__traceback__ is not None:
        text = "".join(tracebacks.format_exception(exc))
    return {
        "type": type(exc).__name__, "module": type(exc).__module__, "message": _message(exc),
        "traceback": text[-_TRACEBACK_SIZE:].replace("\x00", "\ufffd") if text else None,
    }  # fmt: skip


def noted_error(value: Any) -> dict[str, Any]:
    """The error of a row by what a task has stored with the state FAILURE: an exception, Celery's form of one, or words."""
    if isinstance(value, BaseException):
        return error_of(value, None)
    if isinstance(value, dict) and "exc_type" in value:
        words = value.get("exc_message")
        text = "; ".join(map(str, words)) if isinstance(words, list | tuple) else str(words)
        return {"type": value["exc_type"], "module": value.get("exc_module"), "message": text, "traceback": None, "exception": value}
    return {"type": "Exception", "module": "builtins", "message": str(value), "traceback": None}


def _message(exc: Any) -> str:
    try:
        return str(exc).replace("\x00", "\ufffd")
    except Exception as error:  # noqa: BLE001 - a user's __str__ may do anything
        return f"<its text cannot be shown: {type(error).__name__}>"


def is_final(exc: Any) -> bool:
    """Whether no further attempt could help: nobody knows the task, it was rejected, or it says so itself."""
    return isinstance(exc, NotRegistered | Reject | PermanentError)


def succeeded(joined: Membership, run: Run, result: str | None, beyond: str | None = None) -> None:
    """The run returned; its job ends when Postgres has taken the result, which is on its way when this returns."""
    run.settled = True
    joined.channels.get().finish(runs.Finish(run.delivery.seq, run.id, run.delivery.token, "succeeded", result, outcome=beyond))


def retried(joined: Membership, run: Run, content: Content) -> None:
    """The run asked for its own next attempt. An outage is waited out: an error here would end the task as rejected."""
    run.settled = True
    patiently(lambda: jobs.retry_run(joined.connections.get(), run.delivery.seq, run.id, run.delivery.token, content))


def failed(joined: Membership, run: Run, error: dict[str, Any], *, final: bool, beyond: dict[str, Any] | None) -> Status | None:
    """The run raised; the job's new status."""
    run.settled = True
    text = json_text({**error, **(beyond or {})})
    return _status(
        patiently(
            lambda: runs.fail(joined.connections.get(), run.delivery.seq, run.id, run.delivery.token, text, final=final, outcome=None)
        )
    )


def lost(joined: Membership, delivery: Delivery, reason: str) -> Status | None:
    """The child that had this delivery is dead; the job's new status."""
    return _status(patiently(lambda: runs.lose(joined.connections.get(), delivery.seq, delivery.token, reason)))


def ended_outside(
    joined: Membership, delivery: Delivery, status: Status, error: dict[str, Any], *, final: bool, beyond: dict[str, Any] | None
) -> Status | None:
    """The main process ends a delivery; the job's new status."""
    text = json_text({**error, **(beyond or {})})

    def write() -> str | None:
        connection = joined.connections.get()
        return runs.end_delivery(connection, delivery.seq, delivery.token, joined.worker_id, status, text, final=final, outcome=None)

    return _status(patiently(write))


def never_ran(joined: Membership, job: NeverRan) -> bool:
    """Give a task that will never run a row that says why; False when there is one already."""
    return patiently(lambda: runs.never_ran(joined.connections.get(), job))


def progressed(joined: Membership, run: Run, value: dict[str, Any]) -> bool:
    """Note progress; False when the run has been superseded."""
    return runs.progress(joined.connections.get(), run.delivery.seq, run.id, json_text(value))


def _status(value: str | None) -> Status | None:
    return None if value is None else Status(value)
