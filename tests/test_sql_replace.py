"""A run that replaces itself by several tasks: whenever the last of them comes, the job becomes it, once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import uuid

    from fix_sql import Claim, Session

COMES = """
  select bridge.enqueue_message(%s, null, 'the.last', 'celery', 9::smallint, '[7]', '{}', null, null, null, null,
    '{"task": "the.last"}', '{}', null, null)
"""


@pytest.fixture
def replaced(db: Session) -> tuple[uuid.UUID, Claim, Any]:
    """A job whose run has enqueued the first of the tasks that replace it, and runs still."""
    identity = db.enqueue("the.first")
    claim, run = db.run()
    db.do("select bridge.mark_replaced(%s, %s, %s)", claim.seq, run, claim.token)
    return identity, claim, run


def step_aside(db: Session, claim: Claim, run: Any) -> bool:
    return bool(db.one("select bridge.step_aside(%s, %s, %s)", claim.seq, run, claim.token))


def shown(db: Session, identity: Any) -> tuple[str, str, Any]:
    return db.field(identity, "task"), db.status(identity), db.attempts(identity)


def test_the_job_is_blocked_until_the_last_task_comes(db: Session, replaced: Any) -> None:
    identity, claim, run = replaced
    assert step_aside(db, claim, run)
    assert db.tick(by="1 hour")["unblocked"] == 0
    assert shown(db, identity) == ("the.first", "blocked", [(1, "retried")])
    assert db.one(COMES, identity)
    assert shown(db, identity) == ("the.last", "queued", [(1, "retried")])
    claim, run = db.run()
    assert db.finish(claim, run, result=42)
    assert db.attempts(identity) == [(1, "retried"), (2, "succeeded")]


def test_the_last_task_may_come_while_the_run_still_ends(db: Session, replaced: Any) -> None:
    identity, claim, run = replaced
    assert db.one(COMES, identity)
    assert not step_aside(db, claim, run)
    assert shown(db, identity) == ("the.last", "queued", [(1, "retried")])


def test_the_last_task_comes_once(db: Session, replaced: Any) -> None:
    identity, claim, run = replaced
    step_aside(db, claim, run)
    assert db.one(COMES, identity)
    assert not db.one(COMES, identity)


def test_a_run_that_is_repeated_after_a_loss_replaces_itself_anew(db: Session, replaced: Any) -> None:
    identity, claim, _ = replaced
    assert db.one("select bridge.lose(%s, %s, 'killed')", claim.seq, claim.token) == "queued"
    assert not db.one(COMES, identity)
    claim, run = db.run()
    db.do("select bridge.mark_replaced(%s, %s, %s)", claim.seq, run, claim.token)
    assert step_aside(db, claim, run)
    assert db.one(COMES, identity)


def test_what_waits_for_its_replacement_can_be_cancelled(db: Session, replaced: Any) -> None:
    identity, claim, run = replaced
    step_aside(db, claim, run)
    assert db.one("select bridge.cancel(%s)", identity) == "cancelled"
    assert db.one(COMES, identity)
    assert db.status(identity) == "cancelled", "the last task came too late"


def test_a_job_that_was_cancelled_while_it_replaced_itself_is_not_revived_by_the_last_task(db: Session, replaced: Any) -> None:
    identity, claim, run = replaced
    assert db.one("select bridge.cancel(%s, terminate => false)", identity) == "running"
    assert step_aside(db, claim, run)
    assert db.status(identity) == "cancelled"
    assert db.one(COMES, identity)
    assert db.status(identity) == "cancelled"


def test_the_last_task_does_not_take_the_place_of_a_run_that_was_cancelled(db: Session, replaced: Any) -> None:
    identity, claim, run = replaced
    db.do("select bridge.cancel(%s, terminate => false)", identity)
    assert not db.one(COMES, identity)
    assert (db.status(identity), db.field(identity, "attempts")) == ("cancelled", 1)
    assert not step_aside(db, claim, run)


def test_a_job_that_began_in_time_does_not_expire_while_its_replacement_is_on_its_way(db: Session) -> None:
    identity = db.enqueue("the.first", expires_at=datetime.now(UTC) + timedelta(hours=1))
    claim, run = db.run()
    db.do("select bridge.mark_replaced(%s, %s, %s)", claim.seq, run, claim.token)
    assert step_aside(db, claim, run)
    assert db.tick(by="2 hours")["expired"] == 0
    assert db.status(identity) == "blocked"


def test_a_replacement_that_fails_ends_the_job_as_failed(db: Session, replaced: Any) -> None:
    identity, claim, run = replaced
    step_aside(db, claim, run)
    assert db.one("select bridge.never_ran(%s, null, 'the.last', 'celery', '[]', '{}', '{\"type\": \"ParentFailed\"}')", identity)
    assert shown(db, identity)[1] == "failed"


def test_the_mark_of_a_job_that_ended_all_the_same_is_forgotten(db: Session, replaced: Any) -> None:
    _, claim, run = replaced
    assert db.finish(claim, run)
    db.tick()
    assert db.one("select count(*) from bridge.replaced") == 0


def test_a_job_whose_mark_a_failover_has_forgotten_still_waits_for_the_last_task(db: Session, replaced: Any) -> None:
    identity, claim, run = replaced
    db.do("delete from bridge.replaced")
    assert step_aside(db, claim, run)
    assert db.one(COMES, identity)
    assert shown(db, identity) == ("the.last", "queued", [(1, "retried")])


def test_a_job_whose_replacement_does_not_come_is_stuck(db: Session, replaced: Any) -> None:
    identity, claim, run = replaced
    step_aside(db, claim, run)
    db.do("update bridge.replaced set since = since - interval '2 hours'")
    assert db.rows("select id, status from bridge.stuck_jobs") == [(identity, "blocked")]
