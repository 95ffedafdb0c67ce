"""The doctor on schedules: late, failed, or two that do the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fix_doctor import Doctor
from fix_schedules import schedule

from bridge.doctor import Grade

if TYPE_CHECKING:
    from fix_sql import Session


def test_a_late_schedule_is_red_until_somebody_ticks(db: Session) -> None:
    doctor = Doctor(db.dsn)
    assert doctor.look("schedules").found == "there are none"
    schedule(db)
    db.do("update bridge.schedule set next_at = clock_timestamp() - interval '2 minutes'")
    late = doctor.look("schedules")
    assert (late.status, late.found, late.value) == (Grade.ERROR, "due and not run: nightly", 1)
    assert "tick" in late.remedy
    db.tick()
    assert doctor.look("schedules").status is Grade.OK


def test_a_failed_run_is_yellow_until_the_next_succeeds(db: Session) -> None:
    schedule(db, max_attempts=1)
    for end in (db.fail, db.finish):
        db.do("select bridge.run_schedule('nightly')")
        end(*db.run())
        finding = Doctor(db.dsn).look("schedules")
        if end == db.fail:
            assert (finding.status, finding.found) == (Grade.WARNING, "the last run failed of nightly (broken)")
    assert finding.status is Grade.OK


def test_two_schedules_that_do_the_same_are_named_until_one_is_paused(db: Session) -> None:
    for name in ("nightly", "night", "other"):
        schedule(db, name, args='["other"]' if name == "other" else "[1]")
    finding = Doctor(db.dsn).look("schedules")
    assert (finding.status, finding.found) == (Grade.WARNING, "run too often: night = nightly (the same task, arguments and queue)")
    db.do("select bridge.pause_schedule('night')")
    assert Doctor(db.dsn).look("schedules").found == "3 in time, 1 of them paused"


def test_a_slow_run_is_yellow_until_the_next_is_in_time(db: Session) -> None:
    schedule(db, expected_duration="1 minute")
    for seconds in (90, 30):
        db.do("select bridge.run_schedule('nightly')")
        db.finish(*db.run())
        db.tick()
        db.do("update bridge.schedule_run set finished_at = started_at + %s * interval '1 second' where job is not null", seconds)
        finding = Doctor(db.dsn).look("schedules")
        if seconds > 60:
            assert (finding.status, finding.found) == (Grade.WARNING, "slow: nightly (00:01:30, no more than 00:01:00 expected)")
    assert finding.status is Grade.OK
