"""One drainer with limits, turns and unique keys in use against the same drainer without."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bridge.bench.jobs import NOOP, PAYLOAD, QUEUE
from bridge.bench.measure import Sample, Target
from bridge.bench.rounds import Scenario
from bridge.bench.scenarios.drain import Drain

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Gate"]

_TENANTS = 20
_FILL = """
  select count(bridge.enqueue(%s, %s::jsonb, jsonb_build_object('tenant', n %% %s), queue => %s,
    unique_key => case when %s then 'bench ' || n end)) from generate_series(1, %s) n"""
# Wide enough to hold nothing back: what is measured is the price of asking.
_LIMITS = (
    "select bridge.set_limit('bench queue', queue => %s, concurrency => 1000000)",
    "select bridge.set_limit('bench tenants', key => 'kwargs.tenant', rate => 1000000, burst => 1000000, fair => true)",
)
_NONE = "select bridge.remove_limit(n) from unnest(array['bench queue', 'bench tenants']) n"


class Gate(Drain):
    """Messages a second, as in drain."""

    name = "gate"
    about = (
        "messages a second: one drainer, jobs that nothing is about (plain), and jobs with a bound on the runs of their queue, a rate for"
        f" each of {_TENANTS} tenants, who take turns, and a unique key each (gated)"
    )
    notes = ("no worker takes the messages, so the setting window is 0 (no bound), and limits are too wide to hold a job back",)
    sides = ("plain", "gated")
    baseline = "plain"
    targets = (Target("gated", "jobs_per_s", 0.6),)
    jobs = Scenario.jobs  # what its figures were measured with, not what drain has

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Set the limits for the gated side alone."""
        try:
            if side == "gated":
                self.rig.value(_LIMITS[0], QUEUE)
                self.rig.value(_LIMITS[1])
            return super().measure(side, jobs, done)
        finally:
            self.rig.control.execute(_NONE)

    def fill(self, side: str, jobs: int) -> None:
        """Make the same jobs for both sides; unique keys for one."""
        self.rig.value(_FILL, NOOP, json.dumps([PAYLOAD]), _TENANTS, QUEUE, side == "gated", jobs)
