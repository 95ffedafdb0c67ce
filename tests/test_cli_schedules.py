"""What `bridge schedules` prints, does and answers with its exit code, and what becomes of a beat schedule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from fix_servers import ROOT

from bridge.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_sql import Session

ADD = ("add", "report", "0 6 * * mon-fri", "shop.report")


@pytest.fixture
def command(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `bridge schedules` with these words."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)

    def run(*words: object) -> Result:
        return CliRunner().invoke(main, ["schedules", *map(str, words)])

    return run


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_schedule_is_added_that_calls_a_function_or_posts_to_an_address(db: Session, command: Callable[..., Result]) -> None:
    db.do("create function public.reset_daily(season integer) returns integer language sql as 'select 1'")
    call = ("add", "reset", "@daily", "--function", "public.reset_daily", "--kwargs", '{"season": 3}', "--timeout", "5m")
    assert answer(command(*call, "--json"))["outcome"] == "created"
    assert answer(command(*call, "--json"))["outcome"] == "unchanged"
    assert {"function public.reset_daily", "role postgres"} <= {
        " ".join(line.split()) for line in command("show", "reset").stdout.split("\n")
    }
    missing = command("add", "again", "@daily", "--function", "public.reset_dayly")
    assert (missing.exit_code, "did you mean public.reset_daily?" in missing.output) == (1, True)
    post = ("add", "post", "@hourly", "--webhook", "https://hooks.example.org/x")
    assert command(*post).exit_code == 0
    assert answer(command(*post, "--secret", "partner", "--json"))["outcome"] == "changed"
    assert answer(command("show", "post", "--json"))["webhook"] == {"url": "https://hooks.example.org/x", "secret": "partner"}
    assert "post\tactive\t@hourly\tUTC\thttps://hooks.example.org/x\t" in command("list").stdout
    assert command("add", "post", "@hourly", "shop.task", "--secret", "partner").exit_code == 2
    assert command("add", "none", "@hourly").exit_code == 1


def test_add_makes_changes_and_leaves_alone(db: Session, command: Callable[..., Result]) -> None:
    options = (
        "--timezone",
        "Europe/Berlin",
        "--args",
        '["all"]',
        "--kwargs",
        '{"a": 1}',
        "-Q",
        "reports",
        "--priority",
        5,
        "--expires",
        "10m",
    )
    assert answer(command(*ADD, *options, "--dry-run", "--json"))["outcome"] == "created"
    assert db.rows("select name from bridge.schedules") == []
    said = command(*ADD, *options)
    assert said.stdout.startswith("report created 20")
    assert answer(command(*ADD, *options, "--json"))["outcome"] == "unchanged"
    assert answer(command(*ADD, *options, "--overlap", "skip", "--jitter", "30s", "--json"))["outcome"] == "changed"
    columns = "cron, task, args, kwargs, timezone, queue, priority, expires::text, overlap, jitter::text"
    assert db.rows(f"select {columns} from bridge.schedules") == [
        ("0 6 * * mon-fri", "shop.report", ["all"], {"a": 1}, "Europe/Berlin", "reports", 5, "00:10:00", "skip", "00:00:30")
    ]


def test_list_and_show_print_lines_for_programs_and_json(db: Session, command: Callable[..., Result]) -> None:
    command(*ADD)
    header, line = command("list").stdout.splitlines()
    assert header.split("\t") == ["name", "status", "cron", "timezone", "task", "next_run", "last_run", "last_status"]
    assert line.split("\t")[:5] == ["report", "active", "0 6 * * mon-fri", "UTC", "shop.report"]
    assert [row["name"] for row in answer(command("list", "--json"))] == ["report"]
    job = db.one("select bridge.run_schedule('report')")
    shown = answer(command("show", "report", "--json"))
    assert (shown["missed_within"], shown["runs"][0]["job_id"], shown["runs"][0]["trigger_type"]) == (604800, str(job), "manual")
    text = command("show", "report").stdout
    assert "cron              0 6 * * mon-fri" in text
    assert f"\tmanual\tqueued\t\t\t0\t{job}" in text


def test_pause_resume_run_and_remove_take_a_dry_run(db: Session, command: Callable[..., Result]) -> None:
    command(*ADD)
    assert command("pause", "report", "--dry-run").stdout == "dry run, nothing is changed: report paused\n"
    assert command("pause", "report").stdout == "report paused\n"
    assert db.one("select status from bridge.schedules") == "paused"
    assert answer(command("resume", "report", "--json"))["next_run"] == db.one("select next_run from bridge.schedules").isoformat()
    command("run", "report", "--dry-run")
    assert db.one("select count(*) from bridge.job") == 0
    assert db.status(answer(command("run", "report", "--json"))["job"]) == "queued"
    command("remove", "report", "--dry-run")
    assert db.one("select count(*) from bridge.schedule") == 1
    assert command("remove", "report").stdout == "report removed\n"
    assert db.one("select count(*) from bridge.schedule") == 0


def test_next_reads_a_schedule_or_an_expression(command: Callable[..., Result]) -> None:
    command("add", "leap", "0 12 29 2 *", "shop.report", "--starts-at", "2090-01-01T00:00:00+00:00", "--timezone", "Asia/Kolkata")
    assert answer(command("next", "leap", "-n", 2, "--json")) == ["2092-02-29T12:00:00+05:30", "2096-02-29T12:00:00+05:30"]
    lines = command("next", "--cron", "0 2 * * *", "--timezone", "Europe/Berlin").stdout.splitlines()
    assert len(lines) == 5
    assert all(line[11:19] == "02:00:00" for line in lines)
    assert command("next", "0 2 * * *").stderr.endswith("an expression stands behind --cron\n")


def test_history_and_stats_tell_of_runs_and_slow_and_too_often_of_trouble(db: Session, command: Callable[..., Result]) -> None:
    command(*ADD, "--expected-duration", "1h")
    jobs = [db.one("select bridge.run_schedule('report')") for _ in range(3)]
    claims = db.claim()
    db.mark(claims)
    db.finish(claims[0], db.start(claims[0]), result="done")
    db.tick()
    db.start(claims[1])
    db.do("update bridge.inflight set started_at = started_at - interval '2 hours'")
    told = answer(command("history", "report", "--json"))
    assert [row["job_id"] for row in told] == [str(job) for job in reversed(jobs)]
    assert (told[2]["status"], told[2]["attempts"], told[2]["result"], told[2]["late_by"] >= 0) == ("succeeded", 1, '"done"', True)
    assert answer(command("history", "report", "--json", "-n", 1, "--before", told[1]["id"])) == told[2:]
    line = command("history", "report", "--status", "succeeded", "--trigger", "manual").stdout.splitlines()[1].split("\t")
    assert (line[2:4], line[8], line[11]) == (["manual", "succeeded"], str(jobs[0]), '"done"')
    stats = answer(command("stats", "report", "--json"))
    assert [(row["schedule"], row["runs"], row["succeeded"], row["live"], row["expected_duration"]) for row in stats] == [
        ("report", 3, 1, 2, 3600)
    ]
    assert command("stats").stdout.splitlines()[1].split("\t")[:6] == ["report", "3", "1", "0", "0", "2"]
    assert [(row["schedule"], row["status"], row["basis"]) for row in answer(command("slow", "--json"))] == [("report", "running", "given")]
    assert command("slow").stdout.splitlines()[1].startswith("report\trunning\t2 h 0 min\t1 h 0 min\tgiven")
    command("add", "again", "@daily", "shop.report")
    assert [(row["schedule"], row["kind"], row["other"]) for row in answer(command("too-often", "--json"))] == [("again", "twin", "report")]
    assert "again\ttwin\tthe same task, arguments and queue\tremove one of them" in command("too-often").stdout
    assert "status is 'broken'" in command("history", "report", "--status", "broken").stderr


@pytest.mark.parametrize("word", ["show", "remove", "pause", "resume", "run", "next", "history", "stats"])
def test_a_schedule_that_does_not_exist_is_named(command: Callable[..., Result], word: str) -> None:
    result = command(word, "nightly")
    assert result.exit_code == 1
    assert "schedule 'nightly' does not exist" in result.stderr


def test_a_wrong_expression_ends_with_1_and_wrong_use_with_2(command: Callable[..., Result]) -> None:
    result = command("add", "report", "0 66 * * *", "shop.report")
    assert (result.exit_code, result.stderr) == (1, "error: cron '0 66 * * *', character 3: hour 66 does not exist: give 0 to 23\n")
    for words in (("add", "report"), (*ADD, "--args", "{}"), (*ADD, "--args", "[1"), (*ADD, "--jitter", "soon"), ("next",), ("import",)):
        assert command(*words).exit_code == 2


@pytest.mark.parametrize("word", ["list", "show", "add", "remove", "next", "import", "history", "stats", "slow", "too-often"])
def test_help_shows_examples_line_by_line(command: Callable[..., Result], word: str) -> None:
    assert f"Examples:\n    bridge schedules {word}" in command(word, "--help").stdout


def outcome(rows: list[dict[str, Any]], name: str) -> tuple[Any, ...]:
    row = next(row for row in rows if row["name"] == name)
    return row["outcome"], row["cron"], row["timezone"], row["note"]


NOT_RELATIVE = "counted from the clock, not from when beat started"
CARRIED = {
    "every second": ("every 1 seconds", "UTC", NOT_RELATIVE),
    "nightly": ("30 2 * * *", "Europe/Berlin", ""),
    "first monday": ("0 9 1-7 * &1", "Europe/Berlin", ""),
    "over midnight": ("*/15 0-1,22-23 * * 0,6", "Europe/Berlin", ""),
    "quarters": ("0 0 1 */3 *", "Europe/Berlin", ""),
    "half hours": ("every 30 minutes", "UTC", ""),
    "with options": (
        "every 90 seconds", "UTC",
        f"{NOT_RELATIVE}; option shadow is left behind; priority 6 means later than others on this broker: it becomes 0",
    ),
    "unknown task": ("* * * * *", "Europe/Berlin", "the application does not know this task"),
    "added": ("every 2 hours", "UTC", NOT_RELATIVE),
}  # fmt: skip
LEFT = {
    "at dusk": "it follows the sun (sunset): keep it in beat, or choose a time of day",
    "at odd times": "its schedule is of class Odd, which only beat can read",
    "too often": "its interval is 0.5 s: ours are whole seconds, 1 or more",
    "fraction": "its interval is 10.5 s: ours are whole seconds, 1 or more",
    "linked": "its option link has no place in a schedule: make it part of the task",
    "not json": "its args and kwargs are not JSON: Object of type date is not JSON serializable",
    "until": "its option expires is a moment, not a duration: give the schedule an ends_at",
}


@pytest.fixture
def beaten(dsn: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program of this environment where the application `apps.beaten` is found."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {**os.environ, "BRIDGE_DATABASE_URL": dsn, "BRIDGE_BROKER_URL": "redis://127.0.0.1:1/0", "PYTHONPATH": path}
        return subprocess.run(
            [sys.executable, "-m", *words], env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )

    return run


def test_import_carries_a_beat_schedule_over_and_says_what_it_leaves(db: Session, beaten: Callable[..., Any]) -> None:
    words = ("bridge", "schedules", "import", "--from-beat", "-A", "apps.beaten", "--json")
    dry = beaten(*words, "--dry-run")
    assert (dry.returncode, db.rows("select name from bridge.schedules")) == (1, [])
    done = beaten(*words)
    rows = json.loads(done.stdout)
    assert rows == json.loads(dry.stdout)
    assert {name: outcome(rows, name) for name in CARRIED} == {name: ("created", *told) for name, told in CARRIED.items()}
    assert {name: (row[0], row[3]) for name in LEFT if (row := outcome(rows, name))} == {
        name: ("not carried over", why) for name, why in LEFT.items()
    }
    assert "9 of 16 entries carried over" in done.stderr
    assert "warning: while celery beat runs with these entries, each of them runs twice" in done.stderr
    made = db.rows("select name, args, kwargs, queue, priority, max_attempts, expires::text, timeout::text, headers from bridge.schedules")
    details = {name: rest for name, *rest in made}
    assert set(details) == set(CARRIED)
    assert details["every second"] == [[1], {"who": "beat"}, "celery", 0, 1, None, None, None]
    assert details["quarters"][2] == "reports"
    assert details["half hours"][2:6] == ["mail", 0, 1, "00:02:00"]
    assert details["with options"] == [[], {}, "mail", 0, 1, "00:00:45.5", "00:00:30", {"tenant": "x"}]
    assert details["added"][0] == ["added"]


def test_import_takes_the_application_of_the_celery_command_and_may_be_repeated(db: Session, beaten: Callable[..., Any]) -> None:
    words = ("celery", "-A", "apps.beaten", "bridge", "schedules", "import", "--from-beat", "--timezone", "Asia/Kolkata")
    first = beaten(*words)
    assert "nightly\tcreated\t30 2 * * *\tAsia/Kolkata" in first.stdout, first.stderr
    db.do("select bridge.pause_schedule('nightly')")
    before = db.rows("select * from bridge.schedule order by name")
    again = [line.split("\t")[:2] for line in beaten(*words).stdout.splitlines()]
    assert ["nightly", "unchanged"] in again
    assert db.rows("select * from bridge.schedule order by name") == before


def test_an_application_that_does_not_exist_is_named(beaten: Callable[..., Any]) -> None:
    done = beaten("bridge", "schedules", "import", "--from-beat", "-A", "apps.nowhere")
    assert done.returncode == 1
    assert "no Celery application apps.nowhere" in done.stderr
