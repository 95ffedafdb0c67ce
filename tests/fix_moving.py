"""A fleet that moves over, and back: producers and workers of one application, each with or without the bridge."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from apps.moving import TABLE
from fix_servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_servers import Launcher, StartWorker

    from bridge.local.process import Process

JOINED, PLAIN = {"CELERY_LOADER": "bridge.loader.Loader"}, {"CELERY_LOADER": ""}
ENDED = "select count(*) from moves where event = 'end'"


@dataclass
class Fleet:
    """What is there before and after each step, and what the application's own table says."""

    launcher: Launcher
    start_worker: StartWorker
    sql: psycopg.Connection[Any]
    producers: list[Process] = field(default_factory=list)

    def producer(self, env: dict[str, str], pause: float = 0.05) -> Process:
        """Start to call tasks, and return when the first call is made."""
        process = self.launcher.start("producer", [sys.executable, "-m", "apps.moving", str(pause)], env)
        self.producers.append(process)
        process.wait_ready(lambda: len(process.log_text().split()) > 0, 60)
        return process

    def worker(self, env: dict[str, str]) -> Process:
        """Start a worker and return when it takes tasks."""
        return self.start_worker("apps.moving", env=env)

    def exchange(self, old: Process, new: Process) -> Process:
        """Deploy: the new one is there, the old one ends as it likes."""
        assert new.alive
        end(old)
        return new

    def one(self, query: str, *params: Any) -> Any:
        row = self.sql.execute(query.encode(), params).fetchone()
        return row and row[0]

    def wait_for_more(self, number: int) -> None:
        """Wait until so many more runs have ended."""
        goal = self.one(ENDED) + number
        wait_until(lambda: self.one(ENDED) >= goal, 90, f"{goal} ended runs")

    def called(self) -> set[str]:
        """The ids of all calls."""
        return {word for process in self.producers for word in process.log_text().split()}

    def runs(self) -> dict[str, tuple[int, int]]:
        """How often each task has started and ended."""
        query = "select task_id, count(*) filter (where event = 'start'), count(*) filter (where event = 'end') from moves group by 1"
        return {task: (starts, ends) for task, starts, ends in self.sql.execute(query)}

    def wait_for_all(self) -> None:
        """Wait until every call has run to its end."""
        called = self.called()
        wait_until(lambda: called <= {task for task, (_, ends) in self.runs().items() if ends}, 90, "every call to have run")

    def assert_each_ran_once(self) -> None:
        assert self.runs() == dict.fromkeys(self.called(), (1, 1))


def end(process: Process) -> None:
    """End it politely, as a deployment does; it has a minute."""
    process.ask_to_stop()
    process.wait(60)


@pytest.fixture
def fleet(launcher: Launcher, worker: StartWorker, dsn: str) -> Iterator[Fleet]:
    """Starts the parts of a fleet on the servers of this test."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TABLE)
        yield Fleet(launcher, worker, connection)
