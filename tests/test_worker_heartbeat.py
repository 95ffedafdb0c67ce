"""The heartbeat looks at what the worker holds while the worker goes on taking and ending tasks."""

from __future__ import annotations

import threading
from typing import Any

from celery.worker import state

from bridge.worker import heartbeat


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
        assert all(wanted <= set(heartbeat._held()) for _ in range(2000))
    finally:
        done.set()
        thread.join()
        state.reset_state()
