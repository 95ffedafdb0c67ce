"""Whether an engine of SQLAlchemy leads to our database, and what can be asked of its connections."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy.util.concurrency import in_greenlet

from bridge.errors import BridgeError
from bridge.queries import buffered, identity
from bridge.queries.connection import dsn_of, is_broken
from bridge.settings import libpq_url

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session

    from bridge.queries.connection import Connections

__all__ = ["commits_each", "failed", "has_written", "is_known_as_ours", "is_ours", "must_await"]

log = logging.getLogger("bridge")

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
    theirs = dsn_of(driver(bind)) if hasattr(bind, "connection") else None
    if theirs is None:
        url = bind.engine.url
        theirs = libpq_url(url.set(query={name: url.query[name] for name in _WHERE if name in url.query}).render_as_string(False))  # noqa: FBT003
    try:
        return identity.leads_to_same_database(own.dsn, theirs, own.timeout)
    except BridgeError as error:
        log.warning(
            "plain calls do not join sessions of an engine: where it leads cannot be found out engine=%r error=%s", bind.engine, error
        )
        return False


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


def has_written(connection: Connection) -> bool:
    """Whether its transaction has changed anything; when that cannot be asked any more, it counts as if it had."""
    if failed(connection) or must_await(connection):
        return True
    try:
        return bool(connection.exec_driver_sql(buffered.HAS_WRITTEN).scalar())
    except Exception:  # noqa: BLE001 - a rollback goes on, whatever a question on the way meets
        return True
