"""A drainer and workers as real processes, for a test that has to see the whole way of a job."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import ServerError
from bridge.local.broker import start_broker
from bridge.local.process import Process
from bridge.queries import testing
from bridge.queries.connection import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bridge.local.broker import Broker

__all__ = ["ADDRESS", "Workers"]

ADDRESS = "BRIDGE_TEST_BROKER_URL"


class Workers:
    """Starts workers for one database, with a drainer and a broker beside them; ``stop`` ends them all.

    The broker is the one that ``BRIDGE_TEST_BROKER_URL`` names; else a local Redis or Valkey, else a folder of files.

    Args:
        dsn: the database.
        folder: for logs and the local broker; as short as a socket's path has to be.
    """

    def __init__(self, dsn: str, folder: Path) -> None:
        self._dsn = dsn
        self._folder = folder
        self._broker: Broker | None = None
        self._broker_url = os.environ.get(ADDRESS, "")
        self._cwd = Path.cwd()
        self._processes: list[Process] = []

    def __call__(
        self,
        app: str,
        *words: str,
        pool: str = "prefork",
        concurrency: int = 2,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Process:
        """Start ``celery -A app worker``, the first time a drainer too, and return when they report.

        Args:
            app: as Celery's ``-A`` takes it; found where the tests find it.
            words: more of the command line, for example ``"-Q", "mail"``.
            pool: Celery's pool.
            concurrency: tasks at the same time.
            env: more of its environment, for example ``{"CELERY_LOADER": "bridge.loader.Loader"}``.
            timeout: seconds until it must report.

        Returns:
            The worker: ``pid``, ``alive``, ``kill(signal)``, ``stop()``, ``log_text()``.

        Raises:
            ServerError: one of them ends, or does not report in time; with the end of its log.
        """
        if not self._processes:
            self._start_broker()
            self._wait(self._start("drainer", ["bridge", "drain"], {}), testing.drainer_reports, timeout)
        command = ["celery", "-A", app, "worker", f"--pool={pool}", f"--concurrency={concurrency}", "--loglevel=INFO"]
        worker = self._start("worker", [*command, "-n", f"test-{secrets.token_hex(3)}@%h", *words], env or {})
        self._wait(worker, testing.worker_reports, timeout)
        return worker

    def stop(self) -> None:
        """End the workers, then the drainer, then the broker."""
        for process in reversed(self._processes):
            process.stop()
        self._processes.clear()
        if self._broker is not None:
            self._broker.stop()

    def _start_broker(self) -> None:
        if not self._broker_url:
            self._broker = start_broker(self._folder / "broker")
            self._broker_url = self._broker.url
            # Messages in files are found from the folder that a process runs in.
            self._cwd = getattr(self._broker, "folder", None) or self._cwd

    def _start(self, name: str, module: Sequence[str], env: Mapping[str, str]) -> Process:
        log = self._folder / f"{name}-{len(self._processes)}.log"
        process = Process(name, [sys.executable, "-m", *module], log=log, env={**self._environment(), **env}, cwd=self._cwd)
        self._processes.append(process)
        process.start()
        return process

    def _environment(self) -> dict[str, str]:
        ours = {
            "BRIDGE_DATABASE_URL": self._dsn,
            "BRIDGE_BROKER_URL": self._broker_url,
            # Celery lets these two win over what the application has set.
            "CELERY_BROKER_URL": self._broker_url,
            "CELERY_RESULT_BACKEND": "bridge://",
            "PYTHONPATH": os.pathsep.join(str(Path(entry or ".").absolute()) for entry in sys.path),
            "PYTHONUNBUFFERED": "1",
        }
        return {**os.environ, **ours}

    def _wait(self, process: Process, reports: Callable[..., bool], timeout: float) -> None:
        with connect(self._dsn, name="bridge testing") as connection:
            try:
                process.wait_ready(lambda: reports(connection, process.pid), timeout)
            except ServerError as error:
                raise ServerError(str(error), "has its application joined the bridge, by bridge.install or CELERY_LOADER?") from None
