"""Warm, soft and cold shutdown beside a second worker: what the first gives up starts there within seconds and costs nothing."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from fix_control import Held
from fix_servers import wait_until
from invariants import assert_sound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

    from bridge.local.process import Process

PROMISED = 3 * 5.0  # seconds until what was released has started elsewhere: three times the promise, on a machine that is shared
LATE = {"task_acks_late": True}
SOFT = {"worker_soft_shutdown_timeout": 4}


@dataclass
class Case:
    """How a worker is ended; each further signal is sent when the log has the words."""

    signals: list[tuple[signal.Signals, str]]
    conf: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


WARM = [(signal.SIGTERM, "")]
COLD = [(signal.SIGQUIT, "")]
BREAKS_OFF = {
    "cold": Case(COLD),
    "cold, late acknowledgement": Case(COLD, LATE),
    "cold, late acknowledgement, reject on worker lost": Case(COLD, {**LATE, "task_reject_on_worker_lost": True}),
    "soft": Case(COLD, SOFT),
    "soft, then at once": Case([*COLD, (signal.SIGQUIT, "Initiating Soft Shutdown")], {"worker_soft_shutdown_timeout": 6}),
    "interrupted twice": Case([(signal.SIGINT, ""), (signal.SIGINT, "Warm shutdown")]),
    "warm, then cold": Case([*WARM, (signal.SIGQUIT, "Warm shutdown")]),
}


@pytest.fixture
def stack(bare_stack: Stack) -> Iterator[Stack]:
    """A drainer; workers are the test's own."""
    if not bare_stack.processes:
        bare_stack.start_drainer()
    yield bare_stack
    while len(bare_stack.processes) > 1:
        worker = bare_stack.processes.pop()
        worker.kill(signal.SIGKILL)
        worker.stop()
    assert_sound(bare_stack.dsn)


@dataclass
class Pair:
    """A worker with one task running and one message in hand, and another worker that has nothing to do."""

    first: Process
    running: Held
    waiting: Any

    def end_first(self, case: Case) -> None:
        for number, words in case.signals:
            wait_until(lambda words=words: words in self.first.log_text(), 30, words)
            self.first.kill(number)

    def runs(self) -> int:
        return self.running.started.read_text().count("\n")


def pair(stack: Stack, joined: Any, folder: Path, case: Case) -> Pair:
    queue = folder.name
    env = {"BRIDGE_TEST_CONF": json.dumps({"worker_prefetch_multiplier": 4, **case.conf}), **case.env}
    first = stack.start_worker("apps.kinds", "-Q", queue, "--concurrency=1", env=env)
    running = Held(joined, folder, queue=queue)
    waiting = joined.send_task("kinds.add", (1, 2), queue=queue)
    wait_until(lambda: f"{waiting.id}] received" in first.log_text(), 30, "the message received")
    stack.start_worker("apps.kinds", "-Q", queue, "--concurrency=2", env={"BRIDGE_TEST_CONF": json.dumps(case.conf)})
    return Pair(first, running, waiting)


@pytest.mark.parametrize("name", BREAKS_OFF)
def test_a_run_that_a_shutdown_breaks_off_starts_elsewhere_and_costs_nothing(stack: Stack, joined: Any, tmp_path: Path, name: str) -> None:
    case = BREAKS_OFF[name]
    two = pair(stack, joined, tmp_path, case)
    two.end_first(case)
    assert two.waiting.get(timeout=PROMISED) == 3
    patience = PROMISED + case.conf.get("worker_soft_shutdown_timeout", 0)
    wait_until(lambda: two.runs() == 2, patience, "the second start")
    assert two.first.wait(30) is not None
    two.running.go.touch()
    assert two.running.result.get(timeout=30) == "held"
    for task_id in (two.running.id, two.waiting.id):
        job = stack.job(task_id)
        assert (job["status"], job["attempts"], job["losses"]) == ("succeeded", 1, 0)
    assert stack.attempts(two.running.id) == [(1, "released"), (1, "succeeded")]


@pytest.mark.parametrize("conf", [{}, LATE], ids=["early", "late"])
def test_a_warm_shutdown_ends_its_task_and_gives_away_the_rest_at_once(
    stack: Stack, joined: Any, tmp_path: Path, conf: dict[str, Any]
) -> None:
    two = pair(stack, joined, tmp_path, Case(WARM, conf))
    two.end_first(Case([*WARM, (signal.SIGTERM, "Warm shutdown")]))
    assert two.waiting.get(timeout=PROMISED) == 3
    assert two.first.alive, "its task still runs"
    two.running.go.touch()
    assert two.first.wait(30) == 0
    assert two.running.result.get(timeout=30) == "held"
    assert two.runs() == 1
    assert stack.attempts(two.running.id) == [(1, "succeeded")]
    assert stack.job(two.waiting.id)["losses"] == 0


def test_a_soft_shutdown_lets_a_task_end_in_its_time(stack: Stack, joined: Any, tmp_path: Path) -> None:
    case = Case(COLD, {"worker_soft_shutdown_timeout": 6})
    two = pair(stack, joined, tmp_path, case)
    two.end_first(case)
    wait_until(lambda: "Initiating Soft Shutdown" in two.first.log_text(), 30)
    two.running.go.touch()
    assert two.running.result.get(timeout=30) == "held"
    assert two.waiting.get(timeout=PROMISED) == 3
    assert two.first.wait(30) is not None
    assert two.runs() == 1
    assert stack.attempts(two.running.id) == [(1, "succeeded")]


def test_a_termination_that_is_remapped_is_a_cold_shutdown(stack: Stack, joined: Any, tmp_path: Path) -> None:
    case = Case(WARM, env={"REMAP_SIGTERM": "SIGQUIT"})
    two = pair(stack, joined, tmp_path, case)
    two.end_first(case)
    assert two.waiting.get(timeout=PROMISED) == 3
    wait_until(lambda: "Cold shutdown" in two.first.log_text(), 30)
    two.running.go.touch()
    assert two.running.result.get(timeout=30) == "held"
    assert two.first.wait(30) is not None
    assert stack.job(two.running.id)["losses"] == 0
