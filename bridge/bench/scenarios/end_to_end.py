"""Whole jobs: from a queue that is full to the last result."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from bridge.bench import results
from bridge.bench.jobs import NOOP, PAYLOAD
from bridge.bench.measure import Sample, Target
from bridge.bench.rig import Producer
from bridge.bench.rounds import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.bench.rig import Rig
    from bridge.local.process import Process

__all__ = ["EndToEnd"]

_ENDS = "select extract(epoch from min(finished_at)), extract(epoch from max(finished_at)) from bridge.finished"


class EndToEnd(Scenario):
    """Jobs a second."""

    name = "e2e"
    about = "jobs a second of a prefork worker on tasks that do nothing, enqueued beforehand, from the first finished to the last"
    notes: ClassVar[tuple[str, ...]] = (
        "1 KB of arguments, 200 bytes of result; results are kept and read back with .get(): Redis there, the job's row here",
        "bridge: the drainer runs beside the worker, with default settings; celery: Redis broker and Redis results",
    )
    targets: ClassVar[tuple[Target, ...]] = (Target("bridge", "jobs_per_s", 0.9),)

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Run the jobs; every one has a result, and has run once."""
        if side == "celery":
            with Producer(self.rig, "celery.fill", count=jobs) as producer:
                producer.go()
            with self.rig.worker("plain", self.options.concurrency) as worker:
                return self._run(side, jobs, done, results.plain_count(self.rig), worker=worker)
        self.rig.enqueue(NOOP, json.dumps([PAYLOAD]), jobs)
        with self.rig.drainer() as drainer, self.rig.worker("joined", self.options.concurrency) as worker:
            return self._run(side, jobs, done, results.row_count(self.rig, jobs), drainer=drainer, worker=worker)

    def _run(self, side: str, jobs: int, done: Callable[[int], None], count: Callable[[], int], **processes: Process) -> Sample:
        meter = self.rig.meter(**processes)
        self.rig.wait_for(count, 1, *processes.values())
        start, before = meter.read(), count()
        self.rig.wait_for(count, jobs, *processes.values(), tell=done)
        cpu, wal = meter.since(start, max(jobs - before, 1))
        seconds = _plain_seconds(self.rig, jobs) if side == "celery" else _row_seconds(self.rig, jobs)
        figures = {"jobs_per_s": (jobs - 1) / max(seconds, 1e-6)}
        if side == "celery":
            del cpu["postgres"]
        else:
            figures["wal_bytes_per_job"] = wal
        return Sample(side, jobs, figures, cpu)


def _plain_seconds(rig: Rig, jobs: int) -> float:
    metas = results.plain_results(rig, jobs)
    results.check_get(rig, "celery", [meta["task_id"] for meta in metas])
    ends = sorted(_moment(meta) for meta in metas)
    return ends[-1] - ends[0]


def _row_seconds(rig: Rig, jobs: int) -> float:
    results.check_rows(rig, jobs)
    results.check_get(rig, "bridge", [str(row[0]) for row in rig.control.execute("select id from bridge.finished limit 1000")])
    first, last = rig.control.execute(_ENDS).fetchone() or (0, 0)
    return float(last) - float(first)


def _moment(meta: dict[str, Any]) -> float:
    return datetime.fromisoformat(meta["date_done"]).timestamp()
