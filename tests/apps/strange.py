"""A task that gives or raises what hardly anybody would, by name."""

from __future__ import annotations

import os
from decimal import Decimal
from typing import Any, NoReturn

from celery import Celery

import bridge

app = Celery("strange", broker=os.environ.get("BRIDGE_BROKER_URL"), backend=os.environ.get("BRIDGE_TEST_RESULT_BACKEND", "bridge://"))
app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1, result_extended=True)
bridge.install(app)

HELD: list[Any] = []
HELD.append(HELD)


class MuteError(Exception):
    """It cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __str__(self) -> str:
        raise RuntimeError("no str")


class HeavyError(Exception):
    """It cannot be pickled."""

    def __reduce__(self) -> NoReturn:
        raise RuntimeError("no pickle")


class SlyError(Exception):
    """Its arguments cannot be read."""

    args = property(lambda _: 1 / 0)  # type: ignore[assignment]


class MuteValue:
    """Nor can this."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Swapped(dict[str, Any]):
    """A mapping that breaks when it is read."""

    def items(self) -> NoReturn:  # type: ignore[override]
        raise KeyError("items")


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def deep(depth: int) -> NoReturn:
    """A traceback of many lines."""
    if depth:
        deep(depth - 1)
    raise ValueError("deep")


GIVEN = {
    "nul": lambda: {"a\x00b": "\x00"}, "surrogate": lambda: {"\ud800": ["\udfff\ud800"]},
    "nan": lambda: [float("nan"), float("inf"), -float("inf")], "bytes": lambda: b"\x00\xff", "set": lambda: {1, 2},
    "decimal": lambda: Decimal("NaN"), "keys": lambda: {1: 2, None: 3, (1, 2): 4}, "numbered": lambda: {1: 2, None: 3, 1.5: 4},
    "object": object, "mute": MuteValue, "held": lambda: HELD, "deep": lambda: nested(10_000), "fairly_deep": lambda: nested(900),
    "generator": lambda: (n for n in [1]), "huge": lambda: "x" * (50 << 20), "large_number": lambda: 10**5000, "swapped": Swapped,
    "exception": lambda: ValueError("given"), "type": lambda: int, "tuple": lambda: ("a", 1), "nothing": lambda: None,
    "escaped": lambda: "\\u0000 \\ud800 NaN", "wide": lambda: {str(n): n for n in range(100_000)}, "mute_list": lambda: [MuteValue()],
}  # fmt: skip
RAISED = {
    "mute": MuteError, "heavy": lambda: HeavyError("x"), "sly": lambda: SlyError("x"), "long": lambda: ValueError("x" * (5 << 20)),
    "nul": lambda: ValueError("\x00\ud800"), "held": lambda: ValueError(HELD), "nested": lambda: ValueError(nested(10_000)),
    "object": lambda: ValueError(MuteValue()), "bytes": lambda: ValueError(b"\xff"), "lambda": lambda: ValueError(lambda: 1),
    "chained": lambda: chained(200), "many": lambda: ExceptionGroup("many", [ValueError(n) for n in range(1000)]),
    "recursion": lambda: None, "deep": lambda: deep(900), "dynamic": lambda: type("a\x00\ud800", (Exception,), {})("x"),
    "large_number": lambda: ValueError(10**5000), "base": lambda: KeyboardInterrupt("x"),
}  # fmt: skip


def chained(count: int) -> Exception:
    """An error with many causes."""
    error: Exception = ValueError("first")
    for number in range(count):
        new = ValueError(number)
        new.__cause__ = error
        error = new
    return error


@app.task(name="strange.give")
def give(name: str) -> Any:
    return GIVEN[name]()


@app.task(name="strange.throw")
def throw(name: str) -> NoReturn:
    if name == "recursion":
        throw(name)
    error = RAISED[name]()  # type: ignore[no-untyped-call]
    raise error


@app.task(name="strange.say")
def say() -> str:
    for text in ("\x00", "\ud800", "x" * 100_000, "\n"):
        bridge.log(text)
        bridge.progress(0.5, text)
    bridge.log(7)  # type: ignore[arg-type]
    bridge.save_checkpoint({"a": ["\x00", "\ud800"]})
    return "said"
