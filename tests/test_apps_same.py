"""Applications of three frameworks, each run without and with the bridge: the same requests, answers, results and effects."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import ROOT

if TYPE_CHECKING:
    from fix_servers import Launcher, StartDrainer, StartWorker

    from bridge.local.broker import RedisServer
    from bridge.local.process import Process
    from bridge.testing.databases import Databases


@dataclass(frozen=True)
class Subject:
    """One application.

    Attributes:
        package: below tests/apps.
        prefix: of its variables.
        celery: what ``celery -A`` takes.
        queues: of its worker.
        env: more of its environment.
        ways: in which it joins.
    """

    package: str
    prefix: str
    celery: str
    queues: str
    env: dict[str, str] = field(default_factory=dict)
    ways: tuple[str, ...] = ("loader", "line")


DJANGO = {"DJANGO_SETTINGS_MODULE": "django_shop.settings"}
SUBJECTS = [
    Subject("django_shop", "SHOP", "django_shop", "celery,mail", DJANGO, ways=("loader", "line", "app")),
    Subject("fastapi_notes", "NOTES", "fastapi_notes.worker", "notes,slow"),
    Subject("flask_reports", "REPORTS", "flask_reports.make_celery", "celery"),
]


@dataclass
class Seen:
    """What an application showed: every answer, and the effects of its tasks."""

    answers: list[Any]
    effects: list[tuple[str, list[str]]]


def environment(subject: Subject, way: str, dsn: str, broker_url: str) -> dict[str, str]:
    """How it joins.

    ``plain``: not at all. ``loader``: by its environment alone, with its own result backend. ``line``: by one line, with results in rows.
    ``app``: by Django's settings too, so that atomic blocks are joined.
    """
    ours = {f"{subject.prefix}_DATABASE_URL": dsn, f"{subject.prefix}_BROKER_URL": broker_url, f"{subject.prefix}_RESULTS_URL": broker_url}
    if way in {"loader", "app"}:
        ours["CELERY_LOADER"] = "bridge.loader.Loader"
    if way == "line":
        ours |= {f"{subject.prefix}_JOINS": "1", f"{subject.prefix}_RESULTS_URL": "bridge://"}
    known = {"DJANGO_SETTINGS_MODULE": "django_shop.settings_joined"} if way == "app" else subject.env
    # The launcher names the broker by a variable that Celery lets win; these applications have settings of their own.
    return {**ours, **known, "CELERY_BROKER_URL": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/apps'}"}


@dataclass
class Stage:
    """Where an application is shown: a database and a broker of its own each time, with real processes."""

    databases: Databases
    template: str
    launcher: Launcher
    start_worker: StartWorker
    start_drainer: StartDrainer
    broker: RedisServer

    def show(self, subject: Subject, way: str) -> Seen:
        with self.broker.client() as client:
            client.flushall()
        dsn, url = self.databases.server.dsn_of(self.databases.create(self.template)), self.broker.url
        ours = environment(subject, way, dsn, url)
        talked = self.start_driver(subject, ours, dsn, url)
        if way != "plain":
            self.start_drainer(dsn=dsn, broker_url=url)
        quick = ("--without-mingle", "--without-gossip")
        # One child: with two, Celery's own "it asks for a retry" can come after the outcome of that retry, and stand.
        worker = self.start_worker(subject.celery, *quick, concurrency=1, queues=subject.queues, env=ours, dsn=dsn, broker_url=url)
        answers = self.answers(talked, worker)
        worker.stop()  # what still runs, ends
        rows, effects = self.look(dsn)
        assert bool(rows) == (way != "plain")
        return Seen(answers, effects)

    def start_driver(self, subject: Subject, ours: dict[str, str], dsn: str, url: str) -> Process:
        """The requests begin while the worker starts: it waits until the tables are there."""
        return self.launcher.start("driver", [sys.executable, "-m", f"{subject.package}.drive"], ours, dsn=dsn, broker_url=url)

    def answers(self, driver: Process, worker: Process) -> list[Any]:
        assert driver.wait(120) == 0, f"{driver.log_tail()}\n{worker.log_tail()}"
        said: list[Any] = json.loads(driver.log_text().splitlines()[-1])
        return said

    def look(self, dsn: str) -> tuple[int, list[tuple[str, list[str]]]]:
        """How many rows there are, and the effects in their order, by subject."""
        with psycopg.connect(dsn) as connection:
            row = connection.execute("select count(*) from bridge.jobs").fetchone()
            effects = connection.execute("select subject, array_agg(what order by id) from effects group by subject order by subject")
            return row[0] if row else 0, effects.fetchall()


@pytest.fixture
def stage(
    databases: Databases, template: str, launcher: Launcher, worker: StartWorker, drainer: StartDrainer, redis_server: RedisServer
) -> Stage:
    return Stage(databases, template, launcher, worker, drainer, redis_server)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.package)
def test_an_application_shows_the_same_with_and_without_the_bridge(subject: Subject, stage: Stage) -> None:
    plain = stage.show(subject, "plain")
    for way in subject.ways:
        joined = stage.show(subject, way)
        assert joined.answers == plain.answers, way
        assert joined.effects == plain.effects, way
