"""What people look at, over millions of ended jobs."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

from bridge.bench.filling import DAYS, TASKS, fill_history
from bridge.bench.measure import BenchError, Sample, Target
from bridge.bench.rounds import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.bench.rig import Rig
    from bridge.bench.rounds import Options

__all__ = ["Lists"]

_PAGE = 50  # rows of a list
_LOOKS = 20  # times that a round asks each question
# By the views that people and pages read.
_QUESTIONS = {
    "last_failed": "select * from bridge.failed_jobs order by finished_at desc limit 50",
    "last_hour": "select * from bridge.job_queue_stats",
    "page": "select * from bridge.jobs where task = 'filled.1' and status = 'succeeded' order by finished_at desc limit 50",
}
_EXPLAIN = "explain (analyze, buffers, format json) "


class Lists(Scenario):
    """Milliseconds of an answer."""

    name = "lists"
    about = (
        "milliseconds of an answer over as many finished jobs as --rows says [20,000,000]: last 50 failed, last hour, a page by task"
        " and status"
    )
    notes = (
        f"by the views failed_jobs, job_queue_stats and jobs; {TASKS} tasks, {DAYS} days, one job in fifty failed",
        f"each is asked {_LOOKS} times a round",
        "_ms: the whole answer at the client; _buffers: the pages of 8 KB that its plan touches, hit or read",
    )
    sides = ("bridge",)
    baseline = None
    targets = (
        Target("bridge", "last_failed_ms", 20.0, at_least=False, ratio=False),
        Target("bridge", "last_hour_ms", 50.0, at_least=False, ratio=False),
        Target("bridge", "page_ms", 50.0, at_least=False, ratio=False),
    )  # fmt: skip
    jobs = _LOOKS
    rows = 20_000_000
    lasts = True

    def __init__(self, rig: Rig, options: Options, condition: dict[str, float]) -> None:
        super().__init__(rig, options, condition)
        self._filled = rig

    def prepare(self, done: Callable[[int], None]) -> None:
        """Fill history."""
        self._filled = self.stack.enter_context(self.rig.beside())
        fill_history(self._filled, self.options.rows or self.rows, done)

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Ask; the lists are full."""
        figures: dict[str, float] = {}
        for name, question in _QUESTIONS.items():
            times = [self._ask(question) for _ in range(jobs)]
            done(jobs)
            plan = self._filled.value(_EXPLAIN + question)[0]["Plan"]
            figures |= {f"{name}_ms": median(times), f"{name}_buffers": float(_buffers(plan))}
        return Sample(side, jobs, figures)

    def _ask(self, question: str) -> float:
        began = time.perf_counter()
        rows = self._filled.control.execute(question.encode()).fetchall()
        took = 1000 * (time.perf_counter() - began)
        wanted = min(_PAGE, (self.options.rows or self.rows) // 100) if "limit" in question else 1
        if len(rows) < wanted:
            raise BenchError(f"{len(rows)} rows instead of {wanted}: {question}")
        return took


def _buffers(plan: dict[str, Any]) -> int:
    """A node's counts hold those of the nodes below."""
    return sum(plan.get(f"Shared {how} Blocks", 0) for how in ("Hit", "Read"))
