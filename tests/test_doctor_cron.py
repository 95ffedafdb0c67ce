"""The doctor on pg_cron, from not there to a dead launcher. Each test breaks a server of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fix_doctor import Doctor, execute
from fix_servers import missing, wait_for_value, wait_until

from bridge import schema
from bridge.doctor import Grade

if TYPE_CHECKING:
    from bridge.local.postgres import PostgresServer

pytestmark = pytest.mark.pg_cron
LAUNCHER = "from pg_stat_activity where backend_type = 'pg_cron launcher'"


@pytest.fixture
def cron_postgres(durable_postgres: PostgresServer) -> PostgresServer:
    if not durable_postgres.binaries.cron:
        missing("pg_cron in this postgres", "apt-get install postgresql-15-cron")
    wait_for_value(durable_postgres.dsn, f"select count(*) {LAUNCHER}", value=1)
    return durable_postgres


@pytest.fixture
def cron(cron_postgres: PostgresServer) -> str:
    return cron_postgres.dsn


def test_a_database_without_pg_cron_is_no_fault(dsn: str) -> None:
    finding = Doctor(dsn).look("pg_cron")
    assert finding.status is Grade.OK
    assert "the drainer ticks" in finding.found


def test_with_its_entries_at_work_pg_cron_is_green(cron: str) -> None:
    finding = Doctor(cron).look("pg_cron")
    assert finding.status is Grade.OK
    assert "bridge-tick-" in finding.found


def test_a_tick_by_pg_cron_is_told_from_one_by_a_drainer(cron: str) -> None:
    execute(cron, "select bridge.tick('pg_cron')")  # or its own is at work
    wait_until(lambda: Doctor(cron).look("tick").found.startswith("pg_cron ticked"), 20, "a tick by pg_cron")


def test_an_extension_that_is_only_available_comes_with_the_way_to_use_it(cron: str) -> None:
    doctor = Doctor(cron)
    execute(cron, "drop extension pg_cron")
    available = doctor.look("pg_cron")
    assert available.status is Grade.OK
    assert "available, not created" in available.found
    assert "create extension pg_cron, then bridge install" in available.remedy
    execute(cron, "create extension pg_cron")
    schema.install(cron)
    assert "bridge-tick-" in doctor.look("pg_cron").found


def test_a_missing_entry_is_a_warning_until_bridge_install(cron: str) -> None:
    doctor = Doctor(cron)
    execute(cron, "select bridge.unregister_cron()")
    without = doctor.look("pg_cron")
    assert without.status is Grade.WARNING
    assert without.remedy == "bridge install"
    schema.install(cron)
    assert doctor.look("pg_cron").status is Grade.OK


def test_an_entry_that_is_switched_off_is_a_warning_until_it_is_on_again(cron: str) -> None:
    doctor = Doctor(cron)
    execute(cron, "select cron.alter_job(jobid, active => false) from cron.job where jobname like 'bridge-tick-%%'")
    off = doctor.look("pg_cron")
    assert off.status is Grade.WARNING
    assert "switched off: bridge-tick-" in off.found
    execute(cron, off.remedy)
    assert doctor.look("pg_cron").status is Grade.OK


def run(dsn: str, status: str, message: str) -> None:
    """What pg_cron writes at the end of a run; waiting for a real one takes up to a minute."""
    execute(
        dsn,
        "insert into cron.job_run_details (jobid, runid, status, return_message, start_time, end_time)"
        " select jobid, nextval('cron.runid_seq'), %s, %s, now(), now() from cron.job where jobname like 'bridge-tick-%%'",
        status, message,
    )  # fmt: skip


def test_an_entry_whose_last_run_failed_is_red_until_one_succeeds(cron: str) -> None:
    doctor = Doctor(cron)
    run(cron, "failed", "ERROR: permission denied for schema bridge\n")
    failed = doctor.look("pg_cron")
    assert failed.status is Grade.ERROR
    assert "permission denied for schema bridge" in failed.found
    assert "order by runid desc" in failed.remedy
    run(cron, "failed", "job startup timeout")
    assert "use_background_workers" in doctor.look("pg_cron").remedy
    run(cron, "succeeded", "CALL")
    assert doctor.look("pg_cron").status is Grade.OK


def test_a_terminated_launcher_is_red_until_postgres_is_restarted_and_before_that_from_1_6_on(cron_postgres: PostgresServer) -> None:
    doctor = Doctor(cron_postgres.dsn)
    version = execute(cron_postgres.dsn, "select extversion from pg_extension where extname = 'pg_cron'")[0][0]
    before = execute(cron_postgres.dsn, f"select pid {LAUNCHER}")[0][0]
    execute(cron_postgres.dsn, f"select pg_terminate_backend(pid) {LAUNCHER}")
    if [int(part) for part in version.partition("-")[0].split(".")] >= [1, 6]:
        wait_for_value(cron_postgres.dsn, f"select pid <> {before} {LAUNCHER}")
    else:
        dead = doctor.wait("pg_cron", Grade.ERROR)
        assert "stays so" in dead.found
        assert dead.remedy.startswith("restart Postgres")
        cron_postgres.stop()
        cron_postgres.start()
    doctor.wait("pg_cron", Grade.OK)
