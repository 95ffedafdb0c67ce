"""What a broker can do to messages and to those who talk to it. Rows bring messages back, so none of it costs a run."""

from __future__ import annotations

import signal
from abc import abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.error import HTTPError
from urllib.parse import quote

import redis

from laboratory.faults import Cost, Fault, MissedError, fault
from laboratory.tasks import QUEUES
from laboratory.world import Needs

if TYPE_CHECKING:
    from fix_rabbitmq import RabbitServer

    from laboratory.world import World

STEPS = ("", "\x06\x163", "\x06\x166", "\x06\x169")  # what kombu puts behind a queue's name, a list for each step of priority
ALARM, WELL = "0.00001", "0.4"  # shares of the machine's memory from which RabbitMQ takes no more
CALL = 3.0  # seconds a call of ours may take: a broker may stand still by another fault


def client(world: World) -> redis.Redis:
    """A client that waits for nobody."""
    return redis.Redis.from_url(world.broker_url, socket_timeout=CALL, socket_connect_timeout=CALL)


class RedisFault(Fault):
    """Something that happens to a Redis; `do` is all of it where nothing needs to be mended."""

    needs: ClassVar[Needs] = Needs(broker="redis")

    def strike(self, world: World) -> Cost:
        with client(world) as connection:
            self.do(connection)
        return Cost()

    @abstractmethod
    def do(self, connection: redis.Redis) -> None:
        """What happens."""


@fault
class RedisFlushed(RedisFault):
    """FLUSHALL: messages, kombu's bindings and what workers hold unacknowledged are gone."""

    name = "redis-flush"

    def do(self, connection: redis.Redis) -> None:
        connection.flushall()


@fault
class RedisListDeleted(RedisFault):
    """The list of one queue is deleted, as by a purge of somebody who does not know of rows."""

    name = "redis-list-delete"

    def do(self, connection: redis.Redis) -> None:
        queue = self.chance.choice(QUEUES)
        connection.delete(*(queue + step for step in STEPS))


@fault
class RedisClientsKilled(RedisFault):
    """CLIENT KILL of everybody, one to three times."""

    name = "redis-client-kill"

    def do(self, connection: redis.Redis) -> None:
        for _ in range(self.chance.randint(1, 3)):
            for kind in ("normal", "pubsub"):
                connection.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


@fault
class RedisFull(RedisFault):
    """Redis is out of memory and evicts nothing: what reads goes on, what writes is refused."""

    name = "redis-full"
    hold: ClassVar[tuple[float, float]] = (1.0, 8.0)

    def do(self, connection: redis.Redis) -> None:
        connection.config_set("maxmemory", "1")

    def mend(self, world: World) -> None:
        with client(world) as connection:
            connection.config_set("maxmemory", "0")


@fault
class RedisFrozen(Fault):
    """SIGSTOP of Redis, then SIGCONT: connections stand, and nobody answers."""

    name = "redis-freeze"
    needs = Needs(broker="redis")
    hold: ClassVar[tuple[float, float]] = (0.5, 10.0)

    def strike(self, world: World) -> Cost:
        if not world.broker.process.alive:
            raise MissedError("redis is down")
        world.broker.process.kill(signal.SIGSTOP)
        return Cost()

    def mend(self, world: World) -> None:
        world.broker.process.kill(signal.SIGCONT)


class RedisRestarted(Fault):
    """SIGKILL of Redis, which is started again later."""

    needs: ClassVar[Needs] = Needs(broker="redis")
    hold: ClassVar[tuple[float, float]] = (0.0, 2.0)
    keeps: ClassVar[bool] = False

    def strike(self, world: World) -> Cost:
        if not world.broker.process.alive:
            raise MissedError("redis is down")
        if self.keeps:
            with suppress(redis.RedisError), client(world) as connection:
                connection.save()
        world.broker.kill()
        if not self.keeps:
            (world.folder / "redis" / "dump.rdb").unlink(missing_ok=True)
        return Cost()

    def mend(self, world: World) -> None:
        if not world.broker.process.alive:
            world.broker.start()


@fault
class RedisCrashed(RedisRestarted):
    """SIGKILL of Redis, which comes back with its data of a moment before."""

    name, keeps = "redis-restart", True


@fault
class RedisLost(RedisRestarted):
    """SIGKILL of Redis, which comes back empty."""

    name = "redis-loss"


@fault
class RedisGone(RedisRestarted):
    """Redis is away for longer than a call may take, and comes back empty."""

    name, hold = "redis-gone", (5.0, 15.0)


class RabbitFault(Fault):
    """Something that happens to a RabbitMQ; `do` is all of it where nothing needs to be mended, and gives what it has seen of it."""

    needs: ClassVar[Needs] = Needs(broker="rabbitmq")

    def strike(self, world: World) -> Cost:
        world.say(f"{self.name}: {self.do(server_of(world))}")
        return Cost()

    @abstractmethod
    def do(self, server: RabbitServer) -> str:
        """What happens."""


def server_of(world: World) -> RabbitServer:
    """The RabbitMQ of a world that has one."""
    server: Any = world.broker
    return server


def control(server: RabbitServer, *words: str) -> str:
    """rabbitmqctl, whose failure is an outage: a node that another fault has ended, or that is just starting."""
    try:
        return server.control(*words)
    except AssertionError as error:
        raise OSError(f"rabbitmqctl {words[0]}: {str(error).splitlines()[0]}") from error


def is_alarmed(server: RabbitServer) -> bool:
    """Whether it has raised an alarm, so that it reads nothing of whoever publishes."""
    try:
        server.api("GET", "health/checks/local-alarms")
    except HTTPError as error:
        if error.code != 503:
            raise
        return True
    return False


@fault
class RabbitKilled(Fault):
    """SIGKILL of RabbitMQ, which is started again later with what it had on disk."""

    name = "rabbitmq-kill"
    needs = Needs(broker="rabbitmq")
    hold: ClassVar[tuple[float, float]] = (0.0, 6.0)

    def strike(self, world: World) -> Cost:
        server = server_of(world)
        if not server.process.alive:
            raise MissedError("rabbitmq is down")
        server.kill()
        return Cost()

    def mend(self, world: World) -> None:
        server = server_of(world)
        if not server.process.alive:
            server.start()


@fault
class RabbitRestarted(RabbitFault):
    """RabbitMQ stops in order, and is started again later."""

    name = "rabbitmq-restart"
    hold: ClassVar[tuple[float, float]] = (0.0, 6.0)

    def do(self, server: RabbitServer) -> str:
        control(server, "stop_app")
        return "stopped"

    def mend(self, world: World) -> None:
        if server_of(world).process.alive:
            control(server_of(world), "start_app")


@fault
class RabbitAlarmed(RabbitFault):
    """RabbitMQ's memory alarm is on: it reads nothing of whoever publishes."""

    name = "rabbitmq-full"
    hold: ClassVar[tuple[float, float]] = (1.0, 10.0)

    def do(self, server: RabbitServer) -> str:
        control(server, "set_vm_memory_high_watermark", ALARM)
        if not is_alarmed(server):
            raise OSError("RabbitMQ has raised no alarm")
        return "the alarm is on"

    def mend(self, world: World) -> None:
        if server_of(world).process.alive:
            control(server_of(world), "set_vm_memory_high_watermark", WELL)


@fault
class RabbitConnectionsClosed(RabbitFault):
    """An operator closes every connection."""

    name = "rabbitmq-connections-close"

    def do(self, server: RabbitServer) -> str:
        found = server.api("GET", "connections")
        for one in found:
            with suppress(HTTPError):  # gone already
                server.api("DELETE", f"connections/{quote(one['name'], safe='')}")
        return f"{len(found)} closed"


@fault
class RabbitPurged(RabbitFault):
    """An operator purges one queue."""

    name = "rabbitmq-purge"

    def do(self, server: RabbitServer) -> str:
        queue = self.chance.choice(QUEUES)
        server.api("DELETE", f"queues/%2f/{queue}/contents")
        return queue


@fault
class RabbitQueueDeleted(RabbitFault):
    """An operator deletes one queue, under its consumers."""

    name = "rabbitmq-queue-delete"

    def do(self, server: RabbitServer) -> str:
        queue = self.chance.choice(QUEUES)
        server.api("DELETE", f"queues/%2f/{queue}")
        return queue
