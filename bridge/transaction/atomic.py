"""Django: jobs join whatever is open on the connection of the database alias that ``bridge.django`` serves.

In an atomic block they are kept and sent with its commit; in autocommit mode each is sent at once. Django says nothing before it
commits, so the connection's class is exchanged for one that does, where the first job is made.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.connection import ConnectionProxy

from bridge.errors import InvalidArgumentError, ServerError
from bridge.frameworks import django_alias
from bridge.queries import buffered, completion
from bridge.queries.connection import driver_connection, dsn_of
from bridge.queries.repeat import Tries
from bridge.transaction.target import Buffer, made

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.queries.buffered import Row
    from bridge.queries.connection import Connection

__all__ = ["DjangoTransaction", "joinable", "target_of"]

_MENTION = "bridge."  # a statement with this in it may read jobs


def joinable() -> DjangoTransaction | None:
    """What a plain call joins; None in a coroutine, where Django has no transactions, and in an atomic block that has failed."""
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        return None
    target = target_of(connections[django_alias()])
    return target if target.can_commit() else None


def target_of(given: Any) -> DjangoTransaction:
    """What is open on one of Django's connections.

    Raises:
        InvalidArgumentError: it is no connection, or not one to Postgres.
    """
    wrapper = connections[given.alias] if isinstance(given, ConnectionProxy) else given
    if not isinstance(wrapper, BaseDatabaseWrapper):
        raise InvalidArgumentError(f"connection is a {type(given).__name__}", "pass one of django.db.connections")
    if wrapper.vendor != "postgresql":
        raise InvalidArgumentError(
            f"database {wrapper.alias!r} of Django is {wrapper.display_name}", "name one with ENGINE django.db.backends.postgresql"
        )
    if not isinstance(wrapper, _Joined):
        wrapper.__class__ = type(f"Joined{type(wrapper).__name__}", (_Joined, type(wrapper)), {})
    found: DjangoTransaction = wrapper.bridge
    return found


class DjangoTransaction:
    """What is open on one connection of Django's, and the jobs on their way into it."""

    def __init__(self, wrapper: Any) -> None:
        self.buffer = Buffer()
        self._wrapper = wrapper

    @property
    def open(self) -> bool:
        """Whether there is something that can still be committed."""
        return bool(self._wrapper.in_atomic_block or not self._wrapper.get_autocommit())

    def can_commit(self) -> bool:
        """Whether nothing has failed in it yet."""
        return not (self._wrapper.in_atomic_block and self._wrapper.needs_rollback)

    def enqueue(self, row: Row, *, answer: bool = False) -> UUID:
        """Make a job in it; errors that only Postgres can find come when the job is sent, at the commit at the latest."""
        made().note(row.id, self)
        with buffered.our_errors():
            at_once = answer or not self.open  # Django connects to answer that
        if at_once:
            self.flush()
            return self._send_anew(row)
        self.buffer.add(row)
        if self.buffer.full():
            self.flush()
        return row.id

    def flush(self) -> None:
        """Send what waits."""
        rows = self.buffer.take()
        if rows:
            self._send(rows)

    def connection(self) -> Connection:
        """Its psycopg connection, after all jobs that were waiting have been sent."""
        self.flush()
        self._wrapper.ensure_connection()
        return driver_connection(self._wrapper.connection)

    @property
    def commits_each(self) -> bool:
        """Whether there is no transaction: every statement commits by itself."""
        return not self.open

    def ask(self, statement: str, *values: str | None) -> Any:
        """Run one of our statements in it, after all jobs that were waiting have been sent; its single value."""
        self.flush()
        with buffered.our_errors(), self._wrapper.cursor() as cursor:
            cursor.execute(completion.written(statement, "%s"), list(values))
            row = cursor.fetchone()
        return row and row[0]

    def address(self) -> str:
        """The DSN of its database, password included."""
        return dsn_of(self._wrapper.connection) or str(self._wrapper.settings_dict.get("NAME"))

    def roll_back(self) -> None:
        """Close its connection, which rolls back: Django lets nobody else end an atomic block."""
        self._wrapper.close()

    def before_statement(self, execute: Callable[..., Any], statement: str, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001 - Django's
        """Django's hook around every statement: one that may read jobs sees those that waited."""
        if self.buffer and _MENTION in str(statement):
            self.flush()
        return execute(statement, params, many, context)

    def _send_anew(self, row: Row) -> UUID:
        """Send at once; again when the connection had broken unnoticed and nothing was open on it."""
        tries = Tries([row.id])
        try:
            return self._send_unless_made(row, tries)
        except ServerError:
            if self.open:
                raise
            self._wrapper.close()
            return self._send_unless_made(row, tries)

    def _send_unless_made(self, row: Row, tries: Tries) -> UUID:
        return row.id if tries.made(self._rows) else self._send([row])[0]

    def _rows(self, statement: str, values: Sequence[Any]) -> list[Any]:
        with buffered.our_errors(), self._wrapper.cursor() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall())

    def _send(self, rows: Sequence[Row]) -> list[UUID]:
        return [UUID(str(row[0])) for row in self._rows(buffered.enqueue_statement("%s"), [buffered.parameter(rows)])]


class _Joined:
    """Mixed over the class of a connection: jobs go before what ends a transaction or begins a savepoint, and with what undoes it."""

    @cached_property
    def bridge(self) -> DjangoTransaction:
        """Made when first needed: Django makes further connections of the class of one that it has, as for its test databases."""
        found = DjangoTransaction(self)
        self.execute_wrappers.insert(0, found.before_statement)  # type: ignore[attr-defined] # users take theirs from the end
        return found

    def _commit(self) -> None:
        try:
            self.bridge.flush()
        except BaseException:
            self.rollback()  # type: ignore[attr-defined] # Django does so for errors of its own only
            raise
        super()._commit()  # type: ignore[misc]

    def _rollback(self) -> None:
        self.bridge.buffer.take()
        super()._rollback()  # type: ignore[misc]

    def _close(self) -> None:
        self.bridge.buffer.take()
        super()._close()  # type: ignore[misc]

    def _savepoint(self, sid: str) -> None:
        self.bridge.flush()
        super()._savepoint(sid)  # type: ignore[misc]

    def _savepoint_rollback(self, sid: str) -> None:
        self.bridge.buffer.take()
        super()._savepoint_rollback(sid)  # type: ignore[misc]
