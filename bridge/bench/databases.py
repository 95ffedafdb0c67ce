"""Databases beside the one that the benchmark was given, on the same server: made empty, gone afterwards."""

from __future__ import annotations

import secrets
from urllib.parse import quote, urlencode

import psycopg
from psycopg import conninfo, sql

from bridge.errors import ServerError
from bridge.settings import without_password

__all__ = ["Databases", "uri"]


class Databases:
    """Makes and drops databases on one server.

    Args:
        dsn: of a database there, to be connected to meanwhile; its role makes the others.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._made: list[str] = []

    def create(self) -> str:
        """The URI of a new, empty database.

        Raises:
            ServerError: this role may not make databases.
        """
        name = f"bench_{secrets.token_hex(4)}"
        try:
            self._execute(sql.SQL("create database {} template template0 encoding 'UTF8'").format(sql.Identifier(name)))
        except psycopg.errors.InsufficientPrivilege as error:
            words = f"no second database beside {without_password(self._dsn)}: {error}"
            raise ServerError(words, "let its role create databases, or leave --database-url out") from error
        self._made.append(name)
        return uri(conninfo.make_conninfo(self._dsn, dbname=name))

    def drop(self, dsn: str) -> None:
        """Drop one of them, also while processes are connected to it."""
        self._drop(str(conninfo.conninfo_to_dict(dsn)["dbname"]))

    def drop_all(self) -> None:
        """Drop those that are left."""
        for name in list(self._made):
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        self._made = [other for other in self._made if other != name]

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(statement)


def uri(dsn: str, scheme: str = "postgresql") -> str:
    """A DSN as a URI, which drivers other than libpq's take too; sockets and options are in its query."""
    parts = {name: str(value) for name, value in conninfo.conninfo_to_dict(dsn).items()}
    host, port, database = parts.pop("host", ""), parts.pop("port", "5432"), parts.pop("dbname", "")
    names = [quote(parts.pop(part), safe="") for part in ("user", "password") if parts.get(part)]
    if host.startswith("/"):
        parts |= {"host": host, "port": port}
    place = "" if host.startswith("/") else f"{host}:{port}"
    query = f"?{urlencode(parts)}" if parts else ""
    return f"{scheme}://{':'.join(names)}{'@' if names else ''}{place}/{quote(database, safe='')}{query}"
