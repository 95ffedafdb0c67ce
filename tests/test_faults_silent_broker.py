"""A worker whose line to its broker goes silent, as behind a firewall that has lost its table, takes up its work again in time."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from apps.ledger import TABLE
from celery import Celery
from fix_effort import LONG
from fix_servers import wait_for_value, wait_until
from laboratory.proxy import Proxy

import bridge
from bridge.worker.plugin import _BROKER_HEARTBEAT, _SILENCE, _hear_of_silence

if TYPE_CHECKING:
    from fix_rabbitmq import Vhost
    from fix_servers import RedisServer, StartDrainer, StartWorker
    from fix_sql import Session

    from bridge.local.process import Process

PROMISED = 90.0  # seconds from any single fault to running again
CELERYS_OWN = 120


def heartbeat(pool: str, **said: Any) -> int:
    """What a worker of this pool agrees on with RabbitMQ."""
    app = Celery("hears", **said)
    bridge.install(app)
    _hear_of_silence(app, pool)
    return int(app.conf.broker_heartbeat)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_hears_within_the_promise_that_rabbitmq_is_silent(pool: str) -> None:
    assert heartbeat(pool) == _BROKER_HEARTBEAT
    assert 2 * _BROKER_HEARTBEAT + _BROKER_HEARTBEAT / 3 < PROMISED


def test_what_an_application_says_of_heartbeats_stands() -> None:
    assert heartbeat("prefork", broker_heartbeat=0) == 0


@pytest.mark.parametrize(("url", "said", "kept"), [
    ("redis://", {}, {"socket_timeout": _SILENCE}),
    ("redis://", {"socket_timeout": 3, "priority_steps": [0]}, {"socket_timeout": 3, "priority_steps": [0]}),
    ("amqp://", {}, {"read_timeout": _SILENCE}),
        ("memory://", {}, {}),
])  # fmt: skip
def test_a_worker_waits_for_no_answer_of_its_broker_for_ever(url: str, said: dict[str, Any], kept: dict[str, Any]) -> None:
    app = Celery("hears", broker=url, broker_transport_options=said)
    bridge.install(app)
    _hear_of_silence(app, "prefork")
    assert app.conf.broker_transport_options == kept


def test_a_pool_that_cannot_send_heartbeats_while_a_task_runs_keeps_celerys() -> None:
    assert heartbeat("solo") == CELERYS_OWN


@LONG
@pytest.mark.timeout(600)
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_sole_worker_on_a_silent_line_runs_again_within_the_promise(
    db: Session, drainer: StartDrainer, worker: StartWorker, request: pytest.FixtureRequest, broker: str
) -> None:
    url, port = address(request, broker)
    proxy = Proxy(port)
    try:
        db.do(TABLE)
        drainer(broker_url=url)
        worker("apps.ledger", broker_url=url.replace(f":{port}", f":{proxy.port}"), concurrency=1)
        first = db.enqueue("ledger.work", args=[1])
        wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (first,), value="succeeded", timeout=60)
        proxy.forget()
        since = time.monotonic()
        second = db.enqueue("ledger.work", args=[2])
        wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (second,), value="succeeded", timeout=3 * PROMISED)
        print(f"{broker}: {time.monotonic() - since:.1f} s")  # noqa: T201 - what was measured
        assert db.rows("select losses, attempts from bridge.jobs where id = %s", second) == [(0, 1)]
    finally:
        proxy.close()


def test_a_worker_watches_no_connection_that_it_has_closed(
    db: Session, drainer: StartDrainer, worker: StartWorker, redis_server: RedisServer, redis_proxy: Proxy
) -> None:
    """A process of its pool that was forked since has it open: watched on, it is taken for the next connection of its number."""
    drainer(broker_url=redis_server.url)
    main = worked(db, worker, "apps.impatient", redis_server, redis_proxy)
    (first,) = psutil.Process(main.pid).children()
    first.kill()
    wait_until(lambda: psutil.Process(main.pid).children() not in ([], [first]), 30, "another process of the pool")
    run(db, 2)
    redis_proxy.forget()
    wait_until(lambda: "BRPOP got no reply" in main.log_text(), 60, "the worker to let go of its connection")
    run(db, 3)
    assert watched_in_vain(main.pid) == []


def test_a_worker_closes_what_it_has_lost(
    db: Session, drainer: StartDrainer, worker: StartWorker, redis_server: RedisServer, redis_proxy: Proxy
) -> None:
    """Celery alone keeps two sockets each time it has to try more than once."""
    drainer(broker_url=redis_server.url)
    main = worked(db, worker, "apps.ledger", redis_server, redis_proxy)
    before = psutil.Process(main.pid).num_fds()
    for number in (2, 3, 4, 5):
        failures = main.log_text().count("Cannot connect")
        redis_proxy.refuse()
        redis_proxy.cut()
        wait_until(lambda failures=failures: main.log_text().count("Cannot connect") > failures, 30, "the worker to try in vain")
        redis_proxy.heal()
        run(db, number)
    assert psutil.Process(main.pid).num_fds() <= before + 2


def worked(db: Session, worker: StartWorker, app: str, server: RedisServer, proxy: Proxy) -> Process:
    """A worker of one process behind a proxy, when it has run a job."""
    db.do(TABLE)
    main = worker(app, broker_url=server.url.replace(f":{server.port}", f":{proxy.port}"), concurrency=1)
    run(db, 1)
    return main


def run(db: Session, number: int) -> None:
    job = db.enqueue("ledger.work", args=[number])
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (job,), value="succeeded", timeout=60)


def watched_in_vain(pid: int) -> list[int]:
    """Numbers under which a process is told of what it has closed: what the kernel watches is not what has that number now."""
    found = []
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        if "eventpoll" not in str(handle.readlink()):
            continue
        for number, inode in re.findall(r"tfd: +(\d+) .*ino:([0-9a-f]+)", Path(f"/proc/{pid}/fdinfo/{handle.name}").read_text()):
            at = Path(f"/proc/{pid}/fd/{number}")
            if not at.exists() or at.stat().st_ino != int(inode, 16):
                found.append(int(number))
    return found


def address(request: pytest.FixtureRequest, broker: str) -> tuple[str, int]:
    """The URL of a broker, and its port."""
    if broker == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return server.url, server.port
    vhost: Vhost = request.getfixturevalue("vhost")
    return vhost.url, vhost.server.port
