"""Bundles on RabbitMQ, signed, in pools without processes, and as those see them who watch events."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from fix_events import listening
from fix_servers import wait_for_value, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from fix_calls import MakeApp
    from fix_rabbitmq import Vhost
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session

    from bridge.local.process import Process

KNOWN = "select count(*) from bridge.worker where bundles is not null"
KEY = "a-key-of-this-test-" * 3
SIGNED = {"BRIDGE_ACCEPT": "signed", "BRIDGE_SIGNING_KEY": KEY}


@dataclass
class Bundled:
    """A worker that takes bundles, a drainer, and a plain application on their broker."""

    db: Session
    worker: Process
    plain: Celery


@pytest.fixture
def bundled(db: Session, redis_url: str, worker: StartWorker, drainer: StartDrainer) -> Bundled:
    process = worker("apps.bundled", broker_url=redis_url)
    wait_for_value(db.dsn, KNOWN, value=1)
    drainer(broker_url=redis_url)
    return Bundled(db, process, Celery("plain", broker=redis_url, set_as_current=False))


def bundles_of(worker: Process) -> int:
    return len(re.findall(r"Task bridge\.bundle\[\S+ received", worker.log_text()))


def enqueue(db: Session, count: int) -> None:
    jobs = [{"task": "bundled.add", "args": [number, 1]} for number in range(count)]
    db.do("select count(*) from bridge.enqueue_many(%s)", json.dumps(jobs))


def test_rabbitmq_carries_signed_bundles(db: Session, vhost: Vhost, worker: StartWorker, drainer: StartDrainer) -> None:
    process = worker("apps.bundled", broker_url=vhost.url, env=SIGNED)
    wait_for_value(db.dsn, KNOWN, value=1)
    drainer(broker_url=vhost.url, env=SIGNED)
    enqueue(db, 120)
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'succeeded' and attempts = 1", value=120)
    assert 3 <= bundles_of(process) <= 6
    assert db.rows("select * from bridge.refused_messages") == []
    wait_until(lambda: vhost.count("celery") == 0, 20, "no message to be left")


def test_calls_of_an_application_travel_together_and_are_waited_for(
    make_caller: MakeApp, db: Session, redis_url: str, worker: StartWorker, drainer: StartDrainer
) -> None:
    caller = make_caller(redis_url)
    process = worker("apps.bundled", broker_url=redis_url)
    wait_for_value(db.dsn, KNOWN, value=1)
    calls = [caller.send_task("bundled.add", (number, 1)) for number in range(60)]
    drainer(broker_url=redis_url)
    assert [call.get(timeout=60) for call in calls] == [number + 1 for number in range(60)]
    assert 2 <= bundles_of(process) < 60


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_pools_without_processes_take_bundles(db: Session, redis_url: str, worker: StartWorker, drainer: StartDrainer, pool: str) -> None:
    process = worker("apps.bundled", pool=pool, broker_url=redis_url)
    wait_for_value(db.dsn, KNOWN, value=1)
    drainer(broker_url=redis_url)
    enqueue(db, 100)
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'succeeded' and attempts = 1", value=100)
    assert bundles_of(process) >= 2


def test_a_pool_of_greenlets_takes_none(db: Session, redis_url: str, worker: StartWorker, drainer: StartDrainer) -> None:
    process = worker("apps.bundled", pool="gevent", broker_url=redis_url)
    wait_for_value(db.dsn, "select count(*) from bridge.worker", value=1)
    drainer(broker_url=redis_url)
    enqueue(db, 30)
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'succeeded'", value=30)
    assert bundles_of(process) == 0


def test_who_watches_events_sees_jobs_and_no_bundles(db: Session, redis_url: str, worker: StartWorker, drainer: StartDrainer) -> None:
    worker("apps.bundled", "-E", broker_url=redis_url)
    wait_for_value(db.dsn, KNOWN, value=1)
    with listening(redis_url) as listener:
        drainer(broker_url=redis_url)
        enqueue(db, 40)
        wait_until(lambda: sum(one["type"] == "task-succeeded" for one in list(listener.heard)) == 40, 60, "40 events")
        heard = list(listener.heard)
    ids = {str(row[0]) for row in db.rows("select id from bridge.jobs")}
    for kind in ("task-received", "task-started", "task-succeeded"):
        assert {one["uuid"] for one in heard if one["type"] == kind} == ids
    assert {one["name"] for one in heard if one["type"] == "task-received"} == {"bundled.add"}


def test_an_error_that_cannot_be_shown_breaks_no_bundle_whose_events_are_watched(
    db: Session, redis_url: str, worker: StartWorker, drainer: StartDrainer, tmp_path: Path
) -> None:
    process = worker("apps.bundled", "-E", broker_url=redis_url, env={"BUNDLED_FOLDER": str(tmp_path)})
    wait_for_value(db.dsn, KNOWN, value=1)
    jobs = [{"task": "bundled.fate", "args": [number, "mute" if number % 5 == 0 else "well"], "max_attempts": 1} for number in range(20)]
    db.do("select count(*) from bridge.enqueue_many(%s)", json.dumps(jobs))
    drainer(broker_url=redis_url)
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status in ('succeeded', 'failed')", value=20)
    assert db.one("select count(*) from bridge.jobs where status = 'failed' and error ->> 'type' = 'MuteError'") == 4
    assert bundles_of(process) >= 1
    assert "broke off" not in process.log_text()


def test_bundles_that_nobody_has_sent_stop_no_worker(bundled: Bundled) -> None:
    for args in ([], ["no json"], ["[[1, 2]]"], ['[[{"bridge": "1:2"}, {}, [[], {}, {}]]]'], [["a list"]]):
        bundled.plain.send_task("bridge.bundle", args, headers={"bridge_bundle": "1:2 3:4"})
    enqueue(bundled.db, 20)
    wait_for_value(bundled.db.dsn, "select count(*) from bridge.jobs where status = 'succeeded'", value=20)
    assert bundled.worker.alive


def test_a_broken_bundle_of_real_deliveries_lets_each_run_alone(bundled: Bundled) -> None:
    db = bundled.db
    for number in range(4):
        db.enqueue("bundled.add", args=[number, 1], queue="elsewhere")
    claims = db.claim("elsewhere")
    db.mark(claims)
    db.do("update bridge.job set queue = 'celery'")
    db.do("update bridge.inflight set queue = 'celery'")
    named = " ".join(f"{claim.seq}:{claim.token}" for claim in claims)
    bundled.plain.send_task("bridge.bundle", ["no json"], headers={"bridge_bundle": named})
    each = "select count(*) from bridge.jobs where status = 'succeeded' and attempts = 1 and losses = 0"
    wait_for_value(db.dsn, each, value=4, timeout=60)
