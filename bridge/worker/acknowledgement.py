"""What a worker tells Redis about a message that it holds: nothing, when the message belongs to a row.

Redis knows no acknowledgement, so kombu emulates it: a message is copied into a hash when it arrives and taken out when it is done, in
two transactions whose answers the worker's main process waits for. That is half of what a small job costs this process. A copy that is
still there after an hour (``visibility_timeout``) goes back into the queue, also while its task is running. For a row's message the
row does all of it: it says who runs the job, and is published again when nobody holds its message any more. So such a message is kept
in the process alone. Other messages are acknowledged as ever.
"""

from __future__ import annotations

from contextlib import suppress
from functools import wraps
from queue import Empty
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

from amqp.exceptions import PreconditionFailed, RecoverableConnectionError
from kombu.transport.virtual import QoS
from redis import exceptions

from bridge.message import deliveries

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "close_half_connected",
    "keep_rows_out_of_redis",
    "outlive_impatience",
    "outlive_refusals",
    "stop_fetching",
    "unwatch_before_close",
]

# Of a Redis whose memory is full, and of one that has become a replica. Older redis-py has no class for the first.
_REFUSALS = (exceptions.ReadOnlyError, getattr(exceptions, "OutOfMemoryError", exceptions.ReadOnlyError))


def keep_rows_out_of_redis(channel: Any) -> None:
    """Stop acknowledging rows' messages on a channel of kombu's Redis transport; a channel of another kind stays as it is."""
    held = getattr(channel, "qos", None)
    if hasattr(held, "restore_by_tag") and not isinstance(held, _RowQoS):
        held.__class__ = type("BridgeQoS", (_RowQoS, type(held)), {})


def outlive_refusals(consumer: Any) -> None:
    """Take a Redis that refuses all writes for one that is away: connect again until it takes them, where Celery ends the worker.

    To be called before the consumer connects.
    """
    consumer.connection_errors = (*consumer.connection_errors, *_REFUSALS)


def close_half_connected(consumer: Any) -> None:
    """Close a connection that was made and could not be made ready, where Celery forgets it, open, and connects once more.

    A Redis that refuses writes does this to each try, of which there are a few a second. To be called before the consumer connects.
    """
    opened: list[Any] = []
    connect, open_one = consumer.connect, consumer.connection_for_read

    def connection_for_read(*args: Any, **options: Any) -> Any:
        opened[:] = [open_one(*args, **options)]
        return opened[0]

    @wraps(connect)
    def connecting() -> Any:
        opened.clear()
        while _UnwatchingChannel.made:
            _UnwatchingChannel.made.pop()._disconnect_pools()  # noqa: SLF001 - kombu forgets its pools with what is in them
        try:
            return connect()
        except Exception:
            for connection in opened:
                with suppress(Exception):  # the reason is on its way already
                    connection.close()
            raise

    consumer.connection_for_read, consumer.connect = connection_for_read, connecting


def unwatch_before_close(consumer: Any) -> None:
    """Have the event loop let go of a connection to Redis before it is closed, where kombu (5.7) closes it first.

    A process of the pool that was forked since has the same connection, open, so the kernel goes on telling the loop that there is
    something to read, under a number that the next connection gets: the worker waits there for what does not come, and takes a message
    every few seconds. To be called before the consumer connects.
    """
    connect = consumer.ensure_connected

    @wraps(connect)
    def ensure_connected(connection: Any) -> Any:
        transport = connection.transport
        made: Any = getattr(transport, "Channel", None)  # kombu's virtual transports have one
        if hasattr(made, "_connparams") and not issubclass(made, _UnwatchingChannel):
            transport.Channel = type(made.__name__, (_UnwatchingChannel, made), {})
        return connect(connection)

    consumer.ensure_connected = ensure_connected


def outlive_impatience(consumer: Any) -> None:
    """Connect again where RabbitMQ has closed the channel on which a message waited for too long, where Celery ends the worker.

    A task that runs for longer than RabbitMQ's ``consumer_timeout``, half an hour, makes the messages behind it wait for as long. They
    go back into their queue; the rows know who runs what. To be called before the consumer connects: a queue that is declared otherwise
    than it is there raises the same exception then, and that is a mistake in the configuration.
    """
    consumer.loop = _connecting_anew(consumer.loop)


def _connecting_anew(theirs: Callable[..., None]) -> Callable[..., None]:
    @wraps(theirs)
    def loop(*args: Any, **options: Any) -> None:
        try:
            theirs(*args, **options)
        except PreconditionFailed as error:
            raise RecoverableConnectionError(str(error)) from error

    return loop


def stop_fetching(consumer: Any) -> None:
    """Take no more messages from now on, also none that is on its way; call it in the main thread, when the event loop has ended.

    Redis may hold a blocking pop of ours for another second. It would hand over the next message, which nobody reads until the worker's
    tasks have ended: so wait for its answer. What it brings goes back into its queue, as nobody consumes that any more.
    """
    consumer.cancel()
    if getattr(consumer.channel, "_in_poll", None):
        with suppress(Empty):
            consumer.channel.handlers["BRPOP"]()  # what the channel does when it is closed, after the tasks have ended


class _UnwatchingChannel:
    """Mixed into kombu's Redis channel, whose connections tell it of their end when they have no number any more.

    Attributes:
        made: all of the consumer's; those there are when it connects again are of the connection that it has lost.
    """

    made: ClassVar[WeakSet[Any]] = WeakSet()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.made.add(self)

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - kombu's signature
        channel: Any = self
        given: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[misc]
        theirs: Any = given["connection_class"]

        class Connection(theirs):
            def disconnect(self, *args: Any, **options: Any) -> None:
                if channel._registered and self._sock is not None:  # noqa: SLF001 - kombu's own names
                    channel._on_connection_disconnect(self)  # noqa: SLF001
                super().disconnect(*args, **options)

        return {**given, "connection_class": Connection} if asynchronous else given


class _RowQoS(QoS):
    """Mixed into kombu's Redis QoS, whose methods it passes over for rows' messages."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """A message has arrived."""
        if _is_row(message):
            QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """A message is done."""
        if _is_row(self._delivered.get(delivery_tag)):
            QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's signature
        """A message is refused: it goes back to the head of its queue, or away."""
        message = self._delivered.get(delivery_tag)
        if not _is_row(message):
            super().reject(delivery_tag, requeue=requeue)
            return
        if requeue:
            self._put_back(message)
        QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """The worker stops, or has lost its connection: what it holds goes back to the queue, if that can still be reached."""
        if self.channel.connection.client is None:  # kombu has let go of it, after a call on the broken connection failed
            self._delivered.clear()  # rows are published again; of others Redis has a copy
            return
        for tag, message in list(self._delivered.items()):
            if _is_row(message):
                self._put_back(message)
                del self._delivered[tag]
        super().restore_unacked(client)

    def _put_back(self, message: Any) -> None:
        exchange, routing_key = message.delivery_info.get("exchange", ""), message.delivery_info.get("routing_key")
        if not routing_key:
            return  # nobody knows where it came from: no drainer has sent it
        with self.channel.conn_or_acquire() as client:
            self.channel._do_restore_message(message._raw, exchange, routing_key, client, True)  # noqa: FBT003, SLF001


def _is_row(message: Any) -> bool:
    return message is not None and bool(deliveries(message.headers))
