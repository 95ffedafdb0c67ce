"""What an application that takes pickle believes of whom: roles without rules for tasks, and no producer through the calls of SQL."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest
from fix_poison import pickled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

PICKLE = "application/x-python-serialize"
TASK = "pickled.echo"
COLUMNS = ("content_type", "content_encoding", "payload", "embed", "properties", "serializer", "options")


@pytest.fixture(scope="module")
def stack(bare_stack: Stack) -> Stack:
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.pickled", pool="solo", env={"C_FORCE_ROOT": "1"})  # tests may run as root
    return bare_stack


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Where a file is made when a pickle is read."""
    return tmp_path / "mark"


@pytest.fixture
def ruled(stack: Stack) -> Iterator[None]:
    stack.sql.execute("select bridge.allow_task('bridge_producer', 'pickled.*')")
    yield
    stack.sql.execute("select bridge.disallow_task('bridge_producer', 'pickled.*')")


def message(path: Path) -> dict[str, Any]:
    """A message whose body is a pickle, by the names of the parameters of bridge.enqueue_message."""
    identity = str(uuid4())
    return {
        "id": identity, "task": TASK, "queue": "celery", "rank": 9, "args": [], "kwargs": {}, "payload": "\\x" + pickled(str(path)).hex(),
        "content_type": PICKLE, "content_encoding": "binary", "headers": {"id": identity, "task": TASK, "lang": "py"}, "properties": {},
    }  # fmt: skip


def produce(stack: Stack, call: str, *values: Any) -> UUID:
    """Call a function as a role of bridge_producer."""
    with stack.sql.transaction():
        stack.sql.execute("set local role bridge_producer")
        row = stack.sql.execute(call.encode(), values).fetchone()
    assert row is not None
    return UUID(str(row[0]))


def send(stack: Stack, path: Path, way: str) -> UUID:
    """Enqueue a pickle by one of the ways of a program."""
    made = message(path)
    if way == "buffered":
        return produce(stack, "select bridge.enqueue_buffered(%s::json)", json.dumps([made]))
    if way == "mixed":
        plain = {"id": str(uuid4()), "job": {"task": TASK, "args": [1]}}
        return produce(stack, "select u from bridge.enqueue_buffered(%s::json) u limit 1", json.dumps([made, plain]))
    values = [json.dumps(value) if isinstance(value, (dict, list)) else value for value in made.values()]
    named = ", ".join(f"p_{name} => %s" for name in made) + "".join(
        f", p_{name} => null" for name in ("task_id", "embed", "expires_at", "run_at")
    )
    casts = named.replace("p_rank => %s", "p_rank => %s::smallint").replace("p_payload => %s", "p_payload => %s::bytea")
    produce(stack, f"select bridge.enqueue_message({casts})", *values)
    return UUID(made["id"])


WAYS = ["message", "buffered", "mixed"]


@pytest.mark.parametrize("way", WAYS)
def test_an_application_that_takes_pickle_reads_what_a_producer_without_rules_sends(stack: Stack, mark: Path, way: str) -> None:
    job = send(stack, mark, way)
    stack.wait(job)
    assert mark.exists(), "so that the tests of who may not do this would see it"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("ruled")
def test_no_pickle_of_a_producer_with_rules_for_its_tasks_gets_a_row(stack: Stack, mark: Path, way: str) -> None:
    before = stack.sql.execute("select count(*) from bridge.jobs").fetchone()
    with pytest.raises(psycopg.Error, match=r"may not enqueue task pickled\.echo with a body that is not JSON") as refusal:
        send(stack, mark, way)
    assert refusal.value.sqlstate == "JB008"
    assert stack.sql.execute("select count(*) from bridge.jobs").fetchone() == before
    assert stack.run(TASK, "after")["status"] == "succeeded"
    assert not mark.exists()


CALLS = {
    "enqueue_many": "select bridge.enqueue_many(jsonb_build_array(%s::jsonb))",
    "enqueue_flow": 'select (bridge.enqueue_flow(jsonb_build_array(%s::jsonb || \'{"ref": "a"}\'))).id',
    "enqueue_page": "with i as materialized (select gen_random_uuid() as id) select coalesce("
    "(bridge.enqueue_page(array[%s], array[i.id], null, array['[]'], null, null, 0))[1], i.id) from i",
    "enqueue_buffered": "select bridge.enqueue_buffered(json_build_array(json_build_object('id', gen_random_uuid(), 'job', %s::json)))",
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("call", CALLS)
def test_a_job_given_as_an_object_has_no_key_that_makes_its_body_anything_else_than_json(stack: Stack, call: str, name: str) -> None:
    with pytest.raises(psycopg.Error, match=f"unknown key {name}") as refusal:
        produce(stack, CALLS[call], json.dumps({"task": TASK, name: PICKLE}))
    assert refusal.value.sqlstate == "JB001"


@pytest.mark.parametrize("call", ["enqueue", *CALLS])
def test_headers_and_arguments_of_sql_reach_an_application_that_takes_pickle_as_json(stack: Stack, mark: Path, call: str) -> None:
    text = b64encode(pickled(str(mark))).decode()
    headers = dict.fromkeys(("content_type", "content-type", "serializer", "content_encoding", "body_encoding", "properties"), PICKLE)
    if call == "enqueue":
        job = produce(stack, "select bridge.enqueue(%s, %s::jsonb, headers => %s::jsonb)", TASK, json.dumps([text]), json.dumps(headers))
    else:
        asked = json.dumps({"task": TASK, "args": [text], "headers": headers})
        job = produce(stack, CALLS[call].replace("'[]'", f"'[\"{text}\"]'"), asked)
    ended = stack.wait(job)
    assert ended["status"] == "succeeded"
    kept = stack.sql.execute("select payload, content_type from bridge.finished where id = %s", (job,)).fetchone()
    assert kept == (None, None)
    assert not mark.exists()
