"""What came of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from laboratory.faults import OBEYED, STRUCK

if TYPE_CHECKING:
    from datetime import datetime

    from laboratory.checker import Sin
    from laboratory.facts import Strike
    from laboratory.runner import Beat, Plan


@dataclass(frozen=True)
class Blow:
    """What came of a beat: seconds after the beginning, which fault, and a word of `faults.BECAME`."""

    at: float
    fault: str
    became: str

    @property
    def met(self) -> bool:
        """Whether it has met anything."""
        return self.became in (STRUCK, OBEYED)


def blow_of(strike: Strike, began: datetime) -> Blow:
    """What the witness has of a strike, by the time since the beginning."""
    return Blow(round((strike.at - began).total_seconds(), 1), strike.fault, strike.became)


@dataclass
class Report:
    """What came of a run.

    Attributes:
        beats: what was to strike.
        blows: what did, and what met nothing.
    """

    plan: Plan
    beats: list[Beat]
    blows: list[Blow] = field(default_factory=list)
    sins: list[Sin] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def struck(self) -> set[str]:
        """The faults that have met something."""
        return {blow.fault for blow in self.blows if blow.met}
