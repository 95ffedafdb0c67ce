"""What is examined: the servers, as far as the checks so far could reach them."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from bridge.broker import Broker
    from bridge.doctor.limits import Limits
    from bridge.queries.connection import Connection
    from bridge.settings import Settings

__all__ = ["NoAnswerError", "Subject", "within"]

T = TypeVar("T")


class NoAnswerError(BridgeError):
    """A server took the call and did not answer."""


@dataclass
class Subject:
    """Filled by the checks `database`, `schema` and `broker`, used by the others.

    Attributes:
        connection: None until the database was reached, and again when it stopped answering.
        schema_fits: whether the schema is the one that this process knows.
        broker: as ``connection``.
        now: this machine's clock.
    """

    settings: Settings
    limits: Limits
    now: Callable[[], datetime]
    connection: Connection | None = None
    schema_fits: bool = False
    broker: Broker | None = None

    @property
    def postgres(self) -> Connection:
        """The connection, for checks that run only when there is one."""
        if self.connection is None:
            raise NoAnswerError("not connected to the database", "see the row database")
        return self.connection


def within(seconds: float, call: Callable[[], T]) -> T:
    """Wait so long for a call, also one that hangs in a driver whose server went deaf; such a call is left behind.

    Raises:
        NoAnswerError: it did not return in time.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except Exception as problem:  # noqa: BLE001 - it is raised again, where somebody waits for it
            future.set_exception(problem)

    # A daemon: what hangs must not keep the process from ending.
    Thread(target=work, name="bridge-doctor", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as problem:
        if future.done():
            raise
        raise NoAnswerError(f"no answer within {seconds:g} s", "see the server's log, and what is between it and here") from problem
