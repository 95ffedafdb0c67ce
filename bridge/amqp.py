"""Task calls become rows: Celery does all of its work (routing, serializer, signals), then hands the message to a stand-in producer."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
from celery._state import get_current_task
from kombu.compression import compress
from kombu.exceptions import OperationalError
from kombu.serialization import dumps

from bridge import message as wire
from bridge.application import membership
from bridge.errors import InvalidArgumentError, ServerError
from bridge.job import job_id
from bridge.queries import jobs
from bridge.queries.jobs import Content
from bridge.worker import outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.application import Membership
    from bridge.worker.fence import Run

__all__ = ["RowSender"]

# What json.dumps writes and Postgres does not take: such bodies are kept as bytes.
_UNFIT = re.compile(r"\\u0000|\\ud[89ab]..(?!\\ud[c-f])|(?<!\\ud[89ab]..)\\ud[c-f]|\b(NaN|-?Infinity)\b", re.IGNORECASE)
_DEFAULT_RANK = 9


class RowSender:
    """Mixed into the application's AMQP class."""

    app: Any

    @property
    def send_task_message(self) -> Callable[..., Any]:
        """Celery's own sender, with the producer exchanged for one that writes rows."""
        publish: Callable[..., Any] = self.__dict__.get("_bridge_sender") or self._create_task_sender()  # type: ignore[attr-defined]
        self.__dict__["_bridge_sender"] = publish
        joined = membership(self.app)
        if joined is None:
            return publish

        def send(producer: Any, name: str, message: Any, **options: Any) -> Any:
            if not joined.takes(name):
                return publish(producer, name, message, **options)
            if not message.headers:
                raise InvalidArgumentError(f"task {name} is sent with task_protocol 1", "set task_protocol = 2, Celery's default since 4.0")
            # The event task-sent belongs to the moment when a drainer publishes.
            return publish(RowProducer(joined), name, message._replace(sent_event=None), **options)

        return send


class RowConnection:
    """What Celery asks of a producer's connection when it publishes callbacks: which errors a new connection could mend."""

    recoverable_connection_errors = (OperationalError,)


class RowProducer:
    """Looks like a kombu producer to Celery; what is published is a row when the transaction commits."""

    connection = RowConnection()

    def __init__(self, joined: Membership) -> None:
        self._joined = joined

    def revive(self, channel: Any) -> None:
        """Nothing: a broken connection to Postgres is opened again by the next call."""

    def publish(self, body: Any, *, headers: dict[str, Any], serializer: str, compression: str | None = None, **options: Any) -> None:
        """Write one task message as a row.

        Raises:
            OperationalError: kombu's, when the database cannot be reached: Celery handles that like a lost broker.
        """
        content = _content(body, dict(headers), serializer, compression, options, reverse=self._is_amqp())
        run = _own_run(headers["id"])
        if run is not None:
            outcome.retried(self._joined, run, content)
            return
        try:
            jobs.enqueue_message(self._joined.connections.get(), content)
        except (ServerError, psycopg.OperationalError) as error:
            raise OperationalError(str(error)) from error

    def _is_amqp(self) -> bool:
        return str(self._joined.app.conf.broker_url or "amqp").startswith(("amqp", "pyamqp", "py-amqp"))


def _own_run(task_id: str) -> Run | None:
    """The run in hand, when the message carries its own id: Task.retry and Task.replace."""
    task = get_current_task()
    request = getattr(task, "request", None)
    if request is None or request.id != task_id:
        return None
    return outcome.run_of(request)


def _content(
    body: Any, headers: dict[str, Any], serializer: str, compression: str | None, options: dict[str, Any], *, reverse: bool
) -> Content:
    """The row of one message: JSON parts as text, anything else as the bytes that Celery would have sent."""
    headers.pop(wire.HEADER, None)  # a retry or a child inherits its parent's; each delivery gets its own
    eta, expires = headers.get("eta"), headers.get("expires")
    exchange_name = str(getattr(options.get("exchange"), "name", options.get("exchange") or ""))
    headers["eta"] = None
    parts = _json_parts(body, serializer, compression)
    payload, kind, encoding = (None, None, None) if parts else _encoded(body, serializer, compression, headers)
    args, kwargs, embed = parts or ("[]", "{}", None)
    routing_key = options.get("routing_key") or ""
    properties = {
        key: value for key, value in options.items()
        if key in {"priority", "delivery_mode", "reply_to", "correlation_id"} and value is not None
    }  # fmt: skip
    identity = job_id(headers["id"])
    return Content(
        id=identity, task_id=None if str(identity) == headers["id"] else headers["id"], task=headers["task"],
        queue=routing_key or exchange_name, rank=_rank(options.get("priority"), reverse=reverse),
        args=args, kwargs=kwargs, embed=embed, payload=payload, content_type=kind, content_encoding=encoding,
        headers=json.dumps(headers, default=str),
        properties=json.dumps({**properties, "exchange": exchange_name, "routing_key": routing_key}, default=str),
        expires_at=datetime.fromisoformat(expires) if expires else None, run_at=datetime.fromisoformat(eta) if eta else None,
    )  # fmt: skip


def _json_parts(body: Any, serializer: str, compression: str | None) -> tuple[str, str, str] | None:
    if serializer != "json" or compression:
        return None
    args, kwargs, embed = (dumps(part, serializer="json")[2] for part in body)
    return None if _UNFIT.search(args) or _UNFIT.search(kwargs) or _UNFIT.search(embed) else (args, kwargs, embed)


def _encoded(body: Any, serializer: str, compression: str | None, headers: dict[str, Any]) -> tuple[bytes, str, str]:
    kind, encoding, data = dumps(body, serializer=serializer)
    payload = data.encode() if isinstance(data, str) else data
    if compression:
        payload, headers["compression"] = compress(payload, compression)
    return payload, kind, encoding


def _rank(priority: int | None, *, reverse: bool) -> int:
    """Where a call stands among the ready: 9 is what calls without priority have.

    On RabbitMQ a higher number is sooner (rank 9 - n), on Redis a lower one: 0, the default, is most urgent there (rank 9 + n).
    """
    bounded = min(max(priority or 0, 0), 9)
    return _DEFAULT_RANK - bounded if reverse else _DEFAULT_RANK + bounded
