"""The whole local stack, run by a process of its own as `bridge up` runs it."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest
from fix_servers import ROOT, missing, wait_for_row, wait_until

from bridge.errors import ServerError
from bridge.local.binaries import find_postgres
from bridge.local.endpoints import Endpoints, running_stack
from bridge.local.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

APP = """
import celery
import bridge

app = celery.Celery("sums", backend="bridge://")
bridge.install(app)

@app.task(name="sums.add")
def add(a, b):
    return a + b
"""

SUPERVISOR = """
import sys
from pathlib import Path
from bridge.local import broker
from bridge.local.stack import Stack

home, workdir, *words = sys.argv[1:]
if "files" in words:
    broker.find_redis = lambda: None
with Stack("sums", home=Path(home), workdir=Path(workdir), concurrency=1, flower="flower" in words) as stack:
    print(stack.start().endpoints.to_json(), flush=True)
    stack.run()
"""


@dataclass
class Running:
    """A supervisor whose stack is ready."""

    supervisor: psutil.Popen
    endpoints: Endpoints

    def below(self) -> list[psutil.Process]:
        return list(self.supervisor.children(recursive=True))

    def program(self, word: str) -> psutil.Process:
        return next(child for child in self.supervisor.children() if word in child.cmdline())


@pytest.fixture
def home(server_folder: Path, request: pytest.FixtureRequest) -> Path:
    """A home folder that does not exist yet."""
    if find_postgres() is None:
        missing("postgres 15 or newer", "apt-get install postgresql-15 postgresql-15-cron")
    return server_folder / f"stack{abs(hash(request.node.nodeid)) % 10**6}"


@pytest.fixture
def run_stack(home: Path, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts a stack in `home`; each call a new supervisor."""
    started: list[psutil.Popen] = []
    (tmp_path / "sums.py").write_text(APP)

    def run(*words: str) -> Running:
        command = [sys.executable, "-c", SUPERVISOR, str(home), str(tmp_path), *words]
        errors = (tmp_path / f"errors-{len(started)}").open("w+")
        child = psutil.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
        started.append(child)
        endpoints = Endpoints.from_json(child.stdout.readline())
        if endpoints is None:
            child.wait(20)
            errors.seek(0)
            pytest.fail(errors.read())
        return Running(child, endpoints)

    yield run
    for child in started:
        if child.is_running():
            child.terminate()
        child.wait(40)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def flower_says(endpoints: Endpoints) -> bytes:
    with urllib.request.urlopen(f"{endpoints.flower_url}/workers?json=1&refresh=1", timeout=20) as answer:  # noqa: S310
        said: bytes = answer.read()
    return said


def adds(endpoints: Endpoints) -> None:
    with psycopg.connect(endpoints.dsn, autocommit=True) as connection:
        row = connection.execute("select bridge.enqueue('sums.add', '[20, 22]')").fetchone()
    assert row
    wait_for_row(endpoints.dsn, "select 1 from bridge.jobs where id = %s and status = 'succeeded' and result::text = '42'", row)


def test_a_job_enqueued_in_sql_is_done_and_sigterm_ends_all_of_it(run_stack: Callable[..., Running]) -> None:
    running = run_stack("flower")
    adds(running.endpoints)
    wait_until(lambda: b"celery@" in flower_says(running.endpoints), what="Flower knows the worker")
    everything = running.below()
    running.supervisor.terminate()
    assert running.supervisor.wait(30) == 0
    assert [one for one in everything if lives(one)] == []


def test_a_killed_supervisor_leaves_no_orphan_and_the_next_start_runs_jobs(run_stack: Callable[..., Running]) -> None:
    first = run_stack()
    everything = first.below()
    assert len(everything) > 4
    first.supervisor.kill()
    first.supervisor.wait()
    second = run_stack()
    wait_until(lambda: not [one for one in everything if lives(one)], what="every process of the first is gone")
    adds(second.endpoints)


def test_a_second_start_reports_the_first(run_stack: Callable[..., Running], home: Path) -> None:
    assert running_stack(home) is None
    first = run_stack()
    with pytest.raises(ServerError, match=f"a stack runs in {home} already \\(pid {first.supervisor.pid}\\)"):
        Stack(home=home).start()
    assert running_stack(home) == first.endpoints
    adds(first.endpoints)


def test_a_child_that_dies_ends_the_stack_with_its_name(run_stack: Callable[..., Running], tmp_path: Path) -> None:
    running = run_stack()
    everything = running.below()
    running.program("drain").kill()
    assert running.supervisor.wait(30) == 1
    assert "drainer ended with status -9" in (tmp_path / "errors-0").read_text()
    assert [one for one in everything if lives(one)] == []


def test_jobs_run_without_any_redis(run_stack: Callable[..., Running]) -> None:
    running = run_stack("files")
    assert running.endpoints.broker_url == "filesystem://"
    adds(running.endpoints)


def test_ctrl_c_in_the_middle_of_a_start_leaves_nothing(home: Path, tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(APP)
    command = [sys.executable, "-c", SUPERVISOR, str(home), str(tmp_path)]
    child = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    socket = home / "postgres/run/.s.PGSQL.5432"
    wait_until(lambda: socket.exists() and child.children(), what="postgres is started")
    everything = child.children(recursive=True)
    child.send_signal(signal.SIGINT)
    child.wait(30)
    assert child.returncode != 0
    assert [one for one in everything if lives(one)] == []
    assert not socket.exists()
