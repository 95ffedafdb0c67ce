"""What the tests of an application ask of Postgres, beyond what its jobs do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["Body", "Delayed", "bodies", "delayed", "drainer_reports", "expire", "worker_reports"]


@dataclass(frozen=True, slots=True)
class Delayed:
    """A job that is due later.

    Attributes:
        run_at: when it is due.
        due_in: seconds from now until then.
        expires_at: when it expires; None for never.
        expires_in: seconds from now until then.
    """

    id: UUID
    run_at: datetime
    due_in: float
    expires_at: datetime | None
    expires_in: float | None


@dataclass(frozen=True, slots=True)
class Body:
    """A body that Celery serialised as something else than JSON."""

    payload: bytes
    content_type: str
    content_encoding: str
    compression: str | None


def delayed(connection: Connection, queues: Sequence[str] | None) -> list[Delayed]:
    """The scheduled jobs of these queues, of all for None; earliest first."""
    query = """
        select j.id, j.run_at, extract(epoch from j.run_at - clock_timestamp())::double precision, j.expires_at,
          extract(epoch from j.expires_at - clock_timestamp())::double precision
        from bridge.jobs j where j.status = 'scheduled' and (%(queues)s::text[] is null or j.queue = any (%(queues)s))
        order by j.run_at, j.seq
    """
    with translated():
        return [Delayed(*row) for row in connection.execute(query, {"queues": None if queues is None else list(queues)})]


def expire(connection: Connection, moment: datetime) -> None:
    """End the jobs that have not started and expire by this moment, as a tick at that time would."""
    with translated():
        connection.execute("select bridge.expire_due(1000, %s)", (moment,))


def bodies(connection: Connection, identities: Sequence[UUID]) -> dict[UUID, Body]:
    """The bodies of those of these jobs that are not JSON."""
    query = """
        select b.id, b.payload, b.content_type, b.content_encoding, b.headers ->> 'compression'
        from (select id, payload, content_type, content_encoding, headers from bridge.job
          union all select id, payload, content_type, content_encoding, headers from bridge.finished) b
        where b.id = any (%s) and b.payload is not null
    """
    with translated():
        return {row[0]: Body(*row[1:]) for row in connection.execute(query, (list(identities),))}


def drainer_reports(connection: Connection, pid: int) -> bool:
    """Whether a drainer with this process id has reported."""
    return _exists(connection, "select from bridge.drainer d where d.pid = %s and d.stopped_at is null", pid)


def worker_reports(connection: Connection, pid: int) -> bool:
    """Whether a worker with this process id has reported."""
    return _exists(connection, "select from bridge.worker w where w.pid = %s and w.stopped_at is null", pid)


def _exists(connection: Connection, query: str, value: Any) -> bool:
    row = connection.execute(f"select exists ({query})".encode(), (value,)).fetchone()
    return bool(row and row[0])
