"""Tasks that fail in several ways, and write their runs into the table of apps.ledger."""

from __future__ import annotations

import os
import time
from typing import Any

import psycopg
from apps.ledger import app, noted

__all__ = ["Unhappy", "app"]


class Unhappy(OSError):  # noqa: N818 - a name of our own
    """An error of our own, with a class above it."""


def starts(request: Any) -> int:
    """How many runs of this job have started, this one among them."""
    with psycopg.connect(os.environ["BRIDGE_DATABASE_URL"], autocommit=True) as connection:
        row = connection.execute("select count(*) from ledger where task_id = %s and event = 'start'", (request.id,)).fetchone()
    return int(row[0]) if row else 0


@app.task(name="retried.flaky", bind=True)
def flaky(self: Any, failures: int = 2) -> int:
    """Fail so often, then give back how often it ran."""
    with noted(self.request):
        ran = starts(self.request)
        if ran <= failures:
            raise Unhappy(ran)
        return ran


@app.task(name="retried.broken", bind=True)
def broken(self: Any) -> None:
    """Fail in a way that no further attempt mends."""
    with noted(self.request):
        raise ValueError("broken")


@app.task(name="retried.leaves", bind=True)
def leaves(self: Any) -> int:
    """Take the process along in the first run."""
    with noted(self.request):
        ran = starts(self.request)
        if ran == 1:
            os._exit(9)
        return ran


@app.task(name="retried.asks", bind=True, max_retries=2, default_retry_delay=0)
def asks(self: Any) -> int:
    """Ask for a further attempt twice, as Celery's tasks do, then fail."""
    with noted(self.request):
        raise self.retry(exc=Unhappy("asked"))


@app.task(name="retried.sleeps", bind=True)
def sleeps(self: Any, seconds: float = 600.0) -> str:
    """Take long."""
    with noted(self.request):
        time.sleep(seconds)
        return "slept"


@app.task(name="retried.asked_for", bind=True, bridge={"max_attempts": 2, "backoff": 0, "never_on": [ValueError], "deadline": 3600})
def asked_for(self: Any, kind: str) -> None:
    """Fail with an error that its option bridge names, or with another."""
    with noted(self.request):
        raise ValueError(kind) if kind == "value" else Unhappy(kind)
