"""Small tasks that travel in bundles, each with a fate of its own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker.control import inspect_command

import bridge

app = Celery("bundled", broker=os.environ.get("BRIDGE_BROKER_URL"), backend="bridge://")
app.conf.update(broker_connection_retry_on_startup=True)
bridge.install(app)
FOLDER = Path(os.environ.get("BUNDLED_FOLDER", "."))


@inspect_command()
def timers(state: Any) -> int:
    """How many the worker's main process keeps, those among them that were cancelled."""
    return len(state.consumer.timer)


class MuteError(Exception):
    """It cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


@app.task(name="bundled.add", bridge_bundle=50)
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="bundled.alone")
def alone(x: int) -> int:
    return x


@app.task(name="bundled.limited", bridge_bundle=50, time_limit=60)
def limited(x: int) -> int:
    return x


@app.task(name="bundled.fate", bind=True, bridge_bundle=50, max_retries=3)
def fate(self: Any, number: int, kind: str = "well") -> Any:
    """What becomes of it is said by ``kind``; the process and the bundle-mates are to be found in the result."""
    if kind == "raise":
        raise ValueError(f"broken on purpose {number}")
    if kind == "mute":
        raise MuteError
    if kind == "retry" and not self.request.retries:
        raise self.retry(countdown=0.1)
    if kind == "progress":
        bridge.progress(0.5)
    if kind == "unserializable":
        return object()
    return [number, os.getpid(), self.request.id]


@app.task(name="bundled.soft", bridge_bundle=50, soft_time_limit=1)
def soft(seconds: float) -> str:
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "stopped softly"
    return "in time"


@app.task(name="bundled.hold", bridge_bundle=50)
def hold(number: int) -> int:
    """Take as long as a file of its number is there; say before that it has begun."""
    (FOLDER / f"begun-{number}").write_text(str(os.getpid()))
    while (FOLDER / f"hold-{number}").exists():
        time.sleep(0.02)
    return number


@app.task(name="bundled.last", bridge_bundle=50)
def last(number: int, dies: bool) -> int:  # noqa: FBT001
    """Be quick, or end the process at once, before anything of those before it can have been sent."""
    with (FOLDER / "last").open("a") as file:
        file.write(f"{number} ")
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@signals.task_prerun.connect
def _note(task: Any = None, task_id: str = "", **_: Any) -> None:
    if task.name == "bundled.fate":
        with (FOLDER / "prerun").open("a") as file:
            file.write(f"{task_id}\n")
