"""Faults of our own processes: killed and frozen, anywhere or exactly between two steps."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from laboratory.boundary import CHILD, DRAINER, MAIN
from laboratory.errors import LabError, wait_until
from laboratory.faults import MISSED, OBEYED, ORDERED, Cost, Fault, MissedError, fault

if TYPE_CHECKING:
    from laboratory.slot import Slot
    from laboratory.world import World


CHILDREN = 2  # of a worker: so many runs are under way there, at most
STOPS = 2.0  # seconds from an order that was taken to a process that stands


def struck(slot: Slot, number: signal.Signals, *, whole: bool) -> set[int]:
    """Send a signal; the children that the process has at that moment, because it makes none while it stands still."""
    slot.signal(signal.SIGSTOP)
    children = set(slot.children())
    (slot.signal_all if whole else slot.signal)(number)
    if number != signal.SIGSTOP:
        slot.signal(signal.SIGCONT)
    return children


class OneProcess(Fault):
    """Something happens to one process of a role, which is drawn."""

    role: ClassVar[str]

    def victim(self, world: World) -> Slot:
        """Draw it."""
        self.slot = self.chance.choice(world.targets(self.role))
        return self.slot


class Signalled(OneProcess):
    """One process is sent a signal.

    Attributes:
        number: the signal.
        whole: whether all that the process has started get it too.
        most: so many runs may be lost by it; in streaming mode what the worker has kept, too.
    """

    number: ClassVar[signal.Signals]
    whole: ClassVar[bool] = False
    most: ClassVar[int] = 0

    def strike(self, world: World) -> Cost:
        victim = self.victim(world)
        if not victim.process.alive:
            raise MissedError(f"{victim.name} is down")
        children = struck(victim, self.number, whole=self.whole)
        most = None if world.needs.streaming else self.most * world.at_once
        return Cost({victim.name}, most=most, pids=children) if self.most else Cost()


class Frozen(Signalled):
    """A process that is stopped, and goes on later."""

    number = signal.SIGSTOP

    def mend(self, world: World) -> None:  # noqa: ARG002
        """Let it go on."""
        if hasattr(self, "slot"):
            self.slot.signal_all(signal.SIGCONT)


@fault
class DrainerKilled(Signalled):
    """SIGKILL of a drainer, wherever it is."""

    name, role = "drainer-kill", "drainer"
    number = signal.SIGKILL


@fault
class DrainerFrozen(Frozen):
    """SIGSTOP of a drainer, for longer than the lease of what it has claimed, then SIGCONT."""

    name, role, hold = "drainer-freeze", "drainer", (1.0, 12.0)


class AtBoundary(OneProcess):
    """A process that ends or freezes itself when it next passes a boundary of its own code, see boundary.py."""

    boundary: ClassVar[str]
    action: ClassVar[str]

    def strike(self, world: World) -> Cost:
        order = self.victim(world).arm(self.boundary, self.action)
        if order is None:
            raise MissedError(f"{self.slot.name} has another order")
        self.order, self.became = order, ORDERED
        return Cost({self.slot.name}, most=1) if self.role == "worker" and self.action == "kill" else Cost()

    def waits(self) -> bool:
        return self.became == ORDERED and self.slot.is_armed(self.order)

    def mend(self, world: World) -> None:  # noqa: ARG002
        """Take the order back where nobody came by, and let go on who was frozen."""
        if self.became == ORDERED:
            self.became = MISSED if self.slot.disarm(self.order) else OBEYED
            if self.became == OBEYED and self.action == "stop":
                self.stands()  # who has taken its order and not stopped yet would stand for ever
            self.slot.signal_all(signal.SIGCONT)

    def stands(self) -> bool:
        """Whether who has taken the order stands, for which it has a moment; else something else has ended it."""
        with suppress(LabError):
            return wait_until(self.slot.stands, STOPS)
        return False


class MainAtBoundary(AtBoundary):
    """The main process of a worker: children end what they have begun, and nobody reports that they are at it."""

    def strike(self, world: World) -> Cost:
        super().strike(world)
        if self.boundary == "leaving":
            if not self.slot.process.alive:
                self.slot.disarm(self.order)
                raise MissedError(f"{self.slot.name} is down")
            self.slot.signal(signal.SIGTERM)
        return Cost({self.slot.name}, most=CHILDREN * world.at_once)


def _at(role: str, who: str, boundary: str, meaning: str, kind: type[AtBoundary] = AtBoundary) -> None:
    """The two faults of a boundary."""
    for action, number, hold in (("kill", "SIGKILL", (1.0, 3.0)), ("stop", "SIGSTOP", (2.0, 12.0))):
        name = f"{who}-{'kill' if action == 'kill' else 'freeze'}-{boundary}"
        words = {"role": role, "boundary": boundary, "action": action, "name": name, "hold": hold}
        fault(type(name, (kind,), {"__doc__": f"{number} of a {who} between two steps: {meaning}.", **words}))


for _boundary, _meaning in DRAINER.items():
    _at("drainer", "drainer", _boundary, _meaning)
for _boundary, _meaning in CHILD.items():
    _at("worker", "child", _boundary, _meaning)
for _boundary, _meaning in MAIN.items():
    _at("worker", "worker-main", _boundary, _meaning, MainAtBoundary)


@fault
class ChildKilled(OneProcess):
    """SIGKILL of a child of a worker's pool."""

    name, role = "child-kill", "worker"

    def strike(self, world: World) -> Cost:
        children = sorted(self.victim(world).children())
        if not children:
            raise MissedError(f"{self.slot.name} has no child")
        child = self.chance.choice(children)
        os.kill(child, signal.SIGKILL)
        return Cost({self.slot.name}, most=1, pids={child})


@fault
class ChildFrozen(OneProcess):
    """SIGSTOP of a child of a worker's pool, then SIGCONT: its job takes longer, and nothing else happens."""

    name, role, hold = "child-freeze", "worker", (1.0, 10.0)

    def strike(self, world: World) -> Cost:
        children = sorted(self.victim(world).children())
        if not children:
            raise MissedError(f"{self.slot.name} has no child")
        self.child = self.chance.choice(children)
        os.kill(self.child, signal.SIGSTOP)
        return Cost()

    def mend(self, world: World) -> None:  # noqa: ARG002
        if hasattr(self, "child"):
            with suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGCONT)


@fault
class WorkerKilled(Signalled):
    """SIGKILL of a worker's main process and its children, as by systemd or a power cut."""

    name, role = "worker-kill", "worker"
    number, whole, most = signal.SIGKILL, True, CHILDREN


@fault
class WorkerMainKilled(Signalled):
    """SIGKILL of a worker's main process alone: children end the tasks that they have begun."""

    name, role = "worker-main-kill", "worker"
    number, most = signal.SIGKILL, CHILDREN


@fault
class WorkerFrozen(Frozen):
    """SIGSTOP of a worker with its children, shorter or longer than it takes to be given up, then SIGCONT."""

    name, role, hold = "worker-freeze", "worker", (1.0, 15.0)
    whole, most = True, CHILDREN


@fault
class WorkerMainFrozen(Frozen):
    """SIGSTOP of a worker's main process alone, then SIGCONT: no heartbeat comes, and its children go on."""

    name, role, hold = "worker-main-freeze", "worker", (1.0, 15.0)
    most = CHILDREN


@fault
class WorkerReplaced(Signalled):
    """SIGTERM of a worker, as at a deployment: it ends its tasks and gives the rest back, and another comes."""

    name, role = "worker-term", "worker"
    number = signal.SIGTERM


@fault
class WorkersAway(Fault):
    """All workers are killed or told to end, and none is there for a while."""

    name, hold = "workers-away", (5.0, 20.0)

    def strike(self, world: World) -> Cost:
        number = self.chance.choice((signal.SIGTERM, signal.SIGKILL))
        self.slots = world.targets("worker")
        children: set[int] = set()
        for slot in self.slots:
            slot.stay_down()
            if slot.process.alive:
                children |= struck(slot, number, whole=number == signal.SIGKILL)
        world.say(f"{self.name}: {number.name}")
        most = CHILDREN * world.at_once * len(self.slots)
        return Cost({slot.name for slot in self.slots}, most=most, pids=children) if number == signal.SIGKILL else Cost()

    def mend(self, world: World) -> None:  # noqa: ARG002
        for slot in getattr(self, "slots", []):
            slot.let_start()


@fault
class DrainerReplaced(Signalled):
    """SIGTERM of a drainer, as at a deployment."""

    name, role = "drainer-term", "drainer"
    number = signal.SIGTERM


@fault
class ClientKilled(Signalled):
    """SIGKILL of the process that makes jobs, in the midst of a transaction or not."""

    name, role = "client-kill", "client"
    number = signal.SIGKILL

    def strike(self, world: World) -> Cost:
        if not world.targets("client"):
            raise MissedError("there is no client")
        return super().strike(world)
