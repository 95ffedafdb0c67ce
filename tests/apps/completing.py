"""Tasks that complete their jobs in the transaction of their own writes, and die or stray at every point."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from celery import Celery, Task, chain, group
from celery.exceptions import Ignore
from fix_transactions import engine_url
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

# `effect` is what the tasks do; `try` is written by itself, before.
TABLES = """
create table effect (task_id text not null, number integer not null);
create table try (task_id text not null, pid integer not null);
create table counter (n integer not null);
insert into counter values (0)"""

app = Celery("completing", broker=os.environ.get("BRIDGE_BROKER_URL"), backend=os.environ.get("BRIDGE_TEST_RESULT_BACKEND", "bridge://"))
app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1)
bridge.install(app)


@cache
def engine() -> Any:
    return create_engine(engine_url(os.environ["BRIDGE_DATABASE_URL"], "psycopg"), pool_pre_ping=True)


@cache
def open_connection() -> Any:
    """A connection that nobody closes."""
    return connect()


def connect(**options: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(os.environ["BRIDGE_DATABASE_URL"], **options)


@contextmanager
def transaction(kind: str) -> Iterator[tuple[Any, Any]]:
    """A transaction of one kind, and a function that runs a statement in it."""
    if kind == "psycopg":
        with connect() as connection:
            yield connection, connection.execute
    elif kind == "autocommit":
        with connect(autocommit=True) as connection, connection.transaction():
            yield connection, connection.execute
    elif kind == "session":
        with Session(engine()) as session, session.begin():
            yield session, lambda statement: session.execute(text(statement))
    else:
        with engine().begin() as connection:
            yield connection, lambda statement: connection.execute(text(statement))


def attempted(task: Task) -> int:
    """Note a run by itself; which it is."""
    with connect(autocommit=True) as connection:
        connection.execute("insert into try values (%s, %s)", (task.request.id, os.getpid()))
        row = connection.execute("select count(*) from try where task_id = %s", (task.request.id,)).fetchone()
        return int(row[0]) if row else 0


def effect(task: Task, number: int) -> str:
    return f"insert into effect values ('{task.request.id}', {number})"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="completing.work", bind=True)
def work(self: Task, number: int, kind: str = "psycopg", dies: str = "") -> Any:
    """Write a number and complete with it; in its first run it may die before the commit or after it."""
    first = attempted(self) == 1
    with transaction(kind) as (session, execute):
        execute(effect(self, number))
        result = bridge.complete(session, number)
        if first and dies == "before":
            die()
    if dies == "after":
        die()
    return result


@app.task(name="completing.quiet", bind=True, ignore_result=True)
def quiet(self: Task, number: int, dies: str = "") -> Any:
    return work.run.__func__(self, number, "psycopg", dies)


@app.task(name="completing.late", bind=True, acks_late=True, reject_on_worker_lost=True)
def late(self: Task, number: int, dies: str = "") -> Any:
    return work.run.__func__(self, number, "psycopg", dies)


@app.task(name="completing.stubborn", bind=True, acks_late=True, retry_on_worker_lost=True, default_retry_delay=0, ignore_result=True)
def stubborn(self: Task, number: int, dies: str = "") -> Any:
    return work.run.__func__(self, number, "psycopg", dies)


@app.task(name="completing.awaits", bind=True)
def awaits(self: Task, number: int, driver: str) -> Any:
    attempted(self)

    async def main() -> Any:
        made = create_async_engine(engine_url(os.environ["BRIDGE_DATABASE_URL"], driver))
        async with AsyncSession(made) as session, session.begin():
            await session.execute(text(effect(self, number)))
            result = await session.run_sync(lambda sync: bridge.complete(sync, number))
        await made.dispose()
        return result

    return asyncio.run(main())


@app.task(name="completing.next", bind=True)
def next_step(self: Task, number: int, by: int = 1) -> int:
    attempted(self)
    return number + by


@app.task(name="completing.total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="completing.aside", bridge=False)
def aside(number: int) -> int:
    return number


@app.task(name="completing.count", bind=True)
def count(self: Task) -> Any:
    """One more in a shared row: whoever is killed between any two lines counts once in the end."""
    attempted(self)
    with connect() as connection:
        connection.execute("update counter set n = n + 1")
        return bridge.complete(connection)


@app.task(name="completing.hold", bind=True)
def hold(self: Task, started: str, go: str, *, seconds: float = 60.0) -> Any:
    """Complete, then keep the transaction open until a file is there."""
    attempted(self)
    with connect() as connection:
        connection.execute(effect(self, 1))
        bridge.complete(connection, "held")
        Path(started).touch()
        until = time.monotonic() + seconds
        while not Path(go).exists() and time.monotonic() < until:
            time.sleep(0.02)
    return "held"


@app.task(name="completing.slow", bind=True)
def slow(self: Task, number: int) -> Any:
    """In its first run it dies while Postgres is busy with a statement of the transaction, and does not notice."""
    first = attempted(self) == 1
    with connect() as connection:
        connection.execute(effect(self, number))
        result = bridge.complete(connection, number)
        if first:
            threading.Timer(0.5, die).start()
            connection.execute("select pg_sleep(120)")
    return result


@app.task(name="completing.limited", bind=True, time_limit=2)
def limited(self: Task, started: str) -> Any:
    return hold.run.__func__(self, started, f"{started}.never")


class OopsError(Exception): ...


@app.task(name="completing.stray", bind=True, max_retries=1)
def stray(self: Task, number: int, how: str) -> Any:
    """Complete, and then do something else than return."""
    run = attempted(self)
    return STRAYS[how](self, number, run)


def done(task: Task, number: int) -> None:
    with transaction("psycopg") as (session, execute):
        execute(effect(task, number))
        bridge.complete(session, number)


def raise_after(task: Task, number: int, run: int) -> None:
    del run
    done(task, number)
    raise OopsError(number)


def retry_after(task: Task, number: int, run: int) -> None:
    del run
    done(task, number)
    raise task.retry(countdown=0)


def replace_after(task: Task, number: int, run: int) -> None:
    del run
    done(task, number)
    raise task.replace(chain(next_step.s(1), next_step.s(2)))


def ignore_after(task: Task, number: int, run: int) -> None:
    del run
    done(task, number)
    raise Ignore


def leave_after(task: Task, number: int, run: int) -> None:
    del run
    done(task, number)
    raise SystemExit(3)


def other_result(task: Task, number: int, run: int) -> int:
    del run
    done(task, number)
    return number + 1


def answer_lost(task: Task, number: int, run: int) -> None:
    """The connection breaks when the commit has been sent: whether it arrived, the client does not know."""
    del run
    connection = connect()
    connection.execute(effect(task, number))
    bridge.complete(connection, number)
    connection.pgconn.send_query(b"commit")
    with connect(autocommit=True) as other:
        while not other.execute("select 1 from effect where task_id = %s", (task.request.id,)).fetchone():
            time.sleep(0.01)
    connection.close()
    raise psycopg.OperationalError("server closed the connection unexpectedly")


def twice(task: Task, number: int, run: int) -> Any:
    del run
    done(task, number)
    try:
        done(task, number)
    except bridge.BridgeError as error:
        attempted(task)
        with connect(autocommit=True) as connection:
            connection.execute("insert into said values (%s)", (str(error),))
    return number


def twice_at_once(task: Task, number: int, run: int) -> Any:
    del run
    with transaction("psycopg") as (session, execute):
        execute(effect(task, number))
        bridge.complete(session, number)
        bridge.complete(session, number)


def roll_back(task: Task, number: int, run: int) -> Any:
    """Rolled back, then ended by its return."""
    del run
    with connect() as connection:
        connection.execute(effect(task, number))
        bridge.complete(connection, number)
        connection.rollback()
    bridge.progress(0.5, "rolled back")
    return number * 10


def roll_back_and_again(task: Task, number: int, run: int) -> Any:
    """As one does after a serialization failure."""
    del run
    with connect() as connection:
        bridge.complete(connection, -number)
        connection.rollback()
    return done(task, number) or number


def savepoint(task: Task, number: int, run: int) -> Any:
    del run
    with connect() as connection:
        try:
            with connection.transaction():
                bridge.complete(connection, -number)
                raise OopsError(number)
        except OopsError:
            connection.execute(effect(task, number))
            return bridge.complete(connection, number)


def raise_inside(task: Task, number: int, run: int) -> Any:
    """The traceback keeps the connection, and its transaction, alive."""
    if run > 1:
        return number
    connection = connect()
    connection.execute(effect(task, number))
    bridge.complete(connection, number)
    raise OopsError(number)


def retry_inside(task: Task, number: int, run: int) -> Any:
    if run > 1:
        return done(task, number) or number
    connection = connect()
    connection.execute(effect(task, number))
    bridge.complete(connection, number)
    raise task.retry(countdown=0)


def left_open(task: Task, number: int, run: int) -> Any:
    if run > 1:
        return done(task, number) or number
    open_connection().execute(effect(task, number))
    return bridge.complete(open_connection(), number)


def goes_on(task: Task, number: int, run: int) -> Any:
    """Progress and states after the completion are nobody's to write, and stop nothing."""
    del run
    with connect() as connection:
        connection.execute(effect(task, number))
        bridge.complete(connection, number)
        bridge.progress(1.0, "nearly")
        task.update_state(state="POLISHING", meta={"number": number})
    return number


def without_transaction(task: Task, number: int, run: int) -> Any:
    del task, run
    return bridge.complete(connect(autocommit=True), number)


def elsewhere(task: Task, number: int, run: int) -> Any:
    del task, run
    with psycopg.connect(os.environ["ELSEWHERE"]) as connection:
        return bridge.complete(connection, number)


def elsewhere_by_sqlalchemy(task: Task, number: int, run: int) -> Any:
    del task, run
    with create_engine(engine_url(os.environ["ELSEWHERE"], "psycopg")).begin() as connection:
        return bridge.complete(connection, number)


def unencodable(task: Task, number: int, run: int) -> Any:
    del run
    with connect() as connection:
        connection.execute(effect(task, number))
        return bridge.complete(connection, object())


def null_character(task: Task, number: int, run: int) -> Any:
    del run
    with connect() as connection:
        connection.execute(effect(task, number))
        return bridge.complete(connection, ["a\x00b", float("nan"), number])


STRAYS = {
    function.__name__: function
    for function in (
        answer_lost, raise_after, replace_after, retry_after, ignore_after, leave_after, other_result, twice, twice_at_once, roll_back,
        roll_back_and_again, savepoint, raise_inside, retry_inside, left_open, goes_on, without_transaction, elsewhere,
        elsewhere_by_sqlalchemy, unencodable, null_character,
    )
}  # fmt: skip


def story(dies: str, queue: str = "celery") -> Any:
    """Three steps, of which the second completes, and dies; it may have a queue of its own."""
    return chain(next_step.s(1), work.s("psycopg", dies).set(queue=queue), next_step.s(10))


def spread(dies: str) -> Any:
    """A step that dies with a chord behind it."""
    return chain(work.s(1, "psycopg", dies), group(next_step.s(10), next_step.s(20)), total.s())
