"""Workers and drainers whose clocks are wrong: what is due, late, expired or dead is judged by the clock of Postgres."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from apps.ledger import TABLE
from fix_clock import SHIFT, shifted
from fix_doctor import Doctor
from fix_effort import EFFORT
from fix_servers import drainer_reports, wait_for_value, wait_until

from bridge.doctor.finding import Grade

if TYPE_CHECKING:
    from pathlib import Path

    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ahead", [SHIFT, -SHIFT] if EFFORT > 1 else [SHIFT])
def test_jobs_run_in_their_time_whatever_the_clocks_of_workers_and_drainers_say(
    db: Session, drainer: StartDrainer, worker: StartWorker, tmp_path: Path, ahead: int
) -> None:
    db.do(TABLE)
    runner = worker("apps.ledger", env=shifted(ahead, tmp_path), ready=False)
    mover = drainer(env=shifted(-ahead, tmp_path), ready=False)
    mover.wait_ready(lambda: drainer_reports(mover), 60.0)
    runner.wait_ready(lambda: " ready." in runner.log_text(), 60.0)
    now = db.one("select clock_timestamp()")
    mortal = [db.enqueue("ledger.work", args=[n, 0.05], expires_at=now + timedelta(seconds=SHIFT / 2)) for n in range(5)]
    late = db.enqueue("ledger.work", args=[1, 0.05], delay="1 second")
    never = db.enqueue("ledger.work", args=[2, 0.05], delay="1 hour")
    over = db.enqueue("ledger.work", args=[3, 0.05], expires_at=now + timedelta(seconds=12), delay="10 seconds", queue="nobody")
    for identity in [*mortal, late]:
        wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="succeeded", timeout=60)
    assert db.one("select started_at >= run_at from bridge.jobs where id = %s", late)
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (over,), value="expired", timeout=60)
    assert db.status(never) == "scheduled"
    assert db.one("select count(*) from bridge.attempt") == 0, "nobody was taken for dead"
    skew = "select array_agg(round(extract(epoch from clock_skew) / 60)::integer order by clock_skew) from"
    both = f"{skew} (select clock_skew from bridge.workers union all select clock_skew from bridge.drainers) p"
    wait_until(lambda: db.one(both) == [-10, 10], 30, "both to report")
    assert Doctor(db.dsn).look("clocks").status is Grade.WARNING
