"""Celery's own beat beside the bridge: its tasks are rows; and its schedule, once imported, runs without it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from fix_servers import wait_for_row, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from fix_servers import Launcher, StartDrainer, StartWorker
    from fix_sql import Session

TOLD = "select result from bridge.jobs where task = 'beaten.tell' and status = 'succeeded' and args::jsonb = '[1]'"


def results(db: Session) -> list[Any]:
    return [row[0] for row in db.rows(TOLD)]


def test_what_celery_beat_sends_becomes_rows_that_run(
    db: Session, launcher: Launcher, worker: StartWorker, drainer: StartDrainer, tmp_path: Path
) -> None:
    drainer()
    process = worker("apps.beaten", pool="solo")
    beat = launcher.start("beat", [sys.executable, "-m", "celery", "-A", "apps.beaten", "beat", "-s", str(tmp_path / "beat"), "-l", "INFO"])
    wait_until(lambda: len(results(db)) >= 2, 60, "two runs by celery beat")
    beat.stop()
    process.stop()
    assert results(db)[0] == {"args": [1], "kwargs": {"who": "beat"}}
    # The same by a beat inside of a worker.
    seen = len(results(db))
    worker("apps.beaten", "-B", "-s", str(tmp_path / "embedded"), pool="prefork")
    wait_until(lambda: len(results(db)) >= seen + 2, 60, "two runs by worker -B")


def test_an_imported_schedule_runs_without_beat(db: Session, launcher: Launcher, worker: StartWorker, drainer: StartDrainer) -> None:
    words = ["celery", "-A", "apps.beaten", "bridge", "schedules", "import", "--from-beat"]
    imported = launcher.start("import", [sys.executable, "-m", *words])
    assert imported.wait(60) == 1, "some entries cannot be carried over"
    drainer()
    worker("apps.beaten", pool="solo")
    done = "select 1 from bridge.schedule_runs where schedule = 'every second' and status = 'succeeded' having count(*) >= 3"
    wait_for_row(db.dsn, done, timeout=60)
    query = (
        "select headers->>'bridge_schedule', (headers->>'bridge_slot')::timestamptz = r.slot, j.max_attempts, j.result from bridge.jobs j"
    )
    ran = db.rows(f"{query} join bridge.schedule_runs r on r.job_id = j.id where r.schedule = 'every second' and r.status = 'succeeded'")
    assert {str(row) for row in ran} == {str(("every second", True, 1, {"args": [1], "kwargs": {"who": "beat"}}))}
    assert db.rows("select slot from bridge.schedule_run where schedule = 'every second' group by slot having count(*) > 1") == []
