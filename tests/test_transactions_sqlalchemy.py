"""Calls inside of an open SQLAlchemy session: they commit with it, roll back with it, and never join somebody else's."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from fix_transactions import Order, tasks_of
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import bridge
from bridge.errors import ConflictError, InvalidArgumentError, PayloadTooLargeError, UncommittedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_sql import Session as Sql


@pytest.fixture
def statements(engine: Engine) -> Iterator[list[str]]:
    """What the engine sends that names our schema."""
    seen: list[str] = []

    def note(*given: Any) -> None:
        if "bridge." in given[2]:
            seen.append(given[2])

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


@pytest.fixture(params=["delay", "enqueue"])
def call(request: pytest.FixtureRequest, caller: Any) -> Callable[[str], Any]:
    """Both plain ways to make a job: Celery's and ours."""
    return caller.send_task if request.param == "delay" else bridge.enqueue  # type: ignore[no-any-return]


def test_a_plain_call_commits_with_the_session_that_is_open(engine: Engine, call: Callable[[str], Any], db: Sql) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        call("with.order")
        session.flush()
        assert tasks_of(db) == []
        session.commit()
        assert tasks_of(db) == ["with.order"]
        call("by.itself")  # nothing is open
        assert tasks_of(db) == ["with.order", "by.itself"]


def test_a_rollback_leaves_no_trace_of_a_call(engine: Engine, call: Callable[[str], Any], db: Sql) -> None:
    with Session(engine) as session:
        session.execute(text("select 1"))
        call("rolled.back")
        session.rollback()
        session.add(Order(id=1))
        call("closed.with.writes")
    block = sessionmaker(engine).begin()
    session = block.__enter__()
    call("before.any.statement")
    session.add(Order(id=1))
    block.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert tasks_of(db) == []
    assert db.one("select count(*) from orders") == 0


def test_a_call_in_a_savepoint_shares_its_fate(engine: Engine, call: Callable[[str], Any], db: Sql) -> None:
    with Session(engine) as session, session.begin():
        call("before")
        with session.begin_nested():
            call("kept.inside")
            session.add(Order(id=1))
        inner = session.begin_nested()
        call("lost")
        with session.begin_nested():
            call("lost.deeper")
        session.add(Order(id=2))
        session.flush()
        call("lost.too")
        inner.rollback()
        call("after")
        bare = session.connection().begin_nested()
        call("lost.on.the.connection")
        bare.rollback()
    assert tasks_of(db) == ["before", "kept.inside", "after"]
    assert db.one("select count(*) from orders") == 1


def test_many_calls_are_sent_in_one_statement_before_the_commit(engine: Engine, caller: Any, db: Sql, statements: list[str]) -> None:
    with Session(engine) as session, session.begin():
        session.add(Order(id=1))
        for number in range(300):
            caller.send_task("many", (number,))
        bridge.enqueue("last")
    assert len(statements) == 1
    assert [row[0] for row in db.rows("select args from bridge.job where task = 'many' order by seq")] == [[n] for n in range(300)]


def test_what_waits_in_memory_is_bounded(engine: Engine, caller: Any, db: Sql, statements: list[str]) -> None:
    with Session(engine) as session, session.begin():
        session.add(Order(id=1))
        for number in range(1001):
            caller.send_task("rows", (number,))
        assert len(statements) == 1
        for _ in range(5):
            caller.send_task("bytes", ("x" * 900_000,))
        assert len(statements) == 2
        session.rollback()
    assert tasks_of(db) == []


def test_a_statement_and_a_call_of_the_transaction_see_its_own_jobs(engine: Engine, caller: Any) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        identity = bridge.enqueue("mine", [1])
        assert session.execute(text("select task from bridge.jobs")).scalars().all() == ["mine"]
        other = caller.send_task("mine.too")
        assert bridge.get(other.id).task == "mine.too"
        assert bridge.get(identity, connection=session).args == [1]
        child = bridge.enqueue("child", depends_on=[identity])
        assert bridge.get(child).status is bridge.Status.BLOCKED
        assert bridge.cancel(identity) is bridge.Status.CANCELLED
        session.rollback()
        with pytest.raises(bridge.BridgeError, match="does not exist"):
            bridge.get(identity)


def test_an_error_of_a_waiting_job_comes_from_the_commit_and_names_it(engine: Engine, db: Sql) -> None:
    session = Session(engine)
    session.add(Order(id=1))
    bridge.enqueue("good")
    bad = bridge.enqueue("bad", priority=11)
    with pytest.raises(InvalidArgumentError, match=f"job {bad}, task bad: priority is 11: give 0 to 9"):
        session.commit()
    session.rollback()
    bridge.enqueue("large", ["x" * 2_000_000], connection=session)
    with pytest.raises(PayloadTooLargeError, match="payload of task large"):
        session.commit()
    session.close()
    assert tasks_of(db) == []
    assert db.one("select count(*) from orders") == 0


def test_a_call_from_a_flush_within_the_commit_is_in_time(engine: Engine, caller: Any, db: Sql) -> None:
    def on_insert(*given: Any) -> None:
        caller.send_task("on.insert", (given[2].id,))

    event.listen(Order, "after_insert", on_insert)
    try:
        with Session(engine) as session:
            session.add(Order(id=7))
            session.commit()
    finally:
        event.remove(Order, "after_insert", on_insert)
    assert db.rows("select task, args from bridge.job") == [("on.insert", [7])]


def test_a_unique_key_is_answered_inside_of_the_transaction(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        bridge.enqueue("before")
        first = bridge.enqueue("a.task", unique_key="one")
        assert bridge.enqueue("a.task", unique_key="one") == first
        with pytest.raises(ConflictError, match="unique_key 'one'"):
            bridge.enqueue("a.task", unique_key="one", on_conflict="raise")
        session.rollback()


def test_many_jobs_of_one_call_join_too(engine: Engine, db: Sql) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        ids = bridge.enqueue_many([{"task": "a", "delay": 60}, {"task": "b", "unique_key": "x"}])
        session.commit()
    assert [row[0] for row in db.rows("select id from bridge.job order by seq")] == ids


def test_a_named_session_connection_or_scoped_session_is_joined_without_any_application(engine: Engine, db: Sql) -> None:
    scoped = scoped_session(sessionmaker(engine))
    bridge.enqueue("scoped", connection=scoped)
    scoped.rollback()
    bridge.enqueue("scoped.kept", connection=scoped)
    scoped.commit()
    scoped.remove()
    with engine.connect() as connection:
        bridge.enqueue("connection", connection=connection)
        savepoint = connection.begin_nested()
        bridge.enqueue("connection.savepoint", connection=connection)
        savepoint.rollback()
        connection.commit()
        bridge.enqueue("connection.lost", connection=connection)
    with engine.begin() as connection, Session(connection, join_transaction_mode="create_savepoint") as session:
        bridge.enqueue("inside.of.a.test", connection=session)
        session.commit()
        assert session.execute(text("select count(*) from bridge.job where task = 'inside.of.a.test'")).scalar() == 1
        connection.get_transaction().rollback()  # type: ignore[union-attr]
    assert tasks_of(db) == ["scoped.kept", "connection"]


def test_using_names_the_transaction_of_every_call_in_its_block(engine: Engine, caller: Any, db: Sql) -> None:
    with engine.connect() as connection:
        with bridge.using(connection):
            caller.send_task("with.connection")
            with bridge.using(None):
                caller.send_task("by.itself")
        assert tasks_of(db) == ["by.itself"]
        connection.commit()
    with Session(engine) as session:
        session.add(Order(id=1))
        session.flush()
        with bridge.using(None):
            bridge.enqueue("by.itself.too")
        session.rollback()
    assert tasks_of(db) == ["by.itself", "with.connection", "by.itself.too"]


def test_joining_can_be_turned_off(engine: Engine, caller: Any, db: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_JOIN", "off")
    with Session(engine) as session:
        session.add(Order(id=1))
        session.flush()
        caller.send_task("by.itself")
        bridge.enqueue("by.itself.too")
        session.rollback()
    assert tasks_of(db) == ["by.itself", "by.itself.too"]


def test_waiting_inside_of_the_transaction_that_makes_the_job_says_why_it_cannot_end(engine: Engine, caller: Any, db: Sql) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        result, other = caller.send_task("a.task"), bridge.enqueue("a.task")
        words = r"was made in a transaction that has not committed, or was rolled back: it cannot run: commit, then wait"
        with pytest.raises(UncommittedError, match=f"job {result.id} {words}"):
            result.get(timeout=60)
        with pytest.raises(UncommittedError, match=f"job {other} {words}"):
            bridge.wait(other, timeout=60)
        group = caller.GroupResult(str(uuid.uuid4()), [result])
        with pytest.raises(UncommittedError, match=words):
            group.get(timeout=60)
        session.commit()
        for claim in db.claim():
            run = db.start(claim)
            db.finish(claim, run, result=5)
        assert result.get(timeout=60) == 5
        assert bridge.wait(other, timeout=60)[0].result == 5
