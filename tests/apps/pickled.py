"""An application that sends and keeps everything as pickles; with BRIDGE_TEST_ALONE=1 it has not joined."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

import bridge

app = Celery("pickled", broker=os.environ.get("BRIDGE_BROKER_URL"), backend=os.environ.get("BRIDGE_TEST_RESULT_BACKEND"))
app.conf.update(
    accept_content=["pickle", "json"], task_serializer="pickle", result_serializer="pickle", broker_connection_retry_on_startup=True
)
if "BRIDGE_TEST_ALONE" not in os.environ:
    bridge.install(app)


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@app.task(name="pickled.echo")
def echo(value: Any) -> Any:
    return value


@app.task(name="pickled.deep")
def deep(depth: int) -> list[Any]:
    return nested(depth)


@app.task(name="pickled.large")
def large(size: int) -> bytes:
    return b"\x00\xff" * (size // 2)
