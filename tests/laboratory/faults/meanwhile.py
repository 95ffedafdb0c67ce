"""What strikes a server, or a line to it, while a process stands exactly between two of its steps; then the process goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from laboratory.boundary import CHILD, DRAINER
from laboratory.errors import LabError
from laboratory.faults import FAULTS, MISSED, ORDERED, Cost, Fault, MissedError, fault
from laboratory.faults.broker import RabbitKilled, RedisCrashed, RedisFlushed, RedisLost
from laboratory.faults.network import NetworkFault
from laboratory.faults.postgres import PostgresCrashed, SessionsKilled
from laboratory.faults.processes import AtBoundary
from laboratory.world import BROKEN

if TYPE_CHECKING:
    from laboratory.world import World

LONGEST = 2.0  # seconds that the other lasts, at most, beside what it takes a server to start


class Meanwhile(AtBoundary):
    """A process stops itself at a boundary; while it stands there another fault strikes and is mended, and it goes on.

    Attributes:
        other: what strikes. It may cost nothing: what a strike costs is told before, when it is ordered.
    """

    action = "stop"
    hold: ClassVar[tuple[float, float]] = (0.5, 4.0)
    other: ClassVar[type[Fault]]

    def strike(self, world: World) -> Cost:
        self.struck: Fault | None = None
        return super().strike(world)

    def mend(self, world: World) -> None:
        if self.became != ORDERED:
            return
        if not self.slot.is_armed(self.order):
            if self.struck is None:
                self._strike_the_other(world)
            if self.struck is not None:
                self.struck.mend(world)  # where that fails, the process stands until it is tried again
        super().mend(world)
        if self.struck is None or self.struck.became == MISSED:
            self.became = MISSED

    def _strike_the_other(self, world: World) -> None:
        self.struck = other = self.other(self.chance)
        if isinstance(other, NetworkFault):
            other.slot = self.slot.name
        cost = Cost()
        try:
            if not self.stands():
                raise MissedError(f"{self.slot.name} has ended where it stood")
            cost = other.strike(world)
        except BROKEN as error:
            other.became = MISSED
            world.say(f"{self.name} could not strike: {error}")
            return
        if cost != Cost():
            raise LabError(f"{self.name}: {other.name} costs runs, and nobody was told")
        world.say(f"{self.name}: while {self.slot.name} stands")
        time.sleep(self.chance.uniform(0.0, LONGEST))


class AllSessionsKilled(SessionsKilled):
    """pg_terminate_backend of every session of ours, that of who stands among them."""

    shares = (1.0,)


SERVERS = (RedisFlushed, RedisLost, RedisCrashed, RabbitKilled, PostgresCrashed, AllSessionsKilled)
OF_DRAINERS = (*SERVERS, FAULTS["net-cut-drainer-postgres"], FAULTS["net-cut-drainer-broker"])
OF_CHILDREN = (PostgresCrashed, AllSessionsKilled, FAULTS["net-cut-worker-postgres"])


def _while(role: str, who: str, boundary: str, meaning: str, other: type[Fault]) -> None:
    """The fault of a boundary and what strikes there; an unnamed plan draws one of a boundary as often as another fault."""
    name = f"{who}-{boundary}-{other.name.replace(f'-{role}-', '-')}"
    words = {"role": role, "boundary": boundary, "name": name, "group": f"{who}-{boundary}", "needs": other.needs, "other": other}
    fault(type(name, (Meanwhile,), {"__doc__": f"{other.name} while a {who} stands between two steps: {meaning}.", **words}))


for _boundary, _meaning in DRAINER.items():
    for _other in OF_DRAINERS:
        _while("drainer", "drainer", _boundary, _meaning, _other)
for _boundary in ("started", "returned", "finished"):
    for _other in OF_CHILDREN:
        _while("worker", "child", _boundary, CHILD[_boundary], _other)
