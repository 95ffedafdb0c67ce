"""Messages that nobody can read: each is thrown away with a line in the log, where Celery would end the worker.

Whoever writes to a broker can put anything into a queue. Much of that Celery takes for a fault of its own: the exception leaves the
event loop, the worker ends, and the jobs that it was running are lost with it. What is at fault is the message, so it goes, and a row
that it was sent for fails with the reason: published again it would be the same.
"""

from __future__ import annotations

import logging
from functools import wraps
from queue import Empty
from typing import TYPE_CHECKING, Any

import psycopg
from kombu.exceptions import SerializationError, SerializerNotInstalled
from redis.exceptions import DataError

from bridge.application import membership
from bridge.job import Status
from bridge.message import Delivery, deliveries
from bridge.results.failure import error_of
from bridge.worker import outcome

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OF_THE_MESSAGE", "fail_row", "guard_consumer", "guard_reading", "throw_away"]

log = logging.getLogger("bridge.worker")

# What reading a message raises because of what is in it. An outage, of a broker or of Postgres, is none of these.
OF_THE_MESSAGE = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError, psycopg.DataError, DataError,
    SerializationError, SerializerNotInstalled,
)  # fmt: skip
_SHOWN = 200  # characters of an error, which may quote the message


def guard_consumer(consumer: Any) -> None:
    """Guard what a consumer does with a message that has arrived, on any broker; to be called before it connects."""
    consumer.create_task_handler = _guarding(consumer, consumer.create_task_handler)
    consumer.on_decode_error = _failing_row(consumer, consumer.on_decode_error)


def guard_reading(channel: Any) -> None:
    """Guard what a channel of kombu's Redis transport reads from a list; a channel of another kind stays as it is.

    Redis has taken the message out of its list by then, so there is nothing to acknowledge.
    """
    handlers = getattr(channel, "handlers", None)
    if isinstance(handlers, dict) and "BRPOP" in handlers:
        handlers["BRPOP"] = _reading(handlers["BRPOP"])


def throw_away(app: Any, message: Any, error: Exception, connection_errors: Any) -> None:
    """Have done with a message that has arrived: take it off the broker, and fail its row."""
    queue = message.delivery_info.get("routing_key") if isinstance(message.delivery_info, dict) else None
    _say(queue, error)
    if not message.acknowledged:
        message.reject_log_error(log, connection_errors)
    fail_row(app, message, error_of(error, None))


def fail_row(app: Any, message: Any, error: dict[str, Any]) -> None:
    """A row's message that no worker can run: the job fails with that reason, instead of being sent again and again."""
    joined, delivery = membership(app), Delivery.of(message.headers)
    if joined is not None and delivery is None:
        brought = deliveries(message.headers)
        if brought:  # whatever it is, each by itself will tell
            outcome.unbundled(joined, [one.token for one in brought], 0, alone=True)
    elif joined is not None and delivery is not None:
        outcome.ended_outside(joined, delivery, Status.FAILED, error, final=True, pid=0)  # no child has it


def _guarding(consumer: Any, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def create_task_handler(*args: Any, **options: Any) -> Callable[[Any], Any]:
        handle = theirs(*args, **options)

        def on_task_received(message: Any) -> Any:
            try:
                return handle(message)
            except OF_THE_MESSAGE as error:
                throw_away(consumer.app, message, error, consumer.connection_errors)
                return None

        return on_task_received

    return create_task_handler


def _failing_row(consumer: Any, theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Celery's word of a body that cannot be decoded: it logs that and acknowledges the message."""

    @wraps(theirs)
    def on_decode_error(message: Any, exc: Exception) -> None:
        try:
            theirs(message, exc)
        except OF_THE_MESSAGE as error:
            throw_away(consumer.app, message, error, consumer.connection_errors)
        else:
            fail_row(consumer.app, message, error_of(exc, None))

    return on_decode_error


def _reading(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def read(**options: Any) -> Any:
        try:
            return theirs(**options)
        except Empty:
            raise
        except OF_THE_MESSAGE as error:
            _say(None, error)
            return True

    return read


def _say(queue: Any, error: Exception) -> None:
    log.error("threw a message away that cannot be read queue=%s error=%s", queue, ascii(error)[:_SHOWN])
