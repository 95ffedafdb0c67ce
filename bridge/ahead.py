"""The next shipment of a queue, claimed while the one before it is on its way: Postgres and the drainer work beside each other."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bridge.queries import dispatch
from bridge.queries.connection import OUTAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.queries.connection import Connection
    from bridge.queries.dispatch import Claimed

__all__ = ["Ahead", "Shipment"]

_PATIENCE = 1.0  # seconds that a drainer which stops waits for a claim; what it brings later is free again after its lease


@dataclass
class Shipment:
    """Jobs that were claimed by one call, which took so many seconds."""

    id: uuid.UUID
    jobs: list[Claimed]
    seconds: float


def claim(connection: Connection, drainer: uuid.UUID, queue: str, *, limit: int, size: int) -> Shipment:
    """Claim one shipment now."""
    shipment, began = uuid.uuid4(), time.monotonic()
    jobs = dispatch.claim(connection, drainer, queue, shipment, limit=limit, size=size)
    return Shipment(shipment, jobs, time.monotonic() - began)


@dataclass
class _Claim:
    """A claim in a thread of its own."""

    thread: threading.Thread
    shipment: Shipment | None = None
    error: Exception | None = None


@dataclass
class Ahead:
    """Claims ahead, one queue after the other, on a connection of its own.

    Attributes:
        connect: opens that connection.
        drainer: who claims.
    """

    connect: Callable[[], Connection]
    drainer: uuid.UUID
    _claims: dict[str, _Claim] = field(default_factory=dict)
    _connection: Connection | None = None
    _busy: threading.Lock = field(default_factory=threading.Lock)

    @property
    def queues(self) -> set[str]:
        """Of which queues a shipment has been claimed, or is being."""
        return set(self._claims)

    def begin(self, queue: str, *, limit: int, size: int) -> None:
        """Claim the next one of a queue; returns at once."""
        begun = _Claim(threading.Thread(target=lambda: self._run(begun, queue, limit, size), name=f"claim {queue}", daemon=True))
        self._claims[queue] = begun
        begun.thread.start()

    def take(self, queue: str) -> Shipment | None:
        """The shipment that was claimed ahead, when there is one.

        Raises:
            ServerError: Postgres went away meanwhile; what may have been claimed is free again after its lease.
        """
        if (begun := self._claims.pop(queue, None)) is None:
            return None
        begun.thread.join()
        if begun.error is not None:
            raise begun.error
        return begun.shipment

    def give_back(self, connection: Connection | None, *queues: str) -> None:
        """Let others have what was claimed of these queues, or of all, as far as Postgres can be told."""
        for queue in queues or tuple(self._claims):
            begun = self._claims.pop(queue, None)
            if begun is None:
                continue
            begun.thread.join(_PATIENCE)
            with suppress(*OUTAGE):
                if begun.shipment is not None and connection is not None:
                    dispatch.unclaim(connection, begun.shipment.id, [job.seq for job in begun.shipment.jobs])

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None and self._busy.acquire(timeout=_PATIENCE):
            self._connection.close()
            self._connection = None
            self._busy.release()

    def _run(self, begun: _Claim, queue: str, limit: int, size: int) -> None:
        with self._busy:
            try:
                if self._connection is None:
                    self._connection = self.connect()
                begun.shipment = claim(self._connection, self.drainer, queue, limit=limit, size=size)
            except Exception as error:  # noqa: BLE001 - raised again by who takes it
                begun.error = error
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
