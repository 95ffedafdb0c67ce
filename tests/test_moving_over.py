"""A fleet moves to the bridge and back while it works, in either order: nothing is lost, nothing runs twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fix_doctor import Doctor
from fix_moving import JOINED, PLAIN, end
from fix_servers import wait_for_row, wait_for_value, wait_until
from invariants import assert_sound

from bridge.doctor import Grade

if TYPE_CHECKING:
    from pathlib import Path

    from fix_moving import Fleet
    from fix_rabbitmq import Vhost
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session

UNFINISHED = "select count(*) from bridge.jobs where finished_at is null"
TAKEN = "select count(*) from bridge.unreported_jobs"


@pytest.mark.timeout(400)
def test_a_fleet_moves_over_and_back_while_it_works(fleet: Fleet, dsn: str, drainer: StartDrainer) -> None:
    drainer()
    worker, producer = fleet.worker(PLAIN), fleet.producer(PLAIN)
    fleet.wait_for_more(20)
    worker = fleet.exchange(worker, fleet.worker(JOINED))
    fleet.wait_for_more(20)
    assert fleet.one("select count(*) from bridge.jobs") == 0, "messages from before run as before"
    producer = fleet.exchange(producer, fleet.producer(JOINED))
    fleet.wait_for_more(40)

    producer = fleet.exchange(producer, fleet.producer(PLAIN))
    wait_for_value(dsn, UNFINISHED, value=0, timeout=60)
    fleet.exchange(worker, fleet.worker(PLAIN))
    fleet.wait_for_more(20)
    end(producer)
    fleet.wait_for_all()

    fleet.assert_each_ran_once()
    rows = fleet.one("select count(*) from bridge.jobs where status = 'succeeded' and result::text::int = 2 * (args->>0)::int")
    assert rows == fleet.one("select count(*) from bridge.jobs") == fleet.one("select count(*) from moves where joined and event = 'end'")
    assert rows >= 20
    assert_sound(dsn)


@pytest.mark.timeout(400)
def test_jobs_that_a_forgotten_worker_took_run_once_and_are_named_until_somebody_settles_them(
    fleet: Fleet, dsn: str, redis_url: str, drainer: StartDrainer
) -> None:
    # A window that is full of what nobody reports would stop the queue; a grace that is short gives every chance to run twice.
    fleet.sql.execute("update bridge.setting set value = '10' where name in ('window')")
    fleet.sql.execute("update bridge.setting set value = '1' where name in ('republish_grace')")
    doctor = Doctor(dsn, redis_url)
    drainer()
    forgotten, producer = fleet.worker(PLAIN), fleet.producer(JOINED)
    fleet.wait_for_more(40)
    wait_for_row(dsn, f"{TAKEN} having count(*) > 10", timeout=60)
    named = doctor.wait("plugin", Grade.ERROR)
    assert fleet.one("select taken_by[1] from bridge.unreported_jobs") in named.found
    assert "are unreported" in named.found
    assert "settle_unreported" in named.remedy

    joined = fleet.worker(JOINED)
    fleet.wait_for_more(40)
    end(forgotten)
    fleet.wait_for_more(20)
    end(producer)
    fleet.wait_for_all()
    by_forgotten = fleet.one("select count(*) from moves where not joined and event = 'end'")
    wait_for_value(dsn, TAKEN, value=by_forgotten, timeout=60)
    wait_for_value(dsn, UNFINISHED, value=by_forgotten, timeout=60)
    assert "no worker is without the plugin now" in doctor.look("plugin").found
    assert joined.alive

    fleet.sql.execute("select bridge.settle_unreported(ran => true)")
    assert fleet.one("select count(*) from bridge.jobs where status <> 'succeeded'") == 0
    assert doctor.look("plugin").status is Grade.OK
    fleet.assert_each_ran_once()
    assert_sound(dsn)


def test_a_job_that_a_forgotten_worker_took_from_rabbitmq_runs_again_only_when_somebody_says_so(
    db: Session, vhost: Vhost, drainer: StartDrainer, worker: StartWorker, tmp_path: Path
) -> None:
    db.do("update bridge.setting set value = '1' where name = 'republish_grace'")
    drainer(broker_url=vhost.url)
    worker("apps.plain", broker_url=vhost.url)
    marks = tmp_path / "marks"
    db.enqueue("plain.mark", args=[str(marks)], queue="zero")
    wait_for_row(db.dsn, "select 1 from bridge.unreported_jobs", timeout=60)
    assert marks.read_text() == "run\n"
    assert db.one("select bridge.settle_unreported(ran => false)") == 1
    wait_until(lambda: marks.read_text() == "run\nrun\n", 30, "the second run")


def test_a_job_that_a_joined_worker_let_fall_before_its_first_report_runs_elsewhere(
    db: Session, drainer: StartDrainer, worker: StartWorker
) -> None:
    db.do("update bridge.setting set value = '1' where name = 'republish_grace'")
    drainer()
    # It can reach the broker, and not Postgres: it starts nothing, and nobody has ever heard of it.
    lost = worker("apps.kinds", env={"BRIDGE_DATABASE_URL": "postgresql://127.0.0.1:1/nowhere", "BRIDGE_START_PATIENCE": "0.1"})
    job = db.enqueue("kinds.add", args=[1, 2])
    wait_until(lambda: "handed back" in lost.log_text(), 60, "the job to be handed back")
    end(lost)
    worker("apps.kinds")
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (job,), value="succeeded", timeout=60)
