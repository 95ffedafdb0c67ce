"""What every scenario works with: the servers, a clean start, the processes of each side, and the counting of jobs."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psycopg
import redis

from bridge import schema
from bridge.bench.cost import Meter, dead_rows
from bridge.bench.databases import Databases
from bridge.bench.jobs import NOOP, QUEUE, STAMP, STAMPS
from bridge.bench.making import Making, Producer
from bridge.bench.measure import BenchError
from bridge.errors import SettingError
from bridge.local.process import Process
from bridge.settings import without_password

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bridge.bench.servers import Servers

__all__ = ["STALLED", "Rig"]

STALLED = 300.0  # seconds without progress after which a benchmark gives up; a worker on a busy machine takes long to start
_READY = 120.0  # seconds that a process has to start; on a busy machine it takes long
_PAGE = 2000  # messages or keys of Redis read at once
_MESSAGE_ID = re.compile(rb'"id": "([0-9a-f-]{36})"')
_SHORTEST = 0.01  # seconds between two counts, at least
_TABLES = "job, ready, scheduled, inflight, blocked, dependency, unique_key, waiter, finished, attempt, worker, drainer"
_TABLES += ", held, lane, bucket, permit"
# Without the tick's lock, a tick and the truncate could wait for each other.
_CLEAR = f"""
  select pg_advisory_xact_lock(hashtextextended('bridge.tick', 0));
  truncate {", ".join(f"bridge.{table}" for table in _TABLES.split(", "))}
"""
# The same where rows of other tasks are to stay as they are, alive or dead.
_FORGET = (
    """
  with waiting as (delete from bridge.ready returning seq), sent as (delete from bridge.inflight returning seq)
  delete from bridge.job j where j.seq in (select w.seq from waiting w union all select s.seq from sent s)""",
    "delete from bridge.worker",
    "delete from bridge.drainer",
    "delete from bridge.waiter",
)
_FORGET_ENDED = "delete from bridge.finished f where f.task = any (%s)"
_HOLDS_JOBS = "select exists (select from bridge.job) or exists (select from bridge.finished)"


class Rig:
    """Servers in use by one benchmark.

    Args:
        servers: which.
        keeps: what is in the database beside the benchmark's own jobs stays when it begins anew.

    Raises:
        SettingError: the database holds jobs, or the broker keys: a benchmark empties both.
    """

    def __init__(self, servers: Servers, *, keeps: bool = False) -> None:
        self.servers = servers
        self.databases = Databases(servers.dsn)
        self._keeps = keeps
        self.control: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(servers.dsn, autocommit=True)
        self.broker = redis.Redis.from_url(servers.broker_url)
        self.results = redis.Redis.from_url(servers.results_url)
        if not (servers.own or keeps):
            self._refuse_used()

    def _refuse_used(self) -> None:
        if self.value(_HOLDS_JOBS):
            raise SettingError(f"{without_password(self.servers.dsn)} holds jobs", "name a database that may be emptied")
        for client, url in ((self.broker, self.servers.broker_url), (self.results, self.servers.results_url)):
            if client.dbsize():
                raise SettingError(f"{without_password(url)} holds keys", "name a Redis database that may be emptied, as the next one")

    def value(self, query: str, *values: Any) -> Any:
        """The first column of a query's first row."""
        row = self.control.execute(query.encode(), values or None).fetchone()
        return row[0] if row else None

    def clear(self) -> None:
        """Begin anew: no jobs, no messages, no results, and a checkpoint, as far as this role may, so that WAL files are used again."""
        with self.control.transaction():
            if self._keeps:
                self._forget()
            else:
                self.control.execute(_CLEAR.encode())
        self.stamps.unlink(missing_ok=True)
        with suppress(psycopg.errors.InsufficientPrivilege):
            self.control.execute("checkpoint")
        self.broker.flushdb()
        self.results.flushdb()

    def _forget(self) -> None:
        self.control.execute("set local enable_seqscan = off")
        for statement in _FORGET:
            self.control.execute(statement.encode())
        self.control.execute(_FORGET_ENDED, ([NOOP, STAMP],))

    def close(self) -> None:
        """Leave nothing behind, and disconnect."""
        self.clear()
        self.control.close()
        self.databases.drop_all()

    @contextmanager
    def beside(self) -> Iterator[Rig]:
        """The same servers with another database that has our schema, and goes away; what one puts there stays there."""
        dsn = self.databases.create()
        schema.install(dsn)
        other = Rig(replace(self.servers, dsn=dsn), keeps=True)
        try:
            yield other
        finally:
            other.control.close()
            self.databases.drop(dsn)

    @property
    def stamps(self) -> Path:
        """The file that first lines of tasks are noted in."""
        return self.servers.folder / "stamps"

    def left_behind(self) -> int:
        """How many row versions have been left behind in this database; exact once the processes that worked here have ended."""
        return dead_rows(self.control)

    @contextmanager
    def setting(self, name: str, value: int) -> Iterator[None]:
        """Change an operator's setting for a while."""
        change = "update bridge.setting set value = %s::jsonb where name = %s"
        before = self.value("select value::text from bridge.setting where name = %s", name)
        self.control.execute(change, (str(value), name))
        try:
            yield
        finally:
            self.control.execute(change, (before, name))

    def enqueue(self, task: str, args: str, count: int) -> None:
        """Make jobs in one transaction, by the function that SQL users call.

        Args:
            task: its name.
            args: JSON array.
            count: how many.
        """
        self.control.execute(
            "select count(bridge.enqueue(%s, %s::jsonb, queue => %s)) from generate_series(1, %s)", (task, args, QUEUE, count)
        )

    @cached_property
    def environment(self) -> dict[str, str]:
        """What our own processes find in their environment; whatever else is named BRIDGE_* or CELERY_* stays out."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "CELERY_"))}
        urls = {"BRIDGE_DATABASE_URL": self.servers.dsn, "BRIDGE_BROKER_URL": self.servers.broker_url}
        # What a killed worker leaves goes with our folder.
        kept |= {"TMPDIR": str(self.servers.folder), STAMPS: str(self.stamps)}
        return {**kept, **urls, "CELERY_BROKER_URL": self.servers.broker_url, "CELERY_RESULT_BACKEND": "bridge://"}

    @cached_property
    def plain_environment(self) -> dict[str, str]:
        """The same for plain Celery, whose results are in Redis."""
        return {**self.environment, "CELERY_RESULT_BACKEND": self.servers.results_url}

    @contextmanager
    def drainer(self) -> Iterator[Process]:
        """A drainer with default settings, connected."""
        with self._running("drainer", ["-m", "bridge", "drain"], self.environment) as process:
            query = "select count(*) from bridge.drainer where pid = %s"
            process.wait_ready(lambda: bool(self.value(query, process.pid)), _READY)
            yield process

    @contextmanager
    def worker(self, app: str, concurrency: int, environment: Mapping[str, str] | None = None) -> Iterator[Process]:
        """A stock prefork worker of a module here, such as ``joined``; it may still be starting."""
        command = ["-m", "celery", "-A", f"bridge.bench.{app}", "worker", f"--concurrency={concurrency}"]
        with self._running("worker", command, environment or self.environment) as process:
            yield process

    @contextmanager
    def _running(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> Iterator[Process]:
        with self.running(name, [sys.executable, *arguments], environment) as process:
            yield process

    @contextmanager
    def running(self, name: str, command: list[str], environment: Mapping[str, str]) -> Iterator[Process]:
        """A program, until the block ends."""
        log = self.servers.folder / f"{name}.log"
        # A worker that outlives its broker hangs in a polite shutdown.
        process = Process(name, command, log=log, env=environment, death_signal=signal.SIGKILL)
        process.start()
        try:
            yield process
        finally:
            process.stop()

    def producer(self, act: str, count: int, *, warm: int = 0, rate: float = 0.0, first: int = 0) -> Producer:
        """A process that makes jobs: by plain Celery, or by us."""
        environment = self.environment if act.startswith("bridge") else self.plain_environment
        return Producer(Making(act, count, warm, rate, first), environment)

    def meter(self, **processes: Process | Sequence[Process]) -> Meter:
        """A meter of the servers and these processes, by kind."""
        kinds = {kind: [those] if isinstance(those, Process) else list(those) for kind, those in processes.items()}
        return Meter(self.control, self.broker, {kind: [process.pid for process in those] for kind, those in kinds.items()})

    def message_ids(self) -> list[str]:
        """The ids of all messages that wait in the queue."""
        ids: list[str] = []
        for at in range(0, int(self.broker.llen(QUEUE)), _PAGE):
            texts: list[bytes] = self.broker.lrange(QUEUE, at, at + _PAGE - 1)  # type: ignore[assignment]
            for text in texts:
                found = _MESSAGE_ID.search(text)
                ids.append(found[1].decode() if found else "")
        return ids

    def wait_for(
        self,
        count: Callable[[], int],
        wanted: int,
        *alive: Process,
        tell: Callable[[int], None] = lambda _: None,
        longest: float = 0.5,
    ) -> None:
        """Count until there are enough.

        Args:
            count: gives how many there are.
            wanted: how many there must be.
            alive: processes that must live meanwhile.
            tell: called with each count.
            longest: seconds between two counts at most; counting costs the servers time.

        Raises:
            BenchError: a process died, or nothing has moved for a minute.
        """
        seen, moved, started = 0, time.monotonic(), time.monotonic()
        while (now := count()) < wanted:
            tell(now)
            if now != seen:
                seen, moved = now, time.monotonic()
            _check(now, wanted, alive, time.monotonic() - moved)
            left = (wanted - now) * (time.monotonic() - started) / now if now else 0.0
            time.sleep(min(max(left / 4, _SHORTEST), longest))
        tell(now)


def _check(now: int, wanted: int, alive: tuple[Process, ...], silence: float) -> None:
    dead = [process for process in alive if not process.alive]
    if dead:
        raise BenchError(f"{now} of {wanted} jobs are done and {dead[0].name} died: {dead[0].log_tail()}")
    if silence > STALLED:
        logs = " / ".join(f"{process.name}: {process.log_tail()[-500:]}" for process in alive)
        raise BenchError(f"{now} of {wanted} jobs are done and nothing has moved for {STALLED:g} s", logs)
