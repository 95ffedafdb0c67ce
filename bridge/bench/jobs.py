"""The tasks that all applications run, and what they carry: 1 KB of arguments, 200 bytes of result."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

__all__ = ["NOOP", "PAYLOAD", "QUEUE", "RESULT", "STAMP", "STAMPS", "read_stamps", "register"]

NOOP = "bench.noop"
STAMP = "bench.stamp"
QUEUE = "celery"
STAMPS = "BENCH_STAMPS"  # names the file that first lines are noted in
# Hash output, so that neither Postgres nor a disk can compress it. As JSON: ["…"] is 1,024 bytes, "…" is 200.
PAYLOAD = hashlib.shake_256(b"arguments").hexdigest(510)
RESULT = hashlib.shake_256(b"result").hexdigest(99)


def register(app: Any, **options: Any) -> None:
    """Give an application the two tasks, with these options."""
    app.task(_noop, name=NOOP, **options)
    app.task(_stamp, name=STAMP, **options)


def _noop(payload: str) -> str:
    del payload
    return RESULT


def _stamp(number: int, payload: str) -> list[int]:
    """Say when the first line ran, by the clock that all processes of a machine share."""
    now = time.monotonic_ns()
    del payload
    if STAMPS in os.environ:
        with Path(os.environ[STAMPS]).open("a") as file:
            file.write(f"{number} {now}\n")
    return [number, now]


def read_stamps(file: Path) -> list[tuple[int, int]]:
    """Number and first line's moment, in nanoseconds, of every run of the second task."""
    if not file.exists():
        return []
    words = (line.split() for line in file.read_text().splitlines())
    return [(int(number), int(moment)) for number, moment in words]
