"""What a broker can do to messages: lose them, bring old ones back, refuse them, keep them for ever. No job runs twice or not at all.

Workers are played by SQL: they take a message out of its list and ask the start fence with its token, as workers do. Half an hour passes
by moving what is remembered of the past, which is all that a drainer knows of time here.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest
import redis
from invariants import assert_sound
from laboratory.proxy import Proxy

from bridge.drainer import Drainer
from bridge.errors import PublishError
from bridge.local.broker import free_port
from bridge.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from fix_redis import Redises
    from fix_servers import RedisServer
    from fix_sql import Session

PAST = (
    "update bridge.inflight set published_at = published_at - interval '31 minutes', missing_since = missing_since - interval '31 minutes'"
)


class Rig:
    """A drainer in this process, its Redis, and a worker played by SQL."""

    def __init__(self, db: Session, url: str, drained: str | None = None, queues: str = "") -> None:
        """A drainer may reach the same Redis by another way, and serve some queues only."""
        self.db, self.client = db, redis.Redis.from_url(url)
        self.drainer = Drainer(Settings(database_url=db.dsn, broker_url=drained or url, queues=queues), threading.Event())
        self.started: Counter[str] = Counter()
        # Of a grace counts only the time since Postgres was started, which may be a moment ago.
        db.do("update bridge.setting set value = '0' where name = 'republish_grace'")

    def enqueue(self, count: int, queue: str = "celery", size: int = 0) -> None:
        call = "select bridge.enqueue('a.task', jsonb_build_array(n, repeat('x', %s)), queue => %s) from generate_series(1, %s) n"
        self.db.do(call, size, queue, count)

    def take(self, queue: str = "celery") -> list[bytes]:
        """Everything that a list holds, oldest first."""
        return [self.client.rpop(queue) for _ in range(self.client.llen(queue))]  # type: ignore[arg-type,misc]

    def run(self, messages: list[bytes]) -> int:
        """Ask the fence for each, and finish what starts; how many did."""
        done = 0
        for text in messages:
            headers = json.loads(text)["headers"]
            seq, token = headers["bridge"].split(":")
            run = self.db.one("select bridge.start(%s, %s, gen_random_uuid(), 1)", int(seq), token)
            if run is not None:
                self.started[headers["id"]] += 1
                self.db.do("select bridge.finish(%s, %s, 'succeeded')", int(seq), run)
                done += 1
        return done

    def look_twice(self) -> int:
        """What two looks at the broker find missing, half an hour and an answer of the workers between them."""
        found = 0
        for _ in range(2):
            self.db.do(PAST)
            found += self.drainer.recover()
            self.db.do("update bridge.look set answered_at = clock_timestamp()")
        return found

    def run_all(self, queue: str = "celery") -> None:
        """Publish, run and recover until nothing is left, and see that each job ran once."""
        for _ in range(50):
            self.drainer.drain_once()
            self.run(self.take(queue))
            self.look_twice()
            if self.db.one("select count(*) from bridge.job") == 0:
                break
        assert self.db.one("select count(*) from bridge.job") == 0, "every job ended"
        assert self.db.one("select count(*) from bridge.finished where status <> 'succeeded'") == 0
        assert set(self.started.values()) == {1}
        assert_sound(self.db.dsn)

    def close(self) -> None:
        self.drainer.close()
        self.client.close()


@pytest.fixture
def rig(db: Session, redis_server: RedisServer) -> Iterator[Rig]:
    with closing(Rig(db, redis_server.url)) as rig:
        yield rig


def test_a_full_window_that_no_worker_takes_for_half_an_hour_stays_as_it_is(rig: Rig) -> None:
    rig.db.do("update bridge.setting set value = '30' where name = 'window'")
    for queue in ("celery", "mail"):
        rig.enqueue(100, queue)
    rig.drainer.drain_once()
    for _ in range(20):
        assert rig.look_twice() == 0
        assert rig.drainer.drain_once() == 0
    assert [rig.client.llen(queue) for queue in ("celery", "mail")] == [30, 30]
    assert rig.db.rows("select distinct republished, missing_since is null from bridge.inflight") == [(0, True)]
    for _ in range(5):
        rig.run(rig.take() + rig.take("mail"))
        rig.drainer.drain_once()
    assert (len(rig.started), set(rig.started.values())) == (200, {1})


def test_a_redis_that_comes_back_with_an_old_snapshot_starts_nothing_twice(rig: Rig) -> None:
    rig.enqueue(20)
    rig.drainer.drain_once()
    snapshot = rig.client.lrange("celery", 0, -1)
    assert rig.run([rig.client.rpop("celery") for _ in range(12)]) == 12  # type: ignore[misc]
    rig.enqueue(10)
    rig.drainer.drain_once()
    rig.client.flushall()
    rig.client.rpush("celery", *snapshot)  # type: ignore[misc]
    assert rig.look_twice() == 10, "what came after the snapshot is gone, what is in it is not"
    assert rig.run(rig.take()) == 18, "of the snapshot's messages those that had not run"
    rig.run_all()
    assert len(rig.started) == 30


def test_messages_that_come_back_after_they_were_replaced_start_nothing_twice(rig: Rig) -> None:
    rig.enqueue(20)
    rig.drainer.drain_once()
    snapshot = rig.client.lrange("celery", 0, -1)
    rig.client.flushall()
    assert rig.look_twice() == 20
    rig.client.rpush("celery", *snapshot)  # type: ignore[misc]
    assert rig.client.llen("celery") == 40
    rig.run_all()
    assert len(rig.started) == 20


def test_a_redis_that_throws_keys_away_delays_jobs_and_loses_none(rig: Rig) -> None:
    used = int(rig.client.info("memory")["used_memory"])  # type: ignore[index]
    rig.client.config_set("maxmemory-policy", "allkeys-lru")
    rig.client.config_set("maxmemory", str(used + 3_000_000))
    for queue in 4 * ("celery", "mail", "reports"):
        rig.enqueue(10, queue, size=30_000)
        with suppress(PublishError):  # what it throws away may not be enough at once
            rig.drainer.drain_once()
    assert int(rig.client.info("stats")["evicted_keys"]) > 0  # type: ignore[index]
    rig.client.config_set("maxmemory", "0")
    for _ in range(8):
        rig.drainer.drain_once()
        rig.run(rig.take() + rig.take("mail") + rig.take("reports"))
        rig.look_twice()
    assert (len(rig.started), set(rig.started.values())) == (120, {1})


def test_a_key_that_is_no_list_holds_up_its_own_queue_alone(rig: Rig) -> None:
    rig.enqueue(3, "mail")
    rig.drainer.drain_once()
    rig.client.set("strange", "somebody's")
    rig.client.delete("mail")
    rig.enqueue(5, "strange")
    rig.enqueue(5)
    assert rig.drainer.drain_once() == 5
    assert rig.client.llen("celery") == 5
    assert rig.look_twice() == 3, "what other queues have lost is found"
    assert rig.db.one("select count(*) from bridge.ready where queue = 'strange'") == 5
    assert rig.client.get("strange") == b"somebody's"


def test_a_list_that_becomes_something_else_is_no_reason_to_publish_its_messages_again(rig: Rig) -> None:
    rig.enqueue(5)
    rig.drainer.drain_once()
    rig.client.delete("celery")
    rig.client.set("celery", "somebody's")
    assert rig.look_twice() == 0
    rig.client.delete("celery")
    assert rig.look_twice() == 5
    rig.run_all()


def test_a_look_at_large_messages_reads_some_of_them(rig: Rig) -> None:
    rig.enqueue(10)
    rig.drainer.drain_once()
    rig.client.lpush("celery", *(b"x" * 2_000_000 for _ in range(50)))
    before = int(rig.client.info("stats")["total_net_output_bytes"])  # type: ignore[index]
    assert rig.look_twice() == 0
    read: Any = int(rig.client.info("stats")["total_net_output_bytes"]) - before  # type: ignore[index]
    assert read < 2 * 60_000_000
    assert rig.db.rows("select distinct missing_since is null from bridge.inflight") == [(True,)]


def test_a_rate_of_one_a_minute_lets_one_through_a_minute_whatever_is_behind_it(rig: Rig) -> None:
    rig.db.do("select bridge.set_limit('slow', queue => 'reports', rate => 1, per => '1 minute')")
    for queue in ("reports", "mail"):
        rig.enqueue(40, queue)
    rig.drainer.drain_once()
    assert rig.run(rig.take("mail")) == 40, "another queue is not slowed"
    for minute in range(1, 6):
        assert rig.drainer.drain_once() == 0, "no second one within the minute"
        assert rig.look_twice() == 0
        assert rig.client.llen("reports") == 1
        if minute == 3:
            rig.client.flushall()
            assert rig.look_twice() == 1, "what is lost goes out again"
            assert rig.drainer.drain_once() == 0, "and costs no second turn"
        assert rig.run(rig.take("reports")) == 1
        assert rig.db.one("select count(*) from bridge.jobs where queue = 'reports' and status = 'succeeded'") == minute
        rig.db.do("update bridge.bucket set refilled_at = refilled_at - interval '61 seconds', due_at = now()")
        assert rig.drainer.drain_once() == 1
    assert rig.db.rows("select distinct republished from bridge.inflight") == [(0,)]
    assert set(rig.started.values()) == {1}
    assert_sound(rig.db.dsn)


def test_a_redis_that_comes_back_elsewhere_with_nothing_in_it_runs_each_job_once(db: Session, redises: Redises) -> None:
    first, second = free_port(), free_port()
    for port in (first, second):
        redises.start({"port": str(port)})
    proxy = Proxy(first)
    with closing(proxy), closing(Rig(db, f"redis://127.0.0.1:{second}/0", f"redis://127.0.0.1:{proxy.port}/0")) as rig:
        rig.enqueue(40)
        rig.drainer.drain_once()
        with redis.Redis(port=first) as old:
            assert rig.run([old.rpop("celery") for _ in range(15)]) == 15  # type: ignore[misc]
            proxy.target = second
            proxy.cut()
            rig.enqueue(10)
            with suppress(PublishError):  # the connection that the drainer had
                rig.drainer.drain_once()
            assert rig.look_twice() == 25, "what the old one had"
            rig.run_all()
            assert old.llen("celery") == 25, "nobody asks it any more"
        assert len(rig.started) == 50


class Purger(threading.Thread):
    """Somebody who empties a queue again and again while a drainer fills it."""

    def __init__(self, purge: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._purge, self._enough, self.times = purge, threading.Event(), 0

    def run(self) -> None:
        while not self._enough.is_set():
            self._purge()
            self.times += 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._enough.set()
        self.join()


def drained(rig: Rig, purger: Purger, rounds: int = 20) -> None:
    """Shipments of 15, with a purge or more during each."""
    for _ in range(rounds):
        rig.enqueue(15)
        before = purger.times
        while purger.times < before + 2:
            rig.drainer.drain_once()


def test_jobs_whose_messages_are_deleted_while_they_are_published_run_once(rig: Rig) -> None:
    with Purger(lambda: rig.client.delete("celery")) as purger:
        drained(rig, purger)
    rig.run_all()
    assert len(rig.started) == 300


def test_a_purge_while_a_drainer_publishes_leaves_no_job_that_neither_ran_nor_was_cancelled(rig: Rig, other: Session) -> None:
    def purge() -> None:
        other.do("select bridge.purge('celery')")
        rig.client.delete("celery")

    with Purger(purge) as purger:
        drained(rig, purger)
    rig.enqueue(5)
    for _ in range(3):
        rig.drainer.drain_once()
        rig.run(rig.take())
        rig.look_twice()
    ends = dict(rig.db.rows("select status, count(*)::integer from bridge.finished group by status"))
    assert set(ends) == {"cancelled", "succeeded"}
    assert (sum(ends.values()), ends["succeeded"]) == (305, len(rig.started))
    assert rig.db.one("select count(*) from bridge.job") == 0
    assert set(rig.started.values()) == {1}
    assert rig.client.llen("celery") == 0


def test_a_drainer_of_some_queues_leaves_the_messages_of_others_to_theirs(db: Session, redis_server: RedisServer) -> None:
    one, two = (f"{redis_server.url.removesuffix('/0')}/{number}" for number in (0, 1))
    with closing(Rig(db, one, queues="mail")) as mail, closing(Rig(db, two, queues="reports")) as reports:
        for rig, queue in ((mail, "mail"), (reports, "reports")):
            rig.enqueue(5, queue)
            assert rig.drainer.drain_once() == 5
        assert (mail.look_twice(), reports.look_twice()) == (0, 0), "each broker has what it was sent"
        reports.client.flushdb()
        assert (mail.look_twice(), reports.look_twice()) == (0, 5)
        assert [rig.client.llen("reports") for rig in (mail, reports)] == [0, 5]
