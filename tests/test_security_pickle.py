"""No pickle is loaded by an application that has not asked for it, whoever sends one: each of these would make a file."""

from __future__ import annotations

import json
import pickle
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import redis
from apps.sealed import TABLE
from celery import Celery
from click.testing import CliRunner
from kombu.exceptions import ContentDisallowed

import bridge
from bridge.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

PICKLE = "application/x-python-serialize"
NAMES = ("content_type", "content-type", "serializer", "content_encoding", "properties", "body_encoding", "accept")


class Evil(Exception):  # noqa: N818 - a name for what it is
    """Whoever loads its pickle makes a file."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def __reduce__(self) -> Any:
        return open, (self._path, "w")


@pytest.fixture(scope="module")
def stack(bare_stack: Stack) -> Stack:
    bare_stack.sql.execute(TABLE)
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.sealed", pool="solo")
    return bare_stack


@pytest.fixture
def mark(stack: Stack, tmp_path: Path) -> Iterator[str]:
    """Path of the file that a loaded pickle makes; afterwards the worker still works, and there is no such file."""
    path = tmp_path / "mark"
    yield str(path)
    assert stack.run("sealed.note", "after")["status"] == "succeeded"
    assert not path.exists()


@pytest.fixture
def reader(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", stack.dsn)
    app = Celery("reader", broker="redis://127.0.0.1:1/0", backend="bridge://", set_as_current=False)
    bridge.install(app)
    return app


def packed(value: Any) -> dict[str, str]:
    """A value as rows keep what pickle wrote."""
    return {"type": PICKLE, "encoding": "binary", "body": b64encode(pickle.dumps(value)).decode()}


def test_a_row_whose_body_is_a_pickle_fails_with_that_reason(stack: Stack, mark: str) -> None:
    body, identity = pickle.dumps([[Evil(mark)], {}, {}]), uuid4()
    headers = json.dumps({"id": str(identity), "task": "sealed.note", "lang": "py", "argsrepr": "()", "kwargsrepr": "{}"})
    with stack.sql.transaction():
        stack.sql.execute("set local role bridge_producer")
        stack.sql.execute(
            "select bridge.enqueue_message(%s, null, 'sealed.note', 'celery', 9::smallint, '[]', '{}', null, %s, %s, 'binary', %s, '{}',"
            " null, null)",
            [identity, body, PICKLE, headers],
        )
    job = stack.wait(identity)
    assert (job["status"], job["error"]["type"]) == ("failed", "ContentDisallowed")


def test_headers_of_a_job_from_sql_do_not_make_its_body_anything_else_than_json(stack: Stack, mark: str) -> None:
    text = b64encode(pickle.dumps(Evil(mark))).decode()
    job = stack.run("sealed.note", text, headers=json.dumps(dict.fromkeys(NAMES, PICKLE)))
    assert (job["status"], job["result"]) == ("succeeded", text)


def test_a_message_that_somebody_has_put_into_the_broker_is_not_read(stack: Stack, mark: str) -> None:
    message = {
        "body": b64encode(pickle.dumps([[Evil(mark)], {}, {}])).decode(), "content-type": PICKLE, "content-encoding": "binary",
        "headers": {"lang": "py", "task": "sealed.note", "id": str(uuid4())},
        "properties": {"body_encoding": "base64", "delivery_tag": str(uuid4()), "delivery_info": {"exchange": "", "routing_key": "celery"}},
    }  # fmt: skip
    with redis.Redis.from_url(stack.broker_url.replace("redis+socket://", "unix://")) as client:
        client.lpush("celery", json.dumps(message))


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "STARTED"])
def test_a_result_that_a_producer_stores_is_not_loaded_by_who_asks_for_it(stack: Stack, mark: str, reader: Any, state: str) -> None:
    identity, evil = uuid4(), Evil(mark)
    error = json.dumps({"type": "E", "message": "m", "packed": packed(evil)}) if state == "FAILURE" else None
    values = [identity, str(identity), state, error, json.dumps(packed(evil))]
    with stack.sql.transaction():
        stack.sql.execute("set local role bridge_producer")
        stack.sql.execute("select bridge.store_result(%s, %s, %s, null, %s, %s)", values)
    with pytest.raises(ContentDisallowed):
        _ = reader.AsyncResult(str(identity)).result
    assert CliRunner().invoke(main, ["jobs", "show", str(identity), "--json"]).exit_code in {0, 1}
