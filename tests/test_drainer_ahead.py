"""A shipment that is claimed while the one before it is on its way: published once, or back where it was."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis
from fix_servers import wait_for_value
from laboratory.proxy import Proxy

from bridge.drainer import Drainer
from bridge.errors import PublishError
from bridge.queries.connection import OUTAGE
from bridge.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_servers import RedisServer, StartDrainer
    from fix_sql import Session

SHIPMENT = 5
CLAIMED = "select count(*) from bridge.inflight where state = 'claimed'"
READY = "select count(*) from bridge.ready"
AHEAD = """select pid from pg_stat_activity where datname = current_database() and application_name = 'bridge drain'
  order by backend_start desc limit 1"""
WAITS = "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"


@pytest.fixture
def lane(redis_server: RedisServer) -> Iterator[Proxy]:
    """The drainer's way to Redis."""
    proxy = Proxy(redis_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def drainer_here(db: Session, redis_server: RedisServer, lane: Proxy) -> Iterator[Drainer]:
    url = redis_server.url.replace(f":{redis_server.port}", f":{lane.port}")
    one = Drainer(Settings(database_url=db.dsn, broker_url=url, shipment=SHIPMENT), threading.Event())
    yield one
    one.close()


def enqueue(db: Session, count: int) -> None:
    db.do("select bridge.enqueue('a.task', jsonb_build_array(n)) from generate_series(1, %s) n", count)


def in_redis(redis_server: RedisServer) -> int:
    with redis.Redis.from_url(redis_server.url) as client:
        return int(client.llen("celery"))  # type: ignore[arg-type]


def test_the_next_shipment_is_claimed_beside_the_first_and_no_further_one(
    db: Session, drainer_here: Drainer, redis_server: RedisServer
) -> None:
    enqueue(db, 3 * SHIPMENT)
    assert drainer_here.drain_once() == SHIPMENT
    wait_for_value(db.dsn, CLAIMED, value=SHIPMENT)
    assert in_redis(redis_server) == SHIPMENT
    assert [drainer_here.drain_once() for _ in range(3)] == [SHIPMENT, SHIPMENT, 0]
    assert (in_redis(redis_server), db.one(CLAIMED), db.one(READY)) == (3 * SHIPMENT, 0, 0)


def test_a_drainer_that_stops_gives_back_what_it_has_claimed_ahead(db: Session, drainer_here: Drainer, redis_server: RedisServer) -> None:
    enqueue(db, 3 * SHIPMENT)
    drainer_here.drain_once()
    wait_for_value(db.dsn, CLAIMED, value=SHIPMENT)
    drainer_here.close()
    assert (in_redis(redis_server), db.one(CLAIMED), db.one(READY)) == (SHIPMENT, 0, 2 * SHIPMENT)


def test_what_was_claimed_ahead_goes_back_when_the_broker_is_gone(db: Session, drainer_here: Drainer, lane: Proxy) -> None:
    enqueue(db, 3 * SHIPMENT)
    drainer_here.drain_once()
    wait_for_value(db.dsn, CLAIMED, value=SHIPMENT)
    lane.refuse()
    lane.cut()
    with pytest.raises(PublishError):
        drainer_here.drain_once()
    drainer_here._drop()  # what its loop does then
    assert (db.one(CLAIMED), db.one(READY)) == (0, 2 * SHIPMENT)


def test_a_claim_ahead_that_breaks_off_is_an_outage_like_any_other(db: Session, drainer_here: Drainer, redis_server: RedisServer) -> None:
    enqueue(db, 2 * SHIPMENT)
    assert [drainer_here.drain_once() for _ in range(3)] == [SHIPMENT, SHIPMENT, 0]
    ahead = db.one(AHEAD)
    enqueue(db, 2 * SHIPMENT)
    with psycopg.connect(db.dsn) as other:
        other.execute("lock table bridge.inflight")
        drainer_here._ahead.begin("celery", limit=SHIPMENT, size=1000)
        wait_for_value(db.dsn, WAITS, (ahead,), value=1)
        db.do("select pg_terminate_backend(%s)", ahead)
        with pytest.raises(OUTAGE):
            drainer_here.drain_once()
    assert [drainer_here.drain_once() for _ in range(3)] == [SHIPMENT, SHIPMENT, 0]
    assert in_redis(redis_server) == 4 * SHIPMENT


def test_many_shipments_of_several_queues_are_each_published_once(db: Session, drainer: StartDrainer, redis_server: RedisServer) -> None:
    for queue in ("celery", "mail"):
        db.do("select bridge.enqueue('a.task', queue => %s) from generate_series(1, 203)", queue)
    drainer(broker_url=redis_server.url, env={"BRIDGE_SHIPMENT": "10"})
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'published'", value=406, timeout=60)
    assert in_redis(redis_server) == 203
