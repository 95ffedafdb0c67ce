"""The filter by which everything chooses that is done to many jobs at once."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_sql import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases

BATCH = "0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11"
SELECT = "select bridge.select_jobs(%s)"


def chosen(db: Session, **wanted: Any) -> set[Any]:
    """The words of the jobs that a filter chooses: each has one as its first argument."""
    query = "select v.args->>0 from bridge.select_jobs(%s) s (id) join bridge.jobs v on v.id = s.id"
    return {row[0] for row in db.rows(query, json.dumps(wanted))}


def fill(db: Session) -> None:
    """Make jobs in every status, each named by its first argument."""
    for word, error in [("succeeded", None), ("failed", "ValueError"), ("refused", "requests.HTTPError"), ("cancelled", None)]:
        identity = db.enqueue(f"ended.{word}", args=[word, 7], kwargs={"tenant": 3, "deep": {"a": [1, 2]}}, queue="old", max_attempts=1)
        claim, run = db.run(queue="old")
        if error is None:
            db.finish(claim, run, word)
        else:
            module, _, kind = error.rpartition(".")
            said = json.dumps({"type": kind, "module": module or "builtins", "message": "m"})
            db.do("select bridge.fail(%s, %s, %s)", claim.seq, run, said)
        db.do("update bridge.finished set batch = %s where id = %s and status = 'succeeded'", BATCH, identity)
    db.enqueue("live.running", args=["running"], queue="new")
    db.run(queue="new")
    db.enqueue("live.published", args=["published"], queue="new")
    db.publish(queue="new")
    db.enqueue("live.queued", args=["queued"], queue="new")
    later = db.enqueue("live.scheduled", args=["scheduled"], queue="new", delay="1 day")
    db.enqueue("live_blocked", args=["blocked"], queue="new", depends_on=[later])


@pytest.fixture(scope="module")
def some(databases: Databases, template: str) -> Iterator[Session]:
    """Jobs in every status, which tests look at and leave as they are."""
    name = databases.create(template)
    db = Session(databases.server.dsn_of(name))
    fill(db)
    yield db
    db.connection.close()
    databases.drop(name)


ENDED = {"succeeded", "failed", "refused", "cancelled"}
LIVE = {"running", "published", "queued", "scheduled", "blocked"}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ENDED | LIVE),
        ({"all": True}, ENDED | LIVE),
        ({"status": "failed"}, {"failed", "refused"}),
        ({"status": ["failed", "running", "blocked"]}, {"failed", "refused", "running", "blocked"}),
        ({"status": "succeeded"}, {"succeeded"}),
        ({"status": ["queued", "published"]}, {"queued", "published"}),
        ({"task": "live.queued"}, {"queued"}),
        ({"task": "live.*"}, LIVE - {"blocked"}),
        ({"task": "live_*"}, {"blocked"}),
        ({"task": ["*ed.failed", "ended.s*d"]}, {"failed", "succeeded"}),
        ({"task": "ended.failed"}, {"failed"}),
        ({"task": "*"}, ENDED | LIVE),
        ({"task": "Ended.*"}, set()),
        ({"queue": "old"}, ENDED),
        ({"queue": ["old", "new"]}, ENDED | LIVE),
        ({"error": "ValueError"}, {"failed"}),
        ({"error": ["ValueError", "HTTPError"]}, {"failed", "refused"}),
        ({"error": "requests.*"}, {"refused"}),
        ({"error": "*Error", "task": "*fail*"}, {"failed"}),
        ({"args": [7]}, ENDED),
        ({"args": [7, "failed"]}, {"failed"}),
        ({"args": [8]}, set()),
        ({"kwargs": {"tenant": 3}}, ENDED),
        ({"kwargs": {"deep": {"a": [2]}}, "status": "cancelled"}, {"cancelled"}),
        ({"batch": BATCH}, {"succeeded"}),
        ({"created_before": "2020-01-01T00:00:00Z"}, set()),
        ({"created_after": "2020-01-01T00:00:00Z", "created_before": "2100-01-01T00:00:00+02:00"}, ENDED | LIVE),
        ({"finished_after": "2020-01-01T00:00:00Z"}, ENDED),
        ({"finished_before": "2020-01-01T00:00:00Z"}, set()),
        ({"finished_after": "2020-01-01T00:00:00Z", "status": ["running", "failed"]}, {"failed", "refused"}),
        ({"changed_after": "2020-01-01T00:00:00Z"}, ENDED | LIVE),
        ({"changed_after": "2100-01-01T00:00:00Z"}, set()),
        ({"ids": [str(uuid.uuid4())]}, set()),
    ],
)
def test_a_filter_chooses_the_jobs_for_which_all_holds_that_it_names(some: Session, wanted: dict[str, Any], found: set[str]) -> None:
    assert chosen(some, **wanted) == found


def test_ids_choose_live_and_ended_jobs_and_go_with_what_else_a_filter_names(some: Session) -> None:
    (failed,), (queued,) = ids(some, "failed"), ids(some, "queued")
    assert chosen(some, ids=[failed, queued]) == {"failed", "queued"}
    assert chosen(some, ids=[failed, queued], status="failed") == {"failed"}
    assert chosen(some, ids=failed.upper()) == {"failed"}


def test_a_filter_chooses_no_more_than_max_jobs_the_first_that_ended_before_the_others(db: Session) -> None:
    for number in range(6):
        db.enqueue("a.b" if number % 2 else "a.c", args=[number], max_attempts=1)
    for claim in db.claim():
        db.fail(claim, db.start(claim))
    query = (
        "select v.args->>0 from bridge.select_jobs(%s, p_newest => {}) with ordinality s (id, place)"
        " join bridge.jobs v using (id) order by place"
    )
    for wanted in ({"max_jobs": 3}, {"max_jobs": 3, "task": "a.*"}, {"max_jobs": 3, "status": "failed"}):
        assert [row[0] for row in db.rows(query.format("false"), json.dumps(wanted))] == ["0", "1", "2"], wanted
        assert [row[0] for row in db.rows(query.format("true"), json.dumps(wanted))] == ["5", "4", "3"], wanted


def test_what_is_named_twice_chooses_a_job_once(some: Session) -> None:
    twice = {"task": ["ended.failed"] * 2, "status": ["failed"] * 2, "queue": ["old"] * 2}
    for wanted in (twice, {**twice, "task": ["ended.fail*", "ended.f*"]}, {**twice, "ids": [*ids(some, "failed"), *ids(some, "failed")]}):
        assert len(some.rows(SELECT, json.dumps(wanted))) == 1, wanted


def ids(db: Session, word: str) -> list[str]:
    return [str(row[0]) for row in db.rows("select id from bridge.jobs where args->>0 = %s", word)]


def test_texts_of_a_filter_are_data_and_never_sql(some: Session) -> None:
    evil = "x'; drop table bridge.job; --"
    wrapped: list[dict[str, Any]] = [{"error": [evil, "\\"]}, {"args": [evil]}, {"kwargs": {evil: "\\'"}}, {"task": "100%_\\"}]
    for wanted in ({"task": evil}, {"queue": evil}, *wrapped):
        assert chosen(some, **wanted) == set()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"tsak": "mail"}, "filter names 'tsak'"),
        ({"queue": None}, "queue of the filter is null"),
        ({"status": "dead"}, "status of the filter is 'dead'"),
        ({"status": []}, "status of the filter is []"),
        ({"status": ["failed", 3]}, 'status of the filter is ["failed", 3]'),
        ({"task": ""}, 'task of the filter is ""'),
        ({"task": {"is": "mail"}}, 'task of the filter is {"is": "mail"}'),
        ({"ids": ["mine"]}, "ids of the filter names 'mine'"),
        ({"batch": "mine"}, "batch of the filter names 'mine'"),
        ({"args": {"a": 1}}, "args of the filter is a JSON object"),
        ({"kwargs": [1]}, "kwargs of the filter is a JSON array"),
        ({"created_after": "soon"}, "created_after of the filter is 'soon'"),
        ({"finished_before": 7}, "finished_before of the filter is 7"),
        ({"created_after": "2031-01-02T00:00Z", "created_before": "2031-01-01T00:00Z"}, "created_after of the filter is not before"),
        ({"finished_after": "2031-01-02T00:00Z", "finished_before": "2031-01-02T00:00Z"}, "finished_after of the filter is not before"),
        ({"finished_after": "2031-01-02T00:00Z", "status": "queued"}, "filter asks when jobs ended, of jobs that have not"),
        ({"all": True, "queue": "mail"}, "filter names all and queue"),
        ({"all": False}, "all of the filter is false"),
        ({"max_jobs": 0}, "max_jobs of the filter is 0"),
        ({"max_jobs": 1.5}, "max_jobs of the filter is 1.5"),
        ({"max_jobs": "9"}, 'max_jobs of the filter is "9"'),
        ({"max_jobs": 100_001}, "max_jobs of the filter is 100001"),
        (["mail"], "filter is a JSON array"),
    ],
    ids=str,
)
def test_a_filter_that_can_never_be_is_refused_by_the_name_of_what_is_wrong(some: Session, wanted: Any, words: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        some.rows(SELECT, json.dumps(wanted))
    assert caught.value.diag.sqlstate == "JB001"
    assert str(caught.value.diag.message_primary).startswith(words)
    assert caught.value.diag.message_hint


@pytest.mark.parametrize("operation", ["cancel_jobs", "redrive_jobs", "discard_jobs"])
@pytest.mark.parametrize("wanted", ["{}", '{"max_jobs": 5}', None])
def test_what_is_done_to_many_is_refused_without_a_word_which(some: Session, operation: str, wanted: str | None) -> None:
    with pytest.raises(psycopg.Error) as caught:
        some.rows(f"select bridge.{operation}(%s)", wanted)
    assert caught.value.diag.sqlstate == "JB001"


@pytest.mark.parametrize(("operation", "status"), [("cancel_jobs", "failed"), ("redrive_jobs", "cancelled"), ("discard_jobs", "queued")])
def test_a_status_that_an_operation_can_do_nothing_with_is_refused(some: Session, operation: str, status: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        some.rows(f"select bridge.{operation}(%s)", json.dumps({"status": status}))
    assert caught.value.diag.message_primary == f"status of the filter is '{status}'"


def test_cancel_of_many_counts_first_and_then_cancels_what_waits_and_stops_what_runs(db: Session) -> None:
    fill(db)
    wanted = json.dumps({"task": "live*"})
    dry = db.one("select bridge.cancel_jobs(%s, dry_run => true)", wanted)
    assert dry == {"matched": 5, "changed": 0, "skipped": 0, "more": False}
    assert chosen(db, status="cancelled") == {"cancelled"}
    assert db.one("select bridge.cancel_jobs(%s)", wanted) == {"matched": 5, "changed": 5, "skipped": 0, "more": False}
    assert chosen(db, status="cancelled") == {"cancelled", "published", "queued", "scheduled", "blocked"}
    assert db.one("select cancelled_at is not null from bridge.jobs where status = 'running'")


def test_cancel_of_many_goes_page_by_page(db: Session) -> None:
    for number in range(5):
        db.enqueue(args=[number])
    reports = [db.one("select bridge.cancel_jobs(%s)", json.dumps({"queue": "celery", "max_jobs": 2})) for _ in range(3)]
    assert [(report["changed"], report["more"]) for report in reports] == [(2, True), (2, True), (1, False)]


def test_cancel_of_many_passes_by_runs_that_are_just_being_completed(db: Session, dsn: str) -> None:
    jobs = [db.enqueue(args=[number]) for number in range(4)]
    claims = db.claim()
    for claim in claims[:3]:
        db.start(claim)
    other = Session(dsn)
    with other.connection.transaction():
        other.rows("select from bridge.inflight where seq = any(%s) for update", [claim.seq for claim in claims[:2]])
        report = db.one("""select bridge.cancel_jobs('{"all": true}')""")
    assert report == {"matched": 4, "changed": 2, "skipped": 2, "more": False}
    query = "select status, cancelled_at is not null from bridge.jobs where id = %s"
    assert [db.rows(query, job)[0] for job in jobs] == [("running", False)] * 2 + [("running", True), ("cancelled", False)]


def test_two_who_do_opposite_things_to_the_same_many_at_once_do_not_wait_in_a_circle(db: Session, dsn: str) -> None:
    ids = [str(db.enqueue("a.task", max_attempts=1)) for _ in range(60)]
    for claim in db.claim():
        db.fail(claim, db.start(claim))
    sessions = [Session(dsn), Session(dsn)]
    wanted = ['{"task": "a.*"}', json.dumps({"ids": ids[::-1]})]
    with ThreadPoolExecutor(2) as pool:
        redrive = pool.submit(sessions[0].one, "select bridge.redrive_jobs(%s)", wanted[0])
        discard = pool.submit(sessions[1].one, "select bridge.discard_jobs(%s)", wanted[1])
        reports = redrive.result(60), discard.result(60)
    assert sum(report["changed"] for report in reports) == 60
    assert {row[0] for row in db.rows("select status from bridge.jobs")} <= {"queued", "failed"}
    with ThreadPoolExecutor(2) as pool:
        db.one("""select bridge.retry_failed()""")
        both = [pool.submit(session.one, "select bridge.cancel_jobs(%s)", meant) for session, meant in zip(sessions, wanted, strict=True)]
        assert all(one.result(60) for one in both)
    assert db.one("select count(*) from bridge.jobs where status = 'queued'") == 0
