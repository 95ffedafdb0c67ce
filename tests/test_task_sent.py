"""Celery's event task-sent: what it says, when it is sent, and that no job depends on it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery import Celery
from fix_events import listening
from fix_servers import wait_for_value

import bridge
from bridge.drainer import Drainer
from bridge.local.broker import FileBroker
from bridge.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from fix_servers import StartDrainer
    from fix_sql import Session

# Of the sender and the moment, not of the task.
VOLATILE = {"hostname", "pid", "timestamp", "clock", "local_received"}


def publish(dsn: str, broker_url: str, **options: Any) -> int:
    """Publish what is ready in a drainer of this process."""
    drainer = Drainer(Settings(database_url=dsn, broker_url=broker_url, **options), threading.Event())
    count = drainer.drain_once()
    drainer.close()
    return count


def event_messages(client: redis.Redis) -> int:
    """How many messages were ever published to the channels of this Redis."""
    return int(client.info("commandstats").get("cmdstat_publish", {}).get("calls", 0))  # type: ignore[union-attr]


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def call(app: Celery) -> None:
    options: dict[str, Any] = {"task_id": "by-any-name", "queue": "letters", "priority": 3, "expires": "2999-01-01T00:00:00+00:00"}
    app.send_task("mail.send", [1, "två", (2.5, None)], {"to": "ada"}, root_id="the-root", parent_id="its-parent", **options)


def test_the_event_of_a_call_says_what_celery_itself_would_say(dsn: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)
    plain, joined = (Celery(broker=redis_url, set_as_current=False) for _ in range(2))
    plain.conf.task_send_sent_event = True
    bridge.install(joined)
    with listening(redis_url) as listener:
        call(plain)
        listener.sent(1)
        call(joined)
        publish(dsn, redis_url)
        theirs, ours = listener.sent(2)
    assert set(ours) == set(theirs)
    assert {key: value for key, value in ours.items() if key not in VOLATILE} == {
        key: value for key, value in theirs.items() if key not in VOLATILE
    }
    assert abs(ours["timestamp"] - time.time()) < 60


def test_the_event_of_a_job_from_sql_names_its_queue_and_arguments(db: Session, redis_url: str) -> None:
    job = db.enqueue("mail.send", args=[1, "a"], kwargs={"to": "ada"}, queue="letters")
    with listening(redis_url) as listener:
        publish(db.dsn, redis_url)
        event = listener.sent(1)[0]
    assert (event["uuid"], event["name"], event["queue"], event["routing_key"]) == (str(job), "mail.send", "letters", "letters")
    assert (event["args"], event["kwargs"], event["root_id"]) == ('[1, "a"]', '{"to": "ada"}', str(job))


def test_the_time_of_sending_is_that_of_publishing_though_the_event_comes_later(db: Session, redis_url: str) -> None:
    db.enqueue("mail.send")
    with listening(redis_url) as listener:
        publish(db.dsn, redis_url)
        event = listener.sent(1)[0]
    assert event["timestamp"] <= db.one("select extract(epoch from published_at)::float8 from bridge.inflight")


def test_many_jobs_share_a_message(db: Session, redis_url: str, client: redis.Redis) -> None:
    db.do("select bridge.enqueue('a.task') from generate_series(1, 450)")
    before = event_messages(client)
    with listening(redis_url) as listener:
        publish(db.dsn, redis_url)
        assert len({event["uuid"] for event in listener.sent(450)}) == 450
    assert event_messages(client) - before == 5


def test_without_a_listener_one_message_a_second_asks_for_one(db: Session, redis_url: str, client: redis.Redis) -> None:
    db.do("select bridge.enqueue('a.task') from generate_series(1, 40)")
    drainer = Drainer(Settings(database_url=db.dsn, broker_url=redis_url, shipment=1), threading.Event())
    began = time.monotonic()
    while drainer.drain_once():
        pass
    assert event_messages(client) <= 1 + (time.monotonic() - began)
    assert drainer.published == 40
    drainer.close()


def test_a_listener_that_comes_later_is_heard_of(db: Session, redis_url: str, drainer: StartDrainer) -> None:
    drainer(dsn=db.dsn, broker_url=redis_url)
    first = db.enqueue("a.task")
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", [first], value="published")
    with listening(redis_url) as listener:
        seen: list[dict[str, Any]] = []
        while not seen:
            job = db.enqueue("a.task")
            wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", [job], value="published")
            seen = [event for event in listener.heard if event["type"] == "task-sent"]
    assert str(first) not in {event["uuid"] for event in seen}


def test_events_can_be_off(db: Session, redis_url: str, client: redis.Redis) -> None:
    db.enqueue("a.task")
    with listening(redis_url):
        assert publish(db.dsn, redis_url, events="off") == 1
    assert event_messages(client) == 0


def test_events_that_are_on_are_sent_to_nobody_too(db: Session, redis_url: str, client: redis.Redis) -> None:
    db.do("select bridge.enqueue('a.task') from generate_series(1, 250)")
    publish(db.dsn, redis_url, events="on")
    assert event_messages(client) == 3


def test_a_job_is_published_though_its_event_is_refused(db: Session, redis_url: str, client: redis.Redis, drainer: StartDrainer) -> None:
    client.acl_setuser("default", enabled=True, nopass=True, commands=["-publish"])
    process = drainer(dsn=db.dsn, broker_url=redis_url)
    jobs = [db.enqueue("a.task") for _ in range(3)]
    for job in jobs:
        wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", [job], value="published")
    assert client.llen("celery") == 3
    assert process.log_text().count("events are not sent") == 1
    assert "outage" not in process.log_text()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileBroker:
    """A broker of files, whose users run in its folder."""
    broker = FileBroker(tmp_path / "files").start()
    monkeypatch.chdir(broker.folder)
    return broker


def test_elsewhere_the_bindings_tell_that_somebody_listens(db: Session, files: FileBroker) -> None:
    job = db.enqueue("a.task")
    with listening(files.url) as listener:
        publish(db.dsn, files.url)
        assert [event["uuid"] for event in listener.sent(1)] == [str(job)]


def test_elsewhere_the_bindings_tell_that_nobody_listens(db: Session, files: FileBroker) -> None:
    db.enqueue("a.task")
    assert publish(db.dsn, files.url) == 1
    assert [file.name.rpartition(".msg")[0].rpartition(".")[2] for file in files.folder.glob("data_in/*.msg")] == ["celery"]
