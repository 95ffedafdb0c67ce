"""Alerts with real processes: told by a worker of another queue and in the drainer's log; and an outage of the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fix_receiver import SECRET, Receiver
from fix_servers import wait_for_value, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_servers import RedisServer, StartDrainer, StartWorker
    from fix_sql import Session

STATUS = "select status from bridge.health() where component = 'broker'"


def told_to(pager: Receiver) -> dict[str, str]:
    return {"BRIDGE_WEBHOOK_SECRET": SECRET, "BRIDGE_NOTIFIER_OPS": f"json://127.0.0.1:{pager.port}/ops"}


def test_the_want_of_a_worker_is_told_by_a_worker_of_another_queue_and_by_the_drainer(
    db: Session, drainer: StartDrainer, worker: StartWorker, make_receiver: Callable[..., Receiver]
) -> None:
    receiver, pager = make_receiver(), make_receiver()
    db.do("""update bridge.setting set value = '["127.0.0.1"]' where name = 'webhook_hosts'""")
    db.do("update bridge.setting set value = '1' where name = 'alert_interval'")
    db.do("select bridge.set_alert('no_worker', lasting => '0', quiet => '10 minutes', webhook => %s, notifier => 'ops')", receiver.url())
    drains = drainer(env={"BRIDGE_TICK": "off"})  # nobody ticks: the drainer looks at the rules all the same
    worker("apps.ledger", pool="solo", concurrency=1, queues="mail", env=told_to(pager))
    waiting = db.enqueue(queue="payments")
    wait_until(lambda: receiver.messages, 60, "the message")
    (message,) = receiver.messages
    told = message.data["data"]
    assert message.is_signed_with(SECRET)
    assert (message.data["type"], told["rule"], told["subject"], told["severity"]) == ("alert.opened", "no_worker", "payments", "critical")
    assert db.rows("select distinct queue from bridge.jobs where task like 'bridge.deliver_%%'") == [("mail",)]
    wait_until(lambda: "alert opened" in drains.log_text(), 60, "a line in the drainer's log")
    assert "rule=no_worker severity=critical found=0 workers consume queue payments" in drains.log_text()
    wait_until(lambda: pager.messages, 60, "the notification")
    assert pager.messages[0].data["title"] == "critical: no_worker opened"
    assert pager.messages[0].data["message"].startswith("0 workers consume queue payments")
    db.do("select bridge.cancel(%s)", waiting)
    wait_until(lambda: len(receiver.messages) == 2, 60, "the end of it")
    assert receiver.messages[1].data["type"] == "alert.resolved"
    wait_until(lambda: "alert resolved" in drains.log_text(), 60, "its end in the drainer's log")
    assert drains.log_text().count("alert opened") == 1


def test_a_drainer_reports_an_outage_of_its_broker_and_its_end(db: Session, drainer: StartDrainer, redis_server: RedisServer) -> None:
    drainer()
    wait_for_value(db.dsn, STATUS, value="healthy")
    redis_server.stop()
    db.enqueue()
    wait_for_value(db.dsn, STATUS, value="failing", timeout=60)
    assert "cannot publish since" in db.one("select found from bridge.health() where component = 'broker'")
    redis_server.start()
    wait_for_value(db.dsn, STATUS, value="healthy", timeout=60)
    wait_for_value(db.dsn, "select last_run is not null from bridge.health() where component = 'broker'", timeout=60)
