"""Which transaction a call joins: the one that it names, that of ``using``, an open one of SQLAlchemy or Django, or none."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

from bridge.errors import InvalidArgumentError
from bridge.frameworks import in_django
from bridge.queries.connection import is_connection
from bridge.transaction.arrival import when_imported
from bridge.transaction.direct import DirectTransaction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.queries.connection import Connections
    from bridge.transaction.target import Target

__all__ = ["current", "join_sessions", "leave_sessions", "named", "of_a_run", "using"]

_OPEN = object()  # the one that is open, if any
_using: ContextVar[Any] = ContextVar("bridge_using", default=_OPEN)
_SESSIONS = "bridge.transaction.sessions"  # imported only where SQLAlchemy is


@cache
def join_sessions() -> None:
    """Let plain calls join an open transaction of a SQLAlchemy Session; ``bridge.install`` does this too. Once is enough.

    It is for programs without a Celery application, before they open their first session; SQLAlchemy may be imported later.
    """
    when_imported("sqlalchemy.orm", _hook)


def _hook() -> None:
    from bridge.transaction import sessions  # noqa: PLC0415 - imports SQLAlchemy

    sessions.hook()


@contextmanager
def using(connection: Any) -> Iterator[None]:
    """Let every call of this block belong to one transaction: Celery's ``delay`` and all that it leads to, and ``bridge.enqueue``.

    Args:
        connection: a psycopg 3 connection; a SQLAlchemy Session, Connection, AsyncSession or AsyncConnection; one of Django's
            connections; or None: calls commit by themselves, whatever is open.

    Raises:
        InvalidArgumentError: it is none of these.

    It neither commits nor rolls back. What is called in the block from an asyncio task or a thread with a copy of its context belongs
    to it too.
    """
    if connection is not None:
        kind_of(connection)
    token = _using.set(connection)
    try:
        yield
    finally:
        _using.reset(token)


def current(own: Connections, *, automatic: bool) -> Target | None:
    """The transaction that a plain call joins; None when it is to commit by itself.

    Args:
        own: how to reach our database by ourselves; an open transaction of another database is not joined.
        automatic: whether to look for one that is open when ``using`` names none.

    Raises:
        ServerError: whether an open one is of our database cannot be found out, because ours is away.
    """
    given = _using.get()
    if given is not _OPEN:
        return None if given is None else named(given)
    if not automatic:
        return None
    sessions = sys.modules.get(_SESSIONS)
    found = sessions.joinable(own) if sessions is not None else None
    return found or _of_django()


def _of_django() -> Target | None:
    if not in_django():
        return None
    from bridge.transaction import atomic  # noqa: PLC0415 - imports Django

    return atomic.joinable()


def named(given: Any) -> Target:
    """The transaction of what a caller names.

    Raises:
        InvalidArgumentError: it has none that can be joined.
    """
    kind = kind_of(given)
    if kind == "psycopg":
        return DirectTransaction(given)
    if kind == "django":
        from bridge.transaction import atomic  # noqa: PLC0415 - imports Django

        return atomic.target_of(given)
    from bridge.transaction import sessions  # noqa: PLC0415 - imports SQLAlchemy

    return sessions.target_of(given)


def kind_of(given: Any) -> str:
    """Whose connection it is: psycopg, sqlalchemy or django.

    Raises:
        InvalidArgumentError: nobody's that we know.
    """
    if is_connection(given):
        return "psycopg"
    homes = {cls.__module__.partition(".")[0] for cls in type(given).__mro__}
    if "sqlalchemy" in homes:
        return "sqlalchemy"
    if "django" in homes:
        return "django"
    hint = "pass a psycopg 3 connection; a SQLAlchemy Session, Connection or their asyncio twins; or one of django.db.connections"
    if "psycopg" in homes:
        hint = "its calls would have to be awaited; pass a psycopg connection that is not, or a SQLAlchemy AsyncSession"
    raise InvalidArgumentError(f"connection is of type {type(given).__name__}, which has no transaction to join", hint)


@contextmanager
def of_a_run() -> Iterator[None]:
    """A task's run begins with no open session of the run before it, and leaves none of its jobs in one that it forgot to close."""
    sessions = sys.modules.get(_SESSIONS)
    if sessions is None:
        yield
        return
    with sessions.fresh():
        yield


def leave_sessions() -> None:
    """Let go of jobs in sessions that a run has left open, before its end is noted: afterwards nobody would repeat it for their sake.

    Raises:
        ServerError: Postgres is away; they are still there.
    """
    sessions = sys.modules.get(_SESSIONS)
    if sessions is not None:
        sessions.leave()
