"""Celery's events, on brokers other than Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu import Exchange, Producer

from bridge.broker import events

if TYPE_CHECKING:
    from kombu import Connection

__all__ = ["EventProducer"]


class EventProducer:
    """Sends events on a channel of its own: what happens to it does not touch the jobs' channel."""

    def __init__(self, connection: Connection) -> None:
        self._channel = connection.channel()
        self._is_amqp = connection.transport.driver_type == "amqp"
        if self._is_amqp:
            # A message that nobody takes comes back before its confirmation: waiting for that tells.
            self._channel.basic_publish = self._channel.basic_publish_confirm
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
