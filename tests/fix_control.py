"""A worker that others share, and applications that steer it: one that has joined the bridge, and one that has never heard of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from fix_servers import wait_until

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack


@pytest.fixture
def steered(bare_stack: Stack) -> Stack:
    """A drainer and a worker of two processes, which consumes queue celery alone; new ones only after a test in which one ended."""
    if not bare_stack.processes or not all(process.alive for process in bare_stack.processes):
        bare_stack.kill_all()
        bare_stack.start_drainer()
        bare_stack.start_worker("apps.kinds", "-Q", "celery", "-E")
    return bare_stack


@pytest.fixture
def joined(bare_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An application of the calling side that has joined."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", bare_stack.dsn)
    app = Celery("caller", broker=bare_stack.broker_url, backend="bridge://", set_as_current=False)
    bridge.install(app)
    yield app
    app.close()
    app.bridge.connections.close()


@pytest.fixture
def stranger(bare_stack: Stack) -> Iterator[Any]:
    """An application without the bridge on the same broker, as a Flower of its own is."""
    app = Celery("stranger", broker=bare_stack.broker_url, set_as_current=False)
    yield app
    app.close()


class Held:
    """A task that has started and runs until it is let go."""

    def __init__(self, app: Any, folder: Path, queue: str = "celery") -> None:
        self.started, self.go = folder / "started", folder / "go"
        self.result = app.send_task("kinds.hold", (str(self.started), str(self.go)), queue=queue)
        self.id = self.result.id
        wait_until(self.started.exists, 30, "the task to start")
