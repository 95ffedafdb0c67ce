"""Workers that run signed messages alone, beside somebody who can read and write everything in the broker."""

from __future__ import annotations

import json
import pickle
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
import redis
from amqp import Message as AmqpMessage
from apps.sealed import TABLE
from celery import Celery
from fix_doctor import Doctor
from fix_servers import wait_for_row, wait_for_value, wait_until

from bridge.doctor import Grade
from bridge.drainer import Drainer
from bridge.errors import SettingError
from bridge.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fix_calls import MakeApp
    from fix_rabbitmq import Vhost
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session

OLD, NEW, OTHER = "old-key-" * 5, "new-key-" * 5, "another-key-" * 5
BOTH = f"{NEW} {OLD}"
SEALED = {"BRIDGE_ACCEPT": "signed", "BRIDGE_SIGNING_KEY": BOTH, "APP_ACCEPT": "json,pickle", "C_FORCE_ROOT": "1", "APP_REMOTE": "off"}
PLANTED = "planted by an attacker"
SOON = "update bridge.setting set value = '1' where name = 'republish_grace'"


@dataclass
class Waiting:
    """A message that waits in the broker."""

    headers: dict[str, Any]
    body: bytes
    content_type: str
    content_encoding: str
    properties: dict[str, Any]


class RedisQueue:
    """The list of the queue ``celery``, as whoever has the password sees it."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    def newest(self) -> str:
        """The id of the message that was published last."""
        return str(json.loads(self._client.lindex("celery", 0))["headers"]["id"])  # type: ignore[arg-type]

    def copy(self, identity: str) -> None:
        self._client.lpush("celery", self._find(identity))

    def change(self, identity: str, change: Callable[[Waiting], None]) -> None:
        text = self._find(identity)
        raw = json.loads(text)
        one = Waiting(raw["headers"], b64decode(raw["body"]), raw["content-type"], raw["content-encoding"], raw["properties"])
        change(one)
        raw |= {"body": b64encode(one.body).decode(), "content-type": one.content_type, "content-encoding": one.content_encoding}
        assert self._client.lrem("celery", 1, text) == 1
        self._client.lpush("celery", json.dumps(raw))

    def _find(self, identity: str) -> bytes:
        found: list[bytes] = self._client.lrange("celery", 0, -1)  # type: ignore[assignment]
        return next(text for text in found if json.loads(text)["headers"]["id"] == identity)


class RabbitQueue:
    """The same of RabbitMQ."""

    def __init__(self, vhost: Vhost) -> None:
        self._vhost = vhost

    def change(self, identity: str, change: Callable[[Waiting], None]) -> None:
        """Change one message; the others go in again as they were."""
        with self._vhost.channel() as channel:
            taken = []
            while (raw := channel.basic_get("celery", no_ack=True)) is not None:
                taken.append(raw)
            for raw in taken:
                body = raw.body.encode() if isinstance(raw.body, str) else raw.body
                properties = dict(raw.properties)
                headers, kind = properties.pop("application_headers"), properties.pop("content_type")
                one = Waiting(headers, body, kind, properties.pop("content_encoding"), properties)
                if headers["id"] == identity:
                    change(one)
                kinds = {"content_type": one.content_type, "content_encoding": one.content_encoding}
                message = AmqpMessage(one.body, application_headers=one.headers, **kinds, **one.properties)
                channel.basic_publish(message, exchange="", routing_key="celery")


def arguments(value: Any) -> bytes:
    return json.dumps([[value], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()


class Evil:
    """Whoever loads its pickle makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return open, (str(self._path), "w")


def pickled(one: Waiting, mark: Path) -> None:
    one.body = pickle.dumps([[Evil(mark)], {}, {}])
    one.content_type, one.content_encoding = "application/x-python-serialize", "binary"


def changes(mark: Path) -> dict[str, Callable[[Waiting], None]]:
    """What somebody may do to a message that waits, and how the worker calls it."""
    return {
        "body": lambda one: setattr(one, "body", arguments(PLANTED)),
        "task": lambda one: one.headers.update(task="sealed.other"),
        "id": lambda one: one.headers.update(id="0190a8de-0000-7000-8000-000000000001"),
        "header": lambda one: one.headers.update({"x-user": "admin"}),
        "limit": lambda one: one.headers.update(timelimit=[0.001, None]),
        "type": lambda one: one.headers.update(shadow={"__type__": "decimal", "__value__": "1"}),
        "route": lambda one: one.properties["delivery_info"].update(routing_key="elsewhere"),
        "reply": lambda one: one.properties.update(reply_to="mine"),
        "pickle": lambda one: pickled(one, mark),
        "mark": lambda one: one.headers.update(bridge_signature="0" * 64),
        "odd mark": lambda one: one.headers.update(bridge_signature="é\ud800"),
        "stripped": lambda one: one.headers.pop("bridge_signature"),
        "plain": lambda one: [one.headers.pop(name) for name in ("bridge_signature", "bridge")] and None,
        "number": lambda one: one.headers.update(bridge_signature=7),
        "packed": lambda one: one.headers.update(compression="zlib"),
    }


UNSIGNED = {"stripped", "plain", "number"}
UNREADABLE = {"packed"}


def publish(dsn: str, broker_url: str, key: str) -> None:
    """Publish what is ready, as a drainer with this key does, and end."""
    drainer = Drainer(Settings(database_url=dsn, broker_url=broker_url, signing_key=key, events="off"), Event())
    assert drainer.drain_once()
    drainer.close()


def jobs(db: Session, values: list[str]) -> dict[str, str]:
    """A job for each value; its id."""
    return {value: str(db.enqueue("sealed.note", args=json.dumps([value]))) for value in values}


def noted(db: Session) -> list[tuple[str, str, str]]:
    return db.rows("select task_id, task, value from noted order by value, task_id")  # type: ignore[return-value]


def test_what_was_changed_on_its_way_is_refused_and_its_true_copy_runs(
    db: Session, redis_url: str, worker: StartWorker, drainer: StartDrainer, make_caller: MakeApp, tmp_path: Path
) -> None:
    db.do(TABLE)
    db.do(SOON)
    mark = tmp_path / "mark"
    tampering = changes(mark)
    ids = jobs(db, [*tampering, "another key"])
    publish(db.dsn, redis_url, OLD)
    queue = RedisQueue(redis_url)
    for name, change in tampering.items():
        queue.change(ids[name], change)
    db.do("update bridge.inflight set copied = true")  # what was published is looked for again
    ids |= jobs(db, ["no drainer's key"])
    publish(db.dsn, redis_url, OTHER)
    ids |= jobs(db, ["untouched", "copied"])
    caller = make_caller(accept_content=["json", "pickle"])
    for value, options in {
        "packed well": {"compression": "zlib"}, "a date": {"headers": {"when": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)}},
        "NaN": {}, "a pickle": {"serializer": "pickle"},
    }.items():  # fmt: skip
        args = [float("nan")] if value == "NaN" else [value]
        ids["nan" if value == "NaN" else value] = caller.send_task("sealed.note", args, **options).id
    publish(db.dsn, redis_url, BOTH)
    queue.copy(ids["copied"])
    Celery("stranger", broker=redis_url, set_as_current=False).send_task("sealed.note", [PLANTED])
    process = worker("apps.sealed", env=SEALED, concurrency=1, pool="solo")
    drainer(env={"BRIDGE_SIGNING_KEY": BOTH})
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'succeeded'", value=len(ids), timeout=120)
    assert noted(db) == sorted(((one, "sealed.note", value) for value, one in ids.items()), key=lambda row: row[2])
    assert not mark.exists()
    assert PLANTED not in process.log_text()
    assert process.log_text().count("refused a message reason=") >= 1
    forged = len(tampering) - len(UNSIGNED) - len(UNREADABLE) + 1  # the last: by no key that the worker knows
    counts = {"forged": forged, "unreadable": len(UNREADABLE), "unsigned": len(UNSIGNED) + 1}
    query = "select 1 from bridge.refused_messages having jsonb_object_agg(reason, count) = %s::jsonb"
    wait_for_row(db.dsn, query, [json.dumps(counts)])
    metric = "select labels->>'reason', value from bridge.metrics() where name = 'bridge_messages_refused_total'"
    assert dict(db.rows(metric)) == counts
    finding = Doctor(db.dsn, redis_url).look("refused")
    assert finding.status is Grade.WARNING
    assert f"{forged} forged" in finding.found
    assert db.one("select sum(losses) + sum(attempts) from bridge.jobs") == len(ids), "each ran once, and no refusal cost an attempt"


def changed(one: Waiting, old: str, new: str) -> None:
    assert old.encode() in one.body
    one.body = one.body.replace(old.encode(), new.encode())


def changes_of_bundles(mark: Path) -> dict[str, Callable[[Waiting], None]]:
    """What somebody may do to a bundle that waits; its jobs note the name of that, and a number."""
    return {
        "argument": lambda one: changed(one, "argument 1", PLANTED),
        "task of one": lambda one: changed(one, "sealed.note", "sealed.other"),
        "order": lambda one: one.headers.update(bridge_bundle=" ".join(reversed(one.headers["bridge_bundle"].split(" ")))),
        "fewer": lambda one: one.headers.update(bridge_bundle=one.headers["bridge_bundle"].split(" ")[0]),
        "one alone": lambda one: one.headers.update(bridge=one.headers.pop("bridge_bundle").split(" ")[0], task="sealed.note"),
        "pickled": lambda one: pickled(one, mark),
        "bare": lambda one: one.headers.pop("bridge_signature"),
    }


def bundle_up(dsn: str, queue: RedisQueue, broker_url: str, key: str = BOTH) -> str:
    """Publish the jobs that are ready in one message; its id."""
    publish(dsn, broker_url, key)
    return queue.newest()


def test_a_bundle_that_was_changed_or_forged_is_refused_and_its_jobs_run_another_way(
    db: Session, redis_url: str, worker: StartWorker, drainer: StartDrainer, tmp_path: Path
) -> None:
    db.do(TABLE)
    db.do(SOON)
    takes = (
        "select bridge.report_worker(%s, 'first@test', 1, 'solo', 1, '{celery}', 'test', '{}', clock_timestamp(), '{\"sealed.note\": 9}')"
    )
    db.do(takes, db.worker)
    queue, mark, ids = RedisQueue(redis_url), tmp_path / "mark", {}
    tampering = changes_of_bundles(mark)
    for name, change in tampering.items():
        ids |= jobs(db, [f"{name} {number}" for number in range(3)])
        queue.change(bundle_up(db.dsn, queue, redis_url), change)
    ids |= jobs(db, ["no drainer's key 1", "no drainer's key 2"])
    bundle_up(db.dsn, queue, redis_url, OTHER)
    named = [f"{seq}:{token}" for seq, token in db.rows("select seq, token from bridge.inflight order by seq")]
    forged = [[{"bridge": one, "task": "sealed.note", "id": "x"}, {}, [[PLANTED], {}, {}]] for one in named]
    stranger = Celery("stranger", broker=redis_url, set_as_current=False)
    stranger.send_task("bridge.bundle", [json.dumps(forged)], headers={"bridge_bundle": " ".join(named)})
    db.do("update bridge.inflight set copied = true")  # what was published is looked for again
    ids |= jobs(db, ["untouched 1", "untouched 2"])
    queue.copy(bundle_up(db.dsn, queue, redis_url))
    process = worker("apps.sealed", env=SEALED, concurrency=1, pool="solo")
    drainer(env={"BRIDGE_SIGNING_KEY": BOTH})
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'succeeded'", value=len(ids), timeout=120)
    assert noted(db) == sorted(((one, "sealed.note", value) for value, one in ids.items()), key=lambda row: row[2])
    assert db.one("select sum(losses) + sum(attempts) from bridge.jobs") == len(ids), "each ran once, and no refusal cost an attempt"
    query = "select 1 from bridge.refused_messages having jsonb_object_agg(reason, count) = %s::jsonb"
    wait_for_row(db.dsn, query, [json.dumps({"forged": len(tampering), "unsigned": 2})])
    assert "Task bridge.bundle[" in process.log_text(), "what was left as it is came as a bundle"
    assert not mark.exists()
    assert PLANTED not in process.log_text()


def test_the_same_holds_on_rabbitmq(
    db: Session, vhost: Vhost, worker: StartWorker, drainer: StartDrainer, make_caller: MakeApp, tmp_path: Path
) -> None:
    db.do(TABLE)
    db.do(SOON)
    mark = tmp_path / "mark"
    names = ("body", "task", "header", "pickle", "stripped")
    ids = jobs(db, [*names, "untouched"])
    caller = make_caller(broker=vhost.url)
    when = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    ids["a date"] = caller.send_task("sealed.note", ["a date"], headers={"when": when, "rate": 0.5, "deep": {"list": [1, None]}}).id
    publish(db.dsn, vhost.url, BOTH)
    for name in names:
        RabbitQueue(vhost).change(ids[name], changes(mark)[name])
    process = worker("apps.sealed", env=SEALED, concurrency=1, pool="solo", broker_url=vhost.url)
    drainer(env={"BRIDGE_SIGNING_KEY": BOTH}, broker_url=vhost.url)
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'succeeded'", value=len(ids), timeout=120)
    assert noted(db) == sorted(((one, "sealed.note", value) for value, one in ids.items()), key=lambda row: row[2])
    assert not mark.exists()
    assert PLANTED not in process.log_text()
    query = "select 1 from bridge.refused_messages having jsonb_object_agg(reason, count) = %s::jsonb"
    wait_for_row(db.dsn, query, [json.dumps({"forged": 4, "unsigned": 1})])


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"accept": "signed"}, "BRIDGE_ACCEPT is signed, and BRIDGE_SIGNING_KEY has no key"),
        ({"signing_key": "short"}, "BRIDGE_SIGNING_KEY has a key of fewer than 32 characters"),
        ({"signing_key": f"{OLD} short"}, "BRIDGE_SIGNING_KEY has a key of fewer than 32 characters"),
        ({"signing_key": "file:/nowhere/key"}, "BRIDGE_SIGNING_KEY names a file that cannot be read: No such file or directory"),
    ],
)
def test_keys_that_are_none_are_refused_by_their_reason_and_never_shown(variables: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as refusal:
        Settings(**variables).signing_keys()
    assert str(refusal.value).startswith(said)
    assert "short" not in str(refusal.value)


def test_keys_are_read_from_a_file_and_no_settings_show_them(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{NEW}\n{OLD}\n")
    assert Settings(signing_key=f"file:{file}").signing_keys() == (NEW.encode(), OLD.encode())
    shown = repr(Settings(signing_key=NEW, database_url="postgresql://me:geheim@h/d", broker_url="redis://:geheim@h"))
    assert NEW not in shown
    assert "geheim" not in shown


def test_a_worker_that_is_to_run_signed_messages_and_has_no_key_does_not_start(db: Session, redis_url: str, worker: StartWorker) -> None:
    process = worker("apps.sealed", env={"BRIDGE_ACCEPT": "signed"}, ready=False, dsn=db.dsn, broker_url=redis_url)
    wait_until(lambda: not process.alive, 60)
    assert "error: BRIDGE_ACCEPT is signed, and BRIDGE_SIGNING_KEY has no key" in process.log_text()
