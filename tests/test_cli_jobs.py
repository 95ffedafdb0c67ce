"""What `bridge jobs` prints, does and answers with its exit code, on jobs that a real worker ran."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from fix_servers import ROOT

from bridge.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fix_stack import Stack

pytest_plugins = ["fix_stack"]


@pytest.fixture(scope="module")
def stack(bare_stack: Stack) -> Iterator[Stack]:
    bare_stack.pool = "solo"
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.kinds")
    yield bare_stack
    bare_stack.kill_all()


@pytest.fixture
def jobs(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `bridge jobs` with these words."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", stack.dsn)

    def run(*words: object) -> Result:
        return CliRunner().invoke(main, ["jobs", *map(str, words)])

    return run


@pytest.fixture
def queue(stack: Stack) -> str:
    """A paused queue that no other test uses."""
    name = f"q{uuid.uuid4().hex[:8]}"
    stack.sql.execute("select bridge.pause(%s)", (name,))
    return name


def listed(result: Result) -> list[dict[str, Any]]:
    """The rows of a JSON answer."""
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_list_in_a_pipe_is_lines_with_tabs_under_a_header(stack: Stack, jobs: Callable[..., Result], queue: str) -> None:
    identity = stack.enqueue("kinds.add", 1, 2, queue=queue)
    header, *rows = jobs("list", "--queue", queue).stdout.splitlines()
    assert header.split("\t") == ["id", "task", "queue", "status", "attempts", "changed", "took", "note"]
    assert [row.split("\t")[:5] for row in rows] == [[str(identity), "kinds.add", queue, "queued", "0/3"]]


def test_list_on_a_terminal_is_a_table_that_fits_it(stack: Stack, queue: str) -> None:
    identity = stack.enqueue("kinds.add", 1, 2, queue=queue, kwargs={"long": "x" * 300})
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "bridge", "jobs", "list", "--queue", queue]
    environment = {**os.environ, "BRIDGE_DATABASE_URL": stack.dsn, "COLUMNS": "80", "TERM": "xterm"}
    subprocess.run(command, check=True, stdout=theirs, env=environment, cwd=ROOT)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert str(identity) in shown
    assert "\t" not in shown
    assert len(shown.splitlines()) == 2


def test_list_filters_by_status_task_queue_and_number(stack: Stack, jobs: Callable[..., Result], queue: str) -> None:
    for _ in range(3):
        stack.enqueue("kinds.add", 1, 2, queue=queue)
    later = stack.enqueue("kinds.echo", queue=queue, delay="1 hour")
    assert len(listed(jobs("list", "--queue", queue, "--json"))) == 4
    assert len(listed(jobs("list", "--queue", queue, "--limit", 2, "--json"))) == 2
    assert len(listed(jobs("list", "--queue", queue, "--task", "kinds.add", "--json"))) == 3
    (scheduled,) = listed(jobs("list", "--queue", queue, "--status", "scheduled", "--json"))
    assert scheduled["id"] == str(later)


def test_list_filters_by_patterns_arguments_and_times(stack: Stack, jobs: Callable[..., Result], queue: str) -> None:
    stack.enqueue("kinds.add", 1, 2, queue=queue)
    echoed = stack.enqueue("kinds.echo", 7, queue=queue, kwargs={"tenant": 3})
    for words in (
        ("--task", "*.echo"), ("--task", "kinds.echo", "--task", "none"), ("--with-args", "[7]"), ("--with-kwargs", '{"tenant": 3}'),
        ("--with-args", "[7]", "--created-after", "2020-01-01", "--created-before", "2100-01-01T12:00:00+02:00"),
    ):  # fmt: skip
        assert [row["id"] for row in listed(jobs("list", "--queue", queue, *words, "--json"))] == [str(echoed)], words
    assert listed(jobs("list", "--queue", queue, "--created-before", "2020-01-01", "--json")) == []


def test_list_leaves_out_what_has_not_changed_since(stack: Stack, jobs: Callable[..., Result], queue: str) -> None:
    old, new = (stack.enqueue("kinds.add", 1, 2, queue=queue) for _ in range(2))
    stack.sql.execute("update bridge.job set updated_at = updated_at - interval '2 hours' where id = %s", (old,))
    assert [row["id"] for row in listed(jobs("list", "--queue", queue, "--since", "90m", "--json"))] == [str(new)]
    assert len(listed(jobs("list", "--queue", queue, "--since", "3h", "--json"))) == 2


def test_a_duration_that_is_none_is_wrong_use(jobs: Callable[..., Result]) -> None:
    result = jobs("list", "--since", "soon")
    assert result.exit_code == 2
    assert "'soon' is no duration" in result.stderr


def test_show_gives_every_attempt_and_ends_with_the_traceback(stack: Stack, jobs: Callable[..., Result]) -> None:
    job = stack.run("kinds.fail", "the words", max_attempts=2, backoff="0")
    result = jobs("show", job["id"])
    assert result.exit_code == 0
    assert [line.split("\t")[:2] for line in result.stdout.splitlines() if line[:2] in ("1\t", "2\t")] == [
        ["1", "failed"],
        ["2", "failed"],
    ]
    assert result.stdout.rstrip().endswith("ValueError: the words")
    shown = json.loads(jobs("show", job["id"], "--json").stdout)
    assert (shown["status"], shown["error"]["type"], len(shown["history"]), shown["notes"]) == ("failed", "ValueError", 2, [])


def test_a_celery_task_id_names_a_job_as_well(stack: Stack, jobs: Callable[..., Result], queue: str) -> None:
    from bridge.job import job_id

    name = f"order {queue}"
    make = "select bridge.enqueue_message(%s, %s, 'kinds.add', %s, 9::smallint, '[]', '{}', null, null, null, null, null, '{}', null, null)"
    stack.sql.execute(make, (job_id(name), name, queue))
    assert json.loads(jobs("show", name, "--json").stdout)["task_id"] == name
    assert jobs("cancel", name).exit_code == 0
    assert jobs("wait", name).stdout == f"{name} cancelled\n"


@pytest.mark.parametrize("command", ["show", "wait", "retry", "cancel"])
def test_an_unknown_id_is_named_and_nothing_is_done_to_the_others(
    stack: Stack, jobs: Callable[..., Result], queue: str, command: str
) -> None:
    waiting = stack.enqueue("kinds.add", 1, 2, queue=queue)
    result = jobs(command, *([] if command == "show" else [waiting]), "no-such-job")
    assert result.exit_code == 1
    assert "job no-such-job does not exist" in result.stderr
    assert stack.job(waiting)["status"] == "queued"


def test_wait_ends_with_0_when_all_succeeded(stack: Stack, jobs: Callable[..., Result]) -> None:
    identities = [stack.enqueue("kinds.add", number, 1) for number in range(3)]
    result = jobs("wait", *identities, "--timeout", "1m", "--json")
    assert result.exit_code == 0
    assert [row["id"] for row in listed(result)] == [str(identity) for identity in identities]
    assert [row["result"] for row in listed(result)] == [1, 2, 3]


def test_wait_ends_with_1_when_one_failed(stack: Stack, jobs: Callable[..., Result]) -> None:
    good, bad = stack.enqueue("kinds.add", 1, 1), stack.enqueue("kinds.hopeless")
    result = jobs("wait", good, bad, "--timeout", 60)
    assert result.exit_code == 1
    assert {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()} == {str(good): "succeeded", str(bad): "failed"}


def test_wait_gives_up_after_its_timeout_and_names_who_is_late(stack: Stack, jobs: Callable[..., Result], queue: str) -> None:
    late = stack.enqueue("kinds.add", 1, 1, queue=queue, delay="1 hour")
    result = jobs("wait", late, "--timeout", "0.1")
    assert result.exit_code == 1
    assert f"not ended after 0.1 s: {late} (scheduled)" in result.stderr


def test_wait_returns_when_somebody_else_cancels_the_job(stack: Stack, jobs: Callable[..., Result], queue: str) -> None:
    held = stack.enqueue("kinds.add", 1, 1, queue=queue)
    results: list[Result] = []
    waiter = threading.Thread(target=lambda: results.append(jobs("wait", held, "--timeout", "1m")))
    waiter.start()
    stack.sql.execute("select bridge.cancel(%s)", (held,))
    waiter.join(30)
    assert [(result.exit_code, result.stdout) for result in results] == [(1, f"{held} cancelled\n")]


def test_retry_runs_a_failed_job_again_under_its_id(stack: Stack, jobs: Callable[..., Result]) -> None:
    job = stack.run("kinds.hopeless")
    result = jobs("retry", job["id"], "--json")
    assert result.exit_code == 0
    assert [(row["id"], row["status"]) for row in listed(result)] == [(str(job["id"]), "queued")]
    assert stack.wait(job["id"])["attempts"] == 2


def test_retry_refuses_a_job_that_waits_but_retries_the_others(stack: Stack, jobs: Callable[..., Result], queue: str) -> None:
    waiting, failed = stack.enqueue("kinds.add", 1, 1, queue=queue), stack.run("kinds.hopeless")["id"]
    result = jobs("retry", waiting, failed)
    assert result.exit_code == 1
    assert f"job {waiting} is queued" in result.stderr
    assert stack.wait(failed)["attempts"] == 2


def test_retry_failed_takes_filters_and_a_dry_run_changes_nothing(stack: Stack, jobs: Callable[..., Result]) -> None:
    job = stack.run("kinds.fail", "again", max_attempts=1)
    others = stack.run("kinds.hopeless")
    filters = ("--failed", "--task", "kinds.fail", "--queue", "celery", "--since", "1h")
    dry = listed(jobs("retry", *filters, "--dry-run", "--json"))
    assert str(job["id"]) in {row["id"] for row in dry}
    assert {row["task"] for row in dry} == {"kinds.fail"}
    assert stack.job(job["id"])["attempts"] == 1
    assert jobs("retry", *filters).exit_code == 0
    assert stack.wait(job["id"])["attempts"] == 2
    assert stack.job(others["id"])["attempts"] == 1


def test_cancel_takes_filters_and_a_dry_run_changes_nothing(stack: Stack, jobs: Callable[..., Result], queue: str) -> None:
    waiting = stack.enqueue("kinds.add", 1, 1, queue=queue)
    later = stack.enqueue("kinds.add", 1, 1, queue=queue, delay="1 hour")
    other = stack.enqueue("kinds.echo", 1, 1, queue=queue)
    assert len(listed(jobs("cancel", "--queue", queue, "--dry-run", "--json"))) == 3
    assert stack.job(waiting)["status"] == "queued"
    assert jobs("cancel", "--queue", queue, "--status", "scheduled").exit_code == 0
    assert [stack.job(one)["status"] for one in (waiting, later, other)] == ["queued", "cancelled", "queued"]
    assert jobs("cancel", "--queue", queue, "--task", "kinds.add").exit_code == 0
    assert [stack.job(one)["status"] for one in (waiting, other)] == ["cancelled", "queued"]


def test_cancel_asks_a_running_job_to_stop(stack: Stack, jobs: Callable[..., Result], tmp_path: Path) -> None:
    running = stack.enqueue("kinds.hold", str(tmp_path / "started"), str(tmp_path / "go"))
    stack.wait(running, "running")
    refused = jobs("cancel", running, "--signal", "NO SIGNAL")
    assert (refused.exit_code, "signal is 'NO SIGNAL'" in refused.stderr) == (1, True)
    assert jobs("cancel", running, "--no-terminate", "--json").exit_code == 0
    assert stack.sql.execute(
        "select stop_signal from bridge.inflight i join bridge.job j using (seq) where j.id = %s", (running,)
    ).fetchone() == (None,)
    result = jobs("cancel", running, "--json")
    (tmp_path / "go").touch()
    assert result.exit_code == 0
    assert listed(result)[0]["status"] == "running"
    stack.wait(running)


def test_cancel_of_a_job_that_had_ended_says_so(stack: Stack, jobs: Callable[..., Result]) -> None:
    job = stack.run("kinds.add", 1, 1)
    result = jobs("cancel", job["id"])
    assert result.exit_code == 1
    assert f"job {job['id']} had ended as succeeded" in result.stderr


def test_filtering_stops_at_the_limit_and_says_so(stack: Stack, jobs: Callable[..., Result], queue: str) -> None:
    for _ in range(3):
        stack.enqueue("kinds.add", 1, 1, queue=queue)
    result = jobs("cancel", "--queue", queue, "--limit", 2)
    assert result.stdout == "cancel: 2 of 2 jobs, 0 skipped; stopped at --limit 2, run it again for more\n"
    assert len(listed(jobs("list", "--queue", queue, "--status", "queued", "--json"))) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("wait",), ("retry",), ("cancel",), ("cancel", "--limit", "5"), ("retry", "--task", "kinds.add"), ("retry", "an-id", "--failed"),
        ("cancel", "an-id", "--queue", "celery"), ("list", "--status", "lost"), ("list", "--limit", "0"), ("show",),
        ("cancel", "--status", "failed"), ("cancel", "--all", "an-id"), ("cancel", "--all", "-Q", "q"),
        ("list", "--with-args", "{}"), ("list", "--created-after", "soon"),
    ],
)  # fmt: skip
def test_wrong_use_ends_with_2(jobs: Callable[..., Result], words: tuple[str, ...]) -> None:
    assert jobs(*words).exit_code == 2


@pytest.mark.parametrize("command", ["list", "show", "wait", "retry", "cancel"])
def test_help_shows_examples_line_by_line(jobs: Callable[..., Result], command: str) -> None:
    assert f"Examples:\n    bridge jobs {command}" in jobs(command, "--help").stdout


def test_without_a_database_the_error_says_what_to_set(
    jobs: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BRIDGE_DATABASE_URL")
    monkeypatch.setenv("BRIDGE_HOME", str(tmp_path))
    result = jobs("list")
    assert result.exit_code == 1
    assert "BRIDGE_DATABASE_URL is not set and no local stack runs" in result.stderr
