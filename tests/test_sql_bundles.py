"""What Postgres does for bundles: who may have them, and starts, ends and returns of many jobs at once."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from fix_sql import Claim, Session

MANY = 6


def start(db: Session, claims: list[Claim], runs: list[uuid.UUID], pid: int = 1) -> list[int]:
    columns = [claim.seq for claim in claims], [claim.token for claim in claims]
    return sorted(db.one("select bridge.start_many(%s, %s, %s, %s, %s)", *columns, db.worker, pid, runs))


def finish(db: Session, claims: list[Claim], runs: list[uuid.UUID]) -> list[int]:
    columns = [claim.seq for claim in claims], runs, [claim.token for claim in claims], [claim.id for claim in claims]
    results = [json.dumps(claim.args) for claim in claims]
    found: list[int] = db.one("select bridge.finish_many(%s, %s, %s, %s, %s, %s::text[])", *columns, results, [None] * len(claims))
    return found


def unbundle(db: Session, claims: list[Claim], pid: int | None = 1, *, alone: bool = True) -> int:
    return int(db.one("select bridge.unbundle(%s, %s, %s, %s)", [claim.token for claim in claims], db.worker, pid, alone))


def published(db: Session, count: int = MANY, **options: Any) -> list[Claim]:
    for number in range(count):
        db.enqueue(args=[number], **options)
    claims = db.claim()
    db.mark(claims)
    return claims


def claimed_alone(db: Session) -> list[tuple[Any, ...]]:
    claimed = db.rows("select seq from bridge.claim(%s, 'celery', %s)", db.drainer, uuid.uuid4())
    alone = db.one("select bridge.alone(%s)", [seq for (seq,) in claimed])
    return [(True,)] if len(alone) == len(claimed) else [(None,)] if not alone else [(True,), (None,)]


def new_runs(claims: list[Claim]) -> list[uuid.UUID]:
    return [uuid.uuid4() for _ in claims]


def declare(db: Session, bundles: dict[str, Any] | None, name: str = "w@test", concurrency: int = 2) -> None:
    query = "select bridge.report_worker(%s, %s, 1, 'prefork', %s, '{celery}', 'test', '{}', clock_timestamp(), %s)"
    db.do(query, uuid.uuid4(), name, concurrency, None if bundles is None else json.dumps(bundles))


def sizes(db: Session, queue: str = "celery") -> dict[str | None, tuple[int, int]]:
    return {row[0]: row[1:] for row in db.rows("select task, jobs, children from bridge.bundles(%s)", queue)}


def test_a_slice_starts_and_ends_each_of_its_jobs(db: Session) -> None:
    claims = published(db)
    runs = new_runs(claims)
    assert start(db, claims, runs) == [claim.seq for claim in claims]
    assert db.rows("select distinct state, together, pid from bridge.inflight") == [("running", True, 1)]
    assert finish(db, claims, runs) == []
    found = db.rows("select id, status, result, run, attempts from bridge.finished")
    assert sorted(found) == sorted((claim.id, "succeeded", claim.args, run, 1) for claim, run in zip(claims, runs, strict=True))


def test_of_all_copies_one_starts_and_who_asks_again_hears_the_same(db: Session, other: Session) -> None:
    claims = published(db)
    first = db.start(claims[0])
    assert first is not None
    runs = new_runs(claims)
    assert start(db, claims, runs) == [claim.seq for claim in claims[1:]]
    assert start(db, claims, runs) == [claim.seq for claim in claims[1:]], "the answer was lost"
    assert start(other, claims, new_runs(claims)) == [], "a second copy"
    assert finish(db, claims[1:], runs[1:]) == []
    assert finish(db, claims[1:], runs[1:]) == list(range(1, MANY)), "that answer, too"
    assert db.attempts(claims[1].id) == [(1, "succeeded")], "told again it is no other run"


def test_what_is_cancelled_before_its_turn_ends_when_it_is_asked_for_anew(db: Session, other: Session) -> None:
    claims = published(db)
    runs = new_runs(claims)
    start(db, claims, runs)
    assert other.one("select bridge.cancel(%s)", claims[3].id) == "running"
    left = [claim.seq for claim in claims if claim is not claims[3]]
    assert start(db, claims, runs) == left
    assert (db.status(claims[3].id), db.field(claims[3].id, "attempts")) == ("cancelled", 0)


def test_a_start_frees_what_counts_until_then(db: Session) -> None:
    db.enqueue(args=[1], unique_key="k", unique_until="started")
    db.enqueue(args=[2])
    claims = db.claim()
    db.mark(claims)
    start(db, claims, new_runs(claims))
    assert db.enqueue(args=[3], unique_key="k", unique_until="started") not in {claim.id for claim in claims}


def test_what_waits_for_a_job_of_a_slice_goes_on(db: Session) -> None:
    batch = db.one("select bridge.create_batch(callback => 'after.all')")
    parent = db.enqueue(args=["parent"], batch=batch)
    keyed = db.enqueue(args=["keyed"], unique_key="k")
    db.do("select bridge.seal_batch(%s)", batch)
    child = db.enqueue("a.child", depends_on=[parent])
    claims = db.claim()
    db.mark(claims)
    runs = new_runs(claims)
    start(db, claims, runs)
    assert db.status(child) == "blocked"
    finish(db, claims, runs)
    assert db.status(child) == "queued"
    assert db.one("select count(*) from bridge.jobs where task = 'after.all'") == 1
    assert db.enqueue(unique_key="k") != keyed


def test_a_run_that_was_superseded_is_kept_aside_and_keeps_nobody_from_ending(db: Session) -> None:
    claims = published(db)
    runs = new_runs(claims)
    start(db, claims, runs)
    assert db.one("select bridge.lose(%s, %s, 'it died', %s, 1)", claims[2].seq, claims[2].token, db.worker) == "queued"
    assert finish(db, claims, runs) == [3]
    assert db.status(claims[2].id) == "queued"
    assert db.attempts(claims[2].id) == [(1, "lost"), (1, "superseded")]
    assert db.one("select count(*) from bridge.jobs where status = 'succeeded'") == MANY - 1


@pytest.mark.parametrize("late_first", [True, False])
def test_of_two_runs_of_one_job_the_one_that_has_it_counts(db: Session, *, late_first: bool) -> None:
    (old,) = published(db, 1)
    lost, last = uuid.uuid4(), uuid.uuid4()
    start(db, [old], [lost])
    db.do("select bridge.lose(%s, %s, 'cut off')", old.seq, old.token)
    new = db.publish()
    start(db, [new], [last])
    both = [(replace(old, args="too late"), lost), (replace(new, args="in time"), last)]
    claims, runs = map(list, zip(*(both if late_first else reversed(both)), strict=True))
    assert finish(db, claims, runs) == [1 if late_first else 2]
    assert db.rows("select run, result::text from bridge.finished") == [(last, '"in time"')]
    kept = "select run, result::text from bridge.attempt where outcome = 'superseded'"
    assert db.rows(kept) == [(lost, '"too late"')]


def test_an_end_takes_deliveries_whose_start_a_crash_forgot(db: Session) -> None:
    claims = published(db)
    assert finish(db, claims, new_runs(claims)) == []
    assert db.rows("select distinct status, attempts from bridge.jobs") == [("succeeded", 1)]


def test_what_a_bundle_has_not_begun_goes_back_uncharged_and_alone(db: Session) -> None:
    claims = published(db)
    runs = new_runs(claims[:3])
    start(db, claims[:3], runs)
    assert unbundle(db, claims, pid=2) == 3, "what another process has started goes on"
    assert unbundle(db, claims, pid=1) == 3
    assert db.rows("select distinct status, attempts, losses from bridge.jobs") == [("queued", 0, 0)]
    again = claimed_alone(db)
    assert again == [(True,)]


def test_what_is_left_because_its_worker_stops_may_travel_with_others(db: Session) -> None:
    claims = published(db)
    assert unbundle(db, claims, alone=False) == MANY
    assert claimed_alone(db) == [(None,)]


def test_of_a_worker_that_died_nobody_is_charged_with_a_slice_once(db: Session) -> None:
    claims = published(db)
    start(db, claims, new_runs(claims))
    db.report(*[claim.token for claim in claims])
    db.do("update bridge.worker set lost_at = now()")
    for claim in claims:
        assert db.one("select bridge.lose(%s, %s, 'worker died', %s)", claim.seq, claim.token, db.worker) == "queued"
    assert db.rows("select distinct losses from bridge.jobs") == [(0,)]
    # each runs alone then, and is charged
    claim = db.claim()[0]
    db.mark([claim])
    assert start(db, [claim], new_runs([claim])) == [claim.seq]
    assert db.one("select bridge.lose(%s, %s, 'worker died', %s)", claim.seq, claim.token, db.worker) == "queued"
    assert db.field(claim.id, "losses") == 1


@pytest.mark.parametrize("how", ["dies", "stops"])
def test_what_is_cancelled_in_a_slice_counts_no_attempt_when_its_worker(db: Session, how: str) -> None:
    """Nobody is left who knows whether it had begun."""
    claims = published(db, 2)
    start(db, claims, new_runs(claims))
    assert db.one("select bridge.cancel(%s)", claims[1].id) == "running"
    if how == "dies":
        assert db.one("select bridge.lose(%s, %s, 'worker died', %s)", claims[1].seq, claims[1].token, db.worker) == "cancelled"
    else:
        assert db.one("select bridge.stop_worker(%s)", db.worker) == 2
    assert (db.status(claims[1].id), db.field(claims[1].id, "attempts")) == ("cancelled", 0)


def test_bundles_are_for_queues_whose_workers_all_know_them(db: Session) -> None:
    assert sizes(db) == {}, "nobody is there"
    declare(db, {"a.task": 50, "b.task": "time_limit", "c.task": 1})
    assert sizes(db) == {"a.task": (50, 2), "b.task": (0, 2), "c.task": (1, 2)}
    declare(db, {"a.task": 20}, "x@test", concurrency=6)
    assert sizes(db)["a.task"] == (20, 8), "the least that any of them says"
    db.do("select bridge.set_bundle('celery', 10)")
    assert sizes(db)[None] == (10, 8)
    declare(db, None, "old@test")
    assert sizes(db) == {}
    db.do("update bridge.worker set stopped_at = now() where name = 'old@test'")
    assert sizes(db) != {}
    db.do("select bridge.note_silent('{plain@test}', '{celery}')")
    assert sizes(db) == {}


def test_what_a_worker_has_said_stays_with_reports_that_say_nothing(db: Session) -> None:
    query = "select bridge.report_worker(%s, 'w@test', 1, 'prefork', 2, '{celery}', 'test', '{}', clock_timestamp(), %s)"
    db.do(query, db.worker, '{"a.task": 7}')
    db.report()
    assert sizes(db) == {"a.task": (7, 2)}


@pytest.mark.parametrize("jobs", [0, -1, 1001])
def test_a_size_out_of_bounds_is_refused(db: Session, jobs: int) -> None:
    with pytest.raises(psycopg.Error, match=rf"jobs is {jobs}.*") as caught:
        db.do("select bridge.set_bundle('celery', %s)", jobs)
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("JB001", "give 1 to 1000, or null for one")
