"""What schedules do about slots that were missed and runs that overlap; days with outages pass by the time that is passed in."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from fix_schedules import DAY, HOUR, due_at, runs, schedule, tick

if TYPE_CHECKING:
    from fix_sql import Session


def simulate(db: Session, days: int, outages: list[tuple[datetime, datetime]]) -> None:
    """Tick every ten minutes but during the outages."""
    due_at(db, DAY)
    for step in range(days * 24 * 6 + 1):
        now = DAY + step * timedelta(minutes=10)
        if not any(start <= now < end for start, end in outages):
            tick(db, now)


OUTAGES = [
    (DAY + 3.5 * HOUR, DAY + 9.4 * HOUR),  # ends between two slots: 4 to 9 are missed
    (DAY + 11.5 * HOUR, DAY + 12.2 * HOUR),  # 12 is missed
    (DAY + 14.5 * HOUR, DAY + 17 * HOUR),  # ends with a slot that is in time: 15 and 16 are missed
    (DAY + 20.5 * HOUR, DAY + 20.9 * HOUR),  # nothing is missed
]


def hours_of(db: Session, trigger: str) -> list[float]:
    return [(run[0] - DAY) / HOUR for run in runs(db) if run[1] == trigger and run[2] != "skipped"]


@pytest.mark.parametrize(("missed", "made_up"), [("skip", []), ("once", [9, 12]), ("all", [4, 5, 6, 7, 8, 9, 12, 15, 16])])
def test_missed_slots_are_made_up_for_as_the_policy_says(db: Session, missed: str, made_up: list[float]) -> None:
    schedule(db, missed=missed)
    simulate(db, 1, OUTAGES)
    assert hours_of(db, "catch_up") == made_up
    assert hours_of(db, "scheduled") == [hour for hour in range(25) if hour not in {4, 5, 6, 7, 8, 9, 12, 15, 16}]
    assert db.one("select count(*) from bridge.job") == 16 + len(made_up)


@pytest.mark.parametrize("seed", range(3))
def test_days_with_random_outages_and_a_change_of_the_clock_lose_and_double_nothing(db: Session, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - it is to be repeatable
    start, zone = datetime(2031, 3, 29, tzinfo=UTC), "Europe/Berlin"  # the clock is set in the second night
    crons = {"minutes": f"*/{chance.choice([7, 20, 25])} * * * *", "daily": f"{chance.randrange(60)} 2 * * *", "every": "every 17 minutes"}
    for name, cron in crons.items():
        schedule(db, name, cron=cron, timezone=zone, missed="all")
        due_at(db, db.one("select bridge.next_runs(%s, %s, 1, %s)", cron, zone, start), name)
    now = start
    while now < start + timedelta(days=3):
        db.do("select bridge.run_schedules(2000, %s)", now)
        now += timedelta(hours=chance.uniform(2, 9)) if chance.random() < 0.05 else timedelta(minutes=chance.uniform(0.2, 9))
    while db.one("select bridge.run_schedules(2000, %s)", now):
        pass
    for name, cron in crons.items():
        due = [row[0] for row in db.rows("select bridge.next_runs(%s, %s, 1000, %s)", cron, zone, start)]
        assert [run[0] for run in runs(db, name)] == [slot for slot in due if slot <= now]
    assert db.one("select count(*) from bridge.schedule_run") == db.one("select count(*) from bridge.job")


def test_every_missed_slot_of_a_long_outage_runs_once_within_its_bound_a_page_a_tick(db: Session) -> None:
    schedule(db, cron="*/10 * * * *", missed="all", missed_within="2 days")
    due_at(db, DAY)
    now = DAY + timedelta(days=5, minutes=5)
    counts = []
    while not counts or counts[-1]:
        counts.append(tick(db, now))
    made_up = [run[0] for run in runs(db) if run[2] != "skipped"]
    assert made_up == [now - timedelta(minutes=5) - number * timedelta(minutes=10) for number in reversed(range(288))]
    assert max(counts) <= 100
    (skipped,) = db.rows("select slot, reason from bridge.schedule_runs where status = 'skipped'")
    assert skipped[0] == DAY
    assert skipped[1].startswith("missed, and too long ago: the slots up to 2031-05-08")


def test_a_single_missed_run_that_is_too_long_ago_is_left(db: Session) -> None:
    schedule(db, cron="0 0 * * mon", missed_within="1 day")
    due_at(db, DAY)
    tick(db, DAY + timedelta(days=2))
    assert runs(db) == [(DAY, "catch_up", "skipped")]


def test_a_schedule_of_seconds_keeps_up_with_ticks_that_are_rarer(db: Session) -> None:
    schedule(db, cron="1 second")
    due_at(db, DAY)
    for second in (0, 2, 4, 30):
        tick(db, DAY + timedelta(seconds=second))
    assert [run[0] for run in runs(db)] == [DAY + timedelta(seconds=second) for second in range(31)]


def test_slots_that_fall_into_a_pause_do_not_run(db: Session) -> None:
    schedule(db, cron="every 1 second", missed="all")
    db.do("select bridge.pause_schedule('nightly')")
    tick(db, DAY)
    db.do("select bridge.resume_schedule('nightly')")
    assert (runs(db), db.one("select next_at > now() from bridge.schedule")) == ([], True)


def run_and_hold(db: Session, overlap: str) -> tuple[Any, Any]:
    """A schedule whose slot at midnight is running, and the claim and run of it."""
    schedule(db, overlap=overlap)
    due_at(db, DAY)
    tick(db, DAY)
    return db.run()


def report_and_tick(db: Session, claim: Any, now: datetime) -> None:
    db.report(claim.token)
    # Only the step: a tick at that time would take the worker for dead.
    db.do("select bridge.run_schedules(100, %s)", now)


def test_overlap_allow_runs_beside_the_one_before(db: Session) -> None:
    claim, _ = run_and_hold(db, "allow")
    report_and_tick(db, claim, DAY + HOUR)
    assert [run[2] for run in runs(db)] == ["running", "queued"]


def test_overlap_skip_leaves_a_slot_out_while_the_one_before_runs(db: Session) -> None:
    claim, run = run_and_hold(db, "skip")
    report_and_tick(db, claim, DAY + HOUR)
    assert [run[2] for run in runs(db)] == ["running", "skipped"]
    db.finish(claim, run)
    report_and_tick(db, claim, DAY + 2 * HOUR)
    assert [run[2] for run in runs(db)] == ["succeeded", "skipped", "queued"]
    assert db.one("select reason from bridge.schedule_runs where status = 'skipped'").endswith("of a run before has not ended")


def test_overlap_queue_one_lets_one_slot_wait(db: Session) -> None:
    claim, run = run_and_hold(db, "queue_one")
    for hour in (1, 2):
        report_and_tick(db, claim, DAY + hour * HOUR)
    assert [run[2] for run in runs(db)] == ["running", "waiting", "skipped"]
    db.finish(claim, run)
    report_and_tick(db, claim, DAY + 2.5 * HOUR)
    assert [run[2] for run in runs(db)] == ["succeeded", "queued", "skipped"]


def test_overlap_cancel_old_stops_the_one_before_and_waits_for_its_end(db: Session) -> None:
    claim, run = run_and_hold(db, "cancel_old")
    for hour in (1, 2):
        report_and_tick(db, claim, DAY + hour * HOUR)
    assert db.report(claim.token) == {str(claim.token): "TERM"}, "the worker is told to stop it"
    assert [run[2] for run in runs(db)] == ["running", "skipped", "waiting"]
    db.fail(claim, run)
    report_and_tick(db, claim, DAY + 2.5 * HOUR)
    assert [run[2] for run in runs(db)] == ["cancelled", "skipped", "queued"]
    report_and_tick(db, claim, DAY + 3 * HOUR)
    assert [run[2] for run in runs(db)] == ["cancelled", "skipped", "cancelled", "queued"]


def test_a_waiting_run_goes_with_its_schedule_and_stays_through_a_pause(db: Session) -> None:
    claim, run = run_and_hold(db, "queue_one")
    report_and_tick(db, claim, DAY + HOUR)
    db.do("select bridge.pause_schedule('nightly')")
    db.finish(claim, run)
    report_and_tick(db, claim, DAY + 2 * HOUR)
    assert [run[2] for run in runs(db)] == ["succeeded", "waiting"]
    assert db.one("select bridge.unschedule('nightly')") is True
    assert db.one("select bridge.unschedule('nightly')") is False
    assert db.rows("select status, reason from bridge.schedule_runs order by id desc limit 1") == [("skipped", "the schedule was removed")]


def test_a_tick_looks_at_few_of_very_many_open_runs_and_at_each_in_time(db: Session) -> None:
    claim, run = run_and_hold(db, "queue_one")
    schedule(db, "busy", enabled=False)
    job = db.enqueue(delay="1 hour")
    db.do(
        "insert into bridge.schedule_run (schedule, slot, trigger_type, status, created_at, job)"
        " select 'busy', now() + n * interval '1 s', 'scheduled', 'open', now(), case when n <> 4000 then %s::uuid end"
        " from generate_series(1, 6000) n",
        job,
    )
    report_and_tick(db, claim, DAY + HOUR)
    db.finish(claim, run)
    touched = "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relid = 'bridge.schedule_run'::regclass"
    with db.connection.transaction():
        before = db.one(touched)
        report_and_tick(db, claim, DAY + 1.5 * HOUR)
        assert db.one(touched) - before < 3000
    assert [run[2] for run in runs(db)] == ["succeeded", "queued"], "what waited is not held up"
    left = "select count(*) from bridge.schedule_run where status = 'open' and job is null"
    for _ in range(500):
        if db.one(left) == 0:
            break
        report_and_tick(db, claim, DAY + 1.5 * HOUR)
    assert db.one(left) == 0
