"""A drainer and workers on a real RabbitMQ: what is confirmed, what comes back, what is refused, and what is lost in between."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import celery
import pytest
from apps.ledger import TABLE
from fix_clock import SHIFT, shifted
from fix_doctor import Doctor
from fix_events import listening
from fix_rabbitmq import USER
from fix_servers import wait_for_row, wait_for_value, wait_until
from kombu import Queue
from laboratory.faults.broker import is_alarmed
from laboratory.proxy import Proxy

from bridge.broker import open_broker
from bridge.doctor import Grade
from bridge.drainer import Drainer
from bridge.errors import PublishError
from bridge.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_calls import MakeApp
    from fix_rabbitmq import RabbitServer, Vhost
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session
    from fix_tls import Certificates

QUORUM = {"x-queue-type": "quorum"}


class Publisher:
    """A drainer of this process that publishes when it is asked to."""

    def __init__(self, dsn: str, url: str, **options: Any) -> None:
        self.drainer = Drainer(Settings(database_url=dsn, broker_url=url, **options), threading.Event())

    def publish(self) -> int:
        return self.drainer.drain_once()


@pytest.fixture
def publisher(db: Session, vhost: Vhost) -> Iterator[Publisher]:
    publisher = Publisher(db.dsn, vhost.url)
    yield publisher
    publisher.drainer.close()


@pytest.fixture
def ledger(db: Session) -> Session:
    db.do(TABLE)
    return db


def many(db: Session, count: int, queue: str = "celery", task: str = "ledger.work") -> None:
    call = "select bridge.enqueue(%s, jsonb_build_array(n), queue => %s) from generate_series(1, %s) n"
    db.do(call, task, queue, count)


def succeeded(db: Session, count: int, timeout: float = 120.0) -> None:
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'succeeded'", value=count, timeout=timeout)
    assert db.one("select count(*) from (select from ledger where event = 'start' group by task_id having count(*) > 1) twice") == 0


def states(db: Session) -> dict[str, int]:
    return dict(db.rows("select status, count(*)::int from bridge.jobs group by 1"))


def test_a_whole_shipment_is_confirmed_and_marked(db: Session, vhost: Vhost, publisher: Publisher) -> None:
    many(db, 450)  # less than a window
    assert publisher.publish() == 450
    assert vhost.count() == 450
    assert states(db) == {"published": 450}


def test_a_message_lives_by_the_clock_of_postgres_and_not_by_the_drainers(
    db: Session, vhost: Vhost, drainer: StartDrainer, tmp_path: Path
) -> None:
    now = db.one("select clock_timestamp()")
    db.enqueue("ledger.work", expires_at=now + timedelta(seconds=SHIFT / 2))
    process = drainer(env=shifted(SHIFT, tmp_path), broker_url=vhost.url, ready=False)
    wait_for_value(db.dsn, "select status from bridge.jobs", value="published", timeout=60)
    with vhost.channel() as channel:
        taken = wait_until(lambda: channel.basic_get("celery", no_ack=True), 20, f"the message to be there: {process.log_text()}")
    assert 0 < int(taken.properties["expiration"]) <= 1000 * SHIFT / 2


@pytest.fixture
def impatient(rabbitmq: RabbitServer) -> Iterator[None]:
    """A node that closes a channel on which a message has been unacknowledged for a second; by default that takes half an hour."""
    setting = "application:set_env(rabbit, consumer_timeout, {}), application:set_env(rabbit, channel_tick_interval, {})."
    rabbitmq.control("eval", setting.format(1000, 500))
    yield
    rabbitmq.control("eval", setting.format(1_800_000, 60_000))


@pytest.mark.usefixtures("impatient")
def test_tasks_longer_than_the_brokers_patience_run_once(
    ledger: Session, vhost: Vhost, drainer: StartDrainer, worker: StartWorker, tmp_path: Path
) -> None:
    drainer(broker_url=vhost.url)
    process = worker("apps.lasting", concurrency=2, broker_url=vhost.url)
    late = ledger.enqueue("lasting.late", args=[str(tmp_path / "go")])
    for number in range(3):  # one runs, the others wait in the worker's memory
        ledger.enqueue("ledger.work", args=[number, 2.0])
    wait_until(lambda: "PRECONDITION_FAILED" in process.log_text(), 60, "the node to lose patience")
    wait_until(lambda: f"task_id={late}" in process.log_text(), 60, "the late message to come again, and be refused")
    (tmp_path / "go").touch()
    succeeded(ledger, 4)
    wait_until(lambda: vhost.server.api("GET", f"queues/{vhost.name}/celery").get("messages") == 0, 60, "the queue to be empty")
    assert process.alive, process.log_text()
    assert ledger.one("select count(*) from bridge.attempt") == 0, "nothing was lost, and nothing ran again"


def test_jobs_run_on_rabbitmq_once_each_with_their_results(
    ledger: Session, vhost: Vhost, drainer: StartDrainer, worker: StartWorker
) -> None:
    process = drainer(broker_url=vhost.url)
    worker("apps.ledger", broker_url=vhost.url)
    many(ledger, 300)
    later = ledger.enqueue("ledger.work", args=[7], delay="1 second")
    succeeded(ledger, 301)
    assert ledger.field(later, "result") == 14
    text = process.log_text()
    assert "connected to broker kind=amqp" in text
    assert "this broker cannot tell which messages wait in a queue" in text
    assert vhost.server.password not in text


def test_a_queue_that_was_deleted_is_made_again_for_the_next_message(db: Session, vhost: Vhost, publisher: Publisher) -> None:
    db.enqueue()
    publisher.publish()
    vhost.delete("celery")
    second = db.enqueue()
    assert publisher.publish() == 1
    assert [one.id for one in vhost.take(1)] == [str(second)]


def test_a_queue_that_its_consumer_has_made_is_used_as_it_is(db: Session, vhost: Vhost, publisher: Publisher) -> None:
    vhost.declare("mail", x_queue_type="quorum")
    vhost.declare("reports", x_max_priority=9)
    for queue in ("mail", "reports"):
        db.enqueue(queue=queue)
    assert publisher.publish() == 2
    assert (vhost.count("mail"), vhost.count("reports")) == (1, 1)


def test_a_queue_that_a_caller_describes_is_made_so(make_caller: MakeApp, db: Session, vhost: Vhost, publisher: Publisher) -> None:
    app = make_caller(vhost.url, task_queues=[Queue("celery", queue_arguments=QUORUM)])
    app.send_task("a.task")
    publisher.publish()
    assert vhost.arguments() == QUORUM
    other = make_caller(vhost.url, task_queue_max_priority=9)
    other.send_task("a.task")
    assert publisher.publish() == 1
    assert vhost.count() == 2
    assert db.rows("select count(*) from bridge.ready") == [(0,)]


def test_queues_that_a_drainer_makes_have_the_arguments_it_was_given(db: Session, vhost: Vhost) -> None:
    publisher = Publisher(db.dsn, vhost.url, broker_options=json.dumps({"queue_arguments": QUORUM}))
    db.enqueue()
    publisher.publish()
    publisher.drainer.close()
    assert vhost.arguments() == QUORUM


def test_an_urgent_message_overtakes_the_others_in_a_queue_with_priorities(db: Session, vhost: Vhost, publisher: Publisher) -> None:
    vhost.declare("celery", x_max_priority=9)
    jobs = {}
    for priority in (0, 5, 9):
        jobs[priority] = str(db.enqueue(priority=priority))
        publisher.publish()
    assert [(one.id, one.priority) for one in vhost.take(3)] == [(jobs[9], 9), (jobs[5], 5), (jobs[0], 0)]


def test_a_full_queue_takes_what_it_can_and_the_other_queues_go_on(db: Session, vhost: Vhost, publisher: Publisher) -> None:
    vhost.declare("full", x_max_length=5, x_overflow="reject-publish")
    many(db, 12, "full")
    many(db, 3, "free")
    seen = sum(publisher.publish() for _ in range(2))
    assert vhost.count("free") == 3
    assert vhost.count("full") == seen - 3 >= 5
    assert states(db) == {"published": seen, "queued": 15 - seen}


def test_a_full_queue_gets_the_rest_when_it_has_room_and_nothing_twice(db: Session, vhost: Vhost, drainer: StartDrainer) -> None:
    vhost.declare("full", x_max_length=5, x_overflow="reject-publish")
    many(db, 12, "full")
    process = drainer(broker_url=vhost.url)
    wait_until(lambda: "refused queue=full" in process.log_text(), 30)
    taken = [one.id for one in vhost.take(12, "full")]
    assert len(set(taken)) == 12
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'published'", value=12)
    assert "outage" not in process.log_text()


def test_a_message_whose_exchange_does_not_exist_stays_queued_and_holds_nobody_up(
    make_caller: MakeApp, db: Session, vhost: Vhost, publisher: Publisher
) -> None:
    lost = make_caller(vhost.url).send_task("a.task", exchange="nowhere", routing_key="celery")
    found = db.enqueue()
    assert publisher.publish() == 1
    assert [one.id for one in vhost.take(1)] == [str(found)]
    assert db.rows("select status from bridge.jobs where id = %s", lost.id) == [("queued",)]
    assert publisher.publish() == 0, "it is not tried again at once"


@pytest.fixture
def proxy(rabbitmq: RabbitServer) -> Iterator[Proxy]:
    proxy = Proxy(rabbitmq.port)
    yield proxy
    proxy.close()


def test_a_shipment_whose_confirmations_are_lost_goes_out_again_and_each_job_runs_once(
    ledger: Session, vhost: Vhost, proxy: Proxy, drainer: StartDrainer, worker: StartWorker
) -> None:
    through = vhost.url.replace(f":{vhost.server.port}/", f":{proxy.port}/")
    process = drainer(broker_url=through, env={"BRIDGE_TIMEOUT": "2"})
    ledger.enqueue("ledger.work", args=[1])
    wait_for_value(ledger.dsn, "select status from bridge.jobs", value="published")
    proxy.drop("answers")
    many(ledger, 50)
    wait_until(lambda: "has not confirmed 50 messages within 2 s" in process.log_text(), 30, "the drainer to give up")
    proxy.heal()
    wait_until(lambda: (vhost.count() or 0) >= 101, 30, "the second copies")
    worker("apps.ledger", broker_url=vhost.url)
    succeeded(ledger, 51)


def test_a_connection_that_breaks_in_the_middle_of_shipments_loses_nothing(
    ledger: Session, vhost: Vhost, drainer: StartDrainer, worker: StartWorker
) -> None:
    ledger.do("update bridge.setting set value = '0' where name = 'window'")
    process = drainer(broker_url=vhost.url, env={"BRIDGE_SHIPMENT": "50"})
    many(ledger, 600)
    for at in (50, 250):
        wait_until(lambda at=at: (vhost.count() or 0) >= at, 30, f"{at} messages")  # type: ignore[misc]
        vhost.cut()
    wait_for_value(ledger.dsn, "select count(*) from bridge.jobs where status = 'published'", value=600, timeout=60)
    assert process.alive
    worker("apps.ledger", broker_url=vhost.url)
    succeeded(ledger, 600)


def test_a_node_that_was_killed_comes_back_with_what_it_had_confirmed(
    ledger: Session, rabbitmq: RabbitServer, vhost: Vhost, drainer: StartDrainer, worker: StartWorker
) -> None:
    process = drainer(broker_url=vhost.url)
    many(ledger, 100)
    wait_for_value(ledger.dsn, "select count(*) from bridge.jobs where status = 'published'", value=100)
    rabbitmq.kill()
    many(ledger, 100)
    wait_until(lambda: "outage" in process.log_text(), 30, "the drainer to notice")
    rabbitmq.start()
    assert (vhost.count() or 0) >= 100
    worker("apps.ledger", broker_url=vhost.url)
    succeeded(ledger, 200)
    assert ledger.one("select coalesce(sum(losses), 0) from bridge.jobs") == 0


def test_a_broker_with_an_alarm_gets_its_jobs_when_it_is_over(
    db: Session, rabbitmq: RabbitServer, vhost: Vhost, drainer: StartDrainer
) -> None:
    process = drainer(broker_url=vhost.url, env={"BRIDGE_TIMEOUT": "2"})
    with rabbitmq.alarm():
        assert is_alarmed(rabbitmq)
        many(db, 50)
        wait_until(lambda: "blocks all who publish" in process.log_text(), 60, "the alarm to be noticed")
        assert states(db) == {"queued": 50}
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'published'", value=50, timeout=90)
    process.stop()
    # Of what waited before the closed door, one message a try may have come in after all.
    assert 50 <= (vhost.count() or 0) <= 50 + process.log_text().count("blocks all who publish")


@pytest.mark.parametrize("loss", ["purge", "delete"])
def test_messages_of_a_queue_that_was_emptied_or_deleted_are_published_again_once(
    db: Session, vhost: Vhost, drainer: StartDrainer, loss: str
) -> None:
    db.do("update bridge.setting set value = '1' where name = 'republish_grace'")
    process = drainer(broker_url=vhost.url)
    many(db, 5)
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'published'", value=5)
    getattr(vhost, loss)("celery")
    wait_for_value(
        db.dsn, "select count(*) from bridge.inflight where state = 'published' and republished = 1 and missing_since is null",
        value=5, timeout=60,
    )  # fmt: skip
    assert vhost.count() == 5
    assert "outage" not in process.log_text()


def test_messages_that_a_queue_has_timed_out_are_published_again(db: Session, vhost: Vhost, drainer: StartDrainer) -> None:
    db.do("update bridge.setting set value = '1' where name = 'republish_grace'")
    vhost.declare("celery", x_message_ttl=300)
    drainer(broker_url=vhost.url)
    job = db.enqueue()
    wait_for_row(db.dsn, "select 1 from bridge.inflight where republished >= 1", timeout=60)
    assert db.status(job) in {"queued", "published"}


def test_what_waits_in_a_queue_is_not_published_again(db: Session, vhost: Vhost, drainer: StartDrainer) -> None:
    db.do("update bridge.setting set value = '0' where name = 'republish_grace'")
    process = drainer(broker_url=vhost.url)
    db.enqueue()
    wait_for_value(db.dsn, "select status from bridge.jobs", value="published")
    for _ in range(2):
        # With each report the drainer also looks for messages that are gone.
        seen = db.one("select seen_at from bridge.drainer where pid = %s", process.pid)
        wait_for_row(db.dsn, "select 1 from bridge.drainer where pid = %s and seen_at > %s", (process.pid, seen))
    assert db.rows("select republished, missing_since from bridge.inflight") == [(0, None)]
    assert vhost.count() == 1


@pytest.mark.skipif(celery.VERSION < (5, 5), reason="Celery's workers know quorum queues from 5.5 on")
def test_what_a_killed_worker_had_taken_from_a_quorum_queue_runs_elsewhere(
    ledger: Session, make_caller: MakeApp, vhost: Vhost, drainer: StartDrainer, worker: StartWorker
) -> None:
    conf = {"task_default_queue_type": "quorum", "worker_detect_quorum_queues": True}
    env = {"APP_CONF": json.dumps(conf)}
    drainer(broker_url=vhost.url)
    app = make_caller(vhost.url, **conf)
    doomed = worker("apps.configured", broker_url=vhost.url, env=env)
    calls = [app.send_task("ledger.work", [n, 0.05], countdown=1 if n % 10 == 0 else None) for n in range(60)]
    wait_for_value(ledger.dsn, "select count(*) > 5 from bridge.finished")
    assert vhost.arguments() == QUORUM
    doomed.kill()
    doomed.stop()  # and its children
    worker("apps.configured", broker_url=vhost.url, env=env)
    ended = "select count(*) from bridge.jobs where status = 'succeeded'"
    wait_for_value(ledger.dsn, ended, value=len(calls), timeout=120)
    # What ran in the killed worker may have begun twice, nothing else.
    twice = "select count(*) from (select from ledger where event = 'start' group by task_id having count(*) > 1) t"
    assert ledger.one(twice) <= ledger.one("select sum(losses) from bridge.jobs") <= 2


def test_events_are_sent_while_somebody_listens(db: Session, vhost: Vhost, publisher: Publisher) -> None:
    before = db.enqueue()
    publisher.publish()
    with listening(vhost.url) as listener:
        other = Publisher(db.dsn, vhost.url)
        job = db.enqueue()
        other.publish()
        assert [event["uuid"] for event in listener.sent(1)] == [str(job)] != [str(before)]
        other.drainer.close()


def test_the_doctor_tells_the_version_and_what_rabbitmq_cannot_do(db: Session, vhost: Vhost, worker: StartWorker) -> None:
    doctor = Doctor(db.dsn, vhost.url, timeout=15.0)
    found = doctor.look("broker")
    assert found.status is Grade.OK
    assert "RabbitMQ 3" in found.found
    assert "it cannot tell which messages wait in a queue" in found.found
    worker("apps.plain", broker_url=vhost.url)
    assert "without the plugin" in doctor.wait("plugin", Grade.WARNING).found


def test_messages_travel_over_tls_that_is_checked(db: Session, vhost: Vhost, certificates: Certificates) -> None:
    url = vhost.url.replace("amqp://", "amqps://").replace(f":{vhost.server.port}/", f":{vhost.server.tls_port}/")
    with pytest.raises(PublishError, match="certificate verify failed"):
        open_broker(Settings(broker_url=url))
    tls = {"ca_certs": str(certificates.authority), "cert_reqs": "required", "server_hostname": "localhost"}
    publisher = Publisher(db.dsn, url, broker_options=json.dumps({"ssl": tls}))
    db.enqueue()
    assert publisher.publish() == 1
    publisher.drainer.close()
    assert vhost.count() == 1


def test_a_wrong_password_is_refused_without_being_shown(db: Session, rabbitmq: RabbitServer, vhost: Vhost) -> None:
    url = rabbitmq.url(vhost.name, "falsch%2Fgeheim")
    with pytest.raises(PublishError, match=f"amqp://{USER}:\\*\\*\\*@127.0.0.1") as raised:
        open_broker(Settings(broker_url=url))
    finding = Doctor(db.dsn, url).look("broker")
    assert finding.status is Grade.ERROR
    assert "geheim" not in f"{raised.value} {finding.found}"


def test_a_call_through_the_bridge_becomes_the_message_that_celery_makes(make_caller: MakeApp, vhost: Vhost, publisher: Publisher) -> None:
    joined, plain = make_caller(vhost.url), make_caller(vhost.url, only=["nothing"])
    for app in (plain, joined):
        app.send_task("a.task", [1], {"b": 2}, priority=4, task_id="same", headers={"x": "y"}, root_id="r")
    publisher.publish()
    with vhost.channel() as channel:
        theirs, ours = (wait_until(lambda: channel.basic_get("celery", no_ack=True), 20) for _ in range(2))
    assert ours.body == theirs.body
    assert ours.properties["application_headers"].pop("bridge")
    assert ours.properties.pop("reply_to") != theirs.properties.pop("reply_to"), "each application has an address of its own"
    assert ours.properties == theirs.properties
