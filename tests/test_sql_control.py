"""What people do to jobs: cancel, retry, retry many."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session
from invariants import assert_sound

NOBODY = uuid.UUID("00000000-0000-4000-8000-000000000000")


def cancel(db: Session, identity: uuid.UUID) -> str:
    return str(db.one("select bridge.cancel(%s)", identity))


def put(db: Session, place: str) -> uuid.UUID:
    """A job in one of the places."""
    options = {"scheduled": {"delay": "1 day"}, "blocked": {"depends_on": [db.enqueue(delay="1 day")]}}.get(place, {})
    identity = db.enqueue(unique_key="the only one", **options)
    if place in {"claimed", "published", "running"}:
        claims = db.claim()
        if place != "claimed":
            db.mark(claims)
        if place == "running":
            db.start(claims[0])
    return identity


@pytest.mark.parametrize("place", ["scheduled", "blocked", "queued", "claimed", "published"])
def test_what_waits_is_cancelled_here_and_now(db: Session, place: str) -> None:
    identity = put(db, place)
    assert cancel(db, identity) == "cancelled"
    assert db.status(identity) == "cancelled"
    assert db.enqueue(unique_key="the only one") != identity


def test_the_copy_of_a_cancelled_job_that_is_with_the_broker_does_not_start(db: Session) -> None:
    identity = db.enqueue()
    claim = db.publish()
    cancel(db, identity)
    assert db.start(claim) is None


def test_what_runs_is_asked_to_stop_and_its_worker_hears_of_it(db: Session) -> None:
    identity = db.enqueue()
    claim, run = db.run()
    assert cancel(db, identity) == "running"
    assert db.report(claim.token) == {str(claim.token): "TERM"}
    assert db.fail(claim, run) == "cancelled"
    assert db.status(identity) == "cancelled"


def test_a_cancelled_run_that_ends_in_time_has_succeeded(db: Session) -> None:
    identity = db.enqueue()
    run = db.run()
    cancel(db, identity)
    db.finish(*run)
    assert db.status(identity) == "succeeded"


def test_a_cancelled_run_that_dies_with_its_worker_is_cancelled(db: Session) -> None:
    identity = db.enqueue()
    claim, _ = db.run()
    cancel(db, identity)
    assert db.one("select bridge.lose(%s, %s, 'killed')", claim.seq, claim.token) == "cancelled"
    assert db.status(identity) == "cancelled"


def test_cancelling_an_ended_job_changes_nothing_and_tells_how_it_ended(db: Session) -> None:
    identity = db.enqueue()
    db.finish(*db.run(), result=1)
    assert cancel(db, identity) == "succeeded"
    assert db.field(identity, "result") == 1


@pytest.mark.parametrize("function", ["cancel", "retry"])
def test_a_job_that_does_not_exist_is_refused_by_its_id(db: Session, function: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        db.one(f"select bridge.{function}(%s)", NOBODY)
    assert caught.value.diag.sqlstate == "JB002"
    assert caught.value.diag.message_primary == f"job {NOBODY} does not exist"
    assert caught.value.diag.message_hint


def test_a_cancel_that_meets_a_claim_still_cancels(db: Session, dsn: str) -> None:
    identity = db.enqueue()
    other = Session(dsn)
    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction():
            claim = db.claim()[0]
            waiting = pool.submit(cancel, other, identity)
            blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid = %s"
            wait_until(lambda: db.one(blocked, other.connection.info.backend_pid), 20, "the cancel to meet the claim")
        assert waiting.result(20) == "cancelled"
    assert db.start(claim) is None
    assert db.status(identity) == "cancelled"


def test_a_claim_passes_by_a_job_that_is_being_cancelled(db: Session, dsn: str) -> None:
    first, second = db.enqueue(), db.enqueue()
    other = Session(dsn)
    with other.connection.transaction():
        assert cancel(other, first) == "cancelled"
        assert [claim.id for claim in db.claim()] == [second]


def test_a_hundred_jobs_cancelled_and_run_at_once_each_end_one_way(db: Session, dsn: str) -> None:
    ids = [db.enqueue() for _ in range(100)]
    other = Session(dsn)

    def run_all() -> None:
        while claims := db.claim(limit=10):
            for claim in claims:
                if run := db.start(claim):
                    db.finish(claim, run)

    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(run_all)
        said = list(pool.submit(lambda: [cancel(other, identity) for identity in reversed(ids)]).result(60))
        running.result(60)
    for identity, word in zip(reversed(ids), said, strict=True):
        assert db.status(identity) == ("succeeded" if word in {"running", "succeeded"} else "cancelled")


def test_a_failed_job_is_retried_under_its_id_with_its_history(db: Session) -> None:
    identity = db.enqueue(max_attempts=1)
    db.fail(*db.run(), message="first")
    assert db.one("select bridge.retry(%s)", identity) == "queued"
    assert db.rows("select status, attempts, max_attempts, error->>'message' from bridge.jobs where id = %s", identity) == [
        ("queued", 1, 2, "first")
    ]
    db.finish(*db.run(), result="at last")
    assert db.rows("select status, attempts, result, error from bridge.jobs where id = %s", identity) == [("succeeded", 2, "at last", None)]
    assert db.attempts(identity) == [(1, "failed"), (2, "succeeded")]


@pytest.mark.parametrize("ending", ["succeeded", "cancelled"])
def test_any_ended_job_can_be_run_again(db: Session, ending: str) -> None:
    identity = db.enqueue(args=[7])
    if ending == "succeeded":
        db.finish(*db.run())
    else:
        cancel(db, identity)
    assert db.one("select bridge.retry(%s)", identity) == "queued"
    assert db.claim()[0].args == [7]


def test_an_expired_job_that_is_retried_does_not_expire_again(db: Session) -> None:
    identity = db.enqueue(expires_at="2100-01-01")
    db.tick(by="100 years")
    assert db.status(identity) == "expired"
    db.do("select bridge.retry(%s)", identity)
    db.tick(by="100 years")
    assert db.status(identity) == "queued"


def test_a_scheduled_job_can_be_made_due_at_once(db: Session) -> None:
    identity = db.enqueue(delay="1 day")
    assert db.one("select bridge.retry(%s)", identity) == "queued"
    assert len(db.claim()) == 1


@pytest.mark.parametrize("place", ["queued", "published", "running", "blocked"])
def test_a_job_that_is_on_its_way_is_not_retried(db: Session, place: str) -> None:
    identity = put(db, place)
    with pytest.raises(psycopg.Error) as caught:
        db.one("select bridge.retry(%s)", identity)
    assert caught.value.diag.sqlstate == "JB006"
    assert caught.value.diag.message_primary == f"job {identity} is {place}"


def test_two_who_retry_one_job_at_once_make_one_of_it(db: Session, dsn: str) -> None:
    identity = db.enqueue(max_attempts=1)
    db.fail(*db.run())
    sessions = [db, Session(dsn)]

    def retry(session: Session) -> str:
        try:
            return str(session.one("select bridge.retry(%s)", identity))
        except psycopg.Error as error:
            return str(error.diag.sqlstate)

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(retry, sessions)) == ["JB006", "queued"]
    assert db.one("select count(*) from bridge.jobs") == 1


def fail_some(db: Session) -> None:
    for task, queue in [("mail.send", "mail"), ("mail.send", "mail"), ("report", "reports")]:
        db.enqueue(task, queue=queue, max_attempts=1)
    for queue in ("mail", "reports"):
        for claim in db.claim(queue=queue):
            db.fail(claim, db.start(claim))


def test_retrying_what_failed_may_be_tried_dry_first(db: Session) -> None:
    fail_some(db)
    assert db.one("select bridge.retry_failed(dry_run => true)") == 3
    assert db.one("select count(*) from bridge.failed_jobs") == 3
    assert db.one("select bridge.retry_failed()") == 3
    assert db.one("select count(*) from bridge.jobs where status = 'queued'") == 3


@pytest.mark.parametrize(
    ("options", "count"),
    [("task => 'mail.send'", 2), ("queue => 'reports'", 1), ("since => '1 hour'", 3), ("since => '0'", 0), ("max_jobs => 1", 1)],
)
def test_retrying_what_failed_may_be_narrowed(db: Session, options: str, count: int) -> None:
    fail_some(db)
    assert db.one(f"select bridge.retry_failed({options})") == count
    assert db.one("select count(*) from bridge.failed_jobs") == 3 - count


NEVER_RAN = """select bridge.never_ran(%s, 'step-2', 'a.step', 'q', '[1]', '{"k": 2}', '{"type": "ParentFailed", "message": "m"}')"""


def test_a_task_that_will_never_run_has_a_row_that_retrying_all_failed_ones_leaves_alone(db: Session) -> None:
    identity = uuid.uuid4()
    assert db.one(NEVER_RAN, identity) is True
    row = db.rows("select task_id, task, queue, args, kwargs, status, attempts, error ->> 'type' from bridge.jobs where id = %s", identity)
    assert row == [("step-2", "a.step", "q", [1], {"k": 2}, "cancelled", 0, "ParentFailed")]
    assert db.one("select bridge.retry_failed()") == 0
    assert_sound(db.dsn)


@pytest.mark.parametrize("place", ["scheduled", "queued", "running", "finished"])
def test_a_job_that_exists_is_not_said_to_have_never_run(db: Session, place: str) -> None:
    if place == "finished":
        identity = db.enqueue()
        db.finish(*db.run())
    else:
        identity = put(db, place)
    status = db.status(identity)
    assert db.one(NEVER_RAN, identity) is False
    assert db.status(identity) == status
