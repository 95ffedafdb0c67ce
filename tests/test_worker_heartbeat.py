"""The heartbeat looks at what the worker holds while the worker goes on taking and ending tasks."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
from celery.worker import state
from fix_servers import wait_for_value

from bridge.worker import heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.local.process import Process


class Request:
    """What the heartbeat reads of Celery's request."""

    def __init__(self, number: int) -> None:
        self.id = str(number)
        self.request_dict = {"bridge": f"{number}:00000000-0000-4000-8000-{number:012d}"}


def test_a_report_is_made_while_tasks_come_and_go() -> None:
    kept: list[Any] = [Request(number) for number in range(200)]
    for request in kept:
        state.reserved_requests.add(request)
    done = threading.Event()
    consumer = SimpleNamespace(task_buckets={})

    def come_and_go() -> None:
        while not done.is_set():
            request = Request(999)
            state.reserved_requests.add(request)  # type: ignore[arg-type]
            state.active_requests.add(request)  # type: ignore[arg-type]
            state.reserved_requests.discard(request)  # type: ignore[arg-type]
            del request

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        wanted = {request.request_dict["bridge"].partition(":")[2] for request in kept}
        assert all(wanted <= set(heartbeat._held(consumer)) for _ in range(2000))
    finally:
        done.set()
        thread.join()
        state.reset_state()


def test_messages_that_a_rate_limit_holds_back_are_reported(
    dsn: str, drainer: Callable[..., Process], worker: Callable[..., Process]
) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("update bridge.setting set value = '0.5' where name = 'heartbeat'")
        connection.execute("select bridge.enqueue('kinds.rare') from generate_series(1, 3)")
    drainer()
    worker("apps.kinds")
    wait_for_value(dsn, "select count(*) from bridge.jobs where status = 'succeeded'", value=1, timeout=60)
    wait_for_value(dsn, "select cardinality(holding) from bridge.worker", value=2, timeout=60)
