"""The broker as a drainer sees it: publish a shipment, and tell whether messages are still there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from kombu import Connection

from bridge.broker.portable import PortableBroker
from bridge.broker.redis import RedisBroker
from bridge.errors import SettingError
from bridge.settings import without_password

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from bridge.broker.events import Mode
    from bridge.queries.dispatch import Claimed, Suspect

__all__ = ["Broker", "open_broker"]


class Broker(Protocol):
    """One connection to a broker."""

    def publish(self, jobs: Sequence[Claimed]) -> None:
        """Send the messages of these jobs and wait until the broker has confirmed all of them.

        Raises:
            PublishError: it did not; some may have arrived all the same.
        """

    def announce(self, jobs: Sequence[Claimed]) -> None:
        """Send Celery's event ``task-sent`` of these jobs, while somebody listens; never raises."""

    def missing(self, suspects: Sequence[Suspect]) -> set[UUID]:
        """Tokens of those suspects whose message is certainly not waiting in the broker."""

    def silent_workers(self, reporting: set[str], queues: set[str]) -> dict[str, set[str]]:
        """Workers that consume these queues and do not report to Postgres, by queue."""

    def describe(self) -> dict[str, Any]:
        """What an operator should know of it: kind, version, memory policy."""

    def close(self) -> None:
        """Let go of the connection."""


def open_broker(url: str, *, timeout: float, events: Mode = "auto") -> Broker:
    """Connect to a broker.

    Args:
        url: as Celery takes it.
        timeout: seconds for connecting and for each call.
        events: whether ``announce`` sends events: "auto" while somebody listens, where that can be known; "on"; "off".

    Raises:
        PublishError: it cannot be reached.
        SettingError: the URL names a transport that kombu does not know, or cannot be read.
    """
    try:
        kind = Connection(url).transport.driver_type
    except (KeyError, ValueError, ImportError) as error:
        raise SettingError(f"broker url {without_password(url)} cannot be used: {error}", "check BRIDGE_BROKER_URL") from error
    if kind == "redis":
        return RedisBroker(url, timeout=timeout, events_mode=events)
    return PortableBroker(url, timeout=timeout, events_mode=events)
