"""Remote control and shutdown where the broker is RabbitMQ, whose messages come back by themselves when a worker ends."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from fix_control import Held
from fix_servers import wait_for_value, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from fix_calls import MakeApp
    from fix_rabbitmq import Vhost
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session


@pytest.fixture
def caller_of(make_caller: MakeApp, vhost: Vhost, drainer: StartDrainer) -> Any:
    """A calling application on this virtual host, and a drainer."""
    drainer(broker_url=vhost.url)
    return make_caller(vhost.url)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_what_a_cold_shutdown_gives_up_starts_elsewhere_on_rabbitmq(
    caller_of: Any, db: Session, vhost: Vhost, worker: StartWorker, tmp_path: Path, *, late: bool
) -> None:
    env = {"BRIDGE_TEST_CONF": json.dumps({"worker_prefetch_multiplier": 4, "task_acks_late": late})}
    first = worker("apps.kinds", concurrency=1, broker_url=vhost.url, env=env)
    running = Held(caller_of, tmp_path)
    waiting = caller_of.send_task("kinds.add", (1, 2))
    wait_until(lambda: f"{waiting.id}] received" in first.log_text(), 30, "the message received")
    worker("apps.kinds", broker_url=vhost.url, env=env)
    first.kill(signal.SIGQUIT)
    assert waiting.get(timeout=15) == 3
    wait_until(lambda: running.started.read_text().count("\n") == 2, 15, "the second start")
    running.go.touch()
    assert running.result.get(timeout=30) == "held"
    assert db.attempts(running.id) == [(1, "released"), (1, "succeeded")]
    assert db.rows("select attempts, losses from bridge.jobs") == [(1, 0)] * 2
    assert first.wait(30) is not None


def test_a_revoke_and_a_purge_reach_rows_on_rabbitmq(
    caller_of: Any, db: Session, vhost: Vhost, worker: StartWorker, tmp_path: Path
) -> None:
    worker("apps.kinds", broker_url=vhost.url)
    running = Held(caller_of, tmp_path)
    running.result.revoke(terminate=True)
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (running.id,), value="cancelled")
    for number in range(3):
        caller_of.send_task("kinds.add", (number, 1), queue="nobody")
    wait_for_value(db.dsn, "select count(*) from bridge.inflight where state = 'published' and queue = 'nobody'", value=3)
    with caller_of.connection_for_write() as connection:
        assert connection.default_channel.queue_purge("nobody") == 3
    assert vhost.count("nobody") == 0
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'cancelled'", value=4)
