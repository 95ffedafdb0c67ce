"""`bridge drain` with boundaries between its steps: `python -m laboratory.drainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis.connection

from bridge.broker.rabbitmq import RabbitBroker
from bridge.broker.redis import RedisBroker
from bridge.cli import main
from bridge.queries import dispatch
from laboratory.boundary import first, passed, then, uncommitted

if TYPE_CHECKING:
    from collections.abc import Callable


def _in_two_steps(function: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
    """Have a boundary between a statement and its commit, and one after that; empty results pass none."""

    def call(connection: Any, *args: Any, **options: Any) -> Any:
        with uncommitted(connection, before) as ran:
            answer = function(connection, *args, **options)
            ran(answer)
        if answer:
            passed(after)
        return answer

    return call


class _Shipment:
    """While one is on its way to Redis, the next answer that is read is its confirmation."""

    under_way = False


def _publish(publish: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: RedisBroker, jobs: Any) -> Any:
        _Shipment.under_way = True
        try:
            unsendable = publish(self, jobs)
        finally:
            _Shipment.under_way = False
        passed("confirmed")
        return unsendable

    return call


def _read(read: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if _Shipment.under_way:
            passed("sent")
        return read(*args, **options)

    return call


def wrap() -> None:
    """Put the boundaries into this process's drainer."""
    dispatch.claim = _in_two_steps(dispatch.claim, "claiming", "claimed")
    dispatch.mark_published = _in_two_steps(dispatch.mark_published, "marking", "marked")
    on_redis: Any = RedisBroker
    on_rabbitmq: Any = RabbitBroker
    connection: Any = redis.connection.AbstractConnection  # TCP and unix sockets derive from it
    on_redis.publish = _publish(on_redis.publish)
    connection.read_response = _read(connection.read_response)
    on_rabbitmq._wait = first(on_rabbitmq._wait, "sent")
    on_rabbitmq.publish = then(on_rabbitmq.publish, "confirmed")


if __name__ == "__main__":
    wrap()
    main(["drain"])
