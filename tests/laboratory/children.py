"""Boundaries in the children of a worker's pool: tasks.py asks for them where it is loaded by a worker of the laboratory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.queries import runs
from laboratory.boundary import armed, first, passed, then, uncommitted

if TYPE_CHECKING:
    from collections.abc import Callable


def _start(start: Callable[..., Any]) -> Callable[..., Any]:
    def call(connection: Any, *args: Any) -> Any:
        if armed("starting"):
            runs.prepare(connection)  # a first use would fail, and end the transaction
        with uncommitted(connection, "starting") as ran:
            started = start(connection, *args)
            ran(started)
        if started:
            passed("started")
        return started

    return call


def wrap() -> None:
    """Put the boundaries into this process and the children that it will have."""
    runs.start, runs.start_many = _start(runs.start), _start(runs.start_many)
    runs.send_finish = then(first(runs.send_finish, "returned"), "finished")
    runs.send_finish_many = then(first(runs.send_finish_many, "returned"), "finished")
    runs.fail = then(first(runs.fail, "returned"), "failed")
