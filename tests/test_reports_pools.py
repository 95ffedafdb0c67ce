"""Pools of greenlets: gevent's runs jobs on few connections, others are refused; the ordinary outcomes are in test_worker_outcomes.py."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from fix_servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

TASKS = 40


@pytest.fixture(scope="module")
def stack(bare_stack: Stack) -> Iterator[Stack]:
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.reports", f"--concurrency={TASKS}", pool="gevent")
    yield bare_stack
    bare_stack.kill_all()


def connections(stack: Stack, name: str) -> Any:
    row = stack.sql.execute("select count(*) from pg_stat_activity where application_name = %s", (name,)).fetchone()
    return row and row[0]


def test_many_greenlets_run_at_once_on_few_connections(stack: Stack, tmp_path: Path) -> None:
    go = tmp_path / "go"
    jobs = [stack.enqueue("reports.hold", str(tmp_path / str(number)), str(go), queue="reports") for number in range(TASKS)]
    wait_until(lambda: all((tmp_path / str(number)).exists() for number in range(TASKS)), 60, "all of them run")
    go.touch()
    assert {(stack.wait(job)["status"], stack.wait(job)["losses"]) for job in jobs} == {("succeeded", 0)}
    assert [len((tmp_path / str(number)).read_text().split()) for number in range(TASKS)] == [1] * TASKS
    assert connections(stack, "bridge run") <= 32


def test_connections_of_tasks_that_fail_do_not_stay(stack: Stack, tmp_path: Path) -> None:
    jobs = [stack.enqueue("reports.fail", str(tmp_path / str(number)), queue="reports", max_attempts=1) for number in range(TASKS)]
    assert {stack.wait(job)["error"]["message"] for job in jobs} == {"as told"}
    wait_until(lambda: connections(stack, "bridge client") <= 2, 30, "connections closed")


def test_a_greenlet_whose_time_is_over_fails_with_that_reason(stack: Stack, tmp_path: Path) -> None:
    job = stack.run("reports.hard", str(tmp_path / "marks"), queue="reports", max_attempts=1)
    assert (job["status"], job["error"]["type"], stack.attempts(job["id"])) == ("failed", "TimeLimitExceeded", [(1, "failed")])


def test_a_greenlet_that_is_cancelled_stops(stack: Stack, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    identity = stack.enqueue("reports.hold", str(marks), str(tmp_path / "never"), queue="reports")
    wait_until(marks.exists, 30)
    stack.sql.execute("select bridge.cancel(%s)", (identity,))
    job = stack.wait(identity)
    assert (job["status"], job["losses"], stack.attempts(identity)) == ("cancelled", 0, [(1, "cancelled")])


def test_a_pool_of_greenlets_that_psycopg_does_not_know_is_refused(stack: Stack) -> None:
    env = {"CELERY_CUSTOM_WORKER_POOL": "apps.green:TaskPool"}
    refused = stack.start("refused", "-m", "celery", "-A", "apps.reports", "worker", "--pool=custom", env=env)
    assert refused.wait(60) == 1
    assert "error: pool green cannot run jobs that are rows: a query to postgres would hold up all of its tasks" in refused.log_text()


def test_a_worker_with_greenlets_that_is_told_to_stop_ends_what_it_runs(stack: Stack, tmp_path: Path) -> None:
    worker = stack.start_worker("apps.reports", "-Q", "leaving", pool="gevent")
    marks, go = tmp_path / "marks", tmp_path / "go"
    identity = stack.enqueue("reports.hold", str(marks), str(go), queue="leaving")
    wait_until(marks.exists, 30)
    worker.kill(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in worker.log_text(), 30)
    go.touch()
    assert worker.wait(60) == 0
    assert (stack.wait(identity)["status"], stack.job(identity)["losses"]) == ("succeeded", 0)
    assert stack.sql.execute("select status from bridge.workers where pid = %s", (worker.pid,)).fetchone() == ("stopped",)
