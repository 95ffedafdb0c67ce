"""Messages that nobody should have sent, where a drainer looks for its own: it goes on, and finds what is there and what is not."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
from fix_poison import FOREIGN, envelope, header, texts
from fix_servers import wait_for_value, wait_until

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

    from bridge.local.process import Process

REPUBLISHED = "select i.republished from bridge.inflight i join bridge.job j on j.seq = i.seq where j.id = %s"
ANSWERED = "select isfinite(answered_at) from bridge.look"
BLIND = "cannot see who consumes the queues"  # what a drainer says then


@pytest.fixture
def stack(bare_stack: Stack) -> Iterator[Stack]:
    bare_stack.sql.execute("update bridge.setting set value = '1' where name = 'republish_grace'")
    bare_stack.sql.execute("update bridge.look set asked_at = '-infinity', answered_at = '-infinity'")
    yield bare_stack
    bare_stack.kill_all()
    bare_stack.sql.execute("truncate bridge.job, bridge.ready, bridge.inflight")


@pytest.fixture
def client(stack: Stack) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(stack.broker_url) as client:
        yield client
        client.flushall()


def text_of(client: redis.Redis, job: uuid.UUID) -> bytes:
    """The message of a job, as it lies in the list."""
    found: list[bytes] = [text for text in client.lrange("celery", 0, -1) if str(job).encode() in text]  # type: ignore[union-attr]
    assert len(found) == 1
    return found[0]


def lose(client: redis.Redis, job: uuid.UUID) -> None:
    """Take a job's message out of the list."""
    assert client.lrem("celery", 1, text_of(client, job)) == 1  # type: ignore[arg-type]


def publish(stack: Stack, count: int, **options: Any) -> list[uuid.UUID]:
    """Jobs that a drainer has sent, to no worker."""
    jobs = [stack.enqueue("ledger.work", n, **options) for n in range(count)]
    for job in jobs:
        stack.wait(job, "published")
    return jobs


def assert_tells_them_apart(stack: Stack, client: redis.Redis, there: uuid.UUID, gone: uuid.UUID) -> None:
    """Of two jobs the one is sent again whose message is gone, and the other stays as it is."""
    lose(client, gone)
    wait_for_value(stack.dsn, REPUBLISHED, (gone,), value=1, timeout=60)
    assert json.loads(text_of(client, gone))["headers"]["id"] == str(gone)
    assert stack.sql.execute(REPUBLISHED, (there,)).fetchone() == (0,)
    assert text_of(client, there)


def test_no_message_in_a_list_stops_a_drainer_or_hides_what_is_there_and_what_is_not(
    stack: Stack, client: redis.Redis, tmp_path: Path
) -> None:
    poison = list(texts(str(tmp_path / "unpickled")).values())
    client.lpush("celery", *poison)
    drainer = stack.start_drainer()
    there, gone = publish(stack, 2)
    client.lpush("celery", *poison)
    assert_tells_them_apart(stack, client, there, gone)
    publish(stack, 1)
    assert drainer.alive
    assert "Traceback" not in drainer.log_text()
    assert not (tmp_path / "unpickled").exists()


def test_a_delivery_that_is_millions_of_digits_does_not_hold_a_drainer_up(stack: Stack, client: redis.Redis) -> None:
    client.lpush("celery", json.dumps(envelope(headers=header(bridge=FOREIGN + "0" * 2_000_000))))
    stack.start_drainer()
    publish(stack, 1)
    wait_for_value(stack.dsn, ANSWERED, timeout=15)


@pytest.mark.parametrize("name", ["bridge", "bridge_bundle"])
def test_a_header_inside_a_header_does_not_hide_a_message_that_is_there(stack: Stack, client: redis.Redis, name: str) -> None:
    drainer = stack.start_drainer()
    (there,) = publish(stack, 1, headers=json.dumps({"a": {name: FOREIGN}}))
    (gone,) = publish(stack, 1)
    assert_tells_them_apart(stack, client, there, gone)
    assert drainer.alive


def has_looked(stack: Stack, drainer: Process) -> bool:
    """Whether a drainer has tried to see who consumes the queues."""
    return stack.sql.execute(ANSWERED).fetchone() == (True,) or BLIND in drainer.log_text()


def look_beside(stack: Stack, client: redis.Redis, entries: dict[str, bytes], since: float) -> Process:
    """A drainer that has looked who consumes the queues, while workers seem to hold these entries since a moment."""
    client.hset("unacked", mapping={**entries})
    client.zadd("unacked_index", dict.fromkeys(entries, since))
    drainer = stack.start_drainer()
    publish(stack, 1)
    wait_until(lambda: has_looked(stack, drainer), 60, "a look")
    return drainer


def test_no_entry_of_what_workers_hold_stops_a_drainer(stack: Stack, client: redis.Redis, tmp_path: Path) -> None:
    drainer = look_beside(stack, client, texts(str(tmp_path / "unpickled")), 1.0)
    publish(stack, 1)
    assert drainer.alive
    assert "Traceback" not in drainer.log_text()
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("name", ["text: garbage", "text: a number", "token: of another job"])
def test_no_entry_of_what_workers_hold_keeps_a_drainer_from_seeing_them(
    stack: Stack, client: redis.Redis, tmp_path: Path, name: str
) -> None:
    drainer = look_beside(stack, client, {name: texts(str(tmp_path / "unpickled"))[name]}, 1.0)
    assert BLIND not in drainer.log_text()


def test_a_look_gives_nothing_back_that_a_worker_holds(stack: Stack, client: redis.Redis) -> None:
    held = json.dumps([envelope(headers=header(bridge=None)), "", "celery"]).encode()
    look_beside(stack, client, {"held": held}, time.time() - 2 * 3600)
    assert client.hlen("unacked") == 1
