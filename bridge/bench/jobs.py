"""The tasks that both applications run, and what they carry: 1 KB of arguments, 200 bytes of result."""

from __future__ import annotations

import hashlib
import time
from typing import Any

__all__ = ["NOOP", "PAYLOAD", "QUEUE", "RESULT", "STAMP", "register"]

NOOP = "bench.noop"
STAMP = "bench.stamp"
QUEUE = "celery"
# Hash output, so that neither Postgres nor a disk can compress it. As JSON: ["…"] is 1,024 bytes, "…" is 200.
PAYLOAD = hashlib.shake_256(b"arguments").hexdigest(510)
RESULT = hashlib.shake_256(b"result").hexdigest(99)


def register(app: Any) -> None:
    """Give an application the two tasks."""
    app.task(_noop, name=NOOP)
    app.task(_stamp, name=STAMP)


def _noop(payload: str) -> str:
    del payload
    return RESULT


def _stamp(number: int, payload: str) -> list[int]:
    """Say when the first line ran, by the clock that all processes of a machine share."""
    now = time.monotonic_ns()
    del payload
    return [number, now]
