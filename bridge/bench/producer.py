"""A process of its own that makes jobs: ``python -m bridge.bench.producer ACT COUNT WARM RATE``.

It makes WARM jobs, says so in a line of JSON, waits for a line, makes COUNT jobs by the clock, and says how long that took.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import uuid
from itertools import islice
from typing import TYPE_CHECKING, Any

import psycopg

import bridge
from bridge import settings
from bridge.bench.jobs import NOOP, PAYLOAD, QUEUE, STAMP

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ACTS", "main"]

_BULK = 1000  # messages an LPUSH


def _app(name: str) -> Any:
    return importlib.import_module(f"bridge.bench.{name}").app


def _send_task(count: int, _rate: float) -> list[int]:
    app = _app("plain")
    for _ in range(count):
        app.send_task(NOOP, args=[PAYLOAD], queue=QUEUE)
    return []


def _delay(app: str) -> Callable[[int, float], list[int]]:
    def make(count: int, _rate: float) -> list[int]:
        task = _app(app).tasks[NOOP]
        for _ in range(count):
            task.delay(PAYLOAD)
        return []

    return make


def _fill(count: int, _rate: float) -> list[int]:
    """Copies of one real message with ids of their own: for queues whose filling is not measured."""
    app = _app("plain")
    identity = app.send_task(NOOP, args=[PAYLOAD], queue=QUEUE).id
    with app.connection_for_write() as connection:
        client = connection.default_channel.client
        text = client.rpop(QUEUE).decode()
        tag = json.loads(text)["properties"]["delivery_tag"]
        copies = (text.replace(identity, str(uuid.uuid4())).replace(tag, str(uuid.uuid4())) for _ in range(count))
        while page := list(islice(copies, _BULK)):
            client.lpush(QUEUE, *page)
    return []


def _single(count: int, _rate: float) -> list[int]:
    for _ in range(count):
        bridge.enqueue(NOOP, [PAYLOAD], queue=QUEUE)
    return []


def _transaction(count: int, _rate: float) -> list[int]:
    with psycopg.connect(settings.load().require_database()) as connection:
        connection.prepare_threshold = 0
        for _ in range(count):
            bridge.enqueue(NOOP, [PAYLOAD], queue=QUEUE, connection=connection)
    return []


def _many(count: int, _rate: float) -> list[int]:
    bridge.enqueue_many({"task": NOOP, "args": [PAYLOAD], "queue": QUEUE} for _ in range(count))
    return []


def _paced(send: Callable[[int], Any]) -> Callable[[int, float], list[int]]:
    """Send at a steady rate; when each call came back, in nanoseconds of the monotonic clock.

    Jobs shift within their slots, or they would meet every periodic duty at the same moment.
    """

    def make(count: int, rate: float) -> list[int]:
        start, returned = time.monotonic(), []
        for number in range(count):
            due = start + (number + number * 0.618 % 1) / rate
            time.sleep(max(0.0, due - time.monotonic()))
            send(number)
            returned.append(time.monotonic_ns())
        return returned

    return make


def _stamp_plain(number: int) -> None:
    _app("plain").tasks[STAMP].delay(number, PAYLOAD)


def _stamp_bridge(number: int) -> None:
    bridge.enqueue(STAMP, [number, PAYLOAD], queue=QUEUE)


ACTS: dict[str, Callable[[int, float], list[int]]] = {
    "celery.fill": _fill, "celery.send_task": _send_task, "celery.delay": _delay("plain"), "celery.paced": _paced(_stamp_plain),
    "bridge.delay": _delay("joined"), "bridge.single": _single, "bridge.transaction": _transaction, "bridge.many": _many,
    "bridge.paced": _paced(_stamp_bridge),
}  # fmt: skip


def main() -> None:
    """Do one act, as the arguments say."""
    act, count, warm, rate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    if warm:
        ACTS[act](warm, rate or 1.0)
    _say(ready=True)
    sys.stdin.readline()
    start, used = time.perf_counter(), time.process_time()
    returned = ACTS[act](count, rate)
    _say(seconds=time.perf_counter() - start, cpu=time.process_time() - used, returned=returned)
    sys.stdin.readline()


def _say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
