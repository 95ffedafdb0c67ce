"""Calls inside of an AsyncSession's transaction: made without awaiting, sent when it commits."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fix_transactions import engine_url, tasks_of
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine

import bridge
from bridge.errors import InvalidArgumentError, UncommittedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from fix_sql import Session as Sql
    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.usefixtures("joining")


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> str:
    """Both drivers that can be awaited."""
    return str(request.param)


@asynccontextmanager
async def an_engine(dsn: str, driver: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(engine_url(dsn, driver))
    async with engine.begin() as connection:
        await connection.execute(text("create table if not exists orders (id integer primary key)"))
    yield engine
    await engine.dispose()


def run(dsn: str, driver: str, story: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with an_engine(dsn, driver) as engine:
            await story(engine)

    asyncio.run(tell())


def test_a_plain_call_commits_and_rolls_back_with_the_session(dsn: str, driver: str, caller: Any, db: Sql) -> None:
    async def story(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(text("insert into orders values (1)"))
            caller.send_task("kept")
            bridge.enqueue("kept.too", priority=5)
            assert tasks_of(db) == []
            await session.commit()
            assert tasks_of(db) == ["kept", "kept.too"]
            await session.execute(text("insert into orders values (2)"))
            caller.send_task("rolled.back")
            await session.rollback()
            await session.execute(text("insert into orders values (3)"))
            caller.send_task("closed")
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(text("insert into orders values (4)"))
            async with session.begin_nested() as inner:
                bridge.enqueue("lost")
                await session.execute(text("insert into orders values (5)"))
                await inner.rollback()
            bridge.enqueue("after")
        async with AsyncSession(engine) as session:
            await session.execute(text("select 1"))
            caller.send_task("only.read")

    run(dsn, driver, story)
    assert tasks_of(db) == ["kept", "kept.too", "after", "only.read"]


def test_a_session_or_connection_that_is_named_is_joined(dsn: str, driver: str, db: Sql) -> None:
    async def story(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            bridge.enqueue("before.any.statement", connection=session)
            bridge.enqueue_many([{"task": "many"}, {"task": "many"}], connection=session)
            await session.commit()
            bridge.enqueue("rolled.back", connection=session)
            await session.rollback()
        async with engine.begin() as connection:
            with bridge.using(connection):
                bridge.enqueue("connection")
        scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        bridge.enqueue("scoped", connection=scoped)
        await scoped.commit()
        await scoped.remove()

    run(dsn, driver, story)
    assert tasks_of(db) == ["before.any.statement", "many", "many", "connection", "scoped"]


def test_what_needs_an_answer_is_refused_outside_and_given_inside_of_run_sync(dsn: str, driver: str, db: Sql) -> None:
    async def story(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            with pytest.raises(InvalidArgumentError, match=r"a unique key needs an answer .* await session.run_sync"):
                bridge.enqueue("keyed", unique_key="one", connection=session)
            first = await session.run_sync(lambda sync: bridge.enqueue("keyed", unique_key="one", connection=sync))
            assert await session.run_sync(lambda sync: bridge.enqueue("keyed", unique_key="one", connection=sync)) == first
            with pytest.raises(InvalidArgumentError, match="which cannot be read from here"):
                await session.run_sync(lambda sync: bridge.get(first, connection=sync))
            await session.commit()

    run(dsn, driver, story)
    assert tasks_of(db) == ["keyed"]


def test_a_coroutine_that_reads_a_job_before_its_commit_is_told_why_it_cannot(dsn: str, driver: str) -> None:
    async def story(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            identity = bridge.enqueue("a.task", connection=session)
            with pytest.raises(InvalidArgumentError, match="an asyncio transaction cannot be read from here"):
                bridge.get(identity)
            await session.commit()
            assert bridge.get(identity).task == "a.task"

    run(dsn, driver, story)


def test_an_error_of_a_waiting_job_comes_from_the_commit_and_names_it(dsn: str, driver: str, db: Sql) -> None:
    async def story(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            bridge.enqueue("good", connection=session)
            bad = bridge.enqueue("bad", priority=11, connection=session)
            with pytest.raises(InvalidArgumentError, match=f"job {bad}, task bad: priority is 11: give 0 to 9"):
                await session.commit()

    run(dsn, driver, story)
    assert tasks_of(db) == []


def test_another_task_of_the_loop_does_not_join(dsn: str, driver: str, caller: Any, db: Sql) -> None:
    async def beside() -> None:
        caller.send_task("beside")

    async def story(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(text("insert into orders values (1)"))
            await asyncio.create_task(beside())
            await session.rollback()

    run(dsn, driver, story)
    assert tasks_of(db) == ["beside"]


def test_an_engine_of_another_database_is_not_joined(empty_dsn: str, driver: str, caller: Any, db: Sql) -> None:
    async def story(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(text("insert into orders values (1)"))
            caller.send_task("at.once")
            await session.rollback()

    run(empty_dsn, driver, story)
    assert tasks_of(db) == ["at.once"]


def test_memory_is_bounded_where_nothing_can_be_sent_before_the_next_await(
    dsn: str, driver: str, db: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.transaction.carrier._PATIENCE", 2)

    async def story(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            for _ in range(1999):
                bridge.enqueue("many", connection=session)
            with pytest.raises(InvalidArgumentError, match="2000 jobs wait in memory for the commit of an asyncio transaction"):
                bridge.enqueue("one.too.many", connection=session)
            await session.commit()

    run(dsn, driver, story)
    assert len(tasks_of(db)) == 2000


def test_waiting_inside_of_the_transaction_says_why_it_cannot_end(dsn: str, driver: str, caller: Any) -> None:
    async def story(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(text("insert into orders values (1)"))
            result = caller.send_task("a.task")
            with pytest.raises(UncommittedError, match="has not committed"):
                result.get(timeout=60)

    run(dsn, driver, story)
