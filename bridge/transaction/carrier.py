"""Jobs on their way into a transaction of SQLAlchemy's: kept until it commits, or until there are many."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID
from weakref import ref

from sqlalchemy.exc import UnboundExecutionError

from bridge.errors import BridgeError, InvalidArgumentError
from bridge.queries import buffered
from bridge.queries.connection import driver_connection
from bridge.queries.repeat import Tries
from bridge.transaction import home
from bridge.transaction.leaving import watch
from bridge.transaction.target import Buffer, here, made

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session

    from bridge.queries.buffered import Row
    from bridge.queries.connection import Connection as PsycopgConnection
    from bridge.queries.connection import Connections

__all__ = ["ConnectionTransaction", "SessionTransaction", "SqlalchemyTransaction"]

log = logging.getLogger("bridge")

_PATIENCE = 50  # times a full buffer that a coroutine may fill before its next await, and that waits in a session that only reads


class SqlalchemyTransaction(ABC):
    """One transaction, from its begin to its end."""

    def __init__(self) -> None:
        self.buffer = Buffer()
        self._times = 1  # full buffers to wait for before the next look whether to send them
        self._sent = 0  # jobs that have gone into it
        self._first: UUID | None = None  # the first of all
        self._own: Connections | None = None  # of the plain call that is being made
        self._plain: dict[UUID, Connections] = {}  # the jobs of plain calls that wait

    @property
    @abstractmethod
    def open(self) -> bool:
        """Whether it can still be committed."""

    def named(self) -> Self:
        """For a call that names it: such a job lives and dies with the transaction."""
        self._own = None
        return self

    def enqueue(self, row: Row, *, answer: bool = False) -> UUID:
        """Make a job in it; errors that only Postgres can find come when the job is sent, at the commit at the latest."""
        self._first = self._first or row.id
        if answer:
            return self._ask(row)
        made().note(row.id, self)
        self.buffer.add(row)
        if self._own is not None:
            self._plain[row.id] = self._own
        if self.buffer.full(self._times) or self.commits_each:
            self._relieve()
        return row.id

    def flush(self, connection: Connection | None = None) -> None:
        """Send what waits.

        Raises:
            BridgeError: one of the jobs cannot be; the transaction is lost with it.
        """
        rows = self.buffer.take()
        self._plain.clear()
        self._times = 1
        self._sent += len(rows)
        if rows:
            _send(connection if connection is not None else self._connect(), rows)

    def discard(self) -> None:
        """Forget what waits: it was rolled back."""
        self.buffer.take()
        self._plain.clear()
        self._times = 1
        self._sent, self._first = 0, None

    def connection(self) -> PsycopgConnection:
        """Its psycopg connection, after all jobs that were waiting have been sent.

        Raises:
            InvalidArgumentError: it is asyncio's, or another driver's.
        """
        if home.must_await(self._bind()):
            raise InvalidArgumentError("an asyncio transaction cannot be read from here, and nobody else sees its jobs yet", "commit first")
        connection = self._connect()
        driver = driver_connection(home.driver(connection))
        self.flush(connection)
        return driver

    @property
    @abstractmethod
    def commits_each(self) -> bool:
        """Whether every statement commits by itself (isolation level AUTOCOMMIT)."""

    def ask(self, statement: str, *values: str | None) -> Any:
        """Run one of our statements in it, after all jobs that were waiting have been sent; its single value."""
        if home.must_await(self._bind()):
            raise InvalidArgumentError(
                "the database has to be awaited to answer in an asyncio transaction",
                "call it by await session.run_sync(lambda session: bridge.complete(session, ...))",
            )
        connection = self._connect()
        self.flush(connection)
        return home.ask(connection, statement, values)

    def address(self) -> str:
        """The DSN or URL of its database, password included."""
        return home.address(self._bind())

    def roll_back(self) -> None:
        """Roll it back, for a task that has ended and left it open."""
        if not home.must_await(self._bind()):
            self._holder().rollback()

    @abstractmethod
    def is_on(self, connection: Connection) -> bool:
        """Whether it is this connection's."""

    def in_savepoint(self) -> bool:
        """Whether what waits is of a savepoint already, so that nothing is to be sent before one begins."""
        return False

    def rolling_back(self, connection: Connection) -> None:
        """The connection is about to roll back."""
        del connection
        self.discard()

    @abstractmethod
    def _connect(self) -> Connection:
        """SQLAlchemy's connection of it."""

    @abstractmethod
    def _holder(self) -> Session | Connection:
        """What the user has in hand."""

    @abstractmethod
    def _bind(self) -> Any:
        """What tells the dialect, without connecting."""

    def _ask(self, row: Row) -> UUID:
        if home.must_await(self._bind()):
            raise InvalidArgumentError(
                "a unique key needs an answer of the database, which a coroutine has to await",
                "call it by await session.run_sync(lambda session: bridge.enqueue(..., connection=session))",
            )
        self.flush()
        identity = _send(self._connect(), [row])[0]
        self._sent += 1
        made().note(identity, self)
        return identity

    def _relieve(self) -> None:
        """Send what has gathered; in a coroutine that cannot be before its next await."""
        if not home.must_await(self._bind()):
            self.flush()
        elif self.buffer.full(_PATIENCE):
            raise InvalidArgumentError(
                f"{len(self.buffer.rows)} jobs wait in memory for the commit of an asyncio transaction",
                "commit now and then, or make them in a function that is called by await session.run_sync(function)",
            )


def _send(connection: Connection, rows: Sequence[Row]) -> list[UUID]:
    with buffered.our_errors():
        result = connection.exec_driver_sql(buffered.enqueue_statement(home.placeholder(connection)), (buffered.parameter(rows),))
        return [UUID(str(row[0])) for row in result]


def _send_by_itself(rows: Sequence[Row], tries: Tries, connection: PsycopgConnection) -> None:
    made = tries.made_through(connection)
    if left := [row for row in rows if row.id not in made]:
        buffered.send(connection, left)


class ConnectionTransaction(SqlalchemyTransaction):
    """What is open on a Connection that the caller has named."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = ref(connection)

    @property
    def open(self) -> bool:
        """Whether it can still be committed."""
        connection = self._connection()
        return connection is not None and not connection.closed and connection.in_transaction()

    def is_on(self, connection: Connection) -> bool:
        """Whether it is this connection's."""
        return self._connection() is connection

    def _connect(self) -> Connection:
        connection = self._connection()
        if connection is None:
            raise BridgeError("the connection of these jobs is gone", "keep it until the commit")
        return connection

    def _holder(self) -> Connection:
        return self._connect()

    def _bind(self) -> Any:
        return self._connect()

    @property
    def commits_each(self) -> bool:
        """Whether every statement commits by itself."""
        return home.commits_each(self._connect())


class SessionTransaction(SqlalchemyTransaction):
    """What is open on a Session.

    A plain call joins it without having been asked to. So jobs of plain calls do not vanish with a session that has only read and is
    closed without a commit: there was nothing to be committed, and they go their own way.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.owner = here()
        self.changed = False  # objects were added to it, or had been changed when a job was made
        self._session = ref(session)
        self._connections: list[ref[Connection]] = []  # a session that is dropped must give them back
        self._over = self._asked = self._wrote = self._watched = self._commits = False

    @property
    def open(self) -> bool:
        """Whether it can still be committed."""
        return not self._over and self._session() is not None

    def plainly(self, own: Connections) -> Self:
        """For a call that names no transaction."""
        self._own = own
        return self

    def enqueue(self, row: Row, *, answer: bool = False) -> UUID:
        """Make a job in it."""
        session = self._alive()
        if self._own is not None and not self.changed:
            self.changed = bool(session.new or session.dirty or session.deleted)
        if not self._watched:
            self._watched = True
            watch(self, session)
        return super().enqueue(row, answer=answer)

    def commit(self) -> None:
        """Send what waits: the session is about to commit."""
        self._commits = True
        self.flush()

    def uses(self, connection: Connection) -> None:
        """The session has begun to use this connection."""
        if not self.is_on(connection):
            self._connections.append(ref(connection))

    def is_on(self, connection: Connection) -> bool:
        """Whether the session uses this connection."""
        return connection in self._used()

    def in_savepoint(self) -> bool:
        """Whether the session is in a savepoint: what belonged before it was sent when that began."""
        return self._alive().in_nested_transaction()

    def can_commit(self) -> bool:
        """Whether nothing has failed in it yet; Postgres prepares no transaction with a NOTIFY in it, so two phases are out."""
        session = self._alive()
        return session.is_active and not session.twophase and not any(home.failed(connection) for connection in self._used())

    def is_ours(self, own: Connections) -> bool:
        """Whether the session is on the database of ``own``."""
        used = self._used()
        return any(home.is_ours(connection, own) for connection in used) if used else self._goes_home(own)

    def flush_before(self, outer: Any) -> None:
        """A savepoint begins: send what is outside of it through the transaction around it."""
        if self.buffer:
            bind = self._home()
            # Through it, because its own savepoint may not have been sent yet either.
            self.flush(outer.connection(None) if bind is None else outer.connection(None, bind=bind))

    def rolling_back(self, connection: Connection) -> None:
        """Find out whether jobs of plain calls would go down with more than themselves; how it ends, the session says later."""
        if self._plain and not self._wrote:
            self._asked = True
            self._wrote = home.has_written(connection)

    def end(self) -> None:
        """The session's transaction is over."""
        self._over = True
        if self.buffer:
            self._let_go()
        lost = len(self.buffer.take()) + (0 if self._commits else self._sent)
        if lost:
            log.warning("jobs rolled back with a session that was closed without a commit count=%d first=%s", lost, self._first)

    def leave(self) -> None:
        """A task's run is over, and its session still open."""
        if self.buffer:
            self._let_go()

    def _let_go(self) -> None:
        """Send jobs of plain calls by themselves when the session has only read."""
        if not self._asked:
            for connection in self._used():
                self.rolling_back(connection)
        if self._wrote or self.changed:
            return
        plain = self._plain
        for own in {id(own): own for own in plain.values()}.values():
            rows = [row for row in self.buffer.rows if plain.get(row.id) is own]
            own.ask(partial(_send_by_itself, rows, Tries([row.id for row in rows])))
        # Not before they have arrived: who is told of an outage may try again.
        self._plain = {}
        for row in self.buffer.take():
            if row.id not in plain:
                self.buffer.add(row)

    def _relieve(self) -> None:
        """Send what has gathered, but not into a transaction that has changed nothing: if it is closed, that must take no job along."""
        if not self._plain or self.buffer.full(_PATIENCE) or self.commits_each or self._has_changed():
            super()._relieve()
        else:
            self._times += 1

    def _has_changed(self) -> bool:
        self._wrote = self._wrote or any(home.has_written(connection) for connection in self._used())
        return self._wrote or self.changed

    def _alive(self) -> Session:
        session = self._session()
        if session is None:
            raise BridgeError("the session of these jobs is gone", "keep it until the commit")
        return session

    def _used(self) -> list[Connection]:
        return [connection for held in self._connections if (connection := held()) is not None]

    def _home(self) -> Connection | None:
        """The connection to send by; None before there is one."""
        used = self._used()
        return used[0] if len(used) == 1 else next(filter(home.is_known_as_ours, used), None)

    def _goes_home(self, own: Connections) -> bool:
        """Whether a session that has not been anywhere would go to our database."""
        session = self._alive()
        try:
            bind = session.get_bind()
        except UnboundExecutionError:  # its mappers know, each for itself
            return False
        return home.is_ours(bind, own, session)

    def _connect(self) -> Connection:
        bind = self._home()
        return self._alive().connection(bind_arguments=None if bind is None else {"bind": bind})

    def _holder(self) -> Session:
        return self._alive()

    def _bind(self) -> Any:
        return self._home() or self._alive().get_bind()

    @property
    def commits_each(self) -> bool:
        """Whether every statement commits by itself."""
        connection = self._home()
        return connection is not None and home.commits_each(connection)
