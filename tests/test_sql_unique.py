"""Unique keys: how long one is taken, and what a second job with it does to the first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

KEY = "invoice 7"
BLOCKED = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid = %s"


@pytest.fixture
def other(dsn: str) -> Iterator[Session]:
    """A second session."""
    session = Session(dsn)
    yield session
    session.connection.close()


def refused(db: Session, **options: Any) -> tuple[str | None, str | None]:
    with pytest.raises(psycopg.Error) as caught:
        db.enqueue(**options)
    return caught.value.sqlstate, caught.value.diag.message_primary


def after_its_lock(pool: ThreadPoolExecutor, db: Session, session: Session, call: Any) -> Future[Any]:
    """Begin a call that has to wait for a lock of another session, and see it wait."""
    future = pool.submit(call)
    wait_until(lambda: db.one(BLOCKED, session.connection.info.backend_pid), what="a session that waits")
    return future


def test_a_key_that_is_taken_until_the_start_is_free_while_its_job_runs(db: Session) -> None:
    first = db.enqueue(unique_key=KEY, unique_until="started")
    assert db.enqueue(unique_key=KEY, unique_until="started") == first
    claim = db.publish()
    assert db.enqueue(unique_key=KEY, unique_until="started") == first
    run = db.start(claim)
    second = db.enqueue(unique_key=KEY, unique_until="started")
    assert second != first
    db.finish(claim, run)
    assert db.enqueue(unique_key=KEY) == second


def test_a_retry_does_not_take_back_a_key_that_the_start_has_freed(db: Session) -> None:
    db.enqueue(unique_key=KEY, unique_until="started", backoff="0")
    db.fail(*db.run())
    second = db.enqueue(unique_key=KEY)
    for _ in range(2):
        db.finish(*db.run(limit=1))
    assert db.rows("select status, count(*) from bridge.jobs group by status") == [("succeeded", 2)]
    assert db.enqueue(unique_key=KEY) != second


def test_only_a_job_that_asked_for_it_pays_at_its_start(db: Session) -> None:
    db.enqueue(unique_key=KEY, unique_until="started")
    db.enqueue(unique_key="other")
    db.enqueue()
    db.publish()
    assert db.rows("select unique_key, frees_key from bridge.inflight join bridge.job using (seq) order by seq") == [
        (KEY, True),
        ("other", None),
        (None, None),
    ]


def test_a_key_for_a_period_is_taken_after_its_job_has_ended_and_free_when_the_time_is_over(db: Session) -> None:
    first = db.enqueue(unique_key=KEY, unique_for="1 hour")
    db.finish(*db.run())
    assert db.enqueue(unique_key=KEY, unique_for="1 hour") == first
    assert refused(db, unique_key=KEY, on_conflict="raise")[0] == "JB003"
    assert db.tick(by="59 minutes")["keys"] == 0
    assert db.tick(by="61 minutes")["keys"] == 1
    assert db.enqueue(unique_key=KEY) != first


def test_a_period_that_is_over_needs_no_tick_and_does_not_end_the_job(db: Session) -> None:
    first = db.enqueue(unique_key=KEY, unique_for="1 hour")
    db.do("update bridge.unique_key set kept_until = clock_timestamp()")
    second = db.enqueue(unique_key=KEY)
    assert second != first
    db.finish(*db.run())
    assert db.enqueue(unique_key=KEY) == second


@pytest.mark.parametrize("way", ["finish", "fail", "cancel", "expire", "lose"])
@pytest.mark.parametrize("until", ["started", "finished"])
def test_a_key_is_given_back_whatever_way_its_job_ends(db: Session, way: str, until: str) -> None:
    db.do("update bridge.setting set value = '1' where name = 'max_losses'")
    expires = {"expires_at": "2100-01-01"} if way == "expire" else {}
    first = db.enqueue(unique_key=KEY, unique_until=until, max_attempts=1, **expires)
    if way == "finish":
        db.finish(*db.run())
    elif way == "fail":
        db.fail(*db.run())
    elif way == "cancel":
        db.one("select bridge.cancel(%s)", first)
    elif way == "expire":
        db.tick(by="100 years")
    else:
        while db.status(first) != "failed":
            claim, _ = db.run()
            db.do("select bridge.lose(%s, %s, 'gone')", claim.seq, claim.token)
    assert db.one("select count(*) from bridge.unique_key") == 0
    assert db.enqueue(unique_key=KEY) != first


CHANGED = {
    "replace": ("second", "1 day"),
    "move": ("first", "1 hour"),
    "debounce": ("second", "1 hour"),
}


@pytest.mark.parametrize("on_conflict", CHANGED)
def test_a_second_job_changes_what_it_asks_for_of_the_one_that_waits(db: Session, on_conflict: str) -> None:
    first = db.enqueue(args=["first"], unique_key=KEY, delay="1 day", priority=1)
    second = db.enqueue(args=["second"], queue="other", unique_key=KEY, delay="1 hour", priority=7, on_conflict=on_conflict)
    words, due = CHANGED[on_conflict]
    assert second == first
    found = "select args->>0, queue, priority, round(extract(epoch from run_at - clock_timestamp()) / 3600) from bridge.jobs"
    assert db.rows(found) == [(words, *(("other", 7) if words == "second" else ("celery", 1)), 24 if due == "1 day" else 1)]
    assert db.tick(by="25 hours")["due"] == 1
    assert [claim.args for claim in db.claim("other" if words == "second" else "celery")] == [[words]]


def test_a_debounced_job_is_pushed_on_by_every_call_and_runs_once_with_the_last_content(db: Session) -> None:
    ids = {db.enqueue(args=[number], unique_key=KEY, delay=f"{number} minutes", on_conflict="debounce") for number in (1, 2, 3)}
    assert len(ids) == 1
    assert db.tick(by="2 minutes 50 seconds")["due"] == 0
    assert db.tick(by="3 minutes 10 seconds")["due"] == 1
    claim, run = db.run()
    assert claim.args == [3]
    assert db.enqueue(args=[4], unique_key=KEY, on_conflict="debounce") not in ids
    db.finish(claim, run)


def test_a_published_job_is_replaced_and_the_message_of_before_starts_nothing(db: Session) -> None:
    first = db.enqueue(args=["first"], unique_key=KEY)
    stale = db.publish()
    assert db.enqueue(args=["second"], unique_key=KEY, on_conflict="replace") == first
    assert db.start(stale) is None
    claim, run = db.run()
    assert claim.args == ["second"]
    db.finish(claim, run)
    assert db.one("select count(*) from bridge.jobs") == 1


def test_a_blocked_job_is_replaced_and_still_waits_for_its_parent(db: Session) -> None:
    parent = db.enqueue("a.parent")
    child = db.enqueue(args=["first"], unique_key=KEY, depends_on=[parent])
    assert db.enqueue(args=["second"], unique_key=KEY, on_conflict="replace") == child
    assert db.status(child) == "blocked"
    db.finish(*db.run())
    assert db.run()[0].args == ["second"]


def test_a_replaced_job_stays_in_its_batch_which_ends_with_it(db: Session) -> None:
    batch = db.one("select bridge.create_batch()")
    db.do("select bridge.enqueue('a.task', unique_key => %s, batch => %s)", KEY, batch)
    db.do("select bridge.seal_batch(%s)", batch)
    db.enqueue(args=["second"], unique_key=KEY, on_conflict="debounce")
    db.finish(*db.run())
    assert db.rows("select status, total from bridge.batches") == [("succeeded", 1)]
    with pytest.raises(psycopg.Error, match="both batch and on_conflict 'replace' are given"):
        db.do("select bridge.enqueue('a.task', unique_key => %s, on_conflict => 'replace', batch => %s)", KEY, batch)


def test_a_job_that_has_begun_is_not_changed_and_the_call_says_so(db: Session) -> None:
    first = db.enqueue(unique_key=KEY)
    db.run()
    for on_conflict in CHANGED:
        assert refused(db, unique_key=KEY, on_conflict=on_conflict) == (
            "JB003",
            f"unique_key '{KEY}' belongs to job {first}, which has begun",
        )
    assert db.one("select count(*) from bridge.jobs") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unique_key": KEY, "on_conflict": "ignore"}, "on_conflict is 'ignore'"),
        ({"on_conflict": "replace"}, "on_conflict is given without unique_key"),
        ({"unique_until": "started"}, "unique_until is given without unique_key"),
        ({"unique_for": "1 hour"}, "unique_for is given without unique_key"),
        ({"unique_key": "k" * 2001}, "unique_key has 2001 bytes"),
        ({"unique_key": KEY, "unique_until": "later"}, "unique_until is 'later'"),
        ({"unique_key": KEY, "unique_for": "-1 hour"}, "unique_for is -01:00:00"),
        ({"unique_key": KEY, "unique_for": "11 years"}, "unique_for is 11 years"),
        ({"unique_key": KEY, "unique_for": "1 hour", "unique_until": "started"}, "both unique_for and unique_until are given"),
        ({"unique_key": KEY, "unique_for": "1 hour", "on_conflict": "move"}, "both unique_for and on_conflict 'move' are given"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(db: Session, options: dict[str, Any], message: str) -> None:
    assert refused(db, **options) == ("JB001", message)
    assert db.one("select count(*) from bridge.unique_key") == 0


def test_parents_and_a_change_of_a_waiting_job_do_not_go_together(db: Session) -> None:
    parent = db.enqueue()
    assert refused(db, unique_key=KEY, on_conflict="replace", depends_on=[parent])[0] == "JB001"


def test_a_call_that_waits_for_a_finish_takes_the_key_that_it_gives_back(db: Session, other: Session) -> None:
    first = db.enqueue(unique_key=KEY)
    claim, run = db.run()
    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction():
            db.finish(claim, run)
            waiting = after_its_lock(pool, db, other, lambda: other.enqueue(unique_key=KEY))
        assert waiting.result(20) != first


def test_a_call_that_waits_for_a_start_takes_the_key_that_it_gives_back(db: Session, other: Session) -> None:
    first = db.enqueue(unique_key=KEY, unique_until="started")
    claim = db.publish()
    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction():
            assert db.start(claim) is not None
            waiting = after_its_lock(pool, db, other, lambda: other.enqueue(unique_key=KEY))
        assert waiting.result(20) != first


@pytest.mark.parametrize("first", ["cancel", "replace"])
def test_a_cancel_and_a_replacement_at_once_end_in_one_of_the_two_states(db: Session, other: Session, first: str) -> None:
    identity = db.enqueue(args=["first"], unique_key=KEY)
    acts = {
        "cancel": lambda session: session.one("select bridge.cancel(%s)", identity),
        "replace": lambda session: session.enqueue(args=["second"], unique_key=KEY, on_conflict="replace"),
    }
    (second,) = set(acts) - {first}
    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction():
            acts[first](db)
            waiting = after_its_lock(pool, db, other, lambda: acts[second](other))
        answer = waiting.result(20)
    found = db.rows("select status, args->>0 from bridge.jobs order by created_at")
    if first == "replace":
        assert (answer, found) == ("cancelled", [("cancelled", "second")])
    else:
        assert answer != identity
        assert found == [("cancelled", "first"), ("queued", "second")]


def test_a_claim_and_a_replacement_at_once_publish_the_new_content_once(db: Session, other: Session) -> None:
    db.enqueue(args=["first"], unique_key=KEY)
    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction():
            (stale,) = db.claim()
            waiting = after_its_lock(pool, db, other, lambda: other.enqueue(args=["second"], unique_key=KEY, on_conflict="replace"))
        waiting.result(20)
    assert db.start(stale) is None
    assert [claim.args for claim in db.claim()] == [["second"]]


def test_calls_that_replace_one_job_from_many_sessions_leave_one(db: Session, dsn: str) -> None:
    def call(session: Session) -> set[Any]:
        return {session.enqueue(args=[n], unique_key=KEY, on_conflict="debounce", delay="1 hour") for n in range(20)}

    sessions = [Session(dsn) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        ids = set().union(*pool.map(call, sessions))
    assert len(ids) == 1
    assert db.rows("select status, args->>0 from bridge.jobs") == [("scheduled", "19")]


def test_a_start_never_waits_for_a_call_with_the_key_of_its_job(db: Session, other: Session) -> None:
    db.enqueue(unique_key=KEY, unique_until="started")
    claim = db.publish()
    with other.connection.transaction():
        other.enqueue(unique_key=KEY)
        db.do("set lock_timeout = '2s'")
        assert db.start(claim) is not None
