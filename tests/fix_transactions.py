"""Whoever makes jobs in transactions: an environment that names this test's database, engines of SQLAlchemy, a look from outside."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from psycopg import conninfo
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import bridge
from bridge.client import forget_connections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Session as Sql
    from sqlalchemy.engine import Engine


@pytest.fixture
def joining(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """BRIDGE_DATABASE_URL names this test's database, and sessions are joined."""
    for name in [name for name in os.environ if name.startswith("BRIDGE_") and "TEST" not in name and name != "BRIDGE_REQUIRE_SERVERS"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)
    forget_connections()
    bridge.join_sessions()
    yield
    forget_connections()


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


def engine_url(dsn: str, driver: str) -> str:
    """The DSN as SQLAlchemy writes it; a socket's folder goes into the query."""
    given = conninfo.conninfo_to_dict(dsn)
    secret = f":{quote(str(given['password']))}" if given.get("password") else ""
    return (
        f"postgresql+{driver}://{quote(str(given['user']))}{secret}@/{given['dbname']}"
        f"?host={quote(str(given['host']), safe='')}&port={given.get('port', 5432)}"
    )


@pytest.fixture
def engine(dsn: str, joining: None) -> Iterator[Engine]:
    """An engine on this test's database, with a table `orders` of the user's."""
    del joining
    engine = create_engine(engine_url(dsn, "psycopg"))
    with engine.begin() as connection:
        connection.exec_driver_sql("create table orders (id integer primary key, name text)")
    yield engine
    engine.dispose()


@pytest.fixture
def foreign_engine(empty_dsn: str, joining: None) -> Iterator[Engine]:
    """An engine on a database of somebody else, with such a table too."""
    del joining
    engine = create_engine(engine_url(empty_dsn, "psycopg"))
    with engine.begin() as connection:
        connection.exec_driver_sql("create table orders (id integer primary key, name text)")
    yield engine
    engine.dispose()


def tasks_of(db: Sql) -> list[Any]:
    """The jobs that everybody sees, by their task, in the order of their making."""
    return [row[0] for row in db.rows("select task from bridge.job order by seq")]
