"""Joining a Celery application: one call, or one environment variable (see bridge.loader)."""

from __future__ import annotations

import fnmatch
import os
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kombu.utils.imports import symbol_by_name

from bridge import settings as environment
from bridge.queries.connection import Connections

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.settings import Settings
    from bridge.worker.channel import Channels

__all__ = ["Membership", "install", "membership"]


@dataclass
class Membership:
    """What the bridge keeps with an application that has joined.

    The worker id is made before the pool forks, so that children carry their main process's.
    """

    app: Any
    only: tuple[str, ...]
    exclude: tuple[str, ...]
    worker_id: uuid.UUID = field(default_factory=uuid.uuid4)
    _channels: tuple[int, Channels] | None = None

    @cached_property
    def settings(self) -> Settings:
        """The environment's settings, read when first needed."""
        return environment.load()

    @cached_property
    def connections(self) -> Connections:
        """Connections to Postgres, one a process and thread."""
        return Connections(self.settings.require_database(), name="bridge client", timeout=self.settings.timeout)

    @property
    def channels(self) -> Channels:
        """Ways to Postgres for the runs of this process; a forked child makes its own."""
        if self._channels is None or self._channels[0] != os.getpid():
            from bridge.worker.channel import Channels  # noqa: PLC0415 - producers run nothing

            self._channels = (os.getpid(), Channels(self.settings))
        return self._channels[1]

    def takes(self, task: str) -> bool:
        """Whether calls of this task become rows; the others go straight to the broker."""
        if self.only and not _matches(task, self.only):
            return False
        return not _matches(task, self.exclude)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def install(app: Any, *, only: Iterable[str] | None = None, exclude: Iterable[str] | None = None) -> None:
    """Make an application's task calls rows, and its workers report to them. Nothing else in the application changes.

    Repeating it does nothing. It reads neither the application's configuration nor the environment: both may still be set afterwards.

    Args:
        app: a Celery application, before its first task call.
        only: patterns (``mail.*``) of the tasks to take; None takes all.
        exclude: patterns of tasks to leave to the broker.
    """
    if membership(app) is not None:
        return
    app.bridge = Membership(app, tuple(only or ()), tuple(exclude or ()))
    _join_amqp(app)
    app.backend_cls = "bridge.backend:make_backend"
    from bridge.worker import plugin  # noqa: PLC0415 - a producer that never starts a worker still registers it: workers are the same app

    plugin.register(app)


def membership(app: Any) -> Membership | None:
    """What the bridge keeps with this application; None when it has not joined."""
    found = getattr(app, "bridge", None)
    return found if isinstance(found, Membership) else None


def _join_amqp(app: Any) -> None:
    """Mix ours into the application's AMQP class; also into the instance, when there is one already."""
    from bridge.amqp import RowSender  # noqa: PLC0415 - amqp needs this module

    theirs = symbol_by_name(app.amqp_cls)
    mixed = type("BridgeAMQP", (RowSender, theirs), {})
    app.amqp_cls = mixed
    existing = app.__dict__.get("amqp")
    if existing is not None:
        existing.__class__ = mixed
        existing.__dict__.pop("send_task_message", None)
