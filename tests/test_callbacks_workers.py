"""Callbacks with two drainers and two workers: delivered though receivers fail, workers die in delivery, and a drainer is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from fix_receiver import SECRET, Receiver
from fix_servers import wait_until
from fix_sql import Session

import bridge
from bridge.client import forget_connections

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from fix_pairs import Pairs, StartPairs

DELIVERY = "select id, status from bridge.deliveries where callback = %s"


def allow_here(db: Session) -> None:
    db.do("""update bridge.setting set value = '["127.0.0.1"]' where name = 'webhook_hosts'""")
    db.do("update bridge.setting set value = '2' where name = 'worker_lost'")
    db.do("update bridge.setting set value = '0.5' where name = 'heartbeat'")


def hurry(db: Session, callback: str, receiver: Receiver, messages: int) -> None:
    """Make the attempts that wait for their backoff at once, until so many messages have come."""

    def come() -> bool:
        # No attempt more than that: a message has come a moment before its attempt is over, and waits again.
        waits = "callback = %s and status = 'scheduled' and attempts < %s"
        db.rows(f"select bridge.retry(id) from bridge.deliveries where {waits}", callback, messages)
        return len(receiver.messages) >= messages

    wait_until(come, 60, f"{messages} messages to {callback}")


def kill_the_worker_of(running: Pairs, identity: Any) -> None:
    """Kill the process that runs a job, and its worker, as by a power cut."""
    pid, worker = running.db.rows(
        "select j.pid, w.pid from bridge.jobs j join bridge.workers w on w.name = j.worker where j.id = %s", identity
    )[0]
    (victim,) = [process for process in running.workers if process.pid == worker]
    running.workers.remove(victim)
    victim.kill(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


def test_webhooks_arrive_though_receivers_fail_and_a_worker_and_a_drainer_are_killed(
    pairs: StartPairs, make_receiver: Callable[..., Receiver]
) -> None:
    failing, held, daily = make_receiver(503, 500), make_receiver(held=True), make_receiver()
    failing.retry_after = "7200"
    running = pairs("apps.ledger", env={"BRIDGE_WEBHOOK_SECRET": SECRET})
    db = running.db
    allow_here(db)
    db.do("select bridge.set_webhook('failures', %s, task => 'ledger.*', events => '{failed}')", failing.url())
    db.do("select bridge.schedule('report', '@daily', webhook => %s::jsonb, kwargs => '{\"full\": true}')", json.dumps(daily.url("/daily")))
    posted = db.one("select bridge.run_schedule('report')")
    own = json.dumps({"url": held.url(), "result": True})
    worked = db.one("select bridge.enqueue('ledger.work', '[21]', webhook => %s::jsonb)", own)
    wait_until(lambda: held.messages, 60, "the first message to the receiver that is held")
    running.kill_a_drainer()
    kill_the_worker_of(running, db.rows(DELIVERY, "webhook")[0][0])
    failed = db.enqueue("ledger.fail", args=["torn"], max_attempts=1)
    due = "select run_at - now() from bridge.deliveries where callback = 'failures' and status = 'scheduled'"
    [(asked,)] = wait_until(lambda: db.rows(due), 60, "the first attempt of the receiver that is busy")
    assert asked > timedelta(hours=1), "503 with Retry-After"
    hurry(db, "failures", failing, 2)
    [(asked,)] = wait_until(lambda: db.rows(due), 60, "the second attempt")
    assert asked < timedelta(minutes=1), "500: its own pause"
    hurry(db, "failures", failing, 3)
    held.gate.set()
    running.wait_for_all()

    (delivery,) = db.rows(DELIVERY, "failures")
    assert delivery[1] == "succeeded"
    assert [outcome for _, outcome in db.attempts(delivery[0])] == ["failed", "failed", "succeeded"]
    errors = db.rows("select error->>'message' from bridge.attempts where id = %s and outcome = 'failed' order by ended_at", delivery[0])
    assert [message.split(": it is tried again")[0].rpartition(" ")[2] for (message,) in errors] == ["503", "500"]
    assert len(failing.messages) == 3
    for message in failing.messages:
        assert message.is_signed_with(SECRET)
        assert message.headers["webhook-id"] == str(delivery[0])
        told = message.data["data"]
        assert (message.data["type"], told["id"], told["error"]["message"]) == ("job.failed", str(failed), "torn")

    (delivery,) = db.rows(DELIVERY, "webhook")
    assert delivery[1] == "succeeded"
    assert [outcome for _, outcome in db.attempts(delivery[0])] == ["lost", "succeeded"]
    assert {message.headers["webhook-id"] for message in held.messages} == {str(delivery[0])}
    assert len(held.messages) == 2
    assert (held.messages[1].data["data"]["id"], held.messages[1].data["data"]["result"]) == (str(worked), 42)
    (message,) = daily.messages
    assert message.is_signed_with(SECRET)
    assert (message.path, message.headers["webhook-id"], message.data["type"]) == ("/daily", str(posted), "schedule.due")
    told = message.data["data"]
    assert (told["schedule"], told["trigger_type"], told["kwargs"]) == ("report", "manual", {"full": True})
    assert db.rows("select schedule, status from bridge.schedule_runs") == [("report", "succeeded")]
    assert secret_is_nowhere(running)


def secret_is_nowhere(running: Pairs) -> bool:
    """Neither in a row nor in a log."""
    rows = running.db.rows("select j::text from bridge.jobs j union all select a::text from bridge.attempts a")
    texts = [row[0] for row in rows] + [process.log_text() for process in (*running.workers, *running.drainers)]
    return not any(SECRET in text for text in texts)


def test_who_waits_listens_or_is_notified_hears_of_all_when_a_drainer_is_killed(
    pairs: StartPairs, make_receiver: Callable[..., Receiver], dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)
    forget_connections()
    receiver = make_receiver()
    running = pairs("apps.ledger", env={"BRIDGE_NOTIFIER_OPS": f"json://127.0.0.1:{receiver.port}/ops"})
    db = running.db
    db.do("select bridge.set_channel('screens', 'jobs_done', queue => 'celery', task => 'ledger.*')")
    db.do("select bridge.set_notifier('pager', 'ops', task => 'ledger.fail')")
    jobs = [db.enqueue("ledger.work", args=[number, 0.05]) for number in range(60)]
    jobs.append(db.enqueue("ledger.fail", args=["torn"], max_attempts=1))
    heard: set[str] = set()
    answers: dict[str, Any] = {}

    def listen() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("listen jobs_done")
            listening.set()
            for notice in connection.notifies(timeout=90):
                heard.add(json.loads(notice.payload)["id"])
                if len(heard) == len(jobs):
                    return

    def wait_in_sql() -> None:
        answers["sql"] = Session(dsn).rows("select status from bridge.wait(%s, '90 seconds')", jobs)

    def wait_in_python() -> None:
        answers["python"] = [job.status for job in bridge.wait(jobs, timeout=90)]

    listening = threading.Event()
    threads = [threading.Thread(target=target, daemon=True) for target in (listen, wait_in_sql, wait_in_python)]
    threads[0].start()
    assert listening.wait(10)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: db.one("select count(*) from ledger where event = 'end'") >= 5, 60, "the first jobs")
    running.kill_a_drainer()
    running.wait_for_all()
    for thread in threads:
        thread.join(30)
    ended = ["succeeded"] * 60 + ["failed"]
    assert (answers["python"], [row[0] for row in answers["sql"]]) == (ended, ended)
    assert len(heard) >= 50  # what ended before it listened, nobody tells again
    (message,) = receiver.messages
    assert message.data["title"] == "ledger.fail failed"
    assert db.rows("select status from bridge.deliveries where callback = 'pager'") == [("succeeded",)]
    forget_connections()
