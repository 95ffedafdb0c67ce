"""Any broker that kombu knows."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from kombu import Producer
from kombu.exceptions import OperationalError
from kombu.utils.json import object_hook

from bridge import message
from bridge.broker import events, fleet
from bridge.broker.listeners import EventProducer
from bridge.broker.shortcomings import shortcomings
from bridge.broker.sifting import OF_A_ROW, Unsendable, is_of_what_was_sent, sifted
from bridge.broker.topology import Topology
from bridge.errors import PublishError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from uuid import UUID

    from bridge.broker.address import Address
    from bridge.queries.dispatch import Claimed, Suspect
    from bridge.signing import Signer

__all__ = ["PortableBroker"]

_INSPECT_TIMEOUT = 1.0  # seconds that workers have to answer who consumes what


class PortableBroker:
    """One message at a time through kombu's producer.

    Attributes:
        ranked: a higher priority of a message is sooner.
    """

    ranked: ClassVar[bool] = True

    def __init__(self, address: Address, *, events_mode: events.Mode = "auto", signer: Signer | None = None) -> None:
        self.signer = signer
        self.address = address.with_defaults(**self.defaults(address.timeout))
        self.timeout = address.timeout
        self.connection = self.address.connection()
        self.is_sound = True  # False once a call has failed: then nobody waits for the other side to say good-bye
        with self.translated():
            self._open()
        self._events: EventProducer | None = None
        self._announcer = events.Announcer(events_mode, self.send_events)

    @staticmethod
    def defaults(timeout: float) -> dict[str, Any]:  # noqa: ARG004 - some transports have a time limit to set
        """Transport options that hold where the settings say nothing."""
        return {}

    def _open(self) -> None:
        try:
            self.connection.ensure_connection(max_retries=len(self.connection.alt) or 1, interval_start=0.1, timeout=self.timeout)
            self.channel = self.connection.channel()
        except (TypeError, ValueError) as error:  # an option that the transport does not know, or misses
            raise self.address.unusable(error) from error
        self.producer = Producer(self.channel)
        self.topology = Topology(self.connection, self.address.queue_arguments)

    @contextmanager
    def translated(self, confirmed: Collection[int] = ()) -> Iterator[None]:
        """Raise PublishError for whatever the transport raises.

        Args:
            confirmed: of which jobs the broker has the message by then.

        Raises:
            PublishError: with the broker's own words.
        """
        try:
            yield
        except (*self.connection.connection_errors, *self.connection.channel_errors, OperationalError, OSError) as error:
            self.is_sound = False
            raise self._failure(error, confirmed) from error

    @contextmanager
    def sending(self, confirmed: Collection[int]) -> Iterator[None]:
        """As ``translated``, for what is done with messages: one of them may be at fault.

        Raises:
            PublishError: ``blamed`` where the error is about what was sent, and not about the broker.
        """
        try:
            with self.translated(confirmed):
                yield
        except OF_A_ROW as error:
            self.is_sound = False
            raise self._failure(error, confirmed) from error

    def _failure(self, error: Exception, confirmed: Collection[int] = ()) -> PublishError:
        words = f"broker {self.address.shown} failed: {self.address.hide(error)}"
        blamed = is_of_what_was_sent(error)
        hint = "a message cannot be sent; the drainer finds out which" if blamed else "check BRIDGE_BROKER_URL and that the broker runs"
        return PublishError(words, hint, confirmed=confirmed, blamed=blamed)

    def publish(self, jobs: Sequence[Claimed]) -> list[Unsendable]:
        """Publish one by one; the last confirmation is in when this returns."""
        made, unsendable = sifted(jobs, self.envelope)
        confirmed: list[int] = []
        with self.sending(confirmed):
            self.send_each(made, confirmed)
        return unsendable

    def envelope(self, job: Claimed) -> message.Envelope:
        """The message of a job."""
        return message.envelope(job, object_hook, ranked=self.ranked, signer=self.signer)

    def send_each(self, made: Sequence[tuple[Claimed, message.Envelope]], confirmed: list[int]) -> None:
        """Send one message after the other, and note whose was taken."""
        for job, envelope in made:
            self.topology.leads_somewhere(*envelope.route, envelope.declare)
            self.send(envelope)
            confirmed.append(job.seq)

    def send(self, envelope: message.Envelope, **options: Any) -> None:
        """Hand one message to the transport."""
        exchange, routing_key = envelope.route
        self.producer.publish(
            envelope.body, exchange=exchange, routing_key=routing_key, content_type=envelope.content_type,
            content_encoding=envelope.content_encoding, headers=envelope.headers, timeout=self.timeout, **envelope.properties, **options,
        )  # fmt: skip

    def announce(self, jobs: Sequence[Claimed], sent_at: float) -> None:
        """Send ``task-sent`` of these jobs, while somebody listens; never raises."""
        self._announcer.announce(jobs, sent_at)

    def send_events(self, group: list[dict[str, Any]], *, always: bool) -> bool:
        """Send one group of events; False when nobody took it.

        Raises:
            PublishError: it could not be sent.
        """
        with self.translated():
            if self._events is None:
                self._events = EventProducer(self.connection)
            try:
                return self._events.send(group, always=always, timeout=self.timeout)
            except Exception:
                self._events = None  # an error may have closed its channel
                raise

    def missing(self, suspects: Sequence[Suspect]) -> set[UUID]:
        """An empty queue holds none of them, nor does one that is not there; of a queue that is not empty nothing can be said."""
        queues: dict[str, list[Suspect]] = defaultdict(list)
        for suspect in suspects:
            queues[suspect.queue].append(suspect)
        with self.translated():
            waiting = {queue: self.topology.waiting(queue) for queue in queues}
        if None in waiting.values():
            self.topology.forget()
        return {
            suspect.token
            for queue, count in waiting.items()
            for suspect in queues[queue]
            if count == 0 or (count is None and _is_in_its_queue(suspect))
        }

    def consumers(self) -> list[fleet.Consumer]:
        """Ask all workers, on a connection of its own: jobs go on meanwhile."""
        with self.address.connection() as connection:
            try:
                return fleet.consumers(connection, _INSPECT_TIMEOUT)
            except (*connection.connection_errors, *connection.channel_errors, OperationalError, OSError) as error:
                raise self._failure(error) from error

    @property
    def kind(self) -> str:
        """Kombu's name of the kind of transport."""
        return str(self.connection.transport.driver_type)

    @property
    def shortcomings(self) -> tuple[str, ...]:
        """What this broker cannot do, each as the end of a sentence."""
        return shortcomings(self.kind)

    def describe(self) -> dict[str, Any]:
        """The transport's name."""
        return {"kind": self.kind, "url": self.address.shown}

    def close(self) -> None:
        """Let go of the connection."""
        if self.is_sound:
            self.connection.release()
        else:
            self.connection.collect(self.timeout)


def _is_in_its_queue(suspect: Suspect) -> bool:
    """Whether the queue that a job is counted under is the one that its message went to, not a name that stands for several."""
    properties = json.loads(suspect.properties) if suspect.properties else {}
    named = {one.get("name") for one in properties.get("declare") or () if one["kind"] == "queue"}
    return not properties.get("exchange") or suspect.queue in named
