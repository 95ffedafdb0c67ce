"""What tasks of real workers tell while they run: throttled, in order, and there when the outcome is."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from apps.telling import TABLE
from click.testing import CliRunner
from fix_servers import ROOT, wait_until

import bridge
from bridge.cli import main
from bridge.client import forget_connections
from bridge.errors import InvalidArgumentError, NotFoundError, WrongStateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_pairs import StartPairs
    from fix_stack import Stack

COUNTING = """
create table written (progress json, at timestamptz not null default clock_timestamp());
create function note_written() returns trigger language plpgsql as
  $$ begin insert into public.written (progress) values (new.progress); return null; end $$;
create trigger note_written after update of progress on bridge.inflight for each row execute function note_written();
"""


@pytest.fixture(scope="module")
def stack(bare_stack: Stack) -> Iterator[Stack]:
    bare_stack.sql.execute(TABLE)
    bare_stack.sql.execute(COUNTING)
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.telling", env={"BRIDGE_JOB_LOGS": "info"})
    yield bare_stack
    bare_stack.kill_all()


@pytest.fixture(autouse=True)
def _of_the_stack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python's face and the command line talk to the stack's database, where the test has one."""
    if "stack" in request.fixturenames:
        monkeypatch.setenv("BRIDGE_DATABASE_URL", request.getfixturevalue("stack").dsn)
        monkeypatch.setenv("BRIDGE_BROKER_URL", request.getfixturevalue("stack").broker_url)
    forget_connections()
    yield
    forget_connections()


def command(*words: object) -> Any:
    return CliRunner().invoke(main, ["jobs", *map(str, words)])


def test_a_talkative_run_writes_twice_a_second_at_most_and_its_last_word_always(stack: Stack, tmp_path: Path) -> None:
    stack.sql.execute("truncate written")
    go = tmp_path / "go"
    identity = stack.enqueue("telling.talk", 5000, str(go))
    # The thread writes what waits while the task says nothing more.
    wait_until(lambda: (stack.job(identity).get("progress") or {}).get("message") == "step 4999", what="the newest progress")
    assert stack.job(identity)["status"] == "running"
    go.touch()
    job = stack.wait(identity)
    assert job["progress"] == {"fraction": 1.0, "message": "done"}
    writes, seconds = stack.sql.execute("select count(*), extract(epoch from max(at) - min(at))::float from written").fetchone()  # type: ignore[misc]
    assert writes <= seconds / 0.5 + 2  # one at once, then one each half second, one at the end
    lines = bridge.logs(identity)
    assert (lines[0].message, lines[-1].message) == ("line 0", "line 4999")
    assert sum(line.left_out + 1 for line in lines) == 5000
    assert [line.number for line in lines] == sorted(line.number for line in lines)


def test_a_failed_attempt_keeps_its_lines_and_the_next_goes_on_from_its_checkpoint(stack: Stack) -> None:
    job = stack.run("telling.pages", 5, 0.0, 3, max_attempts=2, backoff="[0]")
    assert (job["status"], job["result"]) == ("succeeded", 3)
    done = stack.sql.execute("select page from pages where job = %s order by page", (str(job["id"]),)).fetchall()
    assert [page for (page,) in done] == [0, 1, 2, 3, 4]
    lines = bridge.logs(job["id"])
    assert [(line.attempt, line.message) for line in lines if line.message.startswith("page")] == [
        (1, "page 0"), (1, "page 1"), (1, "page 2"), (2, "page 3"), (2, "page 4"),
    ]  # fmt: skip
    assert [line.message for line in bridge.logs(job["id"], attempt=2)] == ["page 3", "page 4"]


def test_what_a_task_logs_by_logging_goes_to_the_log_of_its_job_once(stack: Stack) -> None:
    job = stack.run("telling.records")
    found = [(line.level, line.message) for line in bridge.logs(job["id"])]
    assert found == [("info", "of the task's logger, 1"), ("warning", "of another logger")]


def test_odd_text_is_kept_as_far_as_postgres_can_hold_it(stack: Stack) -> None:
    job = stack.run("telling.odd")
    first, second = bridge.logs(job["id"])
    assert (first.level, first.message) == ("warning", "nul \N{REPLACEMENT CHARACTER} and half ? of a pair")
    assert second.message == "x" * 8192 + " … (808 characters cut)"


def test_the_last_line_of_a_run_whose_process_dies_is_there(stack: Stack) -> None:
    stack.sql.execute("update bridge.setting set value = '0' where name = 'max_losses'")
    job = stack.run("telling.crash")
    stack.sql.execute("update bridge.setting set value = '5' where name = 'max_losses'")
    assert job["status"] == "failed"
    assert [(line.level, line.message) for line in bridge.logs(job["id"])] == [("critical", "about to die")]


def test_a_checkpoint_that_is_too_large_is_refused_in_the_task(stack: Stack) -> None:
    job = stack.run("telling.too_much")
    assert job["result"] == (
        "data of the checkpoint of job ID is 70002 bytes, the limit is 65536: keep a reference instead, or raise the setting max_checkpoint"
    )


def test_programs_that_a_task_calls_tell_by_the_jobs_id(stack: Stack, tmp_path: Path) -> None:
    go = tmp_path / "go"
    identity = stack.enqueue("telling.talk", 0, str(go))
    stack.wait(identity, "running")
    bridge.log("from Python", "debug", job=identity)
    bridge.progress(0.25, "from Python", job=identity)
    assert command("log", identity, "from a shell", "--level", "error").exit_code == 0
    assert command("progress", identity, "0.75", "from a shell").exit_code == 0
    assert stack.job(identity)["progress"] == {"fraction": 0.75, "message": "from a shell"}
    followed = subprocess.Popen(
        [sys.executable, "-m", "bridge", "jobs", "logs", str(identity), "--follow"], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    assert followed.stdout is not None
    assert followed.stdout.readline().split(maxsplit=3)[2:] == ["1", "debug    from Python\n"]
    stack.sql.execute("select bridge.log(%s, 'from SQL')", (identity,))
    go.touch()
    assert [line.split(maxsplit=4)[3:] for line in followed.stdout.read().splitlines()] == [
        ["error", "from a shell"], ["info", "from SQL"],
    ]  # fmt: skip
    assert followed.wait(10) == 0
    with pytest.raises(WrongStateError, match="is succeeded: only a job that runs"):
        bridge.log("late", job=identity)
    printed = json.loads(command("logs", identity, "--json").stdout)
    assert [line["message"] for line in printed] == ["from Python", "from a shell", "from SQL"]


def test_a_checkpoint_can_be_looked_at_and_given_from_outside(stack: Stack) -> None:
    identity = stack.enqueue("telling.pages", 5, queue="nowhere")
    assert bridge.checkpoint(identity) is None
    assert bridge.save_checkpoint({"next": 4}, job=identity) is True
    assert json.loads(command("checkpoint", identity).stdout) == {"next": 4}
    assert command("save-checkpoint", identity, '{"next": 2}').exit_code == 0
    assert bridge.checkpoint(identity) == {"next": 2}
    assert command("save-checkpoint", identity, "{next").exit_code == 2
    with pytest.raises(InvalidArgumentError, match="checkpoint is not JSON"):
        bridge.save_checkpoint(object())
    with pytest.raises(NotFoundError, match="does not exist"):
        bridge.save_checkpoint(1, job="no-such-job")


def test_outside_of_a_task_nothing_is_told() -> None:
    bridge.log("to nobody")
    assert (bridge.save_checkpoint({"a": 1}), bridge.checkpoint()) == (False, None)
    with pytest.raises(InvalidArgumentError, match="level is 'loud'"):
        bridge.log("x", "loud")


def test_jobs_that_tell_go_on_from_their_checkpoints_when_a_drainer_and_a_worker_are_killed(pairs: StartPairs) -> None:
    running = pairs("apps.telling", concurrency=1)
    running.db.do(TABLE)
    running.db.do("update bridge.setting set value = '2' where name = 'worker_lost'")
    running.db.do("update bridge.setting set value = '0.5' where name = 'heartbeat'")
    jobs = [running.db.enqueue("telling.pages", args=[20, 0.1]) for _ in range(4)]
    wait_until(lambda: running.db.one("select count(*) from pages where page >= 3") >= 2, 60, "two jobs in the middle")
    running.kill_a_drainer()
    worker = running.workers.pop(0)
    worker.kill(9)
    running.wait_for_all()
    assert running.db.rows("select status, count(*) from bridge.jobs group by status") == [("succeeded", 4)]
    # A page is done twice only by a run that was taken for dead and finds at its next checkpoint that another has its job.
    done, pages = running.db.rows("select count(*), count(distinct (job, page)) from pages")[0]
    lost = running.db.one("select count(*) from bridge.attempts where outcome = 'lost'")
    assert (pages, lost >= 1, done - pages <= lost) == (80, True, True), (done, lost)
    assert running.db.one("select count(*) from bridge.checkpoint") == 0
    for job in jobs:
        assert running.db.rows("select progress->>'fraction' from bridge.jobs where id = %s", job) == [("1.0",)]
        told = {message for (message,) in running.db.rows("select message from bridge.logs(%s)", job)}
        # Lines of the last half second before the kill may be missing, five of twenty; three times as many on a busy machine.
        assert len(told) >= 5
