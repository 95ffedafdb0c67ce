"""Tasks of every kind, for programs that log in with no more rights than they need; one uses a secret."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from celery import Celery, Task, chord

import bridge

app = Celery("guarded", broker=os.environ.get("BRIDGE_BROKER_URL"), backend="bridge://")
app.conf.update(worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)
bridge.install(app)


@app.task(name="guarded.add")
def add(left: int, right: int) -> int:
    return left + right


@app.task(name="guarded.total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="guarded.flaky", bind=True, max_retries=2, default_retry_delay=0)
def flaky(self: Task) -> int:
    if self.request.retries == 0:
        raise self.retry(exc=ValueError("not yet"))
    return int(self.request.retries)


@app.task(name="guarded.talk")
def talk() -> Any:
    bridge.progress(0.5, "half")
    bridge.log("said")
    bridge.save_checkpoint({"at": 1})
    chord([add.s(1, 2), add.s(3, 4)])(total.s())
    return bridge.checkpoint()


@app.task(name="guarded.sync")
def sync(api_key: Any) -> str:
    """Use a secret: its digest proves that it came."""
    return hashlib.sha256(bridge.secret(api_key).encode()).hexdigest()
