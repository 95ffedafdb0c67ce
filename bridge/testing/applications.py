"""The applications of a test's process: which have joined, and where they write for as long as a block lasts."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery import _state, current_app

from bridge import client
from bridge.application import Membership, membership
from bridge.backend import BridgeBackend
from bridge.errors import InvalidArgumentError
from bridge.queries import runs
from bridge.queries.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from bridge.queries.connection import Connection, Connections
    from bridge.queries.runs import Finish

__all__ = ["connections_of", "joined_application", "renew", "writing_through"]


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

    def start(self, seq: int, token: str, worker: UUID, pid: int) -> UUID | None:
        """Ask the fence."""
        run = runs.start(self._connections.get(), seq, token, worker, pid)
        if isinstance(self._connections, Shared):
            self._connections.save()
        return run

    def finish(self, finish: Finish) -> None:
        """Write the outcome of a run."""
        runs.finish(self._connections.get(), finish)

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
        yield
    finally:
        app._backend_cache = store
        joined.__dict__ |= before
        if before["connections"] is None:
            del joined.__dict__["connections"]


def connections_of(joined: Membership, given: Connection | None) -> Connections | Shared:
    """Those of the application; one that is given instead."""
    return joined.connections if given is None else Shared(given)
