"""What is reported of tasks that are killed, expire or are revoked: the row, its attempts, and the state in the application's own backend.

A prefork worker over Redis with the row following; the other half of the table is in test_reports_outcomes.py.
"""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery import Celery, Task, chord
from celery.exceptions import TaskRevokedError
from fix_servers import wait_until
from invariants import assert_sound

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_stack import Stack

HOLDING = ["reports.hold", "reports.hold_late", "reports.hold_rejecting", "reports.hold_retrying"]


@pytest.fixture(scope="module")
def started(bare_stack: Stack) -> Iterator[Stack]:
    bare_stack.sql.execute("update bridge.setting set value = '0.5' where name = 'heartbeat'")
    bare_stack.sql.execute("update bridge.setting set value = '4' where name = 'worker_lost'")
    bare_stack.start_drainer()
    start_worker(bare_stack, "reports")
    yield bare_stack
    bare_stack.kill_all()


@pytest.fixture
def stack(started: Stack) -> Iterator[Stack]:
    """One worker for all tests; none of them may cost it its life."""
    worker = started.processes[1]
    yield started
    for other in started.processes[2:]:
        other.stop()
    del started.processes[2:]
    assert worker.alive, f"the worker itself died: {worker.log_tail()}"
    assert_sound(started.dsn)


@pytest.fixture
def client(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", stack.dsn)
    app = Celery("client", broker=stack.broker_url, backend=f"bridge+{stack.broker_url}", set_as_current=False)
    app.conf.task_default_queue = "reports"
    bridge.install(app)
    yield app
    # Result objects tell Redis when they go, and it must be there: so they go now, those that wait or that an error holds, too.
    app.backend._pending_results.concrete.clear()
    gc.collect()
    app.close()


def start_worker(stack: Stack, queue: str, *words: str) -> Any:
    return stack.start_worker("apps.reports", "-Q", queue, *words, env={"BRIDGE_TEST_RESULT_BACKEND": f"bridge+{stack.broker_url}"})


def runs_of(marks: Path) -> list[int]:
    """The processes that have run the task, in their order."""
    return [int(line) for line in marks.read_text().splitlines()] if marks.exists() else []


def story(stack: Stack, identity: Any) -> tuple[Any, ...]:
    job = stack.wait(identity)
    return job["status"], job["attempts"], job["losses"], stack.attempts(identity)


@pytest.mark.parametrize("task", HOLDING)
def test_a_child_that_is_killed_costs_one_more_run(stack: Stack, client: Any, tmp_path: Path, task: str) -> None:
    marks, go = tmp_path / "marks", tmp_path / "go"
    result = client.send_task(task, (str(marks), str(go)))
    wait_until(lambda: runs_of(marks), 30)
    os.kill(runs_of(marks)[0], signal.SIGKILL)
    wait_until(lambda: len(runs_of(marks)) == 2, 60, "the second run")
    go.touch()
    assert result.get(timeout=30) == "held"
    assert story(stack, result.id) == ("succeeded", 1, 1, [(1, "lost"), (1, "succeeded")])
    noticed = "lost the run" if task == "reports.hold_retrying" and hasattr(Task, "retry_on_worker_lost") else "signal 9"
    assert noticed in lost_because(stack, result.id)
    assert len(runs_of(marks)) == 2


def test_a_result_counts_whose_process_dies_while_postgres_is_busy(stack: Stack, client: Any, tmp_path: Path) -> None:
    marks, go, worker = tmp_path / "marks", tmp_path / "go", stack.processes[1]
    result = client.send_task("reports.die_afterwards", (str(marks), str(go)))
    wait_until(lambda: runs_of(marks), 30)
    with psycopg.connect(stack.dsn) as busy:
        busy.execute("lock table bridge.finished in share mode")  # nothing ends
        go.touch()
        wait_until(lambda: f"pid:{runs_of(marks)[0]} exited with 'signal 9" in worker.log_text(), 30, "the main process to notice")
    assert result.get(timeout=30) == "done"
    assert story(stack, result.id) == ("succeeded", 1, 0, [(1, "succeeded")])
    assert len(runs_of(marks)) == 1


def lost_because(stack: Stack, identity: Any) -> str:
    row = stack.sql.execute("select error ->> 'message' from bridge.attempts where id = %s and outcome = 'lost'", (identity,)).fetchone()
    return str(row and row[0])


def test_a_child_that_the_kernel_ends_for_want_of_memory_costs_one_more_run(stack: Stack, client: Any, tmp_path: Path) -> None:
    marks, go = tmp_path / "marks", tmp_path / "go"
    result = client.send_task("reports.grow", (str(marks), 200, str(go)))
    wait_until(lambda: runs_of(marks), 30)
    # As the kernel does it, who looks at how much of its memory a process uses: no word to the process, no word from it.
    wait_until(lambda: resident(runs_of(marks)[0]) > 200 << 10, 30, "200 MB in use")
    os.kill(runs_of(marks)[0], signal.SIGKILL)
    go.touch()
    assert result.get(timeout=60) == "0 bytes"
    assert story(stack, result.id) == ("succeeded", 1, 1, [(1, "lost"), (1, "succeeded")])


def resident(pid: int) -> int:
    """Kilobytes of memory that a process uses."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_a_main_process_that_is_killed_gives_its_runs_to_another_worker(stack: Stack, client: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = start_worker(stack, "doomed", "--concurrency=4")
    results = {task: client.send_task(task, (str(tmp_path / task), str(go)), queue="doomed") for task in HOLDING}
    wait_until(lambda: all(runs_of(tmp_path / task) for task in HOLDING), 30, "all four run")
    first.kill(signal.SIGKILL)
    first.stop()  # and its children
    start_worker(stack, "doomed", "--concurrency=4")
    wait_until(lambda: all(len(runs_of(tmp_path / task)) == 2 for task in HOLDING), 90, "all four run again")
    go.touch()
    for task, result in results.items():
        assert result.get(timeout=30) == "held"
        assert story(stack, result.id) == ("succeeded", 1, 1, [(1, "lost"), (1, "succeeded")])
        assert len(runs_of(tmp_path / task)) == 2


def occupied(client: Any, folder: Path) -> tuple[list[Any], Path]:
    """Both children of the worker run until a file is there."""
    go = folder / "go"
    held = [client.send_task("reports.hold", (str(folder / f"held-{number}"), str(go))) for number in range(2)]
    wait_until(lambda: all(runs_of(folder / f"held-{number}") for number in range(2)), 30, "two tasks that run")
    return held, go


def received(stack: Stack, identity: Any) -> None:
    wait_until(lambda: f"[{identity}] received" in stack.processes[1].log_text(), 30, f"task {identity} received")


def test_a_task_that_expires_in_a_workers_hands_does_not_run(stack: Stack, client: Any, tmp_path: Path) -> None:
    held, go = occupied(client, tmp_path)
    result = client.send_task("reports.give", (str(tmp_path / "marks"),), expires=2)
    received(stack, result.id)
    assert story(stack, result.id) == ("expired", 0, 0, [])
    go.touch()
    assert [one.get(timeout=30) for one in held] == ["held", "held"]
    wait_until(lambda: client.AsyncResult(result.id).state == "REVOKED", 20)
    assert not runs_of(tmp_path / "marks")


def test_a_task_that_is_revoked_in_a_workers_hands_does_not_run(stack: Stack, client: Any, tmp_path: Path) -> None:
    held, go = occupied(client, tmp_path)
    result = client.send_task("reports.give", (str(tmp_path / "marks"),))
    received(stack, result.id)
    client.control.revoke(result.id)
    wait_until(lambda: f"Tasks flagged as revoked: {result.id}" in stack.processes[1].log_text(), 20)
    go.touch()
    assert story(stack, result.id) == ("cancelled", 0, 0, [])
    assert [one.get(timeout=30) for one in held] == ["held", "held"]
    wait_until(lambda: client.AsyncResult(result.id).state == "REVOKED", 20)
    assert not runs_of(tmp_path / "marks")


def test_a_task_that_is_terminated_ends_as_cancelled(stack: Stack, client: Any, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    result = client.send_task("reports.hold", (str(marks), str(tmp_path / "never")))
    wait_until(lambda: runs_of(marks), 30)
    client.control.revoke(result.id, terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=30)
    assert story(stack, result.id) == ("cancelled", 1, 0, [(1, "cancelled")])
    assert client.AsyncResult(result.id).state == "REVOKED"
    assert len(runs_of(marks)) == 1


def test_the_body_of_a_chord_with_a_failed_part_has_a_row_that_says_so(stack: Stack, client: Any, tmp_path: Path) -> None:
    marks, later = str(tmp_path / "marks"), tmp_path / "later"
    parts = [client.signature("reports.give", (marks,)), client.signature("reports.fail", (marks,))]
    body = chord(parts, app=client)(client.signature("reports.after", (str(later),), immutable=True))
    assert story(stack, body.id) == ("cancelled", 0, 0, [])
    job = stack.job(body.id)
    assert (job["error"]["type"], job["task"], job["args"]) == ("ParentFailed", "reports.after", [str(later)])
    assert client.AsyncResult(body.id).state == "FAILURE"
    assert not runs_of(later)
