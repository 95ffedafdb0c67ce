"""How soon a worker that has nothing to do begins a job."""

from __future__ import annotations

from statistics import quantiles
from typing import TYPE_CHECKING

from bridge.bench.contest import Contest
from bridge.bench.jobs import read_stamps
from bridge.bench.making import together
from bridge.bench.measure import BenchError, Sample, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.bench.contestants import Contestant
    from bridge.bench.rig import Rig
    from bridge.bench.rounds import Options

__all__ = ["Latency", "first_lines", "percentiles"]

_WARM = 20  # jobs of each producer and round that are not counted
_SECONDS = 10  # that a round lasts, when the user does not say


class Latency(Contest):
    """Milliseconds to the first line."""

    name = "latency"
    about = "milliseconds from the return of the commit (celery: of delay()) to the first line of the task, by an idle prefork worker"
    notes = (
        "bridge: bridge.enqueue in a transaction of its own; 1 KB of arguments; a steady rate, which the producers share",
        f"{_WARM} jobs of each producer and round go ahead uncounted; without --jobs a round lasts {_SECONDS} s",
    )
    targets = (Target("bridge", "p50_ms", 2.0, at_least=False), Target("bridge", "p99_ms", 3.0, at_least=False))

    def __init__(self, rig: Rig, options: Options, condition: dict[str, float]) -> None:
        super().__init__(rig, options, condition)
        self.jobs = max(round(condition["rate"] * _SECONDS), 1)

    @classmethod
    def conditions(cls, options: Options) -> list[dict[str, float]]:
        """Each rate with each number of producers."""
        return [{"rate": rate, "producers": count} for rate in options.rates for count in options.producers]

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Send at a steady rate; every job has its stamp."""
        producers, concurrency = round(self.condition["producers"]), self.options.concurrency[0]
        waits = first_lines(self.contestants[side], jobs, self.condition["rate"], producers, concurrency, done)
        return Sample(side, len(waits), percentiles(waits))


def percentiles(waits: Sequence[float]) -> dict[str, float]:
    """The middle and the last hundredth, of milliseconds."""
    cuts = quantiles(waits, n=100, method="inclusive")
    return {"p50_ms": cuts[49], "p99_ms": cuts[98]}


def first_lines(
    contestant: Contestant, jobs: int, rate: float, producers: int, concurrency: int, done: Callable[[int], None]
) -> list[float]:  # fmt: skip
    """Milliseconds from the return of each call to its first line.

    Args:
        contestant: who runs the jobs.
        jobs: how many; each producer makes its part, at least one.
        rate: jobs a second, of all producers together.
        producers: how many processes make them.
        concurrency: pool children.
        done: hears of progress.

    Raises:
        BenchError: a job was lost, or began twice.
    """
    each = max(jobs // producers, 1)
    firsts = [number * each for number in range(producers)]
    making = [contestant.making("paced", each, warm=_WARM, rate=rate / producers, first=first) for first in firsts]
    total, warm = each * producers, _WARM * producers
    with contestant.workers(concurrency) as running, together(making) as go:
        processes = [process for those in running.values() for process in those]

        def ended() -> int:
            return contestant.ended(warm + total)

        contestant.rig.wait_for(lambda: len(read_stamps(contestant.rig.stamps)), warm, *processes)
        returned = [moment for said in go() for moment in said["returned"]]
        contestant.rig.wait_for(ended, warm + total, *processes, tell=done)
    contestant.ends(warm + total)
    started = {number: moment for number, moment in read_stamps(contestant.rig.stamps) if number >= 0}
    if sorted(started) != list(range(total)):
        raise BenchError(f"{contestant.name} has {len(started)} stamps of {total} jobs")
    return [(started[number] - at) / 1e6 for number, at in enumerate(returned)]
