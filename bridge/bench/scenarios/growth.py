"""Whether whole lives stay as quick when millions of other rows are there: jobs of the future, and history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.bench.contestants import Bridge
from bridge.bench.filling import DAYS, fill_future, fill_history
from bridge.bench.lives import live
from bridge.bench.measure import Sample, Target
from bridge.bench.rounds import Scenario
from bridge.bench.scenarios.end_to_end import whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.bench.rig import Rig
    from bridge.bench.rounds import Options

__all__ = ["Growth"]

_REACH = 0.95


class Growth(Scenario):
    """Whole lives a second."""

    name = "growth"
    about = "whole lives a second in an empty database, and beside as many future and as many finished jobs as --rows says [5,000,000]"
    notes = (
        "jobs_per_s: drainer and prefork worker, as in e2e",
        "lives_per_s: enqueue, claim, mark, start and finish by SQL alone, where Celery hides nothing",
        f"each side has a database of its own on one server; the finished jobs lie in the partitions of {DAYS} days",
    )
    sides = ("empty", "grown")
    baseline = "empty"
    targets = (Target("grown", "jobs_per_s", _REACH), Target("grown", "lives_per_s", _REACH))
    jobs = 10_000
    rows = 5_000_000
    lasts = True

    def __init__(self, rig: Rig, options: Options, condition: dict[str, float]) -> None:
        super().__init__(rig, options, condition)
        self._rigs: dict[str, Rig] = {}

    def prepare(self, done: Callable[[int], None]) -> None:
        """Make both databases, and fill one."""
        self._rigs = {side: self.stack.enter_context(self.rig.beside()) for side in self.sides}
        rows = self.options.rows or self.rows
        fill_future(self._rigs["grown"], rows, done)
        fill_history(self._rigs["grown"], rows, done)

    def clean(self, side: str) -> None:
        """Take away the jobs that were measured, not those that they were measured beside."""
        self._rigs[side].clear()

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Run jobs by processes, then as many by SQL."""
        rig = self._rigs[side]
        sample = whole(Bridge(rig), jobs, self.options.concurrency[0], done)
        rig.clear()
        return Sample(side, jobs, {**sample.figures, "lives_per_s": live(rig, jobs)}, sample.cpu_us)
