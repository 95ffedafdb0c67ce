"""Waiting for a job inside of the transaction that makes it would never end: it is refused, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.errors import UncommittedError
from bridge.queries import jobs
from bridge.transaction.target import made

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from bridge.queries.connection import Connections

__all__ = ["refuse_uncommitted"]


def refuse_uncommitted(own: Connections, identities: Iterable[UUID]) -> None:
    """Refuse to wait for jobs of a transaction that nobody else sees yet; those of others cost nothing here.

    Raises:
        UncommittedError: one of them was made in such a transaction.
    """
    for identity in identities:
        if identity not in made():
            continue
        if jobs.get(own.get(), identity) is None:
            raise UncommittedError(
                f"job {identity} was made in a transaction that has not committed, or was rolled back: it cannot run",
                "commit, then wait; or make it in a block of bridge.using(None), where calls commit by themselves",
            )
        made().forget(identity)
