"""The SQL as a program: it parses, it checks, and its hot statements use the indexes that were made for them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from fix_servers import ROOT
from fix_sql import Session
from pglast import parse_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases

FILES = sorted((ROOT / "sql").rglob("*.sql")) + sorted((ROOT / "tasks").rglob("sql/**/*.sql"))
ROWS = 50_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_parses(path: Any) -> None:
    text = path.read_text()
    assert text.endswith("\n")
    parse_sql(text)  # raises where it does not


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_needs_nothing_but_a_server(path: Any) -> None:
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith("\\")] == [], "no psql meta-commands"
    assert [line for line in lines if "create extension" in line.lower() and "'" not in line and "--" not in line] == []


def test_the_number_of_a_file_says_when_it_is_applied() -> None:
    numbers = [path.name[:2] for path in (ROOT / "sql").glob("*.sql")]
    assert sorted(number for number in numbers if numbers.count(number) > 1) == []


def test_every_function_says_its_contract(db: Session) -> None:
    functions = "select proname from pg_proc p join pg_language l on l.oid = prolang where pronamespace = 'bridge'::regnamespace"
    assert db.rows(rf"{functions} and lanname = 'plpgsql' and prosrc !~ '^\s*--'") == []


@pytest.fixture(scope="module")
def full(databases: Databases, template: str) -> Iterator[Session]:
    """A database with many rows in every place."""
    name = databases.create(template)
    db = Session(databases.server.dsn_of(name))
    db.do("select bridge.make_days((now() - interval '9 days')::date, 10)")
    db.do("update bridge.setting set value = '0' where name = 'window'")
    db.do(
        """
        with made as (
          insert into bridge.job (id, task, queue, rank, args, kwargs, size, max_attempts, run_at, created_at, updated_at, expires_at)
          select gen_random_uuid(), 'task.' || n % 20, 'queue' || n % 5, n % 10, '[]', '{}', 4, 3, now(), now(), now(),
            case when n % 10 = 0 then now() + interval '1 day' end
          from generate_series(1, 3 * %s) n returning seq, queue, rank, size
        ), waits as (insert into bridge.scheduled (seq, run_at) select seq, now() + seq * interval '1 second' from made where seq %% 3 = 0)
        , flies as (
          insert into bridge.inflight (seq, queue, token, shipment, drainer, claimed_at, state)
          select seq, queue, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), now(), 'published' from made where seq %% 3 = 1
        )
        insert into bridge.ready (queue, rank, seq, size) select queue, rank, seq, size from made where seq %% 3 = 2
        """.replace("n % ", "n %% "),
        ROWS,
    )
    db.do(
        """
        insert into bridge.finished (seq, id, task, queue, rank, args, kwargs, size, max_attempts, attempts, losses, run_at, created_at,
          finished_at, started_at, status, run)
        select n + 1000000, gen_random_uuid(), 'task.' || n %% 20, 'queue' || n %% 5, 9, '[]', '{}', 4, 3, 1, 0, now(), now(),
          now() - n * interval '15 seconds', now(), case when n %% 50 = 0 then 'failed' else 'succeeded' end, gen_random_uuid()
        from generate_series(1, %s) n""",
        ROWS,
    )
    with db.connection.transaction():
        # Past the trigger that reads each cron: so many take a while.
        db.do("set local session_replication_role = replica")
        db.do(
            "insert into bridge.schedule (name, cron, task, next_at) select 's' || n, '@daily', 't', now() + n * interval '1 s'"
            " from generate_series(1, %s) n",
            ROWS,
        )
        db.do(
            "insert into bridge.schedule_run (schedule, slot, trigger_type, status, created_at, job)"
            " select 's' || n %% 100, now() - n * interval '1 s', 'scheduled', 'succeeded', now(), gen_random_uuid()"
            " from generate_series(1, %s) n",
            ROWS,
        )
    db.do("analyze bridge.finished")
    yield db
    db.connection.close()
    databases.drop(name)


def plan(db: Session, query: str, *params: Any) -> tuple[str, int]:
    """The plan's text and how many rows it read."""
    row = db.one(f"explain (analyze, buffers, timing off, format json) {query}", *params)

    def read(node: dict[str, Any]) -> int:
        below = sum(read(child) for child in node.get("Plans", []))
        own = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] if "Scan" in node["Node Type"] else 0
        return below + int(own)

    return json.dumps(row), read(row[0]["Plan"])


@pytest.fixture
def inside(full: Session) -> Iterator[Session]:
    """Plans of the statements inside functions go to the log of the session, as notices."""
    seen: list[str] = []
    full.connection.add_notice_handler(lambda notice: seen.append(notice.message_primary or ""))
    full.do("load 'auto_explain'")
    full.do("set auto_explain.log_min_duration = 0")
    full.do("set auto_explain.log_nested_statements = on")
    full.do("set auto_explain.log_level = notice")
    full.do("set client_min_messages = notice")
    full.plans = seen  # type: ignore[attr-defined]
    yield full
    full.do("set auto_explain.log_min_duration = -1")
    full.connection._notice_handlers.clear()


def plans_of(db: Session, query: str, *params: Any) -> str:
    """All plans of a call, what it did undone."""
    db.plans.clear()  # type: ignore[attr-defined]
    with db.connection.transaction(force_rollback=True):
        db.rows(query, *params)
    text = "\n".join(db.plans)  # type: ignore[attr-defined]
    assert "Query Text" in text
    return text


def big_scans(text: str) -> list[str]:
    """Sequential scans of tables that grow."""
    big = ("job", "ready", "held", "lane", "permit", "scheduled", "inflight", "finished", "attempt", "schedule", "schedule_run", "log_line")
    lines = [line.strip() for line in text.splitlines() if "Seq Scan on" in line]
    return [line for line in lines if any(f"Seq Scan on {name} " in line for name in big)]


CALLS = {
    "claim": ("select * from bridge.claim(gen_random_uuid(), 'queue2', gen_random_uuid(), 100)", "ready_pkey"),
    "ready_queues": ("select bridge.ready_queues()", "ready_pkey"),
    "drain": ("select * from bridge.drain_state()", "inflight_live"),
    "due": ("select bridge.move_due(100, now() + interval '1000 seconds')", "scheduled_run_at"),
    "slots": ("select bridge.run_schedules(100, now() + interval '10 seconds')", "schedule_next"),
    "ended runs": ("select bridge.run_schedules(100, now())", "schedule_run_open"),
    "expire": ("select bridge.expire_due(10, now() + interval '2 days')", "job_expires"),
    "overdue": ("select bridge.end_overdue(10, now())", "job_deadline"),
    "history": ("select * from bridge.history('{ended}')", "attempt_[0-9]+_id_idx|attempt_id"),
    "start": ("select bridge.start(1, (select token from bridge.inflight where seq = 1), gen_random_uuid(), 1)", "inflight_pkey"),
    "finish": ("select bridge.finish(1, gen_random_uuid(), 'succeeded')", "finished_[0-9]+_seq_idx|finished_seq"),
    "cancel": ("select bridge.cancel((select id from bridge.job where seq = 2))", "job_id"),
    "retry": ("select bridge.retry('{ended}')", "_id_idx"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_hot_function_reads_by_its_index(inside: Session, call: str) -> None:
    query, index = CALLS[call]
    text = plans_of(inside, query.format(ended=inside.one("select id from bridge.finished limit 1")))
    assert re.search(index, text), text
    assert [scan for scan in big_scans(text) if "One-Time" not in scan] == []


EVERY_SECOND = {
    "calls": "select bridge.calls_wait()",
    "queues": "select bridge.ready_queues()",
    "next look": "select bridge.next_look()",
    "tick": "select bridge.tick('drainer', p_now => now() + interval '1 second')",
    "suspects": "select * from bridge.suspects()",
    "look": "select bridge.may_look()",
    "alerts": "select * from bridge.watch_alerts()",
}


@pytest.mark.parametrize("name", EVERY_SECOND)
def test_what_a_drainer_asks_all_the_time_is_not_compiled(inside: Session, name: str) -> None:
    """A forbidden scan of a table of one row costs so much that Postgres compiles its plan: some 70 ms of CPU a call, instead of one."""
    text = plans_of(inside, EVERY_SECOND[name])
    assert "JIT:" not in text, text


def test_a_function_that_forbids_scans_has_nothing_compiled(db: Session) -> None:
    forbids = "select proname from pg_proc where pronamespace = 'bridge'::regnamespace and 'enable_seqscan=off' = any(proconfig)"
    assert db.rows(f"{forbids} and not 'jit=off' = any(proconfig) order by 1") == []


def test_a_line_is_added_to_a_log_and_an_end_is_told_by_their_indexes(inside: Session) -> None:
    with inside.connection.transaction(force_rollback=True):
        inside.do(
            "insert into bridge.log_line (id, run, attempt, number, pos, at, level, message)"
            " select gen_random_uuid(), gen_random_uuid(), 1, 1, 1, now(), 'info', 'x' from generate_series(1, %s)",
            ROWS,
        )
        inside.do("select bridge.set_webhook('hook', 'https://hooks.example.org')")
        inside.do("select bridge.start(1, (select token from bridge.inflight where seq = 1), gen_random_uuid(), 1)")
        run = inside.one("select run from bridge.inflight where seq = 1")
        noted = plans_of(inside, """select bridge.note(1, %s, null, '[[0, "info", "x", 0, 0]]')""", run)
        told = plans_of(inside, "select bridge.finish(1, %s, 'succeeded')", run)
    assert re.search("log_line_[0-9]+_id_run_number_idx", noted)
    assert "bridge.deliver" in told
    assert [scan for scan in (*big_scans(noted), *big_scans(told)) if "One-Time" not in scan] == []


BREAKERS = {
    "task": "finished_[0-9]+_task_status_finished_at_idx|finished_task_status",
    "queue": "finished_[0-9]+_queue_finished_at_idx|finished_failed_queue",
}


@pytest.mark.parametrize("kind", BREAKERS)
def test_a_breaker_is_judged_by_the_indexes_of_what_failed_lately(inside: Session, kind: str) -> None:
    name = {"task": "task.0", "queue": "queue0"}[kind]
    with inside.connection.transaction(force_rollback=True):
        inside.do(f"select bridge.set_breaker({kind} => %s, ratio => 0.9, minimum => 10, within => '1 day')", name)
        inside.do("update bridge.breaker set changed_at = now() - interval '1 day'")
        text = plans_of(inside, "select bridge.judge_breakers(now())")
    assert re.search(BREAKERS[kind], text), text
    assert re.search(f"attempt_[0-9]+_{kind}_ended_at_idx|attempt_failed_{kind}", text), text
    assert big_scans(text) == []


def test_a_tick_reads_no_dependency_that_nobody_asks_it_to(inside: Session) -> None:
    with inside.connection.transaction(force_rollback=True):
        inside.do("insert into bridge.dependency (parent, child) select seq - 1, seq from bridge.job order by seq desc limit 500")
        assert "from bridge.dependency" not in plans_of(inside, "select bridge.tick('test')")
        inside.do("insert into bridge.blocked (seq, run_at) select max(child), now() from bridge.dependency")
        inside.do("insert into bridge.second_look (child) select seq from bridge.blocked")
        text = plans_of(inside, "select bridge.tick('test')")
    # What is in flight is bounded by the windows, and permits by that; alert rules look at all schedules, which people make.
    assert [scan for scan in big_scans(text) if not re.search(r"inflight|permit| on schedule\b", scan)] == []
    assert "dependency_child" in text


ASIDE = (
    "select bridge.room('queue1')", "select * from bridge.suspects()", "select bridge.unclaim_dead(9, now() + interval '1 h')",
    "select bridge.note_unheld(now())",
    "select bridge.report_worker(gen_random_uuid(), 'w', 1, 'prefork', 1, '{}', 't', array[gen_random_uuid()], now())",
)  # fmt: skip


def test_what_was_set_aside_is_not_read_by_claims_ticks_and_reports(inside: Session) -> None:
    inside.do("update bridge.inflight set taken_by = '{old@host}'")
    inside.do("vacuum bridge.inflight")
    inside.do("update bridge.setting set value = '1000' where name = 'window'")
    inside.do("set enable_seqscan = off")  # as ticks and claims do
    try:
        for call in ASIDE:
            text = plans_of(inside, call)
            assert re.search("inflight_live|inflight_stops", text), text
    finally:
        inside.do("reset enable_seqscan")
        inside.do("update bridge.inflight set taken_by = null")
        inside.do("update bridge.setting set value = '0' where name = 'window'")


def test_a_lookup_by_id_reads_one_row_of_one_day(full: Session) -> None:
    live = full.one("select id from bridge.job where seq = 777")
    ended = full.one("select id from bridge.finished limit 1")
    # The first and the last day have what the time of day has given them: a page or two is sooner read than looked up.
    few = full.one("""
        select coalesce(sum(d.jobs), 0) from (
          select count(*) as jobs from bridge.finished group by date_trunc('day', finished_at at time zone 'utc')) d
        where d.jobs < 1000""")
    for identity in (live, ended):
        text, rows = plan(full, "select * from bridge.jobs where id = %s", identity)
        assert '"job_id"' in text
        assert rows <= 10 + few


def test_the_last_runs_of_a_schedule_are_read_without_the_others(full: Session) -> None:
    text, rows = plan(full, "select * from bridge.schedules where name = 's7'")
    assert "schedule_run_latest" in text
    assert rows < 50


def test_the_last_failures_are_read_without_the_successes(full: Session) -> None:
    text, rows = plan(full, "select * from bridge.failed_jobs order by finished_at desc limit 50")
    assert "unsuccessful" in text or "finished_at_idx" in text
    assert rows < 500


def test_a_page_by_task_and_status_is_read_from_its_end(full: Session) -> None:
    query = "select * from bridge.finished where task = 'task.3' and status = 'succeeded' order by finished_at desc limit 50"
    text, rows = plan(full, query)
    assert "task_status_finished_at_idx" in text
    assert rows < 500


def test_the_last_hour_is_read_without_the_days_before(full: Session) -> None:
    text, rows = plan(full, "select status, count(*) from bridge.finished where finished_at > now() - interval '1 hour' group by status")
    assert rows < ROWS // 2
    assert "Subplans Removed" in text


ENDED = {
    "a task": ({"task": "task.3", "max_jobs": 50}, ["failed"], "task_status_finished_at_idx"),
    "many tasks": ({"task": "task.1*", "max_jobs": 20}, ["failed", "succeeded"], "task_status_finished_at_idx"),
    "any task": ({"max_jobs": 20}, ["succeeded", "failed", "cancelled", "expired"], "task_status_finished_at_idx"),
    "dead letters": ({"queue": "queue0", "max_jobs": 50}, ["failed"], "finished_at_idx"),
    "unsuccessful": ({"max_jobs": 50}, ["failed", "cancelled"], "finished_at_idx"),
    "ids": ({"ids": ["0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11"]}, ["failed"], "_id_idx"),
    "a batch": ({"batch": "0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11"}, ["succeeded", "failed"], "batch_status_idx"),
}


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize("case", ENDED)
def test_a_filter_reads_of_the_ended_jobs_little_more_than_it_chooses(full: Session, case: str, *, newest: bool) -> None:
    wanted, statuses, index = ENDED[case]
    query = full.one("select bridge.ended_query(%s, %s, %s, %s)", json.dumps(wanted), statuses, newest, case == "dead letters")
    text, rows = plan(full, query.replace("%", "%%"))
    assert index in text, text
    assert rows < 3000, text  # of 50,000


def test_the_names_of_tasks_are_found_by_hops(full: Session) -> None:
    names = "select bridge.ended_tasks(%s)"
    assert len(full.one(names, "{}")) == 20
    assert full.one(names, '{"task": ["task.1*", "task.19"]}') == ["task.1", *(f"task.1{n}" for n in range(10))]
    assert full.one(names, '{"task": ["task.7", "no.such"]}') == ["no.such", "task.7"], "what is named whole is not looked for"
    text, rows = plan(full, "select f.task from bridge.finished f where f.task > 'task.1' order by f.task limit 1")
    assert "task_status_finished_at_idx" in text
    assert rows < 50


def test_a_filter_by_queue_reads_live_jobs_without_the_ended_ones(full: Session) -> None:
    query = full.one("select bridge.live_query(%s, bridge.live_statuses(), false)", json.dumps({"queue": "queue1", "max_jobs": 100}))
    text, _ = plan(full, query)
    assert "finished" not in text
