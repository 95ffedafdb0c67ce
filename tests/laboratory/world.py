"""The servers and processes of a scenario, with a proxy between every two that talk to each other."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import psycopg
import redis
from fix_full import NoDiskError, SmallDisk
from fix_rabbitmq import HOW_TO_GET_IT, RabbitServer, find_programs
from fix_tls import make_certificates
from model import trace

from bridge import schema
from bridge.errors import ServerError
from bridge.local.binaries import find_postgres
from bridge.local.broker import RedisServer, free_port
from bridge.local.home import private_folder
from bridge.local.postgres import PostgresServer
from laboratory.errors import LabError, wait_until
from laboratory.ledger import DSN, SLOT, Ledger
from laboratory.proxy import Proxy
from laboratory.slot import Slot, Supervisor
from laboratory.tasks import EFFECTS, QUEUES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TESTS = Path(__file__).parent.parent
LOOSE = {"fsync": "off", "max_connections": "120"}  # a crash of processes loses nothing that was written, only one of the machine does
SMALL = {"min_wal_size": "32MB", "max_wal_size": "64MB"}
DISK = 400 << 20  # bytes
BUNDLE = 20  # jobs of a message, where many travel together
SETTINGS = {"heartbeat": 1, "worker_lost": 8, "publish_lease": 6, "republish_grace": 4, "window": 60, "max_losses": 50}
TIMEOUT = 4  # seconds a call may take: below the lease of a publish, as by default
SLACK = 4.0  # seconds beyond `worker_lost` until a worker that came back has told what it holds

# Who builds what a world may have beside the usual; called when the schema is installed and before any process.
EXTRAS: dict[str, Callable[[World], Any]] = {}


@dataclass(frozen=True)
class Needs:
    """What a fault needs of the world.

    Attributes:
        broker: only with this one; None: either.
        standby: a second Postgres that follows the first.
        pgbouncer: a pooler between all processes and Postgres.
        cron: pg_cron in the main Postgres.
        durable: fsync on.
        disk: the main Postgres on a small filesystem of its own.
        bundles: many jobs in a message.
        streaming: workers that keep results for half a second.
    """

    broker: Literal["redis", "rabbitmq"] | None = None
    standby: Literal["sync", "async"] | None = None
    pgbouncer: bool = False
    cron: bool = False
    durable: bool = False
    disk: bool = False
    bundles: bool = False
    streaming: bool = False

    def fits(self, other: Needs) -> bool:
        """Whether both can be had in one world."""
        return all(mine in (None, False, its) or its in (None, False) for mine, its in zip(self._all(), other._all(), strict=True))

    def with_(self, other: Needs) -> Needs:
        """Both in one."""
        return Needs(*(mine or its for mine, its in zip(self._all(), other._all(), strict=True)))

    def _all(self) -> tuple[Any, ...]:
        return (self.broker, self.standby, self.pgbouncer, self.cron, self.durable, self.disk, self.bundles, self.streaming)


class World:
    """A context manager: all of it runs inside the block, nothing of it afterwards.

    Args:
        folder: of its own, walkable by the user that root drops to; made when missing.
        needs: what it must have; the broker is Redis where nobody says.
        seed: what the load draws from.
        rate: calls of the load a second; 0: no load.
        say: where lines of the report go.
        trace: record every change of the jobs' rows, see model.trace.
    """

    def __init__(
        self,
        folder: Path,
        needs: Needs | None = None,
        *,
        seed: int = 0,
        rate: float = 0.0,
        say: Callable[[str], None] = lambda _: None,
        trace: bool = False,
    ) -> None:
        self.folder, self.seed, self.rate, self.say, self.trace = folder, seed, rate, say, trace
        self.needs = (needs or Needs()).with_(Needs(broker="redis" if needs is None or needs.broker is None else needs.broker))
        self.settings = dict(SETTINGS)
        self.slack = SETTINGS["worker_lost"] + SLACK
        self.slots: dict[str, Slot] = {}
        self.spared: frozenset[str] = frozenset()
        self.extras: dict[str, Any] = {}
        self._links: dict[tuple[str, str], Proxy] = {}
        self._closing: list[Callable[[], object]] = []

    @property
    def at_once(self) -> int:
        """How many jobs a process of a worker's pool may be at, as far as anybody knows when all of the worker is gone."""
        return BUNDLE if self.needs.bundles else 1

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _open(self) -> None:
        self.folder.mkdir(mode=0o711, exist_ok=True)
        (self.folder / "logs").mkdir()
        self._open_servers()
        self._install()
        for name in ("standby", "pgbouncer"):
            if getattr(self.needs, name):
                self._open_extra(name)
        self._open_links()
        self._open_processes()

    def close(self) -> None:
        """End everything, in reverse; what cannot be ended is told."""
        while self._closing:
            try:
                self._closing.pop()()
            except Exception as error:  # noqa: BLE001 - the others are to be ended as well
                self.say(f"while closing: {error}")

    # Servers

    def _open_servers(self) -> None:
        binaries = find_postgres()
        if binaries is None:
            raise LabError("no postgres here: apt-get install postgresql-15")
        plain = replace(binaries, cron=False)
        witness = PostgresServer(self.folder / "witness", "witness", settings=LOOSE, binaries=plain)
        settings = ({} if self.needs.durable else LOOSE) | (SMALL if self.needs.disk else {})
        chosen = binaries if self.needs.cron else plain
        self.postgres = PostgresServer(self.folder / "pg", "bridge", port=free_port(), settings=settings, binaries=chosen)
        if self.needs.disk:
            self._open_disk()
        self.broker = self._new_broker()
        for server in (witness, self.postgres, self.broker):
            self._closing.append(server.stop)
            server.start()
        self.ledger = Ledger(witness.dsn)
        self.ledger.create()

    def _open_disk(self) -> None:
        """Have the data of the main Postgres, which is not there yet, on a filesystem that can be filled."""
        try:
            self.disk = SmallDisk(self.folder / "disk", DISK)
        except NoDiskError as error:
            raise LabError(str(error)) from error
        self._closing.append(self.disk.remove)
        private_folder(self.postgres.directory, self.postgres.account)
        (self.postgres.directory / f"{self.postgres.data.name}.new").symlink_to(self.disk.folder)

    def _new_broker(self) -> RedisServer | RabbitServer:
        if self.needs.broker == "redis":
            return RedisServer(self.folder / "redis", port=free_port())
        programs = find_programs()
        if programs is None:
            raise LabError(f"no rabbitmq-server here: {HOW_TO_GET_IT}")
        return RabbitServer(self.folder / "rabbitmq", programs, make_certificates(self.folder / "tls"))

    def _install(self) -> None:
        self.dsn = self.postgres.dsn
        schema.install(self.dsn)
        with self.sql() as connection:
            connection.execute(EFFECTS)
            for name, value in self.settings.items():
                connection.execute("update bridge.setting set value = %s where name = %s", (str(value), name))
            connection.execute("select bridge.set_limit('lab', task => 'lab.limited', concurrency => 2)")
            connection.execute("select bridge.set_limit('rate', task => 'lab.rated', rate => 2, burst => 2)")
            for queue in QUEUES if self.needs.bundles else ():
                connection.execute("select bridge.set_bundle(%s, %s)", (queue, BUNDLE))
        if self.trace:
            trace.install(self.dsn)

    def _open_extra(self, name: str) -> None:
        if name not in EXTRAS:
            raise LabError(f"nobody builds a {name} here: a module of laboratory/faults must put it into EXTRAS")
        self.extras[name] = extra = EXTRAS[name](self)
        self._closing.append(extra.stop)

    # Links

    def _open_links(self) -> None:
        ports = {"postgres": self._port_of_postgres(), "broker": self.broker.port or 0}
        for slot, server in product(("client1", "drainer1", "drainer2", "worker1", "worker2"), ports):
            self.open_link(slot, server, ports[server])

    def open_link(self, slot: str, server: str, target: int | str) -> Proxy:
        """Have a proxy between the two, which leads to this port, or to the socket at this path."""
        self._links[slot, server] = proxy = Proxy(target)
        self._closing.append(proxy.close)
        return proxy

    def _port_of_postgres(self) -> int:
        """Where links to Postgres lead: the pooler, where there is one."""
        pooler = self.extras.get("pgbouncer")
        return int(getattr(pooler, "port", None) or self.postgres.port or 0)

    def link(self, slot: str, server: str) -> Proxy:
        """The proxy between a slot, or `pgbouncer`, and `postgres` or `broker`; and between `standby` and `primary`."""
        return self._links[slot, server]

    def links(self, who: str | None, server: str) -> list[Proxy]:
        """The proxies of a slot, of a role, or of all, to one server."""
        return [proxy for (slot, to), proxy in self._links.items() if to == server and (who is None or slot.startswith(who))]

    def retarget(self, server: str, port: int) -> None:
        """Have all new connections go to another port, and `dsn` with them; where there is a pooler, its connections to Postgres."""
        if server == "postgres":
            self.dsn = at_port(self.dsn, port)
        behind = "pgbouncer" if server == "postgres" and self.needs.pgbouncer else None
        for proxy in self.links(behind, server):
            proxy.target = port

    def heal(self) -> None:
        """Let every link be well."""
        for proxy in self._links.values():
            proxy.heal()

    # Processes

    def _open_processes(self) -> None:
        celery = [sys.executable, "-m", "celery", "-A", "laboratory.tasks", "worker", "--concurrency=2", "--loglevel=INFO"]
        for number in (1, 2):
            self._add("drainer", number, [sys.executable, "-m", "laboratory.drainer"])
            self._add("worker", number, [*celery, "-Q", ",".join(QUEUES), "-n", f"worker{number}@lab"])
        if self.rate > 0:
            self._add("client", 1, [sys.executable, "-m", "laboratory.load", str(self.seed), str(self.rate)])
        supervisor = Supervisor(self.slots)
        self._closing.append(supervisor.stop)
        for slot in self.slots.values():
            slot.start()
        wait_until(self._are_ready, 120.0, "drainers and workers report, and the client asks")
        supervisor.start()

    def stop_load(self, timeout: float = 60.0) -> None:
        """Ask for nothing any more; returns when the last call has ended."""
        if (slot := self.slots.get("client1")) is not None:
            slot.stay_down()
            self.link("client1", "broker").heal()  # for which Celery's call would wait for ever
            with suppress(Exception):
                slot.process.ask_to_stop()
                slot.process.wait(timeout)
            slot.end()

    def start_load(self) -> None:
        """Ask again after `stop_load`; returns when the first call is made."""
        before = self.ledger.one("select count(*) from asked")
        self.slots["client1"].let_start()
        wait_until(lambda: self.ledger.one("select count(*) from asked") > before, 120.0, "the client asks")

    def _add(self, role: str, number: int, command: Sequence[str]) -> Slot:
        name = f"{role}{number}"
        slot = self.slots[name] = Slot(name, role, command, self._environment(name), self.folder)
        self._closing.append(slot.end)
        return slot

    def _environment(self, name: str) -> Mapping[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "LAB_"))}
        broker = at_port(self.broker_url, self.link(name, "broker").port)
        return ours | {
            "BRIDGE_DATABASE_URL": at_port(self.dsn, self.link(name, "postgres").port),
            "BRIDGE_BROKER_URL": broker,
            "CELERY_BROKER_URL": broker,
            "BRIDGE_TIMEOUT": str(TIMEOUT),
            "BRIDGE_SHIPMENT": "10",  # small, so that drainers claim ahead
            **({"BRIDGE_STREAMING": "0.5"} if self.needs.streaming else {}),
            DSN: self.ledger.dsn,
            SLOT: name,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]),
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def broker_url(self) -> str:
        """The broker past the proxies."""
        return self.broker.url("/") if isinstance(self.broker, RabbitServer) else self.broker.url

    def _are_ready(self) -> bool:
        for slot in self.slots.values():
            if not slot.process.alive:
                raise LabError(f"{slot.name} ended with status {slot.process.returncode}: {slot.process.log_tail()}")
        asks = self.rate == 0 or bool(self.ledger.one("select exists (select from asked)"))
        works = all(" ready." in slot.process.log_text() for slot in self.of("worker"))
        return asks and works and self._count_drainers() == len(self.of("drainer"))

    def _count_drainers(self) -> int:
        with self.sql() as connection:
            row = connection.execute("select count(*) from bridge.drainer where stopped_at is null").fetchone()
        return row[0] if row else 0

    def of(self, role: str) -> list[Slot]:
        """The slots of a role."""
        return [slot for slot in self.slots.values() if slot.role == role]

    def targets(self, role: str) -> list[Slot]:
        """Those of them whose processes may be hit: a long run spares some, so that somebody grows old."""
        return [slot for slot in self.of(role) if slot.name not in self.spared]

    # Looks

    def sql(self) -> psycopg.Connection[Any]:
        """A new connection to the main database, past every proxy; close it by `with`.

        It waits for no standby: who is to start that again must not wait for it.
        """
        return psycopg.connect(self.dsn, autocommit=True, connect_timeout=5, options="-c synchronous_commit=local")

    @property
    def admin_dsn(self) -> str:
        """The database `postgres` of the same server."""
        return self.dsn.replace("/bridge", "/postgres")

    def messages(self) -> int:
        """How many messages the broker has, those that a worker has fetched and not acknowledged among them."""
        if isinstance(self.broker, RabbitServer):
            found = self.broker.api("GET", "queues/%2f")
            return sum(one.get("messages", 0) for one in found if one["name"] in QUEUES)
        with redis.Redis.from_url(self.broker_url, socket_timeout=5, socket_connect_timeout=5) as client:  # it may stand still
            steps = [f"{queue}{step}" for queue in QUEUES for step in ("", "\x06\x163", "\x06\x166", "\x06\x169")]
            return sum(int(client.llen(key)) for key in steps) + int(client.hlen("unacked"))  # type: ignore[arg-type]

    def wait_until(self, look: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
        """Wait for something true; raises LabError."""
        return wait_until(look, timeout, what)


# What a look may meet while a server is away, or not yet the primary.
BROKEN = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction, redis.RedisError, OSError, ServerError)


def at_port(url: str, port: int) -> str:
    """The same URL at another port of 127.0.0.1."""
    head, _, tail = url.rpartition("@127.0.0.1:")
    return f"{head}@127.0.0.1:{port}/{tail.partition('/')[2]}"


def new_folder() -> Path:
    """A folder for a world that also the user whom root drops to can walk through."""
    folder = Path("/tmp") / f"br-lab-{time.strftime('%H%M%S')}-{secrets.token_hex(2)}"  # noqa: S108
    folder.mkdir(mode=0o711)
    return folder


def drop_folder(folder: Path) -> None:
    """And away with it."""
    shutil.rmtree(folder, ignore_errors=True)
