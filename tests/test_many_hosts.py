"""An address with several hosts, of which one takes writes: in every form that BRIDGE_DATABASE_URL has."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import create_engine, text

import bridge
from bridge.queries.connection import connect
from bridge.settings import libpq_url

if TYPE_CHECKING:
    from fix_sql import Session


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("postgresql://u:p@a:5432,b:5433/shop?target_session_attrs=read-write", "a,b", "5432,5433"),
        ("postgresql+psycopg://u:p@/shop?host=a:5432&host=b:5433&target_session_attrs=read-write", "a,b", "5432,5433"),
        ("postgresql+asyncpg://u:p@/shop?host=a&host=b&port=5432&target_session_attrs=read-write", "a,b", "5432"),
        ("postgres://u:p@/shop?host=[::1]:5432&host=b&target_session_attrs=read-write", "[::1],b", "5432,"),
        ("postgresql://u:p@/shop?host=/run/a,/run/b&port=1,2&target_session_attrs=read-write", "/run/a,/run/b", "1,2"),
        ("postgresql+psycopg://u:p@/shop?options=-c%20search_path%3Dx&host=a:5&target_session_attrs=read-write", "a", "5"),
    ],
)
def test_several_hosts_are_what_libpq_takes_whatever_the_form(url: str, host: str, port: str) -> None:
    parts = conninfo_to_dict(libpq_url(url))
    assert (parts["host"], parts["port"], parts["dbname"], parts["user"]) == (host, port, "shop", "u")
    assert parts["target_session_attrs"] == "read-write"
    assert parts.get("options") in {None, "-c search_path=x"}


def test_one_host_stays_as_it_is() -> None:
    assert libpq_url("postgresql+psycopg://u@h:1/shop?sslmode=require") == "postgresql://u@h:1/shop?sslmode=require"
    assert libpq_url("postgresql://u@/shop?host=/run/a&port=1") == "postgresql://u@/shop?host=/run/a&port=1"


@pytest.fixture
def nobody() -> int:
    """A port that nobody listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def test_a_call_reaches_the_host_that_lives_and_joins_the_session_of_sqlalchemys_form(
    dsn: str, db: Session, nobody: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = conninfo_to_dict(dsn)
    query = f"host=127.0.0.1:{nobody}&host={parts['host']}:{parts.get('port', 5432)}"
    url = f"postgresql+psycopg://{parts['user']}@/{parts['dbname']}?{query}"
    monkeypatch.setenv("BRIDGE_DATABASE_URL", url)
    engine = create_engine(url)
    with engine.begin() as connection:
        identity = bridge.enqueue("a.task", connection=connection)
        assert db.one("select count(*) from bridge.jobs") == 0
        assert connection.execute(text("select count(*) from bridge.jobs")).scalar() == 1
    assert db.status(identity) == "queued"
    engine.dispose()


def test_a_server_that_turns_read_only_is_an_outage_and_its_connection_is_not_kept(db: Session) -> None:
    connection = connect(make_conninfo(db.dsn, options="-c default_transaction_read_only=on"), name="a test")
    with pytest.raises(psycopg.OperationalError, match="the server takes no writes"):
        connection.execute("select bridge.tick('test')")
    assert connection.closed
    with psycopg.connect(db.dsn) as other:
        assert other.execute("select 1").fetchone() == (1,)
