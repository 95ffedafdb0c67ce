"""Children that come and go by the worker's own settings lose nothing: every task runs once, and no run counts as lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fix_servers import wait_until
from invariants import assert_sound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

JOBS = 20


@pytest.fixture
def stack(bare_stack: Stack) -> Iterator[Stack]:
    bare_stack.start_drainer()
    yield bare_stack
    assert_sound(bare_stack.dsn)
    bare_stack.kill_all()


def children_that_ran(stack: Stack, folder: Path) -> int:
    """Run many short tasks, each once; in how many processes they ran."""
    jobs = [stack.enqueue("reports.give", str(folder / str(number)), queue="reports") for number in range(JOBS)]
    ended = [stack.wait(job) for job in jobs]
    assert {(job["status"], job["attempts"], job["losses"]) for job in ended} == {("succeeded", 1, 0)}
    runs = [(folder / str(number)).read_text().split() for number in range(JOBS)]
    assert {len(run) for run in runs} == {1}
    return len({run[0] for run in runs})


def test_children_that_end_after_each_task_lose_none(stack: Stack, tmp_path: Path) -> None:
    stack.start_worker("apps.reports", "--max-tasks-per-child=1")
    assert children_that_ran(stack, tmp_path) == JOBS


def test_children_that_end_for_their_memory_lose_none(stack: Stack, tmp_path: Path) -> None:
    stack.start_worker("apps.reports", "--max-memory-per-child=1")  # kilobytes: any task is too much
    assert children_that_ran(stack, tmp_path) == JOBS


def test_a_pool_that_grows_and_shrinks_by_itself_loses_none(stack: Stack, tmp_path: Path) -> None:
    worker = stack.start_worker("apps.reports", "--autoscale=4,1", env={"AUTOSCALE_KEEPALIVE": "1"})
    go = tmp_path / "go"
    jobs = [stack.enqueue("reports.hold", str(tmp_path / f"held-{number}"), str(go), queue="reports") for number in range(4)]
    wait_until(lambda: all((tmp_path / f"held-{number}").exists() for number in range(4)), 60, "four tasks at a time")
    go.touch()
    assert {(stack.wait(job)["status"], stack.wait(job)["losses"]) for job in jobs} == {("succeeded", 0)}
    wait_until(lambda: "Scaling down" in worker.log_text(), 60, "a smaller pool")
    children_that_ran(stack, tmp_path)
