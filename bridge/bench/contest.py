"""Scenarios in which everybody who can run jobs here takes part."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bridge.bench.contestants import Bridge, Contestant, Peer, contestants
from bridge.bench.rounds import Scenario

if TYPE_CHECKING:
    from bridge.bench.rig import Rig
    from bridge.bench.rounds import Options

__all__ = ["Contest"]


class Contest(Scenario):
    """A comparison of contestants.

    Attributes:
        contestants: by name, which is what their side is called where they have one alone.
        ours: our own ways that take part.
    """

    ours: ClassVar[tuple[type[Bridge], ...]] = (Bridge,)

    def __init__(self, rig: Rig, options: Options, condition: dict[str, float]) -> None:
        super().__init__(rig, options, condition)
        self.contestants: dict[str, Contestant] = contestants(rig, options, self.ours)
        self.sides = tuple(self.contestants)
        for one in self.contestants.values():
            self.stack.callback(one.close)
            if isinstance(one, Peer):
                self.notes = (*self.notes, f"{one.name}: {', '.join(f'{name} {number}' for name, number in one.versions.items())}")

    def clean(self, side: str) -> None:
        """Empty tables everywhere."""
        super().clean(side)
        for one in self.contestants.values():
            if side.startswith(one.name):
                one.clear()
