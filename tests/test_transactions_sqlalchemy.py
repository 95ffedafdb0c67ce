"""Calls inside of an open SQLAlchemy session: they commit with it, roll back with it, and never join somebody else's."""

from __future__ import annotations

import gc
import logging
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from fix_transactions import tasks_of
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

import bridge
from bridge.errors import ConflictError, InvalidArgumentError, PayloadTooLargeError, UncommittedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_sql import Session as Sql


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


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


def test_jobs_of_a_session_that_only_read_are_not_lost_when_it_is_closed(engine: Engine, caller: Any, db: Sql) -> None:
    with engine.begin() as connection:
        connection.execute(text("insert into orders values (1, 'ada')"))
    with Session(engine) as session:
        order = session.get(Order, 1)
        caller.send_task("mail.send", (order.name,))  # type: ignore[union-attr]
        bridge.enqueue("named", connection=session)  # this one was told to share the transaction's fate
    assert db.rows("select task, args from bridge.job") == [("mail.send", ["ada"])]


@pytest.mark.parametrize("way", ["unflushed object", "core statement", "changed object"])
def test_jobs_of_a_session_that_wrote_go_with_it_when_it_is_closed(
    engine: Engine, caller: Any, db: Sql, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    with engine.begin() as connection:
        connection.execute(text("insert into orders values (1, 'ada')"))
    with caplog.at_level(logging.WARNING, "bridge"), Session(engine) as session:
        order = session.get(Order, 1)
        if way == "changed object":
            order.name = "eve"  # type: ignore[union-attr]
        caller.send_task("mail.send")
        if way == "core statement":
            session.execute(text("delete from orders"))
        if way == "unflushed object":
            session.add(Order(id=2))
    assert tasks_of(db) == []
    assert "jobs rolled back with a session that was closed without a commit count=1" in caplog.text


def test_a_session_that_has_failed_takes_no_more_jobs_with_it(engine: Engine, caller: Any, db: Sql) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        session.commit()
        session.add(Order(id=1))
        caller.send_task("lost")
        with pytest.raises(IntegrityError):
            session.flush()
        caller.send_task("report.failure")
        assert tasks_of(db) == ["report.failure"]
        session.rollback()
        with pytest.raises(Exception, match="division by zero"):
            session.execute(text("select 1 / 0"))
        caller.send_task("report.again")
        session.rollback()
    assert tasks_of(db) == ["report.failure", "report.again"]


def test_a_session_on_another_database_is_not_joined(engine: Engine, foreign_engine: Engine, caller: Any, db: Sql) -> None:
    with Session(foreign_engine) as foreign:
        foreign.add(Order(id=1))
        foreign.flush()
        caller.send_task("at.once")
        assert tasks_of(db) == ["at.once"]
        with Session(engine) as session:
            session.add(Order(id=1))
            foreign.execute(text("select 1"))  # used last, and still not ours
            caller.send_task("joined")
            session.rollback()
        foreign.rollback()
    assert tasks_of(db) == ["at.once"]


def test_of_two_open_sessions_the_one_used_last_is_joined(engine: Engine, caller: Any, db: Sql) -> None:
    with Session(engine) as first, Session(engine) as second:
        first.execute(text("select 1"))
        second.execute(text("select 1"))
        first.execute(text("select 2"))
        caller.send_task("with.first")
        second.rollback()
        first.commit()
    assert tasks_of(db) == ["with.first"]


def test_another_thread_does_not_join_the_session_of_this_one(engine: Engine, caller: Any, db: Sql) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        session.flush()
        thread = threading.Thread(target=caller.send_task, args=("from.a.thread",))
        thread.start()
        thread.join()
        assert tasks_of(db) == ["from.a.thread"]


def test_a_session_is_joined_by_the_thread_that_uses_it_now(engine: Engine, caller: Any, db: Sql) -> None:
    session = Session(engine)
    for number in (1, 2):  # as a dependency and an endpoint of FastAPI: each in a thread, with a context of its own
        thread = threading.Thread(target=lambda: (session.execute(text("select 1")), caller.send_task(f"thread.{number}")))  # noqa: B023
        thread.start()
        thread.join()
    session.add(Order(id=1))
    caller.send_task("here")
    assert tasks_of(db) == []
    session.commit()
    assert tasks_of(db) == ["thread.1", "thread.2", "here"]
    session.close()


def test_a_session_that_is_dropped_says_which_jobs_went_with_it(engine: Engine, caller: Any, db: Sql, caplog: Any) -> None:
    session = Session(engine)
    session.execute(text("select 1"))
    result = caller.send_task("dropped")
    del session
    gc.collect()
    assert f"jobs lost with a session that was neither committed nor closed count=1 first={result.id}" in caplog.text
    caller.send_task("next")
    assert tasks_of(db) == ["next"]


def test_one_database_is_recognized_by_every_way_to_it(engine: Engine, caller: Any, db: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "BRIDGE_DATABASE_URL", f"{db.dsn}{'&' if '?' in db.dsn else '?'}application_name=another" if "://" in db.dsn else db.dsn
    )
    with Session(engine) as session:
        session.add(Order(id=1))
        caller.send_task("joined")
        session.rollback()
    assert tasks_of(db) == []


def test_a_session_in_autocommit_sends_each_job_at_once(engine: Engine, caller: Any, db: Sql) -> None:
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        session.execute(text("select 1"))
        caller.send_task("at.once")
        assert tasks_of(db) == ["at.once"]


def test_a_two_phase_transaction_is_left_alone_because_postgres_forbids_notify_in_it(engine: Engine, caller: Any, db: Sql) -> None:
    with Session(engine, twophase=True) as session:
        session.add(Order(id=1))
        session.flush()
        caller.send_task("by.itself")
        assert tasks_of(db) == ["by.itself"]
        with pytest.raises(InvalidArgumentError, match="a two-phase transaction cannot take jobs"):
            bridge.enqueue("named", connection=session)
    with engine.connect() as connection, connection.begin_twophase(), pytest.raises(InvalidArgumentError, match="a two-phase transaction"):
        bridge.enqueue("named", connection=connection)


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


def test_a_run_begins_without_the_session_that_the_run_before_left_open(engine: Engine, caller: Any, db: Sql) -> None:
    from bridge.transaction.current import of_a_run

    with of_a_run():
        left_open = Session(engine)
        left_open.execute(text("select 1"))
        caller.send_task("read.only")
    assert tasks_of(db) == ["read.only"]
    with of_a_run():
        caller.send_task("next.run")
    assert tasks_of(db) == ["read.only", "next.run"]
    left_open.close()


def test_an_import_of_sqlalchemy_after_install_is_noticed() -> None:
    import subprocess
    import sys

    code = (
        "import sys, bridge; bridge.join_sessions(); assert 'sqlalchemy' not in sys.modules; import sqlalchemy.orm as orm\n"
        "from sqlalchemy import event; from bridge.transaction import sessions\n"
        "assert event.contains(orm.Session, 'before_commit', sessions._before_commit)\n"
        "assert type(orm.__spec__.loader).__module__ == '_frozen_importlib_external', orm.__spec__.loader\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
