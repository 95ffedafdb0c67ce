"""What operators do to queues: pauses, soft and hard, against claims that are under way and against each other; windows; what is left."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAITS = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid = %s"
PAUSES = "select kind, name, pause from bridge.pauses order by 1, 2"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def waiting(pool: ThreadPoolExecutor, session: Session, call: Callable[[], Any], watcher: Session) -> Future[Any]:
    """A call that waits for somebody's lock by now."""
    future = pool.submit(call)
    pid = session.connection.info.backend_pid
    wait_until(lambda: future.done() or watcher.one(WAITS, pid), 20, "the call to wait")
    assert not future.done(), "it did not wait"
    return future


def refused(db: Session, query: str, *params: Any) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        db.rows(query, *params)
    assert caught.value.diag.message_hint
    return caught.value


def test_everything_is_paused_whatever_the_queue_and_each_pause_ends_by_itself(db: Session) -> None:
    db.enqueue()
    db.enqueue(queue="mail")
    db.do("select bridge.pause('mail')")
    assert db.one("select bridge.pause(everything => true, reason => 'a move')") == 0
    assert db.rows("select bridge.ready_queues()") == []
    assert db.claim() == []
    assert db.one("select reason from bridge.pauses where kind = 'everything'") == "a move"
    assert db.one("select bridge.resume(everything => true)")
    assert db.rows("select bridge.ready_queues()") == [("celery",)]
    assert db.claim(queue="mail") == []
    assert len(db.claim()) == 1


def test_resuming_says_whether_there_was_a_pause_and_wakes_drainers(db: Session, other: Session) -> None:
    db.enqueue()
    other.listen()
    assert not db.one("select bridge.resume('celery')")
    db.do("select bridge.pause(everything => true)")
    assert db.one("select bridge.resume(everything => true)")
    heard = [notice.payload for notice in other.connection.notifies(timeout=20, stop_after=2)]
    assert heard == ["celery", "celery"]


def test_after_a_hard_pause_nothing_starts_that_was_published_and_all_of_it_runs_after_the_end(db: Session) -> None:
    ids = [db.enqueue(args=[number]) for number in range(5)]
    db.enqueue(queue="mail")
    _, run = held = db.run(limit=1)
    published = db.claim(limit=2)
    db.mark(published)
    on_the_way = db.claim(limit=1)
    mail = db.publish(queue="mail")
    assert db.one("select bridge.pause('celery', hard => true)") == 3
    assert [db.start(claim) for claim in [*published, *on_the_way]] == [None] * 3
    assert db.mark(on_the_way) == 0, "its drainer publishes and marks it: nothing is left to be marked"
    assert db.one("select bridge.unclaim(%s)", [claim.seq for claim in on_the_way]) == 0
    assert [db.status(identity) for identity in ids] == ["running"] + ["queued"] * 4
    assert db.start(mail) is not None
    assert db.finish(held[0], run)
    db.do("select bridge.resume('celery')")
    again = db.claim()
    assert sorted(claim.args[0] for claim in again) == [1, 2, 3, 4]
    assert all(db.start(claim) for claim in again)


def test_a_soft_pause_lets_what_is_published_start_and_becomes_hard_when_asked(db: Session) -> None:
    db.enqueue()
    db.enqueue()
    first, second = db.claim()
    assert db.one("select bridge.pause('celery')") == 0
    assert db.start(first) is not None
    assert db.one("select bridge.pause('celery', hard => true)") == 1
    assert db.start(second) is None
    assert db.one("select bridge.pause('celery')") == 0
    assert db.rows(PAUSES) == [("queue", "celery", "hard")]


def test_a_hard_pause_of_everything_takes_back_of_all_queues(db: Session) -> None:
    for queue in ("a", "b"):
        db.enqueue(queue=queue)
    claims = [db.publish(queue=queue) for queue in ("a", "b")]
    assert db.one("select bridge.pause(everything => true, hard => true)") == 2
    assert [db.start(claim) for claim in claims] == [None, None]


def test_what_a_hard_pause_takes_back_keeps_its_turn(db: Session) -> None:
    for number in range(5):
        db.enqueue(args=[number])
    db.mark(db.claim(limit=3))
    db.do("select bridge.pause('celery', hard => true), bridge.resume('celery')")
    db.enqueue(args=[5], priority=1)
    assert [claim.args[0] for claim in db.claim()] == [5, 0, 1, 2, 3, 4]


def test_a_task_is_paused_in_all_queues_and_the_others_go_on(db: Session) -> None:
    for number, queue in enumerate(["celery", "mail", "celery"]):
        db.enqueue("a_task", args=[number], queue=queue)
    db.enqueue("a.task", args=[3])
    published = db.claim(limit=1)
    db.mark(published)
    assert db.one("select bridge.pause(task => 'a_task', hard => true, reason => 'broken')") == 1
    assert db.rows("select kind, name, pause, reason from bridge.pauses") == [("task", "a_task", "hard", "broken")]
    assert [db.start(claim) for claim in published] == [None]
    db.enqueue("a_task", args=[4])
    assert [claim.args[0] for claim in db.claim()] == [3]
    assert db.claim(queue="mail") == []
    assert db.one("select count(*) from bridge.jobs where status = 'queued' and task = 'a_task'") == 4
    assert db.one("select bridge.resume(task => 'a_task')")
    assert [claim.args[0] for claim in db.claim()] == [0, 2, 4]
    assert [claim.args[0] for claim in db.claim(queue="mail")] == [1]
    assert db.rows("select name from bridge.job_limit") == []


def test_a_claim_that_began_before_a_task_was_paused_does_not_slip_through(db: Session, other: Session, pool: ThreadPoolExecutor) -> None:
    db.enqueue()
    with db.connection.transaction():
        claims = db.claim()
        paused = waiting(pool, other, lambda: other.one("select bridge.pause(task => 'a.task', hard => true)"), Session(db.dsn))
    assert paused.result(20) == 1
    assert db.start(claims[0]) is None
    assert db.claim() == []


def test_what_a_worker_that_reports_nothing_may_have_taken_is_not_taken_back(db: Session) -> None:
    db.enqueue()
    db.publish()
    db.do("select bridge.note_silent('{old@host}', '{celery}')")
    assert db.one("select bridge.pause('celery', hard => true)") == 0
    assert db.one("select status from bridge.jobs") == "published"


def test_a_claim_that_began_before_a_hard_pause_does_not_slip_through(db: Session, other: Session, pool: ThreadPoolExecutor) -> None:
    db.enqueue()
    with db.connection.transaction():
        claims = db.claim()
        paused = waiting(pool, other, lambda: other.one("select bridge.pause('celery', hard => true)"), Session(db.dsn))
    assert paused.result(20) == 1
    assert db.start(claims[0]) is None


@pytest.mark.parametrize("what", ["'celery'", "everything => true"])
def test_while_a_pause_is_not_committed_claims_pass_by_and_never_wait(db: Session, other: Session, what: str) -> None:
    db.enqueue()
    db.enqueue(queue="mail")
    with other.connection.transaction(force_rollback=True):
        other.do(f"select bridge.pause({what}, hard => true)")
        assert db.claim() == []
        assert len(db.claim(queue="mail")) == (1 if what == "'celery'" else 0)
    assert len(db.claim()) == 1


@pytest.mark.parametrize("what", ["'celery'", "everything => true"])
def test_who_resumes_while_another_pauses_waits_and_then_ends_that_pause(
    db: Session, other: Session, pool: ThreadPoolExecutor, what: str
) -> None:
    db.enqueue()
    with db.connection.transaction():
        db.do(f"select bridge.pause({what}, hard => true)")
        resumed = waiting(pool, other, lambda: other.one(f"select bridge.resume({what})"), Session(db.dsn))
    assert resumed.result(20) is True
    assert db.rows(PAUSES) == []
    assert len(db.claim()) == 1


def test_who_pauses_while_another_resumes_waits_and_then_pauses(db: Session, other: Session, pool: ThreadPoolExecutor) -> None:
    db.enqueue()
    db.do("select bridge.pause('celery')")
    with db.connection.transaction():
        db.do("select bridge.resume('celery')")
        paused = waiting(pool, other, lambda: other.do("select bridge.pause('celery', hard => true)"), Session(db.dsn))
    paused.result(20)
    assert db.rows(PAUSES) == [("queue", "celery", "hard")]
    assert db.claim() == []


def in_one(session: Session, call: str) -> str:
    """The last call of a transaction, and how that ended."""
    try:
        session.do(call)
    except psycopg.errors.DeadlockDetected:
        session.do("rollback")
        return "refused"
    session.do("commit")
    return "committed"


def test_two_operators_who_wait_for_each_other_end_in_one_of_the_two_states(db: Session, other: Session, pool: ThreadPoolExecutor) -> None:
    for queue in ("a", "b"):
        db.enqueue(queue=queue)
        db.do("select bridge.pause(%s)", queue)
    for session, call in ((db, "bridge.pause('a', hard => true)"), (other, "bridge.resume('b')")):
        session.do("begin")
        session.do(f"select {call}")
    second = waiting(pool, other, lambda: in_one(other, "select bridge.resume('a')"), Session(db.dsn))
    first = in_one(db, "select bridge.pause('b', hard => true)")
    assert sorted([first, second.result(20)]) == ["committed", "refused"]
    both = [("queue", "a", "hard"), ("queue", "b", "hard")]
    assert db.rows(PAUSES) == (both if first == "committed" else [])
    assert db.rows("select bridge.ready_queues()") == ([] if first == "committed" else [("a",), ("b",)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "queue is NULL, task is NULL, everything is 'f'"),
        ("'a', task => 't'", "queue is 'a', task is 't', everything is 'f'"),
        ("'a', everything => true", "queue is 'a', task is NULL, everything is 't'"),
        ("'a,b'", "queue is 'a,b'"),
        ("''", "queue is ''"),
        ("task => 'a b'", "task is 'a b'"),
    ],
)
def test_what_cannot_be_paused_or_resumed_is_refused_by_name(db: Session, arguments: str, message: str) -> None:
    for function in ("pause", "resume"):
        error = refused(db, f"select bridge.{function}({arguments})")
        assert (error.diag.sqlstate, error.diag.message_primary) == ("JB001", message)
    assert db.rows(PAUSES) == []


def test_a_window_is_set_and_given_back_and_a_negative_one_refused(db: Session) -> None:
    for _ in range(3):
        db.enqueue()
    db.do("select bridge.set_window('celery', 1)")
    assert db.one('select "window" from bridge.job_queue_stats') == 1
    assert len(db.claim()) == 1
    db.do("select bridge.set_window('celery')")
    assert len(db.claim()) == 2
    error = refused(db, "select bridge.set_window('celery', -1)")
    assert error.diag.message_primary == "jobs is -1"
    assert refused(db, "select bridge.set_window('a b', 1)").diag.message_primary == "queue is 'a b'"


def test_the_state_of_a_drain_counts_what_is_outside_of_postgres(db: Session) -> None:
    state = "select queue, paused, publishing, published, running from bridge.drain_state(%s)"
    for _ in range(4):
        db.enqueue()
    db.enqueue(queue="mail")
    db.run(limit=1)
    db.publish(limit=1)
    db.claim(limit=1)
    db.do("select bridge.pause('celery')")
    assert db.rows(state, None) == [("celery", True, 1, 1, 1)]
    assert db.rows(state, ["mail", "nothing"]) == [("mail", False, 0, 0, 0), ("nothing", False, 0, 0, 0)]
    assert db.one("select oldest_started_at is not null from bridge.drain_state()")
    db.do("update bridge.inflight set taken_by = '{old@host}' where state = 'published'")
    assert db.rows(state, None) == [("celery", True, 1, 0, 1)]


@pytest.mark.parametrize("what", ["'celery'", "task => 'a.task'", "everything => true"])
def test_a_purge_cancels_what_a_pause_holds_and_the_pause_stays(db: Session, what: str) -> None:
    for _ in range(3):
        db.enqueue()
    db.publish(limit=1)
    db.do(f"select bridge.pause({what}, hard => true)")
    db.enqueue()
    assert db.one("select cancelled from bridge.purge('celery')") == 4
    assert db.rows("select distinct status from bridge.jobs") == [("cancelled",)]
    assert len(db.rows(PAUSES)) == 1


def test_pauses_show_with_the_queues(db: Session) -> None:
    db.enqueue()
    shown = "select pause, paused_at is not null from bridge.job_queue_stats where queue = 'celery'"
    assert db.rows(shown) == [(None, False)]
    db.do("select bridge.pause(everything => true)")
    assert db.rows(shown) == [("soft", True)]
    db.do("select bridge.pause('celery', hard => true)")
    assert db.rows(shown) == [("hard", True)]
    db.do("select bridge.pause('empty')")
    assert db.rows("select queue, pause from bridge.job_queue_stats where queue = 'empty'") == [("empty", "soft")]
