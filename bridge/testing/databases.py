"""Databases for tests: one with the schema is made once, and cloned for each test in some hundredths of a second."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psycopg
from psycopg import conninfo, sql

from bridge.errors import ServerError
from bridge.local.binaries import find_postgres
from bridge.local.postgres import HOW_TO_GET_IT, PostgresServer
from bridge.settings import libpq_url, without_password

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ADDRESS", "Databases", "server"]

ADDRESS = "BRIDGE_TEST_DATABASE_URL"
# What a test makes is thrown away: it need not reach the disk.
_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class Server(Protocol):
    """A Postgres that databases are made on."""

    def dsn_of(self, database: str) -> str:
        """DSN of one of its databases."""


@dataclass(frozen=True, slots=True)
class _Given:
    """The server of a DSN."""

    dsn: str

    def dsn_of(self, database: str) -> str:
        """DSN of one of its databases."""
        return conninfo.make_conninfo(self.dsn, dbname=database)


@dataclass
class Databases:
    """Makes and drops databases on one server; all names begin with a random word, so that several test runs can share it.

    Attributes:
        server: where.
        home: the database to be connected to while others are made.
    """

    server: Server
    home: str = "postgres"
    prefix: str = field(default_factory=lambda: f"bridge_test_{secrets.token_hex(3)}")
    made: list[str] = field(default_factory=list)

    def dsn_of(self, database: str) -> str:
        """DSN of one of them."""
        return self.server.dsn_of(database)

    def create(self, template: str = "template0") -> str:
        """Make a database, empty or as a copy of another that nobody is connected to; its name.

        Raises:
            ServerError: the server cannot be reached, or this role may not make databases.
        """
        name = f"{self.prefix}_{len(self.made)}"
        encoding = sql.SQL("encoding 'UTF8'" if template == "template0" else "")
        self._execute(sql.SQL("create database {} template {} {}").format(sql.Identifier(name), sql.Identifier(template), encoding))
        self.made.append(name)
        return name

    def drop(self, name: str) -> None:
        """Drop one of them, also while processes are connected to it."""
        self._execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def drop_all(self) -> None:
        """Drop those that are left."""
        for name in self.made:
            self.drop(name)

    def _execute(self, statement: sql.Composed) -> None:
        dsn = self.dsn_of(self.home)
        try:
            with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
                connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege as error:
            raise ServerError(f"no database for tests in {without_password(dsn)}: {error}", "let its role create databases") from error
        except psycopg.OperationalError as error:
            raise ServerError(f"no database for tests in {without_password(dsn)}: {str(error).strip()}", f"check {ADDRESS}") from error


def server() -> Iterator[Databases]:
    """Databases on the server that the environment names; else on a local one that is started, and gone afterwards.

    ``BRIDGE_DATABASE_URL`` is not asked: that is where the application lives.

    Raises:
        ServerError: none is named, and this machine has no Postgres.
    """
    given = os.environ.get(ADDRESS)
    databases = _on_given(libpq_url(given)) if given else None
    if databases is not None:
        yield databases
        databases.drop_all()
        return
    yield from _on_local()


def _on_given(dsn: str) -> Databases:
    return Databases(_Given(dsn), home=str(conninfo.conninfo_to_dict(dsn).get("dbname") or "postgres"))


def _on_local() -> Iterator[Databases]:
    binaries = find_postgres()
    if binaries is None:
        raise ServerError(f"no postgres for tests: {ADDRESS} is not set, and none is on this machine", f"set it, or {HOW_TO_GET_IT}")
    folder = Path(tempfile.mkdtemp(prefix="bridge-test-"))
    folder.chmod(0o711)  # root drops to another user, who has to walk through
    local = PostgresServer(folder / "pg", "bridge_test", settings=_FAST, binaries=binaries)
    try:
        local.start()
        yield Databases(local, home="bridge_test")
    finally:
        local.stop()
        shutil.rmtree(folder, ignore_errors=True)
