"""`bridge.enqueue_many` from SQL: set-based, in the caller's transaction, every bad element named."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from uuid import UUID

CALLS = "select funcname, calls from pg_stat_xact_user_functions where schemaname = 'bridge'"


def many(session: Session, *jobs: Any) -> list[UUID]:
    return [row[0] for row in session.rows("select bridge.enqueue_many(%s)", Jsonb(list(jobs)))]


def calls(db: Session, jobs: list[dict[str, Any]]) -> dict[str, int]:
    """How often functions of the schema are called for a bulk call."""
    with db.connection.transaction():
        db.do("set local track_functions = 'all'")
        many(db, *jobs)
        return dict(db.rows(CALLS))


@pytest.mark.parametrize("options", [{}, {"delay": "1 hour"}, {"unique_key": "k"}, {"serial_key": "s", "delay": "1 hour"}])
def test_jobs_that_ask_for_the_same_are_checked_once_and_written_by_one_statement(db: Session, options: dict[str, str]) -> None:
    jobs = [
        {"task": "a.task", "args": [n], **{name: f"{text} {n}" if text == "k" else text for name, text in options.items()}}
        for n in range(500)
    ]
    counted = calls(db, jobs)
    assert counted["request_of"] == 1
    assert not {"enqueue_as", "add_job", "place", "make_ready", "take_key"} & set(counted)
    assert max(count for name, count in counted.items() if name not in {"new_id", "row_template", "with_parents", "is_free_at_start"}) < 10
    assert db.one("select count(*) from bridge.job") == 500


def test_a_single_job_costs_a_handful_of_calls(db: Session) -> None:
    with db.connection.transaction():
        db.do("set local track_functions = 'all'")
        db.enqueue()
        counted = dict(db.rows(CALLS))
    assert sum(counted.values()) <= 16, counted


def test_keys_of_a_bulk_call_are_looked_up_by_their_index(db: Session) -> None:
    db.do("""insert into bridge.unique_key (key, seq, id, kept_until)
        select 'k ' || n, -n, gen_random_uuid(), '2100-01-01' from generate_series(1, 50000) n""")
    db.do("analyze bridge.unique_key")
    query = "explain (format json) select u.id from unnest(%s::text[]) r (key) left join bridge.unique_key u on u.key = r.key"
    with db.connection.transaction():
        db.do("set local enable_seqscan = off")
        plan = json.dumps(db.one(query, [f"k {n}" for n in range(1000)]))
    assert "unique_key_pkey" in plan
    jobs = [{"task": "a.task", "unique_key": f"k {n}"} for n in range(1000)]
    assert len(set(many(db, *jobs))) == 1000
    assert db.one("select count(*) from bridge.job") == 1


def test_elements_may_name_earlier_ones_as_parents_by_their_number(db: Session) -> None:
    ids = many(db, {"task": "a"}, {"task": "b"}, {"task": "c", "depends_on": [0, 1]}, {"task": "d", "depends_on": [2]})
    assert [db.status(identity) for identity in ids] == ["queued", "queued", "blocked", "blocked"]
    for _ in range(2):
        db.finish(*db.run(limit=1))
    assert db.status(ids[2]) == "queued"


def test_a_number_that_is_no_earlier_element_is_refused(db: Session) -> None:
    for bad in (1, 2, 99):
        with pytest.raises(psycopg.Error) as caught:
            many(db, {"task": "a"}, {"task": "b", "depends_on": [bad]}, {"task": "c"})
        assert caught.value.sqlstate == "JB001"
        assert str(caught.value.diag.message_primary).startswith("jobs[1]: depends_on")


def test_the_detail_of_the_error_has_every_bad_element(db: Session) -> None:
    with pytest.raises(psycopg.Error) as caught:
        many(db, {"task": "a", "priority": 11}, {"task": "b"}, {"task": "c", "max_attempts": 0}, 7)
    assert caught.value.sqlstate == "JB001"
    faults = json.loads(str(caught.value.diag.message_detail))
    assert [(fault["job"], fault["argument"]) for fault in faults] == [(0, "priority"), (2, "max_attempts"), (3, "job")]
    assert caught.value.diag.message_primary == "jobs[0]: priority is 11; jobs[2]: max_attempts is 0; jobs[3]: job is a JSON number"


@pytest.mark.parametrize(
    ("argument", "value", "remedy"),
    [
        ("retry_on", 5, "an array of texts"), ("retry_on", "ValueError", "an array of texts"), ("never_on", {"a": 1}, "an array of texts"),
        ("priority", "high", "a whole number"), ("max_attempts", 99999999999, "a whole number"), ("timeout", "a while", "an interval"),
        ("run_at", "soon", "a time with its zone"), ("batch", "b", "an id"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_than_its_argument_is_named_with_its_row(db: Session, argument: str, value: Any, remedy: str) -> None:
    bad = {"task": "a.task", argument: value}
    words = f"{argument} is {json.dumps(value)}"
    with pytest.raises(psycopg.Error) as caught:
        many(db, {"task": "a.task"}, bad)
    with pytest.raises(psycopg.Error) as of_a_flow:
        db.do("select bridge.enqueue_flow(%s)", Jsonb([{"ref": "first", "task": "a.task"}, {"ref": "second", **bad}]))
    assert (caught.value.diag.message_primary, of_a_flow.value.diag.message_primary) == (f"jobs[1]: {words}", f"jobs[1] (second): {words}")
    for error in (caught.value, of_a_flow.value):
        assert error.sqlstate == "JB001"
        assert f"give {remedy}" in str(error.diag.message_hint)


def test_an_error_that_is_nobodys_fault_stays_what_it_is(db: Session, dsn: str) -> None:
    other = Session(dsn)
    with db.connection.transaction():
        db.enqueue(unique_key="k")
        other.do("set statement_timeout = '200ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            many(other, {"task": "a", "unique_key": "k"})
    other.connection.close()


def test_two_bulk_calls_with_the_same_keys_in_another_order_do_not_block_each_other_for_ever(db: Session, dsn: str) -> None:
    other = Session(dsn)
    jobs = [{"task": "a.task", "unique_key": f"k {n}"} for n in range(50)]
    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction():
            first = many(db, *jobs)
            waiting = pool.submit(many, other, *reversed(jobs))
            blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid = %s"
            wait_until(lambda: db.one(blocked, other.connection.info.backend_pid))
        assert waiting.result(20) == first[::-1]
    other.connection.close()
    assert db.one("select count(*) from bridge.job") == 50
