"""How soon a worker that has nothing to do begins a job."""

from __future__ import annotations

from operator import itemgetter
from statistics import quantiles
from typing import TYPE_CHECKING, ClassVar

from bridge.bench import results
from bridge.bench.measure import BenchError, Sample, Target
from bridge.bench.rig import Producer
from bridge.bench.rounds import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bridge.local.process import Process

__all__ = ["Latency"]

_WARM = 20  # jobs of each round that are not counted


class Latency(Scenario):
    """Milliseconds to the first line."""

    name = "latency"
    about = "milliseconds from the return of the commit (celery: of delay()) to the first line of the task, by an idle prefork worker"
    notes: ClassVar[tuple[str, ...]] = (
        "bridge: bridge.enqueue in a transaction of its own; 1 KB of arguments; steady rate; 20 jobs of each round go ahead uncounted",
    )
    targets: ClassVar[tuple[Target, ...]] = (Target("bridge", "p50_ms", 3.0, at_least=False),)
    jobs = 200

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Send at a steady rate; every job has its stamp."""
        if side == "celery":
            with self.rig.worker("plain", self.options.concurrency) as worker:
                return self._send(side, jobs, done, results.plain_count(self.rig), worker)
        with self.rig.drainer() as drainer, self.rig.worker("joined", self.options.concurrency) as worker:
            return self._send(side, jobs, done, self._ended, drainer, worker)

    def _ended(self) -> int:
        return int(self.rig.value("select count(*) from bridge.finished"))

    def _send(self, side: str, jobs: int, done: Callable[[int], None], count: Callable[[], int], *processes: Process) -> Sample:
        with Producer(self.rig, f"{side}.paced", count=jobs, warm=_WARM, rate=self.options.rate) as producer:
            self.rig.wait_for(count, _WARM, *processes)
            returned = producer.go()["returned"]
            self.rig.wait_for(count, _WARM + jobs, *processes, tell=done)
        started = self._plain_stamps(jobs) if side == "celery" else self._row_stamps(jobs)
        if sorted(started) != list(range(jobs)):
            raise BenchError(f"{side} has {len(started)} stamps of {jobs} jobs")
        waits = [(started[number] - at) / 1e6 for number, at in enumerate(returned)]
        cuts = quantiles(waits, n=100, method="inclusive") if jobs > 1 else waits * 99
        return Sample(side, jobs, {"p50_ms": cuts[49], "p99_ms": cuts[98]})

    def _plain_stamps(self, jobs: int) -> dict[int, int]:
        return _last((meta["result"] for meta in results.plain_results(self.rig, _WARM + jobs)), jobs)

    def _row_stamps(self, jobs: int) -> dict[int, int]:
        results.check_rows(self.rig, _WARM + jobs)
        return _last((row[0] for row in self.rig.control.execute("select result from bridge.finished")), jobs)


def _last(stamps: Iterable[list[int]], jobs: int) -> dict[int, int]:
    """Start by number, without the warm-up, which had ended before."""
    return {stamp[0]: stamp[1] for stamp in sorted(stamps, key=itemgetter(1))[-jobs:]}
