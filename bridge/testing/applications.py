"""The applications of a test's process: which have joined, and where they write for as long as a block lasts."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

from celery import _state, current_app

from bridge import client
from bridge.application import Membership, membership
from bridge.backend import BridgeBackend
from bridge.errors import InvalidArgumentError
from bridge.frameworks import in_django
from bridge.queries import runs
from bridge.queries.shared import Shared
from bridge.transaction.current import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from bridge.queries.connection import Connection, Connections
    from bridge.queries.runs import Finish
    from bridge.transaction.target import Target

__all__ = ["connections_of", "joined_application", "renew", "target_of", "writing_through"]

Answer = TypeVar("Answer")


def joined_application(app: Any = None) -> Any:
    """The application whose jobs are meant: the given one, else the current one, else the only one that has joined.

    Raises:
        InvalidArgumentError: it has not joined, or there are several.
    """
    if app is not None:
        chosen = [app._get_current_object() if hasattr(app, "_get_current_object") else app]
    else:
        joined = _joined()
        current = current_app._get_current_object()
        chosen = [current] if current in joined else joined
    if len(chosen) == 1 and membership(chosen[0]) is not None:
        return chosen[0]
    named = ", ".join(sorted(repr(one.main or one) for one in chosen)) or "none of this process"
    raise InvalidArgumentError(
        f"which application runs the jobs is not clear: {named}", "give one that bridge.install, or CELERY_LOADER, has joined"
    )


def _joined() -> list[Any]:
    return [app for app in _state._get_active_apps() if membership(app) is not None]


def renew() -> None:
    """Let all applications of this process read the environment again when they next need it, and connect anew."""
    client.forget_connections()
    for app in _joined():
        app.bridge.renew()
        app._backend_cache = None
        app._local.__dict__.pop("backend", None)


class InlineChannel:
    """Starts and finishes of runs in this thread, each answered before the next step. It is its own only channel."""

    def __init__(self, connections: Connections | Shared) -> None:
        self._connections = connections

    def get(self) -> InlineChannel:
        """This channel."""
        return self

    def start(self, seq: int, token: str, worker: UUID, pid: int, run: UUID | None = None) -> UUID | None:
        """Ask the fence."""
        run = runs.start(self._connections.get(), seq, token, worker, pid, run)
        if isinstance(self._connections, Shared):
            self._connections.save()
        return run

    def finish(self, finish: Finish) -> None:
        """Write the outcome of a run."""
        runs.finish(self._connections.get(), finish)

    def ask(self, question: Callable[[Connection], Answer]) -> Answer:
        """Put a question."""
        return question(self._connections.get())

    def settle(self) -> None:
        """Nothing: every answer has been read."""


@contextmanager
def writing_through(app: Any, connections: Connections | Shared) -> Iterator[None]:
    """Until the end of the block, runs of this application, its calls and its results go through these connections.

    Its own result store is not asked: rows hold results.
    """
    joined: Any = app.bridge
    before = {name: joined.__dict__.get(name) for name in ("connections", "_channels")}
    store = app._backend_cache
    joined.__dict__ |= {"connections": connections, "_channels": (os.getpid(), InlineChannel(connections))}
    app._backend_cache = BridgeBackend(app=app, url="bridge://")
    try:
        with patch.object(client, "_connections", lambda: connections):
            yield
    finally:
        app._backend_cache = store
        joined.__dict__ |= before
        if before["connections"] is None:
            del joined.__dict__["connections"]


def target_of(given: Any) -> Target | None:
    """The open transaction that a test means: the one that it names, else the one around a test of Django's; None for no transaction."""
    if given is None and in_django():
        from bridge.transaction import atomic  # noqa: PLC0415 - imports Django

        django = atomic.joinable()
        return django if django is not None and django.open else None
    return None if given is None else named(given)


def connections_of(joined: Membership, given: Any) -> Connections | Shared:
    """Those of the application; in an open transaction that of the transaction."""
    target = target_of(given)
    own = joined.connections
    return own if target is None else Shared(target.connection, own.dsn, own.timeout)
