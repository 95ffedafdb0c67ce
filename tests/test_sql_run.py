"""What a worker asks: the start fence, progress, and the ends of a run; each names the run, so that the superseded write nothing."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fix_sql import Claim, Session

from bridge.results.failure import error_of
from bridge.results.text import json_text


def test_of_two_copies_of_one_delivery_one_starts(db: Session, dsn: str) -> None:
    db.enqueue()
    claim = db.publish()
    sessions = [Session(dsn) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda session: session.start(claim), sessions))
    assert sum(run is not None for run in runs) == 1


def test_a_start_whose_answer_was_lost_may_be_asked_for_again(db: Session) -> None:
    db.enqueue()
    claim, run, other = db.publish(), uuid.uuid4(), uuid.uuid4()
    ask = "select bridge.start(%s, %s, %s, 1, %s)"
    assert db.one(ask, claim.seq, claim.token, db.worker, run) == run
    assert db.one(ask, claim.seq, claim.token, db.worker, run) == run
    assert db.one(ask, claim.seq, claim.token, db.worker, other) is None, "another copy, in the same process"
    assert db.start(claim) is None
    assert db.one(ask, claim.seq, uuid.uuid4(), db.worker, run) is None, "another delivery"
    db.finish(claim, run)
    assert db.one(ask, claim.seq, claim.token, db.worker, run) is None, "it is over"


def test_a_copy_may_start_before_the_drainer_has_marked_it(db: Session) -> None:
    db.enqueue()
    claims = db.claim()
    assert db.start(claims[0]) is not None


def test_a_message_with_another_token_does_not_start(db: Session) -> None:
    db.enqueue()
    claim = db.publish()
    assert db.start(Claim(claim.seq, uuid.uuid4(), claim.id, [])) is None
    assert db.status(claim.id) == "published"


def test_a_copy_of_an_ended_job_does_not_start(db: Session) -> None:
    db.enqueue()
    claim, run = db.run()
    db.finish(claim, run)
    assert db.start(claim) is None


def test_the_row_tells_who_runs_it_since_when(db: Session) -> None:
    identity = db.enqueue()
    db.report()
    db.run()
    row = db.rows("select status, worker, pid, attempts, started_at >= created_at, finished_at from bridge.jobs where id = %s", identity)
    assert row == [("running", "w@test", 1, 1, True, None)]


def test_a_finished_job_has_its_plain_result_and_no_envelope(db: Session) -> None:
    identity = db.enqueue()
    assert db.finish(*db.run(), result={"pages": 3}) is True
    row = db.rows("select status, result, error, attempts, finished_at >= started_at from bridge.jobs where id = %s", identity)
    assert row == [("succeeded", {"pages": 3}, None, 1, True)]


def test_a_second_finish_of_the_same_run_counts_for_nothing(db: Session) -> None:
    identity = db.enqueue()
    claim, run = db.run()
    assert db.finish(claim, run, result=1) is True
    assert db.finish(claim, run, result=2) is False
    assert db.field(identity, "result") == 1
    assert db.attempts(identity) == [(1, "succeeded")]


def test_progress_shows_and_stays_on_the_row(db: Session) -> None:
    identity = db.enqueue()
    claim, run = db.run()
    assert db.one("select bridge.note(%s, %s, '{\"fraction\": 0.5}')", claim.seq, run) is True
    assert db.field(identity, "progress") == {"fraction": 0.5}
    db.finish(claim, run)
    assert db.field(identity, "progress") == {"fraction": 0.5}


def test_progress_of_a_superseded_run_is_refused(db: Session) -> None:
    db.enqueue()
    claim, _ = db.run()
    assert db.one("select bridge.note(%s, %s, '{}')", claim.seq, uuid.uuid4()) is False


def test_a_job_fails_whose_error_holds_what_no_text_can(db: Session) -> None:
    identity = db.enqueue(max_attempts=1)
    claim, run = db.run()
    error = json_text(error_of(ValueError("nul \x00, half \ud800 of a pair"), None))
    assert db.one("select bridge.fail(%s, %s, %s::json)", claim.seq, run, error) == "failed"
    assert db.one("select error->>'message' from bridge.jobs where id = %s", identity) == "nul \ufffd, half \ufffd of a pair"


def test_between_attempts_a_failing_job_is_scheduled(db: Session) -> None:
    identity = db.enqueue(max_attempts=2, backoff=60)
    assert db.fail(*db.run(), message="first") == "scheduled"
    assert db.rows("select status, attempts, error->>'message', started_at from bridge.jobs where id = %s", identity) == [
        ("scheduled", 1, "first", None)
    ]


def test_after_its_last_attempt_a_failing_job_is_failed(db: Session) -> None:
    identity = db.enqueue(max_attempts=2, backoff=0)
    assert db.fail(*db.run(), message="first") == "queued"
    assert db.fail(*db.run(), message="second") == "failed"
    assert db.rows("select status, attempts, error->>'message' from bridge.jobs where id = %s", identity) == [("failed", 2, "second")]
    assert db.attempts(identity) == [(1, "failed"), (2, "failed")]
    assert db.rows("select id, error->>'message' from bridge.failed_jobs") == [(identity, "second")]
    assert db.rows("select id from bridge.dead_jobs") == [(identity,)]


def test_a_success_after_a_failure_leaves_no_error_on_the_row(db: Session) -> None:
    identity = db.enqueue(backoff=0)
    db.fail(*db.run())
    db.finish(*db.run(), result="well")
    assert db.rows("select status, result, error, attempts from bridge.jobs where id = %s", identity) == [("succeeded", "well", None, 2)]


def test_a_final_failure_asks_for_no_further_attempt(db: Session) -> None:
    identity = db.enqueue(max_attempts=5)
    assert db.fail(*db.run(), final=True) == "failed"
    assert db.field(identity, "attempts") == 1


@pytest.mark.parametrize(
    ("backoff", "pauses"),
    [
        (30, [(30, 30)] * 3),
        ([5, 60], [(5, 5), (60, 60), (60, 60)]),
        ({"base": 2, "factor": 3, "cap": 10, "jitter": 0}, [(2, 2), (6, 6), (10, 10)]),
        ({"base": 100, "factor": 1, "jitter": 0.5}, [(75, 125)] * 3),
        (None, [(9.5, 10.5), (19, 21), (38, 42)]),
    ],
)
def test_the_pause_before_the_next_attempt_is_what_backoff_says(db: Session, backoff: Any, pauses: list[tuple[float, float]]) -> None:
    given = None if backoff is None else json.dumps(backoff)
    for failures, (least, most) in enumerate(pauses, start=1):
        seconds = db.one("select extract(epoch from bridge.backoff_delay(%s::jsonb, %s))", given, failures)
        assert least <= float(seconds) <= most


def test_a_retry_makes_the_old_copy_worthless(db: Session) -> None:
    db.enqueue(backoff=0)
    claim, run = db.run()
    db.fail(claim, run)
    assert db.start(claim) is None
    assert db.publish().token != claim.token


def test_the_late_result_of_a_superseded_run_is_kept_aside_and_never_on_the_row(db: Session) -> None:
    identity = db.enqueue()
    claim, old = db.run()
    assert db.one("select bridge.lose(%s, %s, 'killed')", claim.seq, claim.token) == "queued"
    again, new = db.run()
    assert db.finish(claim, old, result="late") is False
    assert db.status(identity) == "running"
    db.finish(again, new, result="right")
    assert db.field(identity, "result") == "right"
    kept = db.rows("select outcome, result from bridge.attempts where id = %s and run = %s order by outcome", identity, old)
    assert kept == [("lost", None), ("superseded", "late")]


def test_the_late_failure_of_a_superseded_run_is_kept_aside_too(db: Session) -> None:
    identity = db.enqueue()
    claim, old = db.run()
    db.do("select bridge.lose(%s, %s, 'killed')", claim.seq, claim.token)
    db.finish(*db.run())
    assert db.fail(claim, old, message="late") is None
    assert db.rows("select status, error from bridge.jobs where id = %s", identity) == [("succeeded", None)]
    assert ("superseded",) in db.rows("select outcome from bridge.attempts where id = %s", identity)


@pytest.mark.parametrize("until", ["lost", "running", "failed", "over"])
def test_what_comes_late_of_a_run_has_the_number_of_the_attempt_that_it_was(db: Session, until: str) -> None:
    identity = db.enqueue(max_attempts=3, backoff=0)
    claim, old = db.run()
    db.do("select bridge.lose(%s, %s, 'killed')", claim.seq, claim.token)
    if until != "lost":
        again, new = db.run()
        if until == "failed":
            db.fail(again, new)
        elif until == "over":
            db.finish(again, new)
    assert db.finish(claim, old, result="late") is False
    kept = db.rows("select attempt, outcome from bridge.attempt where id = %s and run = %s order by outcome", identity, old)
    assert kept == [(1, "lost"), (1, "superseded")]


@pytest.mark.parametrize(
    ("options", "status"), [({}, "failed"), ({"max_attempts": 2, "backoff": 0}, "queued"), ({"max_attempts": 2}, "scheduled")]
)
def test_a_failure_that_is_told_again_is_answered_alike_and_counts_once(db: Session, options: dict[str, Any], status: str) -> None:
    identity = db.enqueue(**{"max_attempts": 1, **options})
    claim, run = db.run()
    assert [db.fail(claim, run), db.fail(claim, run)] == [status] * 2
    assert db.attempts(identity) == [(1, "failed")]
    assert db.fail(claim, run, message="another") is None, "that is none that was told"


def test_a_lost_run_is_due_again_at_once_and_charged_as_a_loss(db: Session) -> None:
    identity = db.enqueue(max_attempts=1, backoff=3600)
    claim, _ = db.run()
    assert db.one("select bridge.lose(%s, %s, 'killed')", claim.seq, claim.token) == "queued"
    assert db.rows("select status, attempts, losses, error->>'message' from bridge.jobs where id = %s", identity) == [
        ("queued", 0, 1, "killed")
    ]
    assert db.attempts(identity) == [(1, "lost")]


def test_a_delivery_that_had_not_begun_is_due_again_uncharged(db: Session) -> None:
    identity = db.enqueue()
    claim = db.publish()
    assert db.one("select bridge.lose(%s, %s, 'killed')", claim.seq, claim.token) == "queued"
    assert db.rows("select status, losses from bridge.jobs where id = %s", identity) == [("queued", 0)]
    assert db.start(claim) is None, "the old copy starts no more"


def test_a_job_that_loses_its_worker_too_often_fails(db: Session) -> None:
    identity = db.enqueue()
    for expected in ["queued"] * 5 + ["failed"]:
        claim, _ = db.run()
        assert db.one("select bridge.lose(%s, %s, 'killed')", claim.seq, claim.token) == expected
    assert db.rows("select losses, error->>'type' from bridge.jobs where id = %s", identity) == [(5, "WorkerLostError")]


def test_a_loss_of_another_delivery_changes_nothing(db: Session) -> None:
    db.enqueue()
    claim, _ = db.run()
    assert db.one("select bridge.lose(%s, %s, 'killed')", claim.seq, uuid.uuid4()) is None


def end_delivery(db: Session, claim: Claim, status: str, worker: Any = None, *, final: bool = True) -> str | None:
    query = 'select bridge.end_delivery(%s, %s, %s, %s, \'{"type": "E"}\', %s)'
    return db.one(query, claim.seq, claim.token, worker or db.worker, status, final)  # type: ignore[no-any-return]


@pytest.mark.parametrize("status", ["failed", "cancelled", "expired"])
def test_a_main_process_ends_a_delivery_that_never_ran(db: Session, status: str) -> None:
    identity = db.enqueue()
    assert end_delivery(db, db.publish(), status) == status
    assert db.status(identity) == status


def test_a_main_process_ends_a_run_of_its_own(db: Session) -> None:
    identity = db.enqueue(max_attempts=1)
    claim, _ = db.run()
    assert end_delivery(db, claim, "failed") == "failed"
    assert db.field(identity, "attempts") == 1


def test_a_main_process_cannot_end_what_runs_elsewhere(db: Session) -> None:
    identity = db.enqueue()
    claim, _ = db.run()
    assert end_delivery(db, claim, "failed", uuid.uuid4()) is None
    assert db.status(identity) == "running"


def test_a_time_limit_leaves_the_further_attempts(db: Session) -> None:
    identity = db.enqueue(max_attempts=2, backoff=60)
    claim, _ = db.run()
    assert end_delivery(db, claim, "failed", final=False) == "scheduled"
    assert db.attempts(identity) == [(1, "failed")]


def retry_run(db: Session, claim: Claim, run: Any, task: str = "a.task") -> bool:
    query = """select bridge.retry_run(%s, %s, %s, 'celery', 9::smallint, '[2]', '{}', null, null, null, null, null, '{}', null, null)"""
    return bool(db.one(query, claim.seq, run, task))


def test_a_run_that_asks_for_its_own_next_attempt_keeps_its_id(db: Session) -> None:
    identity = db.enqueue(args=[1])
    assert retry_run(db, *db.run()) is True
    assert db.rows("select status, args, attempts from bridge.jobs where id = %s", identity) == [("queued", [2], 1)]
    assert db.attempts(identity) == [(1, "retried")]


def test_a_run_may_replace_its_task(db: Session) -> None:
    identity = db.enqueue()
    retry_run(db, *db.run(), task="another.task")
    assert db.field(identity, "task") == "another.task"


def test_a_superseded_run_cannot_ask_for_a_next_attempt(db: Session) -> None:
    identity = db.enqueue()
    claim, old = db.run()
    db.do("select bridge.lose(%s, %s, 'killed')", claim.seq, claim.token)
    db.run()
    assert retry_run(db, claim, old) is False
    assert db.field(identity, "args") == []


def enqueue_message(db: Session, identity: uuid.UUID) -> bool:
    query = """select bridge.enqueue_message(%s, null, 'a.task', 'celery', 9::smallint, '[]', '{}', null, null, null, null, null, '{}', null, null)"""  # noqa: E501
    return bool(db.one(query, identity))


def test_a_call_with_the_id_of_a_job_that_has_not_ended_does_nothing(db: Session) -> None:
    identity = uuid.uuid4()
    assert enqueue_message(db, identity) is True
    assert enqueue_message(db, identity) is False
    db.run()
    assert enqueue_message(db, identity) is False
    assert db.one("select count(*) from bridge.jobs") == 1


def test_a_call_with_the_id_of_an_ended_job_takes_its_place(db: Session) -> None:
    identity = uuid.uuid4()
    enqueue_message(db, identity)
    db.finish(*db.run())
    assert enqueue_message(db, identity) is True
    assert db.rows("select status from bridge.jobs") == [("queued",)]


def test_a_finish_is_announced_when_somebody_waits_and_not_otherwise(db: Session, dsn: str) -> None:
    waited, other = db.enqueue(), db.enqueue()
    listener = Session(dsn)
    listener.do("listen bridge_done")
    listener.do("select bridge.wait_for(array[%s::uuid])", waited)
    for claim in db.claim():
        db.finish(claim, db.start(claim))
    assert [notice.payload for notice in listener.connection.notifies(timeout=20, stop_after=1)] == [str(waited)]
    listener.do("select bridge.wait_for(array[%s::uuid])", other)
    listener.do("select bridge.forget_waiter(array[%s::uuid, %s::uuid])", waited, other)
    assert db.one("select count(*) from bridge.waiter") == 0


def test_a_reader_sees_one_row_while_the_job_moves(db: Session, dsn: str) -> None:
    """A hundred lives are lived while others look: no look finds none or two."""
    readers = [Session(dsn) for _ in range(2)]
    ids = [db.enqueue() for _ in range(100)]

    def look(session: Session) -> set[int]:
        seen = set()
        while not done:
            seen.add(session.one("select count(*) from bridge.jobs where id = %s", ids[50]))
        return seen

    done: list[bool] = []
    with ThreadPoolExecutor(2) as pool:
        looks = [pool.submit(look, reader) for reader in readers]
        for claim in db.claim():
            db.finish(claim, db.start(claim))
        done.append(True)
        assert [found.result(20) for found in looks] == [{1}, {1}]
