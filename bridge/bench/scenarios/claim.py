"""Whether claims stay as quick when millions of other rows are there: jobs of the future, and history."""

from __future__ import annotations

import json
import time
import uuid
from statistics import median
from typing import TYPE_CHECKING, ClassVar

from bridge.bench.jobs import NOOP, PAYLOAD, QUEUE
from bridge.bench.measure import BenchError, Sample, Target
from bridge.bench.rounds import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Claim"]

_PAGE = 100_000
_PASSES, _READY = 7, 10_000
_DAYS = 30
# Straight into the tables, as no user may: what counts is that the rows are there.
_FUTURE = """
  with made as (
    insert into bridge.job (id, task, queue, rank, args, kwargs, size, max_attempts, run_at, created_at, updated_at)
    select bridge.new_id(), %s, %s, 9, '[]', '{}', 4, 3, now() + interval '1 day' + n * interval '10 milliseconds', now(), now()
    from generate_series(1, %s) n returning seq, run_at
  )
  insert into bridge.scheduled (seq, run_at) select m.seq, m.run_at from made m
"""
_HISTORY = """
  insert into bridge.finished (seq, id, task, queue, rank, args, kwargs, size, max_attempts, attempts, losses, run_at, created_at,
    finished_at, started_at, status, result)
  select -n - %s, bridge.new_id(), %s, %s, 9, '[]', '{}', 4, 3, 1, 0, at, at, at, at,
    case when n %% 50 = 0 then 'failed' else 'succeeded' end, 'null'
  from generate_series(1, %s) n, lateral (select now() - random() * interval '29 days' as at) t
"""


class Claim(Scenario):
    """Claims a second."""

    name = "claim"
    about = (
        "jobs a second: claim, commit and mark by one drainer's statements; alone, and beside 5,000,000 future and 5,000,000 finished jobs"
    )
    notes: ClassVar[tuple[str, ...]] = (
        f"the median of {_PASSES} passes over {_READY:,} ready jobs; the setting window is 0 (no bound)",
        "--jobs is the number of future and that of finished jobs; the finished ones lie in the partitions of 30 days",
    )
    sides: ClassVar[tuple[str, ...]] = ("alone", "beside")
    baseline: ClassVar[str | None] = "alone"
    targets: ClassVar[tuple[Target, ...]] = (Target("beside", "jobs_per_s", 0.95),)
    jobs = 5_000_000
    rounds: ClassVar[int | None] = 1

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Claim and mark; every ready job is claimed once, in each pass."""
        if side == "beside":
            self._fill(jobs, done)
        with self.rig.setting("window", 0):
            rates = [self._pass(min(_READY, jobs)) for _ in range(_PASSES + 1)][1:]
        self._count(jobs if side == "beside" else 0)
        return Sample(side, _PASSES * min(_READY, jobs), {"jobs_per_s": median(rates)})

    def _fill(self, jobs: int, done: Callable[[int], None]) -> None:
        self.rig.value("select bridge.make_days((now() at time zone 'utc')::date - %s, %s)", _DAYS, _DAYS + 2)
        for at in range(0, jobs, _PAGE):
            count = min(_PAGE, jobs - at)
            self.rig.control.execute(_FUTURE, (NOOP, QUEUE, count))
            self.rig.control.execute(_HISTORY, (at, NOOP, QUEUE, count))
            done(at + count)
        self.rig.control.execute("vacuum (analyze) bridge.finished")
        # What the filling has left to write would be written during the measurement.
        self.rig.control.execute("checkpoint")

    def _pass(self, ready: int) -> float:
        rig, drainer, claimed = self.rig, uuid.uuid4(), []
        rig.enqueue(NOOP, json.dumps([PAYLOAD]), ready)
        began = time.perf_counter()
        while True:
            shipment = uuid.uuid4()
            seqs = [row[0] for row in rig.control.execute("select seq from bridge.claim(%s, %s, %s)", (drainer, QUEUE, shipment))]
            if not seqs:
                break
            rig.value("select bridge.mark_published(%s, %s)", shipment, seqs)
            claimed += seqs
        rate = ready / (time.perf_counter() - began)
        if not len(claimed) == len(set(claimed)) == ready:
            raise BenchError(f"{len(claimed)} claims, of {len(set(claimed))} of {ready} jobs")
        rig.control.execute(
            "with gone as (delete from bridge.inflight returning seq) delete from bridge.job j using gone g where j.seq = g.seq"
        )
        return rate

    def _count(self, jobs: int) -> None:
        found = self.rig.control.execute(
            "select (select count(*) from bridge.scheduled), (select count(*) from bridge.finished)"
        ).fetchone()
        if found != (jobs, jobs):
            raise BenchError(f"{found} future and finished jobs instead of {jobs} each")
