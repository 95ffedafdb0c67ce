"""RabbitMQ: all messages of a shipment on their way at once, each of them confirmed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bridge.broker.confirms import Confirms
from bridge.broker.portable import PortableBroker
from bridge.broker.sifting import OF_A_ROW, Unsendable, sifted
from bridge.errors import PublishError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.message import Envelope
    from bridge.queries.dispatch import Claimed

__all__ = ["RabbitBroker"]

_Made = tuple["Claimed", "Envelope"]


class RabbitBroker(PortableBroker):
    """Confirmed one by one a message costs a round trip; here the answers to a whole shipment are waited for together."""

    @staticmethod
    def defaults(timeout: float) -> dict[str, Any]:
        """Bounds for what py-amqp waits for without a limit of its own: the answer to a declaration."""
        return {"read_timeout": timeout, "write_timeout": timeout}

    def _open(self) -> None:
        super()._open()
        self._confirms = Confirms(self.channel)
        self._is_proven = False
        self._is_blocked = False
        self.connection.connection.on_blocked = lambda _reason: self._set_blocked(blocked=True)
        self.connection.connection.on_unblocked = lambda: self._set_blocked(blocked=False)

    def _set_blocked(self, *, blocked: bool) -> None:
        self._is_blocked = blocked

    def publish(self, jobs: Sequence[Claimed]) -> list[Unsendable]:
        """Send all, then wait until each is confirmed; what leads to no queue is sent once more after its queue was made anew."""
        made, self._unsendable = sifted(jobs, self.envelope)
        self._confirms.begin()
        with self.sending(self._confirms.confirmed):
            lost = self._send(made)
            if lost:
                self.topology.forget()
                lost = self._send(lost)
        self._complain(jobs, lost)
        return self._unsendable

    def _complain(self, jobs: Sequence[Claimed], lost: Sequence[_Made]) -> None:
        """Raise RefusedError for what the broker did not take."""
        shown, refused, confirmed = self.address.shown, set(self._confirms.refused), self._confirms.confirmed
        if refused:
            queues = ", ".join(sorted({job.queue for job in jobs if job.seq in refused}))
            words, hint = f"refused {len(refused)} messages of queue {queues}", "see its x-max-length and x-overflow, and RabbitMQ's log"
            raise RefusedError(f"broker {shown} {words}", hint, confirmed=confirmed)
        if lost:
            exchange, routing_key = lost[0][1].route
            words = f"exchange {exchange!r} leads to no queue for routing key {routing_key!r}, jobs={len(lost)}"
            raise RefusedError(f"broker {shown}: {words}", "start a worker that consumes such a queue", confirmed=confirmed)

    def _send(self, made: Sequence[_Made]) -> list[_Made]:
        """Send these and wait for the answers; those whose message no queue took."""
        self._confirms.returned.clear()
        nowhere: set[int] = set()
        for job, envelope in made:
            if not self._try_to_send(job, envelope):
                nowhere.add(job.seq)
        self._wait()
        nowhere |= self._confirms.returned
        return [one for one in made if one[0].seq in nowhere]

    def _try_to_send(self, job: Claimed, envelope: Envelope) -> bool:
        """Send one message; False where it has no way to go. What AMQP has no form for is noted, before a byte of it is sent."""
        try:
            if not self.topology.leads_somewhere(*envelope.route, envelope.declare):
                return False
            self._send_one(job, envelope)
        except OF_A_ROW as error:
            if not self.connection.connected:
                raise
            self._unsendable.append(Unsendable(job, error))
        return True

    def _send_one(self, job: Claimed, envelope: Envelope) -> None:
        if self._is_blocked:
            self._wait()
        self.send(envelope, mandatory=True)
        self._confirms.sent(job.seq)  # an answer to it is read later, when somebody waits for answers, or sends the next
        if not self._is_proven:
            # A broker whose memory or disk is full takes connections, and says so at the first message. One copy of that is enough.
            self._wait()
            self._is_proven = True

    def _wait(self) -> None:
        """Wait for all answers that are due, as long as they keep coming.

        Raises:
            PublishError: none came for the time that a call may take.
        """
        deadline, due = time.monotonic() + self.timeout, self._confirms.under_way
        while self._confirms.under_way or self._is_blocked:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._unanswered()
            try:
                self.connection.drain_events(timeout=left)
            except TimeoutError:
                raise self._unanswered() from None
            if self._confirms.under_way < due:
                deadline, due = time.monotonic() + self.timeout, self._confirms.under_way

    def _unanswered(self) -> PublishError:
        self.is_sound = False
        count, confirmed = self._confirms.under_way, self._confirms.confirmed
        if self._is_blocked:
            return PublishError(
                f"broker {self.address.shown} blocks all who publish", "its memory or disk alarm is on: see RabbitMQ's log",
                confirmed=confirmed,
            )  # fmt: skip
        return PublishError(
            f"broker {self.address.shown} has not confirmed {count} messages within {self.timeout:g} s", "see RabbitMQ's log",
            confirmed=confirmed,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Product and version, as the server says."""
        said = self.connection.connection.server_properties
        return {**super().describe(), "server": said.get("product"), "version": said.get("version")}
