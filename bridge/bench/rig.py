"""What every scenario works with: the servers, a clean start, the processes of each side, and the counting of jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import psycopg
import redis

from bridge.bench.cost import Meter
from bridge.bench.jobs import QUEUE
from bridge.bench.measure import BenchError
from bridge.errors import SettingError
from bridge.local.process import Process
from bridge.settings import without_password

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bridge.bench.servers import Servers

__all__ = ["STALLED", "Producer", "Rig"]

STALLED = 60.0  # seconds without progress after which a benchmark gives up
_READY = 30.0  # seconds that a process has to start
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
_HOLDS_JOBS = "select exists (select from bridge.job) or exists (select from bridge.finished)"


class Rig:
    """Servers in use by one benchmark.

    Raises:
        SettingError: the database holds jobs, or the broker keys: a benchmark empties both.
    """

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.control: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(servers.dsn, autocommit=True)
        self.broker = redis.Redis.from_url(servers.broker_url)
        self.results = redis.Redis.from_url(servers.results_url)
        if not servers.own:
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
            self.control.execute(_CLEAR.encode())
        with suppress(psycopg.errors.InsufficientPrivilege):
            self.control.execute("checkpoint")
        self.broker.flushdb()
        self.results.flushdb()

    def close(self) -> None:
        """Leave nothing behind, and disconnect."""
        self.clear()
        self.control.close()

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
        kept |= {"TMPDIR": str(self.servers.folder)}
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
    def worker(self, app: str, concurrency: int) -> Iterator[Process]:
        """A stock prefork worker: ``plain`` or ``joined``; it may still be starting."""
        command = ["-m", "celery", "-A", f"bridge.bench.{app}", "worker", f"--concurrency={concurrency}"]
        environment = self.plain_environment if app == "plain" else self.environment
        with self._running("worker", command, environment) as process:
            yield process

    @contextmanager
    def _running(self, name: str, arguments: list[str], environment: dict[str, str]) -> Iterator[Process]:
        log = self.servers.folder / f"{name}.log"
        # A worker that outlives its broker hangs in a polite shutdown.
        process = Process(name, [sys.executable, *arguments], log=log, env=environment, death_signal=signal.SIGKILL)
        process.start()
        try:
            yield process
        finally:
            process.stop()

    def meter(self, **processes: Process) -> Meter:
        """A meter of the servers and these processes."""
        return Meter(self.control, self.broker, {kind: process.pid for kind, process in processes.items()})

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


class Producer:
    """One process of ``bridge.bench.producer``: it warms up, waits for the word, and says what it did.

    A context manager. The process lives until the block ends, so that its connections are still counted.
    """

    def __init__(self, rig: Rig, act: str, *, count: int, warm: int = 0, rate: float = 0.0) -> None:
        environment = rig.environment if act.startswith("bridge") else rig.plain_environment
        command = [sys.executable, "-m", "bridge.bench.producer", act, str(count), str(warm), str(rate)]
        self._act = act
        self._child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603

    def __enter__(self) -> Self:
        self._read()
        return self

    def __exit__(self, *_error: object) -> None:
        self._child.kill()
        self._child.communicate()

    def go(self) -> dict[str, Any]:
        """Let it work; what it says at the end."""
        if self._child.stdin is not None:
            self._child.stdin.write("go\n")
            self._child.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._child.stdout.readline() if self._child.stdout is not None else ""
        if not line:
            raise BenchError(f"the producer {self._act} died with status {self._child.wait()}", "its error stands above")
        said: dict[str, Any] = json.loads(line)
        return said
