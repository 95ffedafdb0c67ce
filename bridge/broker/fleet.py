"""Who consumes the queues: all workers of a broker are asked, and those with our plugin say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from kombu.pidbox import Mailbox

from bridge.message import PLUGIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu import Connection

__all__ = ["Consumer", "consumers"]

_EXCHANGE = "celery"  # Celery's setting control_exchange, where nobody has changed it
_COMMAND = "active_queues"


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
    """Ask, and wait so many seconds for the answers. One that is too busy to answer is not there."""
    mailbox = Mailbox(_EXCHANGE, type="fanout")(connection)
    return [consumer for answer in mailbox.multi_call(_COMMAND, timeout=timeout) for consumer in _consumers(answer)]


def _consumers(answer: dict[str, Any]) -> Iterator[Consumer]:
    for name, queues in answer.items():
        # Whoever cannot answer sends an error, which is no list.
        for queue in queues if isinstance(queues, list) else ():
            plugin = queue.get(PLUGIN)
            yield Consumer(name, queue["name"], UUID(plugin) if plugin else None)
