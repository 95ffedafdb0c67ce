"""A primary and its streaming standby, for tests that kill the one and promote the other."""

from __future__ import annotations

import secrets
import shutil
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_servers import FAST, _make_postgres, missing, wait_until

from bridge.local.broker import free_port
from bridge.local.home import socket_folder
from bridge.local.postgres import SOCKET_PORT, SUPERUSER, PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "standby"  # as the primary knows it
PLACES = ("a", "b", "c")  # folders, of which sockets have short names


class Standby(PostgresServer):
    """A server whose data folder is a copy of another's, which it follows; it listens on a port of its own where the other has one.

    Args:
        directory: as of any server.
        primary: whom it follows.
        through: port of a proxy that leads to the socket of the primary; None: it goes to the socket itself.
    """

    def __init__(self, directory: Path, primary: PostgresServer, through: int | None = None) -> None:
        port = None if primary.port is None else free_port()
        settings = {**primary.settings, "wal_retrieve_retry_interval": "500ms"}  # until it tries again, where it has lost its primary
        super().__init__(directory, primary.database, port=port, settings=settings, binaries=primary.binaries)
        self.primary, self._through = primary, through
        self._password = primary._password

    @property
    def source(self) -> str:
        """Where it streams from."""
        there = f"host={self.primary.sockets} port={self.primary.port or SOCKET_PORT}"
        place = there if self._through is None else f"host=127.0.0.1 port={self._through}"
        return f"{place} user={SUPERUSER} application_name={NAME}"

    def _make_data(self) -> None:
        if (self.data / "PG_VERSION").exists():
            return
        self._run("pg_basebackup", ["--pgdata", self.data, "--dbname", self.source, "--write-recovery-conf", "--checkpoint=fast"])
        # Of what `alter system` has told the other nothing is the copy's own: a moment's refusal of writes would come back with it.
        (self.data / "postgresql.auto.conf").write_text(f"primary_conninfo = '{self.source}'\n")

    def _create_cron(self) -> None:
        """It is in the copy."""

    def _set_password(self) -> None:
        """It is in the copy."""


@dataclass
class Replicated:
    """A primary and the standby that follows it; clients know of one more place, where the next standby will be."""

    folder: Path
    primary: PostgresServer
    standby: Standby

    @property
    def dsn(self) -> str:
        """URL of all: libpq asks one after the other, and takes the one that takes writes."""
        hosts = [socket_folder(self.folder / name) for name in PLACES]
        ports = ",".join([str(SOCKET_PORT)] * len(hosts))
        query = f"host={','.join(map(str, hosts))}&port={ports}&target_session_attrs=read-write"
        return f"postgresql://{SUPERUSER}@/{self.primary.database}?{query}"

    def replicate(self, *, synchronous: bool) -> None:
        """Have commits wait for the standby, or not."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as connection:
            connection.execute(f"alter system set synchronous_standby_names = '{NAME if synchronous else ''}'".encode())
            connection.execute("select pg_reload_conf()")
            kind = "sync" if synchronous else "async"
            query = f"select 1 from pg_stat_replication where application_name = '{NAME}' and state = 'streaming' and sync_state = '{kind}'"
            wait_until(lambda: connection.execute(query.encode()).fetchone(), 30, f"replication to be {kind}")

    def catch_up(self, timeout: float = 30) -> None:
        """Wait until the standby has all that has been committed by now."""
        with psycopg.connect(self.primary.dsn) as primary, psycopg.connect(self.standby.dsn, autocommit=True) as standby:
            written = primary.execute("select pg_current_wal_insert_lsn()").fetchone()
            arrived = "select pg_last_wal_replay_lsn() >= %s"
            wait_until(lambda: standby.execute(arrived, written).fetchone() == (True,), timeout, "the standby to have all of it")

    def cut(self) -> None:
        """Let the standby receive nothing any more; the primary goes on."""
        with psycopg.connect(self.standby.dsn, autocommit=True) as connection:
            connection.execute("alter system set primary_conninfo = ''")
            connection.execute("select pg_reload_conf()")
        with psycopg.connect(self.primary.dsn, autocommit=True) as connection:
            gone = "select count(*) = 0 from pg_stat_replication"
            wait_until(lambda: connection.execute(gone).fetchone() == (True,), 20, "the stream to end")

    def promote(self) -> None:
        """Let the standby take writes, which has to wait for nobody; the primary was killed."""
        with psycopg.connect(self.standby.dsn, autocommit=True) as connection:
            connection.execute("alter system set synchronous_standby_names = ''")
            connection.execute("select pg_reload_conf()")
            assert connection.execute("select pg_promote(true, 60)").fetchone() == (True,)

    def follow(self) -> None:
        """What was promoted is the primary now, and gets a standby of its own."""
        self.primary, self.standby = self.standby, Standby(self.folder / PLACES[2], self.standby)
        self.standby.start()


@pytest.fixture
def replicated(server_folder: Path) -> Iterator[Replicated]:
    """A primary with our schema and a standby that follows it; all are gone after the test."""
    from bridge import schema

    folder = server_folder / f"r{secrets.token_hex(3)}"
    folder.mkdir(mode=0o711)
    first = _make_postgres(folder / PLACES[0], FAST)
    if not (first.binaries.folder / "pg_basebackup").exists():
        missing("pg_basebackup", "apt-get install postgresql-15")
    first.start()
    schema.install(first.dsn)
    second = Standby(folder / PLACES[1], first)
    second.start()
    pair = Replicated(folder, first, second)
    yield pair
    for server in {first, second, pair.primary, pair.standby}:
        server.kill(signal.SIGQUIT)
        server.stop()
    shutil.rmtree(folder, ignore_errors=True)
