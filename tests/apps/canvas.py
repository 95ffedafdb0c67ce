"""Tasks to put together: what chains, groups and their like do to their parts."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from celery import Celery, Task, chain, group

import bridge

app = Celery("canvas", broker=os.environ.get("BRIDGE_BROKER_URL"), backend="bridge://")
bridge.install(app)


@app.task(name="canvas.add")
def add(left: int, right: int) -> int:
    return left + right


@app.task(name="canvas.total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="canvas.fail")
def fail(words: str) -> NoReturn:
    raise ValueError(words)


@app.task(name="canvas.sorry")
def sorry(failed: str) -> str:
    """An errback of one argument is a task of its own; one of three is called by the run that failed."""
    return f"sorry for {failed}"


@app.task(name="canvas.delegate", bind=True)
def delegate(self: Task, left: int, right: int) -> NoReturn:
    raise self.replace(add.s(left, right))


@app.task(name="canvas.spread", bind=True)
def spread(self: Task, numbers: list[int]) -> NoReturn:
    raise self.replace(group(add.s(number, 100) for number in numbers))


@app.task(name="canvas.in_steps", bind=True)
def in_steps(self: Task, number: int) -> NoReturn:
    raise self.replace(chain(add.s(number, 1), group(add.s(10), add.s(20)), total.s(), add.s(1000)))


@app.task(name="canvas.hopeless", bind=True)
def hopeless(self: Task) -> NoReturn:
    raise self.replace(group(add.s(1, 1), fail.s("one of them")))


@app.task(name="canvas.grow", bind=True)
def grow(self: Task, number: int) -> int:
    """One more part for the chord that this is a part of."""
    self.add_to_chord(add.s(number, 1000))
    return number


@app.task(name="canvas.stamps", bind=True)
def stamps(self: Task) -> dict[str, Any]:
    return dict(self.request.stamps or {})
