"""An application that knows nothing of the bridge, and joins it by CELERY_LOADER alone: the same code with and without.

Every run writes its start and its end into a table that the bridge knows nothing of. Run as a program it calls tasks until it gets
SIGTERM, and prints the id of each.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import cache
from itertools import count
from typing import Any

import psycopg
from celery import Celery

TABLE = "create table moves (task_id text not null, event text not null, joined boolean not null)"
HELD = 8  # of so many calls one has a countdown, which a worker holds

app = Celery("moving", broker=os.environ.get("BRIDGE_BROKER_URL"), backend=os.environ.get("BRIDGE_BROKER_URL"))
app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=2)


@cache
def _connection(_pid: int) -> psycopg.Connection[Any]:
    return psycopg.connect(os.environ["BRIDGE_DATABASE_URL"], autocommit=True)


def _note(request: Any, event: str) -> None:
    values = (request.id, event, request.get("bridge_run") is not None)
    _connection(os.getpid()).execute("insert into moves (task_id, event, joined) values (%s, %s, %s)", values)


@app.task(name="moving.work", bind=True)
def work(self: Any, number: int, seconds: float = 0.05) -> int:
    """Take a while, give back twice the number."""
    _note(self.request, "start")
    time.sleep(seconds)
    _note(self.request, "end")
    return number * 2


def produce(pause: float) -> None:
    """Call the task again and again until somebody says stop."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    for number in count():
        result = work.apply_async([number], countdown=2 if number % HELD == 0 else None)
        print(result.id, flush=True)  # noqa: T201 - who started us reads it
        if stop.wait(pause):
            return


if __name__ == "__main__":
    produce(float(sys.argv[1]))
