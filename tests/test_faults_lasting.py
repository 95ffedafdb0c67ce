"""Tasks that last longer than everything that has an end: leases, graces, the broker's patience, the way to Postgres.

On Redis and two pools; with BRIDGE_TEST_EFFORT of 2 or more on RabbitMQ and a third pool as well, and minutes without a worker.
"""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
import redis
from apps.ledger import TABLE
from fix_effort import EFFORT, LONG
from fix_proxy import proxy_before
from fix_servers import wait_for_value, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_rabbitmq import Vhost
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session
    from laboratory.proxy import Proxy

LOST = 8  # seconds after which a worker that says nothing is taken for dead
SHORT = {"heartbeat": 1, "publish_lease": 1, "republish_grace": 1}
POOLS = {"prefork": 2, "solo": 1} | ({"threads": 2} if EFFORT > 1 else {})  # and how many tasks run there at once
IMPATIENT = json.dumps({"broker_heartbeat": 2})  # RabbitMQ closes what is silent for twice as long; a solo pool is while its task runs


class Redis:
    """The broker that a worker tells nothing of rows' messages."""

    def __init__(self, url: str) -> None:
        self.url = url

    def messages(self, *queues: str) -> int:
        """Those that wait, and those that a worker holds."""
        with redis.Redis.from_url(self.url) as client:
            return sum(int(client.llen(queue)) for queue in queues) + int(client.hlen("unacked"))


class Rabbit:
    """The broker that keeps what is not acknowledged."""

    def __init__(self, vhost: Vhost) -> None:
        self.vhost, self.url = vhost, vhost.url

    def messages(self, *queues: str) -> int:
        """Those that wait, and those that a worker holds."""
        return sum(self.vhost.server.api("GET", f"queues/{self.vhost.name}/{queue}").get("messages", 0) for queue in queues)


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=LONG)])
def broker(request: pytest.FixtureRequest) -> Redis | Rabbit:
    return Redis(request.getfixturevalue("redis_url")) if request.param == "redis" else Rabbit(request.getfixturevalue("vhost"))


@pytest.fixture
def hasty(db: Session) -> Session:
    """A database where everything that has an end ends soon, and a ledger."""
    db.do(TABLE)
    for name, value in {**SHORT, "worker_lost": LOST}.items():
        db.do("update bridge.setting set value = to_jsonb(%s::integer) where name = %s", value, name)
    return db


@pytest.fixture
def far(hasty: Session) -> Iterator[tuple[Proxy, dict[str, Any]]]:
    """A line to Postgres, and what a worker is started with that has no other; its tasks write their ledger past it."""
    proxy, through = proxy_before(hasty.dsn)
    yield proxy, {"dsn": through, "env": {"LEDGER_DATABASE_URL": hasty.dsn, "BRIDGE_TEST_CONF": IMPATIENT}}
    proxy.close()


def starts(db: Session) -> list[int]:
    """How often each job that has started did."""
    return [row[0] for row in db.rows("select count(*) from ledger where event = 'start' group by task_id order by 1")]


def last(db: Session, since: Any, seconds: float) -> None:
    """Wait until so much time has passed on the clock of Postgres."""
    wait_for_value(db.dsn, "select clock_timestamp() > %s + make_interval(secs => %s)", (since, seconds), timeout=seconds + 60)


def all_succeeded(db: Session, count: int, timeout: float = 60) -> None:
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'succeeded'", value=count, timeout=timeout)


def copies(db: Session) -> int:
    """Messages beyond the first that drainers have published, as far as they have reported."""
    return int(db.one("select coalesce(sum(published), 0) from bridge.drainer")) - int(db.one("select count(*) from bridge.jobs"))


@pytest.mark.timeout(400)
def test_tasks_that_outlast_every_lease_run_once_and_what_waits_behind_them_too(
    hasty: Session, broker: Redis | Rabbit, far: tuple[Proxy, dict[str, Any]], drainer: StartDrainer, worker: StartWorker, tmp_path: Path
) -> None:
    proxy, options = far
    mover = drainer(broker_url=broker.url)
    for pool, count in POOLS.items():
        worker("apps.lasting", pool=pool, concurrency=count, queues=pool, broker_url=broker.url, **options)
        for task in ("lasting.early", "lasting.late")[-count:]:
            hasty.enqueue(task, args=[str(tmp_path / "go")], queue=pool)
    long = sum(POOLS.values())
    wait_until(lambda: starts(hasty) == [1] * long, 60, "the long tasks to run")
    for pool in POOLS:
        hasty.enqueue("ledger.work", args=[1], queue=pool)
    began = hasty.one("select clock_timestamp()")
    last(hasty, began, 2)
    proxy.refuse()
    proxy.cut()
    last(hasty, began, 5)  # longer than any lease but a worker's
    proxy.heal()
    last(hasty, began, LOST + 1)
    held = hasty.rows("select distinct republished from bridge.inflight where queue <> 'solo'")
    assert held == [(0,)], "a worker whose loop goes on holds what it has taken"
    (tmp_path / "go").touch()
    all_succeeded(hasty, long + len(POOLS))
    wait_until(lambda: broker.messages(*POOLS) == 0, 60, "the broker to be empty")
    mover.kill(signal.SIGTERM)
    mover.wait(30)
    assert copies(hasty) <= 3, "of the message that came to a solo worker, whose loop stands still while a task runs"
    assert starts(hasty) == [1] * (long + len(POOLS))
    assert hasty.one("select count(*) from bridge.attempt") == 0, "nobody was taken for dead"


@pytest.mark.timeout(400)
def test_a_worker_that_is_cut_off_for_longer_than_its_lease_costs_the_run_that_it_had_and_no_other(
    hasty: Session, broker: Redis | Rabbit, far: tuple[Proxy, dict[str, Any]], drainer: StartDrainer, worker: StartWorker, tmp_path: Path
) -> None:
    hasty.do("update bridge.setting set value = '3' where name = 'worker_lost'")
    proxy, options = far
    go = tmp_path / "go"
    drainer(broker_url=broker.url)
    cut_off = worker("apps.lasting", concurrency=1, broker_url=broker.url, **options)
    long = hasty.enqueue("lasting.late", args=[str(go)])
    wait_until(lambda: starts(hasty) == [1], 60, "the long task to run")
    for _ in range(3):
        hasty.enqueue("ledger.work", args=[1])
    wait_for_value(hasty.dsn, "select cardinality(holding) from bridge.worker", value=4, timeout=30)
    proxy.stall()
    wait_for_value(hasty.dsn, "select losses from bridge.jobs where id = %s", (long,), value=1, timeout=60)
    other = worker("apps.lasting", concurrency=1, broker_url=broker.url)
    wait_until(lambda: starts(hasty) == [2], 60, "the long task to run once more")
    proxy.heal()
    wait_for_value(hasty.dsn, "select count(*) from bridge.workers where status <> 'lost'", value=2, timeout=60)
    go.touch()
    all_succeeded(hasty, 4)
    wait_until(lambda: broker.messages("celery") == 0, 60, "the broker to be empty")
    wait_until(lambda: cut_off.log_text().count("refused a copy") == 3, 60, "what waited in the first worker to be refused")
    assert starts(hasty) == [1, 1, 1, 2]
    wait_until(lambda: len(hasty.attempts(long)) == 3, 60, "what the first run says too late, which is kept aside")
    assert sorted(hasty.attempts(long)) == [(1, "lost"), (1, "succeeded"), (1, "superseded")]
    assert hasty.one("select count(*) from bridge.attempt") == 2, "the jobs behind it have lost nothing"
    assert other.alive


@LONG
@pytest.mark.timeout(60 * EFFORT + 900)
def test_a_full_window_that_nobody_takes_for_minutes_is_published_once_and_runs_once(
    db: Session, broker: Redis | Rabbit, drainer: StartDrainer, worker: StartWorker, tmp_path: Path
) -> None:
    """As many minutes by the clock as BRIDGE_TEST_EFFORT says, with settings as they come."""
    window, minute = int(db.one("select value from bridge.setting where name = 'window'")), 60
    counts = {"celery": window + 200, "long": 3, "rare": 3, "metered": EFFORT + 2}
    db.do(TABLE)
    db.do("select bridge.set_limit('metered', queue => 'metered', rate => 1, per => '1 minute')")
    calls: dict[str, tuple[str, list[Any]]] = {"long": ("lasting.late", [str(tmp_path / "go")]), "rare": ("lasting.rare", [])}
    for queue, count in counts.items():
        task, args = calls.get(queue, ("ledger.work", [1]))
        for _ in range(count):
            db.enqueue(task, args=args, queue=queue)
    began = db.one("select clock_timestamp()")
    mover = drainer(broker_url=broker.url)
    last(db, began, EFFORT * minute)
    assert broker.messages("celery") == window
    assert db.rows("select distinct republished, missing_since is null from bridge.inflight") == [(0, True)]
    taken = db.one("select clock_timestamp()")
    worker("apps.lasting", concurrency=5, queues=",".join(counts), broker_url=broker.url)
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where queue = 'long' and status = 'running'", value=3, timeout=120)
    last(db, taken, 1.5 * minute)  # longer than every lease
    (tmp_path / "go").touch()
    all_succeeded(db, sum(counts.values()), timeout=5 * minute)
    wait_until(lambda: broker.messages(*counts) == 0, 60, "the broker to be empty")
    mover.kill(signal.SIGTERM)
    mover.wait(30)
    assert copies(db) == 0
    assert starts(db) == [1] * sum(counts.values())
    assert db.one("select count(*) from bridge.attempt") == 0, "nobody was taken for dead, and nothing was refused"
