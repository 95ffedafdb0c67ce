"""A drainer killed at each line between claim and mark, and messages that the broker has lost: once too often, never not at all."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis
from apps.ledger import TABLE
from fix_servers import wait_for_row, wait_for_value, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_servers import RedisServer, StartDrainer, StartWorker
    from fix_sql import Session
    from laboratory.proxy import Proxy


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
def ledger(db: Session) -> Session:
    db.do(TABLE)
    return db


@pytest.fixture
def through_proxy(redis_server: RedisServer, redis_proxy: Proxy) -> str:
    return redis_server.url.replace(f":{redis_server.port}/", f":{redis_proxy.port}/")


def runs(db: Session, identity: Any) -> int:
    return int(db.one("select count(*) from ledger where task_id = %s and event = 'start'", str(identity)))


def test_a_job_is_published_when_its_drainer_died_between_claim_and_publish(
    ledger: Session, drainer: StartDrainer, worker: StartWorker, redis_proxy: Proxy, through_proxy: str, client: redis.Redis
) -> None:
    ledger.do("update bridge.setting set value = '2' where name = 'publish_lease'")
    doomed = drainer(broker_url=through_proxy)
    redis_proxy.drop("requests")
    identity = ledger.enqueue("ledger.work", args=[1])
    wait_until(lambda: redis_proxy.dropped, 20, "the message to be lost on its way")
    doomed.kill(signal.SIGKILL)
    assert client.llen("celery") == 0
    drainer()
    worker("apps.ledger")
    wait_for_value(ledger.dsn, "select status from bridge.jobs where id = %s", (identity,), value="succeeded", timeout=60)
    assert runs(ledger, identity) == 1


def test_a_job_is_published_twice_and_runs_once_when_its_drainer_died_between_publish_and_mark(
    ledger: Session, drainer: StartDrainer, worker: StartWorker, redis_proxy: Proxy, through_proxy: str, client: redis.Redis
) -> None:
    ledger.do("update bridge.setting set value = '2' where name = 'publish_lease'")
    doomed = drainer(broker_url=through_proxy)
    redis_proxy.drop("answers")
    identity = ledger.enqueue("ledger.work", args=[1])
    wait_until(lambda: client.llen("celery") == 1, 20, "the message")
    doomed.kill(signal.SIGKILL)
    drainer()
    wait_until(lambda: client.llen("celery") == 2, 60, "the second copy")
    runner = worker("apps.ledger")
    wait_for_value(ledger.dsn, "select status from bridge.jobs where id = %s", (identity,), value="succeeded", timeout=60)
    wait_until(lambda: "refused a copy" in runner.log_text(), 30, "the other copy to be taken")
    assert runs(ledger, identity) == 1
    assert ledger.attempts(identity) == [(1, "succeeded")]


def test_a_job_whose_confirmation_was_lost_goes_out_again_and_runs_once(
    ledger: Session, drainer: StartDrainer, worker: StartWorker, redis_proxy: Proxy, through_proxy: str
) -> None:
    process = drainer(broker_url=through_proxy, env={"BRIDGE_TIMEOUT": "2"})
    redis_proxy.drop("answers")
    identity = ledger.enqueue("ledger.work", args=[1])
    wait_until(lambda: "outage" in process.log_text(), 30, "the drainer to give up")
    redis_proxy.heal()
    worker("apps.ledger")
    wait_for_value(ledger.dsn, "select status from bridge.jobs where id = %s", (identity,), value="succeeded", timeout=60)
    assert runs(ledger, identity) == 1


def test_a_message_that_waits_in_the_broker_is_never_published_again(db: Session, drainer: StartDrainer, client: redis.Redis) -> None:
    db.do("update bridge.setting set value = '0' where name = 'republish_grace'")
    process = drainer()
    db.enqueue()
    wait_until(lambda: client.llen("celery") == 1, 20)
    for _ in range(3):
        # With each report the drainer also looks for messages that are gone.
        seen = db.one("select seen_at from bridge.drainer where pid = %s", process.pid)
        wait_for_row(db.dsn, "select 1 from bridge.drainer where pid = %s and seen_at > %s", (process.pid, seen))
    assert client.llen("celery") == 1
    assert db.rows("select state, republished, missing_since from bridge.inflight") == [("published", 0, None)]


def test_a_purged_queue_is_filled_again_once(db: Session, drainer: StartDrainer, client: redis.Redis) -> None:
    db.do("update bridge.setting set value = '1' where name = 'republish_grace'")
    drainer()
    for _ in range(5):
        db.enqueue()
    wait_until(lambda: client.llen("celery") == 5, 20)
    client.delete("celery")
    wait_until(lambda: client.llen("celery") == 5, 60, "the messages to be published again")
    wait_for_value(db.dsn, "select count(*) from bridge.inflight where state = 'published' and republished = 1", value=5)
    assert client.llen("celery") == 5


def test_what_a_killed_worker_had_taken_and_not_begun_runs_elsewhere(
    db: Session, drainer: StartDrainer, worker: StartWorker, tmp_path: Path
) -> None:
    drainer()
    doomed = worker("apps.kinds", "--prefetch-multiplier=4", concurrency=1)
    started, go = tmp_path / "started", tmp_path / "go"
    first = db.enqueue("kinds.hold", args=[str(started), str(go)])
    wait_until(started.exists, 30)
    others = [db.enqueue("kinds.add", args=[n, n]) for n in range(3)]
    wait_for_value(db.dsn, "select cardinality(holding) from bridge.worker where pid = %s", (doomed.pid,), value=4)
    doomed.kill(signal.SIGKILL)
    doomed.stop()  # and its children
    go.touch()
    worker("apps.kinds", concurrency=1)
    done = "select count(*) from bridge.jobs where id = any(%s) and status = 'succeeded'"
    wait_for_value(db.dsn, done, ([first, *others],), value=4, timeout=90)
    assert db.rows("select losses from bridge.jobs where id = any(%s)", others) == [(0,)] * 3
    assert db.field(first, "losses") == 1


def test_a_crash_of_postgres_loses_no_committed_job_and_no_result(
    durable_postgres: Any, drainer: StartDrainer, worker: StartWorker, redis_url: str
) -> None:
    dsn = durable_postgres.dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TABLE)
    drainer(dsn=dsn, broker_url=redis_url)
    worker("apps.ledger", dsn=dsn, broker_url=redis_url)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select bridge.enqueue('ledger.work', jsonb_build_array(n, 0.02)) from generate_series(1, 200) n")
        wait_until(lambda: (connection.execute("select count(*) from bridge.finished").fetchone() or [0])[0] >= 50, 60)
    durable_postgres.kill()
    durable_postgres.start()
    wait_for_value(dsn, "select count(*) from bridge.jobs where status = 'succeeded'", value=200, timeout=120)
    wait_for_value(dsn, "select count(*) from bridge.jobs where result::text::int <> 2 * (args->>0)::int", value=0)
