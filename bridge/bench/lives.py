"""Whole lives of jobs by the functions of the schema alone, without Celery: what they take shows what Postgres does for a job."""

from __future__ import annotations

import json
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from bridge.bench.jobs import NOOP, PAYLOAD, QUEUE, RESULT
from bridge.bench.measure import BenchError

if TYPE_CHECKING:
    from bridge.bench.rig import Rig

__all__ = ["live"]

_PAGE = 500  # jobs that are under way at once: the window's default
_CLAIM = "select c.seq, c.token from bridge.claim(%s, %s, %s, %s) c"
_START = "select t.seq, bridge.start(t.seq, t.token, %s, %s) from unnest(%s::bigint[], %s::uuid[]) t (seq, token)"
_FINISH = """
  select count(*) filter (where bridge.finish(t.seq, t.run, 'succeeded', %s::json)) from unnest(%s::bigint[], %s::uuid[]) t (seq, run)
"""


def live(rig: Rig, jobs: int) -> float:
    """Enqueue, claim, mark, start and finish jobs, 500 at a time over one connection; how many a second.

    Raises:
        BenchError: one of them did not do what it should.
    """
    began = time.perf_counter()
    for at in range(0, jobs, _PAGE):
        count = min(_PAGE, jobs - at)
        rig.enqueue(NOOP, json.dumps([PAYLOAD]), count)
        claimed = _claim(rig, count)
        with rig.control.transaction():  # no tick sees a run of a worker that does not report
            started = rig.control.execute(_START, (uuid.uuid4(), os.getpid(), *map(list, zip(*claimed, strict=True)))).fetchall()
            ended = int(rig.value(_FINISH, json.dumps(RESULT), *map(list, zip(*started, strict=True))))
        if ended != count:
            raise BenchError(f"{ended} of {count} jobs have ended")
    return jobs / (time.perf_counter() - began)


def _claim(rig: Rig, count: int) -> list[tuple[Any, ...]]:
    shipment = uuid.uuid4()
    claimed = rig.control.execute(_CLAIM, (uuid.uuid4(), QUEUE, shipment, count)).fetchall()
    if len(claimed) != count:
        raise BenchError(f"{len(claimed)} of {count} jobs were claimed")
    rig.value("select bridge.mark_published(%s, %s)", shipment, [row[0] for row in claimed])
    return claimed
