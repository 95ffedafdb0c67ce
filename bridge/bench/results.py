"""Results of both sides: counting them cheaply while jobs run, and every single one afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from bridge.bench.jobs import NOOP, QUEUE, STAMP
from bridge.bench.measure import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bridge.bench.rig import Rig

__all__ = ["check_get", "check_rows", "plain_count", "plain_results", "row_count", "row_ends"]

_PAGE = 1000
_SAMPLE = 50  # results read back through AsyncResult.get()
_GET = """
import importlib, sys
app = importlib.import_module("bridge.bench." + sys.argv[1]).app
for identity in sys.argv[2:]:
    assert app.AsyncResult(identity).get(timeout=10), identity
"""
_LIVE = "select (select count(*) from bridge.ready) + (select count(*) from bridge.inflight) + (select count(*) from bridge.held)"
_ROWS = """
  select (select count(*) from bridge.finished f where f.task = any (%s) and f.status = 'succeeded' and f.attempts = 1 and f.losses = 0),
    (select count(distinct f.id) from bridge.finished f where f.task = any (%s)),
    (select count(*) from bridge.job j where j.task = any (%s)), (select count(*) from bridge.inflight),
    (select count(*) from bridge.attempt)
"""
_ENDS = """
  select extract(epoch from percentile_disc(0.1) within group (order by f.finished_at)), extract(epoch from max(f.finished_at))
  from bridge.finished f where f.task = any (%s)
"""
_TASKS = [NOOP, STAMP]


def plain_count(rig: Rig) -> Callable[[], int]:
    """How many results plain Celery has written; they are alone in their database."""
    return lambda: int(rig.results.dbsize())


def row_count(rig: Rig, jobs: int) -> Callable[[], int]:
    """How many jobs have ended: those that are in none of the places of live jobs, which are small and get smaller."""
    return lambda: jobs - int(rig.value(_LIVE))


def plain_results(rig: Rig, jobs: int) -> list[dict[str, Any]]:
    """Every result of plain Celery.

    Raises:
        BenchError: one is missing or is no success, or messages are left.
    """
    keys = list(rig.results.scan_iter(match="celery-task-meta-*", count=_PAGE))
    pages = (rig.results.mget(keys[at : at + _PAGE]) for at in range(0, len(keys), _PAGE))
    metas: list[dict[str, Any]] = [json.loads(text) for page in pages for text in page if text is not None]
    good = sum(meta["status"] == "SUCCESS" for meta in metas)
    left = int(rig.broker.llen(QUEUE))
    if good != jobs or left:
        raise BenchError(f"celery has {good} good results of {jobs} jobs, and {left} messages are left")
    return metas


def check_rows(rig: Rig, jobs: int) -> None:
    """See that every job ended well, after one attempt, and nothing else is there.

    Raises:
        BenchError: it is not so.
    """
    found = rig.control.execute(_ROWS.encode(), (_TASKS,) * 3).fetchone()
    if found != (jobs, jobs, 0, 0, 0):
        words = dict(zip(("succeeded at first", "ended", "live", "in flight", "other attempts"), found or (), strict=False))
        raise BenchError(f"of {jobs} jobs: {', '.join(f'{count} {word}' for word, count in words.items())}")


def row_ends(rig: Rig) -> tuple[float, float]:
    """When a tenth of the rows, and when all had ended."""
    begun, last = rig.control.execute(_ENDS, (_TASKS,)).fetchone() or (0, 0)
    return float(begun or 0), float(last or 0)


def check_get(app: str, environment: Mapping[str, str], ids: list[str]) -> None:
    """Read some results back as an application does.

    Raises:
        BenchError: one of them cannot be had.
    """
    command = [sys.executable, "-c", _GET, app, *ids[:: max(len(ids) // _SAMPLE, 1)]]
    done = subprocess.run(command, env=environment, cwd=os.getcwd(), check=False, capture_output=True, text=True)  # noqa: S603, PTH109
    if done.returncode != 0:
        raise BenchError(f"{app} does not give its results: {done.stderr.strip()[-500:]}")
