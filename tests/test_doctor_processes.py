"""The doctor on drainers and workers that die, say nothing, or live in another time."""

from __future__ import annotations

import os
import signal
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fix_doctor import Doctor, execute
from fix_servers import wait_for_row, wait_for_value

from bridge.doctor import Grade, Limits, examine
from bridge.queries.connection import connect
from bridge.queries.runs import report_worker
from bridge.settings import Settings

if TYPE_CHECKING:
    from fix_servers import StartDrainer, StartWorker

    from bridge.local.process import Process

ROOT = Path(__file__).parent.parent
APP = """
import os
from celery import Celery

app = Celery("plain", broker=os.environ["BRIDGE_BROKER_URL"])


@app.task(name="plain.nothing")
def nothing():
    return None
"""
JOINED = {"CELERY_LOADER": "bridge.loader.Loader"}
SILENT = 6.0  # seconds; a little more than the 5 between two reports


@pytest.fixture
def doctor(dsn: str, redis_url: str) -> Doctor:
    return Doctor(dsn, redis_url)


class StartPlain:
    """Starts a worker of an application that knows nothing of the bridge; with JOINED it has joined all the same."""

    def __init__(self, start: StartWorker, folder: Path) -> None:
        self.start = start
        self.folder = folder
        (folder / "plain_app.py").write_text(APP)

    def __call__(self, env: dict[str, str] | None = None, queues: str | None = None) -> Process:
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(self.folder)])}
        return self.start("plain_app", pool="solo", concurrency=1, queues=queues, env=paths | (env or {}))


@pytest.fixture
def plain(worker: StartWorker, tmp_path: Path) -> StartPlain:
    return StartPlain(worker, tmp_path)


def enqueue(dsn: str, queue: str = "celery") -> None:
    execute(dsn, "select bridge.enqueue('plain.nothing', queue => %s)", queue)


def test_the_tick_is_red_when_its_drainer_is_killed_and_green_with_another(doctor: Doctor, drainer: StartDrainer) -> None:
    never = doctor.look("tick")
    assert never.status is Grade.ERROR
    assert "nobody has ever ticked" in never.found
    assert "bridge drain" in never.remedy
    first = drainer()
    assert doctor.wait("tick", Grade.OK).found.startswith("drainer ticked")
    first.kill(signal.SIGKILL)
    late = doctor.wait("tick", Grade.ERROR, tick_late=3.0)
    assert late.value is not None
    assert late.value > 3
    assert "see the row drainers" in late.remedy
    drainer()
    doctor.wait("tick", Grade.OK, tick_late=3.0)


def test_drainers_are_red_when_the_only_one_is_killed_and_green_with_another(doctor: Doctor, drainer: StartDrainer) -> None:
    none = doctor.look("drainers")
    assert none.status is Grade.ERROR
    assert none.remedy == "start one: bridge drain"
    first = drainer()
    assert doctor.look("drainers", drainer_silent=SILENT).value == 1
    first.kill(signal.SIGKILL)
    dead = doctor.wait("drainers", Grade.ERROR, drainer_silent=SILENT)
    assert "went silent" in dead.found
    drainer()
    assert doctor.look("drainers", drainer_silent=SILENT).status is Grade.OK


def test_a_drainer_that_stops_is_missed_at_once(doctor: Doctor, drainer: StartDrainer) -> None:
    first = drainer()
    first.kill(signal.SIGTERM)
    first.wait(10.0)
    assert "stopped" in doctor.look("drainers").found


def test_workers_are_red_when_the_only_one_is_killed_and_green_with_another(doctor: Doctor, plain: StartPlain) -> None:
    none = doctor.look("workers")
    assert none.status is Grade.ERROR
    assert "celery -A <app> worker" in none.remedy
    first = plain(JOINED)
    doctor.wait("workers", Grade.OK, worker_silent=SILENT)
    first.kill(signal.SIGKILL)
    dead = doctor.wait("workers", Grade.ERROR, worker_silent=SILENT)
    assert "went silent" in dead.found
    plain(JOINED)
    doctor.wait("workers", Grade.OK, worker_silent=SILENT)


def test_a_worker_that_stops_is_missed_at_once(doctor: Doctor, plain: StartPlain) -> None:
    first = plain(JOINED)
    doctor.wait("workers", Grade.OK)
    first.kill(signal.SIGTERM)
    first.wait(20.0)
    assert "stopped" in doctor.wait("workers", Grade.ERROR, timeout=5.0).found


def test_a_queue_with_jobs_that_no_worker_consumes_is_named_until_one_does(
    dsn: str, doctor: Doctor, drainer: StartDrainer, plain: StartPlain
) -> None:
    drainer()
    plain(JOINED)
    doctor.wait("workers", Grade.OK)
    enqueue(dsn, "reports")
    wait_for_row(dsn, "select 1 from bridge.jobs where status = 'published'")
    unserved = doctor.look("workers")
    assert unserved.status is Grade.WARNING
    assert "reports" in unserved.found
    assert unserved.remedy == "celery -A <app> worker -Q reports"
    plain(JOINED, queues="reports")
    doctor.wait("workers", Grade.OK)


@pytest.mark.versions
def test_a_worker_without_the_plugin_is_named_until_it_has_joined(dsn: str, doctor: Doctor, plain: StartPlain) -> None:
    silent = plain()
    harmless = doctor.wait("plugin", Grade.WARNING)
    assert "without the plugin" in harmless.found
    enqueue(dsn)
    harmful = doctor.look("plugin")
    assert harmful.status is Grade.ERROR
    assert "bridge.install(app)" in harmful.remedy
    assert "CELERY_LOADER=bridge.loader.Loader" in harmful.remedy
    silent.kill(signal.SIGTERM)
    silent.wait(20.0)
    plain(JOINED)
    wait_for_value(dsn, "select count(*) from bridge.workers where status = 'alive'", value=1)
    assert doctor.look("plugin").status is Grade.OK


def report(dsn: str, ahead: float) -> None:
    """A worker's heartbeat, from a machine whose clock is so many seconds ahead."""
    with connect(dsn, name="test") as connection:
        report_worker(
            connection, uuid.UUID(int=7), name="far@away", pid=1, pool="solo", concurrency=1, queues=["celery"], software="test",
            holding=[], clock=datetime.now(UTC) + timedelta(seconds=ahead),
        )  # fmt: skip


def test_a_worker_whose_clock_is_wrong_is_named_until_it_is_right(dsn: str, doctor: Doctor) -> None:
    report(dsn, ahead=-7.5)
    wrong = doctor.look("clocks")
    assert wrong.status is Grade.WARNING
    assert "far@away -7.5 s" in wrong.found
    assert "time service" in wrong.remedy
    report(dsn, ahead=0.0)
    assert doctor.look("clocks").status is Grade.OK


def test_this_machine_is_named_when_its_clock_is_wrong(dsn: str) -> None:
    settings = Settings(database_url=dsn)
    found = examine(settings, Limits(), names=["clocks"], now=lambda: datetime.now(UTC) + timedelta(seconds=30))[-1]
    assert found.status is Grade.WARNING
    assert "this machine +30.0 s" in found.found
    assert examine(settings, Limits(), names=["clocks"])[-1].status is Grade.OK


@pytest.mark.parametrize(
    ("name", "value", "words"), [("republish_grace", "8", "two heartbeats"), ("worker_lost", "10", "worker_lost should be more")]
)
def test_graces_that_do_not_fit_each_other_are_a_warning(dsn: str, name: str, value: str, words: str) -> None:
    doctor = Doctor(dsn)
    assert doctor.look("graces").status is Grade.OK
    execute(dsn, "update bridge.setting set value = %s where name = %s", value, name)
    found = doctor.look("graces")
    assert found.status is Grade.WARNING
    assert words in found.found
