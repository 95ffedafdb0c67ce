"""Ids of Celery calls: one that is made for its call is ordered by time, and no job is looked for that had it before."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery.signals import before_task_publish

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Session

pytestmark = pytest.mark.versions


@pytest.fixture
def ended(caller: Any, db: Session) -> str:
    """The id of a job that was cancelled, and is called once more."""
    identity = str(uuid.uuid4())
    caller.send_task("ids.first", task_id=identity)
    db.do("select bridge.cancel(%s::uuid)", identity)
    return identity


@pytest.fixture
def renamed(ended: str) -> Iterator[str]:
    """The same; a handler gives it to each call."""

    def rename(headers: dict[str, Any], **_facts: Any) -> None:
        headers["id"] = ended

    before_task_publish.connect(rename)
    yield ended
    before_task_publish.disconnect(rename)


def test_ids_that_are_made_for_calls_ascend(caller: Any, db: Session) -> None:
    results = [caller.send_task("ids.one") for _ in range(3)]
    assert {uuid.UUID(result.id).version for result in results} == {7}
    assert {str(row[0]) for row in db.rows("select id from bridge.job")} == {result.id for result in results}
    made = [uuid.UUID(result.id).int >> 80 for result in results]
    assert made == sorted(made)


def test_a_given_id_is_the_calls(caller: Any, db: Session) -> None:
    one, two = uuid.uuid4(), uuid.uuid4()
    caller.send_task("ids.given", task_id=str(one))
    caller.send_task("ids.given", (), {}, None, None, str(two))
    assert {row[0] for row in db.rows("select id from bridge.job")} == {one, two}


@pytest.mark.parametrize("joined", [False, True])
def test_an_ended_job_gives_way_to_a_call_of_its_id(caller: Any, db: Session, ended: str, *, joined: bool) -> None:
    if joined:
        with psycopg.connect(db.dsn) as connection, bridge.using(connection):
            caller.send_task("ids.again", task_id=ended)
    else:
        caller.send_task("ids.again", task_id=ended)
    assert db.rows("select id::text, task, status from bridge.jobs") == [(ended, "ids.again", "queued")]


def test_an_ended_job_gives_way_to_a_call_that_a_handler_gives_its_id(caller: Any, db: Session, renamed: str) -> None:
    caller.send_task("ids.again")
    assert db.rows("select id::text, task, status from bridge.jobs") == [(renamed, "ids.again", "queued")]


def test_nothing_is_looked_for_that_had_the_id_of_a_call_that_was_given_none(caller: Any, db: Session) -> None:
    def looked() -> int:
        return int(db.one(
            "select sum(pg_stat_get_xact_numscans(c.oid)) from pg_class c where c.relname like 'finished\\_%%' or c.relname = 'revoked'"
        ))  # fmt: skip

    with bridge.using(db.connection), db.connection.transaction():
        caller.send_task("ids.new")
        assert looked() == 0
        caller.send_task("ids.given", task_id=str(uuid.uuid4()))
        assert looked() > 0
