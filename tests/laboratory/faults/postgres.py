"""Faults of Postgres short of its end: crashes, sessions that are killed, no connection left, no writes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg

from laboratory.faults import Cost, Fault, MissedError, fault
from laboratory.world import Needs

if TYPE_CHECKING:
    from laboratory.world import World

NO_ROOM = "No space left on device"
OURS = "starts_with(application_name, 'bridge ') and datname = current_database()"


@fault
class PostgresCrashed(Fault):
    """An immediate stop of Postgres, which is started again later."""

    name = "postgres-crash"
    hold = (0.0, 4.0)

    def strike(self, world: World) -> Cost:
        """Stop it as a crash does."""
        if not world.postgres.alive:
            raise MissedError("postgres is down")
        world.postgres.kill(signal.SIGQUIT)
        return Cost()

    def mend(self, world: World) -> None:
        """Start it where it does not run."""
        if not world.postgres.alive:
            world.postgres.start()


@fault
class BackendCrashed(Fault):
    """SIGKILL of one session, after which Postgres starts all of them anew."""

    name = "postgres-backend-crash"

    def strike(self, world: World) -> Cost:
        """Kill one that is ours."""
        with world.sql() as connection:
            pids = [row[0] for row in connection.execute(f"select pid from pg_stat_activity where {OURS} order by pid")]
        if not pids:
            raise MissedError("there is no session of ours")
        os.kill(self.chance.choice(pids), signal.SIGKILL)
        return Cost()


@fault
class SessionsKilled(Fault):
    """pg_terminate_backend of some or all sessions of ours, in volleys."""

    name = "postgres-sessions-kill"
    shares: ClassVar[tuple[float, ...]] = (0.2, 0.5, 1.0)

    def strike(self, world: World) -> Cost:
        """End a share of them, one to three times."""
        share = self.chance.choice(self.shares)
        words = f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS} and random() <= %s"
        with world.sql() as connection:
            ended = [connection.execute(words, (share,)).rowcount for _ in range(self.chance.randint(1, 3))]
        if not sum(ended):
            raise MissedError("no session of ours was there and drawn")
        return Cost()


@fault
class ConnectionsUsedUp(Fault):
    """Strangers have every connection, and ours find none."""

    name = "postgres-connections"
    hold = (1.0, 4.0)

    def strike(self, world: World) -> Cost:
        """Take what is free, end ours, take what they had."""
        self.taken: list[psycopg.Connection[Any]] = []
        with suppress(psycopg.OperationalError), world.sql() as connection:
            for _ in range(2):
                connection.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS}")
                with suppress(psycopg.OperationalError):
                    while True:
                        self.taken.append(psycopg.connect(world.dsn))
        if not self.taken:
            raise MissedError("postgres gives no connection at all")
        return Cost()

    def mend(self, world: World) -> None:  # noqa: ARG002
        """Give them back."""
        for connection in getattr(self, "taken", []):
            connection.close()


@fault
class WritesRefused(Fault):
    """Postgres answers and takes no writes, as a managed one whose disk is full."""

    name = "postgres-read-only"
    hold = (1.0, 5.0)

    def strike(self, world: World) -> Cost:
        """Refuse them to whoever does not say otherwise."""
        with world.sql() as connection:
            connection.execute("alter system set default_transaction_read_only = on")
            connection.execute("select pg_reload_conf()")
        return Cost()

    def mend(self, world: World) -> None:
        """Take them again; a Postgres that is down reads its settings when it starts."""
        with world.sql() as connection:
            connection.execute("set default_transaction_read_only = off")
            connection.execute("alter system reset default_transaction_read_only")
            connection.execute("select pg_reload_conf()")


@fault
class DiskFull(Fault):
    """The disk of Postgres is full for a while: what needs room fails."""

    name = "disk-full"
    needs = Needs(disk=True)
    hold = (2.0, 8.0)

    def strike(self, world: World) -> Cost:
        """Fill it."""
        self.server = world.postgres
        if not self.server.data.is_symlink():
            raise MissedError("the primary is not on the small disk any more")
        self.before = self.server.process.log_text().count(NO_ROOM)
        world.disk.fill()
        return Cost()

    def mend(self, world: World) -> None:
        """Make room, and start it where it has ended."""
        if not hasattr(self, "before"):
            return
        complaints = self.server.process.log_text().count(NO_ROOM) - self.before  # the log of one that is started begins anew
        world.disk.free()
        if not self.server.alive and self.server is world.postgres:
            self.server.start()
        elif self.server is world.postgres:
            world.sql().close()  # it may recover by itself, or end
        world.say(f"{self.name}: {complaints} complaints of Postgres")


@fault
class LogDiskFull(DiskFull):
    """The disk is full where the log of Postgres has to grow: it panics, and comes back when there is room."""

    name = "disk-full-log"

    def strike(self, world: World) -> Cost:
        """Fill it, and have the log grow."""
        super().strike(world)
        with suppress(psycopg.Error), world.sql() as connection:
            for _ in range(100):
                connection.execute("select pg_logical_emit_message(false, 'filler', repeat('x', 4000000))")
        return Cost()
