"""A purge means the jobs that wait, not only their messages, which would be published again."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery import Celery
from fix_servers import ROOT, wait_for_row, wait_until

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_servers import Launcher, StartDrainer
    from fix_sql import Session


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def waiting(db: Session, drainer: StartDrainer, client: redis.Redis) -> Session:
    """Three jobs with the broker, one scheduled, and one of another queue; an hour ago no worker was there."""
    db.do("update bridge.setting set value = '0' where name = 'republish_grace'")
    drainer()
    for _ in range(3):
        db.enqueue("kinds.add", args=[1, 2])
    db.enqueue("kinds.add", args=[1, 2], delay="1 hour")
    db.enqueue("kinds.add", args=[1, 2], queue="other")
    wait_until(lambda: client.llen("celery") == 3 and client.llen("other") == 1, 20, "the messages")
    return db


def purge(launcher: Launcher, answer: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "celery", "-A", "apps.kinds", "purge"]
    return subprocess.run(
        words, env=launcher.environment({}), cwd=ROOT, input=answer, capture_output=True, text=True, timeout=60, check=False
    )


def counts(db: Session) -> dict[tuple[str, str], int]:
    return {(queue, status): count for queue, status, count in db.rows("select queue, status, count(*) from bridge.jobs group by 1, 2")}


def looked_again(db: Session, times: int = 3) -> None:
    """Wait until the drainer has looked that often for messages that are gone."""
    for _ in range(times):
        seen = db.one("select seen_at from bridge.drainer")
        wait_for_row(db.dsn, "select 1 from bridge.drainer where seen_at > %s", (seen,))


def test_celery_purge_asks_and_then_cancels_what_waits_in_its_queues(waiting: Session, launcher: Launcher, client: redis.Redis) -> None:
    refused = purge(launcher, "n\n")
    assert "Are you sure" in refused.stdout
    assert counts(waiting) == {("celery", "published"): 3, ("celery", "scheduled"): 1, ("other", "published"): 1}
    done = purge(launcher, "y\n")
    assert "Purged 4 messages" in done.stdout, done.stderr
    assert counts(waiting) == {("celery", "cancelled"): 4, ("other", "published"): 1}
    looked_again(waiting)
    assert (client.llen("celery"), client.llen("other")) == (0, 1)


def test_a_purge_by_an_application_counts_jobs_and_messages_that_are_no_rows(
    waiting: Session, redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", waiting.dsn)
    app: Any = Celery("purging", broker=redis_url, backend="bridge://", set_as_current=False)
    bridge.install(app)
    app.send_task("kinds.add", (1, 2), bridge=False)
    assert app.control.purge() == 5
    assert client.llen("celery") == 0
    assert counts(waiting)[("celery", "cancelled")] == 4
    app.close()
    app.bridge.connections.close()
