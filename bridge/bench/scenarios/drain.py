"""One drainer against a loop of ``app.send_task``: rows, or calls, that become messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

from bridge.bench.jobs import NOOP, PAYLOAD, QUEUE
from bridge.bench.measure import BenchError, Sample, Target
from bridge.bench.rig import Producer
from bridge.bench.rounds import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Drain"]

_LAST = "select extract(epoch from max(published_at)) from bridge.inflight"
_NOW = "select extract(epoch from clock_timestamp())"


class Drain(Scenario):
    """Messages a second."""

    name = "drain"
    about = "messages a second: one drainer from the moment the rows are ready to the last one marked published; one app.send_task loop"
    notes: ClassVar[tuple[str, ...]] = (
        "no worker takes the messages, so the setting window is 0 (no bound) here; every other setting is the default",
    )
    targets: ClassVar[tuple[Target, ...]] = (Target("bridge", "jobs_per_s", 10.0),)

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Make messages; every one of them is found in the queue, once."""
        sample = self._send(jobs) if side == "celery" else self.drain(side, jobs, done)
        ids = self.rig.message_ids()
        if len(ids) != len(set(ids)):
            raise BenchError(f"{side} sent {len(ids) - len(set(ids))} of {jobs} jobs twice")
        if side != "celery" and set(ids) != self._published():
            raise BenchError("the messages are not those of the rows")
        return sample

    def _published(self) -> set[str]:
        rows = self.rig.control.execute("select j.id from bridge.job j join bridge.inflight i using (seq) where i.state = 'published'")
        return {str(row[0]) for row in rows}

    def _send(self, jobs: int) -> Sample:
        warm = max(jobs // 20, 1)
        with Producer(self.rig, "celery.send_task", count=jobs, warm=warm) as producer:
            meter = self.rig.meter()
            start = meter.read()
            said = producer.go()
            cpu, _ = meter.since(start, jobs)
        del cpu["postgres"]
        if self.rig.broker.llen(QUEUE) != warm + jobs:
            raise BenchError(f"celery sent {self.rig.broker.llen(QUEUE)} messages instead of {warm + jobs}")
        return Sample("celery", jobs, {"jobs_per_s": jobs / said["seconds"]}, {"producer": 1e6 * said["cpu"] / jobs, **cpu})

    def fill(self, side: str, jobs: int) -> None:
        """Make the rows."""
        del side
        self.rig.enqueue(NOOP, json.dumps([PAYLOAD]), jobs)

    def drain(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Let one drainer publish rows that are there already."""
        rig = self.rig
        with rig.setting("window", 0), rig.drainer() as drainer:
            rig.value("select bridge.pause(%s)", QUEUE)
            self.fill(side, jobs)
            meter = rig.meter(drainer=drainer)
            start = meter.read()
            began = float(rig.value(_NOW))
            rig.value("select bridge.resume(%s)", QUEUE)
            rig.wait_for(lambda: int(rig.broker.llen(QUEUE)), jobs, drainer, tell=done)
            published = "select count(*) from bridge.inflight where state = 'published'"
            rig.wait_for(lambda: int(rig.value(published)), jobs, drainer)
            cpu, wal = meter.since(start, jobs)
        rate = jobs / (float(rig.value(_LAST)) - began)
        return Sample(side, jobs, {"jobs_per_s": rate, "wal_bytes_per_job": wal}, cpu)
