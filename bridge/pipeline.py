"""What Postgres does while a shipment is on its way to the broker: claim the one after it, mark the one before it."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from bridge.queries import dispatch
from bridge.queries.connection import OUTAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.queries.connection import Connection
    from bridge.queries.dispatch import Claimed

__all__ = ["Pipeline", "Shipment", "claim"]

_PATIENCE = 1.0  # seconds that a drainer which stops waits for a claim or a mark; what is not done then is done again after its lease

T = TypeVar("T")


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
class Pipeline:
    """Claims ahead and marks behind, one statement after the other, on a connection of its own.

    Attributes:
        connect: opens that connection.
        drainer: who claims.
    """

    connect: Callable[[], Connection]
    drainer: uuid.UUID
    _claims: dict[str, Future[Shipment]] = field(default_factory=dict)
    _mark: Future[int] | None = None
    _connection: Connection | None = None
    _busy: threading.Lock = field(default_factory=threading.Lock)

    @property
    def queues(self) -> set[str]:
        """Of which queues a shipment has been claimed ahead, or is being."""
        return set(self._claims)

    def begin(self, queue: str, *, limit: int, size: int) -> None:
        """Claim the next one of a queue; returns at once."""
        self._claims[queue] = self._start(lambda connection: claim(connection, self.drainer, queue, limit=limit, size=size))

    def take(self, queue: str) -> Shipment | None:
        """The shipment that was claimed ahead, when there is one.

        Raises:
            ServerError: Postgres went away meanwhile; what may have been claimed is free again after its lease.
        """
        begun = self._claims.pop(queue, None)
        return None if begun is None else begun.result()

    def mark(self, connection: Connection, shipment: uuid.UUID, jobs: Sequence[Claimed]) -> None:
        """Mark jobs of one queue published: at once, or beside the next shipment when that is claimed and the mark before this is made.

        Raises:
            ServerError: Postgres went away, perhaps at the mark before; what is not marked is published again after its lease.
        """
        seqs = [job.seq for job in jobs]
        if jobs[0].queue not in self._claims:
            dispatch.mark_published(connection, shipment, seqs)
            return
        self._wait_for_mark()
        self._mark = self._start(lambda beside: dispatch.mark_published(beside, shipment, seqs))

    def settle(self) -> None:
        """Wait for the last mark, unless the next shipment is claimed.

        Raises:
            ServerError: as `mark`.
        """
        if not self._claims:
            self._wait_for_mark()

    def give_back(self, connection: Connection | None, *queues: str) -> None:
        """Let others have what was claimed of these queues, or of all, as far as Postgres can be told."""
        for queue in queues or tuple(self._claims):
            begun = self._claims.pop(queue, None)
            if begun is None or connection is None or not wait([begun], _PATIENCE).done or begun.exception() is not None:
                continue
            with suppress(*OUTAGE):
                dispatch.unclaim(connection, begun.result().id, [job.seq for job in begun.result().jobs])

    def close(self) -> None:
        """Disconnect, after the last mark."""
        begun, self._mark = self._mark, None
        if begun is not None:
            wait([begun], _PATIENCE)
        if self._connection is not None and self._busy.acquire(timeout=_PATIENCE):
            self._connection.close()
            self._connection = None
            self._busy.release()

    def _wait_for_mark(self) -> None:
        begun, self._mark = self._mark, None
        if begun is not None:
            begun.result()

    def _start(self, work: Callable[[Connection], T]) -> Future[T]:
        begun: Future[T] = Future()
        threading.Thread(target=self._run, args=(work, begun), name="pipeline", daemon=True).start()
        return begun

    def _run(self, work: Callable[[Connection], T], begun: Future[T]) -> None:
        with self._busy:
            try:
                if self._connection is None:
                    self._connection = self.connect()
                done = work(self._connection)
            except Exception as error:  # noqa: BLE001 - raised again where it is waited for
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                begun.set_exception(error)
                return
        begun.set_result(done)
