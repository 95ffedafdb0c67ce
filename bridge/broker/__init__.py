"""The broker as a drainer sees it: publish a shipment, and tell whether messages are still there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from bridge.broker.address import Address
from bridge.broker.portable import PortableBroker
from bridge.broker.rabbitmq import RabbitBroker
from bridge.broker.redis import RedisBroker
from bridge.signing import Signer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from bridge.broker.fleet import Consumer
    from bridge.broker.sifting import Unsendable
    from bridge.queries.dispatch import Claimed, Suspect
    from bridge.settings import Settings

__all__ = ["Broker", "open_broker"]

_BY_KIND: dict[str, type[PortableBroker]] = {"redis": RedisBroker, "amqp": RabbitBroker}


class Broker(Protocol):
    """One connection to a broker."""

    def publish(self, jobs: Sequence[Claimed]) -> list[Unsendable]:
        """Send the messages of these jobs and wait until the broker has confirmed all of them.

        Returns:
            Those of which no message can be made, whatever the broker; nothing was sent of them.

        Raises:
            RefusedError: it did not take all messages of this queue; others may go on.
            PublishError: it did not; which arrived all the same is said as far as it is known.
        """

    def announce(self, jobs: Sequence[Claimed], sent_at: float) -> None:
        """Send Celery's event ``task-sent`` of these jobs, sent at that time (since the epoch), while somebody listens; never raises."""

    def missing(self, suspects: Sequence[Suspect]) -> set[UUID]:
        """Tokens of those suspects whose message is certainly not waiting in the broker."""

    def consumers(self) -> list[Consumer]:
        """Who consumes which queue, as the workers answer within a second; may be called from any thread.

        Raises:
            PublishError: they could not be asked.
        """

    @property
    def shortcomings(self) -> tuple[str, ...]:
        """What this broker cannot do, each as the end of a sentence; empty for one that can do all."""

    def describe(self) -> dict[str, Any]:
        """What an operator should know of it: kind, version, memory policy."""

    def close(self) -> None:
        """Let go of the connection."""


def open_broker(settings: Settings) -> Broker:
    """Connect to the broker that the settings name, with their time limit for connecting and for each call.

    Raises:
        PublishError: it cannot be reached.
        SettingError: the URL names a transport that kombu does not know, or cannot be read; an option is wrong; it is a Redis Cluster.
    """
    address = Address.of(settings)
    kind = str(address.connection().transport.driver_type)
    keys = settings.signing_keys()
    return _BY_KIND.get(kind, PortableBroker)(address, events_mode=settings.events, signer=Signer(keys) if keys else None)
