"""Real servers for the tests: Postgres, Redis, drainers, workers.

A test asks for the fixtures `dsn`, `empty_dsn`, `cron_dsn`, `durable_postgres`, `redis_url`, `redis_server`, `drainer`,
`worker`, `launcher`; and imports `wait_until`, `wait_for_row` and `wait_for_value` from here. Nothing waits for a fixed time.

Environment: BRIDGE_TEST_POSTGRES_BIN names a folder of Postgres programs, BRIDGE_TEST_DATABASE_URL a running server that we
may make databases on (as a superuser), BRIDGE_REQUIRE_SERVERS=1 turns "skipped, no server here" into a failure.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import psycopg
import pytest
from fix_templates import TemplateDatabases
from psycopg import conninfo

from bridge.local import broker as local_broker
from bridge.local.binaries import find_postgres
from bridge.local.broker import RedisServer, find_redis, free_port
from bridge.local.postgres import PostgresServer
from bridge.local.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).parent.parent
CRON_DATABASE = "cron_home"
FAST = {"fsync": "off", "full_page_writes": "off", "max_connections": "200", "max_prepared_transactions": "5"}
POLL = 0.02  # seconds between two looks
Found = TypeVar("Found")


def missing(what: str, remedy: str) -> NoReturn:
    """Skip the test for want of a server, or fail it where the servers are promised to be there."""
    words = f"no {what} here; {remedy}"
    if os.environ.get("BRIDGE_REQUIRE_SERVERS") == "1":
        pytest.fail(words)
    pytest.skip(words)


def wait_until(look: Callable[[], Found], timeout: float = 20.0, what: str = "") -> Found:
    """Call `look` until it gives something true and return that; fail after `timeout` seconds, naming `what`."""
    deadline = time.monotonic() + timeout
    while not (found := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what or look!r}; last seen: {found!r}")
        time.sleep(POLL)
    return found


def wait_for_row(dsn: str, query: str, params: Sequence[Any] = (), timeout: float = 20.0) -> tuple[Any, ...]:
    """Run the query until it gives a row and return that row; put what you wait for into its WHERE."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return wait_until(lambda: connection.execute(query, params).fetchone(), timeout, query) or ()


def wait_for_value(dsn: str, query: str, params: Sequence[Any] = (), *, value: Any = True, timeout: float = 20.0) -> None:
    """Run the query until the first column of its first row equals `value`; a failure shows the last one seen."""
    seen: list[Any] = [None]

    def equal() -> bool:
        row = connection.execute(query, params).fetchone()
        seen[0] = row and row[0]
        return bool(row and row[0] == value)

    with psycopg.connect(dsn, autocommit=True) as connection:
        deadline = time.monotonic() + timeout
        while not equal():
            if time.monotonic() > deadline:
                pytest.fail(f"not {value!r} but {seen[0]!r} after {timeout:g} s: {query}")
            time.sleep(POLL)


class DatabaseServer(Protocol):
    """A Postgres server that tests make databases on."""

    def dsn_of(self, database: str) -> str:
        """DSN of one of its databases."""


@dataclass(frozen=True)
class GivenServer:
    """The server that BRIDGE_TEST_DATABASE_URL names."""

    url: str

    def dsn_of(self, database: str) -> str:
        return conninfo.make_conninfo(self.url, dbname=database)


def _make_postgres(folder: Path, settings: Mapping[str, str]) -> PostgresServer:
    chosen = os.environ.get("BRIDGE_TEST_POSTGRES_BIN")
    binaries = find_postgres(folder=Path(chosen) if chosen else None)
    if binaries is None:
        missing("postgres 15 or newer", "apt-get install postgresql-15 postgresql-15-cron")
    return PostgresServer(folder, CRON_DATABASE, settings=settings, binaries=binaries)


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[DatabaseServer]:
    """The server of this session; it has fsync off, so a test that crashes Postgres asks for `durable_postgres`."""
    if given := os.environ.get("BRIDGE_TEST_DATABASE_URL"):
        yield GivenServer(given)
        return
    server = _make_postgres(server_folder / "pg", FAST)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def databases(postgres: DatabaseServer) -> Iterator[TemplateDatabases]:
    """Makes databases on the session's server and drops those that are left."""
    databases = TemplateDatabases(postgres)
    yield databases
    for name in databases.made:
        databases.drop(name)


@pytest.fixture(scope="session")
def template(databases: TemplateDatabases) -> str:
    """Name of a database with our schema; `dsn` clones it."""
    from bridge import schema

    return databases.make_template(schema.install)


@pytest.fixture
def empty_dsn(databases: TemplateDatabases) -> Iterator[str]:
    """DSN of a new database without our schema."""
    name = databases.create()
    yield databases.server.dsn_of(name)
    databases.drop(name)


@pytest.fixture
def dsn(databases: TemplateDatabases, template: str) -> Iterator[str]:
    """DSN of a new database with our schema."""
    name = databases.create(template)
    yield databases.server.dsn_of(name)
    databases.drop(name)


@pytest.fixture
def cron_dsn(postgres: DatabaseServer) -> Iterator[str]:
    """DSN of the one database that pg_cron runs in, with our schema; cron jobs and schema are gone after the test."""
    from bridge import schema

    with psycopg.connect(postgres.dsn_of("postgres")) as connection:
        row = connection.execute("select current_setting('cron.database_name', true)").fetchone()
    if not row or not row[0]:
        missing("pg_cron in this postgres", "apt-get install postgresql-15-cron")
    dsn = postgres.dsn_of(row[0])
    _clean_cron(dsn)
    _revive_cron(postgres, dsn)
    schema.install(dsn)
    yield dsn
    _clean_cron(dsn)


def _revive_cron(postgres: DatabaseServer, dsn: str) -> None:
    """A test before may have ended pg_cron's launcher: before 1.6 only a restart of Postgres brings it back."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select count(*) from pg_stat_activity where backend_type = 'pg_cron launcher'").fetchone()
    if row and not row[0] and isinstance(postgres, PostgresServer):
        postgres.stop()
        postgres.start()


def _clean_cron(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        # Without its database pg_cron's launcher dies, so the database stays and is emptied.
        connection.execute("create extension if not exists pg_cron")
        connection.execute("select cron.unschedule(jobid) from cron.job")
        end = (
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid() and backend_type in ('client backend', 'pg_cron')"
        )
        connection.execute(end)
        connection.execute("drop schema if exists bridge cascade")
        connection.execute("truncate cron.job_run_details")


@pytest.fixture
def durable_postgres(server_folder: Path) -> Iterator[PostgresServer]:
    """A server of the test's own with default durability and our schema; kill it and start it as you like."""
    from bridge import schema

    folder = server_folder / f"durable-{secrets.token_hex(3)}"
    server = _make_postgres(folder, {}).start()
    schema.install(server.dsn)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_server(server_folder: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, on a TCP port that survives a restart: flush it, kill it, start it again."""
    program = find_redis()
    if program is None:
        missing("redis-server", local_broker.HOW_TO_GET_IT)
    folder = server_folder / f"redis-{secrets.token_hex(3)}"
    server = RedisServer(folder, port=free_port(), program=program).start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of an empty Redis that no other test uses."""
    return redis_server.url


@dataclass
class Launcher:
    """Starts our own programs as real processes and ends those that are left."""

    request: pytest.FixtureRequest
    folder: Path
    started: list[Process] = field(default_factory=list)
    cwd: Path = ROOT
    path: tuple[Path, ...] = (ROOT, ROOT / "tests")  # where they find the package, and applications of tests

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None, **urls: str | None) -> Process:
        log = self.folder / f"{name}-{len(self.started)}.log"
        # A worker that outlives its broker hangs in a polite shutdown.
        environment = self.environment(env or {}, **urls)
        process = Process(name, command, log=log, env=environment, cwd=self.cwd, death_signal=signal.SIGKILL)
        self.started.append(process)
        process.start()
        return process

    def environment(self, extra: Mapping[str, str], *, dsn: str | None = None, broker_url: str | None = None) -> dict[str, str]:
        broker = broker_url or self.request.getfixturevalue("redis_url")
        ours = {
            "BRIDGE_DATABASE_URL": dsn or self.request.getfixturevalue("dsn"),
            "BRIDGE_BROKER_URL": broker,
            # For applications that name no broker; Celery lets it win over one that is named.
            "CELERY_BROKER_URL": broker,
            "PYTHONPATH": os.pathsep.join([*map(str, self.path), os.environ.get("PYTHONPATH", "")]),
            "PYTHONUNBUFFERED": "1",
        }
        return {**os.environ, **ours, **extra}

    def end(self) -> None:
        # A worker's polite end takes seconds; a test that is about it has asked for it and waited.
        for process in self.started:
            process.kill(signal.SIGKILL)
        for process in reversed(self.started):
            process.stop()


@pytest.fixture
def launcher(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launcher]:
    """Starts processes with BRIDGE_DATABASE_URL and BRIDGE_BROKER_URL of this test."""
    launcher = Launcher(request, tmp_path)
    yield launcher
    launcher.end()


class StartWorker(Protocol):
    """What the fixture `worker` gives."""

    def __call__(
        self,
        app: str = "tasks",
        *args: str,
        pool: str = "prefork",
        concurrency: int = 2,
        queues: str | None = None,
        env: Mapping[str, str] | None = None,
        dsn: str | None = None,
        broker_url: str | None = None,
        ready: bool = True,
    ) -> Process:
        """Start `celery -A app worker` and wait until it takes tasks."""


@pytest.fixture
def worker(launcher: Launcher) -> StartWorker:
    """Start real Celery workers; each gives a `Process`: pid, kill(signal), stop(), wait(), log_text(), alive.

    `app` is a module on the path, `tests/` included; further words go to the command line as they are.
    """
    return workers_of(launcher)


def workers_of(launcher: Launcher) -> StartWorker:
    """Starts workers by a launcher."""

    def start(
        app: str = "tasks",
        *args: str,
        pool: str = "prefork",
        concurrency: int = 2,
        queues: str | None = None,
        env: Mapping[str, str] | None = None,
        dsn: str | None = None,
        broker_url: str | None = None,
        ready: bool = True,
    ) -> Process:
        command = [sys.executable, "-m", "celery", "-A", app, "worker", f"--pool={pool}", f"--concurrency={concurrency}"]
        command += ["--loglevel=INFO", "-n", f"w{len(launcher.started)}-{secrets.token_hex(2)}@%h", *args]
        if queues is not None:
            command += ["-Q", queues]
        process = launcher.start("worker", command, env, dsn=dsn, broker_url=broker_url)
        if ready:
            process.wait_ready(lambda: " ready." in process.log_text(), 60.0)
        return process

    return start


def drainer_reports(process: Process) -> bool:
    """Whether the drainer has written its row into the database that it was started for."""
    query = "select 1 from bridge.drainer where pid = %s and stopped_at is null"
    with psycopg.connect((process.env or {})["BRIDGE_DATABASE_URL"]) as connection:
        return connection.execute(query, (process.pid,)).fetchone() is not None


class StartDrainer(Protocol):
    """What the fixture `drainer` gives."""

    def __call__(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        dsn: str | None = None,
        broker_url: str | None = None,
        ready: bool = True,
    ) -> Process:
        """Start `python -m bridge drain` and wait until its row says that it is there."""


@pytest.fixture
def drainer(launcher: Launcher) -> StartDrainer:
    """Start real drainers; each gives a `Process`, as `worker` does."""
    return drainers_of(launcher)


def drainers_of(launcher: Launcher) -> StartDrainer:
    """Starts drainers by a launcher."""

    def start(
        *args: str,
        env: Mapping[str, str] | None = None,
        dsn: str | None = None,
        broker_url: str | None = None,
        ready: bool = True,
    ) -> Process:
        process = launcher.start("drainer", [sys.executable, "-m", "bridge", "drain", *args], env, dsn=dsn, broker_url=broker_url)
        if ready:
            process.wait_ready(lambda: drainer_reports(process), 30.0)
        return process

    return start
