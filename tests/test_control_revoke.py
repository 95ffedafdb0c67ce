"""Every way to revoke or cancel does the same: what waits never runs, what runs is stopped, and it stays so."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from celery import chain, group
from celery.exceptions import TaskRevokedError
from fix_control import Held
from fix_servers import ROOT, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fix_stack import Stack

pytestmark = pytest.mark.usefixtures("steered")


def command(stack: Stack, *words: str) -> None:
    """One of our programs, which must succeed."""
    env = {
        "BRIDGE_DATABASE_URL": stack.dsn,
        "BRIDGE_BROKER_URL": stack.broker_url,
        "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
        "PATH": "/usr/bin",
    }
    done = subprocess.run([sys.executable, *words], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


STOPS: dict[str, Callable[[Stack, Any, Any, str], Any]] = {
    "AsyncResult.revoke": lambda _stack, joined, _stranger, task_id: joined.AsyncResult(task_id).revoke(terminate=True),
    "control.terminate, joined": lambda _stack, joined, _stranger, task_id: joined.control.terminate([task_id], signal="KILL"),
    "control.revoke, not joined": lambda _stack, _joined, stranger, task_id: stranger.control.revoke(task_id, terminate=True),
    "bridge.cancel in SQL": lambda stack, _joined, _stranger, task_id: stack.sql.execute("select bridge.cancel(%s)", (task_id,)),
    "celery control": lambda stack, _joined, _stranger, task_id: command(
        stack, "-m", "celery", "-b", stack.broker_url, "control", "terminate", "KILL", task_id
    ),
    "bridge jobs cancel": lambda stack, _joined, _stranger, task_id: command(stack, "-m", "bridge", "jobs", "cancel", task_id),
}


@pytest.mark.parametrize("way", STOPS)
def test_what_runs_is_stopped_and_what_waits_never_runs(steered: Stack, joined: Any, stranger: Any, tmp_path: Path, way: str) -> None:
    running = Held(joined, tmp_path)
    scheduled = joined.send_task("kinds.hold", (str(tmp_path / "never"), str(tmp_path / "go")), countdown=3600)
    unserved = joined.send_task("kinds.hold", (str(tmp_path / "never"), str(tmp_path / "go")), queue="nobody")
    for task_id in (running.id, scheduled.id, unserved.id):
        STOPS[way](steered, joined, stranger, task_id)
    assert [steered.wait(task_id, timeout=30)["status"] for task_id in (running.id, scheduled.id, unserved.id)] == ["cancelled"] * 3
    assert joined.AsyncResult(running.id).state == "REVOKED"
    with pytest.raises(TaskRevokedError):
        joined.AsyncResult(scheduled.id).get(timeout=10)
    assert not (tmp_path / "never").exists()


def test_a_revoke_without_terminate_lets_a_running_task_come_to_its_end(steered: Stack, joined: Any, tmp_path: Path) -> None:
    running = Held(joined, tmp_path)
    running.result.revoke(wait=True, timeout=2)
    running.go.touch()
    assert running.result.get(timeout=30) == "held"
    assert steered.job(running.id)["status"] == "succeeded"


def test_a_group_is_revoked_as_a_whole(steered: Stack, joined: Any) -> None:
    result = group(joined.signature("kinds.add", (n, n), queue="nobody") for n in range(3)).apply_async()
    result.revoke()
    assert [steered.job(task_id)["status"] for task_id in (child.id for child in result.children)] == ["cancelled"] * 3


def test_the_last_step_of_a_chain_is_revoked_before_it_is_there(steered: Stack, joined: Any, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    steps = [joined.signature("kinds.hold", (str(started), str(go))), joined.signature("kinds.add", ("!",))]
    result = chain(*steps).apply_async()
    wait_until(started.exists, 30)
    result.revoke()
    go.touch()
    assert result.parent.get(timeout=30) == "held"
    assert steered.wait(result.id)["status"] == "cancelled"
    assert result.state == "REVOKED"


def remembered(stack: Stack, joined: Any, task_id: str) -> None:
    """Wait until the worker's memory has the id."""
    replies = wait_until(lambda: joined.control.inspect(timeout=2).revoked() or None, 20, "an answer of the worker")
    assert any(task_id in ids for ids in replies.values()), stack.processes[1].log_tail()


def test_a_revoked_job_that_is_retried_runs_where_the_revoke_is_remembered(steered: Stack, joined: Any) -> None:
    result = joined.send_task("kinds.add", (1, 2), countdown=3600)
    result.revoke()
    remembered(steered, joined, result.id)
    steered.sql.execute("select bridge.retry(%s)", (result.id,))
    assert joined.AsyncResult(result.id).get(timeout=30) == 3


def test_a_call_that_has_expired_runs_when_it_is_retried(steered: Stack, joined: Any) -> None:
    result = joined.send_task("kinds.add", (1, 2), countdown=3600, expires=0.2)
    steered.wait(result.id, "expired")
    steered.sql.execute("select bridge.retry(%s)", (result.id,))
    assert joined.AsyncResult(result.id).get(timeout=30) == 3


def test_a_redriven_task_may_retry_itself_as_often_as_at_first(steered: Stack, joined: Any, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    result = joined.send_task("kinds.auto", (str(marks),))
    steered.wait(result.id, "failed")
    assert len(marks.read_text().splitlines()) == 3
    steered.sql.execute("select bridge.redrive(%s)", (result.id,))
    steered.wait(result.id, "failed")
    assert len(marks.read_text().splitlines()) == 6


def test_a_revoke_holds_after_all_workers_have_restarted(steered: Stack, joined: Any, tmp_path: Path) -> None:
    revoked = joined.send_task("kinds.hold", (str(tmp_path / "never"), str(tmp_path / "go")), queue="later")
    steered.wait(revoked.id, "published")
    revoked.revoke()
    assert steered.job(revoked.id)["status"] == "cancelled"
    late = steered.start_worker("apps.kinds", "-Q", "later")
    wait_until(lambda: f"{revoked.id}] received" in late.log_text(), 30, "the message that was left")
    follower = joined.send_task("kinds.add", (1, 2), queue="later")
    assert follower.get(timeout=30) == 3
    assert not (tmp_path / "never").exists()
    late.stop()
    steered.processes.remove(late)


def test_jobs_are_revoked_by_their_stamp_also_later_steps(steered: Stack, joined: Any, stranger: Any, tmp_path: Path) -> None:
    def stamped(order: int, **options: Any) -> Any:
        signature = joined.signature("kinds.hold", (str(tmp_path / "never"), str(tmp_path / "go")), **options)
        signature.stamp(order=order)
        return signature.apply_async()

    waiting, other = stamped(1, countdown=3600), stamped(2, countdown=3600)
    joined.control.revoke_by_stamped_headers({"order": [1]})
    assert (steered.job(waiting.id)["status"], steered.job(other.id)["status"]) == ("cancelled", "scheduled")
    assert steered.job(stamped(1).id)["status"] == "cancelled"
    stranger.control.revoke_by_stamped_headers({"order": [2]}, terminate=True)
    assert steered.wait(other.id, timeout=30)["status"] == "cancelled"
    assert not (tmp_path / "never").exists()


def test_a_message_of_a_cancelled_job_shows_as_revoked_to_those_who_watch(steered: Stack, joined: Any, tmp_path: Path) -> None:
    busy = [Held(joined, tmp_path / name) for name in ("one", "two") if (tmp_path / name).mkdir() is None]
    waiting = joined.send_task("kinds.add", (1, 2))
    wait_until(lambda: f"{waiting.id}] received" in steered.processes[1].log_text(), 30, "the message received")
    seen: list[tuple[str, str]] = []
    with joined.connection_for_read() as connection:
        receiver = joined.events.Receiver(connection, handlers={"*": lambda event: seen.append((event["type"], event.get("uuid", "")))})
        events = receiver.itercapture(limit=None, timeout=30, wakeup=False)
        next(events)
        steered.sql.execute("select bridge.cancel(%s)", (waiting.id,))
        for held in busy:
            held.go.touch()
        while ("task-revoked", waiting.id) not in seen:
            next(events)
    assert ("task-succeeded", waiting.id) not in seen
