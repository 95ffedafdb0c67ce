"""How soon an urgent job begins behind a million others that are ready."""

from __future__ import annotations

import json
import time
from statistics import median
from typing import TYPE_CHECKING

from bridge.bench.jobs import NOOP, PAYLOAD, QUEUE, STAMP
from bridge.bench.measure import BenchError, Sample, Target
from bridge.bench.rounds import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.local.process import Process

__all__ = ["Urgent"]

_PAGE = 50_000
_URGENT = 20  # jobs, one after the other
# Straight into the tables, as no user may: what counts is that the rows are there.
_FILL = """
  with made as (
    insert into bridge.job (id, task, queue, rank, args, kwargs, size, max_attempts, run_at, created_at, updated_at)
    select bridge.new_id(), %s, %s, 9, %s, '{}', 1026, 3, now(), now(), now() from generate_series(1, %s) returning seq, queue, rank, size
  )
  insert into bridge.ready (queue, rank, seq, size) select m.queue, m.rank, m.seq, m.size from made m order by m.seq
"""
_ENQUEUE = "select bridge.enqueue(%s, jsonb_build_array(%s::integer, %s::text), queue => %s, priority => 9)"


class Urgent(Scenario):
    """Milliseconds through the window."""

    name = "urgent"
    about = (
        "milliseconds from the return of the commit of an urgent job to its first line, by a prefork worker that is busy with a backlog of "
        "1,000,000 ready jobs"
    )
    notes = (
        f"default settings, the window among them; {_URGENT} urgent jobs, each when the one before has ended; --jobs is the backlog",
        "jobs_per_s is what the worker ran meanwhile: the wait is the window divided by it, whatever the tasks and the machine",
    )
    sides = ("bridge",)
    baseline = None
    targets = (Target("bridge", "worst_ms", 2000.0, at_least=False, ratio=False),)
    jobs = 1_000_000
    lasts = True
    rounds = 1

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Enqueue urgent jobs behind the backlog; each of them has run once, and the backlog is still there."""
        rig = self.rig
        for at in range(0, jobs, _PAGE):
            rig.control.execute(_FILL, (NOOP, QUEUE, json.dumps([PAYLOAD]), min(_PAGE, jobs - at)))
            done(min(at + _PAGE, jobs))
        rig.control.execute("checkpoint")  # what the filling has left to write would be written during the measurement
        with rig.drainer() as drainer, rig.worker("joined", self.options.concurrency[0]) as worker:
            rig.wait_for(self._ended, min(1000, jobs), drainer, worker)
            before, began = self._ended(), time.monotonic()
            waits = [self._one(number, drainer, worker) for number in range(_URGENT)]
            rate = (self._ended() - before) / (time.monotonic() - began)
        left = int(rig.value("select count(*) from bridge.job"))
        ended = int(rig.value("select count(*) from bridge.finished where status = 'succeeded' and attempts = 1 and losses = 0"))
        if left + ended != jobs + _URGENT:
            raise BenchError(f"of {jobs + _URGENT} jobs {left} are live and {ended} have succeeded at first")
        figures = {"worst_ms": max(waits), "median_ms": median(waits), "jobs_per_s": rate, "backlog_left": float(left)}
        return Sample(side, _URGENT, figures)

    def _ended(self) -> int:
        return int(self.rig.value("select count(*) from bridge.finished"))

    def _one(self, number: int, *alive: Process) -> float:
        """Milliseconds of one urgent job, by the stamp that its first line took."""
        identity = self.rig.value(_ENQUEUE, STAMP, number, PAYLOAD, QUEUE)
        returned = time.monotonic_ns()
        there = "select count(*) from bridge.finished where id = %s"
        self.rig.wait_for(lambda: int(self.rig.value(there, identity)), 1, *alive, longest=0.05)
        stamp = self.rig.value("select result from bridge.finished where id = %s", identity)
        return float(stamp[1] - returned) / 1e6
