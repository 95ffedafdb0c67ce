"""What becomes of a job when its process dies, its time is over or somebody cancels it: prefork, with a worker that others share."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_servers import wait_until
from invariants import assert_sound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack


@pytest.fixture
def stack(bare_stack: Stack) -> Iterator[Stack]:
    """One worker for all tests, a new one only after a test in which it died."""
    if not all(process.alive for process in bare_stack.processes) or not bare_stack.processes:
        bare_stack.kill_all()
        bare_stack.start_drainer()
        bare_stack.start_worker("apps.kinds", "-Q", "celery")
    worker = bare_stack.processes[1]
    yield bare_stack
    assert worker.alive, f"the worker itself died: {worker.log_tail()}"
    assert bare_stack.run("kinds.add", 1, 2)["result"] == 3
    assert_sound(bare_stack.dsn)


def test_a_killed_child_is_a_loss_and_the_job_runs_again_at_once(stack: Stack, tmp_path: Path) -> None:
    job = stack.run("kinds.die_once", str(tmp_path / "mark"), max_attempts=1)
    assert (job["status"], job["result"], job["attempts"], job["losses"]) == ("succeeded", "alive", 1, 1)
    assert stack.attempts(job["id"]) == [(1, "lost"), (1, "succeeded")]
    assert (job["finished_at"] - job["created_at"]).total_seconds() < 20, "no backoff after a loss"


def test_what_a_process_has_achieved_before_it_dies_at_another_job_stays(bare_stack: Stack, tmp_path: Path) -> None:
    bare_stack.kill_all()
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.kinds", "-Q", "celery", "--concurrency=1")
    # The first outcome of a process: its connection is new.
    jobs = [{"task": "kinds.add", "args": [1, 2]}, {"task": "kinds.die_once", "args": [str(tmp_path / "mark")]}]
    ended, lost = [str(row[0]) for row in bare_stack.sql.execute("select bridge.enqueue_many(%s)", (json.dumps(jobs),))]
    assert (bare_stack.wait(ended)["result"], bare_stack.wait(lost)["result"]) == (3, "alive")
    assert bare_stack.attempts(ended) == [(1, "succeeded")]
    bare_stack.kill_all()


def test_what_a_process_has_achieved_before_its_whole_worker_dies_at_another_job_stays(bare_stack: Stack, tmp_path: Path) -> None:
    bare_stack.kill_all()
    change = "update bridge.setting set value = %s where name = %s"
    for new in (("1", "heartbeat"), ("4", "worker_lost")):
        bare_stack.sql.execute(change, new)
    bare_stack.start_drainer()
    words = ("apps.kinds", "-Q", "celery", "--concurrency=1")
    dead = bare_stack.start_worker(*words)
    # The first outcome of a process: nobody is left to send it a second time.
    jobs = [{"task": "kinds.add", "args": [1, 2]}, {"task": "kinds.take_all_along", "args": [str(tmp_path / "mark")]}]
    ended, lost = [str(row[0]) for row in bare_stack.sql.execute("select bridge.enqueue_many(%s)", (json.dumps(jobs),))]
    wait_until(lambda: not dead.alive, 60, "the worker to die")
    bare_stack.start_worker(*words)
    assert (bare_stack.wait(ended)["result"], bare_stack.wait(lost)["result"]) == (3, "alive")
    assert bare_stack.attempts(ended) == [(1, "succeeded")]
    for usual in (("5", "heartbeat"), ("20", "worker_lost")):
        bare_stack.sql.execute(change, usual)
    bare_stack.kill_all()


def test_a_job_that_always_kills_its_process_fails_after_max_losses(stack: Stack) -> None:
    stack.sql.execute("update bridge.setting set value = '2' where name = 'max_losses'")
    job = stack.run("kinds.die_always", max_attempts=1)
    stack.sql.execute("update bridge.setting set value = '5' where name = 'max_losses'")
    assert (job["status"], job["losses"], job["error"]["type"]) == ("failed", 2, "WorkerLostError")
    assert [outcome for _, outcome in stack.attempts(job["id"])] == ["lost", "lost", "failed"]


def test_one_memory_error_fails_its_job_and_not_the_worker(stack: Stack) -> None:
    job = stack.run("kinds.memory", max_attempts=1)
    assert (job["status"], job["error"]["type"], job["error"]["message"]) == ("failed", "MemoryError", "the input is too large")


def test_a_task_may_clean_up_at_its_soft_time_limit(stack: Stack) -> None:
    job = stack.run("kinds.slow_soft")
    assert (job["status"], job["result"]) == ("succeeded", "cleaned up")


def test_a_hard_time_limit_fails_the_job_with_that_reason(stack: Stack) -> None:
    job = stack.run("kinds.slow_hard", max_attempts=1)
    assert (job["status"], job["error"]["type"]) == ("failed", "TimeLimitExceeded")


def test_a_timeout_given_in_sql_limits_each_attempt(stack: Stack) -> None:
    job = stack.run("kinds.sleep", 60, timeout="1 second", max_attempts=2, backoff="0")
    assert (job["status"], job["error"]["type"], job["attempts"], job["losses"]) == ("failed", "TimeLimitExceeded", 2, 0)


def test_a_running_job_that_is_cancelled_stops_and_says_so(stack: Stack, tmp_path: Path) -> None:
    started = tmp_path / "started"
    identity = stack.enqueue("kinds.hold", str(started), str(tmp_path / "never"))
    wait_until(started.exists, 30)
    assert stack.sql.execute("select bridge.cancel(%s)", (identity,)).fetchone() == ("running",)
    assert stack.wait(identity, timeout=30)["status"] == "cancelled"


def test_a_child_killed_from_outside_loses_only_the_job_it_ran(stack: Stack, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    identity = stack.enqueue("kinds.hold", str(started), str(go), max_attempts=1)
    wait_until(lambda: started.exists() and started.read_text(), 30)
    os.kill(int(started.read_text()), signal.SIGKILL)
    wait_until(lambda: started.read_text().count("\n") == 2, 30, "the second run")
    go.touch()
    assert stack.wait(identity)["losses"] == 1


def test_a_worker_killed_outright_gives_its_jobs_to_another(stack: Stack, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    second = stack.start_worker("apps.kinds", "-Q", "second")
    identity = stack.enqueue("kinds.hold", str(started), str(go), queue="second", max_attempts=1)
    wait_until(started.exists, 30)
    second.kill(signal.SIGKILL)
    second.stop()  # and its children
    third = stack.start_worker("apps.kinds", "-Q", "second")
    wait_until(lambda: started.read_text().count("\n") == 2, 90, "running again")
    go.touch()
    job = stack.wait(identity)
    assert (job["status"], job["losses"], stack.attempts(identity)) == ("succeeded", 1, [(1, "lost"), (1, "succeeded")])
    third.stop()


def test_a_worker_told_to_stop_finishes_what_it_runs_and_says_good_bye(stack: Stack, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    leaving = stack.start_worker("apps.kinds", "-Q", "leaving")
    identity = stack.enqueue("kinds.hold", str(started), str(go), queue="leaving")
    wait_until(started.exists, 30)
    leaving.kill(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in leaving.log_text(), 30)
    go.touch()
    assert leaving.wait(60) == 0
    assert (stack.job(identity)["status"], stack.job(identity)["result"]) == ("succeeded", "held")
    stopped = "select status from bridge.workers where pid = %s"
    assert stack.sql.execute(stopped, (leaving.pid,)).fetchone() == ("stopped",)


REFUSE = """
create sequence refusals;
create function refuse() returns trigger language plpgsql as $$ begin
  perform nextval('public.refusals');
  raise exception using errcode = 'XX000', message = 'cache lookup failed';
end $$;
create trigger refuse before insert on bridge.finished for each row execute function refuse()"""


def test_an_outcome_that_postgres_refuses_for_a_moment_is_kept(stack: Stack, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    identity = stack.enqueue("kinds.hold", str(started), str(go))
    wait_until(started.exists, 30)
    stack.sql.execute(REFUSE)
    go.touch()
    refused = "select last_value >= 2 from refusals"
    wait_until(lambda: stack.sql.execute(refused).fetchone() == (True,), 30, "the outcome to be offered again")
    stack.sql.execute("drop trigger refuse on bridge.finished")
    job = stack.wait(identity)
    assert (job["status"], job["result"], job["losses"]) == ("succeeded", "held", 0)


def test_a_run_is_named_until_its_outcome_is_taken(stack: Stack, tmp_path: Path) -> None:
    """Its task is over for the main process, and a server that is busy has not taken yet what became of it."""
    stack.sql.execute("update bridge.setting set value = '1' where name = 'heartbeat'")
    started, go = tmp_path / "started", tmp_path / "go"
    identity = stack.enqueue("kinds.hold", str(started), str(go))
    wait_until(started.exists, 30)
    reported(stack, 2)  # one a second by now
    with psycopg.connect(stack.dsn) as busy:
        busy.execute("lock table bridge.finished in access exclusive mode")
        go.touch()
        wait_until(lambda: f"kinds.hold[{identity}] succeeded" in stack.processes[1].log_text(), 30, "the task to be over")
        reported(stack, 3)
        holding = """select i.token = any (w.holding) from bridge.inflight i join bridge.job j using (seq)
          join bridge.worker w on w.id = i.worker where j.id = %s"""
        assert stack.sql.execute(holding, (identity,)).fetchall() == [(True,)]
    assert stack.wait(identity)["status"] == "succeeded"
    assert stack.attempts(identity) == [(1, "succeeded")]
    stack.sql.execute("update bridge.setting set value = '5' where name = 'heartbeat'")


def reported(stack: Stack, times: int) -> None:
    """Wait for so many reports of the worker."""
    seen = set()

    def enough() -> bool:
        seen.update(stack.sql.execute("select seen_at from bridge.worker where stopped_at is null and lost_at is null").fetchall())
        return len(seen) > times

    wait_until(enough, 60, f"{times} reports")
