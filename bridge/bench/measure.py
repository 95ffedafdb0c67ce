"""What a benchmark says: samples, their spread over rounds, ratios to plain Celery, and what was to be reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["BenchError", "Outcome", "Ratio", "Sample", "SkippedError", "Spread", "Target", "ratios", "spreads"]


class BenchError(BridgeError):
    """Jobs were lost or doubled, or a process of the benchmark died: no figure is printed."""


class SkippedError(BridgeError):
    """A scenario needs a program that this machine does not have: it is left out, and the others go on."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One side of one round.

    Attributes:
        side: who did the work: "celery" or one of ours.
        jobs: how many jobs the figures rest on.
        figures: by name; the name ends in the unit.
        cpu_us: CPU microseconds a job, by kind of process; without those that cannot be seen from here.
    """

    side: str
    jobs: int
    figures: dict[str, float]
    cpu_us: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure is to reach.

    Attributes:
        side: whose figure.
        figure: its name.
        bound: the limit.
        at_least: it must not be less; otherwise it must not be more.
        ratio: the bound is on the ratio to the baseline, not on the figure itself.
        of: the side that this ratio divides by; None is the scenario's baseline.
    """

    side: str
    figure: str
    bound: float
    at_least: bool = True
    ratio: bool = True
    of: str | None = None

    def met(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over all rounds."""

    side: str
    figure: str
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratio(Spread):
    """A figure divided by the baseline's of the same round, over all rounds."""

    baseline: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that one scenario gave.

    Attributes:
        name: the scenario.
        condition: what it was measured under, such as `{"prefork": 8}`; empty when there is one way alone.
        about: one sentence: what is compared, and what the clock measures.
        notes: what differs from the defaults that a user gets, and what to know when reading the figures.
        rounds: the samples, in the order in which they were taken.
        baseline: the side that ratios divide by; None when there is one side only.
        others: further sides that ratios divide by.
        targets: what was to be reached.
    """

    name: str
    condition: dict[str, float]
    about: str
    notes: tuple[str, ...]
    rounds: tuple[tuple[Sample, ...], ...]
    baseline: str | None
    others: tuple[str, ...]
    targets: tuple[Target, ...]


def spreads(outcome: Outcome) -> list[Spread]:
    """Median and range of every figure of every side."""
    samples = [sample for samples in outcome.rounds for sample in samples]
    keys = dict.fromkeys((sample.side, figure) for sample in samples for figure in sample.figures)
    return [Spread(*key, *_three(s.figures[key[1]] for s in samples if s.side == key[0])) for key in keys]


def ratios(outcome: Outcome) -> list[Ratio]:
    """Median and range of the ratio to the baselines of the same round; rounds are never mixed."""
    names = [name for name in (outcome.baseline, *outcome.others) if name is not None]
    return [ratio for name in names for ratio in _ratios(outcome, name)]


def _ratios(outcome: Outcome, baseline: str) -> list[Ratio]:
    found: dict[tuple[str, str], list[float]] = {}
    for samples in outcome.rounds:
        base = next((sample.figures for sample in samples if sample.side == baseline), {})
        for sample in samples:
            for figure, value in sample.figures.items():
                if sample.side != baseline and base.get(figure):
                    found.setdefault((sample.side, figure), []).append(value / base[figure])
    return [Ratio(*key, *_three(values), baseline) for key, values in found.items()]


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    held: Sequence[float] = list(values)
    return median(held), min(held), max(held)
