"""Celery's ways to cancel: revoke, revoke by stamp, purge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.types.json import Jsonb

from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["Purged", "clock", "heed_revoke", "purge", "revoke", "revoke_stamped"]

_PAGE = 1000  # jobs of one statement: bounded locks, and far from its time limit


class Purged(NamedTuple):
    """How many jobs a purge has cancelled, and how many of them were with the broker."""

    cancelled: int
    published: int


def clock(connection: Connection) -> datetime:
    """What time it is for whatever ends at a moment."""
    row = connection.execute("select clock_timestamp()").fetchone()
    return row[0]  # type: ignore[index,no-any-return] # it is one row


def revoke(connection: Connection, identities: Sequence[UUID], *, terminate: bool, signal: str) -> int:
    """Call ``bridge.revoke``, a page of ids at a time; how many of them are jobs."""
    found = 0
    with translated():
        for at in range(0, len(identities), _PAGE):
            values = (list(identities[at : at + _PAGE]), terminate, signal)
            row = connection.execute("select bridge.revoke(%s, %s, %s)", values).fetchone()
            found += row[0] if row else 0
    return found


def revoke_stamped(connection: Connection, stamps: dict[str, list[Any]], *, terminate: bool, signal: str) -> int:
    """Call ``bridge.revoke_stamped``; how many jobs carry one of the stamps."""
    with translated():
        row = connection.execute("select bridge.revoke_stamped(%s, %s, %s)", (Jsonb(stamps), terminate, signal)).fetchone()
    return int(row[0]) if row else 0


def heed_revoke(connection: Connection, identity: UUID) -> bool:
    """Call ``bridge.heed_revoke``: whether the row, too, says that this job is cancelled."""
    with translated():
        row = connection.execute("select bridge.heed_revoke(%s)", (identity,)).fetchone()
    return bool(row and row[0])


def purge(connection: Connection, queue: str) -> Purged:
    """Call ``bridge.purge`` until nothing of the queue waits."""
    cancelled = published = 0
    with translated():
        while True:
            row = connection.execute("select cancelled, published from bridge.purge(%s, %s)", (queue, _PAGE)).fetchone()
            page = Purged(*row) if row else Purged(0, 0)
            cancelled, published = cancelled + page.cancelled, published + page.published
            if page.cancelled == 0:
                return Purged(cancelled, published)
