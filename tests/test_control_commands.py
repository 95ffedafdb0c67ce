"""Celery's remote control with jobs that are rows: every command does and says what it always did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fix_control import Held
from fix_servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack


@pytest.fixture
def stack(bare_stack: Stack) -> Iterator[Stack]:
    """A drainer and one worker that may be restarted as a pool, for all tests; it must survive each of them."""
    if not bare_stack.processes:
        bare_stack.start_drainer()
        bare_stack.start_worker("apps.kinds", "-Q", "celery", env={"BRIDGE_TEST_CONF": '{"worker_pool_restarts": true}'})
    yield bare_stack
    assert bare_stack.processes[1].alive, bare_stack.processes[1].log_tail()
    assert bare_stack.run("kinds.add", 1, 2)["result"] == 3


def only(replies: Any) -> Any:
    """What the one worker said."""
    (reply,) = replies if isinstance(replies, list) else [replies]
    (said,) = reply.values()
    return said


def test_inspect_tells_what_a_worker_runs_and_holds(stack: Stack, joined: Any, tmp_path: Path) -> None:
    held = [Held(joined, folder) for name in ("one", "two") if (folder := tmp_path / name).mkdir() is None]
    waiting = joined.send_task("kinds.add", (1, 2))
    wait_until(lambda: f"{waiting.id}] received" in stack.processes[1].log_text(), 30, "the message received")
    inspect = joined.control.inspect(timeout=5, limit=1)
    assert {request["id"] for request in only(inspect.active())} == {task.id for task in held}
    assert [request["id"] for request in only(inspect.reserved())] == [waiting.id]
    assert only(inspect.query_task(held[0].id))[held[0].id][0] == "active"
    assert only(inspect.scheduled()) == [], "rows hold what is due later"
    for task in held:
        task.go.touch()
    assert waiting.get(timeout=30) == 3


@pytest.mark.usefixtures("stack")
def test_inspect_tells_about_the_worker(joined: Any) -> None:
    inspect = joined.control.inspect(timeout=5, limit=1)
    assert only(inspect.ping()) == {"ok": "pong"}
    assert "kinds.add" in only(inspect.registered())
    assert [queue["name"] for queue in only(inspect.active_queues())] == ["celery"]
    assert only(inspect.conf())["result_backend"] == "bridge://"
    stats = only(inspect.stats())
    assert (len(stats["pool"]["processes"]), stats["total"].get("kinds.add", 0) >= 0) == (2, True)
    joined.control.revoke("never-there")
    wait_until(lambda: "never-there" in only(inspect.revoked()), 20, "the revoke remembered")


def test_the_pool_grows_and_shrinks_and_restarts_under_rows(stack: Stack, joined: Any) -> None:
    def processes() -> set[int]:
        return set(only(joined.control.inspect(timeout=5, limit=1).stats())["pool"]["processes"])

    assert "ok" in only(joined.control.pool_grow(1, reply=True, limit=1, timeout=5))
    wait_until(lambda: len(processes()) == 3, 30, "three processes")
    assert "ok" in only(joined.control.pool_shrink(1, reply=True, limit=1, timeout=5))
    wait_until(lambda: len(processes()) == 2, 30, "two processes")
    assert "ok" in only(joined.control.pool_restart(reply=True, limit=1, timeout=5))
    assert [stack.run("kinds.add", n, n)["result"] for n in range(4)] == [0, 2, 4, 6]


def test_limits_are_set_from_afar(stack: Stack, joined: Any) -> None:
    control, once = joined.control, {"reply": True, "limit": 1, "timeout": 5}
    assert "ok" in only(control.rate_limit("kinds.echo", "1/h", **once))
    assert joined.send_task("kinds.echo").get(timeout=30) == {"args": [], "kwargs": {}}
    limited = joined.send_task("kinds.echo")
    wait_until(lambda: f"{limited.id}] received" in stack.processes[1].log_text(), 30, "the message received")
    assert stack.job(limited.id)["status"] == "published"
    limited.revoke()
    assert "ok" in only(control.rate_limit("kinds.echo", 0, **once))
    assert joined.send_task("kinds.echo").get(timeout=30) == {"args": [], "kwargs": {}}
    assert stack.job(limited.id)["status"] == "cancelled"
    assert "ok" in only(control.time_limit("kinds.sleep", hard=1, soft=None, **once))
    assert stack.run("kinds.sleep", 0)["status"] == "succeeded"


def test_a_worker_is_told_to_consume_another_queue_and_to_leave_it(stack: Stack, joined: Any) -> None:
    once = {"reply": True, "limit": 1, "timeout": 5}
    assert "ok" in only(joined.control.add_consumer("another", **once))
    assert joined.send_task("kinds.add", (1, 2), queue="another").get(timeout=30) == 3
    assert "ok" in only(joined.control.cancel_consumer("another", **once))
    wait_until(lambda: "Canceling queue another" in stack.processes[1].log_text(), 20)
    assert only(joined.control.enable_events(**once))["ok"].startswith("task events")
    waiting = joined.send_task("kinds.add", (1, 2), queue="another")
    assert stack.wait(waiting.id, "published")["status"] == "published"


def test_autoscale_is_refused_without_it_and_a_wrong_command_does_no_harm(stack: Stack, joined: Any) -> None:
    assert "Autoscale not enabled" in only(joined.control.autoscale(3, 1, reply=True, limit=1, timeout=5))["error"]
    joined.control.broadcast("no_such_command")
    assert stack.run("kinds.add", 2, 2)["result"] == 4


def test_a_worker_is_shut_down_from_afar_and_what_it_held_runs_elsewhere(stack: Stack, joined: Any, tmp_path: Path) -> None:
    leaving = stack.start_worker("apps.kinds", "-Q", "leaving", "--concurrency=1")
    running = Held(joined, tmp_path, queue="leaving")
    waiting = joined.send_task("kinds.add", (1, 2), queue="leaving")
    wait_until(lambda: f"{waiting.id}] received" in leaving.log_text(), 30, "the message received")
    stack.processes.remove(leaving)
    other = stack.start_worker("apps.kinds", "-Q", "leaving", "--concurrency=1")
    stack.processes.remove(other)
    name = next(word for word in leaving.command if "@%h" in word).partition("@")[0]
    (full,) = [worker for worker in joined.control.inspect(timeout=5).ping() if worker.startswith(f"{name}@")]
    joined.control.shutdown(destination=[full])
    assert waiting.get(timeout=15) == 3, "while the first still runs its task"
    assert leaving.alive
    running.go.touch()
    assert leaving.wait(60) == 0
    assert stack.job(running.id)["status"] == "succeeded"
    other.stop()


def test_a_pool_of_threads_cannot_stop_a_task_and_still_runs_rows_after_a_reload(stack: Stack, joined: Any, tmp_path: Path) -> None:
    env = {"BRIDGE_TEST_CONF": '{"worker_pool_restarts": true}'}
    threads = stack.start_worker("apps.kinds", "-Q", "threads", pool="threads", env=env)
    stack.processes.remove(threads)
    running = Held(joined, tmp_path, queue="threads")
    assert stack.sql.execute("select bridge.cancel(%s)", (running.id,)).fetchone() == ("running",)
    wait_until(lambda: "cannot stop a running task" in threads.log_text(), 30, "the worker to hear of it")
    running.go.touch()
    assert running.result.get(timeout=30) == "held"
    joined.control.pool_restart()
    remote = "New rate limit for tasks of type kinds.quiet"  # what is asked after the reload is answered after it
    joined.control.rate_limit("kinds.quiet", "100/s")
    wait_until(lambda: remote in threads.log_text(), 30, "the reload")
    assert joined.send_task("kinds.add", (1, 2), queue="threads").get(timeout=30) == 3
    threads.stop()
