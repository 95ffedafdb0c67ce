"""Publisher confirms of one AMQP channel: which of the messages that are on their way the broker has."""

from __future__ import annotations

from typing import Any

from bridge.message import deliveries

__all__ = ["Confirms"]


class Confirms:
    """Keeps count for one shipment after the other.

    Attributes:
        confirmed: jobs of this shipment whose message the broker has in a queue.
        refused: those that the broker has declined.
        returned: those that it gave back, because their route leads to no queue.
    """

    def __init__(self, channel: Any) -> None:
        """Put a channel into confirm mode; from then on everything sent on it must be told to ``sent``."""
        self.begin()
        self._tag = 0
        self._under_way: dict[int, int] = {}  # job by delivery tag, in the order of sending
        channel.confirm_select()
        channel.events["basic_ack"].add(self._acked)
        channel.events["basic_nack"].add(self._nacked)
        channel.events["basic_return"].add(self._came_back)

    def begin(self) -> None:
        """A new shipment."""
        self.confirmed: list[int] = []
        self.refused: list[int] = []
        self.returned: set[int] = set()

    def sent(self, seq: int) -> None:
        """The message of this job is on its way; tags are counted, not told."""
        self._tag += 1
        self._under_way[self._tag] = seq

    @property
    def under_way(self) -> int:
        """How many messages have no answer yet."""
        return len(self._under_way)

    def _acked(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's signature
        self.confirmed += (seq for seq in self._answered(tag, multiple=multiple) if seq not in self.returned)

    def _nacked(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's signature
        self.refused += self._answered(tag, multiple=multiple)

    def _answered(self, tag: int, *, multiple: bool) -> list[int]:
        """Take off what an answer is about: one tag, or with ``multiple`` all up to it."""
        if not multiple:
            return [self._under_way.pop(tag)] if tag in self._under_way else []
        answered = []
        for earlier in list(self._under_way):
            if earlier > tag:
                break
            answered.append(self._under_way.pop(earlier))
        return answered

    def _came_back(self, _error: Exception, _exchange: str, _routing_key: str, message: Any) -> None:
        """A message that no queue took; it is acknowledged after this."""
        brought = deliveries(message.properties.get("application_headers"))
        if brought:
            self.returned.add(brought[0].seq)
