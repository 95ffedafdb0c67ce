"""Messages that nobody should have sent, as they lie in a list of Redis and as RabbitMQ hands them over."""

from __future__ import annotations

import base64
import json
import pickle
import uuid
import zlib
from typing import Any

TASK = "ledger.work"
FOREIGN = "7:" + str(uuid.UUID(int=7))  # a delivery that no row has


def body(value: Any = None) -> bytes:
    """A body that a worker reads as arguments."""
    return json.dumps([[1], {}, {}] if value is None else value).encode()


def envelope(text: bytes | None = None, headers: Any = None, properties: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """What kombu stores in Redis, as parsed JSON, with some of it replaced."""
    sent = {
        "correlation_id": "c", "reply_to": "", "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "celery"},
        "priority": 0, "body_encoding": "base64", "delivery_tag": uuid.uuid4().hex,
    }  # fmt: skip
    message = {
        "body": base64.b64encode(body() if text is None else text).decode(), "content-encoding": "utf-8",
        "content-type": "application/json", "headers": header() if headers is None else headers,
        "properties": {**sent, **(properties or {})},
    }  # fmt: skip
    return {**message, **more}


def header(**more: Any) -> dict[str, Any]:
    """Headers of a task of ours with a delivery that no row has, some of them replaced."""
    identity = str(uuid.uuid4())
    return {
        "lang": "py", "task": TASK, "id": identity, "shadow": None, "eta": None, "expires": None, "group": None, "group_index": None,
        "retries": 0, "timelimit": [None, None], "root_id": identity, "parent_id": None, "argsrepr": "[1]", "kwargsrepr": "{}",
        "origin": "somebody", "ignore_result": False, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
        "bridge": FOREIGN, **more,
    }  # fmt: skip


def without(message: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name not in names}


def _tokens() -> dict[str, dict[str, Any]]:
    token = str(uuid.UUID(int=7))
    strange: dict[str, Any] = {
        "no colon": "7", "empty": "", "only a colon": ":", "no token": "7:", "no number": f":{token}", "not a uuid": "7:token",
        "a number too large for a row": f"{'9' * 30}:{token}", "a number too long for Python": f"{'9' * 5000}:{token}",
        "negative": f"-7:{token}", "a NUL": f"7:{token[:-1]}\0", "a surrogate": f"7:{token[:-1]}\ud800", "other digits": f"\u0667:{token}",
        "a long token": f"7:{token}{'0' * 100_000}", "an SQL injection": f"7:{token}'; drop table bridge.job; --", "a number": 7,
        "a list": ["7", token], "an object": {"seq": 7, "token": token}, "true": True, "null": None, "NaN": float("nan"),
        "upper case": f"7:{token[:-1]}A", "of another job": FOREIGN,
    }  # fmt: skip
    return {f"token: {name}": envelope(headers=header(bridge=value)) for name, value in strange.items()}


def _headers() -> dict[str, dict[str, Any]]:
    strange: dict[str, Any] = {
        "a list": [], "a filled list": ["task"], "text": "task", "a number": 5, "true": True, "null": None, "empty": {},
        "a task that is a list": header(task=[1]), "a task that is an object": header(task={}), "a task that is null": header(task=None),
        "an unknown task of an ordinary message": without(header(task="somebody.elses"), "bridge"),
        "an unknown task": header(task="somebody.elses"), "an unknown task with a NUL": header(task="a\0b"),
        "a surrogate as a task": header(task="\ud800"), "an id that is a list": header(id=[1]), "an id that is a number": header(id=5),
        "an id that is null": header(id=None), "an id with a NUL": header(id="a\0b"), "an id that is a surrogate": header(id="\ud800"),
        "no id": without(header(), "id"), "an unknown task without an id": without(header(task="x"), "id"),
        "an unknown task whose id is a list": header(task="x", id=[1]),
        "an unknown task whose id is a surrogate": header(task="x", id="\ud800"),
        "an eta that is no time": header(eta="soon"), "an eta that is a number": header(eta=5),
        "an eta long ago": header(eta="0001-01-01T00:00:00"),
        "an eta that is far": header(eta="9999-12-31T23:59:59+00:00"), "an expiry that is no time": header(expires="soon"),
        "an expiry that is a list": header(expires=[]), "time limits that are text": header(timelimit="long"),
        "time limits that are too many": header(timelimit=[1, 2, 3]), "time limits that are NaN": header(timelimit=[float("nan")] * 2),
        "time limits of text": header(timelimit=["a", "b"]), "time limits that are infinite": header(timelimit=[float("inf"), 1]),
        "negative time limits": header(timelimit=[-1, -2]), "retries that are text": header(retries="many"),
        "stamps that are a list": header(stamps=[1], stamped_headers=5), "a group that is an object": header(group={}, group_index="x"),
        "a long argsrepr": header(argsrepr="x" * 100_000), "a wrong compression": header(compression="application/x-none"),
        "a compression that is not there": header(compression="application/x-gzip"), "a compression that is a list": header(compression=[]),
        "a thousand headers": header(**{f"h{n}": n for n in range(1_000)}), "a method": header(meth="__class__"),
        "reply_to that is a list": header(reply_to=[1]), "delivery_info that is text": header(delivery_info="x"),
    }  # fmt: skip
    return {f"headers: {name}": envelope(headers=value) for name, value in strange.items()}


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def _bodies() -> dict[str, dict[str, Any]]:
    strange: dict[str, bytes] = {
        "empty": b"", "garbage": b"\x00\xff\xfe garbage", "truncated": body()[:-3], "an object": body({}), "a number": body(5),
        "null": b"null", "text": b'"text"', "an empty list": b"[]", "too few parts": body([[1]]), "too many parts": body([[1], {}, {}, {}]),
        "args that are no list": body([5, {}, {}]), "kwargs that are no object": body([[1], 5, {}]),
        "embed that is a list": body([[1], {}, []]),
        "embed that is null": body([[1], {}, None]), "embed that is text": body([[1], {}, "x"]),
        "callbacks that are text": body([[1], {}, {"callbacks": "x", "chain": 5}]),
        "kwargs with args": body({"args": [1], "kwargs": {}}), "args and kwargs that are no object": body({"args": [1], "kwargs": 5}),
        **{f"nested {depth} deep in an argument": b"[[" + nested(depth) + b"], {}, {}]" for depth in range(700, 1000, 10)},
        "nested a hundred thousand deep": nested(100_000), "nested in an argument": b"[[" + nested(50_000) + b"], {}, {}]",
        "NaN": b"[[NaN], {}, {}]", "infinity": b"[[1e999], {}, {}]", "a NUL": body([["\0"], {}, {}]),
        "a surrogate": body([["\ud800"], {}, {}]),
        "a long number": b"[[" + b"9" * 10_000 + b"], {}, {}]", "a date that is none": body([[{"__type__": "datetime",
        "__value__": "x"}], {}, {}]),
        "a type that is none": body([[{"__type__": "os.system", "__value__": "true"}], {}, {}]),
    }  # fmt: skip
    return {f"body: {name}": envelope(value) for name, value in strange.items()}


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def pickled(path: str) -> bytes:
    """A pickle that makes a file where it is read."""
    return pickle.dumps([[Bomb(path)], {}, {}])


def _kinds(path: str) -> dict[str, dict[str, Any]]:
    def kind(content_type: Any, encoding: Any = "utf-8", text: bytes | None = None, **more: Any) -> dict[str, Any]:
        return envelope(text, headers=header(**more), **{"content-type": content_type, "content-encoding": encoding})

    return {
        "type: a pickle": kind("application/x-python-serialize", "binary", pickled(path)),
        "type: a pickle without a delivery": kind("application/x-python-serialize", "binary", pickled(path), bridge=None),
        "type: a pickle said to be JSON": kind("application/json", "utf-8", pickled(path)),
        "type: unknown": kind("application/x-unknown"), "type: a number": kind(5), "type: a list": kind([]), "type: null": kind(None, None),
        "type: YAML": kind("application/x-yaml", text=b"[[!!python/object/apply:os.system ['true']], {}, {}]"),
        "encoding: unknown": kind("application/json", "none"), "encoding: a number": kind("application/json", 5),
        "encoding: a list": kind("application/json", []), "encoding: UTF-16": kind("application/json", "utf-16"),
        "compression: a bomb": kind("application/json", text=zlib.compress(b" " * 20_000_000, 9), compression="application/x-gzip"),
        "compression: of nothing": kind("application/json", text=zlib.compress(body()), compression="application/x-gzip"),
    }  # fmt: skip


def _protocol_1() -> dict[str, dict[str, Any]]:
    old = {"task": TASK, "id": "one", "args": [1], "kwargs": {}, "retries": 0, "eta": None, "expires": None, "utc": True}
    strange: dict[str, Any] = {
        "of an unknown task": {**old, "task": "somebody.elses"}, "without an id": without(old, "id"),
        "without a task": without(old, "task"),
        "without arguments": without(old, "args", "kwargs"), "with kwargs that are text": {**old, "kwargs": "x"},
        "with args that are text": {**old, "args": 5}, "with a task that is a list": {**old, "task": [1]}, "with an eta": {**old,
        "eta": "soon"},
        "in a list": [old],
    }  # fmt: skip
    nameless = without(header(), "id")
    found = {f"protocol 1: {name}": envelope(body(value), headers={}) for name, value in strange.items()}
    # What has no delivery runs, as with Celery: these fail in the pool.
    task = {**header(bridge=None), "task": "celery.accumulate"}
    wrong = {"callbacks": 5, "errbacks": [5], "chain": {}, "chord": [1]}
    return {
        **found, "protocol 1: with a delivery": envelope(body(old), headers={"bridge": FOREIGN}),
        "no id: nothing but a task": envelope(body()[:-3], headers={"task": TASK}),
        "no id: truncated": envelope(body()[:-3], headers=nameless), "no id: no UTF-8": envelope(b"\xff", headers=nameless),
        "no id: a pickle": envelope(pickled("/nowhere"), headers=nameless, **{"content-type": "application/x-python-serialize"}),
        "no id: of an unknown type": envelope(headers=nameless, **{"content-type": "application/x-unknown"}),
        "others: callbacks that are none": envelope(body([[1], {}, wrong]), headers=task),
        "others: embed that is text": envelope(body([[1], {}, "x"]), headers=task),
        "others: wrong arguments and errbacks": envelope(body([[1], {"x": 1}, wrong]), headers=task),
        "others: kwargs of numbers": envelope(body([[1], 5, {}]), headers=task),
        "others: args that are no list": envelope(body([5, {}, {}]), headers=task),
    }  # fmt: skip


def _properties() -> dict[str, dict[str, Any]]:
    whole = envelope()
    sent = whole["properties"]
    return {
        "properties: none": without(envelope(), "properties"), "properties: a list": {**envelope(), "properties": []},
        "properties: text": {**envelope(), "properties": "x"}, "properties: null": {**envelope(), "properties": None},
        "properties: no tag": {**envelope(), "properties": without(sent, "delivery_tag")},
        "properties: a tag that is a list": envelope(properties={"delivery_tag": [1]}),
        "properties: a tag that is null": envelope(properties={"delivery_tag": None}),
        "properties: no route": {**envelope(), "properties": without(sent, "delivery_info")},
        "properties: a route that is text": envelope(properties={"delivery_info": "x"}),
        "properties: an unknown encoding": envelope(properties={"body_encoding": "base65"}),
        "properties: a priority that is text": envelope(properties={"priority": "x"}),
        "properties: of another's message, without a route": {
            **envelope(headers=header(bridge=None)), "properties": without(sent, "delivery_info")},
        "properties: of another's message, a tag that is a list": envelope(headers=header(bridge=None), properties={"delivery_tag": [1]}),
        "body: missing": without(envelope(), "body"), "body: null": envelope(body=None), "body: a list": envelope(body=[1]),
        "body: no base64": envelope(body="!§$%"), "body: an object": envelope(body={}), "envelope: nothing": {},
        "envelope: without headers": without(envelope(), "headers"),
        "envelope: of an unknown task, without a body": without(envelope(headers=header(task="somebody.elses")), "body"),
    }  # fmt: skip


def envelopes(path: str) -> dict[str, dict[str, Any]]:
    """All that are JSON objects, by name; a pickle that is read makes a file at this path."""
    return {**_tokens(), **_headers(), **_bodies(), **_kinds(path), **_protocol_1(), **_properties()}


def texts(path: str) -> dict[str, bytes]:
    """All that can lie in a list of Redis, by name."""
    whole = json.dumps(envelope()).encode()
    raw = {
        "text: empty": b"", "text: garbage": b"\x00\xff\xfe\x80garbage", "text: no JSON": b"hello",
        "text: truncated": whole[: len(whole) // 2],
        "text: a number": b"5", "text: null": b"null", "text: a list": b"[]", "text: a list of messages": b"[" + whole + b"]",
        "text: a string": b'"hello"', "text: NaN": b"NaN", "text: nested": nested(100_000), "text: UTF-16": whole.decode().encode("utf-16"),
        "text: a pickle": pickled(path), "text: two messages": whole + whole, "text: a NUL": b"\0",
    }  # fmt: skip
    return {**raw, **{name: json.dumps(message).encode() for name, message in envelopes(path).items()}}
