"""One database, Redis, drainer and worker for all tests of a module: starting a worker takes longer than most of what they ask.

A test that breaks something asks for servers of its own, from fix_servers.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import ROOT, drainer_reports, missing, wait_until
from psycopg.rows import dict_row

from bridge.local import broker as local_broker
from bridge.local.broker import RedisServer, find_redis, free_port
from bridge.local.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from bridge.testing.databases import Databases

FINAL = {"succeeded", "failed", "cancelled", "expired"}


@dataclass
class Stack:
    """Servers and processes that tests of one module share; each test makes jobs of its own."""

    dsn: str
    broker_url: str
    folder: Path
    pool: str = "prefork"
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sql = psycopg.connect(self.dsn, autocommit=True)

    def start(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> Process:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        ours = {"BRIDGE_DATABASE_URL": self.dsn, "BRIDGE_BROKER_URL": self.broker_url, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        log = self.folder / f"{name}-{len(self.processes)}.log"
        process = Process(
            name, [sys.executable, *command], log=log, env={**os.environ, **ours, **(env or {})}, cwd=ROOT, death_signal=signal.SIGKILL
        )
        process.start()
        self.processes.append(process)
        return process

    def start_drainer(self) -> Process:
        process = self.start("drainer", "-m", "bridge", "drain")
        process.wait_ready(lambda: drainer_reports(process), 30.0)
        return process

    def start_worker(self, app: str, *words: str, pool: str | None = None, env: Mapping[str, str] | None = None) -> Process:
        command = ["-m", "celery", "-A", app, "worker", f"--pool={pool or self.pool}", "--concurrency=2", "--loglevel=INFO"]
        process = self.start("worker", *command, "-n", f"w{secrets.token_hex(3)}@%h", *words, env=env)
        process.wait_ready(lambda: " ready." in process.log_text(), 60.0)
        return process

    def enqueue(self, task: str, *args: Any, kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
        """Call bridge.enqueue by SQL; options are its other arguments."""
        named = {"task": task, "args": json.dumps(args), "kwargs": json.dumps(kwargs or {}), **options}
        casts = {"args": "jsonb", "kwargs": "jsonb", "backoff": "jsonb", "headers": "jsonb", "delay": "interval", "timeout": "interval"}
        call = ", ".join(f"{name} => %({name})s" + (f"::{casts[name]}" if name in casts else "") for name in named)
        row = self.sql.execute(f"select bridge.enqueue({call})".encode(), named).fetchone()
        return row and row[0]

    def job(self, identity: Any) -> dict[str, Any]:
        with self.sql.cursor(row_factory=dict_row) as cursor:
            return cursor.execute("select * from bridge.jobs where id = %s", (identity,)).fetchone() or {}

    def wait(self, identity: Any, *statuses: str, timeout: float = 60.0) -> dict[str, Any]:
        """The job, once its status is one of these; without any, once it has ended."""

        def there() -> dict[str, Any]:
            job = self.job(identity)
            return job if job.get("status") in (statuses or FINAL) else {}

        return wait_until(there, timeout, f"job {identity} {statuses or 'ended'}")

    def run(self, task: str, *args: Any, **options: Any) -> dict[str, Any]:
        """Enqueue a job and wait for its end."""
        return self.wait(self.enqueue(task, *args, **options))

    def attempts(self, identity: Any) -> list[tuple[int, str]]:
        rows = self.sql.execute("select attempt, outcome from bridge.attempts where id = %s order by started_at, ended_at", (identity,))
        return [(row[0], row[1]) for row in rows]

    def kill_all(self) -> None:
        for process in reversed(self.processes):
            process.kill(signal.SIGKILL)
            process.stop()
        self.processes.clear()


@pytest.fixture(scope="module")
def bare_stack(databases: Databases, template: str, server_folder: Path) -> Iterator[Stack]:
    """A database with our schema and a Redis; no process of ours yet."""
    program = find_redis()
    if program is None:
        missing("redis-server", local_broker.HOW_TO_GET_IT)
    folder = server_folder / f"stack-{secrets.token_hex(3)}"
    server = RedisServer(folder, port=free_port(), program=program).start()
    name = databases.create(template)
    stack = Stack(databases.server.dsn_of(name), server.url, folder)
    yield stack
    stack.kill_all()
    stack.sql.close()
    server.stop()
    databases.drop(name)
    shutil.rmtree(folder, ignore_errors=True)
