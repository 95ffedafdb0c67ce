"""Networks that fail: proxies before the servers of a test."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from fix_servers import wait_until
from laboratory.proxy import Proxy
from psycopg import conninfo

from bridge.local.postgres import SOCKET_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_servers import RedisServer
    from fix_sql import Session


@pytest.fixture
def redis_proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    """A proxy before this test's Redis."""
    proxy = Proxy(redis_server.port)
    yield proxy
    proxy.close()


def proxy_before(dsn: str) -> tuple[Proxy, str]:
    """A proxy before a Postgres of the tests, and the DSN that leads through it."""
    given = conninfo.conninfo_to_dict(dsn)
    host, port = str(given.get("host", "127.0.0.1")), int(given.get("port") or SOCKET_PORT)
    proxy = Proxy(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else port)
    return proxy, conninfo.make_conninfo(dsn, host="127.0.0.1", port=proxy.port)


@pytest.fixture
def postgres_proxy(dsn: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before this test's database, and the DSN that leads through it."""
    proxy, through = proxy_before(dsn)
    yield proxy, through
    proxy.close()


def without_an_answer(proxy: Proxy, db: Session, call: Callable[[], Any]) -> Any:
    """Make a job while no answer of Postgres comes through; the connection breaks when the job has been made, and has run to its end."""

    def run() -> None:
        claim = wait_until(db.claim)[0]
        db.finish(claim, db.start(claim))
        proxy.heal()
        proxy.cut()

    proxy.drop("answers")
    with ThreadPoolExecutor(1) as pool:
        ran = pool.submit(run)
        result = call()
        ran.result()
    return result
