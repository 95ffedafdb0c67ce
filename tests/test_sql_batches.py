"""Batches: they end with their last job, whoever ends it, and their callback is made once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_sql import Session

if TYPE_CHECKING:
    from uuid import UUID

CALLED = "select count(*) from bridge.jobs where task = 'the.callback'"


def batch(db: Session, callback_on: str = "complete", *, sealed: bool = False, jobs: int = 0) -> UUID:
    identity: UUID = db.one("select bridge.create_batch('import', 'the.callback', '[1]', '{\"by\": 2}', 'calls', %s)", callback_on)
    for _ in range(jobs):
        db.enqueue(batch=identity, max_attempts=1)
    if sealed:
        seal(db, identity)
    return identity


def seal(db: Session, identity: UUID) -> str:
    return str(db.one("select bridge.seal_batch(%s)", identity))


def shown(db: Session, identity: UUID, *columns: str) -> tuple[Any, ...]:
    return db.rows(f"select {', '.join(columns)} from bridge.batches where id = %s", identity)[0]


def refusal(db: Session, query: str, *params: Any) -> tuple[str | None, str]:
    with pytest.raises(psycopg.Error) as refused:
        db.rows(query, *params)
    return refused.value.sqlstate, str(refused.value.diag.message_primary)


def test_a_batch_counts_its_jobs_by_their_status(db: Session) -> None:
    identity = batch(db, jobs=3)
    db.enqueue(batch=identity, delay="1 hour")
    db.fail(*db.run(limit=1))
    db.finish(*db.run(limit=1))
    db.run()
    assert shown(db, identity, "status", "total", "ended", "progress") == ("open", 4, 2, 0.5)
    assert shown(db, identity, "scheduled", "running", "succeeded", "failed") == (1, 1, 1, 1)


def test_the_callback_is_made_when_the_last_job_ends(db: Session) -> None:
    identity = batch(db, jobs=2, sealed=True)
    db.fail(*db.run(limit=1))
    assert db.one(CALLED) == 0
    db.finish(*db.run())
    assert shown(db, identity, "status", "ended_at is not null") == ("failed", True)
    (call,) = db.rows("select id, args, kwargs, queue, headers->>'bridge_batch' from bridge.jobs where task = 'the.callback'")
    assert call == (shown(db, identity, "callback_job")[0], [1], {"by": 2}, "calls", str(identity))


def test_a_batch_that_is_not_sealed_does_not_end(db: Session) -> None:
    identity = batch(db, jobs=1)
    db.finish(*db.run())
    db.tick()
    assert shown(db, identity, "status") == ("open",)
    db.enqueue(batch=identity)
    assert seal(db, identity) == "running"
    db.finish(*db.run())
    assert (shown(db, identity, "status"), db.one(CALLED)) == (("succeeded",), 1)


def test_an_empty_batch_ends_when_it_is_sealed(db: Session) -> None:
    identity = batch(db, "success")
    assert [seal(db, identity), seal(db, identity)] == ["succeeded", "succeeded"]
    assert (shown(db, identity, "progress"), db.one(CALLED)) == ((1.0,), 1)


def test_a_job_may_add_others_to_its_sealed_batch(db: Session) -> None:
    identity = batch(db, jobs=1, sealed=True)
    run = db.run()
    db.enqueue(batch=identity)
    db.finish(*run)
    assert shown(db, identity, "status") == ("running",)
    db.finish(*db.run())
    assert shown(db, identity, "status", "total") == ("succeeded", 2)
    code, words = refusal(db, "select bridge.enqueue('t', batch => %s)", identity)
    assert (code, words) == ("JB006", f"batch {identity} has ended")


def test_a_callback_on_success_waits_for_what_failed_to_be_redriven(db: Session) -> None:
    identity = batch(db, "success", jobs=1, sealed=True)
    claim, run = db.run()
    db.fail(claim, run)
    assert (shown(db, identity, "status"), db.one(CALLED)) == (("failed",), 0)
    db.do("select bridge.retry(%s)", claim.id)
    assert shown(db, identity, "status") == ("running",)
    db.finish(*db.run())
    assert (shown(db, identity, "status"), db.one(CALLED)) == (("succeeded",), 1)


def test_a_callback_that_was_made_is_not_made_again_by_a_redrive(db: Session) -> None:
    identity = batch(db, jobs=1, sealed=True)
    claim, run = db.run()
    db.fail(claim, run)
    db.do("select bridge.retry(%s)", claim.id)
    db.finish(*db.run())
    db.tick()
    assert (db.one(CALLED), shown(db, identity, "succeeded", "failed")) == (1, (1, 0))


def test_a_cancelled_batch_takes_no_more_jobs_and_calls_nobody(db: Session) -> None:
    identity = batch(db, jobs=3, sealed=True)
    db.enqueue(batch=identity, delay="1 hour")
    claim, run = db.run(limit=1)
    assert db.one("select bridge.cancel_batch(%s)", identity) == 4
    assert shown(db, identity, "status", "cancelled", "running", "ended_at") == ("cancelled", 3, 1, None)
    assert refusal(db, "select bridge.enqueue('t', batch => %s)", identity) == ("JB006", f"batch {identity} was cancelled")
    db.fail(claim, run)
    assert shown(db, identity, "status", "cancelled", "ended_at is not null") == ("cancelled", 4, True)
    assert (db.one("select bridge.cancel_batch(%s)", identity), db.one(CALLED)) == (0, 0)


def test_children_that_are_cancelled_end_their_batch(db: Session) -> None:
    identity = batch(db)
    parent = db.enqueue(batch=identity)
    db.enqueue(batch=identity, depends_on=[db.enqueue(batch=identity, depends_on=[parent])])
    seal(db, identity)
    db.do("select bridge.cancel(%s)", parent)
    assert (shown(db, identity, "status", "cancelled"), db.one(CALLED)) == (("failed", 3), 1)


def test_two_last_jobs_that_end_at_once_make_one_callback(db: Session, dsn: str) -> None:
    identity = batch(db, jobs=2, sealed=True)
    one, two = ((claim, db.start(claim)) for claim in db.claim())
    other = Session(dsn)
    with db.connection.transaction(), other.connection.transaction():
        assert db.finish(*one)
        assert other.finish(*two)
    db.tick()
    assert (shown(db, identity, "status"), db.one(CALLED)) == (("succeeded",), 1)
    db.tick()
    assert db.one("select count(*) from bridge.second_look") == 0


def test_a_job_added_while_the_last_one_ends_is_waited_for(db: Session, dsn: str) -> None:
    identity = batch(db, jobs=1, sealed=True)
    run = db.run()
    other = Session(dsn)
    with other.connection.transaction():
        other.enqueue(batch=identity)
        db.finish(*run)
        db.tick()
        assert shown(db, identity, "status") == ("running",)
    db.tick()
    assert shown(db, identity, "status") == ("running",)
    db.finish(*db.run())
    assert (shown(db, identity, "status"), db.one(CALLED)) == (("succeeded",), 1)


def test_the_last_end_while_the_batch_is_being_sealed_is_found(db: Session, dsn: str) -> None:
    identity = batch(db, jobs=1)
    run = db.run()
    other = Session(dsn)
    with other.connection.transaction():
        assert seal(other, identity) == "running"
        db.finish(*run)
    db.tick()
    assert (shown(db, identity, "status"), db.one(CALLED)) == (("succeeded",), 1)


def test_sealing_waits_for_whoever_is_adding_jobs(db: Session, dsn: str) -> None:
    identity = batch(db)
    other = Session(dsn)
    db.do("set lock_timeout = '100ms'")
    with other.connection.transaction():
        other.enqueue(batch=identity)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            seal(db, identity)
    assert seal(db, identity) == "running"


def test_cancelling_and_adding_at_once_leaves_no_job_behind(db: Session, dsn: str) -> None:
    identity = batch(db, jobs=1)
    other = Session(dsn)
    with other.connection.transaction():
        assert other.one("select bridge.cancel_batch(%s)", identity) == 1
        db.do("set lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            db.enqueue(batch=identity)
    assert refusal(db, "select bridge.enqueue('t', batch => %s)", identity)[0] == "JB006"
    assert shown(db, identity, "status", "total", "cancelled") == ("cancelled", 1, 1)


def test_a_batch_of_a_transaction_that_is_rolled_back_never_was(db: Session) -> None:
    with db.connection.transaction(force_rollback=True):
        identity = batch(db, jobs=1, sealed=True)
    assert refusal(db, "select bridge.seal_batch(%s)", identity) == ("JB002", f"batch {identity} does not exist")
    assert refusal(db, "select bridge.cancel_batch(%s)", identity)[0] == "JB002"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("callback_on => 'always'", "callback_on is 'always'"), ("name => ''", "name of the batch is ''"),
        ("callback => 'a task'", "task is 'a task'"), ("callback => 't', args => '{}'", "args of task t is a JSON object"),
    ],
)  # fmt: skip
def test_a_batch_that_can_never_be_is_refused(db: Session, options: str, words: str) -> None:
    assert refusal(db, f"select bridge.create_batch({options})") == ("JB001", words)


def test_the_end_of_a_member_does_not_walk_through_the_others(db: Session, dsn: str) -> None:
    identity = batch(db)
    db.rows("select bridge.enqueue_many(%s)", json.dumps([{"task": "t", "batch": str(identity)}] * 2000))
    seal(db, identity)
    db.do("update bridge.setting set value = '0' where name = 'window'")
    with Session(dsn).connection as holder:
        holder.execute("begin isolation level repeatable read")
        holder.execute("select count(*) from bridge.job")
        claims = db.claim(limit=2000)
        for claim in claims[:600]:
            db.finish(claim, db.start(claim))
        db.do("set enable_seqscan = off")
        query = "explain (analyze, buffers, timing off, format json) select bridge.end_member(%s, %s)"
        (found,) = db.one(query, identity, claims[599].seq)
    assert found["Plan"]["Shared Hit Blocks"] + found["Plan"]["Shared Read Blocks"] < 100


def test_a_bulk_call_adds_to_batches_by_sets_and_names_the_job_whose_batch_takes_none(db: Session) -> None:
    first, second = batch(db), batch(db)
    jobs = [{"task": "t", "batch": str((first, second)[n % 2]), "args": [n]} for n in range(6)]
    db.rows("select bridge.enqueue_many(%s)", json.dumps(jobs))
    assert [shown(db, identity, "total") for identity in (first, second)] == [(3,), (3,)]
    assert db.one("select count(*) from bridge.link where kind = 'batch' and above = %s", second) == 3
    db.do("select bridge.cancel_batch(%s)", second)
    code, words = refusal(db, "select bridge.enqueue_many(%s)", json.dumps(jobs))
    assert (code, f"batch {second} was cancelled" in words, "jobs[1]" in words) == ("JB006", True, True), words
    assert shown(db, first, "total") == (3,)
