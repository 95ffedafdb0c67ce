"""Schedules in SQL: making and changing them, one job a slot, and the log of runs; the time is passed in."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fix_schedules import DAY, HOUR, due_at, error_of, runs, schedule, tick
from fix_sql import Session


def test_saying_the_same_again_changes_nothing_and_a_pause_stays(db: Session) -> None:
    assert schedule(db, args="[1]") == "created"
    assert schedule(db, args="[1]") == "unchanged"
    db.do("select bridge.pause_schedule('nightly')")
    assert schedule(db, args="[1]") == "unchanged"
    assert schedule(db, args="[2]") == "changed"
    assert db.rows("select status, next_run, args from bridge.schedules") == [("paused", None, [2])]
    assert db.one("select bridge.resume_schedule('nightly')") > datetime.now(UTC)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cron": "0 25 * * *"}, "cron '0 25 * * *', character 3: hour 25 does not exist"),
        ({"timezone": "Europe/Berlni"}, "did you mean Europe/Berlin?"),
        ({"name": " x"}, "schedule name is ' x'"),
        ({"name": "NIGHTLY"}, "schedule 'nightly' exists, and 'NIGHTLY' differs from it in case or blanks alone"),
        ({"task": "two words"}, "task is 'two words'"),
        ({"queue": ""}, "queue is ''"),
        ({"args": "{}"}, "args of task a.task is a JSON object"),
        ({"priority": 10}, "priority is 10"),
        ({"max_attempts": 0}, "max_attempts is 0"),
        ({"headers": '{"id": 1}'}, "headers sets id"),
        ({"overlap": "never"}, "overlap is 'never': give allow, skip, queue_one or cancel_old"),
        ({"overlap": None}, "overlap is NULL"),
        ({"missed": "twice"}, "missed is 'twice': give skip, once or all"),
        ({"missed_within": None}, "missed_within is null"),
        ({"jitter": "25 hours"}, "jitter is 25:00:00: give an interval of at most 1 day"),
        ({"expires": "0"}, "expires is 00:00:00"),
        ({"expires": "101 years"}, "expires is 101 years"),
        ({"ends_at": "infinity"}, "ends_at is infinity"),
        ({"starts_at": "2031-01-02", "ends_at": "2031-01-01"}, "ends_at is"),
        ({"cron": "0 0 29 2 *", "ends_at": "2031-01-01", "starts_at": "2031-02-01"}, "ends_at is"),
    ],
)
def test_what_cannot_work_is_refused_when_the_schedule_is_made(db: Session, options: dict[str, Any], said: str) -> None:
    schedule(db)
    before = db.rows("select * from bridge.schedule")
    assert said in error_of(lambda: schedule(db, **{"name": "other", **options}))
    assert db.rows("select * from bridge.schedule") == before


def test_a_plain_update_is_checked_and_takes_effect_by_the_next_tick(db: Session) -> None:
    schedule(db)
    with db.connection.transaction():
        db.do("set local role bridge_operator")
        db.do("update bridge.schedule set cron = '30 4 * * *', timezone = 'Asia/Kolkata' where name = 'nightly'")
    assert db.one("select next_at at time zone 'Asia/Kolkata' from bridge.schedule").strftime("%H:%M") == "04:30"
    said = error_of(lambda: db.do("update bridge.schedule set cron = '30 4 * *' where name = 'nightly'"))
    assert "there are 4 fields" in said
    assert not db.one("select has_column_privilege('bridge_operator', 'bridge.schedule', 'next_at', 'update')")


def test_a_slot_that_was_due_before_the_change_still_runs(db: Session) -> None:
    schedule(db, cron="every 1 second")
    slot = db.one("select clock_timestamp()") - timedelta(seconds=1)
    due_at(db, slot)
    db.do("update bridge.schedule set cron = '0 0 1 1 *'")
    assert db.one("select (bridge.tick('test')->>'slots')::integer") == 1
    assert [run[0] for run in runs(db)] == [slot.astimezone(UTC)]
    assert db.one("select extract(day from next_at at time zone 'UTC') from bridge.schedule") == 1


def test_a_slot_becomes_one_job_with_all_that_the_schedule_says(db: Session) -> None:
    schedule(
        db, args="[1]", kwargs='{"a": 2}', queue="reports", priority=7, max_attempts=5, timeout="30 s", expires="1 hour",
        headers='{"tenant": "x"}',
    )  # fmt: skip
    due_at(db, DAY)
    assert tick(db, DAY - timedelta(seconds=1)) == 0
    assert tick(db, DAY + timedelta(seconds=1)) == 1
    assert tick(db, DAY + timedelta(seconds=2)) == 0
    (job,) = db.rows("select task, args, kwargs, queue, priority, max_attempts, headers, expires_at from bridge.jobs")
    assert job[:6] == ("a.task", [1], {"a": 2}, "reports", 7, 5)
    assert job[6] == {
        "tenant": "x", "timelimit": [30, None], "bridge_schedule": "nightly", "bridge_slot": "2031-05-05T00:00:00.000000+00:00",
    }  # fmt: skip
    assert job[7] == DAY + timedelta(hours=1, seconds=1)
    assert db.one("select next_run from bridge.schedules") == DAY + HOUR


def test_jitter_makes_the_job_later_and_leaves_the_slot(db: Session) -> None:
    schedule(db, jitter="10 minutes")
    due_at(db, DAY)
    tick(db, DAY)
    assert runs(db) == [(DAY, "scheduled", "scheduled")]
    assert DAY <= db.one("select run_at from bridge.jobs") <= DAY + timedelta(minutes=10)


def test_start_and_end_bound_the_slots_and_count_the_intervals(db: Session) -> None:
    start = DAY + timedelta(minutes=7)
    schedule(db, cron="every 20 minutes", starts_at=start.isoformat(), ends_at=(start + timedelta(minutes=45)).isoformat())
    for minute in range(0, 90, 5):
        tick(db, DAY + timedelta(minutes=minute))
    assert [(run[0] - start) / timedelta(minutes=1) for run in runs(db)] == [0, 20, 40]
    assert db.one("select status from bridge.schedules") == "ended"


@pytest.mark.parametrize("ends", ["null", "now() + interval '2 hours'"])
def test_a_schedule_that_has_ended_goes_on_when_its_end_is_moved(db: Session, ends: str) -> None:
    schedule(db, cron="every 1 second")
    db.do("update bridge.schedule set ends_at = now()")
    assert db.rows("select status, next_run from bridge.schedules") == [("ended", None)]
    db.do(f"update bridge.schedule set ends_at = {ends}")
    assert db.rows("select status, next_run > now() from bridge.schedules") == [("active", True)]


def test_a_slot_that_was_due_does_not_run_outside_of_a_new_start_and_end(db: Session) -> None:
    for change in ("ends_at = now() - interval '1 day'", "starts_at = now() + interval '1 day'"):
        schedule(db, "outside")
        due_at(db, db.one("select clock_timestamp() - interval '5 minutes'"), "outside")
        db.do(f"update bridge.schedule set {change}")
        db.tick()
        assert runs(db, "outside") == []
        db.do("select bridge.unschedule('outside')")


def test_a_slot_runs_once_however_many_race_for_it(db: Session) -> None:
    for number in range(20):
        schedule(db, f"s{number}", cron="every 10 seconds")
    db.do("update bridge.schedule set next_at = %s", DAY)
    sessions = [Session(db.dsn) for _ in range(4)]
    begin = threading.Barrier(len(sessions))

    def race(session: Session) -> None:
        begin.wait()
        for second in range(0, 60, 5):
            # Past the tick's own lock: what holds then is the lock on the row and the key of the slot.
            session.do("select bridge.run_schedules(2000, %s)", DAY + timedelta(seconds=second))

    threads = [threading.Thread(target=race, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    db.do("select bridge.run_schedules(2000, %s)", DAY + timedelta(seconds=55))
    assert db.rows("select schedule, slot from bridge.schedule_run group by 1, 2 having count(*) > 1") == []
    assert (db.one("select count(*) from bridge.schedule_run"), db.one("select count(*) from bridge.job")) == (120, 120)


def test_a_tick_takes_a_page_of_slots_the_longest_due_first(db: Session) -> None:
    for number in range(5):
        schedule(db, f"s{number}", cron="@yearly")
        due_at(db, DAY - number * timedelta(seconds=1), f"s{number}")
    counts = [db.one("select bridge.run_schedules(2, %s)", DAY) for _ in range(4)]
    assert counts == [2, 2, 1, 0]
    assert [row[0] for row in db.rows("select schedule from bridge.schedule_run order by id")] == ["s4", "s3", "s2", "s1", "s0"]


def test_a_slot_that_has_run_does_not_run_again_when_the_clock_goes_back(db: Session) -> None:
    schedule(db)
    for _ in range(2):
        due_at(db, DAY)
        tick(db, DAY)
    assert runs(db) == [(DAY, "scheduled", "queued")]
    assert db.one("select count(*) from bridge.job") == 1
    db.do("select bridge.unschedule('nightly')")
    schedule(db)
    due_at(db, DAY)
    tick(db, DAY)
    assert db.one("select count(*) from bridge.job") == 1


def test_a_manual_run_is_at_once_and_leaves_the_slots(db: Session) -> None:
    schedule(db, overlap="skip")
    db.do("select bridge.pause_schedule('nightly')")
    job = db.one("select bridge.run_schedule('nightly')")
    assert db.status(job) == "queued"
    assert [run[1:] for run in runs(db)] == [("manual", "queued")]
    said = error_of(lambda: db.do("select bridge.run_schedule('nightly')"))
    assert said == f"schedule 'nightly' runs already: job {job} has not ended: wait for it or cancel it, then run again"
    db.finish(*db.run())
    assert db.one("select bridge.run_schedule('nightly')") != job


@pytest.mark.parametrize("call", ["pause_schedule", "resume_schedule", "run_schedule"])
def test_a_name_that_does_not_exist_is_refused_with_one_that_does(db: Session, call: str) -> None:
    schedule(db, "nightly report")
    said = error_of(lambda: db.do(f"select bridge.{call}('nightly')"))
    assert said == "schedule 'nightly' does not exist: did you mean 'nightly report'?"


def test_the_log_tells_how_each_run_ended(db: Session) -> None:
    schedule(db, max_attempts=1)
    due_at(db, DAY)
    for hour in range(3):
        tick(db, DAY + hour * HOUR)
        claim, run = db.run()
        if hour == 1:
            db.fail(claim, run, "no paper")
        else:
            db.finish(claim, run)
        # Before the tick has noted it, the log asks the job.
        assert runs(db)[-1][2] == ("failed" if hour == 1 else "succeeded")
    tick(db, DAY + 2.5 * HOUR)
    assert db.one("select count(*) from bridge.schedule_run where status = 'open'") == 0
    rows = db.rows(
        "select status, error, duration >= '0', finished_at >= started_at, job_id is not null from bridge.schedule_runs order by id"
    )
    assert rows == [
        ("succeeded", None, True, True, True),
        ("failed", "ValueError: no paper", True, True, True),
        ("succeeded", None, True, True, True),
    ]
    assert db.rows("select last_status, last_error, last_run = %s from bridge.schedules", DAY + 2 * HOUR) == [("succeeded", None, True)]
    stats = db.rows(
        "select runs, succeeded, failed, skipped, average_duration >= '0', p95_duration <= longest_duration from bridge.schedule_stats"
    )
    assert stats == [(3, 2, 1, 0, True, True)]


def test_a_redriven_job_opens_its_run_again(db: Session) -> None:
    schedule(db, max_attempts=1)
    due_at(db, DAY)
    tick(db, DAY)
    claim, run = db.run()
    db.fail(claim, run)
    tick(db, DAY + timedelta(seconds=1))
    assert runs(db)[0][2] == "failed"
    db.do("select bridge.retry(%s)", claim.id)
    assert runs(db)[0][2] == "queued"
    db.finish(*db.run())
    tick(db, DAY + timedelta(seconds=2))
    assert db.rows("select status, error from bridge.schedule_run") == [("succeeded", None)]


def test_a_job_that_cannot_be_made_is_noted_and_keeps_nobody_from_his_turn(db: Session) -> None:
    schedule(db, args=json.dumps(["x" * 70_000]))
    schedule(db, "other")
    db.do("update bridge.schedule set next_at = %s", DAY)
    db.do("update bridge.setting set value = '1000' where name = 'max_payload'")
    tick(db, DAY)
    assert [run[2] for run in runs(db, "other")] == ["queued"]
    ((status, error),) = db.rows("select status, error from bridge.schedule_runs where schedule = 'nightly'")
    assert (status, error.partition(",")[0]) == ("failed", "payload of task a.task is 70006 bytes")
    assert db.one("select next_at from bridge.schedule where name = 'nightly'") == DAY + HOUR


def test_a_schedule_that_cannot_be_counted_is_tried_again_every_minute(db: Session) -> None:
    schedule(db)
    schedule(db, "other")
    with db.connection.transaction():
        # As after an update of the zones that took one away.
        db.do("set local session_replication_role = replica")
        db.do("update bridge.schedule set timezone = 'Europe/Atlantis', next_at = %s where name = 'nightly'", DAY)
    due_at(db, DAY, "other")
    tick(db, DAY)
    assert [run[2] for run in runs(db, "other")] == ["queued"]
    assert "Atlantis" in db.one("select error from bridge.schedule_runs where schedule = 'nightly'")
    assert db.one("select next_at from bridge.schedule where name = 'nightly'") == DAY + timedelta(minutes=1)
