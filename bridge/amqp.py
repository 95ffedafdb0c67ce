"""Task calls become rows: Celery does all of its work (routing, serializer, signals), then hands the message to a stand-in producer."""

from __future__ import annotations

import logging
from itertools import count
from typing import TYPE_CHECKING, Any

from celery._state import get_current_task
from kombu.exceptions import OperationalError

from bridge import message as wire
from bridge import tracing, unique
from bridge.application import membership
from bridge.asked import asked_of_call
from bridge.choice import OPTION
from bridge.content import OURS, content_of, undelayed
from bridge.errors import InvalidArgumentError
from bridge.queries import jobs
from bridge.queries.buffered import message_row
from bridge.queries.connection import OUTAGE
from bridge.queries.repeat import Tries
from bridge.worker import outcome, replacement
from bridge.worker.follow import sent_by_tracer, takes_rows_alone

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from bridge.application import Membership
    from bridge.queries.connection import Connection
    from bridge.queries.jobs import Content

__all__ = ["RowSender"]

log = logging.getLogger("bridge")


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
            call = options.pop(OPTION, None)
            if not _becomes_row(joined, name, message, call, options):
                _refuse_to_be_followed(name)
                _forget_delivery(message.headers, options)
                return publish(producer, name, message, **options)
            if not message.headers:
                raise InvalidArgumentError(f"task {name} is sent with task_protocol 1", "set task_protocol = 2, Celery's default since 4.0")
            # The event task-sent belongs to the moment when a drainer publishes.
            asked = _asked(joined, name, message.body, call)
            if _own_request(message.headers.get("id")) is None:
                unique.refuse_awaited(joined, name, message, asked)
            return publish(RowProducer(joined, asked), name, message._replace(sent_event=None), **undelayed(self.app, options))

        return send


def _becomes_row(joined: Membership, name: str, message: Any, call: object, options: dict[str, Any]) -> bool:
    """Whether this message becomes a row; Celery's own broker gets the others.

    The next attempt of a run goes the way that the run came, because its id is there: in a row, or in the broker alone.
    """
    task = joined.chosen_name(name, message.body)
    wanted = joined.takes(task, call)
    own = _own_request((message.headers or {}).get("id"))
    if own is not None and own.get(wire.HEADER):
        return True
    if own is not None and own.get("task") == name and call is None:
        return False
    return wanted and not _is_fanout(options)


def _refuse_to_be_followed(name: str) -> None:
    if takes_rows_alone():
        raise InvalidArgumentError(
            f"task {name} follows a job that is completed in a transaction, and is no row but goes straight to the broker",
            "let it be a row (bridge=True), or let the job end by returning, without bridge.complete",
        )


def _asked(joined: Membership, name: str, body: Any, call: object) -> dict[str, Any] | None:
    """What the task's option and the call's ask of the job."""
    options = [joined.option_of(joined.chosen_name(name, body)), call]
    args, kwargs = body[:2] if isinstance(body, tuple) else ((), {})
    return asked_of_call(name, options, args, kwargs)


def _is_fanout(options: dict[str, Any]) -> bool:
    """Whether every worker gets a copy: the fence would admit one of them."""
    for holder in (options.get("exchange"), getattr(options.get("queue"), "exchange", None)):
        if getattr(holder, "type", None) == "fanout":
            return True
    return options.get("exchange_type") == "fanout"


def _forget_delivery(headers: dict[str, Any] | None, options: dict[str, Any]) -> None:
    """What goes straight to the broker must not carry the delivery of the job that sends it: a worker would refuse it as a copy."""
    for name in OURS:
        (headers or {}).pop(name, None)
    if options.get("headers"):
        options["headers"] = {name: value for name, value in options["headers"].items() if name not in OURS}


def _own_request(task_id: str | None) -> Any:
    """The request in hand, when the message carries its own id: Task.retry and Task.replace."""
    request = getattr(get_current_task(), "request", None)
    return request if request is not None and task_id is not None and request.id == task_id else None


class RowConnection:
    """What Celery asks of a producer's connection when it publishes callbacks: which errors a new connection could mend."""

    recoverable_connection_errors = (OperationalError,)


class RowProducer:
    """Looks like a kombu producer to Celery; what is published is a row when the transaction commits."""

    connection = RowConnection()

    def __init__(self, joined: Membership, asked: dict[str, Any] | None = None) -> None:
        self._joined = joined
        self._asked = asked

    def revive(self, channel: Any) -> None:
        """Nothing: a broken connection to Postgres is opened again by the next call."""

    def publish(self, body: Any, *, headers: dict[str, Any], **options: Any) -> None:
        """Write one task message as a row.

        Raises:
            OperationalError: kombu's, when the database cannot be reached: Celery handles that like a lost broker.
        """
        with tracing.enqueue_span(headers["task"], options.get("routing_key") or "", headers) as carried:
            self._publish(body, headers, carried or headers, options)

    def _publish(self, body: Any, headers: dict[str, Any], carried: dict[str, Any], options: dict[str, Any]) -> None:
        """Write it with the headers that it carries; what becomes of it is told on those that Celery holds."""
        fresh = unique.is_fresh(headers)
        content = content_of(self._joined.app, self._joined.broker_kind, body, carried, options, self._asked, fresh=fresh)
        replacement.note(self._joined, body[2].get("chain") or () if isinstance(body, tuple) else ())
        run = outcome.run_of(_own_request(headers["id"]))
        if run is not None:
            run.asks_for(content)
            return
        try:
            stands = self._enqueue(content, again=bool(options.get("retry")))
        except OUTAGE as error:
            raise OperationalError(str(error)) from error
        if stands != content.id:
            unique.tell(headers, stands)

    def _enqueue(self, content: Content, *, again: bool) -> UUID:
        """Write the row in the caller's transaction, or by itself; the id of the job that stands for it."""
        # What follows a task is not its function's: that has returned, and a session that it left open is nobody's transaction any more.
        if sent_by_tracer():
            return self._commit_patiently(content)
        target = self._joined.target()
        if target is not None:
            return target.enqueue(message_row(content), answer=unique.has_key(self._asked))
        return self._commit(content, again=again)

    def _commit(self, content: Content, *, again: bool) -> UUID:
        """Write the row by itself; once more when the connection had broken unnoticed, as after a restart of Postgres.

        That is all there is of ``task_publish_retry``: a caller is not kept waiting for a database that is down.
        """
        tries = Tries([content.id])

        def write(connection: Connection) -> UUID:
            return content.id if tries.made_through(connection) else jobs.enqueue_message(connection, content)

        connections = self._joined.connections
        return connections.ask(write) if again else write(connections.get())

    def _commit_patiently(self, content: Content) -> UUID:
        """Write the row of what follows a task: a part of its outcome, for which an outage is waited out.

        The answer may be lost and the job have ended before it is asked for again: made since this run began, it is this run's.
        """
        run, connections, tries = outcome.run_of(get_current_task().request), self._joined.connections, count()

        def write() -> UUID:
            is_repeated = next(tries) > 0
            try:
                connection = connections.get()
                if is_repeated and run is not None and jobs.was_made_in(connection, content.id, run.job, run.id):
                    return content.id
                return jobs.enqueue_message(connection, content)
            except OUTAGE as error:
                if not is_repeated:
                    log.warning("postgres is away, what follows a task waits task=%s task_id=%s error=%s", content.task, content.id, error)
                raise

        return outcome.patiently(write)
