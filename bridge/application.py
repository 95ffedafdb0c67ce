"""Joining a Celery application: one call, or one environment variable (see bridge.loader)."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kombu.utils.imports import symbol_by_name

from bridge import settings as environment
from bridge.choice import OPTION, Patterns, choice_of
from bridge.queries.connection import Connections
from bridge.transaction.current import current, join_sessions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.settings import Settings
    from bridge.transaction.target import Target
    from bridge.worker.board import Board
    from bridge.worker.channel import Channels
    from bridge.worker.notes import Teller

__all__ = ["Membership", "install", "membership"]

_WRAPPERS = {"celery.map", "celery.starmap"}


@dataclass
class Membership:
    """What the bridge keeps with an application that has joined.

    The worker id is made before the pool forks, so that children carry their main process's. The soft limit is that of the whole worker.
    """

    app: Any
    patterns: Patterns = field(default_factory=Patterns)
    worker_id: uuid.UUID = field(default_factory=uuid.uuid4)
    soft_limit: float | None = None
    _channels: tuple[int, Channels] | None = None
    _teller: tuple[int, Teller] | None = None

    @cached_property
    def settings(self) -> Settings:
        """The environment's settings, read when first needed."""
        return environment.load()

    @cached_property
    def connections(self) -> Connections:
        """Connections to Postgres, one a process and thread."""
        return Connections(self.settings.require_database(), name="bridge client", timeout=self.settings.timeout)

    @cached_property
    def board(self) -> Board:
        """What the processes of a worker share; to be asked for before its pool forks."""
        from bridge.worker.board import Board  # noqa: PLC0415 - producers run nothing

        return Board()

    def unanswered(self) -> set[str]:
        """The tokens of deliveries whose outcome a process of this worker has sent, and has no answer to yet."""
        return self.board.unanswered() | self.channels.unanswered()

    def target(self) -> Target | None:
        """The caller's transaction that a call joins; None when the call commits by itself."""
        own: object = self.connections
        if not isinstance(own, Connections):
            return None  # a test's run_jobs, which is inside of one
        return current(own, automatic=self.settings.join == "auto")

    @property
    def channels(self) -> Channels:
        """Ways to Postgres for the runs of this process; a forked child makes its own."""
        if self._channels is None or self._channels[0] != os.getpid():
            from bridge.worker.channel import Channels  # noqa: PLC0415 - producers run nothing

            self._channels = (os.getpid(), Channels(self.settings, self.board))
        return self._channels[1]

    @property
    def teller(self) -> Teller:
        """Writes what the runs of this process tell while they run; a forked child makes its own."""
        if self._teller is None or self._teller[0] != os.getpid():
            from bridge.worker.notes import Teller  # noqa: PLC0415 - producers run nothing

            self._teller = (os.getpid(), Teller(self))
        return self._teller[1]

    def renew(self) -> None:
        """Forget what was read from the environment, and this thread's connection: for tests, which change where the database is."""
        if "connections" in self.__dict__:
            self.connections.close()
        for name in ("settings", "connections", "_effective"):
            self.__dict__.pop(name, None)
        self._channels = None

    @cached_property
    def broker_kind(self) -> str:
        """Kombu's driver type of the application's broker; asking for it connects to nothing."""
        return str(self.app.connection_for_write().transport.driver_type)

    @cached_property
    def _effective(self) -> Patterns:
        """The patterns of ``install``, else the environment's."""
        names = self.settings.only_names(), self.settings.exclude_names()
        return self.patterns.or_else(Patterns(*names))

    def takes(self, task: str, call: object = None) -> bool:
        """Whether calls of this task become rows; the others go straight to the broker.

        Args:
            task: its name.
            call: the option ``bridge`` of this call; None when it has none.

        Raises:
            InvalidArgumentError: an option is neither True nor False, nor a mapping.
        """
        chosen = choice_of(call, f"a call of task {task}")
        if chosen is None:
            chosen = choice_of(self.option_of(task), f"task {task}")
        return self._effective.take(task) if chosen is None else chosen

    def option_of(self, task: str) -> object:
        """The task's own option ``bridge``, as Celery looks for options: without finalizing the application."""
        return getattr(self.app._tasks.get(task), OPTION, None)  # noqa: SLF001

    @staticmethod
    def chosen_name(task: str, body: Any) -> str:
        """Whose options and patterns count: of ``celery.map`` and ``celery.starmap`` those of the task that they call."""
        if task in _WRAPPERS and isinstance(body, tuple):
            return str((body[1].get("task") or {}).get("task") or task)
        return task


def install(app: Any, *, only: Iterable[str] | None = None, exclude: Iterable[str] | None = None) -> None:
    """Make an application's task calls rows, and its workers report to them. Nothing else in the application changes.

    Repeating it does nothing. It reads neither the application's configuration nor the environment: both may still be set afterwards.
    A call made inside an open transaction of a SQLAlchemy Session on the same database joins it from now on.

    Args:
        app: a Celery application, before its first task call.
        only: patterns (``mail.*``) of the tasks to take; None takes all.
        exclude: patterns of tasks to leave to the broker.

    Raises:
        InvalidArgumentError: ``only`` or ``exclude`` is no list of texts.

    A task's option (``@app.task(bridge=False)``) wins over these patterns, a call's (``apply_async(bridge=True)``) over both. Where
    neither list is given, ``BRIDGE_ONLY`` and ``BRIDGE_EXCLUDE`` count.
    """
    if membership(app) is not None:
        return
    app.bridge = Membership(app, Patterns.given(only, exclude))
    join_sessions()
    from bridge import amqp, control, unique  # noqa: PLC0415 - they need this module

    _mix_in(app, "amqp", "BridgeAMQP", amqp.RowSender, control.ConnectionMaker)
    _mix_in(app, "control", "BridgeControl", control.RowControl)
    app.send_task = unique.telling(app.send_task)
    app.backend_cls = "bridge.backend:make_backend"
    from bridge.worker import plugin  # noqa: PLC0415 - a producer that never starts a worker still registers it: workers are the same app

    plugin.register(app)


def membership(app: Any) -> Membership | None:
    """What the bridge keeps with this application; None when it has not joined."""
    found = getattr(app, "bridge", None)
    return found if isinstance(found, Membership) else None


def _mix_in(app: Any, part: str, name: str, *ours: type) -> None:
    """Mix ours into the class of one of the application's parts; also into the instance, when there is one already."""
    theirs = symbol_by_name(getattr(app, f"{part}_cls"))
    mixed = type(name, (*ours, theirs), {})
    setattr(app, f"{part}_cls", mixed)
    existing = app.__dict__.get(part)
    if existing is not None:
        existing.__class__ = mixed
        existing.__dict__.pop("send_task_message", None)
