"""bridge.complete in SQL: a worker of any language ends a job in its own transaction, and nobody else has to wait for that."""

from __future__ import annotations

import json
import threading
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_client import command
from fix_servers import wait_until

import bridge
from bridge.errors import InvalidArgumentError, NotFoundError, WrongStateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Claim, Session


@pytest.fixture
def other(db: Session) -> Iterator[psycopg.Connection[Any]]:
    """A worker's own transaction."""
    with psycopg.connect(db.dsn) as connection:
        yield connection
        connection.rollback()


def complete(connection: psycopg.Connection[Any], claim: Claim, run: Any, result: Any = None) -> None:
    connection.execute("select bridge.complete(%s, %s, %s::jsonb)", (claim.seq, run, json.dumps(result)))


def fate(db: Session, claim: Claim, run: Any) -> str:
    return str(db.one("select bridge.fate_of_run(%s, %s)", claim.seq, run))


def test_a_completion_is_there_when_its_transaction_commits_and_never_was_when_it_rolls_back(db: Session, other: Any) -> None:
    parent = db.enqueue(unique_key="k")
    child = db.enqueue(depends_on=[parent])
    claim, run = db.run()
    complete(other, claim, run, {"done": 1})
    assert (db.status(parent), db.status(child), fate(db, claim, run)) == ("running", "blocked", "open")
    other.rollback()
    assert (db.status(parent), db.status(child), fate(db, claim, run)) == ("running", "blocked", "running")
    complete(other, claim, run, {"done": 2})
    other.commit()
    assert (db.status(parent), db.status(child), fate(db, claim, run)) == ("succeeded", "queued", "completed")
    assert (db.field(parent, "result"), db.field(parent, "outcome")) == ({"done": 2}, {"completed": True})
    assert db.attempts(parent) == [(1, "succeeded")]
    assert db.rows("select * from bridge.unique_key") == []


def test_whoever_waits_for_a_job_hears_of_its_completion_at_the_commit(db: Session, other: Any) -> None:
    job = db.enqueue()
    claim, run = db.run()
    db.do("listen bridge_done")
    db.do("select bridge.wait_for(%s)", [job])
    complete(other, claim, run)
    assert list(db.connection.notifies(timeout=0)) == []
    other.commit()
    assert [notice.payload for notice in db.connection.notifies(timeout=10, stop_after=1)] == [str(job)]


def test_a_run_that_was_superseded_cannot_commit_anything(db: Session, other: Any) -> None:
    db.do("create table effect (n integer)")
    job = db.enqueue()
    claim, run = db.run()
    assert db.one("select bridge.lose(%s, %s, 'gone')", claim.seq, claim.token) == "queued"
    other.execute("insert into effect values (1)")
    with pytest.raises(psycopg.Error, match=r"is over: it ended, or another run took its place") as refused:
        complete(other, claim, run)
    assert (refused.value.sqlstate, refused.value.diag.message_hint) == ("JB006", "roll back: nothing of this run may stand")
    other.commit()  # which Postgres makes a rollback
    assert (db.rows("select * from effect"), db.status(job), fate(db, claim, run)) == ([], "queued", "over")


def test_a_run_that_is_told_to_stop_is_not_completed_and_one_that_may_end_is(db: Session, other: Any) -> None:
    jobs = [db.enqueue(), db.enqueue()]
    told, may = db.run(limit=1), db.run(limit=1)
    assert [db.one("select bridge.cancel(%s, terminate => %s)", job, stop) for job, stop in zip(jobs, (True, False), strict=True)] == [
        "running",
        "running",
    ]
    with pytest.raises(psycopg.Error, match="was told to stop"):
        complete(other, *told)
    other.rollback()
    complete(other, *may)
    other.commit()
    assert db.fail(*told) == "cancelled"
    assert [db.status(job) for job in jobs] == ["cancelled", "succeeded"]


def test_a_job_that_only_celery_can_follow_is_refused(db: Session, other: Any) -> None:
    embed = json.dumps({"callbacks": None, "errbacks": None, "chain": [{"task": "b"}], "chord": None})
    db.do(
        "select bridge.enqueue_message(bridge.new_id(), null, 'a', 'celery', 9::smallint, '[]', '{}', %s, null, null, null, null, null,"
        " null, null)",
        embed,
    )
    claim, run = db.run()
    with pytest.raises(psycopg.Error, match="a step of a chain or a callback follows job ") as refused:
        complete(other, claim, run)
    assert refused.value.sqlstate == "JB001"


def test_a_completion_makes_the_day_that_it_ends_in(db: Session, other: Any) -> None:
    job = db.enqueue()
    claim, run = db.run()
    today = db.one("select to_char(now() at time zone 'utc', 'YYYYMMDD')")
    db.do(f"drop table bridge.finished_{today}, bridge.attempt_{today}")
    complete(other, claim, run)
    other.commit()
    assert db.status(job) == "succeeded"


def wait_for_blocked(db: Session) -> None:
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    wait_until(lambda: db.one(waiting) == 1, 10, "one that waits for the completion")


@pytest.mark.parametrize(("commits", "answer", "status"), [(True, "succeeded", "succeeded"), (False, "running", "running")])
def test_a_cancel_waits_for_a_completion_and_finds_how_it_ended(db: Session, other: Any, commits: bool, answer: str, status: str) -> None:  # noqa: FBT001
    job = db.enqueue()
    claim, run = db.run()
    complete(other, claim, run)
    answers: list[Any] = []
    with psycopg.connect(db.dsn, autocommit=True) as operator:
        thread = threading.Thread(target=lambda: answers.append(operator.execute("select bridge.cancel(%s)", (job,)).fetchone()))
        thread.start()
        wait_for_blocked(db)
        if commits:
            other.commit()
        else:
            other.rollback()
        thread.join()
    assert answers == [(answer,)]
    assert db.status(job) == status
    assert (db.field(job, "cancelled_at") is None) == commits


def test_a_completion_waits_for_a_cancel_and_finds_it(db: Session, other: Any) -> None:
    job = db.enqueue()
    claim, run = db.run()
    refused: list[Any] = []

    def try_it() -> None:
        with pytest.raises(psycopg.Error, match="was told to stop"):
            complete(other, claim, run)
        refused.append(True)

    with psycopg.connect(db.dsn) as operator:
        operator.execute("select bridge.cancel(%s)", (job,))
        thread = threading.Thread(target=try_it)
        thread.start()
        wait_for_blocked(db)
        operator.commit()
        thread.join()
    assert refused == [True]
    assert db.status(job) == "running"


def test_who_would_end_a_run_that_stays_being_completed_is_told_so(db: Session, other: Any) -> None:
    db.enqueue()
    claim, run = db.run()
    complete(other, claim, run)
    for call in (
        f"select bridge.lose({claim.seq}, '{claim.token}', 'gone')",
        f"select bridge.end_delivery({claim.seq}, '{claim.token}', '{db.worker}', 'failed', '{{}}')",
    ):
        with pytest.raises(psycopg.Error, match="is being completed by a transaction of its own task") as refused:
            db.one(call)
        assert refused.value.sqlstate == "JB007"


def test_no_tick_waits_for_a_transaction_that_its_dead_worker_has_left_open(db: Session, other: Any) -> None:
    jobs = [db.enqueue(), db.enqueue()]
    held, lost = db.run(limit=1), db.run(limit=1)
    db.report(held[0].token, lost[0].token)
    complete(other, *held)
    db.do("set statement_timeout = '5s'")
    db.do("update bridge.worker set seen_at = now() - interval '1 hour'")
    db.do("update bridge.tick_state set steady_since = now() - interval '1 day', ticked_at = now()")
    fair = "select pg_postmaster_start_time() + interval '1 hour'"
    db.do("select bridge.reap_workers(%s, now() - interval '1 day', 100)", db.one(fair))
    assert [db.status(job) for job in jobs] == ["running", "queued"]
    other.rollback()
    db.do("select bridge.reap_workers(%s, now() - interval '1 day', 100)", db.one(fair))
    assert [db.status(job) for job in jobs] == ["queued", "queued"]


def test_no_look_for_forgotten_runs_and_no_goodbye_waits_for_a_completion(db: Session, other: Any) -> None:
    jobs = [db.enqueue(), db.enqueue()]
    held, lost = db.run(limit=1), db.run(limit=1)
    complete(other, *held)
    db.do("set statement_timeout = '5s'")
    db.report()
    db.do("select bridge.note_unheld(clock_timestamp())")
    unheld = "select count(*) from bridge.inflight where missing_since is not null"
    assert db.one(unheld) == 1
    db.report(lost[0].token)
    db.do("select bridge.note_unheld(clock_timestamp())")
    assert db.one(unheld) == 0
    assert db.one("select bridge.stop_worker(%s)", db.worker) == 1
    assert [db.status(job) for job in jobs] == ["running", "queued"]
    other.commit()
    assert [db.status(job) for job in jobs] == ["succeeded", "queued"]


def test_no_deadline_waits_for_a_completion(db: Session, other: Any) -> None:
    jobs = [db.enqueue(), db.enqueue()]
    held, late = db.run(limit=1), db.run(limit=1)
    db.do("update bridge.job set deadline = now() - interval '1 minute'")
    complete(other, *held)
    db.do("set statement_timeout = '5s'")
    assert db.one("select bridge.end_overdue(100, now())") == 1
    other.commit()
    with pytest.raises(psycopg.Error, match="was told to stop, by a cancel or its deadline"):
        complete(other, *late)
    assert [db.status(job) for job in jobs] == ["succeeded", "running"]


def test_a_run_may_be_named_with_the_id_of_its_job(db: Session, other: Any) -> None:
    job = db.enqueue()
    _, run = db.run()
    other.execute("select bridge.complete(id => %s, run => %s, result => '5')", (job, run))
    other.commit()
    assert (db.status(job), db.field(job, "result")) == ("succeeded", 5)


def test_a_job_that_has_not_started_is_completed_by_hand_wherever_it_waits(db: Session) -> None:
    parent = db.enqueue(delay="1 hour")
    child = db.enqueue(depends_on=[parent])
    published = db.enqueue()
    claim = db.publish()
    for job in (parent, published):
        db.do('select bridge.complete(id => %s, result => \'{"by": "hand"}\')', job)
        assert (db.status(job), db.field(job, "result"), db.field(job, "attempts")) == ("succeeded", {"by": "hand"}, 0)
    assert db.status(child) == "queued"
    assert db.start(claim) is None, "its message starts nothing any more"
    reason = "select reason from bridge.history(%s) where event = 'succeeded'"
    assert db.rows(reason, parent) == [("somebody has completed it by hand",)]


@pytest.mark.parametrize(
    ("arguments", "state", "words"),
    [
        ("seq => 1", "JB001", "seq is 1, id is null and run is null"),
        ("run => gen_random_uuid()", "JB001", "seq is null, id is null"),
        ("seq => 1, id => gen_random_uuid(), run => gen_random_uuid()", "JB001", "seq is 1, id is "),
        ("id => gen_random_uuid()", "JB002", "does not exist"),
        ("id => '{running}'", "JB006", "is running"),
        ("id => '{ended}'", "JB006", "is succeeded"),
        ("id => gen_random_uuid(), run => gen_random_uuid()", "JB006", "is over"),
    ],
)
def test_what_cannot_be_completed_is_refused_in_words(db: Session, arguments: str, state: str, words: str) -> None:
    ended, running = db.enqueue(), db.enqueue()
    assert db.finish(*db.run(limit=1))
    db.run(limit=1)
    with pytest.raises(psycopg.Error) as refused:
        db.do(f"select bridge.complete({arguments.format(ended=ended, running=running)})")
    assert refused.value.sqlstate == state
    assert words in str(refused.value)
    assert refused.value.diag.message_hint


@pytest.mark.usefixtures("ours")
def test_the_command_line_completes_a_job_by_hand(db: Session) -> None:
    job = db.enqueue()
    done = command("jobs", "complete", job, "--result", "[1]")
    assert (done.exit_code, done.output) == (0, f"{job} succeeded\n")
    assert (db.status(job), db.field(job, "result")) == ("succeeded", [1])
    again = command("jobs", "complete", job)
    assert (again.exit_code, "is succeeded: only jobs that have not started" in again.output) == (1, True)
    wrong = command("jobs", "complete", job, "--result", "{")
    assert wrong.exit_code == 2


@pytest.mark.usefixtures("ours")
def test_python_completes_a_job_by_hand_in_the_callers_transaction(db: Session) -> None:
    parent = db.enqueue()
    child = db.enqueue(depends_on=[parent])
    with db.connection.transaction(force_rollback=True):
        bridge.complete(id=parent, connection=db.connection)
        assert db.status(child) == "queued"
    assert db.status(parent) == "queued"
    assert bridge.complete(id=parent, result={"rows": 17}) == {"rows": 17}
    assert (bridge.get(parent).result, db.status(child)) == ({"rows": 17}, "queued")
    for wrong, error, words in (
        ({"id": parent}, WrongStateError, "is succeeded: only jobs that have not started"),
        ({"id": uuid.uuid4()}, NotFoundError, "does not exist"),
        ({}, InvalidArgumentError, "session is None, id is None"),
        ({"session": db.connection, "id": child}, InvalidArgumentError, "give a session in a job's own task, or the id"),
        ({"id": child, "result": {1}}, InvalidArgumentError, f"result of job {child} is not JSON"),
        ({"session": db.connection}, WrongStateError, "outside of a task"),
    ):
        with pytest.raises(error, match=words):
            bridge.complete(**wrong)
    assert db.status(child) == "queued"
    bridge.complete(id=str(child))
    assert (db.status(child), db.field(child, "result")) == ("succeeded", None)


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("first", [True, False], ids=["completed first", "completed last"])
def test_children_and_batches_follow_beside_a_completion_that_is_open(db: Session, other: Any, commits: bool, first: bool) -> None:  # noqa: FBT001
    batch = db.one("select bridge.create_batch(callback => 'the.callback')")
    parents = [db.enqueue(batch=batch), db.enqueue(batch=batch)]
    child = db.enqueue(depends_on=parents)
    db.do("select bridge.seal_batch(%s)", batch)
    held, quick = db.run(limit=1), db.run(limit=1)
    if first:
        complete(other, *held)
    assert db.finish(*quick)
    if not first:
        complete(other, *held)
    db.tick()
    called = "select count(*) from bridge.jobs where task = 'the.callback'"
    assert (db.status(child), db.one(called)) == ("blocked", 0)
    if commits:
        other.commit()
    else:
        other.rollback()
        db.tick()
        assert (db.status(child), db.one(called)) == ("blocked", 0)
        assert db.finish(*held)
    db.tick()
    assert ([db.status(parent) for parent in parents], db.status(child), db.one(called)) == (["succeeded"] * 2, "queued", 1)
    db.tick()
    assert db.one(called) == 1
