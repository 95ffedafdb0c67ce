"""pg_cron and the databases of a cluster: what its entries are called, whose they are, and who may make them. One pg_cron serves all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_doctor import Doctor
from fix_servers import CRON_DATABASE, wait_for_value
from fix_sql import Session
from psycopg import sql

from bridge import schema
from bridge.doctor import Grade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases

pytestmark = pytest.mark.pg_cron
LOOP, TICK = "call bridge.tick_loop()", "select bridge.tick('pg_cron')"
ENTRIES = (
    "select jobname, schedule, command, database, username, active from cron.job where jobname ~ '^bridge-' order by database, jobname"
)


@pytest.fixture
def home(cron_dsn: str) -> Session:
    """The database that pg_cron lives in; all of its entries are gone after the test."""
    return Session(cron_dsn)


@pytest.fixture
def elsewhere(home: Session, dsn: str) -> Session:
    """Another database of that cluster."""
    assert home.connection.info.dbname == CRON_DATABASE
    return Session(dsn)


def names(session: Session) -> tuple[str, str, str]:
    return tuple(session.one("select bridge.cron_name(%s)", kind) for kind in ("cleanup", "log", "tick"))  # type: ignore[return-value]


def entries(home: Session, database: str) -> list[tuple[str, str, bool]]:
    return home.rows("select jobname, schedule, active from cron.job where jobname like %s order by 1", f"bridge-%-{database}")


def database_of(session: Session) -> str:
    return session.connection.info.dbname


@pytest.mark.timeout(300)
def test_one_pg_cron_ticks_several_databases_of_its_cluster(home: Session, elsewhere: Session, databases: Databases, template: str) -> None:
    third = Session(databases.server.dsn_of(databases.create(template)))
    for other in (elsewhere, third):
        assert f"of database {CRON_DATABASE} ticks by " in schema.install(other.dsn, cron_database=CRON_DATABASE)
    found = home.rows("select jobname, case when jobname like 'bridge-log%%' then %s else database end from cron.job", CRON_DATABASE)
    tick = dict(found)
    assert len(tick) == len(found) == 2 + 3 + 3
    for session in (elsewhere, third):
        cleanup, log, ticker = names(session)
        assert [tick[name] for name in (cleanup, log, ticker)] == [database_of(session), CRON_DATABASE, database_of(session)]
    late = [session.enqueue(delay="1 second") for session in (home, elsewhere, third)]
    for session, job in zip((home, elsewhere, third), late, strict=True):
        wait_for_value(session.dsn, "select status from bridge.jobs where id = %s", (job,), value="queued", timeout=75)
        assert session.one("select source from bridge.tick_state") == "pg_cron"
    ticked = Doctor(elsewhere.dsn).look("pg_cron")
    assert (ticked.status, ticked.found) == (Grade.OK, f"pg_cron of database {CRON_DATABASE} ticks this one")
    home.do("select cron.unschedule(jobid) from cron.job")


def test_installing_again_keeps_what_an_operator_changed_in_the_other_database(home: Session, elsewhere: Session) -> None:
    schema.install(elsewhere.dsn, cron_database=CRON_DATABASE)
    cleanup, _, tick = names(elsewhere)
    home.do("select cron.alter_job(jobid, active => false) from cron.job where jobname = %s", tick)
    home.do("select cron.alter_job(jobid, schedule => '1 1 * * *') from cron.job where jobname = %s", cleanup)
    before = home.rows(ENTRIES)
    schema.install(elsewhere.dsn, cron_database=CRON_DATABASE)
    assert home.rows(ENTRIES) == before


def test_an_install_says_what_to_run_in_the_database_of_pg_cron(home: Session, elsewhere: Session) -> None:
    said = schema.install(elsewhere.dsn)
    assert f"lives in database {CRON_DATABASE} (cron.database_name): the drainer ticks" in said
    assert f"bridge install --cron-database {CRON_DATABASE}" in said
    assert entries(home, database_of(elsewhere)) == []
    statements = [line.strip() for line in said.splitlines()[1:]]
    for statement in statements:
        home.do(statement)
    assert [name for name, *_ in entries(home, database_of(elsewhere))] == list(names(elsewhere))
    owner = home.connection.info.user
    assert home.rows("select distinct username from cron.job where database = %s", database_of(elsewhere)) == [(owner,)]
    assert schema.preview(elsewhere.dsn, cron_database=CRON_DATABASE) == []


def test_a_look_tells_which_entries_an_install_would_make(home: Session, elsewhere: Session) -> None:
    told = {(change.action, change.kind, change.name) for change in schema.preview(elsewhere.dsn, cron_database=CRON_DATABASE)}
    assert told == {("add", "pg_cron entry", name) for name in names(elsewhere)}
    assert entries(home, database_of(elsewhere)) == []
    home.do("select cron.unschedule(jobid) from cron.job where jobname like 'bridge-tick-%%'")
    assert [(change.action, change.name) for change in schema.preview(home.dsn)] == [("add", names(home)[2])]


@pytest.fixture
def plain(home: Session, elsewhere: Session) -> Iterator[str]:
    """The DSN of a role that may make a schema, and has no rights on pg_cron."""
    role = "bridge_test_plain"
    home.do(f"create role {role} login")
    elsewhere.do("drop schema bridge cascade")
    elsewhere.do(f"grant create on database {database_of(elsewhere)} to {role}")
    yield psycopg.conninfo.make_conninfo(elsewhere.dsn, user=role)
    home.do("select cron.unschedule(jobid) from cron.job")
    for session in (home, elsewhere):
        session.do(f"drop owned by {role} cascade")
    home.do(f"drop role {role}")


def test_a_role_without_rights_is_told_the_grants_to_make_in_the_other_database(home: Session, elsewhere: Session, plain: str) -> None:
    said = schema.install(plain, cron_database=CRON_DATABASE)
    assert "the drainer ticks; to change that, there: " in said
    grants = said.partition("there: ")[2].partition("; then")[0]
    function = "function cron.schedule_in_database(text, text, text, text, text, boolean)"
    assert grants == f"grant usage on schema cron to bridge_test_plain; grant execute on {function} to bridge_test_plain"
    home.do(grants)
    assert "ticks by " in schema.install(plain, cron_database=CRON_DATABASE)
    assert home.rows("select distinct username from cron.job where jobname = any (%s)", list(names(elsewhere))) == [("bridge_test_plain",)]


def test_an_unreachable_database_of_pg_cron_does_not_undo_the_install(elsewhere: Session) -> None:
    said = schema.install(elsewhere.dsn, cron_database="no_such_database")
    assert "is installed; pg_cron of database no_such_database refuses our entries" in said
    assert "the drainer ticks" in said


def test_names_of_databases_with_long_names_stay_apart(databases: Databases, template: str, home: Session) -> None:
    made = [f"{databases.prefix}_{'a_very_long_name_for_a_database_of_some_' * 2}"[:60] + end for end in ("_a", "_b")]
    found = set()
    for name in made:
        home.do(f"create database {name} template {template}")
        databases.made.append(name)
        with psycopg.connect(databases.dsn_of(name), autocommit=True) as other:
            found |= {row[0] for row in other.execute("select bridge.cron_name(k) from unnest(array['tick', 'cleanup', 'log']) k")}
        databases.drop(name)
    assert len(found) == 6
    assert max(len(name.encode()) for name in found) <= 63


FOUND = {
    "nothing": ([], "1.4-1", [("add", "* * * * *", LOOP)]),
    "nothing, 1.6": ([], "1.6", [("add", "2 seconds", TICK)]),
    "ours": ([("* * * * *", LOOP)], "1.4-1", [("keep", "* * * * *", LOOP)]),
    "ours of 1.4, pg_cron is 1.6 now": ([("* * * * *", LOOP)], "1.6", [("change", "2 seconds", TICK)]),
    "another schedule": ([("*/5 * * * *", LOOP)], "1.6", [("keep", "*/5 * * * *", LOOP)]),
    "another command": ([("2 seconds", "select 1")], "1.6", [("keep", "2 seconds", "select 1")]),
    "minutes by choice": ([("* * * * *", TICK)], "1.6", [("keep", "* * * * *", TICK)]),
}


@pytest.mark.parametrize("case", FOUND)
def test_an_entry_is_replaced_only_where_it_is_as_we_gave_it(db: Session, case: str) -> None:
    found, version, planned = FOUND[case]
    name = db.one("select bridge.cron_name('tick')")
    there = psycopg.types.json.Jsonb([{"name": name, "schedule": one, "command": other, "ours": True} for one, other in found])
    assert db.rows("select action, schedule, command from bridge.cron_plan(%s, %s) where name = %s", version, there, name) == planned


def test_a_command_that_is_no_more_is_replaced_at_the_time_that_an_operator_chose(db: Session) -> None:
    name = db.one("select bridge.cron_name('cleanup')")
    there = psycopg.types.json.Jsonb([{"name": name, "schedule": "0 1 * * 0", "command": "select bridge.cleanup()", "ours": True}])
    planned = db.rows("select action, schedule, command from bridge.cron_plan('1.6', %s) where name = %s", there, name)
    assert planned == [("change", "0 1 * * 0", "call bridge.cleanup_loop()")]


def test_another_roles_entry_is_left_to_it(db: Session) -> None:
    there = psycopg.types.json.Jsonb(
        [{"name": db.one("select bridge.cron_name('tick')"), "schedule": "* * * * *", "command": LOOP, "ours": False}]
    )
    assert db.one("select action from bridge.cron_plan('1.6', %s) order by name desc limit 1", there) == "keep"


def runs(home: Session, entry: str, *statuses: str) -> None:
    """What pg_cron writes of runs."""
    for status in statuses:
        home.do(
            "insert into cron.job_run_details (jobid, runid, status, return_message, command, start_time, end_time)"
            " select jobid, nextval('cron.runid_seq'), %s, '1 row', command, now() - interval '1 second', now()"
            " from cron.job where jobname = %s",
            status, entry,
        )  # fmt: skip


def test_the_runs_of_our_entries_are_told_newest_first(home: Session) -> None:
    cleanup, _, tick = names(home)
    home.do("select cron.schedule('of another', '0 0 1 1 *', 'select 1')")
    home.do("select cron.alter_job(jobid, active => false) from cron.job")
    home.do("truncate cron.job_run_details")
    runs(home, tick, "succeeded", "failed")
    runs(home, "of another", "succeeded")
    runs(home, cleanup, "succeeded")
    told = home.rows("select entry, status, message, duration, active, runid from bridge.cron_runs")
    assert [row[:2] for row in told] == [(cleanup, "succeeded"), (tick, "failed"), (tick, "succeeded")]
    assert told[0][2:5] == ("1 row", told[0][3], False)
    assert told[0][3].total_seconds() == 1
    assert [row[5] for row in told] == sorted((row[5] for row in told), reverse=True)


def test_the_runs_cost_the_same_however_long_pg_crons_log_is(home: Session) -> None:
    home.do("select cron.alter_job(jobid, active => false) from cron.job")
    tick = names(home)[2]
    home.do(
        "insert into cron.job_run_details (jobid, runid, status, command, start_time, end_time)"
        " select jobid, nextval('cron.runid_seq'), 'succeeded', command, now(), now() from cron.job, generate_series(1, 50000)"
        " where jobname = %s", tick,
    )  # fmt: skip
    home.do("analyze cron.job_run_details")
    assert home.one("select count(*) from bridge.cron_runs") == 1000
    plan = home.one("explain (analyze, buffers, format json) select * from bridge.cron_runs")
    assert plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"] < 200


def test_without_pg_cron_there_are_no_runs(db: Session) -> None:
    assert db.rows("select * from bridge.cron_runs") == []


def test_entries_of_databases_that_are_gone_are_named(home: Session, databases: Databases, template: str) -> None:
    name = databases.create(template)
    schema.install(databases.dsn_of(name), cron_database=CRON_DATABASE)
    databases.drop(name)
    stray = Doctor(home.dsn).look("pg_cron")
    assert stray.status is Grade.WARNING
    assert f"bridge-tick-{name}: database {name} is gone" in stray.found
    for statement in stray.remedy.split("; "):
        home.do(statement)
    assert "gone" not in Doctor(home.dsn).look("pg_cron").found


def test_a_second_entry_of_another_role_is_named(home: Session) -> None:
    home.do("create role bridge_test_second login")
    try:
        name = names(home)[2]
        home.do("select cron.schedule_in_database(%s, '0 0 1 1 *', 'select 1', %s, 'bridge_test_second')", name, CRON_DATABASE)
        second = Doctor(home.dsn).look("pg_cron")
        assert second.status is Grade.WARNING
        assert f"{name}: role " in second.found
    finally:
        home.do("select cron.unschedule(jobid) from cron.job")
        home.do("drop role bridge_test_second")


def test_a_doctor_without_rights_says_the_grant(home: Session) -> None:
    home.do("do $$ begin create role bridge_test_viewer login in role bridge_viewer; exception when duplicate_object then null; end $$")
    try:
        blind = Doctor(psycopg.conninfo.make_conninfo(home.dsn, user="bridge_test_viewer")).look("pg_cron")
        assert blind.status is Grade.SKIPPED
        assert blind.remedy == "grant usage on schema cron to bridge_test_viewer"
    finally:
        home.do("drop role bridge_test_viewer")


def test_a_pg_cron_elsewhere_that_ticks_no_more_is_named(elsewhere: Session) -> None:
    elsewhere.do("update bridge.tick_state set source = 'pg_cron', ticked_at = clock_timestamp() - interval '10 minutes'")
    late = Doctor(elsewhere.dsn).look("pg_cron")
    assert late.status is Grade.WARNING
    assert late.found.startswith(f"pg_cron of database {CRON_DATABASE} ticked this one 60")
    elsewhere.do("update bridge.tick_state set source = 'drainer', ticked_at = clock_timestamp()")
    bound = Doctor(elsewhere.dsn).look("pg_cron")
    assert bound.status is Grade.OK
    assert bound.remedy == f"to change that: bridge install --cron-database {CRON_DATABASE}"


def test_unregistering_from_another_database_says_what_to_run_there(home: Session, elsewhere: Session) -> None:
    schema.install(elsewhere.dsn, cron_database=CRON_DATABASE)
    notices: list[str] = []
    elsewhere.connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    assert elsewhere.one("select bridge.unregister_cron()") == 0
    home.do(sql.SQL(notices[0].partition("run there: ")[2]).as_string(None))
    assert entries(home, database_of(elsewhere)) == []
