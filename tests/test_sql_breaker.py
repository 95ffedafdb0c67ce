"""Circuit breakers: what opens them, how they are probed and closed, what they hold back, and who may turn them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session

STATE = "select state from bridge.breakers"
OPEN = "set_breaker({}, ratio => 0.5, minimum => 4, within => '1 minute', cooldown => '10 seconds', probes => 2)"
WHAT = {"queue": "queue => 'celery'", "task": "task => 'a.task'"}


def run(db: Session, outcomes: str) -> None:
    """Run jobs one after the other: + succeeds, - fails for good."""
    for outcome in outcomes:
        db.enqueue(max_attempts=1)
        held = db.run(limit=1)
        db.finish(*held) if outcome == "+" else db.fail(*held)


@pytest.fixture(params=WHAT)
def broken(request: pytest.FixtureRequest, db: Session) -> str:
    """A breaker, of a queue or a task, that has opened; further jobs wait."""
    what = WHAT[request.param]
    db.do(f"select bridge.{OPEN.format(what)}")
    run(db, "+--+")
    for number in range(5):
        db.enqueue(args=[number])
    db.publish(limit=2)
    db.tick()
    assert db.one(STATE) == "open"
    return what


def test_a_breaker_opens_when_enough_of_enough_attempts_have_failed(db: Session) -> None:
    db.do(f"select bridge.{OPEN.format(WHAT['task'])}")
    run(db, "---")
    db.tick()
    assert db.one(STATE) == "closed", "three attempts prove nothing"
    run(db, "++++")
    db.tick()
    assert db.one(STATE) == "closed", "three of seven"
    run(db, "-")
    db.tick()
    assert db.one(STATE) == "open", "four of eight"
    assert db.one("select reason like '4 of 8 attempts failed since %%' from bridge.breakers")


def test_attempts_count_that_are_tried_again_and_those_of_other_queues_and_tasks_do_not(db: Session) -> None:
    for what in WHAT.values():
        db.do(f"select bridge.{OPEN.format(what)}")
    for _ in range(5):
        db.enqueue("b.task", queue="mail", max_attempts=1)
        db.fail(*db.run(queue="mail"))
    db.tick()
    assert {state for (state,) in db.rows(STATE)} == {"closed"}
    db.enqueue(max_attempts=9, backoff=0)
    for _ in range(4):
        db.fail(*db.run())
    db.tick()
    assert {state for (state,) in db.rows(STATE)} == {"open"}


def test_what_failed_longer_ago_than_it_looks_does_not_count(db: Session) -> None:
    db.do(f"select bridge.{OPEN.format(WHAT['task'])}")
    run(db, "----")
    db.tick(by="61 seconds")
    assert db.one(STATE) == "closed"
    db.tick(by="50 seconds")
    assert db.one(STATE) == "open"


def test_an_open_breaker_lets_nothing_out_and_takes_back_what_is_published(db: Session, broken: str) -> None:
    del broken
    db.enqueue("b.task", queue="mail")
    assert db.claim() == []
    assert len(db.claim(queue="mail")) == 1
    assert db.one("select count(*) from bridge.jobs where status = 'queued' and queue = 'celery'") == 5
    assert db.rows("select pause, reason like '2 of 4 %%' from bridge.pauses") == [("breaker", True)]


def test_a_half_open_breaker_lets_its_probes_out_and_closes_when_they_succeed(db: Session, broken: str) -> None:
    del broken
    db.tick(by="9 seconds")
    assert db.claim() == []
    db.tick(by="11 seconds")
    assert db.one(STATE) == "half_open"
    first = db.claim()
    assert [claim.args[0] for claim in first] == [0, 1]
    assert db.claim() == []
    db.mark(first)
    db.finish(first[0], db.start(first[0]))
    assert db.claim() == [], "one has succeeded, the other is out: no third is wanted"
    db.finish(first[1], db.start(first[1]))
    assert [claim.args[0] for claim in db.claim()] == [2, 3, 4]
    assert db.one(STATE) == "closed"
    assert db.rows("select state from bridge.breaker_changes order by id") == [("open",), ("half_open",), ("closed",)]
    assert db.rows("select * from bridge.pauses") == []


def test_a_probe_that_fails_opens_the_breaker_again_before_another_is_let_out(db: Session, broken: str) -> None:
    del broken
    db.tick(by="11 seconds")
    probe = db.publish(limit=1)
    db.fail(probe, db.start(probe))
    assert db.claim() == []
    assert db.rows("select state, reason from bridge.breakers") == [("open", "a probe failed")]
    db.tick(by="9 seconds")
    assert db.one(STATE) == "open"
    db.tick(by="12 seconds")
    assert len(db.claim()) == 2


def test_a_probe_that_is_lost_or_cancelled_is_followed_by_another(db: Session, broken: str) -> None:
    del broken
    db.tick(by="11 seconds")
    one, two = db.claim()
    db.mark([one, two])
    db.start(one)
    db.one("select bridge.lose(%s, %s, 'killed')", one.seq, one.token)
    db.do("select bridge.cancel(%s)", two.id)
    assert len(db.claim()) == 2


def test_what_runs_since_before_takes_nothing_from_the_probes_and_tells_nothing_of_them(db: Session) -> None:
    for what in WHAT.values():
        db.do(f"select bridge.{OPEN.format(what)}")
    db.enqueue()
    long = db.run()
    run(db, "----")
    db.enqueue(args=[1])
    db.enqueue(args=[2])
    db.tick()
    db.tick(by="11 seconds")
    assert len(db.claim(limit=1)) == 1
    db.finish(*long)
    db.tick()
    assert {state for (state,) in db.rows(STATE)} == {"half_open"}
    assert len(db.claim()) == 1


def test_a_reset_closes_it_and_forgets_what_failed(db: Session, broken: str) -> None:
    assert db.one(f"select bridge.reset_breaker({broken})") == "open"
    db.tick()
    assert db.rows("select state, reason from bridge.breakers") == [("closed", "reset")]
    assert len(db.claim()) == 5
    assert db.one("select by = session_user from bridge.breaker_changes order by id desc limit 1")


def test_an_operators_pause_and_a_breaker_hold_each_by_itself(db: Session, broken: str) -> None:
    db.do(f"select bridge.pause({broken})")
    db.do(f"select bridge.reset_breaker({broken})")
    assert db.claim() == []
    assert db.one(f"select bridge.resume({broken})")
    assert not db.one(f"select bridge.resume({broken})")
    assert len(db.claim()) == 5


def test_a_breaker_is_changed_and_removed_and_saying_the_same_changes_nothing(db: Session, broken: str) -> None:
    said = f"select bridge.{OPEN.format(broken)}"
    assert db.one(said) == "unchanged"
    assert db.one(said.replace("probes => 2", "probes => 3")) == "changed"
    assert db.one(STATE) == "open"
    assert db.one(f"select bridge.remove_breaker({broken})")
    assert not db.one(f"select bridge.remove_breaker({broken})")
    assert len(db.claim()) == 5
    assert db.one(said) == "created"


def test_who_resets_a_breaker_while_a_tick_opens_it_comes_after_that(db: Session) -> None:
    db.do(f"select bridge.{OPEN.format(WHAT['queue'])}")
    run(db, "----")
    other = Session(db.dsn)
    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction():
            db.tick()
            waiting = pool.submit(other.one, "select bridge.reset_breaker('celery')")
            blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid = %s"
            wait_until(lambda: waiting.done() or db.one(blocked, other.connection.info.backend_pid), 20, "the reset to wait")
            assert not waiting.done()
        assert waiting.result(20) == "open"
    assert db.one(STATE) == "closed"
    with other.connection.transaction():
        other.do("select bridge.set_breaker('celery', minimum => 1), bridge.reset_breaker('celery')")
        db.tick()  # passes it by
    assert db.one(STATE) == "closed"


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        ("set_breaker()", "JB001", "queue is NULL, task is NULL, everything is 'f'"),
        ("set_breaker('a', 'b')", "JB001", "queue is 'a', task is 'b', everything is 'f'"),
        ("set_breaker('a', ratio => 0)", "JB001", "ratio is 0"),
        ("set_breaker('a', ratio => 1.5)", "JB001", "ratio is 1.5"),
        ("set_breaker('a', minimum => 0)", "JB001", "minimum is 0"),
        ("set_breaker('a', within => '-1 s')", "JB001", "within is -00:00:01"),
        ("set_breaker('a', cooldown => null)", "JB001", "cooldown is null"),
        ("set_breaker('a', probes => 0)", "JB001", "probes is 0"),
        ("reset_breaker('a')", "JB002", "breaker of queue a does not exist"),
        ("remove_breaker()", "JB001", "queue is NULL, task is NULL, everything is 'f'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(db: Session, call: str, code: str, message: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        db.rows(f"select bridge.{call}")
    assert (caught.value.diag.sqlstate, caught.value.diag.message_primary) == (code, message)
    assert caught.value.diag.message_hint
