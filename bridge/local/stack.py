"""Everything that one machine needs to run jobs: Postgres, broker, schema, drainer, worker, Flower."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bridge import schema
from bridge.errors import ServerError
from bridge.local.broker import Broker, free_port, start_broker
from bridge.local.endpoints import LOCK, Endpoints
from bridge.local.guard import Guard
from bridge.local.home import FolderLock, open_home, state_home
from bridge.local.postgres import PostgresServer
from bridge.local.programs import Programs

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from bridge.local.process import Process

FLOWER_PORT = 5555
WATCH = 0.5  # seconds between two looks whether every process lives
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ChildDiedError(ServerError):
    """A process of the stack ended by itself; the text carries its status and the end of its log."""


class Stack:
    """The servers and processes of one machine: started in order, stopped in reverse.

    A context manager: whatever ends the block ends them. From `start` to `stop` SIGTERM and SIGHUP act as Ctrl-C does, by
    KeyboardInterrupt. When this process is killed, a guard ends the others, and the next start clears up. Start it from the
    main thread.

    Args:
        app: what `celery -A` gets; None starts servers and drainer only, no worker and no Flower.
        workdir: folder that `app` is imported from; None for the current one.
        home: folder of the state; None for `state_home()`.
        concurrency: pool children of the worker; None leaves it to Celery, one a core.
        queues: what the worker consumes; None leaves it to the application.
        flower: start Flower where it is installed.
        wait_for_flower: take the stack for ready only when Flower is; jobs do not need it.
    """

    def __init__(
        self,
        app: str | None = "tasks",
        *,
        workdir: Path | None = None,
        home: Path | None = None,
        concurrency: int | None = None,
        queues: tuple[str, ...] | None = None,
        flower: bool = True,
        wait_for_flower: bool = True,
    ) -> None:
        self.app = app
        self.workdir = (workdir or Path.cwd()).absolute()
        self.home = (home or state_home()).absolute()
        self.concurrency = concurrency
        self.queues = queues
        self.with_flower = flower and app is not None and importlib.util.find_spec("flower") is not None
        self.wait_for_flower = wait_for_flower
        self._lock = FolderLock(self.home / LOCK)
        self._postgres: PostgresServer | None = None
        self._broker: Broker | None = None
        self._programs: list[Process] = []
        self._guard: Guard | None = None
        self._endpoints: Endpoints | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._asked_to_end = False

    @property
    def endpoints(self) -> Endpoints:
        """Where the running stack is reached.

        Raises:
            ServerError: it is not running.
        """
        if self._endpoints is None:
            raise ServerError(f"the stack in {self.home} is not running")
        return self._endpoints

    @property
    def processes(self) -> list[Process]:
        """What runs now, in the order in which it was started."""
        servers = (self._postgres, self._broker)
        return [server.process for server in servers if server is not None and server.process is not None] + self._programs

    def start(self, tell: Callable[[str], None] = lambda _step: None) -> Self:
        """Start everything and return when all of it is ready.

        Args:
            tell: called with the name of a step before it is done: postgres, broker, schema, processes.

        Raises:
            ServerError: another process runs a stack here, or a part cannot be started; what had started is stopped again.
        """
        (open_home(self.home) / "logs").mkdir(mode=0o700, exist_ok=True)
        if not self._lock.acquire():
            raise ServerError(f"a stack runs in {self.home} already ({self._holder()}): use it, stop it, or set BRIDGE_HOME")
        try:
            self._listen()
            self._start_servers(tell)
            tell("schema")
            schema.install(self.endpoints.dsn)
            tell("processes")
            self._start_programs()
            self._end_if_asked()
        except BaseException:
            self.stop()
            raise
        # Others take the stack for ready when they read this.
        self._lock.write(self.endpoints.to_json())
        return self

    def stop(self) -> None:
        """Stop everything in reverse order; bounded, safe to repeat, and not cut short by a second Ctrl-C."""
        self._ignore_signals()
        # They do not need each other to end; the servers they do need.
        for process in self._programs:
            process.ask_to_stop()
        for process in reversed(self._programs):
            process.stop()
        for server in (self._broker, self._postgres):
            if server is not None:
                server.stop()
        if self._guard is not None:
            self._guard.dismiss()
        self._programs.clear()
        self._guard = self._broker = self._postgres = self._endpoints = None
        self._lock.release()
        self._restore_signals()

    def check(self) -> None:
        """See that every process of the stack is still there.

        Raises:
            ChildDiedError: one is not.
        """
        for process in self.processes:
            if not process.alive:
                raise ChildDiedError(f"{process.name} ended with status {process.returncode}: {process.log_tail()}")

    def run(self) -> None:
        """Watch over the processes; return on Ctrl-C, SIGTERM or SIGHUP.

        Raises:
            ChildDiedError: one of them ended by itself.
        """
        try:
            while True:
                self._end_if_asked()
                self.check()
                time.sleep(WATCH)
        except KeyboardInterrupt:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _start_servers(self, tell: Callable[[str], None]) -> None:
        self._guard = Guard()
        tell("postgres")
        self._postgres = PostgresServer(self.home / "postgres")
        self._guard.watch(self._postgres.start().process, signal.SIGINT)
        tell("broker")
        self._broker = start_broker(self.home / "broker")
        if self._broker.process is not None:
            self._guard.watch(self._broker.process)
        self._endpoints = Endpoints(
            pid=os.getpid(),
            home=str(self.home),
            dsn=self._postgres.dsn,
            broker_url=self._broker.url,
            broker_folder=None if self._broker.folder is None else str(self._broker.folder),
            flower_url=f"http://127.0.0.1:{free_port(FLOWER_PORT)}" if self.with_flower else None,
            postgres=self._postgres.binaries.version,
            cron=self._postgres.binaries.cron,
        )

    def _start_programs(self) -> None:
        programs, guard = Programs(self.endpoints, self.app or "", self.workdir), self._guard
        wanted = [programs.drainer()]
        if self.app is not None:
            wanted.append(programs.worker(self.concurrency, self.queues))
        if self.with_flower:
            wanted.append(programs.flower())
        # All at once, because each spends its first second importing.
        for process in wanted:
            self._programs.append(process)
            process.start()
            if guard is not None:
                guard.watch(process)
        for process in wanted:
            if process.name == "flower" and not self.wait_for_flower:
                continue
            process.wait_ready(lambda asked=process: programs.is_ready(asked), 60.0)  # type: ignore[misc]

    def _holder(self) -> str:
        endpoints = Endpoints.from_json(self._lock.read())
        return self._lock.read() if endpoints is None else f"pid {endpoints.pid}"

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._handlers = {number: signal.getsignal(number) for number in END_SIGNALS}
        for number in END_SIGNALS:
            signal.signal(number, self._interrupt)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        # Python swallows what is raised while it forks: whoever comes by next reads the flag.
        self._asked_to_end = True
        raise KeyboardInterrupt

    def _end_if_asked(self) -> None:
        if self._asked_to_end:
            raise KeyboardInterrupt

    def _ignore_signals(self) -> None:
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
