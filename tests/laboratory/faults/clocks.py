"""Clocks of our processes that are wrong. Postgres judges by its own."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, ClassVar

from fix_clock import HOW_TO_GET_IT, find_faketime, shifted

from laboratory.faults import Cost, MissedError, fault
from laboratory.faults.processes import OneProcess

if TYPE_CHECKING:
    from laboratory.world import World


class ClockWrong(OneProcess):
    """A process is replaced by one whose clock is wrong, and that later by one whose clock is right.

    Attributes:
        shift: seconds that the clock is ahead, at least and at most.
    """

    hold: ClassVar[tuple[float, float]] = (4.0, 15.0)
    shift: ClassVar[tuple[int, int]]

    @classmethod
    def lacks(cls) -> str | None:
        """The library that shifts clocks."""
        return None if find_faketime() else f"no libfaketime here: {HOW_TO_GET_IT}"

    def strike(self, world: World) -> Cost:
        victim, seconds = self.victim(world), self.chance.randint(*self.shift)
        if not victim.process.alive:
            raise MissedError(f"{victim.name} is down")
        victim.more = shifted(seconds, world.folder)
        victim.signal(signal.SIGTERM)
        world.say(f"{self.name}: {victim.name} {seconds:+d} s")
        return Cost()

    def mend(self, world: World) -> None:  # noqa: ARG002
        if hasattr(self, "slot"):
            self.slot.more = {}
            self.slot.signal(signal.SIGTERM)


@fault
class ClockOfDrainer(ClockWrong):
    """A drainer with a clock that is minutes off, ahead or behind, for a while."""

    name, role, shift = "clock-drainer", "drainer", (-600, 600)


@fault
class ClockOfWorker(ClockWrong):
    """A worker with a clock that is minutes behind, or a bit ahead: Celery's own `retry` waits by it."""

    name, role, shift = "clock-worker", "worker", (-600, 60)
