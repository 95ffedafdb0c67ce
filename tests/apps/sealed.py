"""An application that takes pickle, and whose tasks note what they were called with in a table that the bridge knows nothing of."""

from __future__ import annotations

import os
from typing import Any

import psycopg
from celery import Celery

import bridge

TABLE = (
    "create table noted (task_id text not null, task text not null, value text not null, at timestamptz not null default clock_timestamp())"
)

app = Celery("sealed", broker=os.environ.get("BRIDGE_BROKER_URL"), backend=os.environ.get("APP_BACKEND", "bridge://"))
app.conf.update(accept_content=os.environ.get("APP_ACCEPT", "json").split(","), broker_connection_retry_on_startup=True)
app.conf.worker_enable_remote_control = os.environ.get("APP_REMOTE") != "off"
bridge.install(app)


def _write(request: Any, value: Any) -> None:
    with psycopg.connect(os.environ["BRIDGE_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("insert into noted (task_id, task, value) values (%s, %s, %s)", (request.id, request.task, str(value)))


@app.task(name="sealed.note", bind=True)
def note(self: Any, value: Any) -> str:
    """Note the value."""
    _write(self.request, value)
    return str(value)


@app.task(name="sealed.other", bind=True)
def other(self: Any, value: Any) -> None:
    """What nobody enqueues."""
    _write(self.request, value)
