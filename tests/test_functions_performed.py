"""Who performs calls of SQL functions: a drainer, or pg_cron alone; and what happens when one is killed in the middle."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_schedules import schedule
from fix_servers import wait_for_row, wait_for_value
from fix_sql import Session
from psycopg import conninfo

if TYPE_CHECKING:
    from fix_servers import StartDrainer

MINUTE = 75.0  # seconds until pg_cron's next minute has begun, and a bit
DRAINER = "bridge_test_drainer"


def make_functions(db: Session) -> None:
    db.do("create table public.done (what text)")
    db.do("create function public.quick() returns bigint language sql as $$ insert into public.done values ('quick'); select 7::bigint $$")
    for name, then in {"slow": "pg_sleep(600)", "held": "pg_advisory_xact_lock(77)"}.items():
        body = f"insert into public.done values ('{name}'); select {then}"
        db.do(f"create function public.{name}() returns void language sql as $$ {body} $$")


def run(db: Session, name: str, **options: Any) -> Any:
    """Run a schedule of this function now; the id of its job."""
    schedule(db, name, task=None, function=f"public.{name}", max_attempts=1, **options)
    return db.one("select bridge.run_schedule(%s)", name)


def wait_for_status(db: Session, identity: Any, status: str, timeout: float = 20.0) -> None:
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value=status, timeout=timeout)


@pytest.fixture
def humble(db: Session) -> str:
    """DSN of a role that may do what a drainer must, and nothing else."""
    db.do(f"do $$ begin create role {DRAINER} login; exception when duplicate_object then null; end $$")
    db.do(f"grant bridge_worker to {DRAINER}")
    return conninfo.make_conninfo(db.dsn, user=DRAINER)


def test_a_drainer_performs_calls_stops_late_ones_and_when_it_is_killed_postgres_ends_the_one_in_hand(
    db: Session, drainer: StartDrainer, humble: str, redis_url: str
) -> None:
    make_functions(db)
    process = drainer(dsn=humble, broker_url=redis_url, ready=False)
    late, quick = run(db, "slow", timeout="0.5 seconds"), run(db, "quick")
    wait_for_status(db, late, "failed")
    assert db.field(late, "error")["type"] == "TimeLimitExceeded"
    wait_for_status(db, quick, "succeeded")
    assert db.rows("select status, duration > '0' from bridge.schedule_runs where schedule = 'quick'") == [("succeeded", True)]
    with psycopg.connect(db.dsn, autocommit=True) as gate:
        gate.execute("select pg_advisory_lock(77)")
        held = run(db, "held")
        wait_for_status(db, held, "running")
        process.kill(signal.SIGKILL)
        process.wait(20)
        cancelled = run(db, "slow")  # waits: nobody is there to perform it
        assert db.one("select bridge.cancel(%s)", cancelled) == "cancelled"
        db.do("select bridge.sweep(1000, clock_timestamp() + interval '1 minute')")
        assert db.status(held) == "running", "its session goes on"
    wait_for_status(db, held, "succeeded")
    assert db.rows("select what from public.done order by what") == [("held",), ("quick",)]


@pytest.fixture
def cron(cron_dsn: str) -> Session:
    session = Session(cron_dsn)
    session.do("drop table if exists public.done cascade")
    session.do("drop function if exists public.quick(), public.slow(), public.held()")
    return session


@pytest.mark.timeout(300)
def test_pg_cron_alone_calls_the_functions_of_schedules_and_stops_those_that_are_late_or_cancelled(cron: Session) -> None:
    make_functions(cron)
    name = f"bridge-calls-{cron.connection.info.dbname}"
    assert cron.rows("select jobid from cron.job where jobname = %s", name) == [], "nothing to call, no entry"
    schedule(cron, "quick", cron="every 1 second", task=None, function="public.quick")
    assert cron.one("select count(*) from cron.job where jobname = %s and command like 'call bridge.run_calls(%%'", name) == 1
    late = run(cron, "slow", timeout="1 second", priority=9)
    wait_for_status(cron, late, "failed", MINUTE)
    assert cron.field(late, "error")["type"] == "TimeLimitExceeded"
    wait_for_row(
        cron.dsn, "select 1 from bridge.schedule_runs where schedule = 'quick' and trigger_type = 'scheduled' and status = 'succeeded'"
    )
    schedule(cron, "held", task=None, function="public.slow", priority=9)
    stopped = cron.one("select bridge.run_schedule('held')")
    wait_for_status(cron, stopped, "running", MINUTE)
    assert cron.one("select bridge.cancel(%s)", stopped) == "running"
    wait_for_status(cron, stopped, "cancelled", MINUTE)
    assert cron.rows("select distinct what from public.done") == [("quick",)]
    assert cron.rows("select count(*) from bridge.jobs where status = 'published'") == [(0,)]
    failed = cron.rows("select return_message from cron.job_run_details where status = 'failed'")
    assert failed == []
    assert cron.one("select bridge.unregister_cron()") == 3
