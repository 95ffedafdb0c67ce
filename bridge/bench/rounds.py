"""Rounds: both sides in turn, each round beginning with another side, after a warm-up that is not counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bridge.bench.measure import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.bench.measure import Sample, Target
    from bridge.bench.rig import Rig

__all__ = ["Options", "Scenario", "Teller", "run"]

_WARM_UP = 10  # the warm-up round has a tenth of the jobs


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may change.

    Attributes:
        rounds: how often each side is measured.
        jobs: jobs a side and round; None: what the scenario thinks fit.
        concurrency: pool children of a worker.
        rate: jobs a second where latency is measured.
    """

    rounds: int = 5
    jobs: int | None = None
    concurrency: int = 2
    rate: float = 20.0


class Teller:
    """Hears how far the work has come; this one tells nobody."""

    def begin(self, words: str, total: int) -> None:
        """A side begins, with so many jobs to do."""

    def done(self, count: int) -> None:
        """So many of them are done."""

    def sampled(self, words: str, sample: Sample) -> None:
        """A side has ended."""


class Scenario(ABC):
    """One comparison.

    Attributes:
        name: what the user calls it by.
        about: one sentence: what is compared, and what the clock measures.
        notes: what differs from defaults, what to know.
        sides: who is measured.
        baseline: the side that ratios divide by; None when there is none.
        targets: what is to be reached.
        jobs: how many, when the user does not say.
        rounds: how many at most; None leaves it to the user.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    notes: ClassVar[tuple[str, ...]] = ()
    sides: ClassVar[tuple[str, ...]] = ("celery", "bridge")
    baseline: ClassVar[str | None] = "celery"
    targets: ClassVar[tuple[Target, ...]] = ()
    jobs: ClassVar[int] = 20_000
    rounds: ClassVar[int | None] = None

    def __init__(self, rig: Rig, options: Options) -> None:
        self.rig = rig
        self.options = options

    @abstractmethod
    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Do the work once on one side, from a clean start.

        Raises:
            BenchError: a job was lost or done twice.
        """


def run(scenario: Scenario, teller: Teller) -> Outcome:
    """All rounds of one scenario, a tenth of the jobs as warm-up first."""
    jobs = scenario.options.jobs or scenario.jobs
    count = min(scenario.options.rounds, scenario.rounds or scenario.options.rounds)
    if scenario.baseline is not None:
        for side in scenario.sides:
            _measure(scenario, side, max(jobs // _WARM_UP, 1), f"{scenario.name} warm-up {side}", teller)
    rounds = []
    for number in range(count):
        shift = number % len(scenario.sides)
        order = scenario.sides[shift:] + scenario.sides[:shift]
        words = f"{scenario.name} round {number + 1}/{count}"
        rounds.append(tuple(_measure(scenario, side, jobs, f"{words} {side}", teller) for side in order))
    return Outcome(scenario.name, scenario.about, scenario.notes, tuple(rounds), scenario.baseline, scenario.targets)


def _measure(scenario: Scenario, side: str, jobs: int, words: str, teller: Teller) -> Sample:
    teller.begin(words, jobs)
    scenario.rig.clear()
    sample = scenario.measure(side, jobs, teller.done)
    teller.sampled(words, sample)
    return sample
