"""The log of runs: what it tells, its pages and statistics, what cleanup keeps of it, slow schedules and those that run too often."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_schedules import DAY, HOUR, due_at, error_of, runs, schedule, tick
from fix_sql import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

SECOND = timedelta(seconds=1)
MONTH = timedelta(days=30)


def log(db: Session, name: str, begins: Sequence[datetime], durations: Sequence[float], **options: Any) -> None:
    """Write runs into the log as if they had been: one a moment, with its duration in seconds."""
    columns = {"status": "succeeded", "trigger_type": "scheduled", "job": None, **options}
    with db.connection.cursor() as cursor:
        cursor.executemany(
            "insert into bridge.schedule_run"
            " (schedule, slot, created_at, started_at, first_started_at, finished_at, status, trigger_type, job)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (name, at, at, at, at, at + taken * SECOND, columns["status"], columns["trigger_type"], columns["job"])
                for at, taken in zip(begins, durations, strict=True)
            ],
        )


def hourly(count: int, end: datetime | None = None) -> list[datetime]:
    """So many full hours, the last of them `end`."""
    return [(end or now()) - number * HOUR for number in reversed(range(count))]


def now() -> datetime:
    return datetime.now(UTC)


def test_a_run_tells_when_it_was_due_how_late_it_began_its_attempts_and_its_result(db: Session) -> None:
    # Its next slot is half a year away, whatever the clock says now.
    schedule(db, cron=f"0 0 1 {(now() + 6 * MONTH).month} *", max_attempts=3, backoff="[0]")
    slot = db.one("select clock_timestamp() - interval '40 seconds'")
    due_at(db, slot)
    db.tick()
    first, run = db.run()
    asked = "select due_at, late_by, attempts, result, status, started_at from bridge.schedule_runs"
    (running,) = db.rows(asked)
    assert (running[0], running[2:5]) == (slot, (1, None, "running"))
    late = running[1]
    assert late >= timedelta(seconds=40)
    db.fail(first, run)
    db.tick(by="1 second")
    second, run = db.run()
    # The second attempt has begun later; the run has not.
    assert [(row[1], row[2]) for row in db.rows(asked)] == [(late, 2)]
    db.finish(second, run, result={"rows": "x" * 600})
    for _ in ("as the job says", "as the tick has noted it"):
        (ended,) = db.rows(asked)
        assert (ended[0], ended[1], ended[2], ended[4]) == (slot, late, 2, "succeeded")
        assert ended[3] == '{"rows": "' + 490 * "x"
        assert ended[5] > slot + late
        db.tick()


def test_a_call_of_a_function_tells_how_many_rows_it_gave(db: Session) -> None:
    schedule(db)
    for result, options, rows in ((7, '{"call": {}}', 7), ([7], '{"call": {}}', None), (7, "{}", None)):
        job = db.one("select bridge.run_schedule('nightly')")
        db.finish(*db.run(), result=result)
        db.do("update bridge.finished set options = %s where id = %s", options, job)
        db.tick()
        assert db.one("select rows from bridge.schedule_history('nightly', n => 1)") == rows


def test_jitter_moves_the_moment_at_which_a_run_is_due(db: Session) -> None:
    schedule(db, jitter="10 minutes")
    due_at(db, DAY)
    tick(db, DAY)
    due, run_at = db.rows("select r.due_at, j.run_at from bridge.schedule_runs r join bridge.jobs j on j.id = r.job_id")[0]
    assert DAY <= due == run_at <= DAY + timedelta(minutes=10)


def test_history_gives_pages_and_chooses_by_status_and_trigger(db: Session) -> None:
    schedule(db)
    log(db, "nightly", hourly(30, DAY), [60] * 30)
    log(db, "nightly", hourly(3, DAY + 5 * HOUR), [60] * 3, status="failed")
    log(db, "nightly", [DAY + 6 * HOUR], [1], trigger_type="manual")
    log(db, "other", hourly(5, DAY), [60] * 5)
    due_at(db, DAY + 7 * HOUR)
    tick(db, DAY + 7 * HOUR)

    def history(*, select: str = "slot", **options: Any) -> list[Any]:
        call = "".join(f", {name} => '{value}'" for name, value in options.items())
        return [row[0] for row in db.rows(f"select {select} from bridge.schedule_history('nightly'{call})")]

    page = history(n=20)
    assert page == sorted(page, reverse=True)
    rest = history(n=20, before=history(n=20, select="id")[-1])
    assert [slot.astimezone(UTC) for slot in (*page, *rest)] == [
        DAY + 7 * HOUR, DAY + 6 * HOUR, *(DAY + hour * HOUR for hour in (5, 4, 3)), *reversed(hourly(30, DAY)),
    ]  # fmt: skip
    assert history(status="failed") == history(status="failed", trigger_type="scheduled") == page[2:5]
    assert history(trigger_type="manual") == history(trigger_type="manual", status="succeeded") == page[1:2]
    assert history(status="queued") == page[:1]
    assert history(status="running") == history(trigger_type="catch_up") == []


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("'weekly'", "schedule 'weekly' does not exist: see: select name from bridge.schedules"),
        ("'nightly', status => 'broken'", "status is 'broken': give blocked, scheduled, queued, published, running, succeeded"),
        ("'nightly', trigger_type => 'beat'", "trigger_type is 'beat': give scheduled, manual or catch_up"),
        ("'nightly', n => 0", "n is 0: give 1 to 10000"),
    ],
)
def test_a_question_that_has_no_answer_is_refused(db: Session, call: str, said: str) -> None:
    schedule(db)
    assert error_of(lambda: db.rows(f"select bridge.schedule_history({call})")).startswith(said)


def test_the_history_of_a_schedule_that_was_removed_is_still_there(db: Session) -> None:
    schedule(db)
    log(db, "nightly", [DAY], [1])
    db.do("select bridge.unschedule('nightly')")
    assert db.one("select count(*) from bridge.schedule_history('nightly')") == 1


STATS = (
    "select runs, succeeded, failed, skipped, live, average_duration, longest_duration, last_run, since from bridge.schedule_stats"
    " where schedule = 'nightly'"
)


def test_statistics_stay_what_they_are_when_cleanup_forgets_runs(db: Session) -> None:
    schedule(db)
    log(db, "nightly", hourly(100, DAY), [float(number) for number in range(100)])
    log(db, "nightly", hourly(30, DAY + 30 * HOUR), [500] * 30, status="failed")
    log(db, "nightly", hourly(5, DAY + 40 * HOUR), [0] * 5, status="skipped")
    before = db.rows(STATS)
    assert before[0][:5] == (130, 100, 30, 5, 0)
    later = DAY + 40 * HOUR + MONTH + timedelta(days=1)
    cleaned = "select coalesce(sum(found), 0) from bridge.cleanup(dry_run => %s::boolean, p_now => %s) where table_name = 'schedule_run'"
    assert db.one(cleaned, "true", later) == 115
    assert db.one("select bridge.forget_runs(%s, false, 40)", later) == 40
    assert db.rows(STATS) == before
    assert db.one(cleaned, "false", later) == 75
    assert (db.rows(STATS), db.one("select count(*) from bridge.schedule_run")) == (before, 20)
    assert db.one(cleaned, "false", later) == 0


def test_a_schedule_that_is_rarely_due_keeps_its_last_runs_and_one_that_was_removed_none(db: Session) -> None:
    schedule(db, cron="@yearly")
    schedule(db, "gone")
    for name in ("nightly", "gone"):
        log(db, name, [DAY - 400 * number * 24 * HOUR for number in reversed(range(3))], [60, 61, 62])
    due_at(db, DAY + 365 * 24 * HOUR)
    due_at(db, DAY + HOUR, "gone")
    tick(db, DAY + HOUR)
    db.do("select bridge.unschedule('gone')")
    db.do("select bridge.cleanup(p_now => %s)", DAY + 2 * MONTH)
    assert db.rows("select last_run, last_status, last_duration from bridge.schedules") == [(DAY, "succeeded", timedelta(seconds=62))]
    assert len(runs(db)) == 3
    assert [run[2] for run in runs(db, "gone")] == ["queued"], "a run that has not ended stays"
    assert db.one("select count(*) from bridge.schedule_past") == 0


def test_durations_and_lateness_are_those_of_the_log(db: Session) -> None:
    schedule(db, expected_duration="2 minutes")
    log(db, "nightly", hourly(101, DAY), [float(number) for number in range(101)])
    db.do("update bridge.schedule_run set first_started_at = slot + interval '3 seconds'")
    (row,) = db.rows(
        "select p95_duration, median_duration, average_duration, longest_duration, average_late, p95_late, expected_duration"
        " from bridge.schedule_stats"
    )
    assert [value.total_seconds() for value in row] == [95, 50, 50, 100, 3, 3, 120]


SLOW = "select schedule, status, basis, longest_expected, slow_of_last_100 from bridge.slow_schedules order by 1, 2"


def test_a_schedule_learns_what_is_usual_from_its_own_runs(db: Session) -> None:
    schedule(db)
    log(db, "nightly", hourly(4), [60] * 4)
    log(db, "nightly", [now()], [1000])
    assert db.rows(SLOW) == [("nightly", "succeeded", "learnt", timedelta(minutes=3), 1)], "five have succeeded"
    log(db, "nightly", [now() + SECOND], [170])
    assert db.rows(SLOW) == [], "the last run was no slower than three times the usual minute"
    log(db, "nightly", [now() + 2 * SECOND], [200], status="failed")
    assert db.rows(SLOW) == [("nightly", "failed", "learnt", timedelta(minutes=3), 2)]
    db.do("update bridge.setting set value = '5' where name = 'slow_factor'")
    assert db.rows(SLOW) == []


def test_runs_of_a_second_are_not_slow_before_they_take_ten_more(db: Session) -> None:
    schedule(db)
    log(db, "nightly", hourly(9), [0.5] * 9)
    log(db, "nightly", [now()], [10.4])
    assert db.rows(SLOW) == []
    log(db, "nightly", [now() + SECOND], [10.6])
    assert [row[0] for row in db.rows(SLOW)] == ["nightly"]


def test_too_few_runs_prove_nothing_and_an_expected_duration_needs_none(db: Session) -> None:
    schedule(db)
    schedule(db, "told", expected_duration="30 seconds")
    for name in ("nightly", "told"):
        log(db, name, hourly(3), [1, 1, 31])
    assert db.rows(SLOW) == [("told", "succeeded", "given", timedelta(seconds=30), 1)]
    assert schedule(db, "told", expected_duration="40 seconds") == "changed"
    assert db.rows(SLOW) == []


def test_a_run_that_is_under_way_for_too_long_is_slow(db: Session) -> None:
    schedule(db, expected_duration="1 hour")
    job = db.one("select bridge.run_schedule('nightly')")
    claim, run = db.run()
    assert db.rows(SLOW) == []
    db.do("update bridge.inflight set started_at = started_at - interval '61 minutes'")
    assert db.rows("select job_id, status, duration > '1 hour' from bridge.slow_schedules") == [(job, "running", True)]
    db.finish(claim, run)
    db.tick()
    assert [row[1] for row in db.rows(SLOW)] == ["succeeded"]


@pytest.mark.parametrize("given", ["0", "-1 second"])
def test_an_expected_duration_is_positive(db: Session, given: str) -> None:
    assert "expected_duration is" in error_of(lambda: schedule(db, expected_duration=given))
    schedule(db)
    said = error_of(lambda: db.do("update bridge.schedule set expected_duration = %s::interval", given))
    assert "give a positive interval, or null to learn it from its runs" in said


def often(db: Session) -> list[tuple[str, str, str]]:
    return db.rows("select schedule, kind, found from bridge.too_often_schedules order by 1, 2")  # type: ignore[return-value]


@pytest.mark.parametrize("overlap", ["allow", "skip", "queue_one", "cancel_old"])
def test_a_schedule_whose_slots_come_before_a_run_has_ended_runs_too_often(db: Session, overlap: str) -> None:
    schedule(db, cron="*/10 * * * *", overlap=overlap)
    begin = db.one("select date_trunc('hour', clock_timestamp()) - interval '2 hours'")
    due_at(db, begin)
    for number in range(3):
        db.do("select bridge.run_schedules(10, %s)", begin + timedelta(minutes=10 * number))
    assert often(db) == [("nightly", "overlapping", "2 of its last 3 slots came before the run before had ended")]
    db.do("select bridge.pause_schedule('nightly')")
    assert often(db) == []


def test_slots_that_are_made_up_for_come_together_and_are_no_sign(db: Session) -> None:
    schedule(db, missed="all")
    due_at(db, DAY)
    tick(db, DAY + 6.5 * HOUR)
    assert len(runs(db)) == 7
    assert often(db) == []


def test_one_overlap_in_many_slots_is_no_sign(db: Session) -> None:
    schedule(db)
    log(db, "nightly", hourly(11, now() - HOUR), [4000, *[60] * 10])
    assert often(db) == []
    log(db, "nightly", [now() - 0.99 * HOUR], [1])
    assert [row[1] for row in often(db)] == ["overlapping"]


def test_a_run_that_takes_longer_than_its_period_runs_too_often(db: Session) -> None:
    schedule(db, cron="0,5 * * * *")
    log(db, "nightly", hourly(6, now() - 48 * HOUR), [299] * 6)
    assert often(db) == []
    log(db, "nightly", hourly(7, now() - 30 * HOUR), [301] * 7)
    assert often(db) == [("nightly", "longer_than_period", "a run takes 00:05:01, and the next comes after 00:05:00")]


def test_two_that_do_the_same_work_are_twins_until_one_is_paused(db: Session) -> None:
    for name in ("a", "b", "c"):
        schedule(db, name, cron=f"{len(name)} * * * *", kwargs='{"x": 1}', priority=1)
    schedule(db, "other", kwargs='{"x": 2}')
    schedule(db, "elsewhere", kwargs='{"x": 1}', queue="second")
    assert db.rows("select schedule, kind, other from bridge.too_often_schedules") == [("a", "twin", "b = c")]
    db.do("update bridge.schedule set enabled = false where name in ('b', 'c')")
    assert often(db) == []


def beat(db: Session, times: int, args: str = "[1]") -> None:
    """Jobs of the schedule's task that it did not make."""
    for _ in range(times):
        db.enqueue("a.task", args=args)
        db.finish(*db.run())


def test_what_comes_from_elsewhere_as_often_as_its_slots_is_told(db: Session) -> None:
    schedule(db, args="[1]")
    log(db, "nightly", hourly(4, now() - HOUR), [1] * 4)
    beat(db, 3)
    beat(db, 5, args="[2]")
    assert often(db) == []
    db.do("select bridge.run_schedule('nightly')")
    db.finish(*db.run())
    db.tick()
    said = "beside its last 4 slots, its work was done 4 times: 1 by hand, 3 from elsewhere"
    assert often(db) == [("nightly", "elsewhere", said)]
    log(db, "nightly", [now()], [1])
    assert often(db) == [], "slots are more again"


def test_without_pg_cron_nothing_of_it_is_told(db: Session) -> None:
    assert db.rows("select * from bridge.cron_commands()") == []


def test_an_entry_of_pg_cron_that_does_the_same_is_told(cron_dsn: str) -> None:
    db = Session(cron_dsn)
    schedule(db, "nightly", task="shop.report")
    schedule(db, "weekly", task="shop.other")
    db.do("select cron.schedule('old report', '0 3 * * *', $$select bridge.enqueue('shop.report')$$)")
    db.do("select cron.schedule('by hand', '0 4 * * *', $$select bridge.run_schedule('weekly')$$)")
    db.do("select cron.schedule('unlike', '0 4 * * *', $$select bridge.enqueue('shop.reports'), 'weekly'$$)")
    assert db.rows("select schedule, kind, other from bridge.too_often_schedules order by 1") == [
        ("nightly", "pg_cron", "old report"), ("weekly", "pg_cron", "by hand"),
    ]  # fmt: skip
    db.do("update cron.job set active = false where jobname = 'by hand'")
    assert [row[0] for row in often(db)] == ["nightly"]


def test_a_waiting_run_whose_job_cannot_be_made_fails_and_stops_no_tick(db: Session) -> None:
    schedule(db, overlap="queue_one", args='["' + "x" * 70_000 + '"]')
    due_at(db, DAY)
    tick(db, DAY)
    claim, run = db.run()
    db.do("select bridge.run_schedules(10, %s)", DAY + HOUR)
    db.do("update bridge.setting set value = '1000' where name = 'max_payload'")
    db.finish(claim, run)
    tick(db, DAY + 1.5 * HOUR)
    assert [row[2] for row in runs(db)] == ["succeeded", "failed"]
    assert "payload of task a.task" in db.one("select error from bridge.schedule_runs where status = 'failed'")


def test_time_passes_for_the_owner_of_the_schema_alone(db: Session) -> None:
    db.do("do $$ begin create role bridge_test_worker login in role bridge_worker; exception when duplicate_object then null; end $$")
    worker = psycopg.connect(psycopg.conninfo.make_conninfo(db.dsn, user="bridge_test_worker"), autocommit=True)
    for call in ("bridge.tick('test', p_now => {})", "bridge.sweep(p_now => {})"):
        worker.execute(f"select {call}".replace("{}", "clock_timestamp()").encode())
        for moment in ("now() + interval '1 hour'", "now() - interval '1 hour'", "null"):
            query = f"select {call}".replace("{}", moment)
            said = error_of(lambda query=query: worker.execute(query.encode()))  # type: ignore[misc]
            assert "only the owner of the schema may let time pass" in said
        db.do(f"select {call}".replace("{}", "now() + interval '1 hour'"))
    worker.close()
