"""The primary killed and its standby promoted while jobs run: what a synchronous one keeps, and what an asynchronous one never had."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from apps.ledger import TABLE
from fix_doctor import Doctor
from fix_servers import drainer_reports, wait_for_row, wait_until
from fix_sql import Session
from invariants import assert_sound

from bridge.doctor.finding import Grade

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from fix_servers import StartDrainer, StartWorker
    from fix_standby import Replicated

    from bridge.local.process import Process

# Recovery within seconds, so that a test sees it.
QUICK = {"heartbeat": 1, "worker_lost": 6, "publish_lease": 3, "republish_grace": 1, "max_losses": 20}
GRACE = timedelta(seconds=2)  # what was started on the old primary may write its first line a moment later
ENDED = "select count(*) from bridge.jobs where finished_at is null"
STARTED_TWICE = "select count(*) from (select from ledger where event = 'start' group by run having count(*) > 1) twice"


@dataclass
class Failover:
    """Two servers with a drainer and a worker; the ledger is on a third, which nothing happens to."""

    servers: Replicated
    ledger: Session
    drainer: Process
    worker: Process
    jobs: list[UUID] = field(default_factory=list)

    def primary(self) -> Session:
        """A session with whichever server takes writes."""
        return Session(self.servers.dsn)

    def work(self, count: int, seconds: float = 0.02) -> list[UUID]:
        """Enqueue so many jobs, each in a transaction of its own."""
        db = self.primary()
        made = [db.enqueue("ledger.work", args=[number, seconds]) for number in range(count)]
        db.connection.close()
        self.jobs += made
        return made

    def wait_for_ends(self, count: int) -> None:
        wait_until(lambda: self.ledger.one("select count(*) from ledger where event = 'end'") >= count, 120, f"{count} ended runs")

    def wait_for_all(self) -> Session:
        """Every job that the new primary knows has ended; a session with it."""
        db = self.primary()
        wait_until(lambda: db.one(ENDED) == 0, 150, "every job to end")
        return db

    def check(self, db: Session) -> None:
        """What must hold whatever was lost."""
        assert_sound(self.servers.standby.dsn)
        assert self.ledger.one(STARTED_TWICE) == 0
        assert db.rows("select status, count(*) from bridge.jobs where status <> 'succeeded' group by status") == []
        wrong = "select id from bridge.jobs where task = 'ledger.work' and result::text::int is distinct from 2 * (args->>0)::int"
        assert db.rows(wrong) == []
        # Every attempt in the history is one of this very job.
        owners = dict(self.ledger.rows("select distinct run, task_id from ledger"))
        strangers = [
            row for row in db.rows("select id, run, outcome from bridge.attempts") if owners.get(row[1], str(row[0])) != str(row[0])
        ]
        assert strangers == []


@pytest.fixture
def failover(replicated: Replicated, dsn: str, drainer: StartDrainer, worker: StartWorker, redis_url: str) -> Failover:
    ledger = Session(dsn)
    ledger.do(TABLE)
    first = Session(replicated.primary.dsn)
    for name, value in QUICK.items():
        first.do("update bridge.setting set value = %s where name = %s", str(value), name)
    first.connection.close()
    env = {"LEDGER_DATABASE_URL": dsn}
    runner = worker("apps.ledger", env=env, dsn=replicated.dsn, broker_url=redis_url, ready=False)
    mover = drainer(dsn=replicated.dsn, broker_url=redis_url, ready=False)
    mover.wait_ready(lambda: drainer_reports(mover), 60.0)
    runner.wait_ready(lambda: " ready." in runner.log_text(), 60.0)
    return Failover(replicated, ledger, mover, runner)


@pytest.mark.timeout(400)
def test_a_synchronous_standby_has_every_job_and_an_asynchronous_one_all_that_it_had_received(failover: Failover, tmp_path: Path) -> None:
    lose_nothing(failover)
    failover.servers.follow()
    lose_the_tail(failover, tmp_path)
    name_two_primaries(failover)
    assert failover.drainer.alive
    assert failover.worker.alive
    log = failover.worker.log_text()
    assert log.count("Traceback (most") == log.count("raised unexpected: ForgottenError") == 1


def lose_nothing(failover: Failover) -> None:
    """The standby has confirmed every commit that a client was told of."""
    failover.servers.replicate(synchronous=True)
    failover.work(150)
    failover.wait_for_ends(50)
    failover.servers.primary.kill()
    failover.servers.promote()
    failover.work(30)
    db = failover.wait_for_all()
    assert {row[0] for row in db.rows("select id from bridge.jobs")} == set(failover.jobs)
    failover.check(db)
    again = failover.ledger.rows("select task_id from ledger where event = 'start' group by task_id having count(*) > 1")
    assert len(again) <= 8, "only what was in hand may have run twice: two that ran, and what a worker had taken"


def name_two_primaries(failover: Failover) -> None:
    """The one that was replaced is started again as it was: it takes writes that nobody else will ever see."""
    failover.servers.primary.start()
    found = Doctor(failover.servers.dsn).look("database")
    assert found.status is Grade.ERROR
    assert "both take writes" in found.found
    failover.servers.primary.kill()


def lose_the_tail(failover: Failover, folder: Path) -> None:
    """The standby has not heard of the last jobs, nor of the last starts, ends and completions of others."""
    failover.servers.replicate(synchronous=False)
    old = failover.primary()
    old.do("create table effect (run uuid not null)")
    go, first, then = (folder / name for name in ("go", "first", "then"))
    completing = old.enqueue("ledger.complete", args=[str(first), str(then)], priority=9)
    failover.work(80)
    failover.wait_for_ends(200)
    noted = "select 1 from ledger where task_id = %s and event = %s"
    wait_for_row(failover.ledger.dsn, noted, (str(completing), "start"), timeout=60)
    failover.jobs.append(completing)
    kept = list(failover.jobs)
    failover.servers.cut()
    tail = failover.work(45)
    holding = old.enqueue("ledger.hold", args=[str(go)])
    tail += [holding, *failover.work(80)]
    failover.wait_for_ends(240)
    numbers = {row[0] for row in old.rows("select seq from bridge.job where id = any(%s)", tail)}
    wait_for_row(failover.ledger.dsn, noted, (str(holding), "start"), timeout=60)
    first.touch()
    wait_for_row(failover.ledger.dsn, noted, (str(completing), "completed"), timeout=60)
    wait_until(lambda: old.one("select count(*) from bridge.jobs where id = any(%s) and status = 'published'", tail), 60, "lost messages")
    old.connection.close()
    failover.servers.primary.kill()
    before = failover.ledger.one("select clock_timestamp()")
    failover.servers.promote()
    then.touch()

    # The numbers of lost jobs are given again while a run of one of them goes on.
    fresh = failover.work(60)
    db = failover.primary()
    again = {row[0] for row in db.rows("select seq from bridge.job union select seq from bridge.finished")} & numbers
    assert again, "no number was given twice"
    wait_until(lambda: db.one("select count(*) from bridge.finished where id = any(%s)", fresh) > 20, 90, "new jobs to end")
    go.touch()
    wait_for_row(failover.ledger.dsn, noted, (str(holding), "end"), timeout=60)
    db = failover.wait_for_all()
    there = {row[0] for row in db.rows("select id from bridge.jobs")}
    assert {*kept, *fresh} <= there
    assert there <= set(failover.jobs)
    assert holding not in there
    failover.check(db)
    runs = "select count(distinct run) from ledger where task_id = %s"
    assert failover.ledger.one(runs, str(completing)) == 2, "a forgotten completion is no success"
    assert db.rows("select run from effect") == db.rows("select run from bridge.finished where id = %s", completing)
    late = failover.ledger.rows("select task_id from ledger where event = 'start' and at > %s", before + GRACE)
    assert {row[0] for row in late} <= {str(identity) for identity in there}, "messages of jobs that are not there start nothing"
