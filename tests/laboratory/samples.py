"""What is measured while a long run goes on: a line of JSON every few seconds, none of it through a proxy."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from fix_rabbitmq import RabbitServer

from laboratory.world import BROKEN

if TYPE_CHECKING:
    from laboratory.world import World

EVERY = 5.0  # seconds between two samples

_PLACES = """
select 'blocked', count(*) from bridge.blocked union all select 'scheduled', count(*) from bridge.scheduled
union all select 'ready', count(*) from bridge.ready union all select 'held', count(*) from bridge.held
union all select state, count(*) from bridge.inflight group by state"""
_AGES = """
select 'ready', extract(epoch from clock_timestamp() - min(since))::float from bridge.ready
union all select state, extract(epoch from clock_timestamp() - min(coalesce(started_at, published_at, claimed_at)))::float
from bridge.inflight group by state"""
_TABLES = """
select coalesce(p.relname, c.relname), sum(pg_total_relation_size(c.oid))::bigint from pg_class c
left join pg_inherits i on i.inhrelid = c.oid left join pg_class p on p.oid = i.inhparent
where c.relnamespace = 'bridge'::regnamespace and c.relkind = 'r' group by 1 having sum(pg_total_relation_size(c.oid)) > 100000"""
_CONNECTIONS = """
select coalesce(nullif(application_name, ''), 'tasks'), count(*) from pg_stat_activity
where backend_type = 'client backend' and pid <> pg_backend_pid() and not coalesce(client_port = any (%s), false) group by 1"""
_FINISHED = "select count(*) from bridge.finished"


@dataclass(frozen=True)
class Process:
    """One process at one moment.

    Attributes:
        kind: drainer, worker, pool child, postgres backend, postgres, redis, rabbitmq.
        pid, born: which life.
        anonymous: bytes of memory that belong to no file and to no shared segment. Pages that a fork has left shared count on both
            sides: of those that are a process's own alone there are more as soon as another one of its family ends.
        handles: open file handles, sockets among them.
        threads: how many.
    """

    kind: str
    pid: int
    born: float
    anonymous: int
    rss: int
    handles: int
    threads: int


@dataclass(frozen=True)
class Sample:
    """Everything at one moment; a part that could not be asked (its server was away) is empty.

    Attributes:
        at: seconds since the beginning.
        asked, finished: jobs so far.
        places, ages, tables: by name; ages are seconds of the oldest.
        connections: to Postgres, by name, but for those whose clients have gone behind a proxy that does not tell.
        messages: in the broker.
        clients: connections to the broker, with the same exception.
    """

    at: float
    asked: int = 0
    finished: int | None = None
    places: dict[str, int] = field(default_factory=dict)
    ages: dict[str, float] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    connections: dict[str, int] = field(default_factory=dict)
    messages: int | None = None
    clients: int | None = None
    processes: list[Process] = field(default_factory=list)


class Sampler:
    """Takes a sample when one is due, and writes it to a file at once."""

    def __init__(self, file: Path) -> None:
        self.samples: list[Sample] = []
        self.file = file
        self._began = time.monotonic()
        self._due = 0.0

    def __call__(self, world: World) -> None:
        now = time.monotonic() - self._began
        if now < self._due:
            return
        self._due = now + EVERY
        sample = take(world, now)
        self.samples.append(sample)
        with self.file.open("a") as file:
            file.write(json.dumps(asdict(sample)) + "\n")


def take(world: World, at: float) -> Sample:
    """One sample."""
    found: dict[str, Any] = {"asked": world.ledger.one("select count(*) from asked")}
    with suppress(*BROKEN), world.sql() as connection:
        connection.execute("set statement_timeout = '3s'")
        ask = lambda query, *values: dict(connection.execute(query, values).fetchall())  # noqa: E731
        found |= {"places": ask(_PLACES), "tables": ask(_TABLES), "connections": ask(_CONNECTIONS, forsaken(world, "postgres"))}
        found["ages"] = {name: age for name, age in ask(_AGES).items() if age is not None}
        found["finished"] = connection.execute(_FINISHED).fetchone()[0]  # type: ignore[index]
    with suppress(*BROKEN):
        found |= {"messages": world.messages(), "clients": clients(world) - len(forsaken(world, "broker"))}
    return Sample(round(at, 1), processes=list(processes(world)), **found)


def forsaken(world: World, server: str) -> list[int]:
    """The ports from which proxies hold connections that nobody uses any more; see `Proxy.forsaken`."""
    return [port for proxy in world.links(None, server) for port in proxy.forsaken]


def clients(world: World) -> int:
    """Connections to the broker."""
    if isinstance(world.broker, RabbitServer):
        return len(world.broker.api("GET", "connections"))
    with world.broker.client() as client:
        return int(client.info("clients")["connected_clients"])  # type: ignore[index]


def processes(world: World) -> list[Process]:
    """All processes of the world's two sides, the load's client left out."""
    found = []
    for slot in world.slots.values():
        if slot.role != "client" and slot.process.alive:
            found += _family(slot.pid, slot.role, "pool child" if slot.role == "worker" else "child of a drainer")
    with suppress(Exception):
        found += _family(world.postgres.process.pid, "postgres", "postgres backend")
    with suppress(Exception):
        server = world.broker.process
        found += _family(server.pid, world.needs.broker or "broker", "of the broker")
    return found


def _family(pid: int, kind: str, kind_of_children: str) -> list[Process]:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        members = [(parent, kind), *((child, kind_of_children) for child in parent.children())]
        return [one for process, name in members if (one := _measured(process, name)) is not None]
    return []


def _measured(process: psutil.Process, kind: str) -> Process | None:
    try:
        with process.oneshot():
            anonymous = _anonymous(process.pid)
            born, handles, threads = process.create_time(), process.num_fds(), process.num_threads()
            name = "postgres auxiliary" if kind == "postgres backend" and "127.0.0.1" not in " ".join(process.cmdline()) else kind
            return Process(name, process.pid, born, anonymous, process.memory_info().rss, handles, threads)
    except (psutil.Error, OSError):
        return None


def _anonymous(pid: int) -> int:
    found = re.search(r"^Anonymous: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    if found is None:
        raise psutil.ZombieProcess(pid)
    return int(found[1]) << 10
