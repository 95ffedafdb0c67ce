"""What happens to a Postgres short of its end: killed backends, crashes, no connection left, no writes for a while, a disk that is full."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from apps.ledger import TABLE
from fix_full import REMEDY, NoDiskError, SmallDisk
from fix_servers import FAST, _make_postgres, drainer_reports, missing, wait_until
from fix_sql import Session
from invariants import assert_sound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fix_servers import StartDrainer, StartWorker

    from bridge.local.postgres import PostgresServer
    from bridge.local.process import Process

QUICK = {"heartbeat": 1, "worker_lost": 6, "publish_lease": 3, "republish_grace": 1, "max_losses": 20}
CONNECTIONS = 24
OURS = "application_name like 'bridge %' and datname = current_database()"
KILL = f"select count(pg_terminate_backend(pid)) from pg_stat_activity where {OURS}"
UNENDED = "select count(*) from bridge.jobs where finished_at is null"
STARTED_TWICE = "select count(*) from (select from ledger where event = 'start' group by run having count(*) > 1) twice"


@dataclass
class Victim:
    """A Postgres of the test's own, with a drainer and a worker; the ledger is on another server."""

    server: PostgresServer
    ledger: Session
    processes: list[Process]
    made: int = 0

    def sql(self) -> Session:
        """A new session; Postgres may have been down a moment ago."""
        return wait_until(self._try, 60, "postgres to answer")

    def _try(self) -> Session | None:
        try:
            return Session(self.server.dsn)
        except psycopg.OperationalError:
            return None

    def work(self, count: int, size: int = 0) -> None:
        """Enqueue so many jobs, all or none."""
        db = self.sql()
        query = """select bridge.enqueue('ledger.work', jsonb_build_array(n, 0.02), headers => jsonb_build_object('pad', repeat('x', %s)))
            from generate_series(1, %s) n"""
        db.do(query, size, count)
        db.connection.close()
        self.made += count

    def running(self, ends: int) -> Victim:
        """Wait for so many more ended runs: it works."""
        before = self.ended()
        wait_until(lambda: self.ended() >= min(before + ends, self.made), 90, f"{ends} more ended runs")
        return self

    def ended(self) -> int:
        return int(self.ledger.one("select count(distinct task_id) from ledger where event = 'end'"))

    def check(self, fault: str) -> None:
        """Everything has ended as it should, and nobody has died of it."""
        db = self.sql()
        wait_until(
            lambda: db.one("select count(*) from bridge.jobs where finished_at is null") == 0, 150, f"every job to end after {fault}"
        )
        assert db.rows("select status, count(*) from bridge.jobs group by status") == [("succeeded", self.made)], fault
        assert db.one("select count(*) from bridge.jobs where result::text::int is distinct from 2 * (args->>0)::int") == 0
        assert self.ledger.one(STARTED_TWICE) == 0, fault
        assert_sound(self.server.dsn)
        db.connection.close()
        for process in self.processes:
            assert process.alive, f"{process.name} ended by {fault}: {process.log_tail()}"
            assert "Traceback" not in process.log_text(), fault


@pytest.fixture
def disks(server_folder: Path) -> Iterator[Callable[[int], SmallDisk]]:
    made: list[SmallDisk] = []

    def make(size: int) -> SmallDisk:
        try:
            made.append(SmallDisk(server_folder / f"disk{secrets.token_hex(2)}", size))
        except NoDiskError:
            missing("right to mount a small filesystem", REMEDY)
        return made[-1]

    yield make
    for disk in made:
        disk.remove()


@pytest.fixture
def victim(server_folder: Path, dsn: str) -> Iterator[Victim]:
    from bridge import schema

    ledger = Session(dsn)
    ledger.do(TABLE)
    folder = server_folder / f"victim-{secrets.token_hex(3)}"
    server = _make_postgres(folder, {**FAST, "max_connections": str(CONNECTIONS), "min_wal_size": "32MB", "max_wal_size": "48MB"}).start()
    schema.install(server.dsn)
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for name, value in QUICK.items():
            connection.execute("update bridge.setting set value = %s where name = %s", (str(value), name))
    yield Victim(server, ledger, [])
    server.kill(signal.SIGQUIT)
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(victim: Victim, drainer: StartDrainer, worker: StartWorker, redis_url: str) -> Callable[[], Victim]:
    """Starts a drainer and a worker of the victim."""

    def processes() -> Victim:
        env = {"LEDGER_DATABASE_URL": victim.ledger.dsn}
        runner = worker("apps.ledger", env=env, dsn=victim.server.dsn, broker_url=redis_url, ready=False)
        mover = drainer(dsn=victim.server.dsn, broker_url=redis_url, ready=False)
        mover.wait_ready(lambda: drainer_reports(mover), 60.0)
        runner.wait_ready(lambda: " ready." in runner.log_text(), 60.0)
        victim.processes = [mover, runner]
        return victim

    return processes


@pytest.mark.timeout(400)
def test_jobs_come_out_right_whatever_happens_to_the_sessions_of_those_who_run_them(start: Callable[[], Victim]) -> None:
    victim = start()
    victim.work(200)
    kill_backends(victim)
    victim.work(50)
    crash_twice(victim)
    victim.work(50)
    use_up_connections(victim)
    victim.work(50)
    refuse_writes(victim)
    victim.work(20)
    victim.check("no writes for a while")


def kill_backends(victim: Victim) -> None:
    """Volleys that end all sessions, then one session at a time."""
    db = victim.sql()
    assert sum(victim.running(5) and int(db.one(KILL)) for _ in range(3)) > 3
    for _ in range(10):
        db.do(f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS} order by random() limit 1")
    victim.running(10)
    db.connection.close()


def crash_twice(victim: Victim) -> None:
    """One backend dies, and Postgres starts all anew; then an immediate stop, and a start later."""
    victim.running(5)
    db = victim.sql()
    os.kill(db.one(f"select pid from pg_stat_activity where {OURS} order by random() limit 1"), signal.SIGKILL)
    victim.running(10)
    victim.server.kill(signal.SIGQUIT)
    victim.server.start()
    victim.running(10)


def use_up_connections(victim: Victim) -> None:
    """Strangers take every connection there is, and ours come back to find none."""
    taken: list[psycopg.Connection[Any]] = []
    db = victim.sql()
    victim.running(5)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        db.do(KILL)
        try:
            while True:
                taken.append(psycopg.connect(victim.server.dsn))
        except psycopg.OperationalError as error:
            assert "too many clients" in str(error) or "reserved" in str(error)  # noqa: PT017 - any other would be another fault
    assert db.one(f"select count(*) from pg_stat_activity where {OURS}") == 0
    for connection in taken:
        connection.close()
    db.connection.close()
    victim.running(10)


def refuse_writes(victim: Victim) -> None:
    """A managed server does this while its disk is full, and so does a primary that came back as a standby."""
    db = victim.sql()
    victim.running(5)
    db.do("alter system set default_transaction_read_only = on")
    db.do("select pg_reload_conf()")
    wait_until(lambda: all("takes no writes" in process.log_text() for process in victim.processes), 60, "all to notice")
    # Superusers may; the setting counts for whoever does not say otherwise.
    db.do("set default_transaction_read_only = off")
    db.do("alter system reset default_transaction_read_only")
    db.do("select pg_reload_conf()")
    db.connection.close()


@pytest.mark.timeout(400)
def test_jobs_come_out_right_when_the_disk_was_full_for_a_while(
    victim: Victim, start: Callable[[], Victim], disks: Callable[[int], SmallDisk]
) -> None:
    data, log = disks(48 << 20), disks(128 << 20)
    db = victim.sql()
    db.connection.execute(f"create tablespace small location '{data.folder}'".encode())
    for kind in ("table", "index"):
        db.do(f"alter {kind} all in tablespace pg_default set tablespace small")
    db.do("alter system set default_tablespace = 'small'")
    db.connection.close()
    victim.server.stop()
    move(victim.server.data / "pg_wal", log.folder)
    victim.server.start()
    start()

    victim.work(100)
    victim.running(10)
    data.fill()
    with pytest.raises(psycopg.errors.DiskFull):
        again(200, lambda: victim.work(20, size=5000))
    wait_until(lambda: any("No space left" in process.log_text() for process in victim.processes), 60, "ours to meet it")
    data.free()
    victim.work(50)
    victim.running(20)

    log.fill()
    db = victim.sql()
    with pytest.raises(psycopg.OperationalError):
        again(100, lambda: db.do("select pg_logical_emit_message(false, 'filler', repeat('x', 4000000))"))
    wait_until(lambda: "could not write to file" in victim.server.process.log_text(), 30, "the panic")
    log.free()
    if not victim.server.alive or not answers(victim):
        victim.server.stop()
        victim.server.start()
    victim.work(50)
    victim.check("a full disk")


def again(times: int, step: Callable[[], None]) -> None:
    for _ in range(times):
        step()


def answers(victim: Victim) -> bool:
    """Whether Postgres comes back by itself, as it does when there is room by then."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and victim.server.alive:
        if victim._try() is not None:
            return True
        time.sleep(0.1)
    return False


def move(folder: Path, to: Path) -> None:
    """Put a folder of the server onto another filesystem, as initdb --waldir does."""
    owner = folder.stat()
    for entry in folder.iterdir():
        shutil.move(entry, to / entry.name)
        os.chown(to / entry.name, owner.st_uid, owner.st_gid)
    folder.rmdir()
    folder.symlink_to(to)
    os.chown(folder, owner.st_uid, owner.st_gid, follow_symlinks=False)
