"""Tasks whose results, errors and children are looked at by name."""

from __future__ import annotations

import datetime as dt
import os
from typing import Any, NoReturn

from celery import Celery, Task, chain, group

import bridge

app = Celery("results", broker=os.environ.get("BRIDGE_BROKER_URL"), backend=os.environ.get("BRIDGE_TEST_RESULT_BACKEND", "bridge://"))
app.conf.update(
    broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1, accept_content=["json", "pickle"],
    result_serializer=os.environ.get("BRIDGE_TEST_RESULT_SERIALIZER", "json"),
    result_expires=float(os.environ.get("BRIDGE_TEST_RESULT_EXPIRES", "86400")),
)  # fmt: skip
bridge.install(app)


class OddError(Exception):
    """Its constructor cannot be called with the arguments that it keeps, so neither JSON nor pickle rebuild it."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class NarrowError(ValueError):
    """Likewise, below a class that can be rebuilt."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


@app.task(name="results.add")
def add(left: Any, right: Any) -> Any:
    return left + right


@app.task(name="results.total")
def total(numbers: list[Any]) -> Any:
    return sum(numbers)


@app.task(name="results.fail")
def fail(kind: str) -> NoReturn:
    raise {
        "plain": KeyError("plain"), "odd": OddError(7, detail="seven"), "narrow": NarrowError(1, 2), "nan": ValueError(float("nan")),
    }[kind]  # fmt: skip


@app.task(name="results.dated")
def dated() -> dict[str, Any]:
    return {"day": dt.date(2026, 2, 3), "many": {1, 2} if app.conf.result_serializer == "pickle" else [1, 2]}


@app.task(name="results.fan")
def fan(count: int) -> None:
    group(double.s(number) for number in range(count)).apply_async()
    chain(add.s(1, 2), add.s(10)).apply_async()


@app.task(name="results.double")
def double(number: int) -> int:
    return 2 * number


@app.task(name="results.again", bind=True, max_retries=1)
def again(self: Task, seconds: float) -> str:
    if not self.request.retries:
        raise self.retry(exc=NarrowError(2, 3), countdown=seconds)
    return "second time"


@app.task(name="results.speak_for", bind=True)
def speak_for(self: Task, task_id: str) -> None:
    self.update_state(task_id=task_id, state="HALFWAY", meta={"by": self.request.id})


@app.task(name="results.aside", bridge=False)
def aside(number: int) -> int:
    """Goes straight to the broker: there is no row."""
    if number < 0:
        raise NarrowError(number, 0)
    return number


@app.task(name="results.boast", bind=True)
def boast(self: Task, go: str) -> str:
    self.update_state(state="COOKING", meta={"minutes": 3})
    while not os.path.exists(go):  # noqa: PTH110 - nothing but a look
        pass
    return "cooked"
