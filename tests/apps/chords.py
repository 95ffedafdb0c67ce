"""Parts and bodies of chords."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task, chain, chord, group

import bridge

app = Celery("chords", broker=os.environ.get("BRIDGE_BROKER_URL"), backend=os.environ.get("BRIDGE_TEST_RESULT_BACKEND", "bridge://"))
app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1, accept_content=["json", "pickle"])
bridge.install(app)


@app.task(name="chords.give")
def give(value: Any) -> Any:
    return value


@app.task(name="chords.whoami")
def whoami() -> int:
    return os.getpid()


@app.task(name="chords.more")
def more(value: Any, by: int) -> Any:
    return value + by


@app.task(name="chords.quiet", ignore_result=True)
def quiet(value: Any) -> Any:
    return value


@app.task(name="chords.aside", bridge=False)
def aside(value: Any) -> Any:
    return value


@app.task(name="chords.flaky", bind=True, max_retries=2)
def flaky(self: Task, value: Any) -> Any:
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return value


@app.task(name="chords.fail")
def fail(words: str) -> None:
    raise ValueError(words)


@app.task(name="chords.sleep")
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@app.task(name="chords.grow", bind=True)
def grow(self: Task, value: int) -> int:
    if value:
        self.add_to_chord(grow.s(value - 1))
    return value


@app.task(name="chords.stand_in", bind=True)
def stand_in(self: Task, kind: str) -> Any:
    canvas = {
        "chain": chain(give.s(1), more.s(1)), "group": group(give.s(1), give.s(2)),
        "chord": chord([give.s(1), give.s(2)], collect.s()), "failing": chain(fail.s("inside"), more.s(1)),
    }  # fmt: skip
    raise self.replace(canvas[kind])


@app.task(name="chords.collect")
def collect(values: Any) -> Any:
    return values


@app.task(name="chords.gather_and_mark")
def gather_and_mark(values: Any, marks: str) -> Any:
    with Path(marks).open("a") as file:
        file.write("body\n")
    return values


@app.task(name="chords.note")
def note(task_id: str, marks: str) -> None:
    """An errback of the old kind: a task of its own."""
    with Path(marks).open("a") as file:
        file.write(f"{task_id}\n")


@app.task(name="chords.spawn")
def spawn(numbers: list[int]) -> str:
    return str(chord(group(give.s(number) for number in numbers), collect.s()).apply_async().id)
