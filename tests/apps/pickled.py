"""An application that sends everything as pickles; with BRIDGE_TEST_ALONE=1 it has not joined."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

import bridge

app = Celery("pickled", broker=os.environ.get("BRIDGE_BROKER_URL"))
app.conf.update(
    accept_content=["pickle", "json"], task_serializer="pickle", result_serializer="pickle", broker_connection_retry_on_startup=True
)
if "BRIDGE_TEST_ALONE" not in os.environ:
    bridge.install(app)


@app.task(name="pickled.echo")
def echo(value: Any) -> Any:
    return value
