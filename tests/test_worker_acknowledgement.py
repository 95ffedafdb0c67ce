"""What Redis is told about messages that a worker holds: nothing about rows', everything about others."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import psutil
import pytest
import redis
from celery import Celery
from fix_servers import wait_until
from kombu import Connection, Producer, Queue

from bridge.worker.acknowledgement import keep_rows_out_of_redis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack


@pytest.fixture
def stack(bare_stack: Stack) -> Iterator[Stack]:
    bare_stack.start_drainer()
    yield bare_stack
    bare_stack.kill_all()


@pytest.fixture
def broker(stack: Stack) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(stack.broker_url)
    client.flushdb()
    yield client
    client.close()


def worker_of_one(stack: Stack) -> None:
    """A worker that runs one task and holds one more message."""
    stack.start_worker("apps.kinds", "-Q", "celery", "--concurrency=1")


def occupied(stack: Stack, folder: Path) -> tuple[object, Path]:
    """A job that runs until its file is there."""
    started, go = folder / "started", folder / "go"
    job = stack.enqueue("kinds.hold", str(started), str(go))
    wait_until(started.exists, 30)
    return job, go


def received(stack: Stack, task_id: object) -> None:
    """Wait until the worker holds the message; it says so after it has told Redis what it tells."""
    wait_until(lambda: f"[{task_id}] received" in stack.processes[1].log_text(), 30, f"task {task_id} received")


def test_a_rows_message_is_held_by_the_process_alone(stack: Stack, broker: redis.Redis, tmp_path: Path) -> None:
    worker_of_one(stack)
    running, go = occupied(stack, tmp_path)
    waiting = stack.enqueue("kinds.add", 1, 2)
    received(stack, waiting)
    assert (broker.llen("celery"), broker.hlen("unacked"), broker.zcard("unacked_index")) == (0, 0, 0)
    go.touch()
    assert [stack.wait(job)["status"] for job in (running, waiting)] == ["succeeded", "succeeded"]


def test_a_message_that_is_no_row_is_acknowledged_as_ever(stack: Stack, broker: redis.Redis, tmp_path: Path) -> None:
    worker_of_one(stack)
    running, go = occupied(stack, tmp_path)
    plain = Celery("plain", broker=stack.broker_url)
    mark = tmp_path / "mark"
    sent = plain.send_task("kinds.hold", (str(mark), str(go)), ignore_result=True)
    received(stack, sent.id)
    assert (broker.llen("celery"), broker.hlen("unacked"), broker.zcard("unacked_index")) == (0, 1, 1)
    go.touch()
    assert stack.wait(running)["status"] == "succeeded"
    wait_until(lambda: mark.exists() and broker.hlen("unacked") == 0, 30, "the other message acknowledged")
    plain.close()


def test_what_a_stopping_worker_holds_runs_elsewhere_uncharged(stack: Stack, broker: redis.Redis, tmp_path: Path) -> None:
    worker_of_one(stack)
    running, go = occupied(stack, tmp_path)
    waiting = stack.enqueue("kinds.add", 1, 2)
    received(stack, waiting)
    first = stack.processes[1]
    first.ask_to_stop()
    go.touch()
    assert stack.wait(running)["status"] == "succeeded"
    wait_until(lambda: not first.alive, 30, "the worker has stopped")
    assert broker.hlen("unacked") == 0
    worker_of_one(stack)
    job = stack.wait(waiting, timeout=30)
    assert (job["status"], job["attempts"], job["losses"]) == ("succeeded", 1, 0)


def test_a_worker_waits_for_a_redis_that_is_full_and_leaves_no_connection_open(stack: Stack, broker: redis.Redis) -> None:
    def tries(count: int) -> bool:
        return worker.log_text().count("maxmemory") >= count or not worker.alive

    broker.config_set("maxmemory", "1")
    try:
        worker = stack.start("worker", "-m", "celery", "-A", "apps.kinds", "worker", "--concurrency=1", "--loglevel=INFO")
        wait_until(lambda: tries(3), 90, "Redis to say that it is full")
        before = psutil.Process(worker.pid).num_fds()
        wait_until(lambda: tries(23), 90, "twenty more tries")
        assert psutil.Process(worker.pid).num_fds() < before + 10
    finally:
        broker.config_set("maxmemory", "0")
    wait_until(lambda: " ready." in worker.log_text() or not worker.alive, 90, "the worker to be ready")
    assert worker.alive, worker.log_text()


def test_a_message_held_on_a_connection_that_is_gone_does_not_hold_up_its_end(broker: redis.Redis, stack: Stack) -> None:
    connection = Connection(stack.broker_url)
    channel = connection.default_channel
    keep_rows_out_of_redis(channel)
    queue = Queue("held", channel=channel)
    queue.declare()
    Producer(channel).publish({}, routing_key="held", headers={"bridge": f"7:{uuid.uuid4()}"})
    assert queue.get() is not None
    connection._do_close_transport()  # as Celery's `collect` does after a call on a broken connection has failed
    channel.close()
    broker.delete("held")
