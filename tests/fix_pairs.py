"""Two drainers and two workers on one database, one of the drainers to be killed while something is in use."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from apps.ledger import TABLE
from fix_servers import drainer_reports, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session

    from bridge.local.process import Process

UNENDED = "select count(*) from bridge.jobs where finished_at is null"
STARTED_TWICE = "select count(*) from (select from ledger where event = 'start' group by run having count(*) > 1) twice"


@dataclass
class Pairs:
    """What runs; `db` sees its rows, the table `ledger` what the tasks of apps.ledger really did."""

    db: Session
    drainers: list[Process]
    workers: list[Process]

    def kill_a_drainer(self) -> None:
        """End one drainer as by a power cut."""
        drainer = self.drainers.pop(0)
        drainer.kill(signal.SIGKILL)
        drainer.wait(10)

    def wait_for_all(self, timeout: float = 90.0) -> None:
        """Wait until every job has ended, and see that no run started twice."""
        wait_until(lambda: self.db.one(UNENDED) == 0, timeout, "every job ended")
        assert self.db.one(STARTED_TWICE) == 0


class StartPairs(Protocol):
    """What the fixture `pairs` gives."""

    def __call__(
        self, app: str = "apps.ledger", *args: str, concurrency: int = 2, queues: str | None = None, env: Mapping[str, str] | None = None
    ) -> Pairs:
        """Start two drainers and two workers of this application."""


@pytest.fixture
def pairs(db: Session, drainer: StartDrainer, worker: StartWorker) -> StartPairs:
    """Two drainers and two workers, with the table `ledger` made for the tasks of apps.ledger."""
    db.do(TABLE)

    def start(
        app: str = "apps.ledger", *args: str, concurrency: int = 2, queues: str | None = None, env: Mapping[str, str] | None = None
    ) -> Pairs:
        # Started together, waited for afterwards: a worker's start is seconds of imports.
        waiting: Any = [worker(app, *args, concurrency=concurrency, queues=queues, env=env, ready=False) for _ in range(2)]
        drainers: Any = [drainer(env=env, ready=False) for _ in range(2)]
        for process in drainers:
            process.wait_ready(lambda process=process: drainer_reports(process), 60.0)
        for process in waiting:
            process.wait_ready(lambda process=process: " ready." in process.log_text(), 60.0)
        return Pairs(db, drainers, waiting)

    return start
