"""What a snapshot costs that somebody holds for long: vacuum can take nothing away, and every look passes what is dead."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import psycopg

from bridge.bench.contestants import Bridge
from bridge.bench.filling import fill_dead
from bridge.bench.jobs import NOOP, PAYLOAD
from bridge.bench.measure import Sample, Target
from bridge.bench.rounds import Scenario
from bridge.bench.scenarios.drain import drained
from bridge.bench.scenarios.latency import first_lines, percentiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.bench.rig import Rig
    from bridge.bench.rounds import Options

__all__ = ["Held"]

_REACH = 0.9
_PACED = 100  # jobs at the steady rate, a tenth of those at full load at most


class Held(Scenario):
    """Dispatch beside a held snapshot."""

    name = "held"
    about = (
        "dispatch in a clean database, and in one where another session has held a snapshot for --hold minutes [30], since before"
        " --rows lives [1,000,000] left their dead rows"
    )
    notes = (
        "full load: one drainer, from the moment the rows are ready to the last one marked published, as in drain",
        "p50_ms, p99_ms: at a steady rate (the first of --rate), from the return of the commit to the first line, as in latency",
        "each side has a database of its own on one server: a snapshot holds back the vacuum of its own database alone",
    )
    sides = ("clean", "held")
    baseline = "clean"
    targets = (Target("held", "jobs_per_s", _REACH), Target("held", "p50_ms", 1 / _REACH, at_least=False))
    rows = 1_000_000
    lasts = True

    def __init__(self, rig: Rig, options: Options, condition: dict[str, float]) -> None:
        super().__init__(rig, options, condition)
        self._rigs: dict[str, Rig] = {}

    def prepare(self, done: Callable[[int], None]) -> None:
        """Hold a snapshot, leave dead rows, and let time pass."""
        self._rigs = {side: self.stack.enter_context(self.rig.beside()) for side in self.sides}
        holder = self.stack.enter_context(psycopg.connect(self._rigs["held"].servers.dsn))
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("select count(*) from bridge.ready")
        until = time.monotonic() + 60 * self.options.hold
        fill_dead(self._rigs["held"], self.options.rows or self.rows, done)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
            done(self.options.rows or self.rows)

    def clean(self, side: str) -> None:
        """Take away jobs row by row: what is dead stays so."""
        self._rigs[side].clear()

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Dispatch at full load, then at a steady rate."""
        rig = self._rigs[side]
        sample = drained(rig, side, jobs, done, lambda: rig.enqueue(NOOP, json.dumps([PAYLOAD]), jobs))
        rig.clear()
        paced = min(_PACED, max(jobs // 10, 2))
        waits = first_lines(Bridge(rig), paced, self.options.rates[0], 1, self.options.concurrency[0], done)
        return Sample(side, jobs, {**sample.figures, **percentiles(waits)}, sample.cpu_us)
