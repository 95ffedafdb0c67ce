"""The heartbeat: a thread of the main process, with a connection of its own, that reports what the worker holds."""

from __future__ import annotations

import logging
import os
import platform
import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import celery
import psycopg
from celery.worker import state

import bridge
from bridge.errors import ServerError
from bridge.message import HEADER, Delivery
from bridge.queries import runs
from bridge.queries.connection import connect

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from bridge.application import Membership
    from bridge.queries.connection import Connection

__all__ = ["Heartbeat"]

log = logging.getLogger("bridge.worker")

_INTERVAL = 5.0  # seconds until the setting "heartbeat" has been read
_OUTAGE = (ServerError, psycopg.Error)


class Heartbeat(threading.Thread):
    """Reports every few seconds, also while the event loop stands still (the solo pool runs tasks there)."""

    def __init__(self, joined: Membership, consumer: Any) -> None:
        super().__init__(name="bridge-heartbeat", daemon=True)
        self._joined = joined
        self._consumer = consumer
        self._worker = consumer.controller
        self._stopped = threading.Event()
        self._connection: Connection | None = None
        self._interval = _INTERVAL

    def run(self) -> None:
        """Report until stopped; an outage of Postgres is logged once and waited out."""
        well = True
        while True:
            try:
                self._report()
                well = True
            except _OUTAGE as error:
                if well:
                    log.warning("heartbeat fails error=%s", error)
                well = False
                self._connection = None
            if self._stopped.wait(self._interval):
                break

    def stop(self) -> None:
        """End the thread and say good-bye: what the worker still holds is free for others."""
        self._stopped.set()
        self.join(timeout=_INTERVAL)
        with suppress(*_OUTAGE):
            runs.stop_worker(self._connected(), self._joined.worker_id)
            self._connected().close()

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            settings = self._joined.settings
            self._connection = connect(
                settings.require_database(), name="bridge heartbeat", timeout=settings.timeout, asynchronous_commit=True
            )
        return self._connection

    def _report(self) -> None:
        self._interval = runs.heartbeat_interval(self._connected())
        held = _held(self._consumer)
        cancelled = runs.report_worker(
            self._connected(), self._joined.worker_id, name=self._worker.hostname, pid=os.getpid(),
            pool=self._worker.pool_cls.__module__.rpartition(".")[2], concurrency=self._worker.concurrency or 1,
            queues=list(self._joined.app.amqp.queues.consume_from), holding=list(held),
            software=f"bridge {bridge.__version__} celery {celery.__version__} python {platform.python_version()}", clock=datetime.now(UTC),
        )  # fmt: skip
        for token in cancelled:
            self._terminate(token, held)

    def _terminate(self, token: UUID, held: dict[str, Any]) -> None:
        request = held.get(str(token))
        if request is None:
            return
        try:
            log.info("terminating a cancelled run task_id=%s", request.id)
            request.terminate(self._worker.pool, signal="TERM")
        except NotImplementedError:
            log.warning("pool %s cannot stop a running task task_id=%s", self._worker.pool_cls, request.id)


def _held(consumer: Any) -> dict[str, Any]:
    """Deliveries of active and reserved messages, and of those that a task's rate limit holds back, by token."""
    requests = {*_copy(state.reserved_requests), *_copy(state.active_requests), *_copy(state.requests.values())}
    for bucket in _copy(consumer.task_buckets.values()):
        if bucket is not None:
            requests.update(request for request, _ in _copy(bucket.contents))
    found = ((Delivery.parse(request.request_dict.get(HEADER)), request) for request in requests)
    return {delivery.token: request for delivery, request in found if delivery is not None}


def _copy(requests: Iterable[Any]) -> list[Any]:
    """The members of a set that the main thread goes on changing: Python refuses to walk through it then, so begin again."""
    while True:
        with suppress(RuntimeError):
            return list(requests)
