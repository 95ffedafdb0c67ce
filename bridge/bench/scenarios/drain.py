"""One drainer against a loop of ``app.send_task``: rows, or calls, that become messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bridge.bench.jobs import NOOP, PAYLOAD, QUEUE
from bridge.bench.measure import BenchError, Sample, Target
from bridge.bench.rounds import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.bench.rig import Rig

__all__ = ["Drain", "drained"]

_LAST = "select extract(epoch from max(published_at)) from bridge.inflight"
_NOW = "select extract(epoch from clock_timestamp())"


class Drain(Scenario):
    """Messages a second."""

    name = "drain"
    about = "messages a second: one drainer from the moment the rows are ready to the last one marked published; one app.send_task loop"
    notes: tuple[str, ...] = (
        "celery: where results are kept makes no difference to a send_task loop",
        "no worker takes the messages, so the setting window is 0 (no bound) here; every other setting is the default",
    )
    targets = (Target("bridge", "jobs_per_s", 15.0),)
    jobs = 100_000  # two seconds of a drainer, or one stall of the machine decides

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
        with self.rig.producer("celery.send_task", jobs, warm=warm) as producer:
            meter = self.rig.meter()
            start = meter.read()
            said = producer.go()
            cpu, _ = meter.since(start, jobs)
        del cpu["postgres"]
        if self.rig.broker.llen(QUEUE) != warm + jobs:
            raise BenchError(f"celery sent {self.rig.broker.llen(QUEUE)} messages instead of {warm + jobs}")
        return Sample("celery", jobs, {"jobs_per_s": jobs / said["seconds"]}, {"client": producer.cpu_us(said), **cpu})

    def fill(self, side: str, jobs: int) -> None:
        """Make the rows."""
        del side
        self.rig.enqueue(NOOP, json.dumps([PAYLOAD]), jobs)

    def drain(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Let one drainer publish rows that are there already."""
        return drained(self.rig, side, jobs, done, lambda: self.fill(side, jobs))


def drained(rig: Rig, side: str, jobs: int, done: Callable[[int], None], fill: Callable[[], None]) -> Sample:
    """Have one drainer publish rows that are made while their queue is paused; nobody takes the messages.

    Args:
        rig: where.
        side: whose sample it is.
        jobs: how many rows there will be.
        done: hears of progress.
        fill: makes the rows.
    """
    before = rig.left_behind()
    rig.value("select bridge.pause(%s)", QUEUE)
    fill()
    with rig.setting("window", 0), rig.drainer() as drainer:
        meter = rig.meter(drainer=drainer)
        start = meter.read()
        began = float(rig.value(_NOW))
        rig.value("select bridge.resume(%s)", QUEUE)
        rig.wait_for(lambda: int(rig.broker.llen(QUEUE)), jobs, drainer, tell=done)
        published = "select count(*) from bridge.inflight where state = 'published'"
        rig.wait_for(lambda: int(rig.value(published)), jobs, drainer)
        cpu, wal = meter.since(start, jobs)
    rate = jobs / (float(rig.value(_LAST)) - began)
    figures = {"jobs_per_s": rate, "wal_bytes_per_job": wal, "dead_rows_per_job": (rig.left_behind() - before) / jobs}
    return Sample(side, jobs, figures, cpu)
