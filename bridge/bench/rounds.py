"""Rounds: all sides in turn, each round beginning with another side, after a warm-up that is not counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.bench.measure import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bridge.bench.measure import Sample, Target
    from bridge.bench.rig import Rig

__all__ = ["Options", "Scenario", "Teller", "run"]

_WARM_UP = 10  # the warm-up round has a tenth of the jobs


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may change.

    Attributes:
        rounds: how often each side is measured.
        warm_up: whether a small round that is not counted goes ahead.
        sides: who is measured, where a scenario has sides of these names; empty is all.
        jobs: jobs a side and round; None: what the scenario thinks fit.
        rows: rows that are there beforehand; None likewise.
        concurrency: pool children of a worker, one after the other.
        rates: jobs a second where latency is measured, one after the other.
        producers: processes that make those jobs, one after the other.
        hold: minutes that a snapshot has been held before anything is measured beside it.
        clients: connections that enqueue at once.
        peers: programs of `benchmarks/peers`, each of which drives another queue.
        python: the interpreter that has those queues installed; None: our own.
    """

    rounds: int = 7
    warm_up: bool = True
    sides: tuple[str, ...] = ()
    jobs: int | None = None
    rows: int | None = None
    concurrency: tuple[int, ...] = (2, 8)
    rates: tuple[float, ...] = (20.0, 500.0)
    producers: tuple[int, ...] = (1, 8)
    hold: float = 30.0
    clients: int = 200
    peers: tuple[Path, ...] = ()
    python: str | None = None


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
        others: further sides that ratios divide by.
        targets: what is to be reached.
        jobs: how many, when the user does not say.
        rows: how many rows are there beforehand, when the user does not say; 0 where none are.
        rounds: how many at most; None leaves it to the user.
        lasts: it takes long or much disk: only who names it gets it.
        stack: what `close` calls.
    """

    name: str
    about: str
    notes: tuple[str, ...] = ()
    sides: tuple[str, ...] = ("celery", "bridge")
    baseline: str | None = "celery"
    others: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    jobs: int = 20_000
    rows: int = 0
    rounds: int | None = None
    lasts: bool = False

    def __init__(self, rig: Rig, options: Options, condition: dict[str, float]) -> None:
        self.rig = rig
        self.options = options
        self.condition = condition
        self.stack = ExitStack()

    @classmethod
    def conditions(cls, options: Options) -> list[dict[str, float]]:
        """Under what it is measured, each by rounds of its own."""
        del options
        return [{}]

    def prepare(self, done: Callable[[int], None]) -> None:
        """Make what all rounds share, before the first; what is to go afterwards is called by ``stack``.

        Raises:
            SkippedError: this machine lacks what it needs.
        """
        del done

    def clean(self, side: str) -> None:
        """Give a side its clean start."""
        del side
        self.rig.clear()

    def jobs_of(self, side: str, jobs: int) -> int:
        """How many of the jobs a side does: a slow one would take the time of all."""
        del side
        return jobs

    @abstractmethod
    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Do the work once on one side, from a clean start.

        Raises:
            BenchError: a job was lost or done twice.
        """

    def close(self) -> None:
        """Take away what was prepared."""
        self.stack.close()


def run(scenario: Scenario, teller: Teller) -> Outcome:
    """All rounds of one scenario, a tenth of the jobs as warm-up first."""
    options = scenario.options
    jobs = options.jobs or scenario.jobs
    count = min(options.rounds, scenario.rounds or options.rounds)
    sides = tuple(side for side in scenario.sides if side in options.sides) or scenario.sides
    words = " ".join([scenario.name, *(f"{name} {value:g}" for name, value in scenario.condition.items())])
    try:
        teller.begin(f"{words} preparing", options.rows or scenario.rows)
        scenario.prepare(teller.done)
        if options.warm_up and scenario.baseline is not None:
            for side in sides:
                _measure(scenario, side, max(jobs // _WARM_UP, 1), f"{words} warm-up {side}", teller)
        rounds = []
        for number in range(count):
            shift = number % len(sides)
            order = sides[shift:] + sides[:shift]
            rounds.append(tuple(_measure(scenario, side, jobs, f"{words} round {number + 1}/{count} {side}", teller) for side in order))
    finally:
        scenario.close()
    return Outcome(
        scenario.name, scenario.condition, scenario.about, scenario.notes, tuple(rounds), scenario.baseline, scenario.others,
        scenario.targets,
    )  # fmt: skip


def _measure(scenario: Scenario, side: str, jobs: int, words: str, teller: Teller) -> Sample:
    count = max(scenario.jobs_of(side, jobs), 2)
    teller.begin(words, count)
    scenario.clean(side)
    sample = scenario.measure(side, count, teller.done)
    teller.sampled(words, sample)
    return sample
