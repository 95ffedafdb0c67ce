"""A psycopg connection as the transaction to join: each job is sent at once, because nobody tells us when its user commits.

Inside psycopg's own ``with connection.pipeline()`` the answers are not waited for, which makes many jobs quick there too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from bridge.queries import buffered, bulk, completion
from bridge.queries.connection import dsn_of, stands_alone
from bridge.transaction.target import REMEMBERED, made

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from bridge.queries.buffered import Row
    from bridge.queries.connection import Connection

__all__ = ["DirectTransaction"]


class DirectTransaction:
    """The transaction that is open, or will begin, on a psycopg connection."""

    open = True

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def enqueue(self, row: Row, *, answer: bool = False) -> UUID:
        """Make a job in it."""
        del answer  # there is always one
        identity = buffered.send(self._connection, [row])[0]
        made().note(identity, self)
        return identity

    def enqueue_many(self, jobs_to_make: Iterable[Mapping[str, Any]]) -> Sequence[UUID]:
        """Make many by few statements, all or none also where the connection commits each."""
        identities = bulk.enqueue_many(self._connection, jobs_to_make, own=False)
        for identity in identities[-REMEMBERED:]:
            made().note(identity, self)
        return identities

    def connection(self) -> Connection:
        """Itself."""
        return self._connection

    @property
    def commits_each(self) -> bool:
        """Whether there is no transaction: every statement commits by itself."""
        return self._connection.autocommit and stands_alone(self._connection)

    def ask(self, statement: str, *values: str | None) -> Any:
        """Run one of our statements in it; its single value."""
        return completion.ask(self._connection, statement, values)

    def address(self) -> str:
        """The DSN of its database, password included."""
        return dsn_of(self._connection) or ""

    def roll_back(self) -> None:
        """Roll it back; a connection that cannot is closed."""
        try:
            self._connection.rollback()
        except psycopg.Error:
            self._connection.close()
