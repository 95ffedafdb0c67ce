"""Messages that nobody should have sent: whatever lies in a queue, workers go on, rows stay right, and everything behind it runs."""

from __future__ import annotations

import base64
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import redis
from apps.ledger import TABLE
from fix_effort import EFFORT
from fix_poison import FOREIGN, envelope, envelopes, header, texts
from fix_servers import wait_for_value, wait_until
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from invariants import assert_sound

from bridge.message import Delivery

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_rabbitmq import Vhost
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session
    from fix_stack import Stack

    from bridge.local.process import Process

_FRAME = 100_000  # bytes of headers that RabbitMQ takes for certain
FAR = "9999-01-01T00:00:00+00:00"  # a message with such an eta stays in its worker's hand


@pytest.fixture(scope="module")
def stack(bare_stack: Stack) -> Stack:
    bare_stack.sql.execute(TABLE)
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.ledger")
    return bare_stack


@pytest.fixture
def runner(stack: Stack) -> Process:
    return stack.processes[-1]


@pytest.fixture
def client(stack: Stack) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(stack.broker_url) as client:
        yield client


def well(runner: Process) -> bool:
    """Whether a worker is the one that was started, has never lost its connection, and has never failed to report."""
    text = runner.log_text()
    return runner.alive and not any(words in text for words in ("Unrecoverable", "Connection to broker lost", "heartbeat fails"))


def run_some(stack: Stack, count: int = 5) -> None:
    """Run jobs, each once."""
    jobs = [stack.enqueue("ledger.work", n) for n in range(count)]
    for job in jobs:
        assert stack.wait(job, timeout=60)["status"] == "succeeded"
    started = stack.sql.execute("select count(*) from ledger where event = 'start' and task_id::uuid = any(%s)", (jobs,)).fetchone()
    assert started == (count,)


def test_no_message_in_a_list_stops_a_worker_or_runs_in_a_rows_name(
    stack: Stack, runner: Process, client: redis.Redis, tmp_path: Path
) -> None:
    for text in texts(str(tmp_path / "unpickled")).values():
        client.lpush("celery", text)
    run_some(stack)
    wait_until(lambda: client.llen("celery") == 0, 60)
    assert well(runner), runner.log_text()
    assert not (tmp_path / "unpickled").exists()
    assert stack.sql.execute("select id,task,status,error from bridge.jobs where task <> %s", ("ledger.work",)).fetchall() == []
    wait_until(lambda: client.hlen("unacked") == 0, 20, "nothing of it to come back")
    assert_sound(stack.dsn)


def test_a_message_that_somebody_else_has_written_runs_as_with_celery_and_is_no_row(
    stack: Stack, runner: Process, client: redis.Redis
) -> None:
    headers = header(bridge=None, task="celery.accumulate")
    client.lpush("celery", json.dumps(envelope(headers=headers)))
    wait_until(lambda: f"Task celery.accumulate[{headers['id']}] succeeded" in runner.log_text(), 60)
    assert stack.sql.execute("select id from bridge.jobs where id::text = %s", (headers["id"],)).fetchall() == []
    assert_sound(stack.dsn)


def test_a_delivery_that_no_row_can_have_does_not_silence_the_worker_that_holds_it(
    stack: Stack, runner: Process, client: redis.Redis
) -> None:
    for token in ("7:token", f"{'9' * 30}:{uuid.uuid4()}", f"7:{uuid.uuid4()}\0"):
        client.lpush("celery", json.dumps(envelope(headers=header(bridge=token, eta=FAR))))
    wait_until(lambda: client.llen("celery") == 0, 30)
    look = "select seen_at from bridge.worker where pid = %s"
    for _ in range(2):
        seen = stack.sql.execute(look, (runner.pid,)).fetchone()
        wait_until(lambda seen=seen: stack.sql.execute(look, (runner.pid,)).fetchone() != seen, 30, "the next report")  # type: ignore[misc]
    assert well(runner), runner.log_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"body": base64.b64encode(b"[[1], {}").decode()}, "DecodeError"),
        ({"body": base64.b64encode(b"[]").decode()}, "ValueError"),
        ({"body": base64.b64encode(b"[[" + b"[" * 600 + b"]" * 600 + b"], {}, {}]").decode()}, "RecursionError"),
        ({"body": base64.b64encode(b'[[1], {}, {"bridge": null}]').decode()}, "InvalidTaskError"),
        ({"body": base64.b64encode(b'[[1], {}, {"id": "another"}]').decode()}, "InvalidTaskError"),
        ({"content-type": "application/x-python-serialize"}, "ContentDisallowed"),
        ({"headers": {"timelimit": "long"}}, "InvalidTaskError"),
        ({"headers": {"task": ["ledger.work"]}}, "TypeError"),
        ({"headers": {"task": "ledger.wrok"}}, "NotRegistered"),
    ],
    ids=["truncated", "shape", "deep", "no delivery", "another id", "type", "header", "task", "unknown"],
)
def test_a_job_whose_own_message_no_worker_can_read_fails_with_the_reason(
    stack: Stack, client: redis.Redis, change: dict[str, Any], words: str
) -> None:
    job = stack.enqueue("ledger.work", 1, queue="aside")
    stack.wait(job, "published")
    message = json.loads(client.brpop("aside", 20)[1])  # type: ignore[index]
    client.lpush("celery", json.dumps({**message, **change, "headers": {**message["headers"], **change.get("headers", {})}}))
    ended = stack.wait(job, timeout=30)
    assert (ended["status"], ended["error"]["type"]) == ("failed", words)


def test_a_message_of_a_run_that_has_ended_is_refused_as_often_as_it_comes(stack: Stack, runner: Process, client: redis.Redis) -> None:
    job = stack.enqueue("ledger.work", 1, queue="aside")
    stack.wait(job, "published")
    copies = [client.brpop("aside", 20)[1]] * 20  # type: ignore[index]
    client.lpush("celery", *copies)
    assert stack.wait(job)["status"] == "succeeded"
    client.lpush("celery", *copies)
    run_some(stack, 1)
    wait_until(lambda: runner.log_text().count(f"refused a copy that must not run task_id={job}") == 39, 30)
    assert stack.sql.execute("select count(*) from ledger where task_id = %s and event = 'start'", (str(job),)).fetchone() == (1,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6,
)  # fmt: skip
WHOLE = envelope()
PLACES = [(name,) for name in WHOLE] + [(part, name) for part in ("headers", "properties") for name in WHOLE[part]]


@st.composite
def altered(draw: st.DrawFn) -> bytes:
    """A message of which one to three parts are something else, are not there, or of which bytes are missing."""
    message = envelope(headers=header(bridge=draw(st.just(FOREIGN) | JSON)))
    for *outer, name in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3)):
        part = message.get(outer[0]) if outer else message
        if isinstance(part, dict):
            part[name] = draw(JSON)
            if draw(st.booleans()):
                del part[name]
    if draw(st.booleans()):
        message["body"] = base64.b64encode(json.dumps(draw(JSON)).encode()).decode()
    text = json.dumps(message).encode()
    return text if draw(st.integers(0, 9)) else text[: draw(st.integers(0, len(text)))]


# The same every time in the gate; what is found needs no smaller example to be understood.
@settings(
    max_examples=3 * EFFORT,
    derandomize=EFFORT == 1,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(messages=st.lists(altered(), min_size=30, max_size=30))
def test_no_message_that_chance_has_altered_stops_a_worker(
    stack: Stack, runner: Process, client: redis.Redis, messages: list[bytes]
) -> None:
    client.lpush("celery", *messages)
    run_some(stack, 1)
    assert well(runner), runner.log_text()


@settings(deadline=None)
@given(header=st.from_regex(r"\d*:[0-9a-f-]*", fullmatch=False) | JSON)
def test_a_delivery_is_what_a_row_can_have_or_none(header: Any) -> None:
    found = Delivery.parse(header)
    assert found is None or (0 <= found.seq < 2**63 and str(uuid.UUID(found.token)) == found.token and str(found) == header)


@pytest.fixture
def ledger(db: Session) -> Session:
    db.do(TABLE)
    return db


def send_amqp(channel: Any, message: dict[str, Any]) -> bool:
    """Publish a message as it is; False for one that AMQP has no way to say."""
    try:
        whole = channel.prepare_message(
            base64.b64decode(message.get("body") or "", validate=True), headers=message.get("headers"),
            content_type=message.get("content-type"), content_encoding=message.get("content-encoding"), properties={"delivery_mode": 2},
        )  # fmt: skip
        json.dumps(message.get("headers"), allow_nan=False)  # RabbitMQ ends a connection that sends one
        if len(whole._serialize_properties()) > _FRAME:
            return False
    except Exception:  # noqa: BLE001 - whatever the encoder says of what it cannot say
        return False
    channel.basic_publish(whole, routing_key="celery")
    return True


def test_no_message_on_rabbitmq_stops_a_worker_or_runs_in_a_rows_name(
    ledger: Session, vhost: Vhost, drainer: StartDrainer, worker: StartWorker, tmp_path: Path
) -> None:
    drainer(broker_url=vhost.url)
    runner = worker("apps.ledger", broker_url=vhost.url)
    with vhost.channel() as channel:
        sent = [send_amqp(channel, message) for message in envelopes(str(tmp_path / "unpickled")).values()]
    assert sent.count(True) > 80
    jobs = [ledger.enqueue("ledger.work", args=[n]) for n in range(5)]
    done = "select count(*) from bridge.jobs where id = any(%s) and status = 'succeeded'"
    wait_for_value(ledger.dsn, done, (jobs,), value=5, timeout=60)
    assert well(runner), runner.log_text()
    assert not (tmp_path / "unpickled").exists()
    assert ledger.rows("select count(*) from bridge.jobs") == [(5,)]
    assert ledger.one("select count(*) from ledger where event = 'start'") == 5
