"""A process of its own that makes jobs: ``python -m bridge.bench.producer ACT COUNT WARM RATE FIRST``.

It makes WARM jobs, says so in a line of JSON, waits for a line, makes COUNT jobs by the clock, and says how long that took.
Numbered jobs begin with FIRST; those of the warm-up are below 0.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any

import psycopg

import bridge
from bridge import settings
from bridge.bench.jobs import NOOP, PAYLOAD, QUEUE, STAMP

__all__ = ["ACTS", "CLIENTS", "main"]

CLIENTS = "BENCH_CLIENTS"  # how many threads, with a connection each, make jobs in the acts of a crowd
Act = Callable[[int, float, int], list[int]]


def _app(name: str) -> Any:
    return importlib.import_module(f"bridge.bench.{name}").app


def _send_task(count: int, _rate: float, _first: int) -> list[int]:
    app = _app("plain")
    for _ in range(count):
        app.send_task(NOOP, args=[PAYLOAD], queue=QUEUE)
    return []


def _delay(app: str) -> Act:
    def make(count: int, _rate: float, _first: int) -> list[int]:
        task = _app(app).tasks[NOOP]
        for _ in range(count):
            task.delay(PAYLOAD)
        return []

    return make


def _single(count: int, _rate: float, _first: int) -> list[int]:
    for _ in range(count):
        bridge.enqueue(NOOP, [PAYLOAD], queue=QUEUE)
    return []


def _transaction(count: int, _rate: float, _first: int) -> list[int]:
    with psycopg.connect(settings.load().require_database()) as connection:
        connection.prepare_threshold = 0
        for _ in range(count):
            bridge.enqueue(NOOP, [PAYLOAD], queue=QUEUE, connection=connection)
    return []


def _within(count: int, _rate: float, _first: int) -> list[int]:
    """Unmodified calls in an open transaction, which joins them; its commit is part of it."""
    task = _app("joined").tasks[NOOP]
    with psycopg.connect(settings.load().require_database()) as connection, bridge.using(connection):
        for _ in range(count):
            task.delay(PAYLOAD)
    return []


def _session(count: int, _rate: float, _first: int) -> list[int]:
    """Unmodified calls in an open session of SQLAlchemy, which joins them."""
    from sqlalchemy import create_engine  # noqa: PLC0415 - for this act alone
    from sqlalchemy.orm import Session  # noqa: PLC0415

    task = _app("joined").tasks[NOOP]
    dsn = settings.load().require_database()
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with Session(engine) as session, session.begin():
        session.connection()  # as its first statement would begin it
        for _ in range(count):
            task.delay(PAYLOAD)
    engine.dispose()
    return []


def _many(count: int, _rate: float, _first: int) -> list[int]:
    bridge.enqueue_many({"task": NOOP, "args": [PAYLOAD], "queue": QUEUE} for _ in range(count))
    return []


def _paced(send: Callable[[int], Any]) -> Act:
    """Send at a steady rate; when each call came back, in nanoseconds of the monotonic clock.

    Jobs shift within their slots, or they would meet every periodic duty, and each other, at the same moment.
    """

    def make(count: int, rate: float, first: int) -> list[int]:
        start, returned = time.monotonic(), []
        for number in range(count):
            due = start + (number + (first + number) * 0.618 % 1) / rate
            time.sleep(max(0.0, due - time.monotonic()))
            send(first + number)
            returned.append(time.monotonic_ns())
        return returned

    return make


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(int(os.environ[CLIENTS]))


def _crowd(call: Callable[[], Any]) -> Act:
    """Many threads call at the same time, as quickly as they can; how long each call took, in nanoseconds."""

    def make(count: int, _rate: float, _first: int) -> list[int]:
        clients = int(os.environ[CLIENTS])
        together = Barrier(clients)

        def work(_: int) -> list[int]:
            together.wait()  # no thread takes the share of another
            took = []
            for _ in range(max(count // clients, 1)):
                began = time.monotonic_ns()
                call()
                took.append(time.monotonic_ns() - began)
            return took

        return [one for took in _threads().map(work, range(clients)) for one in took]

    return make


def _stamp_plain(number: int) -> None:
    _app("plain").tasks[STAMP].delay(number, PAYLOAD)


def _stamp_bridge(number: int) -> None:
    bridge.enqueue(STAMP, [number, PAYLOAD], queue=QUEUE)


def _call_plain() -> None:
    _app("plain").tasks[NOOP].delay(PAYLOAD)


def _call_bridge() -> None:
    bridge.enqueue(NOOP, [PAYLOAD], queue=QUEUE)


ACTS: dict[str, Act] = {
    "celery.send_task": _send_task, "celery.delay": _delay("plain"), "celery.paced": _paced(_stamp_plain),
    "celery.crowd": _crowd(_call_plain),
    "bridge.delay": _delay("joined"), "bridge.within": _within, "bridge.session": _session, "bridge.single": _single,
    "bridge.transaction": _transaction, "bridge.many": _many, "bridge.paced": _paced(_stamp_bridge), "bridge.crowd": _crowd(_call_bridge),
}  # fmt: skip


def main() -> None:
    """Do one act, as the arguments say."""
    act, count, warm, rate, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
    ACTS[act](warm, rate or 1.0, -warm)  # of none, the application is loaded all the same
    _say(ready=True)
    sys.stdin.readline()
    start, used = time.perf_counter(), time.process_time()
    returned = ACTS[act](count, rate, first)
    _say(seconds=time.perf_counter() - start, cpu=time.process_time() - used, returned=returned)
    sys.stdin.readline()


def _say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
