"""The rows of the media system that name pg_cron, against the real extension."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Connection = psycopg.Connection[tuple[Any, ...]]
OPS = Path(__file__).parents[2] / "tasks/media/sql/ops"
ENTRY = "process-flashcard-jobs"


def one(media: Connection, query: str, params: Sequence[Any] = ()) -> Any:
    row = media.execute(query, params).fetchone()
    return row and row[0]


def entry(media: Connection, name: str = ENTRY) -> tuple[Any, ...] | None:
    """The runbook's own query."""
    return media.execute("SELECT jobname, schedule, active FROM cron.job WHERE jobname=%s", (name,)).fetchone()


def log_run(media: Connection, status: str, message: str, age: str = "0") -> None:
    """Put a run into pg_cron's log, as its launcher does."""
    media.execute(
        "insert into cron.job_run_details (jobid, runid, status, return_message, start_time, end_time)"
        " select jobid, nextval('cron.runid_seq'), %s, %s, t, t from cron.job, (select now() - %s::interval) age (t) where jobname = %s",
        (status, message, age, ENTRY),
    )


def statements(script: str) -> Iterator[str]:
    """Each statement of an operator script, those that are commented out included."""
    for line in (OPS / script).read_text().splitlines():
        text = line.removeprefix("-- ")
        if text.startswith("select ") and text.split("   --")[0].rstrip().endswith(";"):
            yield text.split("   --")[0]


@pytest.mark.media("media-02")
@pytest.mark.media("media-11")
@pytest.mark.timeout(240)
def test_pg_cron_calls_the_tick_every_minute_and_logs_that_it_succeeded(cron_media: Connection) -> None:
    assert one(cron_media, "select command from cron.job where jobname = %s", (ENTRY,)) == "select media.cron_tick()"
    runs = "select status from cron.job_run_details join cron.job using (jobid) where jobname = %s and end_time is not null"
    assert wait_until(lambda: one(cron_media, runs, (ENTRY,)), timeout=190) == "succeeded"


@pytest.mark.media("media-08")
def test_the_setup_script_shows_success_and_the_job_each_time_it_runs(cron_media: Connection) -> None:
    setup = (OPS / "setup-automated-processing.sql").read_text()
    cron_media.execute("select set('iterations', '20')")
    for _ in range(2):
        cursor = cron_media.execute(setup)
        while cursor.nextset():
            pass
        row = cursor.fetchone()
        assert row
        assert (row[0], row[1], row[2], row[4:]) == ("automated processing is set up", 1200, ENTRY, ("* * * * *", True))


@pytest.mark.media("media-08")
def test_the_setup_script_runs_where_there_is_no_pg_cron(media: Connection) -> None:
    media.execute((OPS / "setup-automated-processing.sql").read_text())
    assert "jobs run all the same" in one(media, "select add_cron_entries()")


@pytest.mark.media("media-09")
@pytest.mark.media("media-14")
def test_the_runbook_finds_the_cron_job_by_its_name(cron_media: Connection) -> None:
    assert entry(cron_media) == (ENTRY, "* * * * *", True)
    assert one(cron_media, "select count(*) from cron_status()") == 3


@pytest.mark.media("media-13")
@pytest.mark.parametrize("schedule", ["*/2 * * * *", "*/5 * * * *", "0 * * * *", "*/30 * * * *"])
def test_the_schedule_changes_in_place(cron_media: Connection, schedule: str) -> None:
    assert "pg_cron changed the entry" in one(cron_media, "select set_schedule(%s)", (schedule,))
    assert entry(cron_media) == (ENTRY, schedule, True)


@pytest.mark.media("media-13")
@pytest.mark.parametrize("schedule", ["*/30 * * * * *", "often", "99 seconds"])
def test_a_schedule_that_pg_cron_cannot_read_is_refused(cron_media: Connection, schedule: str) -> None:
    with pytest.raises(psycopg.Error, match="schedule is") as caught:
        cron_media.execute("select set_schedule(%s)", (schedule,))
    assert caught.value.sqlstate == "JB001"
    assert entry(cron_media) == (ENTRY, "* * * * *", True)


@pytest.mark.media("media-15")
def test_the_last_ten_runs_are_listed_newest_first(cron_media: Connection) -> None:
    for number in range(12):
        log_run(cron_media, "succeeded", f"{number} jobs moved up")
    rows = cron_media.execute("select runid, status, return_message, start_time, end_time from cron_runs()").fetchall()
    assert [row[2] for row in rows] == [f"{number} jobs moved up" for number in range(11, 1, -1)]


@pytest.mark.media("media-18")
@pytest.mark.media("media-19")
def test_pause_and_resume_turn_the_cron_entry_off_and_on(cron_media: Connection) -> None:
    cron_media.execute("select pause()")
    assert entry(cron_media) == (ENTRY, "* * * * *", False)
    cron_media.execute("select resume()")
    assert entry(cron_media) == (ENTRY, "* * * * *", True)


@pytest.mark.media("media-20")
def test_the_cron_entry_can_be_deleted_and_made_again(cron_media: Connection) -> None:
    cron_media.execute(f"SELECT cron.unschedule('{ENTRY}')")
    assert entry(cron_media) is None
    cron_media.execute("select add_cron_entries()")
    assert entry(cron_media) == (ENTRY, "* * * * *", True)


@pytest.mark.media("media-21")
def test_a_missing_and_an_inactive_entry_are_told_apart(cron_media: Connection) -> None:
    checks = "select check_name, ok from diagnose() where check_name like '%cron%'"
    log_run(cron_media, "succeeded", "0 jobs moved up")
    assert cron_media.execute(checks).fetchall() == [
        ("cron entry exists", True),
        ("cron entry is active", True),
        ("last cron run succeeded", True),
    ]
    cron_media.execute("select pause()")
    assert dict(cron_media.execute(checks).fetchall())["cron entry is active"] is False
    cron_media.execute("select cron.unschedule(%s)", (ENTRY,))
    assert dict(cron_media.execute(checks).fetchall())["cron entry exists"] is False


@pytest.mark.media("media-22")
@pytest.mark.media("media-23")
@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("ERROR:  function media.cron_tick() does not exist", "function not found"),
        ("ERROR:  permission denied for function cron_tick", "invalid authorization"),
        ("ERROR:  canceling statement due to statement timeout", "timeout"),
    ],
)
def test_a_failing_run_shows_its_message_and_what_to_do(cron_media: Connection, message: str, remedy: str) -> None:
    log_run(cron_media, "failed", message)
    row = cron_media.execute("select return_message, remedy from cron_failures").fetchone()
    assert row
    assert row[0] == message
    assert row[1].startswith(remedy)


@pytest.mark.media("media-26")
def test_the_cron_entries_carry_the_name_of_the_environment(cron_media: Connection) -> None:
    cron_media.execute("select set('environment', 'staging')")
    assert entry(cron_media, f"{ENTRY}-staging") == (f"{ENTRY}-staging", "* * * * *", True)
    assert entry(cron_media) is None


@pytest.mark.media("media-28")
def test_the_alert_is_checked_every_hour(cron_media: Connection) -> None:
    assert entry(cron_media, "alert-stuck-jobs") == ("alert-stuck-jobs", "0 * * * *", True)


@pytest.mark.media("media-29")
def test_every_statement_of_the_management_script_runs(cron_media: Connection) -> None:
    found = list(statements("manage-cron-job.sql"))
    assert len(found) > 20
    for statement in found:
        cron_media.execute(statement)


@pytest.mark.media("media-30")
def test_the_monthly_cleaning_removes_old_runs_and_keeps_the_others(cron_media: Connection) -> None:
    log_run(cron_media, "succeeded", "old", age="31 days")
    log_run(cron_media, "succeeded", "young", age="29 days")
    assert entry(cron_media, "clean-cron-log") == ("clean-cron-log", "0 3 1 * *", True)
    cron_media.execute("select clean_cron_log()")
    assert cron_media.execute("select return_message from cron.job_run_details where return_message in ('old', 'young')").fetchall() == [
        ("young",)
    ]


@pytest.mark.media("media-29")
def test_removing_the_pipeline_leaves_the_jobs_in_the_bridge(cron_media: Connection) -> None:
    cron_media.execute("insert into uploads (path) values ('/srv/a.jpg')")
    cron_media.execute((OPS / "remove.sql").read_text())
    assert one(cron_media, "select count(*) from bridge.jobs") == 1
    assert entry(cron_media) is None
    cron_media.execute("create schema media; create function media.remove_cron_entries() returns integer language sql return 0")
