"""Retries, histories, time limits and deadlines under two drainers and two workers, one drainer killed while they are in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from apps.retried import asked_for, asks, broken, flaky
from fix_servers import wait_for_value

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_pairs import Pairs, StartPairs
    from fix_sql import Session


@pytest.fixture
def running(pairs: StartPairs, ours: None) -> Iterator[Pairs]:  # noqa: ARG001
    """Two drainers and two workers; this process calls tasks of the same application."""
    flaky.app.bridge.renew()
    running = pairs("apps.retried")
    running.db.do("update bridge.setting set value = '2' where name = 'publish_lease'")
    yield running
    flaky.app.bridge.renew()


def starts(db: Session, task: str) -> list[tuple[int, str, int]]:
    """How many jobs of a task ran how often and ended how."""
    return db.rows(
        """select s.starts::integer, s.status, count(*)::integer from (
          select j.status, (select count(*) from ledger l where l.task_id = j.task_id and l.event = 'start') as starts
          from bridge.jobs j where j.task = %s) s group by 1, 2 order by 1, 2""",
        task,
    )


def assert_whole(events: list[bridge.Event]) -> None:
    """A history begins with the call and ends with the end; no attempt comes again once a later one has begun, and no run twice."""
    assert [event.at for event in events] == sorted(event.at for event in events)
    events = [event for event in events if event.event != "superseded"]
    assert events[0].event == "enqueued"
    assert bridge.Status(events[-1].event).final
    numbers = [event.attempt for event in events if event.attempt is not None]
    assert numbers == sorted(numbers)
    runs = [event.run for event in events if event.run is not None]
    assert len(runs) == len(set(runs))
    assert all(event.started_at <= event.ended_at for event in events if event.started_at and event.ended_at)
    assert all(event.reason for event in events if event.event != "succeeded")


def test_rules_hold_and_every_history_is_whole_while_a_drainer_dies(running: Pairs) -> None:
    db = running.db
    bridge.set_retry("retried.flaky", max_attempts=3, backoff=0, retry_on=[OSError])
    bridge.set_retry(queue="celery", max_attempts=5, backoff=0.05, never_on=["ValueError"])
    for task, jobs in {"retried.flaky": 40, "retried.broken": 20, "retried.leaves": 3}.items():
        db.do("select count(bridge.enqueue(%s)) from generate_series(1, %s)", task, jobs)
    for _ in range(10):
        flaky.delay()
        broken.delay()
    own = bridge.enqueue("retried.flaky", [9], max_attempts=2)
    asked = [asks.apply_async(bridge={"deadline": 3600}), asked_for.delay("value"), asked_for.delay("other")]
    wait_for_value(db.dsn, "select count(*) > 20 from ledger where event = 'start'")
    running.kill_a_drainer()
    running.wait_for_all()
    assert starts(db, "retried.flaky") == [(2, "failed", 1), (3, "succeeded", 50)]
    assert bridge.get(own).attempts == 2
    assert starts(db, "retried.broken") == [(1, "failed", 30)]
    assert starts(db, "retried.leaves") == [(2, "succeeded", 3)]
    # self.retry asks twice; the error that it raises then is one more for the queue's policy: attempts 3 to 5 fail.
    assert [bridge.get(result.id).attempts for result in asked] == [5, 1, 2]
    # The deadline went out as the message's expiry, with which self.retry comes back: it is no expiry of the job.
    assert db.rows("select expires_at, deadline is null from bridge.finished where task = 'retried.asks'") == [(None, False)]
    for (identity,) in db.rows("select id from bridge.jobs"):
        assert_whole(bridge.history(identity))


def error_of(identity: Any) -> tuple[str, str]:
    job = bridge.get(identity)
    return str(job.status), (job.error or {}).get("type", "")


def test_time_limits_and_deadlines_hold_while_a_drainer_dies(running: Pairs) -> None:
    db = running.db
    bridge.set_retry(queue="celery", timeout=1.0, max_attempts=2, backoff=0)
    hard = bridge.enqueue("retried.sleeps")
    once = bridge.enqueue("retried.sleeps", never_on=["TimeLimitExceeded"])
    soft = bridge.enqueue("retried.sleeps", soft_timeout=0.5, timeout=30, max_attempts=1)
    for identity in (hard, once, soft):
        bridge.wait(identity, timeout=60)
    assert [error_of(identity) for identity in (hard, once, soft)] == [
        ("failed", "TimeLimitExceeded"), ("failed", "TimeLimitExceeded"), ("failed", "SoftTimeLimitExceeded"),
    ]  # fmt: skip
    assert [bridge.get(identity).attempts for identity in (hard, once, soft)] == [2, 1, 1]
    bridge.remove_retry(queue="celery")
    late = [flaky.app.tasks["retried.sleeps"].apply_async(bridge={"deadline": 3600, "max_attempts": 3}) for _ in range(2)]
    wait_for_value(db.dsn, "select count(*) from bridge.inflight where state = 'running'", value=2)
    db.do("update bridge.job set deadline = clock_timestamp() + interval '2 s'")  # only now: however long their start took
    waits = bridge.enqueue("retried.sleeps", [0], deadline=1, queue="nobody")
    in_time = bridge.enqueue("retried.sleeps", [0], deadline=60)
    running.kill_a_drainer()
    for result in late:
        with pytest.raises(bridge.DeadlineExceeded, match="its deadline"):
            result.get(timeout=60)
    bridge.wait(waits, in_time, timeout=60)
    assert [error_of(result.id) for result in late] == [("failed", "DeadlineExceeded")] * 2
    assert (error_of(waits), error_of(in_time)) == (("expired", "DeadlineExceeded"), ("succeeded", ""))
    running.wait_for_all()
    assert db.rows("select count(*) from ledger where event = 'start' and task_id = %s", str(waits)) == [(0,)]
    for (identity,) in db.rows("select id from bridge.jobs"):
        assert_whole(bridge.history(identity))
