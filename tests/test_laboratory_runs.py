"""Short fixed runs of the laboratory find no sin, and what they say shows that each fault did strike."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from amqp.exceptions import NotFound
from fix_clock import HOW_TO_GET_IT as HOW_TO_GET_FAKETIME
from fix_clock import find_faketime
from fix_full import REMEDY, NoDiskError, SmallDisk
from fix_servers import missing, wait_until
from kombu import Connection
from laboratory.boundary import VARIABLE, order_file
from laboratory.faults import FAULTS, MISSED, OBEYED, ORDERED, Cost, MissedError
from laboratory.runner import Plan, run
from laboratory.slot import Slot
from laboratory.surroundings import LACKS
from laboratory.tasks import QUEUES

from bridge.local.broker import HOW_TO_GET_IT, find_redis

if TYPE_CHECKING:
    from pathlib import Path

    from fix_rabbitmq import RabbitServer
    from laboratory.world import World


@pytest.mark.timeout(400)
@pytest.mark.parametrize("having", [(), ("bundles",)], ids=["alone", "bundles"])
def test_nothing_is_lost_and_nothing_runs_twice_while_processes_die_under_load(having: tuple[str, ...]) -> None:
    if find_redis() is None:
        missing("redis-server", HOW_TO_GET_IT)
    faults = (
        "drainer-kill-sent",
        "drainer-kill-confirmed",
        "drainer-freeze-claimed",
        "child-kill-started",
        "worker-kill",
        "worker-main-freeze",
    )
    report = run(Plan(seconds=10, seed=6, faults=faults, every=1.4, rate=8, having=having, patience=60))
    assert report.sins == [], report.lines
    assert report.struck == set(faults), report.lines
    assert report.counts["asked"] > 30


@pytest.mark.timeout(400)
def test_a_failover_costs_its_tail_and_a_full_disk_and_wrong_clocks_cost_nothing(server_folder: Path) -> None:
    if find_redis() is None:
        missing("redis-server", HOW_TO_GET_IT)
    if find_faketime() is None:
        missing("libfaketime", HOW_TO_GET_FAKETIME)
    try:
        SmallDisk(server_folder / "try", 1 << 20).remove()
    except NoDiskError:
        missing("right to mount a small filesystem", REMEDY)
    faults = ("failover-async", "disk-full-log", "clock-worker")
    report = run(Plan(seconds=11, seed=33, faults=faults, every=3, rate=10, trace=True, patience=60))
    said = "\n".join(report.lines)
    assert report.sins == [], said
    assert report.struck == set(faults), said
    assert "disk-full-log: 0 complaints" not in said
    assert "failover-async: the primary is pg" in said


RABBIT = (
    "rabbitmq-restart",
    "rabbitmq-connections-close",
    "drainer-kill-confirmed",
    "worker-kill",
    "net-half-open-drainer-broker",
    "net-forget-worker-broker",
)
SERVERS = (
    "redis-restart",
    "redis-flush",
    "redis-full",
    "postgres-crash",
    "postgres-connections",
    "pgbouncer-kill",
    "pgbouncer-stop",
    "net-stall-worker-postgres",
    "net-slow-drainer-postgres",
    "net-half-open-pgbouncer-postgres",
    "net-half-open-client-broker",
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "plan",
    [
        # RabbitMQ needs long to stop and start on a busy machine: its seed has that at the end.
        Plan(seconds=13, seed=25, broker="rabbitmq", faults=RABBIT, every=2, rate=8, patience=60),
        Plan(seconds=18, seed=25, faults=SERVERS, every=2, rate=8, having=("pgbouncer",), patience=60),
    ],
    ids=["rabbitmq", "redis and pgbouncer"],
)
def test_nothing_is_lost_and_nothing_runs_twice_while_servers_and_lines_fail_under_load(plan: Plan) -> None:
    for word in (plan.broker, *plan.having):
        if lack := LACKS[word]():
            missing(word, lack)
    report = run(plan)
    said = "\n".join(report.lines)
    assert report.sins == [], said
    assert report.struck == set(plan.faults), said


def test_a_queue_is_gone_when_the_laboratory_says_so(rabbitmq: RabbitServer) -> None:
    with Connection(rabbitmq.url("/")) as connection, connection.channel() as channel:
        for queue in QUEUES:
            channel.queue_declare(queue, durable=True, auto_delete=False)
        fault: Any = FAULTS["rabbitmq-queue-delete"](Random(1))  # noqa: S311
        gone = fault.do(rabbitmq)
        with pytest.raises(NotFound, match=gone):
            channel.queue_declare(gone, passive=True)
        other = next(queue for queue in QUEUES if queue != gone)
        with connection.channel() as fresh:
            assert fresh.queue_declare(other, passive=True)
            fresh.queue_delete(other)


def test_the_laboratory_knows_whether_an_order_was_obeyed(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    slot = Slot("drainer1", "drainer", ["true"], {}, tmp_path)
    slot.start()
    world: Any = SimpleNamespace(targets=lambda _role: [slot])
    ordered, beside = (FAULTS["drainer-kill-sent"](Random(1)) for _ in range(2))  # noqa: S311
    ordered.strike(world)
    assert ordered.became == ORDERED
    with pytest.raises(MissedError, match="drainer1 has another order"):
        beside.strike(world)
    ordered.mend(world)
    assert ordered.became == MISSED, "nobody came by"
    beside.strike(world)
    words = [sys.executable, "-c", "from laboratory import boundary; boundary.passed('claimed'); boundary.passed('sent'); print('alive')"]
    path = os.pathsep.join(sys.path)
    came_by = subprocess.run(
        words, env={**os.environ, VARIABLE: str(order_file(tmp_path, "drainer1")), "PYTHONPATH": path}, capture_output=True, check=False
    )
    assert (came_by.returncode, came_by.stdout) == (-signal.SIGKILL, b"")
    beside.mend(world)
    assert beside.became == OBEYED
    slot.end()


def test_another_fault_strikes_while_a_process_stands_between_two_steps_and_then_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    seen: list[str] = []

    class Seen(FAULTS["redis-flush"]):  # type: ignore[misc]
        def strike(self, _world: World) -> Cost:
            seen.append("strike" if slot.stands() else "too late")
            return Cost()

        def mend(self, _world: World) -> None:
            seen.append("mend" if slot.stands() else "too late")

    program = "from laboratory import boundary\nwhile True: boundary.passed('sent')"
    slot = Slot("drainer1", "drainer", [sys.executable, "-c", program], {"PYTHONPATH": os.pathsep.join(sys.path)}, tmp_path)
    world: Any = SimpleNamespace(targets=lambda _role: [slot], say=lambda _line: None)
    kind: Any = FAULTS["drainer-sent-redis-flush"]
    meanwhile = type("Meanwhile", (kind,), {"other": Seen})(Random(1))  # noqa: S311
    meanwhile.strike(world)
    slot.start()
    wait_until(lambda: not meanwhile.waits())
    meanwhile.mend(world)
    assert (meanwhile.became, seen) == (OBEYED, ["strike", "mend"])
    wait_until(lambda: not slot.stands())
    assert slot.process.alive
    slot.end()
