"""Who consumes the queues: all workers of a broker are asked, and those with our plugin say so."""

from __future__ import annotations

import io
import pickle
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID, uuid4

from kombu import Consumer as Messages
from kombu.pidbox import Mailbox
from kombu.serialization import loads

from bridge.message import PLUGIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu import Connection, Message

__all__ = ["Consumer", "consumers"]

_EXCHANGE = "celery"  # Celery's setting control_exchange, where nobody has changed it
_COMMAND = "active_queues"
_PICKLE = "application/x-python-serialize"
_READABLE = {"application/json", "application/x-yaml", "application/x-msgpack"}


class Consumer(NamedTuple):
    """One worker on one queue.

    Attributes:
        name: Celery's node name.
        queue: what it consumes.
        plugin: the id under which it reports to Postgres; None when it runs without our plugin.
    """

    name: str
    queue: str
    plugin: UUID | None


def consumers(connection: Connection, timeout: float) -> list[Consumer]:
    """Ask, and wait until nobody has answered for so many seconds. One that is too busy to answer is not there.

    Raises:
        ContentDisallowed: an answer is in a form that nothing is read from.
        UnpicklingError: or is a pickle of more than names and numbers.
    """
    return [consumer for answer in _answers(connection, timeout) for consumer in _consumers(answer)]


def _answers(connection: Connection, timeout: float) -> list[Any]:
    """What all workers say. Each writes as its application's task_serializer says, so that kombu's own collecting fails at a pickle."""
    mailbox, ticket, answers = Mailbox(_EXCHANGE, type="fanout")(connection), str(uuid4()), []
    channel = connection.default_channel

    def take(message: Message) -> None:
        if message.headers.get("ticket", ticket) == ticket:
            answers.append(_read(message))

    queue = mailbox.reply_queue(channel)
    try:
        with Messages(channel, [queue], on_message=take, no_ack=True), suppress(socket.timeout):
            mailbox._publish(_COMMAND, {}, reply_ticket=ticket, channel=channel, timeout=timeout)  # noqa: SLF001 - cast asks for no answer
            while True:
                connection.drain_events(timeout=timeout)
    finally:
        channel.after_reply_message_received(queue.name)
    return answers


def _read(message: Message) -> Any:
    if message.content_type == _PICKLE:
        return _Plain(io.BytesIO(message.body)).load()
    return loads(message.body, message.content_type, message.content_encoding, accept=_READABLE)


class _Plain(pickle.Unpickler):
    """Reads pickles of lists, names and numbers: whoever may write to the broker must not run anything here."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse what is more."""
        raise pickle.UnpicklingError(f"a worker's answer about its queues names {module}.{name}")


def _consumers(answer: dict[str, Any]) -> Iterator[Consumer]:
    for name, queues in answer.items():
        # Whoever cannot answer sends an error, which is no list.
        for queue in queues if isinstance(queues, list) else ():
            plugin = queue.get(PLUGIN)
            yield Consumer(name, queue["name"], UUID(plugin) if plugin else None)
