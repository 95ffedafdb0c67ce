"""The queues and exchanges that messages go to: made when they are missing, counted when somebody asks."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from kombu import Exchange, Queue, binding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kombu import Connection

__all__ = ["Declaration", "Topology"]

log = logging.getLogger("bridge.broker")

Declaration = dict[str, Any]  # of a queue or exchange, as bridge.content describes it

_NOT_FOUND = 404


class Topology:
    """What one connection knows of a broker's queues.

    It has a channel of its own, because RabbitMQ closes a channel on which it has refused something.
    """

    def __init__(self, connection: Connection, arguments: Mapping[str, Any]) -> None:
        """Make one.

        Args:
            connection: open; it stays its owner's.
            arguments: of queues that no caller has described.
        """
        self._connection = connection
        # The others know no queue that must be there before its messages, and none that could be otherwise.
        self._is_strict = connection.transport.driver_type == "amqp"
        self._arguments = dict(arguments)
        self._ready: set[str] = set()
        self._open: Any = None

    def leads_somewhere(self, exchange: str, routing_key: str, declare: Sequence[Declaration] | None) -> bool:
        """Make what a message needs, once a connection: what its caller would have declared, else a plain queue.

        Returns:
            False for an exchange that does not exist and that nobody has described.
        """
        key = json.dumps([exchange, declare] if declare else [exchange, routing_key])
        if key not in self._ready and self._make(exchange, routing_key, declare):
            self._ready.add(key)
        return key in self._ready

    def forget(self) -> None:
        """Look again whether things exist: somebody has deleted some."""
        self._ready.clear()

    def waiting(self, queue: str) -> int | None:
        """How many messages wait in a queue; None when it does not exist."""
        try:
            return int(self._channel.queue_declare(queue, passive=True).message_count)
        except self._connection.channel_errors as error:
            self._open = None
            if _code(error) != _NOT_FOUND:
                raise
            return None

    def _make(self, exchange: str, routing_key: str, declare: Sequence[Declaration] | None) -> bool:
        if declare:
            for one in declare:
                self._declare(_entity(one))
            return not self._is_strict or not exchange or self._exists(exchange)  # it may be none of these, or have been refused
        if not exchange:
            # One that exists is right as it is: its consumer has made it, and declaring it otherwise would be refused.
            if not self._is_strict or self.waiting(routing_key) is None:
                self._declare(self._plain(routing_key))
            return True
        if not self._is_strict or self._exists(exchange):
            return True
        if exchange == routing_key:
            self._declare(self._plain(routing_key))
        return exchange == routing_key

    def _plain(self, name: str) -> Queue:
        return Queue(name, Exchange(name), routing_key=name, queue_arguments=self._arguments or None)

    def _declare(self, entity: Queue | Exchange) -> None:
        """Make it, or leave it as it is where it exists otherwise: then its messages arrive all the same."""
        try:
            entity(self._channel).declare()
        except self._connection.channel_errors as error:
            self._open = None
            log.warning("not declared, used as it is name=%s error=%s", entity.name, error)

    def _exists(self, exchange: str) -> bool:
        try:
            self._channel.exchange_declare(exchange, type="direct", passive=True, durable=True, auto_delete=False)
        except self._connection.channel_errors as error:
            self._open = None
            if _code(error) != _NOT_FOUND:
                raise
            return False
        return True

    @property
    def _channel(self) -> Any:
        if self._open is None:
            self._open = self._connection.channel()
        return self._open


def _code(error: BaseException) -> int:
    """AMQP's code of an error; kombu's virtual transports give it as text."""
    return int(getattr(error, "reply_code", None) or 0)


def _entity(declaration: Declaration) -> Queue | Exchange:
    """The queue or exchange that bridge.content has described."""
    options = {name: value for name, value in declaration.items() if name != "kind"}
    if declaration["kind"] == "exchange":
        return Exchange(**options)
    if options.get("exchange"):
        options["exchange"] = Exchange(**options["exchange"])
    if options.get("bindings"):
        options["bindings"] = [binding(**{**one, "exchange": Exchange(**one["exchange"])}) for one in options["bindings"]]
    return Queue(**options)
