"""Connections, and the errors of the database in our own words."""

from __future__ import annotations

import math
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.rows import tuple_row

from bridge.errors import BridgeError, InvalidArgumentError, ServerError, from_sqlstate
from bridge.session import Session
from bridge.settings import without_password

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "OUTAGE",
    "Connection",
    "Connections",
    "connect",
    "driver_connection",
    "dsn_of",
    "each_host",
    "endless",
    "explained",
    "has_ended",
    "is_broken",
    "is_connection",
    "is_pooled",
    "plainly",
    "stands_alone",
    "translated",
]

Connection = psycopg.Connection[tuple[Any, ...]]
OUTAGE = (ServerError, psycopg.OperationalError)  # what is raised while Postgres is away
Answer = TypeVar("Answer")

# A statement's limit is Postgres's to tell of; only where that does not arrive, silence is an end.
_SILENCE = 1.5
# What the way itself notices of a peer that is gone, in seconds; what the user's URL says of it stands.
_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
_TYPES = "give arguments of the types that they are documented with"
_NAME = "give schema.table, a part that is no plain name in double quotes"
_DEEP = "pass flat values; what is stored can be read in SQL"
_VALUES = "give a value that the type of the argument has"
# Not in the start packet: poolers refuse unknown start parameters. Behind one, a session's settings would be left to strangers, and the
# process id that the server gives is not the one that the connection was opened with. The last two end the server's half of a connection
# whose other half is gone: by default it lives for hours, counts against max_connections and keeps what it has locked.
_BEGIN = """select p.direct, case when p.direct then set_config('statement_timeout', %(timeout)s, false) end,
  case when p.direct then set_config('synchronous_commit', %(commit)s, false) end,
  case when p.direct then set_config('tcp_keepalives_idle', '60', false) end,
  case when p.direct then set_config('tcp_user_timeout', '60s', false) end
  from (select pg_backend_pid() = %(pid)s as direct) p"""


def connect(dsn: str, *, name: str, timeout: float = 10.0, patience: float | None = None, asynchronous_commit: bool = False) -> Connection:
    """Open a connection in autocommit mode whose every statement has a time limit, and that notices a dead peer or a pooler.

    Behind a pooler the limit is the pooler's or the role's to set; there only a silence ends the wait.

    Args:
        dsn: the database, as libpq takes it.
        name: shows as application_name.
        timeout: seconds for connecting and for each statement.
        patience: seconds without a byte until an answer is given up, where that is to be less than one and a half timeouts.
        asynchronous_commit: commits return before they are on disk; a crash can lose the last of them, never tear one.

    Raises:
        ServerError: the database cannot be reached.
    """
    milliseconds = round(timeout * 1000)
    try:
        said = conninfo.conninfo_to_dict(dsn)
        way: dict[str, Any] = {word: value for word, value in {**_KEEPALIVE, "tcp_user_timeout": milliseconds}.items() if word not in said}
        connection = Session.connect(dsn, autocommit=True, connect_timeout=max(2, round(timeout)), application_name=name, **way)
        connection.patience = min(patience or math.inf, timeout * _SILENCE)
        settings = {"timeout": str(milliseconds), "commit": "off" if asynchronous_commit else "on", "pid": connection.info.backend_pid}
        connection.pooled = connection.execute(_BEGIN, settings).fetchone()[:1] != (True,)  # type: ignore[index]
    except psycopg.Error as error:
        raise ServerError(
            f"cannot reach {without_password(dsn)}: {str(error).strip()}", "check BRIDGE_DATABASE_URL and that Postgres runs"
        ) from error
    # Each client runs a handful of statements for ever: prepare on first use.
    connection.prepare_threshold = None if connection.pooled else 0
    return connection


def each_host(dsn: str) -> dict[str, str]:
    """The DSN of each host that an address names, whether or not it takes writes, by how people would name it."""
    parts = conninfo.conninfo_to_dict(dsn)
    hosts = str(parts.get("host") or "").split(",")
    ports = str(parts.get("port") or "").split(",")
    ports *= len(hosts) if len(ports) == 1 else 1
    return {
        f"{host}:{port}" if port else host: conninfo.make_conninfo(dsn, host=host, port=port or None, target_session_attrs="any")
        for host, port in zip(hosts, ports, strict=False)
    }


def is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands between us and the server."""
    return isinstance(connection, Session) and connection.pooled


def has_ended(connection: Connection) -> bool:
    """Whether it is closed, or the other side has said that it is over."""
    return connection.has_ended() if isinstance(connection, Session) else connection.closed


@contextmanager
def endless(connection: Connection) -> Iterator[None]:
    """Wait for an answer as long as its statement takes, which has no time limit either."""
    if not isinstance(connection, Session):
        yield
        return
    patience, connection.patience = connection.patience, None
    try:
        yield
    finally:
        connection.patience = patience


@contextmanager
def translated() -> Iterator[None]:
    """Raise our own exceptions for SQLSTATEs of class JB and for values that Postgres cannot take.

    Raises:
        BridgeError: as the SQL function said it; also for a document that is nested too deep for Python to write or read.
        InvalidArgumentError: a value is of another type than its argument, or out of its range.
        ServerError: the database went away.
    """
    try:
        yield
    except psycopg.OperationalError as error:
        raise _own(error) or ServerError(f"the database went away: {str(error).strip()}", "repeat the call") from error
    except psycopg.errors.UndefinedFunction as error:
        raise _other_function(error) from error
    except (psycopg.errors.CannotCoerce, psycopg.errors.DatatypeMismatch) as error:
        raise InvalidArgumentError(error.diag.message_primary or str(error), _TYPES) from error
    except psycopg.errors.InvalidName as error:
        raise InvalidArgumentError(error.diag.message_primary or str(error), _NAME) from error
    except psycopg.DataError as error:
        raise InvalidArgumentError((error.diag.message_primary or str(error)).replace("\n", "\\n"), _VALUES) from error
    except (UnicodeEncodeError, RecursionError) as error:
        raise _unwritable(error) from error
    except psycopg.Error as error:
        # psycopg does not know the class, or Postgres has no such number.
        if str(error).startswith(("cannot adapt type", "cannot convert")):
            raise InvalidArgumentError(str(error).partition(" using")[0], _TYPES) from error
        own = _own(error)
        if own is None:
            raise
        raise own from error


def _unwritable(error: UnicodeEncodeError | RecursionError) -> BridgeError:
    if isinstance(error, RecursionError):
        return BridgeError("a document is nested deeper than Python reads, or a value holds itself", _DEEP)
    return InvalidArgumentError(f"a text holds {error.object[error.start : error.end]!r}, which is no Unicode", "leave it out")


def _own(error: psycopg.Error) -> BridgeError | None:
    return from_sqlstate(error.sqlstate, error.diag.message_primary or "", error.diag.message_hint, error.diag.message_detail)


def _other_function(error: psycopg.Error) -> BridgeError:
    return BridgeError(
        error.diag.message_primary or str(error), f'{_TYPES}; where they are, the schema is of another release: run "bridge install"'
    )


def _other_schema() -> BridgeError:
    return BridgeError("schema bridge is missing or of another release", 'run "bridge install"')


def explained(error: Exception) -> BridgeError | None:
    """What a person who called a command is to do about an error of the database; None where only a programmer can tell."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return BridgeError(
            error.diag.message_primary or str(error),
            'grant the role bridge_viewer to look, bridge_operator to change things; "bridge roles rights" says what each may',
        )
    if isinstance(error, (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction)):
        message = error.diag.message_primary or str(error)
        ours = '"bridge"' in message or "bridge." in message
        return _other_schema() if ours else BridgeError(message, "give the name of one that is there, with its schema")
    return None


def plainly(connection: Connection) -> psycopg.Cursor[tuple[Any, ...]]:
    """A cursor whose rows are tuples, also on a caller's connection that makes something else of rows."""
    return connection.cursor(row_factory=tuple_row)


def is_connection(given: Any) -> bool:
    """Whether this is a psycopg connection that can be used without awaiting."""
    return isinstance(given, psycopg.Connection)


def driver_connection(held: Any) -> Connection:
    """The psycopg connection below what a library holds for it.

    Raises:
        InvalidArgumentError: there is none, or it has to be awaited.
    """
    driver = getattr(held, "driver_connection", held)
    if isinstance(driver, psycopg.Connection):
        return driver
    raise InvalidArgumentError(
        f"connection leads to a {type(driver).__module__}.{type(driver).__name__}, which cannot be read from here",
        "jobs can be made in its transaction; to read or steer them, leave connection out or pass one of psycopg 3 that is not asyncio's",
    )


def dsn_of(driver: Any) -> str | None:
    """Where a psycopg connection leads, password included; None for another driver's."""
    info = getattr(driver, "info", None)
    if not isinstance(info, psycopg.ConnectionInfo):
        return None
    return conninfo.make_conninfo(**info.get_parameters(), **({"password": info.password} if info.password else {}))


def is_broken(driver: Any) -> bool:
    """Whether a driver's connection is known to be in a transaction that can only be rolled back."""
    info = getattr(driver, "info", None)
    return getattr(info, "transaction_status", None) in {psycopg.pq.TransactionStatus.INERROR, psycopg.pq.TransactionStatus.UNKNOWN}


def stands_alone(connection: Connection) -> bool:
    """Whether the next statement on this connection commits by itself."""
    return connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


class Connections:
    """One connection a process and thread, opened when first needed, opened again when it broke, never shared across a fork."""

    def __init__(self, dsn: str, *, name: str, timeout: float = 10.0) -> None:
        self.dsn = dsn
        self.timeout = timeout
        self._name = name
        self._local = threading.local()

    def get(self) -> Connection:
        """The connection of this thread.

        Raises:
            ServerError: the database cannot be reached.
        """
        held: tuple[int, Connection] | None = getattr(self._local, "held", None)
        if held is not None and held[0] == os.getpid() and not has_ended(held[1]):
            return held[1]
        if held is not None and held[0] != os.getpid():
            self._abandoned = held  # the parent's: closing it here would end the parent's session
        connection = connect(self.dsn, name=self._name, timeout=self.timeout)
        self._local.held = (os.getpid(), connection)
        return connection

    def ask(self, question: Callable[[Connection], Answer]) -> Answer:
        """Put a question that may be repeated; once more when the connection had broken unnoticed, as after a restart of Postgres.

        Inside of an open transaction it is not repeated: what came before it there is gone.

        Raises:
            ServerError: the database cannot be reached.
        """
        connection = self.get()
        alone = stands_alone(connection)
        try:
            return question(connection)
        except ServerError:
            if not (alone and connection.closed):
                raise
            return question(self.get())

    def close(self) -> None:
        """Close the connection of this thread, if it is open."""
        held: tuple[int, Connection] | None = getattr(self._local, "held", None)
        if held is not None and held[0] == os.getpid():
            held[1].close()
            del self._local.held
