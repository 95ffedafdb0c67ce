"""Calls in the transaction of a psycopg connection that the caller names and commits himself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_transactions import tasks_of

import bridge
from bridge.errors import InvalidArgumentError, UncommittedError

if TYPE_CHECKING:
    from fix_calls import MakeApp
    from fix_sql import Session as Sql

pytestmark = pytest.mark.usefixtures("joining")


def test_calls_of_a_block_commit_and_roll_back_with_the_connection(dsn: str, caller: Any, db: Sql) -> None:
    with psycopg.connect(dsn) as connection, bridge.using(connection):
        caller.send_task("kept")
        bridge.enqueue("kept.too")
        assert tasks_of(db) == []
        connection.commit()
        caller.send_task("rolled.back")
        connection.rollback()
        with connection.transaction():
            caller.send_task("outer")
            with connection.transaction(force_rollback=True):
                caller.send_task("savepoint")
    assert tasks_of(db) == ["kept", "kept.too", "outer"]


def test_each_call_is_told_its_error_at_once(dsn: str, caller: Any) -> None:
    with psycopg.connect(dsn) as connection, bridge.using(connection):
        with pytest.raises(InvalidArgumentError, match="priority is 11: give 0 to 9"):
            bridge.enqueue("bad", priority=11)
        connection.rollback()
        with pytest.raises(InvalidArgumentError, match="queue is 'with space'"):
            caller.send_task("bad", queue="with space")
        connection.rollback()


def test_many_calls_travel_together_in_a_pipeline(dsn: str, caller: Any, db: Sql) -> None:
    with psycopg.connect(dsn) as connection, bridge.using(connection):
        with connection.pipeline():
            for number in range(50):
                caller.send_task("piped", (number,))
            ours = bridge.enqueue("ours")
        connection.commit()
        with pytest.raises(psycopg.Error, match="priority is 11"), connection.pipeline():
            bridge.enqueue("bad", priority=11)
        connection.rollback()
    assert tasks_of(db) == ["piped"] * 50 + ["ours"]
    assert bridge.get(ours).task == "ours"


def test_waiting_inside_of_the_transaction_says_why_it_cannot_end(dsn: str, caller: Any, db: Sql) -> None:
    with psycopg.connect(dsn) as connection:
        with bridge.using(connection):
            result = caller.send_task("a.task")
        identity, *_ = bridge.enqueue_many([{"task": "a.task"}], connection=connection)
        with pytest.raises(UncommittedError, match=f"job {result.id} was made in a transaction that has not committed"):
            result.get(timeout=60)
        with pytest.raises(UncommittedError, match=f"job {identity} was made"):
            bridge.wait(identity, timeout=60)
        assert bridge.get(identity, connection=connection).id == identity
        connection.commit()
    for claim in db.claim():
        db.finish(claim, db.start(claim), result=7)
    assert result.get(timeout=60) == 7
    assert bridge.wait(identity, timeout=60)[0].result == 7


def test_results_that_another_store_keeps_are_not_waited_for_either(make_caller: MakeApp, dsn: str) -> None:
    app = make_caller(backend="bridge+cache+memory://")
    with psycopg.connect(dsn) as connection, bridge.using(connection):
        result = app.send_task("a.task")
        with pytest.raises(UncommittedError, match="has not committed"):
            result.get(timeout=60)
        with pytest.raises(UncommittedError, match="has not committed"):
            app.backend.iter_native(app.GroupResult("a", [result]), timeout=60)


def test_a_connection_of_psycopg_that_has_to_be_awaited_is_refused(dsn: str) -> None:
    async def call() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            with pytest.raises(InvalidArgumentError, match="AsyncConnection, which has no transaction to join: its calls would have to be"):
                bridge.enqueue("a.task", connection=connection)

    asyncio.run(call())


@pytest.mark.parametrize("given", ["not one", 5, object()])
def test_what_is_no_connection_is_refused_by_its_type(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"connection is of type {type(given).__name__}, which has no transaction to join"):
        bridge.enqueue("a.task", connection=given)
    with pytest.raises(InvalidArgumentError, match="has no transaction to join"), bridge.using(given):
        pass
