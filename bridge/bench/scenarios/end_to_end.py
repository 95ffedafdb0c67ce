"""Whole jobs: from a queue that is full to the last result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.bench.contest import Contest
from bridge.bench.contestants import Bridge, Bundles, DatabaseResults, Streaming
from bridge.bench.contestants.contestant import begun
from bridge.bench.cost import CHILDREN
from bridge.bench.measure import Sample, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.bench.contestants import Contestant
    from bridge.bench.contestants.contestant import Running
    from bridge.bench.rig import Rig
    from bridge.bench.rounds import Options

__all__ = ["EndToEnd", "whole"]

_MANY = 8  # pool children from which on more is asked
_OF_DATABASE = 4.0
_OF_BUNDLES = 12.0


class EndToEnd(Contest):
    """Jobs a second."""

    name = "e2e"
    ours = (Bridge, Streaming, Bundles)
    about = "jobs a second of prefork workers on tasks that do nothing, made beforehand, from the moment when a tenth have ended"
    notes = (
        "1 KB of arguments, 200 bytes of result, kept and read back with .get(); all jobs are unmodified delay() calls of the application",
        "until a tenth have ended, processes connect and load what they need: that is left out of each side",
        "celery: Redis broker, Redis results; db results: Celery's own db+postgresql backend on the same server, fewer jobs",
        "bridge: results in the jobs' rows; the drainer runs beside the worker, with default settings",
        "bridge, streaming: the same with BRIDGE_STREAMING=0.1",
        "bridge, bundles: the same with bridge_bundle=200, up to so many jobs in one message; more jobs, or it would be over at once",
        "client: CPU of the process that made the jobs (bridge: within one transaction); what servers spend on that is in enqueue",
        "a peer runs a worker process for each pool child of the others, and keeps what it keeps by default",
    )

    def __init__(self, rig: Rig, options: Options, condition: dict[str, float]) -> None:
        super().__init__(rig, options, condition)
        at_least = 1.2 if condition["prefork"] >= _MANY else 1.0
        self.others = tuple(name for name in (DatabaseResults.name,) if name in self.contestants)
        of_database = tuple(Target("bridge", "jobs_per_s", _OF_DATABASE, of=name) for name in self.others)
        self.targets = (Target("bridge", "jobs_per_s", at_least), Target(Bundles.name, "jobs_per_s", _OF_BUNDLES), *of_database)

    @classmethod
    def conditions(cls, options: Options) -> list[dict[str, float]]:
        """Each number of pool children."""
        return [{"prefork": count} for count in options.concurrency]

    def jobs_of(self, side: str, jobs: int) -> int:
        """As many as fit it."""
        return round(jobs * self.contestants[side].share)

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Run the jobs; every one has a result, and has run once."""
        return whole(self.contestants[side], jobs, round(self.condition["prefork"]), done)


def whole(contestant: Contestant, jobs: int, concurrency: int, done: Callable[[int], None]) -> Sample:
    """Have jobs made, then run all of them.

    Args:
        contestant: who runs them.
        jobs: how many.
        concurrency: pool children, or processes.
        done: hears of progress.
    """
    before = contestant.left_behind()
    client = contestant.fill(jobs)
    with contestant.workers(concurrency) as running:
        cpu, wal = _run(contestant, jobs, running, done)
    first, last = contestant.ends(jobs)
    figures = {"jobs_per_s": (jobs - begun(jobs)) / max(last - first, 1e-6)}
    if "postgres" in contestant.uses:
        figures["wal_bytes_per_job"] = wal
    after = contestant.left_behind()
    if before is not None and after is not None:
        figures["dead_rows_per_job"] = (after - before) / jobs
    spent = {kind: used for kind, used in cpu.items() if kind not in {"postgres", "redis"} or kind in contestant.uses}
    if not spent.get(CHILDREN, 1.0):
        del spent[CHILDREN]  # the worker is one process alone
    return Sample(contestant.name, jobs, figures, {"client": client, **spent})


def _run(contestant: Contestant, jobs: int, running: Running, done: Callable[[int], None]) -> tuple[dict[str, float], float]:
    """CPU by kind and WAL, a job, from the moment when a tenth have ended to the last."""
    rig, processes = contestant.rig, [process for those in running.values() for process in those]

    def ended() -> int:
        return contestant.ended(jobs)

    meter = rig.meter(**running)
    rig.wait_for(ended, begun(jobs), *processes)
    start, already = meter.read(), ended()
    rig.wait_for(ended, jobs, *processes, tell=done)
    return meter.since(start, max(jobs - already, 1))
