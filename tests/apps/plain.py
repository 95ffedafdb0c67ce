"""An application that has never heard of the bridge."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

app = Celery("plain", broker=os.environ.get("BRIDGE_BROKER_URL"))
app.conf.update(broker_connection_retry_on_startup=True, task_default_queue="zero")


@app.task(name="plain.add")
def add(left: int, right: int) -> int:
    return left + right


@app.task(name="plain.spawn")
def spawn() -> str:
    return str(add.delay(1, 2).id)


@app.task(name="plain.mark")
def mark(path: str) -> None:
    with Path(path).open("a") as file:
        file.write("run\n")
