"""The tick waits for nobody: what a transaction that is left open has in hand comes with a later tick, all else with this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    import uuid

    from fix_sql import Session

PATIENCE = "15s"  # a tick that waits fails by then


@pytest.fixture(autouse=True)
def impatient(db: Session) -> None:
    db.do(f"set lock_timeout = '{PATIENCE}'")


def tick_meanwhile(db: Session) -> None:
    """Tick, and see that it does what is not in other hands."""
    aside = db.enqueue("aside", queue="aside", delay="1 hour")
    db.do("update bridge.scheduled s set run_at = now() from bridge.job j where j.seq = s.seq and j.id = %s", aside)
    assert db.tick()["due"] == 1
    assert db.status(aside) == "queued"
    db.do("select bridge.cancel(%s)", aside)


def hourly(db: Session, name: str) -> None:
    db.do("select bridge.schedule(%s, '@hourly', %s, overlap => 'cancel_old')", name, name)
    fire(db, name)


def fire(db: Session, name: str) -> None:
    """Have a slot of this schedule come now; the one before was a moment ago."""
    db.do("update bridge.schedule set next_at = clock_timestamp() - interval '1 millisecond' where name = %s", name)


def states(db: Session, schedule: str) -> list[str]:
    return [row[0] for row in db.rows("select status from bridge.schedule_runs where schedule = %s order by id", schedule)]


@pytest.mark.parametrize("holds", ["select bridge.set_priority(%s, 9)", "select bridge.cancel(%s)", "select bridge.complete(id => %s)"])
def test_a_slot_that_is_to_cancel_a_job_in_other_hands_comes_with_the_next_tick(db: Session, other: Session, holds: str) -> None:
    for name in ("held", "free"):
        hourly(db, name)
    db.tick()
    with other.connection.transaction():
        other.do(holds, db.one("select id from bridge.jobs where task = 'held'"))
        for name in ("held", "free"):
            fire(db, name)
        tick_meanwhile(db)
        assert (len(states(db, "held")), states(db, "free")) == (1, ["cancelled", "queued"])
    db.tick()
    assert states(db, "held") == ["succeeded" if "complete" in holds else "cancelled", "queued"]


def test_a_slot_that_is_to_stop_a_run_that_its_task_completes_comes_with_the_next_tick(db: Session, other: Session) -> None:
    hourly(db, "held")
    db.tick()
    claim, run = db.run()
    db.report(claim.token)
    with other.connection.transaction():
        other.do("select bridge.complete_run(%s, %s, '1')", claim.seq, run)
        fire(db, "held")
        tick_meanwhile(db)
        assert states(db, "held") == ["running"]
    db.tick()
    assert states(db, "held") == ["succeeded", "queued"]


def complete_chord(db: Session) -> None:
    """Have a chord whose last part has ended looked at by the next tick."""
    db.do("update bridge.chord set looked_at = '-infinity'")


def test_a_chord_whose_join_somebody_runs_again_is_joined_by_that(db: Session, other: Session) -> None:
    db.do("select bridge.begin_chord('c', '{}', '[]', 'celery', null), bridge.size_chord('c', 1)")
    part: uuid.UUID = db.one("select gen_random_uuid()")
    db.do("select bridge.end_part('c', %s, 0)", part)
    db.tick()
    complete_chord(db)
    db.tick()
    db.fail(*db.run(), final=True)
    with other.connection.transaction():
        other.do("select bridge.retry((select id from bridge.jobs where task = 'bridge.join_chord'))")
        complete_chord(db)
        tick_meanwhile(db)
    complete_chord(db)
    db.tick()
    assert db.rows("select status from bridge.jobs where task = 'bridge.join_chord'") == [("queued",)]


@pytest.mark.parametrize("commits", [True, False])
def test_a_child_whose_parent_somebody_runs_again_is_settled_after_that(db: Session, other: Session, *, commits: bool) -> None:
    parent = db.enqueue(max_attempts=1)
    child = db.enqueue(depends_on=[parent], delay="1 hour")
    run = db.run()
    with other.connection.transaction():
        other.do("select bridge.reschedule(%s, delay => '2 hours')", child)
        db.fail(*run)  # leaves the child to the sweep
    with other.connection.transaction(force_rollback=not commits):
        other.do("select bridge.retry(%s)", parent)
        tick_meanwhile(db)
        assert db.status(child) == "blocked"
    db.tick()
    assert db.status(child) == ("blocked" if commits else "cancelled")
    if commits:
        db.finish(*db.run())
        db.tick()
        assert db.status(child) == "scheduled"
    assert db.one("select count(*) from bridge.dependency") == 0


def test_jobs_that_were_in_hand_when_a_limit_came_are_counted_when_nobody_changes_it_any_more(db: Session, other: Session) -> None:
    db.do("select bridge.set_limit('one', queue => 'celery', concurrency => 5)")
    db.enqueue()
    db.publish()
    db.do("delete from bridge.permit")  # as of a job that a claim had in hand
    db.do("update bridge.inflight set permits = null")
    db.do("update bridge.bucket set used = null")
    with other.connection.transaction(force_rollback=True):
        other.do("select bridge.remove_limit('one')")
        tick_meanwhile(db)
    assert db.tick()["counted"] == 1


def test_a_cleanup_leaves_to_the_next_what_somebody_has_in_hand(db: Session, other: Session) -> None:
    parent = db.enqueue(max_attempts=1)
    child = db.enqueue(depends_on=[parent], delay="1 hour")
    db.do("update bridge.blocked set on_failure = 'wait'")
    db.fail(*db.run())
    db.do("delete from bridge.finished where id = %s", parent)
    with other.connection.transaction():
        other.do("select bridge.reschedule(%s, delay => '2 hours')", child)
        db.do("select bridge.begin_cleanup('test')")
        while db.one("select bridge.cleanup_step()"):
            tick_meanwhile(db)
    assert db.rows("select status from bridge.cleanup_log where table_name = 'dependency'") == [("left",)]
    db.do("select bridge.cleanup()")
    assert db.status(child) == "cancelled"


def test_the_patience_of_these_tests_ends(db: Session, other: Session) -> None:
    db.do("set lock_timeout = '10ms'")
    job = db.enqueue()
    with other.connection.transaction():
        other.do("select bridge.cancel(%s)", job)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            db.do("select bridge.cancel(%s)", job)
