"""A Postgres of our own: its own data folder, private sockets, never as root, gone with the process that started it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg
from psycopg import sql

from bridge.errors import ServerError
from bridge.local.account import identity, server_account
from bridge.local.binaries import PostgresBinaries, find_postgres
from bridge.local.home import private_folder, socket_folder
from bridge.local.process import Process
from bridge.local.server import Server, server_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

SUPERUSER = "postgres"
SOCKET_PORT = 5432  # part of a socket's file name only
SMALL_SHM = 64 * 1024 * 1024  # bytes; what Docker gives by default, too little for a parallel query
RECOVERY = 20.0  # seconds that a predecessor has to finish its shutdown
HOW_TO_GET_IT = 'install one: "apt-get install postgresql-15-cron", or "pip install celery-bridge[local]"'
STOP_STEPS = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
# Its predecessor has gone, its children not yet; the next try finds them gone.
STILL_HELD = ("pre-existing shared memory block", "lock file", "is another postmaster")


class PostgresServer(Server):
    """A local Postgres with one database made for us.

    A first start makes the data folder `data-<major>`; it appears under that name only when it is complete. Clients get in
    through a socket in a folder with mode 0700, without a password; with `port` also through 127.0.0.1, with one.

    Args:
        directory: ours alone; made with mode 0700 when missing. For root it must be where the dropped user can walk.
        database: made when the data folder is made; the one that pg_cron is bound to.
        port: TCP port on 127.0.0.1; None listens on no network.
        settings: more server settings, such as `{"fsync": "off"}`; they win over ours.
        binaries: which Postgres; None takes what `find_postgres` finds first.
    """

    def __init__(
        self,
        directory: Path,
        database: str = "bridge",
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        binaries: PostgresBinaries | None = None,
    ) -> None:
        super().__init__("postgres", directory)
        self.database = database
        self.port = port
        self.settings = dict(settings or {})
        self.binaries = binaries or _must_find()
        self.account = server_account()
        self.data = self.directory / f"data-{self.binaries.major}"
        self.sockets = socket_folder(self.directory)
        self._password = secrets.token_hex(16)

    def start(self, timeout: float = 60.0) -> PostgresServer:
        """Start it, making the data folder first if need be, and return when it answers.

        What a killed predecessor left is cleared up: a shutdown still going on is waited for, a stale `postmaster.pid` goes.

        Args:
            timeout: seconds until it must answer; recovery after a crash counts.

        Raises:
            ServerError: it runs already, cannot be started, or is not ready in time.
        """
        private_folder(self.directory, self.account)
        private_folder(self.sockets, self.account)
        self._hold()
        self.binaries = self.binaries.readable_by(self.account, self.directory)
        self._make_data()
        self._end_predecessor()
        self._launch(time.monotonic() + timeout)
        if self.port is not None:
            self._set_password()
        if self.binaries.cron:
            self._create_cron()
        return self

    @property
    def dsn(self) -> str:
        """URI of the database, for libpq and for SQLAlchemy alike; by TCP when there is a port, by socket otherwise."""
        return self.dsn_of(self.database)

    def dsn_of(self, database: str) -> str:
        """The same for another database of this server."""
        if self.port is None:
            return self._socket_dsn(database)
        return f"postgresql://{SUPERUSER}:{self._password}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def _socket_dsn(self, database: str) -> str:
        at = f"host={self.sockets}&port={self.port or SOCKET_PORT}"
        return f"postgresql://{SUPERUSER}@/{quote(database, safe='')}?{at}"

    def _connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(self._socket_dsn(database), autocommit=True, connect_timeout=5)

    def _answers(self) -> bool:
        try:
            with self._connect(self.database):
                return True
        except psycopg.OperationalError:
            return False

    def _launch(self, deadline: float) -> None:
        self._process = process = self._new_process()
        while True:
            process.start()
            try:
                process.wait_ready(self._answers, max(deadline - time.monotonic(), 1.0))
            except ServerError:
                held = any(words in process.log_text() for words in STILL_HELD)
                if not held or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _new_process(self) -> Process:
        options = [f"--{name}={value}" for name, value in self._all_settings().items()]
        return Process(
            "postgres",
            [self.binaries.folder / "postgres", "-D", self.data, *options],
            log=self.directory / "postgres.log",
            env=server_environment(),
            cwd=self.directory,
            account=self.account,
            stop_steps=STOP_STEPS,
            death_signal=signal.SIGINT,
        )

    def _all_settings(self) -> dict[str, str]:
        settings = {
            "listen_addresses": "" if self.port is None else "127.0.0.1",
            "port": str(self.port or SOCKET_PORT),
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
        }
        if _small_shared_memory():
            settings["dynamic_shared_memory_type"] = "mmap"
        if self.binaries.cron:
            # Background workers need no password and no second connection string; each running cron job takes one. Before 1.5 a
            # tick runs all the time, and of the five jobs at once that pg_cron allows each database has one.
            settings |= {
                "shared_preload_libraries": "pg_cron",
                "cron.database_name": self.database,
                "cron.use_background_workers": "on",
                "cron.max_running_jobs": "20",
                "max_worker_processes": "24",
            }
        return settings | self.settings

    def _make_data(self) -> None:
        if (self.data / "PG_VERSION").exists():
            return
        unfinished = self.directory / f"{self.data.name}.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        durable = [] if self.settings.get("fsync") != "off" else ["--no-sync"]
        access = ["--auth-local=trust", "--auth-host=scram-sha-256", "--username", SUPERUSER]
        self._run("initdb", ["-D", unfinished, "--locale=C", "-E", "UTF8", *access, *durable])
        # Before the first real start, because pg_cron's launcher dies when its database is missing.
        create = sql.SQL("create database {}").format(sql.Identifier(self.database)).as_string()
        self._run("postgres", ["--single", "-D", unfinished, "postgres"], create + "\n")
        unfinished.rename(self.data)

    def _run(self, program: str, arguments: list[str | Path], text: str = "") -> None:
        done = subprocess.run(  # noqa: S603
            [self.binaries.folder / program, *arguments],
            check=False,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=server_environment(),
            cwd=self.directory,
            timeout=120.0,
            **identity(self.account),
        )
        if done.returncode != 0:
            raise ServerError(f"{program} failed with status {done.returncode} in {self.directory}: {done.stdout[-2000:].strip()}")

    def _end_predecessor(self) -> None:
        # We hold the lock: whoever started this postmaster is dead.
        started = time.monotonic()
        while (pid := self._predecessor()) is not None:
            waited = time.monotonic() - started
            if waited > 2 * RECOVERY:
                raise ServerError(f"postgres in {self.data} with pid {pid} does not end: kill it, then try again")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT if waited < RECOVERY else signal.SIGQUIT)
                # One that was stopped would never take the signal.
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.1)
        self._end_orphans()
        # Postgres believes these files when any process of the same user has got the number since.
        for stale in (self.data / "postmaster.pid", *self.sockets.glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)

    def _end_orphans(self) -> None:
        """End what outlived its postmaster: it holds the shared memory, and no postmaster starts beside it.

        pg_cron's launcher does, up to 1.6.7, when a job of its was running: it waits for that job alone.
        """
        for entry in Path("/proc").glob("[0-9]*"):
            if _works_in(int(entry.name), self.data, unknown=False):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)

    def _predecessor(self) -> int | None:
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, PermissionError, ValueError):
            return None
        return pid if _works_in(pid, self.data) else None

    def _set_password(self) -> None:
        with self._connect("postgres") as connection:
            change = sql.SQL("alter role {} password {}").format(sql.Identifier(SUPERUSER), sql.Literal(self._password))
            connection.execute(change)

    def _create_cron(self) -> None:
        with self._connect(self.database) as connection:
            connection.execute("create extension if not exists pg_cron")


def _must_find() -> PostgresBinaries:
    found = find_postgres()
    if found is None:
        raise ServerError(f"no postgres of version 15 or newer on this machine: {HOW_TO_GET_IT}")
    return found


def _small_shared_memory() -> bool:
    try:
        room = os.statvfs("/dev/shm")  # noqa: S108 - asked for its size
    except OSError:
        return False
    return room.f_bavail * room.f_frsize <= SMALL_SHM


def _works_in(pid: int, folder: Path, *, unknown: bool = True) -> bool:
    # The working directory of Postgres's processes is the data folder; where the system does not tell, a pid file's word is taken.
    working = Path(f"/proc/{pid}/cwd")
    try:
        return working.resolve(strict=True) == folder.resolve()
    except FileNotFoundError:
        return unknown and not Path("/proc/self/cwd").exists()
    except PermissionError:
        return False
