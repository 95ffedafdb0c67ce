"""Celery calls of one transaction: those that ask for nothing beyond their content are written by one statement, with the same effect."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fix_sql import Session

# What a job is, and where it stands, without what differs from one to the next.
STANDING = """
  select j.task_id, j.task, j.queue, j.rank, j.args::text, j.kwargs::text, j.embed::text, j.payload, j.content_type, j.content_encoding,
    j.headers::text, j.properties::text, j.size, j.max_attempts, j.attempts, j.unique_key, j.expires_at, j.options,
    j.run_at - j.created_at > interval '1 hour', j.updated_at = j.created_at, r.queue, r.rank, r.size, r.gate, s.run_at, h.size,
    (select array_agg((l.above, l.kind)::text order by l.kind) from bridge.link l where l.below = j.id)
  from bridge.job j left join bridge.ready r on r.seq = j.seq left join bridge.scheduled s on s.seq = j.seq
    left join bridge.held h on h.seq = j.seq
  order by j.seq
"""
PARENT, GROUP = uuid.UUID(int=1), uuid.UUID(int=2)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "of an own id": {"task_id": "mine"},
    "with arguments": {"args": [1, "two"], "kwargs": {"three": [4.0]}, "embed": {"callbacks": None}},
    "of bytes": {"payload": "\\x0102", "content_type": "application/data", "content_encoding": "binary"},
    "later": {"run_at": "2999-01-01T00:00:00+00:00"},
    "that expires": {"expires_at": "2999-01-01T00:00:00+00:00"},
    "elsewhere": {"queue": "elsewhere", "rank": 3, "properties": {"priority": 6}},
    "of a task": {"links": {"called": str(PARENT), "group": str(GROUP)}},
}


def message(**parts: Any) -> dict[str, Any]:
    task = parts.get("task", "m.task")
    plain = {"id": str(uuid.uuid4()), "task": task, "queue": "celery", "rank": 9, "args": [], "kwargs": {}}
    return plain | {"headers": {"task": task, "stamped_headers": None}, "properties": {"routing_key": "celery"}} | parts


def buffered(db: Session, messages: Sequence[dict[str, Any]]) -> list[str]:
    return [str(row[0]) for row in db.rows("select bridge.enqueue_buffered(%s::json)", json.dumps(messages))]


def written(db: Session, messages: Sequence[dict[str, Any]]) -> bool:
    """Whether these can be written by one statement; undone."""
    with db.connection.transaction(force_rollback=True):
        return db.one("select bridge.write_messages(%s::json) is not null", json.dumps(messages)) is True


@pytest.mark.parametrize("before", ["select 1", "select bridge.set_limit('one', queue => 'celery', concurrency => 1)"])
def test_one_statement_does_what_one_by_one_does(db: Session, before: str) -> None:
    db.do(before)
    together, alone = ([message(**parts) for parts in KINDS.values()] for _ in range(2))
    assert written(db, together)
    assert buffered(db, together) == [one["id"] for one in together]
    stand = db.rows(STANDING)
    db.do("delete from bridge.job; delete from bridge.ready; delete from bridge.scheduled; delete from bridge.held")
    for one in alone:
        assert buffered(db, [one]) == [one["id"]]
    assert stand == db.rows(STANDING)


@pytest.mark.parametrize(
    "other",
    [
        {"options": {"max_attempts": 3}}, {"chord": "c"}, {"headers": {"task": "m.task", "stamped_headers": ["a"]}},
        {"task": "bridge.bundle"}, {"args": [1, [2, *["["] * 250]]}, {"kwargs": {"text": "x" * 70_000}},
    ],
)  # fmt: skip
def test_what_asks_for_more_goes_one_by_one(db: Session, other: dict[str, Any]) -> None:
    assert not written(db, [message(), message(**other)])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"task": "no name"}, "task is 'no name'"), ({"queue": "a,b"}, "queue is 'a,b'"),
        ({"args": {}}, "args of task m.task is a JSON object"), ({"kwargs": None}, "kwargs of task m.task is null"),
        ({"headers": {"task": "other"}}, "headers of task m.task name task other"),
        ({"headers": []}, "headers of task m.task name task null"),
        ({"properties": [1]}, "properties of task m.task is a JSON array"),
    ],
)  # fmt: skip
def test_a_message_that_is_refused_is_named_and_none_is_written(db: Session, wrong: dict[str, Any], said: str) -> None:
    bad = message(**wrong)
    with pytest.raises(psycopg.Error) as refusal:
        buffered(db, [message(), bad, message()])
    assert refusal.value.sqlstate == "JB001"
    assert f"job {bad['id']}, task {bad['task']}: " in str(refusal.value)
    assert said in str(refusal.value)
    assert db.one("select count(*) from bridge.job") == 0


def test_an_id_that_came_before(db: Session) -> None:
    ended, revoked, live, new = (message() for _ in range(4))
    assert buffered(db, [ended, live]) == [ended["id"], live["id"]]
    db.do("select bridge.cancel(%s::uuid)", ended["id"])
    db.do("select bridge.revoke(array[%s::uuid])", revoked["id"])
    seq = db.one("select seq from bridge.job where id = %s", live["id"])

    again = [ended, revoked, live | {"args": [1]}, new, new]
    assert written(db, again)
    assert buffered(db, again) == [one["id"] for one in again]
    assert db.rows("select id::text, status from bridge.jobs order by seq") == [
        (live["id"], "queued"), (ended["id"], "queued"), (revoked["id"], "cancelled"), (new["id"], "queued"),
    ]  # fmt: skip
    assert db.one("select seq from bridge.job where id = %s and args::text = '[]'", live["id"]) == seq
    assert db.one("select count(*) from bridge.ready") == 3


def test_one_that_has_replaced_itself_becomes_the_task_of_its_id(db: Session) -> None:
    replaced = message()
    buffered(db, [replaced])
    claim, run = db.run()
    db.do("insert into bridge.replaced (seq, since) values (%s, now())", claim.seq)
    buffered(db, [message(), replaced | {"task": "m.next", "headers": {"task": "m.next"}}])
    assert db.rows("select task, status from bridge.jobs where id = %s", replaced["id"]) == [("m.next", "queued")]
    assert db.one("select count(*) from bridge.inflight where run = %s", run) == 0


def test_listeners_are_told_once_of_each_queue(db: Session) -> None:
    db.do("insert into bridge.listener (drainer, queue) values (gen_random_uuid(), '')")
    db.do("listen bridge_ready")
    buffered(db, [message(), message(queue="other"), message(), message(queue="later", run_at="2999-01-01T00:00:00Z")])
    db.do("select pg_notify('bridge_ready', 'the end')")
    told = [notice.payload for notice in db.connection.notifies(timeout=20, stop_after=3)]
    assert sorted(told[:2]) == ["celery", "other"]
    assert told[2:] == ["the end"]
