"""Failover: the primary is killed, its standby promoted, all connections led there; then another standby follows, for the next time."""

from __future__ import annotations

import signal
import time
from abc import abstractmethod
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, ClassVar

import psycopg
import pytest
from fix_servers import wait_until
from fix_standby import Replicated, Standby

from bridge.errors import ServerError
from bridge.local.postgres import SOCKET_PORT
from laboratory.errors import LabError
from laboratory.faults import Cost, Fault, MissedError, fault
from laboratory.world import EXTRAS, Needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from laboratory.world import World


@contextmanager
def _waited_for() -> Iterator[None]:
    """What does not come in time fails a test; in a run of the laboratory it is an outage, which may be another fault's."""
    try:
        yield
    except pytest.fail.Exception as error:
        raise ServerError(str(error)) from error


class Standbys:
    """A primary and what follows it, through one failover after the other.

    Raises:
        LabError: this Postgres has no pg_basebackup.
    """

    def __init__(self, world: World) -> None:
        if not (world.postgres.binaries.folder / "pg_basebackup").exists():
            raise LabError("no pg_basebackup here: apt-get install postgresql-15")
        self._world, self._number = world, count(2)
        self.pair = Replicated(world.folder, world.postgres, self._new())
        self._all = [self.pair.standby]

    def start(self) -> None:
        """Have the standby follow, and commits wait for it where it is a synchronous one."""
        self.pair.standby.start()
        with _waited_for():
            self.pair.replicate(synchronous=self._world.needs.standby == "sync")

    def promote(self) -> None:
        """Make the standby the primary of the world, whose old one has been killed."""
        with psycopg.connect(self.pair.standby.dsn) as connection:
            follows = connection.execute("select pg_is_in_recovery()").fetchone() == (True,)
        if follows:  # else it was promoted, and the answer was lost
            self.pair.promote()
        self._world.postgres = self.pair.primary = self.pair.standby

    def follow(self) -> None:
        """Have another standby follow, made anew from the primary."""
        self.pair.standby = self._new()
        self._all.append(self.pair.standby)
        self.start()

    def renew(self) -> None:
        """Have another take the place of the standby."""
        self.pair.standby.kill(signal.SIGQUIT)
        self.follow()

    def stop(self) -> None:
        """End all that there have been."""
        for server in self._all:
            server.kill(signal.SIGQUIT)
            server.stop()

    def _new(self) -> Standby:
        """Each has a line of its own: what one still suffers is no matter of the next."""
        primary = self._world.postgres
        line = self._world.open_link("standby", "primary", f"{primary.sockets}/.s.PGSQL.{primary.port or SOCKET_PORT}")
        return Standby(self._world.folder / f"pg{next(self._number)}", primary, line.port)


def _standbys(world: World) -> Standbys:
    standbys = Standbys(world)
    standbys.start()
    return standbys


EXTRAS["standby"] = _standbys


def of(world: World) -> Standbys:
    """Those of a world that has them."""
    standbys: Standbys = world.extras["standby"]
    return standbys


class Failover(Fault):
    """The primary is killed and its standby promoted. One failover at a time: another that would strike meanwhile says so.

    Attributes:
        steps: what is still to be done; a step that failed is done again.
    """

    hold: ClassVar[tuple[float, float]] = (0.0, 5.0)
    under_way: ClassVar[str] = "failover"

    def strike(self, world: World) -> Cost:
        self.steps: list[Callable[[World], object]] = []
        if world.extras.get(self.under_way):
            raise MissedError("another failover is under way")
        if not of(world).pair.standby.alive:
            raise MissedError("the standby is away")
        self.begin(world)
        world.extras[self.under_way] = self
        self.steps = [self.kill, self.lead, self.promote, self.lead, self.follow, self.done]
        if self.chance.random() < 0.5:  # the address leads to the standby when it is the primary, or already before
            del self.steps[1]
        return self.cost(world)

    @abstractmethod
    def begin(self, world: World) -> None:
        """What comes first."""

    @abstractmethod
    def cost(self, world: World) -> Cost:
        """What it may cost."""

    def mend(self, world: World) -> None:
        while getattr(self, "steps", []):
            self.steps[0](world)
            del self.steps[0]

    def kill(self, world: World) -> None:
        """A power cut, also of one that another fault has let start again."""
        if world.postgres.alive:
            world.postgres.kill()

    def lead(self, world: World) -> None:
        """Lead all connections to the standby."""
        world.retarget("postgres", of(world).pair.standby.port or 0)
        time.sleep(self.chance.uniform(0.0, 1.0))

    def promote(self, world: World) -> None:
        of(world).promote()
        world.say(f"{self.name}: the primary is {world.postgres.directory.name}")

    def follow(self, world: World) -> None:
        of(world).follow()

    def done(self, world: World) -> None:
        """Another may strike."""
        world.extras[self.under_way] = None
        world.say(f"{self.name}: {of(world).pair.standby.directory.name} follows")


@fault
class FailoverSynchronous(Failover):
    """The primary is killed, and a synchronous standby promoted after a while: nothing that was told may be missing."""

    name = "failover-sync"
    needs = Needs(standby="sync")

    def begin(self, world: World) -> None:
        self.kill(world)

    def cost(self, world: World) -> Cost:  # noqa: ARG002
        return Cost()


@fault
class FailoverAsynchronous(Failover):
    """The stream to the standby ends; a while later the primary is killed, and the standby promoted, which has not heard of that while.

    What had been committed before the strike is there: it has arrived when the stream ends.
    """

    name = "failover-async"
    needs = Needs(standby="async")
    hold: ClassVar[tuple[float, float]] = (0.0, 4.0)

    def begin(self, world: World) -> None:
        with _waited_for():  # not for long: what else has struck the primary is mended by who strikes, and this strikes again later
            wait_until(world.postgres._answers, 1, "the primary to be back from what else has struck it")
            try:
                of(world).pair.catch_up(5)
            except pytest.fail.Exception:
                of(world).renew()  # what it lacks may be gone from the primary: it would never have all
                raise
            of(world).pair.cut()

    def cost(self, world: World) -> Cost:
        # No bound: what ended in the tail is forgotten as well, and runs again, however much that was.
        return Cost({slot.name for slot in world.of("worker")}, loses_tail=True)


@fault
class StandbyCrashed(Fault):
    """The synchronous standby is killed, and started again later: until then no commit returns."""

    name = "standby-crash"
    needs = Needs(standby="sync")
    hold: ClassVar[tuple[float, float]] = (0.0, 6.0)

    def strike(self, world: World) -> Cost:
        if world.extras.get(Failover.under_way):
            raise MissedError("a failover is under way")
        if not of(world).pair.standby.alive:
            raise MissedError("the standby is away")
        of(world).pair.standby.kill(signal.SIGQUIT)
        return Cost()

    def mend(self, world: World) -> None:
        standby = of(world).pair.standby
        if not standby.alive:
            standby.start()
