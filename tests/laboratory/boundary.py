"""`bridge drain` that can end, or freeze, exactly between two of its steps: `python -m laboratory.boundary`.

The product has no hook for this: its functions are wrapped here. A file that LAB_BOUNDARY names is looked for at each boundary; when it is
there and names this boundary, it is removed and the process sends itself the signal that it names.

| boundary | what has happened |
|---|---|
| claiming | the claim has run and has not committed |
| claimed | it has committed, nothing is sent |
| sent | the broker has been sent the messages, its confirmation is not read |
| confirmed | it is, the mark has not run |
| marking | the mark has run and has not committed |
| marked | it has |
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis.connection

from bridge.broker.rabbitmq import RabbitBroker
from bridge.broker.redis import RedisBroker
from bridge.cli import main
from bridge.queries import dispatch

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "LAB_BOUNDARY"
BOUNDARIES = ("claiming", "claimed", "sent", "confirmed", "marking", "marked")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def order_file(folder: Path, slot: str) -> Path:
    """The file that a process of this slot looks for."""
    return folder / f"{slot}.boundary"


def write_order(file: Path, boundary: str, action: str) -> None:
    """Have the process end or freeze when it next passes the boundary."""
    fresh = file.with_suffix(".new")
    fresh.write_text(f"{boundary} {action}")
    fresh.rename(file)


def passed(boundary: str) -> None:
    """Obey the order, if there is one for this boundary."""
    if not armed(boundary):
        return
    file = Path(os.environ[VARIABLE])
    action = file.read_text().split()[1]
    file.unlink()
    os.kill(os.getpid(), SIGNALS[action])


def armed(boundary: str) -> bool:
    """Whether there is an order for this boundary."""
    try:
        return Path(os.environ[VARIABLE]).read_text().split()[0] == boundary
    except (FileNotFoundError, KeyError):
        return False


def _in_two_steps(function: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
    """Have a boundary between a statement and its commit, and one after that; empty results pass none."""

    def call(connection: Any, *args: Any, **options: Any) -> Any:
        if not armed(before):
            answer = function(connection, *args, **options)
        else:
            with connection.transaction():
                answer = function(connection, *args, **options)
                if answer:
                    passed(before)
        if answer:
            passed(after)
        return answer

    return call


def _after(function: Callable[..., Any], boundary: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        answer = function(*args, **options)
        passed(boundary)
        return answer

    return call


def _before(function: Callable[..., Any], boundary: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        passed(boundary)
        return function(*args, **options)

    return call


class _Listening:
    """While a shipment is on its way to Redis, the next answer that is read is its confirmation."""

    publishing = False


def _publish_redis(publish: Callable[..., None]) -> Callable[..., None]:
    def call(self: RedisBroker, jobs: Any) -> None:
        _Listening.publishing = True
        try:
            publish(self, jobs)
        finally:
            _Listening.publishing = False
        passed("confirmed")

    return call


def _read_redis(read: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if _Listening.publishing:
            passed("sent")
        return read(*args, **options)

    return call


def wrap() -> None:
    """Put the boundaries into this process's drainer."""
    dispatch.claim = _in_two_steps(dispatch.claim, "claiming", "claimed")
    dispatch.mark_published = _in_two_steps(dispatch.mark_published, "marking", "marked")
    kinds: Any = (RedisBroker, RabbitBroker)
    RedisBroker.publish = _publish_redis(RedisBroker.publish)  # type: ignore[method-assign]
    # A class of redis-py that both TCP and unix sockets derive from.
    connection: Any = redis.connection.AbstractConnection
    connection.read_response = _read_redis(connection.read_response)
    kinds[1]._wait = _before(kinds[1]._wait, "sent")
    kinds[1].publish = _after(kinds[1].publish, "confirmed")


if __name__ == "__main__":
    wrap()
    main(["drain"])
