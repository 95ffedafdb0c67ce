"""Jobs that wait for others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session

if TYPE_CHECKING:
    from uuid import UUID


def test_a_child_waits_for_all_of_its_parents(db: Session) -> None:
    first, second = db.enqueue(), db.enqueue()
    child = db.enqueue(depends_on=[first, second])
    db.finish(*db.run(limit=1))
    assert db.status(child) == "blocked"
    db.finish(*db.run(limit=1))
    assert db.status(child) == "queued"


def test_a_parent_named_twice_is_waited_for_once(db: Session) -> None:
    parent = db.enqueue()
    child = db.enqueue(depends_on=[parent, parent])
    db.finish(*db.run())
    assert db.status(child) == "queued"


def test_a_child_of_a_parent_that_succeeded_already_is_due_at_once(db: Session) -> None:
    parent = db.enqueue()
    db.finish(*db.run())
    assert db.status(db.enqueue(depends_on=[parent])) == "queued"


def test_a_child_with_a_later_moment_of_its_own_is_scheduled_when_released(db: Session) -> None:
    parent = db.enqueue()
    child = db.enqueue(depends_on=[parent], delay="1 hour")
    db.finish(*db.run())
    assert db.status(child) == "scheduled"


def test_children_of_a_failed_parent_are_cancelled_down_to_the_last(db: Session) -> None:
    parent = db.enqueue(max_attempts=1)
    child = db.enqueue(depends_on=[parent])
    grandchild = db.enqueue(depends_on=[child])
    db.fail(*db.run())
    assert [db.status(identity) for identity in (child, grandchild)] == ["cancelled", "cancelled"]
    assert db.field(child, "error->>'message'") == "a job that it depends on ended as failed"


@pytest.mark.parametrize("backoff", [0, 60])
def test_a_parent_that_will_be_tried_again_keeps_its_children_waiting(db: Session, backoff: int) -> None:
    parent = db.enqueue(max_attempts=2, backoff=backoff)
    child = db.enqueue(depends_on=[parent])
    db.fail(*db.run())
    assert db.status(child) == "blocked"


def test_children_of_a_cancelled_parent_are_cancelled(db: Session) -> None:
    parent = db.enqueue(delay="1 day")
    child = db.enqueue(depends_on=[parent])
    db.do("select bridge.cancel(%s)", parent)
    assert db.status(child) == "cancelled"


def test_a_cancelled_child_leaves_its_parent_alone(db: Session) -> None:
    parent = db.enqueue()
    child = db.enqueue(depends_on=[parent])
    assert db.one("select bridge.cancel(%s)", child) == "cancelled"
    db.finish(*db.run())
    assert [db.status(identity) for identity in (parent, child)] == ["succeeded", "cancelled"]


def two_started(db: Session, **options: Any) -> tuple[Any, Any, UUID]:
    """Two running parents of one child."""
    parents = [db.enqueue(**options), db.enqueue(**options)]
    child = db.enqueue(depends_on=parents)
    claims = db.claim()
    return (claims[0], db.start(claims[0])), (claims[1], db.start(claims[1])), child


def test_two_parents_that_end_at_the_same_moment_release_their_child(db: Session, dsn: str) -> None:
    one, two, child = two_started(db)
    other = Session(dsn)
    with db.connection.transaction(), other.connection.transaction():
        assert db.finish(*one)
        assert other.finish(*two)
    if db.status(child) == "blocked":
        assert db.tick()["unblocked"] == 1
    assert db.status(child) == "queued"


def test_two_parents_that_fail_at_the_same_moment_cancel_their_child_once(db: Session, dsn: str) -> None:
    one, two, child = two_started(db, max_attempts=1)
    other = Session(dsn)

    def fail_again(session: Session, run: Any) -> str | None:
        """A worker repeats what a deadlock has undone."""
        try:
            return session.fail(*run)
        except psycopg.errors.DeadlockDetected:
            return session.fail(*run)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fail_again, [db, other], [one, two])) == ["failed", "failed"]
    assert db.status(child) == "cancelled"


def test_a_failing_parent_does_not_wait_for_another_that_is_ending(db: Session, dsn: str) -> None:
    one, two, child = two_started(db, max_attempts=1)
    other = Session(dsn)
    other.do("set lock_timeout = '2s'")
    with db.connection.transaction():
        assert db.fail(*one) == "failed"
        assert other.fail(*two) == "failed"
    db.tick()
    assert db.status(child) == "cancelled"


def test_a_child_enqueued_while_its_parent_ends_is_released_all_the_same(db: Session, dsn: str) -> None:
    parent = db.enqueue()
    run = db.run()
    other = Session(dsn)
    with other.connection.transaction():
        child = other.enqueue(depends_on=[parent])
        db.finish(*run)
    assert other.status(child) == "blocked"
    db.tick()
    assert db.status(child) == "queued"


def test_a_child_enqueued_while_its_parent_fails_is_cancelled(db: Session, dsn: str) -> None:
    parent = db.enqueue(max_attempts=1)
    run = db.run()
    other = Session(dsn)
    with other.connection.transaction():
        child = other.enqueue(depends_on=[parent])
        db.fail(*run)
    db.tick()
    assert db.status(child) == "cancelled"


def test_a_child_enqueued_while_its_parent_ends_and_is_retried_waits_for_the_retry(db: Session, dsn: str) -> None:
    parent = db.enqueue()
    run = db.run()
    other = Session(dsn)
    with other.connection.transaction():
        child = other.enqueue(depends_on=[parent])
        db.finish(*run)
        db.do("select bridge.retry(%s)", parent)
    db.tick()
    assert db.status(child) == "blocked"
    db.finish(*db.run())
    assert db.status(child) == "queued"


def test_many_children_of_one_parent_are_all_released(db: Session) -> None:
    parent = db.enqueue()
    children = [db.enqueue(depends_on=[parent]) for _ in range(50)]
    db.finish(*db.run())
    assert {db.status(child) for child in children} == {"queued"}


def test_many_parents_ending_in_several_sessions_release_the_child_once(db: Session, dsn: str) -> None:
    parents = [db.enqueue() for _ in range(20)]
    child = db.enqueue(depends_on=parents)
    claims = db.claim()
    sessions = [Session(dsn) for _ in range(4)]

    def end(number: int) -> None:
        for claim in claims[number::4]:
            sessions[number].finish(claim, sessions[number].start(claim))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(end, range(4)))
    wait_until(lambda: db.tick() and db.status(child) == "queued", 20)
    assert len(db.claim()) == 1
