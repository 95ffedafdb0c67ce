"""Making jobs, in the ways that there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bridge.bench.jobs import QUEUE
from bridge.bench.measure import BenchError, Sample, Target
from bridge.bench.rig import Producer
from bridge.bench.rounds import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Enqueue"]

_ACTS = {
    "celery": "celery.delay", "bridge, delay()": "bridge.delay", "bridge, single": "bridge.single",
    "bridge, one transaction": "bridge.transaction", "bridge, bulk": "bridge.many",
}  # fmt: skip


class Enqueue(Scenario):
    """Jobs made a second."""

    name = "enqueue"
    about = "jobs made a second by one process, with 1 KB of arguments, without drainer and worker"
    notes: ClassVar[tuple[str, ...]] = (
        "delay(): unmodified calls of the joined application, each committed by itself; single: bridge.enqueue, likewise",
        "one transaction: bridge.enqueue in an open transaction, its commit included",
        "bulk: one call of bridge.enqueue_many with a generator of all jobs, in one transaction of its own",
    )
    sides: ClassVar[tuple[str, ...]] = tuple(_ACTS)
    targets: ClassVar[tuple[Target, ...]] = (Target("bridge, single", "jobs_per_s", 1.0), Target("bridge, bulk", "jobs_per_s", 50.0))

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Make jobs; every one of them is there."""
        warm = max(jobs // 20, 1)
        with Producer(self.rig, _ACTS[side], count=jobs, warm=warm) as producer:
            meter = self.rig.meter()
            start = meter.read()
            said = producer.go()
            cpu, wal = meter.since(start, jobs)
        done(jobs)
        there = int(self.rig.broker.llen(QUEUE) if side == "celery" else self.rig.value("select count(*) from bridge.ready"))
        if there != warm + jobs:
            raise BenchError(f"{side} made {there} jobs instead of {warm + jobs}")
        figures = {"jobs_per_s": jobs / said["seconds"]}
        if side == "celery":
            del cpu["postgres"]
        else:
            del cpu["redis"]
            figures["wal_bytes_per_job"] = wal
        return Sample(side, jobs, figures, {"producer": 1e6 * said["cpu"] / jobs, **cpu})
