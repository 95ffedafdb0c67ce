"""Whether an engine of SQLAlchemy leads to our database, and what can be asked of its connections."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy.util.concurrency import in_greenlet

from bridge.errors import BridgeError
from bridge.queries import buffered, completion, identity
from bridge.queries.connection import dsn_of, is_broken
from bridge.settings import libpq_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session

    from bridge.queries.connection import Connections

__all__ = ["address", "ask", "commits_each", "failed", "has_written", "is_known_as_ours", "is_ours", "must_await", "placeholder"]

log = logging.getLogger("bridge")

_PLACEHOLDERS = {"numeric_dollar": "$1"}  # asyncpg's; the others write %s
_WHERE = ("host", "port")  # what a URL's query may say about the way; the rest of it is for the driver


@cache
def _homes() -> WeakKeyDictionary[Any, dict[str, bool]]:
    """Which pools of connections lead to the database of a DSN: asked once for each."""
    return WeakKeyDictionary()


def is_known_as_ours(connection: Connection) -> bool:
    """Whether it has been found to lead to our database."""
    return any(_homes().get(connection.engine.pool, {}).values())


def is_ours(bind: Any, own: Connections, session: Session | None = None) -> bool:
    """Whether a Connection, or the engine of a session that has none yet, leads to the database of ``own``.

    Raises:
        ServerError: ours cannot be reached.
    """
    engine = bind.engine
    if engine.dialect.name != "postgresql":
        return False
    known = _homes().setdefault(engine.pool, {})
    if own.dsn not in known:
        known[own.dsn] = _same_by_another(bind, own) if must_await(engine) else _same(bind, own, session)
    return known[own.dsn]


def _same(bind: Any, own: Connections, session: Session | None) -> bool:
    connection = bind if session is None else session.connection(bind_arguments={"bind": bind})
    return identity.is_same_database(own.dsn, own.timeout, lambda query: bool(connection.exec_driver_sql(query).scalar()))


def _same_by_another(bind: Any, own: Connections) -> bool:
    """A coroutine cannot wait for its own connection here: a new one looks where that leads."""
    own.get()  # an outage of ours is not theirs
    try:
        return identity.leads_to_same_database(own.dsn, address(bind), own.timeout)
    except BridgeError as error:
        log.warning(
            "plain calls do not join sessions of an engine: where it leads cannot be found out engine=%r error=%s", bind.engine, error
        )
        return False


def address(bind: Any) -> str:
    """The DSN or URL of a Connection's or an engine's database as libpq takes it, password included."""
    theirs = dsn_of(driver(bind)) if hasattr(bind, "connection") else None
    if theirs is not None:
        return theirs
    url = bind.engine.url
    return libpq_url(url.set(query={name: url.query[name] for name in _WHERE if name in url.query}).render_as_string(False))  # noqa: FBT003


def must_await(bind: Any) -> bool:
    """Whether its database cannot be asked from here, because that has to be awaited and nothing awaits us."""
    return bool(bind.dialect.is_async) and not in_greenlet()


def driver(connection: Connection) -> Any:
    """The driver's connection; None when there is none any more."""
    return None if connection.closed or connection.invalidated else connection.connection.driver_connection


def failed(connection: Connection) -> bool:
    """Whether its transaction can only be rolled back, or is over."""
    return connection.closed or connection.invalidated or is_broken(driver(connection))


def commits_each(connection: Connection) -> bool:
    """Whether every statement commits by itself (isolation level AUTOCOMMIT)."""
    held = None if connection.closed or connection.invalidated else connection.connection.dbapi_connection
    return bool(getattr(held, "autocommit", False))


def placeholder(connection: Connection) -> str:
    """How the driver writes a statement's first parameter."""
    return _PLACEHOLDERS.get(connection.dialect.paramstyle, "%s")


def ask(connection: Connection, statement: str, values: Sequence[str | None]) -> Any:
    """Run one of our statements; its single value."""
    with buffered.our_errors():
        return connection.exec_driver_sql(completion.written(statement, placeholder(connection)), tuple(values)).scalar()


def has_written(connection: Connection) -> bool:
    """Whether its transaction has changed anything; when that cannot be asked any more, it counts as if it had."""
    if failed(connection) or must_await(connection):
        return True
    try:
        return bool(connection.exec_driver_sql(buffered.HAS_WRITTEN).scalar())
    except Exception:  # noqa: BLE001 - a rollback goes on, whatever a question on the way meets
        return True
