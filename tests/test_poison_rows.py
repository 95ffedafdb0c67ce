"""Rows that no message can be made of, or none that the broker takes: each fails with the reason, and all others go out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from fix_servers import wait_for_value

from bridge.errors import BridgeError, UnsendableError
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from fix_calls import MakeApp
    from fix_rabbitmq import Vhost
    from fix_servers import StartDrainer
    from fix_sql import Session

pytestmark = pytest.mark.timeout(600)
PATIENCE = 240  # seconds for all of them, on a busy machine
KEY = "a-signing-key-" * 3
ROUTE = {"exchange": "", "routing_key": "celery"}
INFINITE = 4711e300  # is written as 1e999, which JSON has and Python reads as infinite
TYPED = {"__type__": "datetime", "__value__": "soon"}


def declared(**one: Any) -> dict[str, Any]:
    return {**ROUTE, "exchange": "x", "declare": [{"name": "x", **one}]}


PROPERTIES: dict[str, dict[str, Any]] = {
    "a priority of text": {**ROUTE, "priority": "high"}, "a list as priority": {**ROUTE, "priority": [1]},
    "a large priority": {**ROUTE, "priority": 300}, "a list as exchange": {**ROUTE, "exchange": ["x"]},
    "an object as routing key": {**ROUTE, "routing_key": {"a": 1}}, "a long routing key": {**ROUTE, "routing_key": "x" * 300},
    "a long property": {**ROUTE, "reply_to": "x" * 300}, "a list as property": {**ROUTE, "reply_to": [1]},
    "a time of text": {**ROUTE, "timestamp": "soon"}, "a delivery mode of text": {**ROUTE, "delivery_mode": "x"},
    "another body": {**ROUTE, "body": "x"}, "an infinite priority": {**ROUTE, "priority": INFINITE},
    "a type that is none": {**ROUTE, "x": TYPED}, "declare is a number": {**ROUTE, "declare": 5},
    "declare of a number": {**ROUTE, "exchange": "x", "declare": [5]}, "declare of nothing": {**ROUTE, "exchange": "x", "declare": [{}]},
    "bindings that are none": declared(kind="queue", bindings=[5]),
    "a kind of exchange that is none": declared(kind="exchange", type="fish"),
    "another user": {**ROUTE, "user_id": "another"},
}  # fmt: skip
HEADERS: dict[str, dict[str, Any]] = {
    "an infinite header": {"n": INFINITE}, "many bytes": {"n": "x" * 200_000}, "a long name of a header": {"n" * 300: 1},
    "a large number": {"n": 10**400}, "a type that is no time": {"n": TYPED}, "a compression that is none": {"compression": "x"},
    "a list as compression": {"compression": [1]}, "a compression of what is not compressed": {"compression": "application/x-gzip"},
}  # fmt: skip
# What a list of Redis takes all the same: a worker looks at it, see test_poison.
FINE_ON_REDIS = {*HEADERS, *PROPERTIES} - {
    "a priority of text", "a list as priority", "a list as exchange", "declare of a number", "declare of nothing",
    "bindings that are none", "a kind of exchange that is none",
}  # fmt: skip
UNSIGNABLE = {"a compression that is none", "a list as compression", "a compression of what is not compressed", "a type that is no time"}
FINE_ON_RABBITMQ = {"a compression that is none", "a list as compression", "a compression of what is not compressed"}


def enqueue_message(db: Session, headers: Any = None, properties: Any = ROUTE, queue: str = "celery") -> UUID:
    """A row as the Celery side writes it, by a role that may make jobs."""
    identity = uuid4()
    said = {"lang": "py", "task": "a.task", "id": str(identity), **(headers or {})}
    texts = [json.dumps(part).replace(str(INFINITE), "1e999") for part in (said, properties)]
    with db.connection.transaction():
        db.do("set local role bridge_producer")
        db.do(
            "select bridge.enqueue_message(%s, null, 'a.task', %s, 9::smallint, '[]', '{}', null, null, null, null, %s, %s, null, null)",
            identity, queue, *texts,
        )  # fmt: skip
    return identity


def fill(db: Session, of: dict[str, dict[str, Any]]) -> dict[str, UUID]:
    """Rows with such properties and with strange headers, and sound ones between them."""
    made = {name: enqueue_message(db, properties=properties) for name, properties in of.items()}
    made["sound, in the middle"] = db.enqueue()
    made |= {name: enqueue_message(db, headers) for name, headers in HEADERS.items()}
    return made | {"sound": enqueue_message(db)}


def assert_sifted(db: Session, made: dict[str, UUID], fine: set[str]) -> None:
    """Those that are fine went out, the others have failed and say why."""
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'queued' and queue <> 'aside'", value=0, timeout=PATIENCE)
    statuses = {name: db.status(identity) for name, identity in made.items()}
    assert {name for name, status in statuses.items() if status == "published"} == {"sound, in the middle", "sound", *fine}
    assert set(statuses.values()) == {"published", "failed"}
    errors = db.rows("select distinct error->>'type', left(error->>'message', 29) from bridge.jobs where status = 'failed'")
    assert errors == [("UnsendableError", "no message of it can be sent:")]
    assert db.one("select max(attempts) from bridge.jobs where status = 'failed'") == 1


@pytest.mark.parametrize("key", ["", KEY], ids=["plain", "signed"])
def test_redis_is_sent_what_can_be_sent_and_the_rest_fails(db: Session, drainer: StartDrainer, key: str) -> None:
    made = fill(db, {} if key else PROPERTIES)
    process = drainer(env={"BRIDGE_SIGNING_KEY": key})
    assert_sifted(db, made, {*HEADERS} - UNSIGNABLE if key else FINE_ON_REDIS)
    assert process.alive


def test_rabbitmq_is_sent_what_can_be_sent_and_the_rest_fails(
    db: Session, vhost: Vhost, drainer: StartDrainer, make_caller: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = enqueue_message(db, properties=declared(kind="queue"), queue="aside")
    made = fill(db, PROPERTIES)
    long = db.enqueue(queue="é" * 200)
    process = drainer(broker_url=vhost.url)
    assert_sifted(db, {**made, "a name of more bytes than AMQP has": long}, FINE_ON_RABBITMQ)
    assert process.alive
    errors = " ".join(text for (text,) in db.rows("select error->>'message' from bridge.jobs where error is not null"))
    assert all(words in errors for words in ("PRECONDITION_FAILED", "COMMAND_INVALID", "FRAME_ERROR", "OverflowError")), errors
    assert db.status(nowhere) == "queued", "somebody may make its exchange, and until then nobody is held up by it"
    monkeypatch.setenv("BRIDGE_DATABASE_URL", db.dsn)
    with pytest.raises(UnsendableError, match="FRAME_ERROR"):
        make_caller().AsyncResult(str(made["many bytes"])).get(timeout=20)


@pytest.mark.parametrize(
    ("headers", "properties", "said"),
    [
        (None, [], "properties of task a.task is a JSON array"),
        (None, 5, "properties of task a.task is a JSON number"),
        (None, None, "properties of task a.task is a JSON null"),
        ({"n": "DEEP"}, ROUTE, "headers of task a.task are nested deeper than 200 levels"),
        (None, {**ROUTE, "n": "DEEP"}, "properties of task a.task are nested deeper than 200 levels"),
    ],
)
def test_what_no_message_can_be_made_of_is_refused_where_that_is_cheap_to_see(
    db: Session, monkeypatch: pytest.MonkeyPatch, headers: Any, properties: Any, said: str
) -> None:
    plain = json.dumps
    monkeypatch.setattr(json, "dumps", lambda value: plain(value).replace('"DEEP"', "[" * 300 + "]" * 300))
    with pytest.raises(BridgeError, match=said), translated():
        enqueue_message(db, headers, properties)
