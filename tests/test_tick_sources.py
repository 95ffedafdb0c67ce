"""Who ticks: pg_cron where it does, else a drainer, and never both."""

from __future__ import annotations

import os
import signal
import threading
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_servers import wait_for_row, wait_for_value, wait_until
from fix_sql import Session

from bridge import schema

if TYPE_CHECKING:
    from fix_servers import StartDrainer

pytestmark = pytest.mark.pg_cron
MINUTE = 75.0  # seconds until pg_cron's next minute has begun, and a bit


def ticked_by(db: Session) -> str:
    return str(db.one("select source from bridge.tick_state"))


def test_a_drainer_ticks_when_nobody_else_does(db: Session, drainer: StartDrainer) -> None:
    drainer()
    identity = db.enqueue(delay="1 second")
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="published")
    assert ticked_by(db) == "drainer"


def test_a_drainer_stops_ticking_while_another_source_ticks_in_time(db: Session, drainer: StartDrainer) -> None:
    process = drainer()
    sources = tick_through_a_report(db, process.pid)
    assert sources[-1] == "pg_cron"
    # From here on every look of the drainer falls between two ticks in time.
    assert set(tick_through_a_report(db, process.pid)) == {"pg_cron"}
    wait_until(lambda: ticked_by(db) == "drainer", 20, "the drainer to step in again")


def tick_through_a_report(db: Session, pid: int) -> list[str]:
    """Tick as pg_cron would, only quicker, until the drainer has reported once more; who had ticked last each time."""
    seen_at = "select seen_at from bridge.drainer where pid = %s"
    before, sources = db.one(seen_at, pid), []

    def tick() -> bool:
        db.do("select bridge.tick('pg_cron')")
        sources.append(ticked_by(db))
        return bool(db.one(seen_at, pid) > before)

    wait_until(tick, 30, "a report of the drainer")
    return sources


def test_a_drainer_told_not_to_tick_moves_no_delayed_job(db: Session, drainer: StartDrainer) -> None:
    process = drainer(env={"BRIDGE_TICK": "off"})
    late = db.enqueue(delay="1 millisecond")
    now = db.enqueue()
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (now,), value="published")
    # It has reported twice: it had every occasion to tick.
    seen = db.one("select seen_at from bridge.drainer where pid = %s", process.pid)
    wait_for_row(db.dsn, "select 1 from bridge.drainer where pid = %s and seen_at > %s", (process.pid, seen))
    assert (db.status(late), ticked_by(db)) == ("scheduled", "install")


def test_a_drainer_told_to_tick_does_so_beside_others(db: Session, drainer: StartDrainer) -> None:
    drainer(env={"BRIDGE_TICK": "drainer"})
    db.do("update bridge.tick_state set source = 'pg_cron', ticked_at = clock_timestamp() + interval '1 hour'")
    wait_until(lambda: ticked_by(db) == "drainer", 20)


@pytest.fixture
def cron(cron_dsn: str) -> Session:
    return Session(cron_dsn)


def by_seconds(cron: Session) -> bool:
    version = str(cron.one("select extversion from pg_extension where extname = 'pg_cron'"))
    return tuple(int(part) for part in version.split("-", maxsplit=1)[0].split(".")) >= (1, 5)


def test_install_registers_a_tick_and_a_cleanup_that_carry_the_databases_name(cron: Session) -> None:
    name = cron.connection.info.dbname
    schedule, command = ("2 seconds", "select bridge.tick('pg_cron')") if by_seconds(cron) else ("* * * * *", "call bridge.tick_loop()")
    assert cron.rows("select jobname, schedule, command, active from cron.job where jobname like 'bridge-%%' order by 1") == [
        (f"bridge-cleanup-{name}", "17 3 * * *", "call bridge.cleanup_loop()", True),
        (f"bridge-tick-{name}", schedule, command, True),
    ]


def test_an_entry_that_an_operator_has_changed_is_left_as_it_is(cron: Session) -> None:
    job = cron.one("select jobid from cron.job where jobname like 'bridge-tick-%%'")
    cron.do("select cron.alter_job(%s, active => false, schedule => '*/2 * * * *')", job)
    schema.install(cron.dsn)
    assert cron.rows("select schedule, active from cron.job where jobid = %s", job) == [("*/2 * * * *", False)]
    assert cron.one("select count(*) from cron.job where jobname like 'bridge-%%'") == 2


def test_entries_are_taken_away_on_request(cron: Session) -> None:
    assert cron.one("select bridge.unregister_cron()") == 2
    assert cron.one("select count(*) from cron.job") == 0


def test_a_role_without_rights_on_cron_is_told_the_grant_to_make(cron: Session) -> None:
    cron.do("do $$ begin create role bridge_test_nobody nologin; exception when duplicate_object then null; end $$")
    with cron.connection.transaction(force_rollback=True):
        cron.do("grant usage on schema bridge to bridge_test_nobody")
        cron.do("grant execute on all functions in schema bridge to bridge_test_nobody")
        cron.do("set local role bridge_test_nobody")
        said = cron.one("select bridge.register_cron()")
    assert "the drainer ticks; to change that: grant usage on schema cron to bridge_test_nobody" in said


def test_the_loop_within_a_minute_ticks_and_commits_each_time(cron: Session) -> None:
    cron.do("select bridge.unregister_cron()")
    first, second = cron.enqueue(delay="0.3 seconds"), cron.enqueue(delay="4.3 seconds")
    other = psycopg.connect(cron.dsn, autocommit=True)
    other.execute("set statement_timeout = '20s'")
    # The loop ends by itself after its seconds; what it moved is visible in between, so it commits.
    looked = Session(cron.dsn)
    with other.pipeline():
        other.execute("call bridge.tick_loop(8)")
        wait_until(lambda: looked.status(first) == "queued", 20)
        assert looked.status(second) == "scheduled"
        wait_until(lambda: looked.status(second) == "queued", 20)
        assert looked.one("select source from bridge.tick_state") == "pg_cron"


def install_beside_a_deaf_launcher(home: Session, dsn: str, **given: str) -> None:
    """Install while pg_cron's launcher stands still; it goes on when our entries are there and have not been repeated."""
    pid = int(home.one("select pid from pg_stat_activity where backend_type = 'pg_cron launcher'"))
    database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    os.kill(pid, signal.SIGSTOP)
    try:
        installing = threading.Thread(target=partial(schema.install, dsn, **given))
        installing.start()
        wait_for_row(home.dsn, "select 1 from cron.job where database = %s", (database,))
    finally:
        os.kill(pid, signal.SIGCONT)
    installing.join()


@pytest.mark.timeout(300)
def test_pg_cron_runs_entries_that_its_launcher_was_too_late_to_hear_of(cron: Session, empty_dsn: str) -> None:
    # The notices of one install are more than the queue holds: all that the launcher is told is to forget everything.
    cron.do("drop schema bridge cascade")
    cron.do("select cron.unschedule(jobid) from cron.job")
    install_beside_a_deaf_launcher(cron, cron.dsn)
    install_beside_a_deaf_launcher(cron, empty_dsn, cron_database=cron.connection.info.dbname)
    ticked = "select 1 from cron.job_run_details where command like '%%tick%%' and database = %s"
    for dsn in (cron.dsn, empty_dsn):
        wait_for_row(cron.dsn, ticked, (psycopg.conninfo.conninfo_to_dict(dsn)["dbname"],), timeout=MINUTE)
    cron.do("select cron.unschedule(jobid) from cron.job")


@pytest.mark.timeout(300)
def test_pg_cron_fires_what_is_due_alone_beside_others_and_after_it_was_off_and_each_slot_runs_once(
    cron: Session, drainer: StartDrainer, redis_url: str
) -> None:
    drainer(env={"BRIDGE_TICK": "off"}, dsn=cron.dsn, broker_url=redis_url)
    identity = cron.enqueue(delay="2 seconds")
    cron.do("select bridge.schedule('often', 'every 2 seconds', 'a.task')")
    cron.do("select cron.alter_job(jobid, schedule => '* * * * *') from cron.job where jobname like 'bridge-cleanup-%%'")
    wait_for_value(cron.dsn, "select status from bridge.jobs where id = %s", (identity,), value="published", timeout=MINUTE)
    assert ticked_by(cron) == "pg_cron"
    # Once a minute has begun, it ticks every second until the next.
    begun = cron.one("select ticked_at from bridge.tick_state")
    wait_for_row(cron.dsn, "select 1 from bridge.tick_state where ticked_at > %s::timestamptz + interval '3 seconds'", (begun,))
    wait_for_row(cron.dsn, "select 1 from bridge.cleanups where by = 'pg_cron' and status = 'done' and operation = 'cleanup'")
    assert cron.rows("select return_message from cron.job_run_details where command like '%%cleanup%%' and status = 'failed'") == []
    state = cron.rows("select status, return_message from cron.job_run_details where command like '%%tick%%'")
    assert {row[0] for row in state} <= {"running", "starting", "succeeded"}, state
    # Those that came before the first tick, and one at least that came after it in its time.
    wait_for_row(cron.dsn, "select 1 from bridge.schedule_runs where status = 'published' and slot > %s::timestamptz", (begun,))
    assert cron.rows("select slot from bridge.schedule_run where mod(extract(epoch from slot), 2) <> 0") == []
    assert cron.rows("select distinct trigger_type from bridge.schedule_runs where slot > %s", begun) == [("scheduled",)]
    # Now two drainers that tick whatever others do, and two who tick by hand.
    eager = [drainer(env={"BRIDGE_TICK": "drainer"}, dsn=cron.dsn, broker_url=redis_url) for _ in range(2)]
    cron.do("select bridge.schedule('race', 'every 1 second', 'a.task')")
    race(cron, seconds=8)
    for one in eager:
        one.stop()
    drainer(dsn=cron.dsn, broker_url=redis_url)
    stop_and_double(cron)


RUNS = "from pg_stat_activity where backend_type = 'pg_cron' and datname = current_database()"


def stop_and_double(cron: Session) -> None:
    """Switch the entry off and end its run: a drainer that ticks in need does. Switch it on with a second one: each slot runs once."""
    cron.do("select cron.alter_job(jobid, active => false) from cron.job")
    cron.do(f"select pg_terminate_backend(pid, 5000) {RUNS}")
    late = cron.enqueue(delay="2 seconds")
    wait_for_value(cron.dsn, "select status from bridge.jobs where id = %s", (late,), value="published", timeout=30)
    assert (ticked_by(cron), cron.one(f"select count(*) {RUNS}")) == ("drainer", 0)
    cron.do("select cron.alter_job(jobid, active => true) from cron.job where jobname like 'bridge-tick-%%'")
    cron.do("select cron.schedule('bridge-tick-second', schedule, command) from cron.job where jobname like 'bridge-tick-%%'")
    ran = "select count(distinct jobid) from cron.job_run_details where command like '%%tick%%' and start_time > %s"
    wait_for_value(cron.dsn, ran, (cron.one("select now()"),), value=2, timeout=MINUTE)
    wait_until(lambda: ticked_by(cron) == "pg_cron", 30, "pg_cron to tick again")
    doubled = cron.one("select max(slot) from bridge.schedule_runs where schedule = 'race'")
    wait_for_row(
        cron.dsn, "select 1 from bridge.schedule_runs where schedule = 'race' and slot > %s::timestamptz + interval '5 s'", (doubled,)
    )
    made = "from bridge.jobs j where j.headers->>'bridge_schedule' = 'race'"
    assert cron.rows(f"select j.headers->>'bridge_slot' {made} group by 1 having count(*) > 1") == []
    assert cron.rows(f"select j.id {made} and not exists (select from bridge.schedule_runs r where r.job_id = j.id)") == []


def race(cron: Session, seconds: int) -> None:
    """Tick by hand, twice at a time, until all three sources have ticked and so many slots have run: each of them once."""
    sources, done = set(), threading.Event()

    def tick() -> None:
        other = Session(cron.dsn)
        while not done.is_set():
            other.do("select bridge.tick('manual')")
        other.connection.close()

    hand = threading.Thread(target=tick)
    hand.start()
    try:
        ran = "select slot, job_id from bridge.schedule_runs where schedule = 'race' order by slot"

        def enough() -> bool:
            sources.add(ticked_by(cron))
            cron.do("select bridge.tick('manual')")
            sources.add(ticked_by(cron))
            return sources >= {"pg_cron", "drainer", "manual"} and len(cron.rows(ran)) >= seconds

        wait_until(enough, 60, "all sources to tick, and slots to run")
    finally:
        done.set()
        hand.join(20)
    runs = cron.rows(ran)
    assert [slot for slot, _ in runs] == [runs[0][0] + timedelta(seconds=number) for number in range(len(runs))]
    made = "select headers->>'bridge_slot', id from bridge.jobs where headers->>'bridge_schedule' = 'race' order by 1"
    assert [job for _, job in cron.rows(made)][: len(runs)] == [job for _, job in runs]
