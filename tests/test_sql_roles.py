"""Each role may do exactly its own, and the public nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from fix_sql import Session

ENQUEUE = ["bridge.enqueue('t')", "bridge.enqueue_many('[]')"]
READ = ["(select count(*) from bridge.jobs)", "(select count(*) from bridge.job_queue_stats)", "(select count(*) from bridge.failed_jobs)"]
READ += [f"(select count(*) from bridge.{view})" for view in ("schedules", "schedule_runs", "schedule_stats", "live_jobs", "job_note")]
PREVIEW = ["bridge.next_runs('@daily')"]
WORK = [
    "bridge.start(1, gen_random_uuid(), gen_random_uuid(), 1)",
    "bridge.finish(1, gen_random_uuid(), 'succeeded')",
    "bridge.fail(1, gen_random_uuid(), '{}')",
    "bridge.lose(1, gen_random_uuid(), 'x')",
    "bridge.claim(gen_random_uuid(), 'celery', gen_random_uuid())",
    "bridge.mark_published(gen_random_uuid(), '{1}')",
    "bridge.unclaim('{1}')",
    "bridge.suspects()",
    "bridge.stop_worker(gen_random_uuid())",
    "bridge.tick_if_late('drainer')",
    "bridge.make_days()",
    "bridge.note(1, gen_random_uuid())",
]
PERFORM = ["bridge.begin_call()", "bridge.perform_call(1, gen_random_uuid())", "bridge.stop_calls()", "bridge.calls_wait()"]
SCHEDULE = ["bridge.schedule('s', '@daily', 't')", "bridge.unschedule('s')"]
CHOOSE = ["bridge.select_jobs()"]
MANY = [f"""bridge.{name}_jobs('{{"queue": "q"}}')""" for name in ("cancel", "redrive", "discard")]
OPERATE = [*SCHEDULE, *MANY, "bridge.retry_failed()", "bridge.pause('q')", "bridge.resume('q')", "bridge.cleanup()"]
LOOK = ["(select count(*) from bridge.job)", "(select count(*) from bridge.inflight)"]  # for the doctor
TABLES = ["(select count(*) from bridge.finished)", "(select count(*) from bridge.attempt)", "(select count(*) from bridge.waiter)"]
TABLES += ["(select count(*) from bridge.schedule_run)"]
TELL = ["bridge.save_checkpoint(gen_random_uuid(), '1', gen_random_uuid())"]
READ_LOGS = ["bridge.checkpoint(gen_random_uuid())"]
TABLES += ["(select count(*) from bridge.log_line)", "(select count(*) from bridge.checkpoint)"]
ALL = {*PERFORM, *TELL, *READ_LOGS, *ENQUEUE, *PREVIEW, *CHOOSE, *READ, *LOOK, *WORK, *OPERATE, *TABLES}

MAY = {
    "bridge_producer": {*ENQUEUE, *PREVIEW},
    "bridge_worker": {*PERFORM, *TELL, *READ_LOGS, *ENQUEUE, *PREVIEW, *READ, *LOOK, *WORK},
    "bridge_operator": {*PERFORM, *TELL, *READ_LOGS, *ENQUEUE, *PREVIEW, *CHOOSE, *READ, *LOOK, *OPERATE},
    "bridge_viewer": {*READ_LOGS, *PREVIEW, *CHOOSE, *READ, *LOOK},
    "nobody": set(),
}


@pytest.fixture
def nobody(db: Session) -> None:
    db.do("""do $$ begin create role bridge_test_nobody nologin; exception when duplicate_object then null; end $$""")


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("role", MAY)
def test_a_role_may_do_its_own_and_nothing_else(db: Session, role: str) -> None:
    allowed = set()
    for action in ALL:
        with db.connection.transaction(force_rollback=True):
            db.do(f"set local role {'bridge_test_nobody' if role == 'nobody' else role}")
            try:
                db.rows(f"select {action}")
                allowed.add(action)
            except psycopg.errors.InsufficientPrivilege:
                pass
    assert allowed == MAY[role]


def test_an_operator_pauses_resumes_and_runs_schedules(db: Session) -> None:
    db.do("select bridge.schedule('s', '@daily', 't')")
    with db.connection.transaction():
        db.do("set local role bridge_operator")
        for call in ("pause_schedule", "resume_schedule", "run_schedule"):
            db.do(f"select bridge.{call}('s')")
    assert db.one("select last_status from bridge.schedules") == "queued"


def test_the_public_may_execute_nothing_and_read_nothing(db: Session) -> None:
    functions = "select p.proname from pg_proc p, aclexplode(p.proacl) a where p.pronamespace = 'bridge'::regnamespace and a.grantee = 0"
    assert db.rows(functions) == []
    assert db.rows("select proname from pg_proc where pronamespace = 'bridge'::regnamespace and proacl is null") == []
    granted = "select relname from pg_class, aclexplode(relacl) a where relnamespace = 'bridge'::regnamespace and a.grantee = 0"
    assert db.rows(granted) == []


def test_an_operator_changes_the_value_of_a_setting_and_nothing_else_of_it(db: Session) -> None:
    with db.connection.transaction(force_rollback=True):
        db.do("set local role bridge_operator")
        db.do("update bridge.setting set value = '5', changed_at = now() where name = 'window'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.do("update bridge.setting set about = 'mine'")


def test_a_definers_function_is_not_led_astray_by_the_callers_search_path(db: Session) -> None:
    db.do("create schema evil")
    db.do("create table evil.job (id int)")
    db.do("grant usage on schema evil to bridge_producer")
    with db.connection.transaction():
        db.do("set local role bridge_producer")
        db.do("set local search_path = evil, pg_catalog")
        db.do("select bridge.enqueue('t')")
    assert db.one("select count(*) from bridge.job") == 1


def test_every_function_fixes_its_search_path(db: Session) -> None:
    loose = db.rows(
        "select proname from pg_proc where pronamespace = 'bridge'::regnamespace and prokind <> 'a'"
        " and not coalesce(proconfig::text like '%search_path=%', false)"
    )
    assert sorted(loose) == [("cleanup_loop",), ("run_calls",), ("tick_loop",)], "a procedure that commits cannot carry a SET clause"
