"""The doctor on jobs that do not move, and on what makes Postgres slow or full for them."""

from __future__ import annotations

import re
import secrets
import shutil
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_doctor import Doctor, execute
from fix_servers import FAST, wait_for_value
from psycopg.types.json import Jsonb

from bridge import schema
from bridge.doctor import Grade
from bridge.local.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_servers import StartDrainer, StartWorker


def enqueue(dsn: str, queue: str = "celery") -> None:
    execute(dsn, "select bridge.enqueue('tasks.unknown', queue => %s)", queue)


def test_a_due_job_is_red_without_a_drainer_and_green_with_one(dsn: str, drainer: StartDrainer) -> None:
    doctor = Doctor(dsn)
    assert doctor.look("queued").found == "no job is due and unpublished"
    enqueue(dsn)
    waiting = doctor.look("queued", queued_late=0.0)
    assert waiting.status is Grade.ERROR
    assert "drainer" in waiting.remedy
    drainer()
    doctor.wait("queued", Grade.OK, queued_late=0.0)


def test_a_paused_queue_is_no_fault_and_is_named(dsn: str) -> None:
    enqueue(dsn)
    execute(dsn, "select bridge.pause('celery')")
    finding = Doctor(dsn).look("queued", queued_late=0.0)
    assert finding.status is Grade.OK
    assert "paused: celery" in finding.found


def test_a_full_window_asks_for_workers_until_they_come(dsn: str, redis_url: str, drainer: StartDrainer, worker: StartWorker) -> None:
    doctor = Doctor(dsn, redis_url)
    execute(dsn, "insert into bridge.queue (name, \"window\") values ('celery', 1)")
    enqueue(dsn)
    enqueue(dsn)
    drainer()
    wait_for_value(dsn, "select count(*) from bridge.jobs where status = 'published'", value=1)
    full = doctor.look("queued", queued_late=0.0)
    assert full.status is Grade.WARNING
    assert "more workers for celery" in full.remedy
    worker(pool="solo", concurrency=1, queues="celery")
    doctor.wait("queued", Grade.OK, queued_late=0.0)


def test_a_stuck_job_is_shown_until_a_worker_takes_it(dsn: str, redis_url: str, drainer: StartDrainer, worker: StartWorker) -> None:
    doctor = Doctor(dsn, redis_url)
    assert doctor.look("stuck").status is Grade.OK
    execute(dsn, "update bridge.setting set value = %s where name = 'stuck_after'", Jsonb(0))
    enqueue(dsn)
    drainer()
    wait_for_value(dsn, "select count(*) from bridge.jobs where status = 'published'", value=1)
    stuck = doctor.look("stuck")
    assert stuck.status is Grade.WARNING
    assert "1 published" in stuck.found
    assert "does a worker consume the queue" in stuck.remedy
    worker(pool="solo", concurrency=1, queues="celery")
    doctor.wait("stuck", Grade.OK)


def day_after(days: int) -> str:
    return f"{datetime.now(UTC) + timedelta(days=days):%Y%m%d}"


def test_a_missing_day_is_named_until_it_is_made(dsn: str) -> None:
    doctor = Doctor(dsn)
    assert doctor.look("days").status is Grade.OK
    execute(dsn, f"drop table bridge.attempt_{day_after(2)}")
    later = doctor.look("days")
    assert later.status is Grade.WARNING
    execute(dsn, f"drop table bridge.finished_{day_after(0)}")
    today = doctor.look("days")
    assert today.status is Grade.ERROR
    assert "finished on" in today.found
    execute(dsn, today.remedy.partition(";")[0])
    assert doctor.look("days").status is Grade.OK


def test_a_half_detached_day_is_named_until_it_is_finalized(dsn: str) -> None:
    doctor, day = Doctor(dsn), f"bridge.finished_{day_after(6)}"
    with psycopg.connect(dsn) as reader, psycopg.connect(dsn, autocommit=True) as operator:
        reader.execute("select from bridge.finished")
        operator.execute("set statement_timeout = '300ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            operator.execute(f"alter table bridge.finished detach partition {day} concurrently".encode())
    half = doctor.look("days")
    assert half.status is Grade.WARNING
    assert day in half.found
    execute(dsn, half.remedy)
    assert doctor.look("days").status is Grade.OK


@pytest.fixture(scope="module")
def narrow_dsn(server_folder: Path) -> Iterator[str]:
    """A server with few connections that knows prepared transactions and logical slots."""
    folder = server_folder / f"narrow-{secrets.token_hex(3)}"
    narrow = {"max_connections": "20", "max_prepared_transactions": "5", "wal_level": "logical"}
    server = PostgresServer(folder, "narrow", settings=FAST | narrow).start()
    schema.install(server.dsn)
    yield server.dsn
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_session_that_holds_a_snapshot_is_named_until_it_is_ended(narrow_dsn: str) -> None:
    doctor = Doctor(narrow_dsn)
    with closing(psycopg.connect(narrow_dsn, application_name="forgotten report")) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select 1")
        held = doctor.wait("snapshots", Grade.WARNING, snapshot_age=1.0)
        assert f"pid {holder.info.backend_pid} (forgotten report, idle in transaction)" in held.found
        execute(narrow_dsn, held.remedy.partition(";")[0])
        doctor.wait("snapshots", Grade.OK, snapshot_age=1.0)


def test_a_session_that_is_idle_in_a_transaction_without_a_snapshot_hurts_nobody(narrow_dsn: str) -> None:
    with psycopg.connect(narrow_dsn) as idle:
        idle.execute("select 1")
        finding = Doctor(narrow_dsn).look("snapshots", snapshot_age=0.0)
        assert str(idle.info.backend_pid) not in finding.found


def test_a_forgotten_prepared_transaction_is_named_until_it_is_rolled_back(narrow_dsn: str) -> None:
    doctor = Doctor(narrow_dsn)
    execute(narrow_dsn, "begin; create table left_open (); prepare transaction 'it''s open'")
    held = doctor.wait("snapshots", Grade.WARNING, snapshot_age=1.0)
    remedy = re.match(r"rollback prepared '.*?' ", held.remedy)
    assert remedy is not None
    execute(narrow_dsn, remedy[0])
    doctor.wait("snapshots", Grade.OK, snapshot_age=1.0)


def test_a_replication_slot_that_nobody_reads_is_named_until_it_is_dropped(narrow_dsn: str) -> None:
    doctor = Doctor(narrow_dsn)
    execute(narrow_dsn, "select pg_create_logical_replication_slot('left_behind', 'pgoutput')")
    held = doctor.look("snapshots")
    assert held.status is Grade.WARNING
    assert "replication slot left_behind is read by nobody" in held.found
    execute(narrow_dsn, held.remedy.rpartition(": ")[2])
    assert doctor.look("snapshots").status is Grade.OK


def test_connections_turn_yellow_and_red_as_they_run_out_and_green_when_they_are_closed(narrow_dsn: str) -> None:
    doctor = Doctor(narrow_dsn)
    assert doctor.look("connections").status is Grade.OK
    opened: list[psycopg.Connection] = []
    try:
        seen = []
        while len(opened) < 15 and Grade.ERROR not in seen:
            opened.append(psycopg.connect(narrow_dsn))
            seen.append(doctor.look("connections").status)
        assert seen.index(Grade.WARNING) < seen.index(Grade.ERROR)
        assert "max_connections" in doctor.look("connections").remedy
    finally:
        for connection in opened:
            connection.close()
    doctor.wait("connections", Grade.OK)
