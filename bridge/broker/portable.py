"""Any broker that kombu knows."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kombu import Connection, Exchange, Producer, Queue, binding
from kombu.exceptions import OperationalError
from kombu.utils.json import object_hook

from bridge import message
from bridge.broker import events
from bridge.errors import PublishError
from bridge.settings import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from bridge.queries.dispatch import Claimed, Suspect

__all__ = ["PortableBroker"]

_INSPECT_TIMEOUT = 1.0  # seconds that workers have to answer who consumes what


class PortableBroker:
    """One message at a time through kombu's producer, confirmed where the transport can."""

    def __init__(self, url: str, *, timeout: float, events_mode: events.Mode = "auto") -> None:
        self.url = url
        self.timeout = timeout
        self._shown = without_password(url)
        # Without a limit of its own a Redis that has stopped answering is waited for without end.
        options = {"confirm_publish": True} if url.startswith("amqp") else {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        self._connection = Connection(url, connect_timeout=timeout, transport_options=options)
        with self.translated():
            self._connection.ensure_connection(max_retries=1, timeout=timeout)
            self.channel = self._connection.channel()
            self._producer = Producer(self.channel)
        self._declared: set[str] = set()
        self._events: EventProducer | None = None
        self._announcer = events.Announcer(events_mode, self.send_events)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise PublishError for whatever the transport raises.

        Raises:
            PublishError: with the broker's own words.
        """
        try:
            yield
        except (*self._connection.connection_errors, *self._connection.channel_errors, OperationalError, OSError) as error:
            raise PublishError(f"broker {self._shown} failed: {error}", "check BRIDGE_BROKER_URL and that the broker runs") from error

    def publish(self, jobs: Sequence[Claimed]) -> None:
        """Publish one by one; the last confirmation is in when this returns."""
        with self.translated():
            for job in jobs:
                self._publish(message.envelope(job, object_hook))

    def _publish(self, envelope: message.Envelope) -> None:
        properties = dict(envelope.properties)
        exchange, routing_key = properties.pop("exchange", ""), properties.pop("routing_key", envelope.queue)
        self._declare(exchange, routing_key, properties.pop("declare", None))
        self._producer.publish(
            envelope.body, exchange=exchange, routing_key=routing_key, content_type=envelope.content_type,
            content_encoding=envelope.content_encoding, headers=envelope.headers, timeout=self.timeout, **properties,
        )  # fmt: skip

    def announce(self, jobs: Sequence[Claimed]) -> None:
        """Send ``task-sent`` of these jobs, while somebody listens; never raises."""
        self._announcer.announce(jobs)

    def send_events(self, group: list[dict[str, Any]], *, always: bool) -> bool:
        """Send one group of events; False when nobody took it.

        Raises:
            PublishError: it could not be sent.
        """
        with self.translated():
            if self._events is None:
                self._events = EventProducer(self._connection)
            try:
                return self._events.send(group, always=always, timeout=self.timeout)
            except Exception:
                self._events = None  # an error may have closed its channel
                raise

    def _declare(self, exchange: str, routing_key: str, entities: list[dict[str, Any]] | None) -> None:
        """Declare what a message needs, once a connection: what its caller would have declared, else a plain queue."""
        key = json.dumps(entities) if entities else routing_key
        if key in self._declared or (exchange and not entities):
            return
        for entity in entities or ():
            _entity(entity)(self.channel).declare()
        if not entities:
            Queue(routing_key, Exchange(routing_key), routing_key=routing_key)(self.channel).declare()
        self._declared.add(key)

    def missing(self, suspects: Sequence[Suspect]) -> set[UUID]:
        """An empty queue holds none of them; of a queue that is not empty nothing can be said."""
        queues: dict[str, set[UUID]] = defaultdict(set)
        for suspect in suspects:
            queues[suspect.queue].add(suspect.token)
        with self.translated():
            empty = [queue for queue in queues if self._size(queue) == 0]
        return set().union(*(queues[queue] for queue in empty))

    def _size(self, queue: str) -> int:
        return int(self.channel.queue_declare(queue, passive=True).message_count)

    def silent_workers(self, reporting: set[str], queues: set[str]) -> dict[str, set[str]]:
        """Ask all workers what they consume; those that answer and do not report run without our plugin."""
        from celery import Celery  # noqa: PLC0415 - asked for once in a blue moon, and large

        app = Celery(broker=self.url, set_as_current=False)
        with self.translated():
            answers = app.control.inspect(timeout=_INSPECT_TIMEOUT).active_queues() or {}
        silent: dict[str, set[str]] = defaultdict(set)
        for worker in set(answers) - reporting:
            for queue in answers[worker]:
                if not queues or queue["name"] in queues:
                    silent[queue["name"]].add(worker)
        return dict(silent)

    def describe(self) -> dict[str, Any]:
        """The transport's name."""
        return {"kind": str(self._connection.transport.driver_type), "url": self._shown}

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.release()


class EventProducer:
    """Sends events on a channel of its own: what happens to it does not touch the jobs' channel."""

    def __init__(self, connection: Connection) -> None:
        self._channel = connection.channel()
        self._is_amqp = connection.transport.driver_type == "amqp"
        self._producer = Producer(self._channel, on_return=self._returned if self._is_amqp else None)
        Exchange(events.EXCHANGE, type="topic")(self._channel).declare()
        self._taken = True

    def _returned(self, *_: Any) -> None:
        self._taken = False

    def send(self, group: list[dict[str, Any]], *, always: bool, timeout: float) -> bool:
        """RabbitMQ gives back what nobody's queue is bound for. Of the others it is known from the bindings, where those can be seen."""
        if not (always or self._is_amqp or self._bound()):
            return False
        self._taken = True
        self._producer.publish(
            group, exchange=events.EXCHANGE, routing_key=events.ROUTING_KEY, serializer="json", delivery_mode=1, mandatory=self._is_amqp,
            headers={"hostname": events.hostname()}, timeout=timeout,
        )  # fmt: skip
        return self._taken

    def _bound(self) -> bool:
        bindings = getattr(self._channel, "get_table", None)
        return bindings is not None and bool(bindings(events.EXCHANGE))


def _entity(declaration: dict[str, Any]) -> Queue | Exchange:
    """The queue or exchange that bridge.content has described."""
    options = {name: value for name, value in declaration.items() if name != "kind"}
    if declaration["kind"] == "exchange":
        return Exchange(**options)
    if options.get("exchange"):
        options["exchange"] = Exchange(**options["exchange"])
    if options.get("bindings"):
        options["bindings"] = [binding(**{**one, "exchange": Exchange(**one["exchange"])}) for one in options["bindings"]]
    return Queue(**options)
