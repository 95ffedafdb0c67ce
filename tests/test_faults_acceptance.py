"""The first acceptance: a plain job, a failing one, a delayed one and a thousand under faults, all against real servers."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis
from apps.ledger import TABLE
from fix_servers import wait_until
from invariants import assert_sound

if TYPE_CHECKING:
    from fix_servers import RedisServer, StartDrainer, StartWorker

JOBS = 1000
RUNNING_AGAIN = 90.0  # seconds from any single fault, as promised


@dataclass(frozen=True)
class Fault:
    """What was in flight when something was killed."""

    at: Any
    published: set[Any]
    running: set[Any]


class Watch:
    """Looks at the jobs from outside."""

    def __init__(self, dsn: str) -> None:
        self.sql = psycopg.connect(dsn, autocommit=True)

    def one(self, query: str, *params: Any) -> Any:
        row = self.sql.execute(query.encode(), params).fetchone()
        return row and row[0]

    def wait_for_finished(self, count: int, timeout: float = 180.0) -> None:
        wait_until(lambda: self.one("select count(*) from bridge.finished") >= count, timeout, f"{count} finished jobs")

    def wait_for_running(self) -> None:
        wait_until(lambda: self.one("select count(*) from bridge.inflight where state = 'running'"), 60, "a running job")

    def fault(self) -> Fault:
        rows = self.sql.execute("select status, id, clock_timestamp() from bridge.jobs where status in ('published', 'running')")
        found = rows.fetchall()
        assert found, "the fault would hit nothing"
        return Fault(found[0][2], {row[1] for row in found if row[0] == "published"}, {row[1] for row in found if row[0] == "running"})


@pytest.fixture
def watch(dsn: str) -> Watch:
    watch = Watch(dsn)
    watch.sql.execute(TABLE)
    # A window smaller than the backlog keeps the drainer at work all the time.
    watch.sql.execute("update bridge.setting set value = '200' where name = 'window'")
    return watch


@pytest.mark.timeout(400)
def test_a_thousand_jobs_come_out_right_when_drainer_and_worker_are_killed_and_redis_is_flushed(
    dsn: str, watch: Watch, drainer: StartDrainer, worker: StartWorker, redis_server: RedisServer
) -> None:
    first_drainer, first_worker = drainer(), worker("apps.ledger")
    plain = watch.one("select bridge.enqueue('ledger.work', '[21]')")
    failing = watch.one("""select bridge.enqueue('ledger.fail', '["broken on purpose"]', max_attempts => 2, backoff => '0')""")
    delayed = watch.one("select bridge.enqueue('ledger.work', '[4]', delay => '3 seconds')")
    watch.sql.execute("select bridge.enqueue('ledger.work', jsonb_build_array(n, 0.03)) from generate_series(1, %s) n", (JOBS,))

    faults = []
    watch.wait_for_finished(100)
    faults.append(watch.fault())
    first_drainer.kill(signal.SIGKILL)
    drainer()

    watch.wait_for_finished(300)
    watch.wait_for_running()
    faults.append(watch.fault())
    first_worker.kill(signal.SIGKILL)
    worker("apps.ledger")

    watch.wait_for_finished(600)
    faults.append(watch.fault())
    flush(redis_server.url)
    watch.wait_for_finished(JOBS + 3)

    assert_sound(dsn)
    check_the_three(watch, plain, failing, delayed)
    check_every_job_ended_right(watch)
    check_no_attempt_started_twice(watch, faults)
    check_recovery_was_quick(watch, faults)


def flush(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()


def check_the_three(watch: Watch, plain: Any, failing: Any, delayed: Any) -> None:
    seen = "select status, result, attempts, error->>'type', error->>'message', started_at >= run_at from bridge.jobs where id = %s"
    assert watch.sql.execute(seen, (plain,)).fetchone() == ("succeeded", 42, 1, None, None, True)
    assert watch.sql.execute(seen, (failing,)).fetchone() == ("failed", None, 2, "ValueError", "broken on purpose", True)
    assert watch.sql.execute(seen, (delayed,)).fetchone() == ("succeeded", 8, 1, None, None, True)
    assert watch.one("select run_at >= created_at + interval '3 seconds' from bridge.jobs where id = %s", delayed)


def check_every_job_ended_right(watch: Watch) -> None:
    assert watch.sql.execute("select status, count(*) from bridge.jobs group by status order by status").fetchall() == [
        ("failed", 1),
        ("succeeded", JOBS + 2),
    ]
    assert watch.one("select count(*) from bridge.jobs where status = 'succeeded' and result::text::int <> 2 * (args->>0)::int") == 0


def check_no_attempt_started_twice(watch: Watch, faults: list[Fault]) -> None:
    assert watch.one("select count(*) from (select from ledger where event = 'start' group by run having count(*) > 1) twice") == 0
    assert watch.one("select count(*) from ledger l where not exists (select from bridge.attempts a where a.run = l.run)") == 0
    hit = set().union(*(fault.running for fault in faults))
    again = watch.sql.execute(
        "select task_id::uuid from ledger where event = 'start' and task_id <> %s group by task_id having count(*) > 1",
        (watch.one("select id::text from bridge.failed_jobs"),),
    )
    assert {row[0] for row in again} <= hit, "only what ran in something killed may run again"
    # A run whose end nobody saw was lost with its worker, and the history says so.
    assert (
        watch.one(
            "select count(*) from ledger l join bridge.attempts a using (run) where l.event = 'start' and a.outcome = 'succeeded'"
            " and not exists (select from ledger e where e.run = l.run and e.event = 'end')"
        )
        == 0
    )


def check_recovery_was_quick(watch: Watch, faults: list[Fault]) -> None:
    for fault in faults:
        latest = watch.one(
            "select extract(epoch from max(started_at) - %s) from bridge.jobs where id = any(%s)",
            fault.at, list(fault.published | fault.running),
        )  # fmt: skip
        assert latest < RUNNING_AGAIN
