"""The network between every two that talk to each other, in every way in which it can fail; and a pooler in between."""

from __future__ import annotations

import signal
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, ClassVar

from laboratory.faults import Cost, Fault, MissedError, fault
from laboratory.faults.processes import CHILDREN
from laboratory.pooler import Pooler
from laboratory.world import EXTRAS, Needs, at_port

if TYPE_CHECKING:
    from laboratory.proxy import Proxy
    from laboratory.world import World

PAIRS = (
    ("client", "postgres"), ("client", "broker"), ("drainer", "postgres"), ("drainer", "broker"),
    ("worker", "postgres"), ("worker", "broker"), ("pgbouncer", "postgres"), ("standby", "primary"),
)  # fmt: skip
SESSIONS = 10  # of Postgres, for the pooler
# Each state, and whether its line is of no use while it lasts: a worker that is cut off for long is taken for dead.
# So may a finish be: with the laboratory's heartbeats of a second, its run is missed before the silence is noticed.
MUTE = ("forget", "down", "stall", "half-open", "lost-requests", "lost-answers")
STATES = {**dict.fromkeys(MUTE, True), "cut": False, "slow": False}


class NetworkFault(Fault):
    """One state of the network between one role's processes and a server.

    Attributes:
        slot: whose line it is; drawn where nobody says.
    """

    slot: str | None = None
    hold: ClassVar[tuple[float, float]] = (0.5, 6.0)
    role: ClassVar[str]
    server: ClassVar[str]
    state: ClassVar[str]

    def strike(self, world: World) -> Cost:
        slot = self.slot or self.chance.choice([slot.name for slot in world.of(self.role)] or [self.role])  # servers are in no slot
        self.proxy = world.link(slot, self.server)
        if self.state == "cut" and not self.proxy.connections:
            raise MissedError(f"{slot} has no connection to its {self.server}")
        become(self.proxy, self.state)
        world.say(f"{self.name}: {slot}")
        if self.server != "postgres" or not STATES[self.state]:  # while a standby is cut off, commits wait
            return Cost()
        cut_off = [one.name for one in world.of("worker") if self.role == "pgbouncer" or one.name == slot]
        cost = all_under_way(world, *cut_off)
        if self.role == "pgbouncer" and self.state == "forget":  # runs go on beside it, and each dead session may swallow a finish
            return replace(cost, most=(cost.most or 0) + SESSIONS * world.at_once)
        return cost

    def mend(self, world: World) -> None:
        if hasattr(self, "proxy"):
            self.proxy.heal()
            # For two minutes RabbitMQ would wait for the dead half, with all that it had sent there; for ten a pooler would lend it out,
            # and for one a primary and its standby believe in it.
            if self.role in ("pgbouncer", "standby") or (self.server == "broker" and world.needs.broker == "rabbitmq"):
                self.proxy.cut()


def all_under_way(world: World, *slots: str) -> Cost:
    """What it costs that these workers cannot reach Postgres: what their children are at, who begin no other without its answer."""
    return Cost(frozenset(slots), most=CHILDREN * world.at_once * len(slots))


def become(proxy: Proxy, state: str) -> None:
    """Put a line into one of `STATES`."""
    if state == "down":
        proxy.refuse()
        proxy.cut()
    elif state.startswith("lost-"):
        proxy.drop("requests" if state == "lost-requests" else "answers")
    elif state == "slow":
        proxy.slow(latency=0.2, rate=200_000)
    else:
        getattr(proxy, state.replace("-", "_"))()


for (_role, _server), _state in product(PAIRS, STATES):
    _about = {"name": f"net-{_state}-{_role}-{_server}", "role": _role, "server": _server, "state": _state}
    _about["needs"] = Needs(pgbouncer=_role == "pgbouncer", standby="sync" if _role == "standby" else None)
    fault(type("NetworkFault", (NetworkFault,), {**_about, "__doc__": f"The line from a {_role} to its {_server}: {_state}."}))


def _pooler(world: World) -> Pooler:
    through = at_port(world.dsn, world.open_link("pgbouncer", "postgres", world.postgres.port or 0).port)
    pooler = Pooler(through, world.folder / "pgbouncer", sessions=SESSIONS)
    pooler.start()
    return pooler


EXTRAS["pgbouncer"] = _pooler


@fault
class PoolerKilled(Fault):
    """pgbouncer is killed, and started again later."""

    name = "pgbouncer-kill"
    needs = Needs(pgbouncer=True)
    hold: ClassVar[tuple[float, float]] = (0.0, 6.0)

    def strike(self, world: World) -> Cost:
        if not world.extras["pgbouncer"].process.alive:
            raise MissedError("pgbouncer is down")
        world.extras["pgbouncer"].process.kill(signal.SIGKILL)
        return all_under_way(world, *(slot.name for slot in world.of("worker")))

    def mend(self, world: World) -> None:
        if not world.extras["pgbouncer"].process.alive:
            world.extras["pgbouncer"].start()


@fault
class PoolerStopped(PoolerKilled):
    """pgbouncer stands still: its kernel acknowledges everything, and nobody answers."""

    name = "pgbouncer-stop"

    def strike(self, world: World) -> Cost:
        if not world.extras["pgbouncer"].process.alive:
            raise MissedError("pgbouncer is down")
        world.extras["pgbouncer"].process.kill(signal.SIGSTOP)
        return all_under_way(world, *(slot.name for slot in world.of("worker")))

    def mend(self, world: World) -> None:
        world.extras["pgbouncer"].process.kill(signal.SIGCONT)
        super().mend(world)
