"""Redis and Valkey in every form of URL that Celery takes, with the application's transport options handed to the drainer."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from apps.ledger import TABLE
from fix_doctor import Doctor
from fix_events import listening
from fix_redis import MASTER
from fix_servers import wait_for_value, wait_until
from fix_tls import make_certificates
from kombu import Connection
from kombu.transport import memory

from bridge import settings
from bridge.broker import open_broker
from bridge.doctor import Grade, examine
from bridge.drainer import Drainer
from bridge.errors import PublishError, SettingError
from bridge.local.broker import FileBroker, free_port
from bridge.settings import Settings, without_password

if TYPE_CHECKING:
    from pathlib import Path

    from fix_calls import MakeApp
    from fix_redis import Redises
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session
    from fix_tls import Certificates

AGAIN = "update bridge.setting set value = '1' where name = 'republish_grace'"


@pytest.fixture
def ledger(db: Session) -> Session:
    db.do(TABLE)
    return db


def settings_of(options: dict[str, Any], **conf: Any) -> dict[str, str]:
    """The environment of a drainer and of the ledger's workers whose application has these transport options."""
    return {
        "BRIDGE_BROKER_OPTIONS": json.dumps(options),
        "APP_CONF": json.dumps({"broker_transport_options": options, **conf}),
    }


def many(db: Session, count: int) -> None:
    db.do("select bridge.enqueue('ledger.work', jsonb_build_array(n, 0.01)) from generate_series(1, %s) n", count)


def succeeded(db: Session, count: int, timeout: float = 120.0) -> None:
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'succeeded'", value=count, timeout=timeout)


def run_some(db: Session, url: str, drainer: StartDrainer, worker: StartWorker, env: dict[str, str] | None = None) -> str:
    """Run jobs with a drainer and a worker of this broker; what the drainer said."""
    process = drainer(broker_url=url, env=env)
    worker("apps.configured", broker_url=url, env=env)
    many(db, 20)
    succeeded(db, 20)
    return process.log_text()


def test_jobs_run_over_a_socket_for_a_user_with_a_difficult_password_and_over_tcp(
    ledger: Session, redises: Redises, drainer: StartDrainer, worker: StartWorker
) -> None:
    port, password = free_port(), "p@ss/w:rd#1?"
    server = redises.start({"port": str(port), "user": f"shop on >{password} ~* &* +@all"})
    url = f"redis://shop:{quote(password, safe='')}@127.0.0.1:{port}/3"
    text = run_some(ledger, url, drainer, worker)
    assert f"url=redis://shop:***@127.0.0.1:{port}/3" in text
    assert quote(password, safe="") not in text
    assert password not in text
    drainer(broker_url=f"redis+socket://{server.socket}?virtual_host=3")
    many(ledger, 20)
    succeeded(ledger, 40)


def test_a_password_that_divides_the_url_is_refused_without_being_shown(db: Session) -> None:
    for url in ("redis://:ge/heim@127.0.0.1:6379/0", "redis://:ge#heim@127.0.0.1:6379/0", "amqp://me:ge?heim@127.0.0.1/x"):
        with pytest.raises(SettingError, match="percent-encode") as raised:
            open_broker(Settings(broker_url=url))
        assert "ge" not in str(raised.value).partition(" cannot be read")[0].replace("broker", "")
        assert "heim" not in str(raised.value)
        assert "heim" not in Doctor(db.dsn, url).look("broker").found


def test_of_several_urls_no_password_is_shown() -> None:
    url = "sentinel://:geheim@a:1;sentinel://me:geheim@b:2/0;c:3"
    assert without_password(url) == "sentinel://:***@a:1;sentinel://me:***@b:2/0;c:3"
    with pytest.raises(PublishError) as raised:
        open_broker(Settings(broker_url="amqp://me:geheim@127.0.0.1:1/x;amqp://me:auchgeheim@127.0.0.1:2/x", timeout=2))
    assert "geheim" not in str(raised.value)


def start_tls(redises: Redises, certificates: Certificates) -> str:
    """A server that speaks TLS alone; its address, which names no authority."""
    port = free_port()
    redises.start({
        "tls-port": str(port), "tls-cert-file": str(certificates.certificate), "tls-key-file": str(certificates.key),
        "tls-ca-cert-file": str(certificates.authority), "tls-auth-clients": "no",
    })  # fmt: skip
    return f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required"


def trusting(url: str, certificates: Certificates) -> str:
    """The address, with the authority of these certificates."""
    return f"{url}&ssl_ca_certs={quote(str(certificates.authority), safe='')}"


def test_jobs_run_over_tls_that_is_checked(
    ledger: Session, redises: Redises, certificates: Certificates, drainer: StartDrainer, worker: StartWorker
) -> None:
    address = start_tls(redises, certificates)
    with pytest.raises(PublishError, match="certificate verify failed"):
        open_broker(Settings(broker_url=address))
    run_some(ledger, trusting(address, certificates), drainer, worker)
    options = {"ssl": {"ssl_cert_reqs": "required", "ssl_ca_certs": str(certificates.authority)}}
    open_broker(Settings(broker_url=address.partition("?")[0], broker_options=json.dumps(options))).close()


def test_a_worker_that_trusts_another_authority_says_so_and_begins_nothing(
    ledger: Session, redises: Redises, certificates: Certificates, drainer: StartDrainer, worker: StartWorker, tmp_path: Path
) -> None:
    address = start_tls(redises, certificates)
    right, wrong = trusting(address, certificates), trusting(address, make_certificates(tmp_path / "other"))
    drainer(broker_url=right)
    job = ledger.enqueue("ledger.work", args=[1])
    distrustful = worker("apps.ledger", broker_url=wrong, ready=False)
    wait_until(lambda: distrustful.log_text().count("certificate verify failed") > 1 or " ready." in distrustful.log_text(), 60, "a reason")
    wait_for_value(ledger.dsn, "select status from bridge.jobs where id = %s", (job,), value="published")
    assert distrustful.alive, "it tries again, as Celery does"
    assert " ready." not in distrustful.log_text()
    worker("apps.ledger", broker_url=right)
    wait_for_value(ledger.dsn, "select status from bridge.jobs where id = %s", (job,), value="succeeded")
    assert " ready." not in distrustful.log_text()


def test_an_application_with_a_key_prefix_and_priorities_of_its_own_is_served(
    ledger: Session, make_caller: MakeApp, redises: Redises, drainer: StartDrainer, worker: StartWorker
) -> None:
    server = redises.start(port=free_port())
    options = {"global_keyprefix": "shop:", "priority_steps": list(range(10)), "sep": ":", "queue_order_strategy": "priority"}
    env = settings_of(options, worker_prefetch_multiplier=1)
    ledger.do(AGAIN)
    process = drainer(broker_url=server.url, env=env)
    app = make_caller(server.url, broker_transport_options=options)
    calls = [app.send_task("ledger.work", [n], priority=priority) for n, priority in enumerate((8, 5, 0, 3))]
    client = server.client()
    wait_for_value(ledger.dsn, "select count(*) from bridge.jobs where status = 'published'", value=4)
    assert {key.decode() for key in client.keys("*celery*")} == {f"shop:celery{step}" for step in ("", ":3", ":5", ":8")}  # type: ignore[union-attr]
    client.delete("shop:celery:5")
    wait_until(lambda: client.llen("shop:celery:5"), 30, "what was lost to be published again")
    assert client.llen("shop:celery") == 1, "what is there is found under its prefix, and not published again"
    wait_until(lambda: "published again, their messages were gone jobs=1" in process.log_text(), 30, "a line in the drainer's log")
    with listening(server.url, **options) as listener:
        worker("apps.configured", broker_url=server.url, concurrency=1, env=env)
        ledger.enqueue("ledger.work", args=[9])
        assert listener.sent(1)
        succeeded(ledger, 5)
    assert "none of the 1 workers that report to Postgres answers" in Doctor(ledger.dsn, server.url).wait("plugin", Grade.WARNING).found
    right = Settings(database_url=ledger.dsn, broker_url=server.url, broker_options=json.dumps(options))
    assert wait_until(lambda: examine(right, names=["plugin"])[-1].status is Grade.OK, 30)
    started = [row[0] for row in ledger.rows("select task_id from ledger where event = 'start' order by at")]
    assert [one for one in started if one in {call.id for call in calls}] == [calls[n].id for n in (2, 3, 1, 0)]


@pytest.mark.timeout(300)
def test_nothing_is_lost_when_sentinel_makes_the_replica_the_master(
    ledger: Session, redises: Redises, drainer: StartDrainer, worker: StartWorker
) -> None:
    ports = [free_port(), free_port()]
    master = redises.start({"port": str(ports[0])})
    replica = redises.start({"port": str(ports[1]), "replicaof": f"127.0.0.1 {ports[0]}"})
    sentinel = redises.sentinel(ports[0])
    url = f"sentinel://127.0.0.1:{sentinel};sentinel://127.0.0.1:{free_port()}"
    env = settings_of({"master_name": MASTER, "sentinel_kwargs": {"socket_timeout": 2}, "socket_timeout": 5})
    ledger.do(AGAIN)
    process = drainer(broker_url=url, env=env)
    worker("apps.configured", broker_url=url, env=env)
    many(ledger, 600)
    wait_for_value(ledger.dsn, "select count(*) > 50 from bridge.finished")
    master.kill()
    wait_until(lambda: replica.client().info("replication")["role"] == "master", 60, "the failover")
    many(ledger, 100)
    succeeded(ledger, 700, timeout=150)
    assert "outage" in process.log_text()
    assert ledger.one("select count(*) from (select from ledger where event = 'start' group by run having count(*) > 1) twice") == 0


def test_what_sentinel_needs_and_an_option_that_is_wrong_are_said(redises: Redises, db: Session) -> None:
    with pytest.raises(SettingError, match=r"'master_name' transport option must be specified.*BRIDGE_BROKER_OPTIONS"):
        open_broker(Settings(broker_url=f"sentinel://127.0.0.1:{free_port()}"))
    server = redises.start({"cluster-enabled": "yes"}, port=free_port())
    cluster = Doctor(db.dsn, server.url).look("broker")
    assert cluster.status is Grade.ERROR
    assert "is a node of a Redis Cluster" in cluster.found
    assert "under Sentinel" in cluster.remedy


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "is wrong: it is no JSON: Expecting"),
        ("[1]", "it is no JSON object"),
        ('{"ssl": {"cert_reqs": "often"}}', "often"),
    ],
)
def test_broker_options_that_cannot_be_read_are_refused(value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_BROKER_OPTIONS", value)
    with pytest.raises(SettingError, match="BRIDGE_BROKER_OPTIONS") as raised:
        open_broker(settings.load())
    assert words in str(raised.value)


def test_a_drainer_whose_broker_can_never_be_used_ends_and_says_why(drainer: StartDrainer) -> None:
    process = drainer(broker_url="sentinel://127.0.0.1:1", ready=False)
    assert process.wait(60) == 1
    assert "'master_name' transport option must be specified" in process.log_text()
    assert "BRIDGE_BROKER_OPTIONS" in process.log_text()
    assert "Traceback" not in process.log_text()


def test_a_redis_that_lets_nobody_look_at_it_is_used_all_the_same(db: Session, redises: Redises) -> None:
    port = free_port()
    server = redises.start({"port": str(port), "user": "shop on >geheim ~* &* +@all -info -@dangerous"})
    url = f"redis://shop:geheim@127.0.0.1:{port}/0"
    drainer = Drainer(Settings(database_url=db.dsn, broker_url=url), threading.Event())
    db.enqueue()
    assert drainer.drain_once() == 1
    drainer.close()
    assert server.client().llen("celery") == 1
    assert Doctor(db.dsn, url).look("broker").found == f"redis answers at redis://shop:***@127.0.0.1:{port}/0"


def test_jobs_run_on_valkey(ledger: Session, redises: Redises, valkey_program: Path, drainer: StartDrainer, worker: StartWorker) -> None:
    server = redises.start(port=free_port(), program=valkey_program)
    assert "server=valkey version=9" in run_some(ledger, server.url, drainer, worker)
    found = Doctor(ledger.dsn, server.url).look("broker")
    assert found.status is Grade.OK
    assert found.found.startswith("valkey 9")


def test_jobs_run_over_files_in_folders_that_the_options_name(
    ledger: Session, tmp_path: Path, drainer: StartDrainer, worker: StartWorker
) -> None:
    folder = FileBroker(tmp_path / "files").start().folder
    options = {"data_folder_in": f"{folder}/data_in", "data_folder_out": f"{folder}/data_in", "control_folder": f"{folder}/control"}
    text = run_some(ledger, "filesystem://", drainer, worker, settings_of(options))
    assert "this broker cannot put an urgent message before others" in text
    assert "this broker cannot confirm that it keeps a message" in text


def test_in_one_process_a_test_can_drain_into_memory_and_what_is_lost_there_goes_out_again(db: Session) -> None:
    memory.Channel.queues.clear()
    db.do(AGAIN)
    stop = threading.Event()
    thread = threading.Thread(target=Drainer(Settings(database_url=db.dsn, broker_url="memory://"), stop).run)
    thread.start()
    job = db.enqueue()
    with Connection("memory://") as connection:
        queue = connection.SimpleQueue("celery")
        try:
            assert [queue.get(timeout=40).headers["id"] for _ in range(2)] == [str(job)] * 2
        finally:
            stop.set()
            thread.join()


def test_a_broker_of_one_process_and_one_that_was_never_tried_are_warned_of(db: Session) -> None:
    memory = Doctor(db.dsn, "memory://").look("broker")
    assert memory.status is Grade.WARNING
    assert "cannot be reached by another process" in memory.found
    other = Doctor(db.dsn, "pyro://nobody@127.0.0.1/x").look("broker")
    assert other.status is Grade.WARNING
    assert "cannot be vouched for" in other.found


def test_a_transport_without_tests_says_so_when_a_drainer_starts(db: Session, drainer: StartDrainer, tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(tmp_path)}
    process = drainer(broker_url=f"sqla+sqlite:///{tmp_path}/broker.sqlite", env=env)
    assert "this broker cannot be vouched for: no test of the bridge runs with it" in process.log_text()
    db.enqueue()
    wait_for_value(db.dsn, "select status from bridge.jobs", value="published")
