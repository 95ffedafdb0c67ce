"""An ordinary Celery application. Its tasks write the start and the end of every run to the witness, past everything that may break."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import psycopg
from celery import Celery

import bridge
from laboratory import children, main_process
from laboratory.ledger import SLOT, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

EFFECTS = "create table effect (lab bigint not null, run uuid not null, at timestamptz not null default clock_timestamp())"
QUEUES = ("celery", "second")

app = Celery("laboratory", broker=os.environ.get("BRIDGE_BROKER_URL"), backend="bridge://")
app.conf.update(worker_prefetch_multiplier=4, broker_connection_retry_on_startup=True, task_default_queue="celery")
bridge.install(app)
if os.environ.get(SLOT, "").startswith("worker"):
    children.wrap()
    main_process.wrap()


@cache
def _ledger() -> Ledger:
    return Ledger.here()


@contextmanager
def noted(task: Any, lab: int) -> Iterator[None]:
    """Write the start before, and how it ended after."""
    request = task.request
    write = lambda event: _ledger().note(lab, request.id, request.bridge_run, event)  # noqa: E731
    write("start")
    try:
        yield
    except BaseException:
        write("raised")
        raise
    write("end")


@app.task(name="lab.work", bind=True)
def work(self: Any, *_before: Any, lab: int, seconds: float = 0.0) -> int:
    """Take a while; give back the number. What a chain hands over is of no interest."""
    with noted(self, lab):
        time.sleep(seconds)
        return lab


@app.task(name="lab.limited", bind=True)
def limited(self: Any, *, lab: int, seconds: float = 0.0) -> int:
    """As work; a limit is about it."""
    with noted(self, lab):
        time.sleep(seconds)
        return lab


@app.task(name="lab.rated", bind=True)
def rated(self: Any, *, lab: int) -> int:
    """As work; a limit is about how many begin in a time."""
    with noted(self, lab):
        return lab


@app.task(name="lab.fail", bind=True)
def fail(self: Any, *, lab: int) -> None:
    """Fail each time."""
    with noted(self, lab):
        raise ValueError(f"broken on purpose {lab}")


@app.task(name="lab.flaky", bind=True)
def flaky(self: Any, *, lab: int, failures: int) -> int:
    """Fail so many attempts, then succeed; the bridge's own retries."""
    failed = _ledger().one("select count(*) from event where lab = %s and event = 'raised'", (lab,))
    with noted(self, lab):
        if failed < failures:
            raise ConnectionError(f"failure {failed + 1} of {lab}")
        return lab


@app.task(name="lab.again", bind=True, max_retries=5)
def again(self: Any, *, lab: int, retries: int) -> int:
    """Ask for a further attempt so many times, as Celery's users do."""
    with noted(self, lab):
        if self.request.retries < retries:
            raise self.retry(countdown=0.2)
        return lab


@app.task(name="lab.transfer", bind=True)
def transfer(self: Any, *, lab: int, seconds: float = 0.0) -> int:
    """Write an effect and the end of the job in one transaction."""
    with noted(self, lab):
        time.sleep(seconds)
        with psycopg.connect(os.environ["BRIDGE_DATABASE_URL"], connect_timeout=5) as connection:
            # When this process is cut off or dies unnoticed, the server must not hold the job's row for ever.
            connection.execute("set local idle_in_transaction_session_timeout = '10s'")
            connection.execute("insert into effect (lab, run) values (%s, %s)", (lab, self.request.bridge_run.id))
            return bridge.complete(connection, lab)
