"""Tasks that write the start and the end of every run into a table that the bridge knows nothing of."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from celery import Celery

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLE = """
create table ledger (
  run uuid not null, task_id text not null, event text not null, pid integer not null, at timestamptz not null default clock_timestamp()
)"""

app = Celery("ledger", broker=os.environ.get("BRIDGE_BROKER_URL"), backend="bridge://")
app.conf.update(worker_prefetch_multiplier=4, broker_connection_retry_on_startup=True, task_acks_late=False)
bridge.install(app)


@cache
def _connection(_pid: int, _tries: int) -> psycopg.Connection[Any]:
    # A test that loses the bridge's database keeps the ledger elsewhere.
    dsn = os.environ.get("LEDGER_DATABASE_URL") or os.environ["BRIDGE_DATABASE_URL"]
    return psycopg.connect(dsn, autocommit=True, connect_timeout=5)


def _note(request: Any, event: str) -> None:
    """Write one line; where Postgres is away, on a new connection when it is back."""
    entry = "insert into ledger (run, task_id, event, pid) values (%s, %s, %s, %s)"
    for tries in count():
        try:
            _connection(os.getpid(), tries).execute(entry, (request.bridge_run.id, request.id, event, os.getpid()))
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return


@contextmanager
def noted(request: Any) -> Iterator[None]:
    """Write the start before, and the end after, however it ends."""
    _note(request, "start")
    try:
        yield
    finally:
        _note(request, "end")


@app.task(name="ledger.work", bind=True)
def work(self: Any, number: int, seconds: float = 0.0) -> int:
    """Take a while, give back twice the number."""
    with noted(self.request):
        time.sleep(seconds)
        return number * 2


@app.task(name="ledger.fail", bind=True)
def fail(self: Any, words: str) -> None:
    """Fail."""
    with noted(self.request):
        raise ValueError(words)


@app.task(name="ledger.divide", bind=True)
def divide(self: Any, number: int) -> float:
    """Divide 12 by a number: by 0 this fails until the arguments are others."""
    with noted(self.request):
        return 12 / number


def hold_until(task: Any, path: str) -> int:
    """Go on until there is a file at this path."""
    with noted(task.request):
        while not Path(path).exists():
            time.sleep(0.05)
        return 1


@app.task(name="ledger.hold", bind=True)
def hold(self: Any, until: str) -> int:
    """Go on until there is a file at this path."""
    return hold_until(self, until)


@app.task(name="ledger.complete", bind=True)
def complete(self: Any, first: str, then: str) -> int:
    """Once there is a file at one path, write an effect and the end of the job in one transaction; return when there is one at another."""
    with noted(self.request):
        while not Path(first).exists():
            time.sleep(0.05)
        with psycopg.connect(os.environ["BRIDGE_DATABASE_URL"], connect_timeout=5) as connection:
            connection.execute("insert into effect (run) values (%s)", (self.request.bridge_run.id,))
            bridge.complete(connection, 1)
        _note(self.request, "completed")
        while not Path(then).exists():
            time.sleep(0.05)
        return 1


@app.task(name="ledger.call", bind=True)
def call(self: Any, relay: str) -> None:
    """Fail while there is no file at this path."""
    with noted(self.request):
        if not Path(relay).exists():
            raise ConnectionError("the relay is down")
