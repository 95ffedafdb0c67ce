"""Calls that write many jobs one by one: what they share with others they take in one order, whatever the order of the call."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from fix_sql import Session
from races_run import PATIENCE, is_waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

REPLACES = {"task": "b.task", "on_conflict": "replace"}


def many(session: Session, keys: Sequence[str]) -> list[uuid.UUID]:
    jobs = [REPLACES | {"unique_key": key} for key in keys]
    return [row[0] for row in session.rows("select bridge.enqueue_many(%s::jsonb)", json.dumps(jobs))]


def children(session: Session, keys: Sequence[str]) -> list[uuid.UUID]:
    jobs = [{"task": "a.parent"}, *({"task": "b.task", "unique_key": key, "depends_on": [0]} for key in keys)]
    return [row[0] for row in session.rows("select bridge.enqueue_many(%s::jsonb)", json.dumps(jobs))][1:]


def flow(session: Session, keys: Sequence[str]) -> list[uuid.UUID]:
    jobs = [REPLACES | {"ref": key, "unique_key": key} for key in keys]
    return [row[0] for row in session.rows("select (bridge.enqueue_flow(%s::jsonb)).id", json.dumps(jobs))]


def messages(session: Session, keys: Sequence[str]) -> list[uuid.UUID]:
    """As a transaction's buffer is written that has Celery calls in it."""
    options = {"on_conflict": "replace"}
    jobs = [
        {"id": str(uuid.uuid4()), "task": "b.task", "queue": "celery", "rank": 9, "args": [], "kwargs": {}}
        | {"headers": {"task": "b.task"}, "options": options | {"unique_key": key}}
        for key in keys
    ]
    return [row[0] for row in session.rows("select bridge.enqueue_buffered(%s::json)", json.dumps(jobs))]


WAYS = {"many": many, "children": children, "flow": flow, "messages": messages}


@pytest.fixture
def sessions(dsn: str) -> Iterator[list[Session]]:
    sessions = [Session(dsn) for _ in range(3)]
    sessions[2].do("set lock_timeout = '20s'")  # it waits for what the test itself would end only later
    yield sessions
    for session in sessions:
        session.connection.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def begin(pool: ThreadPoolExecutor, db: Session, session: Session, call: Callable[[], object]) -> Future[object]:
    """Begin a call that has to wait for another session."""
    answer = pool.submit(call)
    assert is_waiting(answer, db, session.connection.info.backend_pid)
    return answer


@pytest.mark.parametrize("way", WAYS)
def test_two_calls_with_the_same_keys_in_opposite_order_wait_for_each_other_in_no_circle(
    db: Session, sessions: list[Session], pool: ThreadPoolExecutor, way: str
) -> None:
    holder, first, second = sessions
    with holder.connection.transaction():
        holder.enqueue(unique_key="m")
        one = begin(pool, db, first, lambda: WAYS[way](first, ["a", "m", "z"]))
        two = begin(pool, db, second, lambda: WAYS[way](second, ["z", "m", "a"]))
    assert one.result(PATIENCE) == list(reversed(two.result(PATIENCE)))  # type: ignore[call-overload]
    assert db.one("select count(*) from bridge.jobs where task <> 'a.parent'") == 3


@pytest.mark.parametrize("way", ["many", "flow", "messages"])
def test_a_call_that_waits_for_a_key_has_none_of_the_jobs_that_it_changes(
    db: Session, sessions: list[Session], pool: ThreadPoolExecutor, way: str
) -> None:
    holder, first, second = sessions
    changed = [db.enqueue(unique_key="z"), db.enqueue(unique_key="a")]  # the order of their making is not that of their keys
    with holder.connection.transaction():
        holder.enqueue(unique_key="m")
        one = begin(pool, db, first, lambda: WAYS[way](first, ["z", "a", "m"]))
        assert second.one("select bridge.cancel_jobs(jsonb_build_object('ids', %s::uuid[]))", changed)["matched"] == 2
    assert not set(one.result(PATIENCE)) & set(changed)  # type: ignore[call-overload]


@pytest.mark.parametrize("way", ["many", "flow", "messages"])
def test_a_call_has_the_jobs_that_it_changes_in_the_order_of_their_making(
    db: Session, sessions: list[Session], pool: ThreadPoolExecutor, way: str
) -> None:
    holder, first, second = sessions
    changed = [db.enqueue(unique_key="z"), db.enqueue(unique_key="m"), db.enqueue(unique_key="a")]
    with holder.connection.transaction():
        holder.do("select bridge.set_priority(%s, 5)", changed[1])
        one = begin(pool, db, first, lambda: WAYS[way](first, ["a", "m", "z"]))
        two = begin(pool, db, second, lambda: second.one("select bridge.cancel_jobs(jsonb_build_object('ids', %s::uuid[]))", changed))
    assert one.result(PATIENCE) == list(reversed(changed))
    assert two.result(PATIENCE)["matched"] == 3  # type: ignore[index]


def test_keys_whose_time_is_over_are_taken_in_the_same_order(db: Session, sessions: list[Session], pool: ThreadPoolExecutor) -> None:
    holder, first, second = sessions
    for key in ("b", "z"):
        db.enqueue(unique_key=key, unique_for="1 hour")
    db.do("update bridge.unique_key set kept_until = now() - interval '1 second'")

    def write(session: Session, keys: Sequence[str]) -> int:
        jobs = [{"task": "b.task", "unique_key": key} for key in keys]
        return len(session.rows("select bridge.enqueue_many(%s::jsonb)", json.dumps(jobs)))

    with holder.connection.transaction():
        holder.enqueue(unique_key="m")
        one = begin(pool, db, first, lambda: write(first, ["z", "m"]))
        assert write(second, ["z"]) == 1  # first, which waits for m, has no key that comes after it
    assert one.result(PATIENCE) == 2
    assert db.one("select count(*) from bridge.jobs where task = 'b.task'") == 1
