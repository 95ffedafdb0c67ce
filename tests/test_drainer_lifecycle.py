"""A real drainer process: how it wakes, shares, outlives its servers and ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis
from fix_servers import wait_for_row, wait_for_value, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_servers import RedisServer, StartDrainer
    from fix_sql import Session

    from bridge.local.postgres import PostgresServer

PROMISED_END = 5.0  # seconds from SIGTERM to the end
HEAP = 64 << 20
SLOW_MACHINE = 3  # times a promise is waited for, because the machine is shared


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def ids_in(client: redis.Redis, queue: str = "celery") -> list[str]:
    return [json.loads(text)["headers"]["id"] for text in client.lrange(queue, 0, -1)]  # type: ignore[union-attr]


def many(db: Session, count: int) -> None:
    db.do("select bridge.enqueue('a.task', jsonb_build_array(n)) from generate_series(1, %s) n", count)


def test_a_ready_job_reaches_its_queue_and_is_marked(db: Session, drainer: StartDrainer, client: redis.Redis) -> None:
    drainer()
    identity = db.enqueue(queue="mail")
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="published")
    assert ids_in(client, "mail") == [str(identity)]


def test_a_commit_wakes_the_drainer_long_before_it_would_look_again(db: Session, drainer: StartDrainer) -> None:
    drainer(env={"BRIDGE_POLL": "60", "BRIDGE_TICK": "off"})
    begun = time.monotonic()
    identity = db.enqueue()
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="published")
    # Its own reports wake it every five seconds; only a NOTIFY is quicker.
    assert time.monotonic() - begun < 4


def test_jobs_whose_notify_nobody_heard_are_found_by_looking(db: Session, drainer: StartDrainer) -> None:
    drainer(env={"BRIDGE_POLL": "0.2"})
    with db.connection.transaction():
        identity = db.enqueue()
        # What a pooler does to a notification: it never arrives.
        db.do("delete from bridge.ready")
    db.do("insert into bridge.ready (queue, rank, seq, size) select queue, rank, seq, size from bridge.job")
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="published")


def test_a_drainer_serves_the_queues_it_is_given(db: Session, drainer: StartDrainer, client: redis.Redis) -> None:
    drainer("-Q", "mail,reports")
    db.enqueue(queue="other")
    db.enqueue(queue="mail")
    db.enqueue(queue="reports")
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'published'", value=2)
    assert client.llen("other") == 0


def test_two_drainers_share_the_work_and_publish_nothing_twice(db: Session, drainer: StartDrainer, client: redis.Redis) -> None:
    db.do("update bridge.setting set value = '0' where name = 'window'")
    for _ in range(2):
        drainer(env={"BRIDGE_SHIPMENT": "20"})
    made = []

    def both_have_published() -> bool:
        many(db, 500)
        made.append(500)
        return bool(db.one("select count(distinct drainer) = 2 from bridge.inflight"))

    wait_until(both_have_published, what="one publishes while the other claims")
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'published'", value=sum(made), timeout=60)
    found = ids_in(client)
    assert (len(found), len(set(found))) == (sum(made), sum(made))


def heaps_of_threads(pid: int) -> list[str]:
    """The heaps that glibc has given to threads: it reserves 64 MiB for each, at a multiple of that, and uses the beginning."""
    maps = [line.split()[:2] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    parts = [(*(int(end, 16) for end in place.split("-")), rights) for place, rights in maps]
    return [
        f"{used[0]:x}" for used, left in pairwise(parts)
        if used[0] % HEAP == 0 and left[:2] == (used[1], used[0] + HEAP) and (used[2], left[2]) == ("rw-p", "---p")
    ]  # fmt: skip


def test_the_threads_of_a_drainer_have_no_heaps_of_their_own(db: Session, drainer: StartDrainer) -> None:
    db.do("update bridge.setting set value = '0' where name = 'window'")
    many(db, 3000)
    process = drainer()
    wait_for_value(db.dsn, "select count(*) from bridge.inflight where state = 'published'", value=3000)
    assert heaps_of_threads(process.pid) == []


# Large buffers that come and go, and small things that stay for a while: the growth in KiB.
GROWTH = """
import random
from bridge.cli.service import keep_memory_flat
keep_memory_flat()
used = lambda: next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous:"))
random.seed(1)
kept, before = [], used()
for number in range(400):
    large = bytearray(random.randint(200_000, 200_000 + 8_000 * number))
    kept.append(bytes(random.randint(600, 1_500)))
    del large
    if len(kept) > 200:
        kept.pop(random.randrange(len(kept)))
print(used() - before)
"""


def test_large_buffers_that_have_gone_leave_no_room_behind_in_the_memory_of_a_drainer() -> None:
    grown = int(subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True).stdout)
    assert grown < 1500, "some 200 KiB are kept; with the large ones in the heap it is more than 2.5 MiB"


def test_sigterm_ends_a_drainer_in_the_middle_of_its_work_with_code_0_and_nothing_half_done(db: Session, drainer: StartDrainer) -> None:
    db.do("update bridge.setting set value = '0' where name = 'window'")
    many(db, 20_000)
    process = drainer(env={"BRIDGE_SHIPMENT": "50"}, ready=False)
    wait_for_row(db.dsn, "select 1 from bridge.inflight limit 1")
    process.kill(signal.SIGTERM)
    assert process.wait(SLOW_MACHINE * PROMISED_END) == 0
    assert db.one("select count(*) from bridge.inflight where state = 'claimed'") == 0
    assert db.one("select count(*) from bridge.ready") > 0
    assert db.one("select stopped_at is not null from bridge.drainer")


def test_an_idle_drainer_ends_at_once_on_sigterm(drainer: StartDrainer) -> None:
    process = drainer(env={"BRIDGE_POLL": "60"})
    process.kill(signal.SIGTERM)
    assert process.wait(SLOW_MACHINE * PROMISED_END) == 0


def test_sigterm_ends_a_drainer_whose_broker_does_not_answer(db: Session, drainer: StartDrainer, redis_server: RedisServer) -> None:
    process = drainer()
    freeze(redis_server, signal.SIGSTOP)
    try:
        db.enqueue()
        wait_for_row(db.dsn, "select 1 from bridge.inflight where state = 'claimed'")
        process.kill(signal.SIGTERM)
        assert process.wait(SLOW_MACHINE * PROMISED_END) == 0
    finally:
        freeze(redis_server, signal.SIGCONT)


def freeze(server: Any, number: signal.Signals) -> None:
    server.process.kill(number)


def test_a_broker_that_does_not_answer_is_given_up_and_its_jobs_go_out_later(
    db: Session, drainer: StartDrainer, redis_server: RedisServer, client: redis.Redis
) -> None:
    process = drainer(env={"BRIDGE_TIMEOUT": "2"})
    freeze(redis_server, signal.SIGSTOP)
    try:
        identity = db.enqueue()
        wait_until(lambda: "outage" in process.log_text(), 60, "the drainer to give up")
    finally:
        freeze(redis_server, signal.SIGCONT)
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="published", timeout=60)
    assert str(identity) in ids_in(client)


def test_a_drainer_ticks_while_its_broker_is_down(db: Session, drainer: StartDrainer, redis_server: RedisServer) -> None:
    drainer()
    redis_server.stop()
    identity = db.enqueue(delay="1 second", expires_at=db.one("select clock_timestamp() + interval '2 seconds'"))
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="expired", timeout=60)


def test_a_redis_that_restarts_empty_gets_what_it_lost_again(db: Session, drainer: StartDrainer, redis_server: RedisServer) -> None:
    db.do("update bridge.setting set value = '1' where name = 'republish_grace'")
    drainer()
    identity = db.enqueue()
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="published")
    redis_server.stop()
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: ids_in(client) == [str(identity)], 60, "the job to be published again")
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="published")


def test_a_redis_out_of_memory_leaves_jobs_ready_and_gets_them_when_it_has_room(
    db: Session, drainer: StartDrainer, client: redis.Redis
) -> None:
    process = drainer()
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")
    identity = db.enqueue()
    wait_until(lambda: "maxmemory" in process.log_text(), 60, "the refusal")
    wait_for_row(db.dsn, "select 1 from bridge.ready join bridge.job using (seq) where id = %s", (identity,), timeout=60)
    assert db.status(identity) == "queued"
    client.config_set("maxmemory", "0")
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="published", timeout=60)
    assert set(ids_in(client)) == {str(identity)}


def test_a_drainer_outlives_a_restart_of_postgres(durable_postgres: PostgresServer, drainer: StartDrainer) -> None:
    process = drainer(dsn=durable_postgres.dsn)
    durable_postgres.kill()
    wait_until(lambda: "outage" in process.log_text(), 60, "the drainer to notice")
    durable_postgres.start()
    with psycopg.connect(durable_postgres.dsn, autocommit=True) as connection:
        connection.execute("select bridge.enqueue('a.task')")
    wait_for_value(durable_postgres.dsn, "select status from bridge.jobs", value="published", timeout=60)
    assert process.alive


def test_a_drainer_waits_for_a_postgres_that_is_not_there_yet(durable_postgres: PostgresServer, drainer: StartDrainer) -> None:
    durable_postgres.stop()
    process = drainer(dsn=durable_postgres.dsn, ready=False)
    wait_until(lambda: "not connected yet" in process.log_text() or "outage" in process.log_text(), 60)
    durable_postgres.start()
    wait_for_row(durable_postgres.dsn, "select 1 from bridge.drainer where pid = %s", (process.pid,), timeout=60)


def test_once_publishes_what_is_ready_and_ends(db: Session, drainer: StartDrainer) -> None:
    many(db, 30)
    db.enqueue(delay="1 hour")
    process = drainer("--once", env={"BRIDGE_SHIPMENT": "10"}, ready=False)
    assert process.wait(60) == 0
    assert "published 30 jobs" in process.log_text()
    assert db.rows("select status, count(*) from bridge.jobs group by 1 order by 1") == [("published", 30), ("scheduled", 1)]


def test_a_row_that_looks_strange_does_not_stop_its_queue(db: Session, drainer: StartDrainer, client: redis.Redis) -> None:
    drainer()
    db.enqueue("ünïcode.tâsk", args=["\ud83d\ude00" * 10, {"a": [None, 1e300]}], headers={"x": "\u2028"})
    db.enqueue(args=["x" * 900_000])
    last = db.enqueue()
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (last,), value="published")
    assert client.llen("celery") == 3
