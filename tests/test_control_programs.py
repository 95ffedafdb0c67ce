"""Celery's own programs and the worker's options, with jobs that are rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from fix_control import Held
from fix_servers import ROOT, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack


def celery(stack: Stack, *words: str) -> str:
    """Run `celery -A apps.kinds …`, which must succeed, and give what it printed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    ours = {"BRIDGE_DATABASE_URL": stack.dsn, "BRIDGE_BROKER_URL": stack.broker_url, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "apps.kinds", *words],
        env={**os.environ, **ours}, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def stack(bare_stack: Stack) -> Iterator[Stack]:
    """A drainer; workers are the test's own."""
    if not bare_stack.processes:
        bare_stack.start_drainer()
    yield bare_stack
    while len(bare_stack.processes) > 1:
        bare_stack.processes.pop().stop()


def test_celery_result_and_celery_events_tell_of_a_job(stack: Stack, joined: Any) -> None:
    stack.start_worker("apps.kinds", "-Q", "celery", "-E")
    dump = stack.start("events", "-m", "celery", "-A", "apps.kinds", "events", "--dump")
    wait_until(lambda: " heartbeat" in dump.log_text(), 30, "the dump to hear the worker")
    result = joined.send_task("kinds.add", (20, 22))
    assert result.get(timeout=30) == 42
    assert celery(stack, "result", result.id).strip() == "42"
    wait_until(lambda: "task succeeded: kinds.add" in dump.log_text(), 30, "the event")
    failed = joined.send_task("kinds.fail", ("broken",))
    stack.wait(failed.id, "failed")
    assert "ValueError" in celery(stack, "result", "--traceback", failed.id)


def test_a_worker_with_beat_and_autoscale_and_children_that_end_runs_rows(stack: Stack, joined: Any, tmp_path: Path) -> None:
    every_second = {"often": {"task": "kinds.add", "schedule": 1.0, "args": [1, 2]}}
    words = ["-B", "-s", str(tmp_path / "beat"), "--autoscale=3,1", "--max-tasks-per-child=2"]
    env = {"BRIDGE_TEST_CONF": json.dumps({"beat_schedule": every_second})}
    stack.start_worker("apps.kinds", "-Q", "celery", *words, env=env)
    count = "select count(*) from bridge.jobs where task = 'kinds.add' and status = 'succeeded' and args::text = '[1, 2]'"
    wait_until(lambda: stack.sql.execute(count).fetchone() >= (3,), 60, "three jobs of beat")  # type: ignore[operator]
    at_once = [Held(joined, folder) for n in range(3) if (folder := tmp_path / f"at-once-{n}").mkdir() is None]
    (said,) = (next(iter(reply.values())) for reply in joined.control.autoscale(4, 1, reply=True, limit=1, timeout=5))
    assert said == {"ok": "autoscale now max=4 min=1"}
    for task in at_once:
        task.go.touch()
    pids = [int(task.started.read_text()) for task in at_once]
    for n in range(5):
        job = stack.run("kinds.hold", str(tmp_path / f"after-{n}"), str(at_once[0].go), max_attempts=1)
        assert (job["status"], job["losses"]) == ("succeeded", 0)
        pids.append(int((tmp_path / f"after-{n}").read_text()))
    assert max(Counter(pids).values()) <= 2, "a child ends after two tasks"
    assert stack.sql.execute(
        "select count(*) from bridge.jobs where losses > 0 or (status = 'failed' and task <> 'kinds.fail')"
    ).fetchone() == (0,)


@pytest.fixture
def pidfile(tmp_path: Path) -> Iterator[Path]:
    """Of a detached worker, which does not outlive the test."""
    pidfile = tmp_path / "worker.pid"
    yield pidfile
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        os.kill(int(pidfile.read_text()), signal.SIGKILL)


def test_celery_multi_starts_and_stops_workers_of_rows(stack: Stack, joined: Any, tmp_path: Path, pidfile: Path) -> None:
    node = ["multi", "start", "w1", f"--pidfile={pidfile}", f"--logfile={tmp_path}/worker.log", "-c", "1", "-l", "INFO", "-Q", "multi"]
    celery(stack, *node)
    running = Held(joined, tmp_path, queue="multi")
    held = "select cardinality(holding) from bridge.worker where name like 'w1@%' and stopped_at is null"
    wait_until(lambda: stack.sql.execute(held).fetchone() == (1,), 30, "the worker to report")
    running.go.touch()
    assert running.result.get(timeout=30) == "held"
    celery(stack, "multi", "stopwait", "w1", f"--pidfile={pidfile}", f"--logfile={tmp_path}/worker.log")
    stopped = "select stopped_at is not null from bridge.worker where name like 'w1@%'"
    wait_until(lambda: stack.sql.execute(stopped).fetchone() == (True,), 30, "the worker's good-bye")
    wait_until(lambda: not pidfile.exists(), 30, "the end of the process")
