"""Flower, unchanged, in a real browser: what it shows, ends and makes are rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fix_servers import wait_for_value, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from fix_flower import Browser, Flower, StartFlower
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session

STATUS = "select status from bridge.jobs where id = %s"


def wait_for_status(db: Session, job: Any, status: str) -> None:
    wait_for_value(db.dsn, STATUS, (job,), value=status, timeout=30)


def test_flower_shows_ends_and_makes_jobs(
    db: Session, drainer: StartDrainer, worker: StartWorker, flower: StartFlower, browser: Browser, tmp_path: Path
) -> None:
    drainer()
    worker("apps.kinds", "--task-events", "--prefetch-multiplier=2", concurrency=1)
    page = flower("-A", "apps.kinds")
    shows_a_job(db, page, browser)
    ends_jobs(db, page, browser, tmp_path)
    makes_jobs(db, page)


def shows_a_job(db: Session, page: Flower, browser: Browser) -> None:
    """A job from SQL is shown with its times, arguments, queue and worker."""
    job = db.enqueue("kinds.add", args=[20, 22])
    wait_for_status(db, job, "succeeded")
    page.wait_for_task(job, "SUCCESS")
    name = db.field(job, "worker")
    browser.open(f"{page.url}/tasks")
    browser.wait_for_row("kinds.add", "SUCCESS", "[20, 22]", "42")
    browser.picture("flower-tasks")
    browser.open(f"{page.url}/task/{job}")
    shown = browser.details()
    browser.picture("flower-task")
    assert (shown["routing key"], shown["worker"], shown["result"]) == ("celery", name, "42")
    assert shown["sent"] <= shown["received"] <= shown["started"] <= shown["succeeded"]
    browser.open(f"{page.url}/workers")
    browser.wait_for_row(name[:8], "Online")
    browser.picture("flower-workers")
    browser.open(f"{page.url}/broker")
    browser.wait_for_row("celery")


def ends_jobs(db: Session, page: Flower, browser: Browser, folder: Path) -> None:
    """The buttons and the API end what runs, what a worker holds and what waits in Postgres; the rows say so at once."""
    started = folder / "started"
    running = db.enqueue("kinds.hold", args=[str(started), str(folder / "never")])
    wait_until(started.exists, 30, "the job to run")
    held = db.enqueue("kinds.add", args=[1, 1])
    page.wait_for_task(held, "RECEIVED")
    browser.open(f"{page.url}/task/{held}")
    browser.press("task-revoke")
    wait_for_status(db, held, "cancelled")

    db.do("select bridge.pause('later')")
    waiting = db.enqueue("kinds.add", args=[2, 2], queue="later")
    page.post(f"/api/task/revoke/{waiting}")
    wait_for_status(db, waiting, "cancelled")
    assert db.status(running) == "running"

    page.wait_for_task(running, "STARTED")
    browser.open(f"{page.url}/task/{running}")
    browser.press("task-terminate")
    wait_for_status(db, running, "cancelled")


def makes_jobs(db: Session, page: Flower) -> None:
    """All three calls of its API make rows; the third waits for the result."""
    sent = page.post("/api/task/send-task/kinds.add", args=[1, 2], kwargs={})["task-id"]
    applied = page.post("/api/task/async-apply/kinds.echo", args=[1], kwargs={"two": 2}, countdown=1)
    awaited = page.post("/api/task/apply/kinds.add", args=[3, 4])
    assert (awaited["state"], awaited["result"]) == ("SUCCESS", 7)
    assert applied["state"] == "PENDING"
    for job in (sent, applied["task-id"], awaited["task-id"]):
        wait_for_status(db, job, "succeeded")


def test_a_flower_that_knows_no_application_shows_and_ends_jobs(
    db: Session, redis_url: str, drainer: StartDrainer, worker: StartWorker, flower: StartFlower, browser: Browser, tmp_path: Path
) -> None:
    drainer()
    worker("apps.kinds", "--task-events", concurrency=1)
    # Nothing in its environment leads to the broker or to us.
    page = flower(f"--broker={redis_url}", env={"CELERY_BROKER_URL": "", "BRIDGE_DATABASE_URL": "", "BRIDGE_BROKER_URL": ""})
    started = tmp_path / "started"
    job = db.enqueue("kinds.hold", args=[str(started), str(tmp_path / "never")])
    wait_until(started.exists, 30, "the job to run")
    page.wait_for_task(job, "STARTED")
    browser.open(f"{page.url}/tasks")
    browser.wait_for_row("kinds.hold", "STARTED", str(started))
    browser.open(f"{page.url}/task/{job}")
    browser.press("task-terminate")
    wait_for_status(db, job, "cancelled")
    # It has not joined: what it sends is Celery's, as from any application that has not.
    before = db.one("select count(*) from bridge.jobs")
    page.post("/api/task/send-task/kinds.hold", args=[str(tmp_path / "plain"), str(started)])
    wait_until((tmp_path / "plain").exists, 30, "the task to run")
    assert db.one("select count(*) from bridge.jobs") == before
