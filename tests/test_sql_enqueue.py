"""What bridge.enqueue makes, and what it refuses before anything is written."""

from __future__ import annotations

import datetime as dt
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session
from psycopg.types.json import Jsonb

NOBODY = uuid.UUID("00000000-0000-4000-8000-000000000000")


def refusal(db: Session, query: str, *params: Any) -> tuple[str | None, str, str]:
    """SQLSTATE, message and hint; and nothing was written."""
    with pytest.raises(psycopg.Error) as caught:
        db.rows(query, *params)
    assert db.one("select count(*) from bridge.job") == 0
    assert db.one("select count(*) from bridge.unique_key") == 0
    said = caught.value.diag
    return said.sqlstate, said.message_primary or "", said.message_hint or ""


REFUSED = {
    "null task": ("null", "JB001", "task is NULL", "registered name"),
    "task with a space": ("'a task'", "JB001", "task is 'a task'", "without spaces"),
    "empty task": ("''", "JB001", "task is ''", "1 to 255"),
    "args that are no array": ("""'t', '{"a": 1}'""", "JB001", "args of task t is a JSON object", "[] for none"),
    "null args": ("'t', null", "JB001", "args of task t is null", "[] for none"),
    "kwargs that are no object": ("'t', '[]', '[1]'", "JB001", "kwargs of task t is a JSON array", "{} for none"),
    "queue with a comma": ("'t', queue => 'a,b'", "JB001", "queue is 'a,b'", "without spaces and commas"),
    "priority below 0": ("'t', priority => -1", "JB001", "priority is -1", "0 to 9"),
    "priority above 9": ("'t', priority => 10", "JB001", "priority is 10", "higher is sooner"),
    "null priority": ("'t', priority => null", "JB001", "priority is null", "0 to 9"),
    "negative delay": ("'t', delay => '-1 second'", "JB001", "delay is -00:00:01", "not negative"),
    "endless delay": ("'t', delay => '300000 years'", "JB001", "delay is 300000 years", "100 years at most"),
    "never due": ("'t', run_at => 'infinity'", "JB001", "run_at is infinity", "null for none"),
    "due before all time": ("'t', run_at => '-infinity'", "JB001", "run_at is -infinity", "null for none"),
    "expiry at no moment": ("'t', expires_at => 'infinity'", "JB001", "expires_at is infinity", "null for none"),
    "expiry in another age": ("'t', expires_at => '12000-01-01'", "JB001", "expires_at is 12000-01-01", "100 years"),
    "run_at and delay": ("'t', run_at => now(), delay => '1 s'", "JB001", "both run_at and delay are given", "one of them"),
    "no attempts": ("'t', max_attempts => 0", "JB001", "max_attempts is 0", "1 means no retry"),
    "too many attempts": ("'t', max_attempts => 10001", "JB001", "max_attempts is 10001", "1 to 10000"),
    "zero timeout": ("'t', timeout => '0'", "JB001", "timeout is 00:00:00", "positive interval"),
    "expiry in the past": ("'t', expires_at => '2001-01-01'", "JB001", "expires_at is 2001-01-01", "later moment"),
    "expiry before it is due": (
        "'t', delay => '1 hour', expires_at => now() + interval '1 minute'", "JB001", "before the job is due", "later moment"
    ),
    "unknown on_conflict": ("'t', on_conflict => 'ignore'", "JB001", "on_conflict is 'ignore'", "replace, move or debounce"),
    "empty unique key": ("'t', unique_key => ''", "JB001", "unique_key is empty", "null for none"),
    "headers that are no object": ("'t', headers => '[1]'", "JB001", "headers is a JSON array", "JSON object"),
    "headers of our own": ("""'t', headers => '{"id": 1, "mine": 2}'""", "JB001", "headers sets id", "run_at, expires_at and timeout"),
    "negative backoff": ("'t', backoff => '-1'", "JB001", "backoff is -1", "[60, 300, 900]"),
    "empty list of pauses": ("'t', backoff => '[]'", "JB001", "backoff is []", "[60, 300, 900]"),
    "text as backoff": ("""'t', backoff => '"soon"'""", "JB001", 'backoff is "soon"', "give seconds (30)"),
    "unknown part of backoff": ("""'t', backoff => '{"bas": 1}'""", "JB001", "backoff is", '{"base": 10'),
    "unknown parent": (f"'t', depends_on => array['{NOBODY}'::uuid]", "JB001", f"job {NOBODY}, which does not exist", "jobs that exist"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_never_work_is_refused_with_its_value_and_what_to_do(db: Session, case: str) -> None:
    call, sqlstate, message, hint = REFUSED[case]
    said = refusal(db, f"select bridge.enqueue({call})")
    assert said[0] == sqlstate
    assert message in said[1]
    assert hint in said[2]


def test_an_option_that_does_not_exist_is_refused_by_name(db: Session) -> None:
    sqlstate, message, _ = refusal(db, "select bridge.enqueue('t', prioritty => 3)")
    assert sqlstate == "42883"
    assert "prioritty" in message


def test_a_payload_over_the_limit_is_refused_with_both_sizes(db: Session) -> None:
    sqlstate, message, hint = refusal(db, "select bridge.enqueue('t', jsonb_build_array(repeat('x', 1048576)))")
    assert sqlstate == "JB004"
    assert "is 1048582 bytes, the limit is 1048576" in message
    assert "raise the setting max_payload" in hint


def test_the_limit_of_a_payload_is_a_setting(db: Session) -> None:
    db.do("update bridge.setting set value = '2097152' where name = 'max_payload'")
    assert db.status(db.enqueue(args=["x" * 1_500_000])) == "queued"


def test_a_parent_that_failed_is_refused(db: Session) -> None:
    parent = db.enqueue(max_attempts=1)
    db.fail(*db.run())
    with pytest.raises(psycopg.Error, match="which ended as failed"):
        db.enqueue(depends_on=[parent])


def test_a_job_exists_when_the_callers_transaction_commits(db: Session) -> None:
    with db.connection.transaction():
        identity = db.enqueue()
    assert db.status(identity) == "queued"


def test_a_job_never_existed_when_the_callers_transaction_rolls_back(db: Session) -> None:
    with db.connection.transaction(force_rollback=True):
        db.enqueue(unique_key="once")
    assert db.one("select count(*) from bridge.jobs") == 0
    assert db.one("select count(*) from bridge.unique_key") == 0


def test_defaults_are_those_of_the_documentation(db: Session) -> None:
    identity = db.enqueue()
    columns = (
        "task, args, kwargs, queue, status, priority, attempts, max_attempts, result, error, progress, worker, started_at, finished_at"
    )
    assert db.rows(f"select {columns} from bridge.jobs where id = %s", identity) == [
        ("a.task", [], {}, "celery", "queued", 0, 0, 3, None, None, None, None, None, None)
    ]
    assert db.one("select task_id = id::text and created_at = run_at and updated_at = created_at from bridge.jobs")


def test_a_delay_schedules_the_job_that_much_later(db: Session) -> None:
    identity = db.enqueue(delay="2 days")
    assert db.status(identity) == "scheduled"
    assert db.one("select run_at - created_at from bridge.jobs") == dt.timedelta(days=2)


def test_a_moment_in_the_past_is_due_at_once(db: Session) -> None:
    assert db.status(db.enqueue(run_at="2001-01-01")) == "queued"


def test_the_second_job_with_a_unique_key_is_the_first_one(db: Session) -> None:
    first = db.enqueue(unique_key="invoice 7")
    assert db.enqueue(unique_key="invoice 7") == first
    assert db.one("select count(*) from bridge.jobs") == 1


def test_a_taken_unique_key_raises_where_that_is_asked_for(db: Session) -> None:
    db.enqueue(unique_key="invoice 7")
    with pytest.raises(psycopg.Error) as caught:
        db.enqueue(unique_key="invoice 7", on_conflict="raise")
    assert caught.value.diag.sqlstate == "JB003"
    assert caught.value.diag.message_primary == "unique_key 'invoice 7' belongs to a job that has not ended"


def test_a_unique_key_is_free_again_when_its_job_has_ended(db: Session) -> None:
    first = db.enqueue(unique_key="invoice 7")
    db.finish(*db.run())
    assert db.enqueue(unique_key="invoice 7") != first


def test_two_sessions_that_take_one_key_at_once_make_one_job(db: Session, dsn: str) -> None:
    sessions = [Session(dsn) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda session: [session.enqueue(unique_key=f"key {n}") for n in range(20)], sessions))
    assert len({tuple(some) for some in ids}) == 1
    assert db.one("select count(*) from bridge.jobs") == 20


def test_a_unique_key_of_a_transaction_that_rolls_back_goes_to_the_one_that_waits(db: Session, dsn: str) -> None:
    other = Session(dsn)
    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction(force_rollback=True):
            db.enqueue(unique_key="once")
            waiting = pool.submit(other.enqueue, unique_key="once")
            blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid = %s"
            wait_until(lambda: db.one(blocked, other.connection.info.backend_pid))
        assert other.status(waiting.result(20)) == "queued"


def many(db: Session, *jobs: Any) -> list[Any]:
    return [row[0] for row in db.rows("select bridge.enqueue_many(%s)", Jsonb(list(jobs)))]


def test_many_jobs_come_back_in_the_order_they_were_given(db: Session) -> None:
    ids = many(
        db,
        {"task": "a"},
        {"task": "b", "args": [1], "kwargs": {"k": None}, "queue": "q", "priority": 5, "max_attempts": 1, "backoff": [1, 2]},
        {"task": "c", "delay": "1 hour", "timeout": "5 s", "headers": {"mine": 1}, "unique_key": "u", "on_conflict": "raise"},
    )
    assert [db.field(identity, "task") for identity in ids] == ["a", "b", "c"]
    assert db.rows("select args, kwargs, queue, priority, max_attempts from bridge.jobs where task = 'b'") == [
        ([1], {"k": None}, "q", 5, 1)
    ]
    assert db.rows("select status, headers from bridge.jobs where task = 'c'") == [("scheduled", {"mine": 1, "timelimit": [5.0, None]})]


def test_many_jobs_may_depend_on_one_that_exists(db: Session) -> None:
    parent = db.enqueue()
    assert db.status(many(db, {"task": "child", "depends_on": [str(parent)]})[0]) == "blocked"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"task": "b", "priority": 11}, "jobs[1]: priority is 11"),
        ({"task": "b", "prio": 1}, "jobs[1]: unknown key prio"),
        ({"args": []}, "jobs[1]: task is NULL"),
        ({"task": "b", "delay": "a while"}, 'jobs[1]: delay is "a while"'),
        ({"task": "b", "depends_on": [str(NOBODY)]}, f"jobs[1]: depends_on names job {NOBODY}"),
        (7, "jobs[1]:"),
    ],
)
def test_one_bad_job_of_many_refuses_all_and_is_named(db: Session, bad: Any, message: str) -> None:
    sqlstate, said, _ = refusal(db, "select bridge.enqueue_many(%s)", Jsonb([{"task": "a"}, bad, {"task": "c"}]))
    assert sqlstate == "JB001"
    assert said.startswith(message)


def test_many_jobs_must_be_an_array(db: Session) -> None:
    assert refusal(db, "select bridge.enqueue_many('{}')")[:2] == ("JB001", "jobs is a JSON object")


def test_no_jobs_at_all_are_fine(db: Session) -> None:
    assert many(db) == []


def test_a_trigger_enqueues_inside_the_transaction_that_fires_it(db: Session) -> None:
    db.do("create table upload (path text)")
    db.do("""create function on_upload() returns trigger language plpgsql as
        'begin perform bridge.enqueue(''media.card'', jsonb_build_array(new.path)); return new; end'""")
    db.do("create trigger upload_job after insert on upload for each row execute function on_upload()")
    db.do("insert into upload values ('a.png'), ('b.png')")
    assert db.rows("select args from bridge.jobs order by created_at") == [(["a.png"],), (["b.png"],)]


def test_an_id_begins_with_its_moment(db: Session) -> None:
    identity = db.enqueue()
    milliseconds = int(identity.hex[:12], 16)
    assert identity.version == 7
    assert abs(milliseconds / 1000 - db.field(identity, "created_at").timestamp()) < 1
