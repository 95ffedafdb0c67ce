"""How long dead letters are kept: longer than the day in which they failed, with what they were made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uuid

    from fix_sql import Session

KEPT = "select count(*) from pg_class where relnamespace = 'bridge'::regnamespace and relkind = 'r' and relname ~ '_kept'"


def fail_long_ago(db: Session, age: str, *, status: str = "failed") -> uuid.UUID:
    """A job that failed twice and ended, all of it so long ago."""
    db.do("select bridge.make_days(((now() at time zone 'utc') - %s::interval)::date, 1)", age)
    identity = db.enqueue(args=["the arguments"], max_attempts=2, backoff="0")
    db.fail(*db.run(), message="first")
    if status == "failed":
        db.fail(*db.run(), message="second")
    else:
        db.finish(*db.run(), status)
    db.do("update bridge.attempt set ended_at = now() - %s::interval where id = %s", age, identity)
    db.do("update bridge.finished set finished_at = now() - %s::interval where id = %s", age, identity)
    return identity


def cleanup(db: Session, later: str = "0", *, dry_run: bool = False) -> dict[str, int]:
    """Clean up at a later moment; how many rows of ended jobs were put aside, and how many notes went."""
    rows = db.rows("select table_name, status, deleted, kept from bridge.cleanup(%s, clock_timestamp() + %s::interval)", dry_run, later)
    assert not [row for row in rows if row[1] == "failed"]
    kept = sum(row[3] for row in rows if row[0].startswith("finished_"))
    return {"kept": kept, "notes": sum(row[2] for row in rows if row[0] == "job_note")}


def ids(db: Session, relation: str) -> set[Any]:
    return {row[0] for row in db.rows(f"select id from bridge.{relation}")}


def test_dead_letters_outlive_their_day_with_their_attempts_and_can_be_redriven(db: Session) -> None:
    dead, discarded = fail_long_ago(db, "40 days"), fail_long_ago(db, "40 days")
    succeeded, recent = fail_long_ago(db, "40 days", status="succeeded"), fail_long_ago(db, "3 days")
    db.do("select bridge.discard(%s)", discarded)

    assert cleanup(db, dry_run=True)["kept"] == 1
    assert ids(db, "finished") == {dead, discarded, succeeded, recent}
    assert cleanup(db)["kept"] == 1
    assert ids(db, "finished") == {dead, recent}
    assert ids(db, "dead_jobs") == {dead, recent}
    assert db.attempts(dead) == [(1, "failed"), (2, "failed")]
    assert ids(db, "attempt") == {dead, recent}

    assert cleanup(db)["kept"] == 0, "a second time there is nothing to do"
    assert ids(db, "dead_jobs") == {dead, recent}
    assert db.one("select bridge.redrive(%s)", dead) == "queued"
    db.finish(*db.run(), result="at last")
    assert db.attempts(dead) == [(1, "failed"), (2, "failed"), (3, "succeeded")]


def test_what_is_kept_goes_when_its_time_is_over_or_it_was_discarded(db: Session) -> None:
    old, older, put_away = fail_long_ago(db, "40 days"), fail_long_ago(db, "80 days"), fail_long_ago(db, "45 days")
    cleanup(db)
    assert ids(db, "dead_jobs") == {old, older, put_away}
    db.do("select bridge.discard(%s)", put_away)
    fail_long_ago(db, "15 days")
    assert cleanup(db, "20 days", dry_run=True)["kept"] == 1, "those that are kept already are not counted"
    cleanup(db, "20 days")  # a day must be old enough to be dropped
    assert old in ids(db, "dead_jobs")
    assert {older, put_away} & ids(db, "finished") == set()
    assert {older, put_away} & ids(db, "attempt") == set()


def test_dead_letters_that_stay_no_longer_than_the_others_leave_nothing_behind(db: Session) -> None:
    db.do("update bridge.setting set value = '60' where name = 'dead_retention'")
    fail_long_ago(db, "40 days")
    assert cleanup(db)["kept"] == 0
    assert ids(db, "finished") == set()
    assert db.one(KEPT) == 0


def test_days_are_kept_in_one_partition_however_many_they_were(db: Session) -> None:
    dead = {fail_long_ago(db, age) for age in ("40 days", "50 days", "60 days")}
    assert cleanup(db)["kept"] == 3
    assert ids(db, "dead_jobs") == dead
    assert db.one(KEPT) == 2
    db.do("select bridge.make_days()")
    db.enqueue()
    assert db.finish(*db.run()) is True


def test_notes_are_kept_as_long_as_the_job_that_they_are_about(db: Session) -> None:
    dead, gone = fail_long_ago(db, "40 days"), fail_long_ago(db, "40 days")
    for identity in (dead, gone):
        db.do("select bridge.retry(%s)", identity)
    for claim in db.claim():
        db.fail(claim, db.start(claim), final=True)
    db.do("select bridge.discard(%s)", gone)
    db.do("update bridge.finished set finished_at = now() - interval '40 days'")
    db.do("update bridge.job_note set at = now() - interval '40 days'")
    cleanup(db)
    assert cleanup(db)["notes"] == 2
    assert ids(db, "job_note") == {dead}
