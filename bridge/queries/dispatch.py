"""What a drainer asks of Postgres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.types.json import Jsonb

from bridge.queries.answers import columns
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = [
    "CLAIMED",
    "Claimed",
    "Suspect",
    "bundles",
    "claim",
    "mark_missing",
    "mark_published",
    "next_look",
    "raise_floors",
    "ready_queues",
    "report_drainer",
    "republish",
    "set_alone",
    "suspects",
    "tick_if_late",
    "unclaim",
]


class Claimed(NamedTuple):
    """One claimed job, as ``bridge.claimed_job`` has it: what its message is made of. JSON parts are text.

    ``expires_in`` are the seconds until ``expires_at`` by the clock of Postgres, which a drainer's own may differ from by hours; ``alone``
    is true of a job that goes into no bundle.
    """

    seq: int
    token: str
    id: str
    task_id: str | None
    task: str
    queue: str
    rank: int
    args: str
    kwargs: str
    embed: str | None
    payload: bytes | None
    content_type: str | None
    content_encoding: str | None
    headers: str | None
    properties: str | None
    expires_at: datetime | None
    attempt: int
    expires_in: float | None = None
    alone: bool | None = None


@dataclass(frozen=True, slots=True)
class Suspect:
    """A published job that no living worker holds: its message waits in the broker, or is gone."""

    seq: int
    token: UUID
    queue: str
    rank: int
    properties: str | None
    published_at: datetime
    missing_since: datetime | None


_EXPIRES_IN = "extract(epoch from expires_at - clock_timestamp())::float8"
CLAIMED = columns(Claimed).replace('"expires_in"', _EXPIRES_IN).replace('"alone"', "null")
_CLAIM = f"select {CLAIMED} from bridge.claim(%s, %s, %s, %s, %s)".encode()
_SUSPECTS = f"select {columns(Suspect)} from bridge.suspects()".encode()
_REPUBLISH = f"select {CLAIMED} from bridge.republish(%s, %s, %s::uuid[])".encode()


def ready_queues(connection: Connection) -> list[str]:
    """Queues with ready jobs that are not paused."""
    return [row[0] for row in connection.execute("select bridge.ready_queues()")]


def next_look(connection: Connection) -> float:
    """Seconds until a limit may let through a job that waits for the next token of its rate; infinite when none does."""
    row = connection.execute("select bridge.next_look()").fetchone()
    return math.inf if row is None or row[0] is None else float(row[0])


def bundles(connection: Connection, queue: str) -> list[tuple[str | None, int, int]]:
    """How many jobs one message of a queue may have, by task, and how many its workers run at once; see ``bridge.bundles``."""
    with translated():
        return connection.execute("select task, jobs, children from bridge.bundles(%s)", (queue,)).fetchall()


def set_alone(connection: Connection, jobs: list[Claimed]) -> list[Claimed]:
    """Say of claimed jobs which go into no bundle any more."""
    with translated():
        row = connection.execute("select bridge.alone(%s::bigint[])", ([job.seq for job in jobs],)).fetchone()
    alone = set(row[0]) if row else set()
    return [job._replace(alone=job.seq in alone) for job in jobs] if alone else jobs


def claim(connection: Connection, drainer: UUID, queue: str, shipment: UUID, *, limit: int, size: int) -> list[Claimed]:
    """Claim at most ``limit`` jobs, ``size`` bytes and a bit; the claim is committed when this returns."""
    with translated():
        rows = connection.execute(_CLAIM, (drainer, queue, shipment, limit, size), binary=True)
        return [Claimed._make(row) for row in rows]


def mark_published(connection: Connection, shipment: UUID, seqs: Sequence[int]) -> int:
    """The broker has confirmed these."""
    return _count(connection, "select bridge.mark_published(%s, %s::bigint[])", (shipment, list(seqs)))


def unclaim(connection: Connection, shipment: UUID, seqs: Sequence[int]) -> int:
    """Put these back, tokens and all."""
    return _count(connection, "select bridge.unclaim(%s::bigint[], %s)", (list(seqs), shipment))


def _count(connection: Connection, query: str, values: tuple[Any, ...]) -> int:
    with translated():
        row = connection.execute(query.encode(), values).fetchone()
    return int(row[0]) if row else 0


def suspects(connection: Connection) -> list[Suspect]:
    """Published jobs whose message nobody is known to hold."""
    return [Suspect(*row) for row in connection.execute(_SUSPECTS)]


def mark_missing(connection: Connection, missing: Collection[UUID], found: Collection[UUID]) -> None:
    """Remember which messages the broker does not have, and forget it for those that it has."""
    connection.execute("select bridge.mark_missing(%s::uuid[], %s::uuid[])", (list(missing), list(found)))


def republish(connection: Connection, drainer: UUID, shipment: UUID, tokens: Collection[UUID]) -> list[Claimed]:
    """Claim again those of these that have been missing for long enough."""
    rows = connection.execute(_REPUBLISH, (drainer, shipment, list(tokens)), binary=True)
    return [Claimed._make(row) for row in rows]


def raise_floors(connection: Connection, queues: Collection[str], look: dict[str, Any] | None) -> dict[str, Any] | None:
    """Raise the floors of queues that were claimed from; what to give the next call, or None. See ``bridge.raise_floors``."""
    row = connection.execute("select bridge.raise_floors(%s::text[], %s)", (list(queues), None if look is None else Jsonb(look))).fetchone()
    return row[0] if row else None


def tick_if_late(connection: Connection, source: str) -> dict[str, int] | None:
    """Tick when nobody else does; what was done by step, or None."""
    row = connection.execute("select bridge.tick_if_late(%s)", (source,)).fetchone()
    return row[0] if row else None


def tick(connection: Connection, source: str) -> dict[str, int] | None:
    """Tick now; None when another tick is at work."""
    with translated():
        row = connection.execute("select bridge.tick(%s)", (source,)).fetchone()
    return row[0] if row else None


def report_drainer(
    connection: Connection, identity: UUID, *, name: str, pid: int, software: str, published: int, clock: datetime,
    broker: dict[str, Any], stopped: bool, listens: list[str],
) -> None:  # fmt: skip
    """Say that this drainer lives, or stops, and of which queues it wants to be told."""
    connection.execute(
        "select bridge.report_drainer(%s, %s, %s, %s, %s, %s, %s, %s, %s::text[])",
        (identity, name, pid, software, published, clock, Jsonb(broker), stopped, listens),
    )
