"""Which open session a call joins, and what becomes of its jobs however that session ends."""

from __future__ import annotations

import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from fix_proxy import without_an_answer
from fix_transactions import Order, tasks_of
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

import bridge
from bridge.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from fix_sql import Session as Sql
    from laboratory.proxy import Proxy


def test_jobs_of_a_session_that_only_read_are_not_lost_when_it_is_closed(engine: Engine, caller: Any, db: Sql) -> None:
    with engine.begin() as connection:
        connection.execute(text("insert into orders values (1, 'ada')"))
    with Session(engine) as session:
        order = session.get(Order, 1)
        caller.send_task("mail.send", (order.name,))  # type: ignore[union-attr]
        bridge.enqueue("named", connection=session)  # this one was told to share the transaction's fate
    assert db.rows("select task, args from bridge.job") == [("mail.send", ["ada"])]


def test_many_jobs_of_a_session_that_only_read_are_not_lost_either(engine: Engine, caller: Any, db: Sql) -> None:
    with Session(engine) as session:
        for number in session.execute(text("select generate_series(1, 2100)")).scalars():
            caller.send_task("mail.send", (number,))
        assert tasks_of(db) == []
    assert len(tasks_of(db)) == 2100
    with Session(engine) as session, session.begin():
        session.execute(text("select 1"))
        for number in range(1100):
            caller.send_task("more", (number,))
    assert len(tasks_of(db)) == 3200


def test_jobs_that_were_sent_before_a_session_was_closed_are_named_too(
    engine: Engine, caller: Any, db: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "bridge"), Session(engine) as session:
        session.execute(text("insert into orders values (1)"))
        first = caller.send_task("mail.send")
        for number in range(1000):
            caller.send_task("mail.send", (number,))
    assert tasks_of(db) == []
    assert f"jobs rolled back with a session that was closed without a commit count=1001 first={first.id}" in caplog.text


def test_jobs_of_a_session_that_only_read_outlive_a_restart_of_postgres(engine: Engine, caller: Any, db: Sql) -> None:
    caller.send_task("before")
    ours = "datname = current_database() and application_name = 'bridge client'"
    db.do(f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where {ours}")
    with Session(engine) as session:
        session.execute(text("select 1"))
        caller.send_task("after")
    assert tasks_of(db) == ["before", "after"]


def test_a_job_of_a_session_that_only_read_is_made_once_though_the_answer_is_lost_and_it_has_ended(
    engine: Engine, caller: Any, postgres_proxy: tuple[Proxy, str], db: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, through = postgres_proxy
    monkeypatch.setenv("BRIDGE_DATABASE_URL", through)
    with Session(engine) as session:
        session.execute(text("select 1"))
        caller.send_task("before", queue="others")  # the statement is prepared from here on
    with Session(engine) as session:
        session.execute(text("select 1"))
        result = caller.send_task("told")
        without_an_answer(proxy, db, session.close)
    assert db.rows("select id::text, status from bridge.jobs where queue = 'celery'") == [(result.id, "succeeded")]


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


def test_another_thread_does_not_look_through_the_session_of_this_one(engine: Engine) -> None:
    with Session(engine) as session, ThreadPoolExecutor(1) as other:
        session.add(Order(id=1))
        identity = bridge.enqueue("mine")
        assert bridge.get(identity).task == "mine"
        with pytest.raises(NotFoundError, match=f"job {identity} does not exist"):
            other.submit(bridge.get, identity).result()
        session.rollback()


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
