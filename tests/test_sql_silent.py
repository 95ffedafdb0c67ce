"""What becomes of jobs that a worker took which reports nothing, as the tables tell it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fix_sql import Claim, Session


def see(db: Session, queue: str = "celery") -> None:
    """A look finds a worker without the plugin on this queue."""
    db.do("select bridge.note_silent('{old@host}', %s)", [queue])


def look(db: Session) -> None:
    """A look finds nobody."""
    db.do("select bridge.note_silent('{}', '{}')")


def missing(db: Session, *claims: Claim) -> list[uuid.UUID]:
    """Two looks into the broker do not find the messages, the first of them a minute ago."""
    tokens = [claim.token for claim in claims]
    db.do("select bridge.mark_missing(%s)", tokens)
    db.do("update bridge.inflight set missing_since = missing_since - interval '1 minute' where token = any(%s)", tokens)
    return tokens


def set_aside(db: Session, tokens: list[uuid.UUID]) -> list[tuple[Any, ...]]:
    return db.rows("select queue, jobs from bridge.set_aside(%s)", tokens)


def republish(db: Session, tokens: list[uuid.UUID]) -> int:
    return len(db.rows("select seq from bridge.republish(%s, %s, %s)", db.drainer, uuid.uuid4(), tokens))


def taken(db: Session, **options: Any) -> Claim:
    """A job that a silent worker took."""
    db.enqueue(**options)
    claim = db.publish()
    see(db)
    assert set_aside(db, missing(db, claim)) == [("celery", 1)]
    return claim


def test_a_job_is_set_aside_and_not_published_again_where_a_silent_worker_was_seen(db: Session) -> None:
    claim = taken(db)
    assert republish(db, [claim.token]) == 0
    assert db.rows("select id, taken_by from bridge.unreported_jobs") == [(claim.id, ["old@host"])]
    assert db.status(claim.id) == "published"
    assert db.rows("select seq from bridge.suspects()") == []


def test_a_worker_that_ended_just_before_may_have_taken_it(db: Session) -> None:
    see(db)
    db.do("update bridge.silent_worker set seen_at = seen_at - interval '10 seconds'")
    db.enqueue()
    assert set_aside(db, missing(db, db.publish())) == [("celery", 1)]


def test_a_worker_that_was_gone_before_has_not_taken_it(db: Session) -> None:
    see(db)
    db.do("update bridge.silent_worker set seen_at = seen_at - interval '16 seconds'")
    db.enqueue()
    tokens = missing(db, db.publish())
    assert set_aside(db, tokens) == []
    assert republish(db, tokens) == 1


def test_a_silent_worker_of_another_queue_has_not_taken_it(db: Session) -> None:
    see(db, queue="reports")
    db.enqueue()
    tokens = missing(db, db.publish())
    assert set_aside(db, tokens) == []
    assert republish(db, tokens) == 1


def test_nothing_is_published_again_before_a_look_has_been_answered(db: Session) -> None:
    db.enqueue()
    tokens = missing(db, db.publish())
    assert republish(db, tokens) == 0
    look(db)
    assert republish(db, tokens) == 1


def test_a_new_worker_of_the_same_name_does_not_hide_the_old_one(db: Session) -> None:
    see(db)
    db.do("select bridge.report_worker(%s, 'old@host', 1, 'prefork', 2, '{celery}', 'test', '{}', clock_timestamp())", db.worker)
    assert db.one("select bridge.silent_workers('celery', clock_timestamp())") == ["old@host"]


def test_a_window_is_not_filled_by_what_a_silent_worker_takes(db: Session) -> None:
    db.do("update bridge.setting set value = '2' where name = 'window'")
    for _ in range(6):
        db.enqueue()
    first = db.claim()
    db.mark(first)
    assert (len(first), db.claim()) == (2, [])
    see(db)
    assert len(db.claim(limit=2)) == 2, "while it is there, there is no window"
    db.do("update bridge.silent_worker set seen_at = seen_at - interval '1 minute'")
    assert db.claim() == []
    db.do("update bridge.inflight set taken_by = '{old@host}' where seq = any(%s)", [claim.seq for claim in first])
    assert db.one("select bridge.room('celery')") == 0
    db.do("update bridge.inflight set taken_by = '{old@host}'")
    assert len(db.claim()) == 2, "what was set aside is not counted"
    db.do("update bridge.inflight set taken_by = null")


def test_a_queue_that_nobody_consumes_keeps_no_other_from_its_turn(db: Session) -> None:
    for queue in ("idle", "idle", "idle", "celery"):
        db.enqueue(queue=queue)
        db.publish(queue=queue)
    db.do("update bridge.inflight set published_at = published_at - interval '1 minute'")
    assert db.rows("select queue from bridge.suspects(2)") == [("idle",), ("celery",)]


def test_a_job_that_was_set_aside_starts_when_its_message_comes_back(db: Session) -> None:
    claim = taken(db)
    run = db.start(claim)
    assert db.one("select count(*) from bridge.unreported_jobs") == 0
    assert db.one("select taken_by from bridge.inflight") is None, "who runs it is known now"
    assert db.finish(claim, run)


def test_a_job_that_ran_is_settled_as_succeeded_and_lets_its_children_go(db: Session) -> None:
    parent = db.enqueue()
    child = db.enqueue(depends_on=[parent])
    claim = db.publish()
    see(db)
    set_aside(db, missing(db, claim))
    assert db.one("select bridge.settle_unreported(ran => true)") == 1
    assert (db.status(parent), db.field(parent, "attempts"), db.field(parent, "result")) == ("succeeded", 1, None)
    assert db.field(parent, "outcome") == {"taken_by": ["old@host"]}
    assert db.status(child) == "queued"
    assert db.start(claim) is None, "its message is refused"


def test_a_job_that_is_to_run_again_is_due_at_once_and_its_old_message_is_refused(db: Session) -> None:
    claim = taken(db)
    assert db.one("select bridge.settle_unreported(ran => false)") == 1
    assert (db.status(claim.id), db.field(claim.id, "attempts"), db.field(claim.id, "losses")) == ("queued", 0, 0)
    again = db.publish()
    assert db.start(claim) is None
    assert db.start(again) is not None


def test_only_jobs_of_the_named_task_and_queue_are_settled(db: Session) -> None:
    claim = taken(db)
    assert db.one("select bridge.settle_unreported(ran => true, task => 'another.task')") == 0
    assert db.one("select bridge.settle_unreported(ran => true, queue => 'another')") == 0
    assert db.one("select bridge.settle_unreported(ran => true, task => 'a.task', queue => 'celery')") == 1
    assert db.status(claim.id) == "succeeded"


def test_a_job_that_may_have_run_does_not_expire(db: Session) -> None:
    claim = taken(db, expires_at="2100-01-01")
    assert db.tick(by="2000 years")["expired"] == 0
    assert db.status(claim.id) == "published"


def test_one_of_several_drainers_looks_and_only_while_something_is_in_flight(db: Session) -> None:
    assert db.one("select bridge.may_look()") is False
    db.enqueue()
    db.publish()
    assert [db.one("select bridge.may_look()") for _ in range(2)] == [True, False]
    db.do("update bridge.look set asked_at = asked_at - interval '4 seconds'")
    assert db.one("select bridge.may_look()") is True
