"""The processes of a stack that are our own or Celery's, and how each one shows that it is ready."""

from __future__ import annotations

import os
import signal
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from bridge.local.process import Process

if TYPE_CHECKING:
    from bridge.local.endpoints import Endpoints

# SIGTERM lets running tasks end; SIGQUIT gives them up, and their rows bring them back.
WORKER_STEPS = ((signal.SIGTERM, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
DRAINER_IS_THERE = "select 1 from bridge.drainer where pid = %s and stopped_at is null and seen_at > now() - interval '1 minute'"


@dataclass(frozen=True, slots=True)
class Programs:
    """Makes the processes that use a database and a broker.

    Attributes:
        endpoints: what they use.
        app: what `celery -A` gets.
        workdir: folder that `app` is imported from.
    """

    endpoints: Endpoints
    app: str
    workdir: Path

    def drainer(self) -> Process:
        """`bridge drain`."""
        return self._process("drainer", ["-m", "bridge", "drain"])

    def worker(self, concurrency: int | None = None, queues: tuple[str, ...] | None = None) -> Process:
        """`celery worker` with so many pool children (None: one a core) on these queues (None: what the application says)."""
        # The only worker of its broker: asking for others costs a second at each start.
        command = ["-m", "celery", "-A", self.app, "worker", "--loglevel=INFO", "--without-mingle", "--without-gossip"]
        command += [] if concurrency is None else [f"--concurrency={concurrency}"]
        command += [] if queues is None else ["-Q", ",".join(queues)]
        process = self._process("worker", command)
        process.stop_steps = WORKER_STEPS
        # Asked politely, it would first try to reach the broker, which dies at the same moment.
        process.death_signal = signal.SIGKILL
        return process

    def flower(self) -> Process:
        """`celery flower` at the port that `endpoints` names."""
        port = (self.endpoints.flower_url or "").rpartition(":")[2]
        return self._process("flower", ["-m", "celery", "-A", self.app, "flower", "--address=127.0.0.1", f"--port={port}"])

    def is_ready(self, process: Process) -> bool:
        """Ask a process of ours whether it is ready: the drainer's row, the worker's own word, Flower's health page."""
        if process.name == "drainer":
            with psycopg.connect(self.endpoints.dsn, connect_timeout=5) as connection:
                return connection.execute(DRAINER_IS_THERE, (process.pid,)).fetchone() is not None
        if process.name == "flower":
            return _responds(f"{self.endpoints.flower_url}/healthcheck")
        return " ready." in process.log_text()

    def _process(self, name: str, arguments: list[str]) -> Process:
        folder = self.endpoints.broker_folder
        path = os.pathsep.join(part for part in (str(self.workdir), os.environ.get("PYTHONPATH")) if part)
        return Process(
            name,
            [sys.executable, *arguments],
            log=Path(self.endpoints.home) / "logs" / f"{name}.log",
            env={**os.environ, **self.endpoints.environment(), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            cwd=self.workdir if folder is None else Path(folder),
        )


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:  # noqa: S310 - a loopback URL of our own
            return bool(answer.status == 200)  # noqa: PLR2004 - HTTP's own word for it
    except (urllib.error.URLError, OSError):
        return False
