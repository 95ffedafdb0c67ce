"""The heartbeat: a thread of the main process, with a connection of its own, that reports what the worker holds."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import celery
import psycopg
from celery.worker import state

import bridge
from bridge.errors import ServerError
from bridge.message import deliveries
from bridge.queries import runs, stops
from bridge.queries.connection import connect
from bridge.worker import outcome
from bridge.worker.bundle.declared import declared
from bridge.worker.bundle.request import BundleRequest
from bridge.worker.signed import refusals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.application import Membership
    from bridge.queries.connection import Connection

__all__ = ["Heartbeat", "forget_dropped"]

log = logging.getLogger("bridge.worker")

_INTERVAL = 5.0  # seconds until the setting "heartbeat" has been read
_LEAVING = 0.5  # the same once the worker stops: it may fetch until its event loop ends
_OUTAGE = (ServerError, psycopg.Error)


class Heartbeat(threading.Thread):
    """Reports every few seconds, also while the event loop stands still (the solo pool runs tasks there).

    It is woken when somebody cancels a run of this worker, and when the worker stops.
    """

    def __init__(self, joined: Membership, consumer: Any) -> None:
        super().__init__(name="bridge-heartbeat", daemon=True)
        self._joined = joined
        self._consumer = consumer
        self._worker = consumer.controller
        self._pid = os.getpid()
        self._stopped = threading.Event()
        self._leaving: set[str] | None = None  # once the worker stops: what it held then
        self._leave_at = 0.0
        self._stops: dict[str, str] = {}  # what the last report has told to stop
        self._connection: Connection | None = None
        self._interval = _INTERVAL
        self._bundles = declared(joined.app, consumer.controller)
        self._declared = False  # to the Postgres that it is connected to
        self._failures = 0  # in a row
        self._wake_end, self._wake_start = os.pipe()
        os.set_blocking(self._wake_end, False)

    def run(self) -> None:
        """Report until stopped; an outage of Postgres is logged once and waited out.

        The first try after a failure comes at once: where the connection alone was gone, the worker has reported before it is missed.
        """
        while not self._stopped.is_set():
            try:
                self._report()
                outcome.orphans_ended(self._joined)  # which are named in the report: a busy server may keep this waiting
                self._failures = 0
                self._give_back()
                self._pause()
            except _OUTAGE as error:
                if not self._failures:
                    log.warning("heartbeat fails error=%s", error)
                self._let_go()
                self._stopped.wait(self._interval if self._failures else 0.0)
                self._failures += 1

    def leave(self, after: float = 0.0) -> None:
        """The worker stops, which may take long: what it holds and has not begun goes to others now. Safe in a signal handler.

        Args:
            after: seconds to wait before, while this worker would take it back.
        """
        self._leave_at = time.monotonic() + after
        self._leaving = (self._leaving or set()) | set(_held(self._consumer))
        self._wake()

    def stop(self) -> None:
        """End the thread and say good-bye: what the worker still had is free for others. Only the first call does something."""
        if self._stopped.is_set() or os.getpid() != self._pid:
            return
        self._stopped.set()
        self._wake()
        self.join(timeout=_INTERVAL)
        with suppress(*_OUTAGE):
            outcome.orphans_ended(self._joined)
            runs.stop_worker(self._connected(), self._joined.worker_id)
            self._connected().close()

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._declared = None, False

    def _connected(self) -> Connection:
        """The connection; with less patience than others at first, because a worker that does not report for long is taken for dead."""
        if self._connection is None or self._connection.closed:
            settings = self._joined.settings
            patience = self._interval * (1 + self._failures)
            self._connection = connect(
                settings.require_database(), name="bridge heartbeat", timeout=settings.timeout, patience=patience, asynchronous_commit=True
            )
            stops.listen_for_stops(self._connection, self._joined.worker_id, self._wake)
        return self._connection

    def _wake(self) -> None:
        os.write(self._wake_start, b".")

    def _pause(self) -> None:
        """Until the next report is due, or there is a reason for one. Behind a pooler no notice comes, and the report must do."""
        interval = self._interval if self._leaving is None else min(self._interval, _LEAVING)
        stops.wait_for_stop(self._connected(), self._joined.worker_id, self._wake_end, interval)
        with suppress(BlockingIOError):
            os.read(self._wake_end, 4096)

    def _report(self) -> None:
        self._interval = runs.heartbeat_interval(self._connected())
        held = _held(self._consumer)
        holding = held.keys() | self._joined.unanswered()  # in this order: an outcome is written there before its task is over here
        stops = runs.report_worker(
            self._connected(), self._joined.worker_id, name=self._worker.hostname, pid=os.getpid(),
            pool=self._worker.pool_cls.__module__.rpartition(".")[2], concurrency=self._worker.concurrency or 1,
            queues=list(self._joined.app.amqp.queues.consume_from), holding=list(holding),
            software=f"bridge {bridge.__version__} celery {celery.__version__} python {platform.python_version()}", clock=datetime.now(UTC),
            bundles=None if self._declared else self._bundles,
        )  # fmt: skip
        self._declared = True
        for token, number in stops.items() - self._stops.items():
            if token in held:
                # By the main thread, which the pool, the message and the events belong to.
                self._consumer.call_soon(self._terminate, token, held[token], number)
        # What has not begun of a bundle cannot be stopped yet, and is tried again.
        self._stops = {token: number for token, number in stops.items() if not isinstance(held.get(token), BundleRequest)}
        self._report_refused()

    def _report_refused(self) -> None:
        counts = refusals.take()
        if counts:
            try:
                runs.note_refused(self._connected(), self._worker.hostname, counts)
            except _OUTAGE:
                refusals.give_back(counts)
                raise
            log.error("refused messages %s", " ".join(f"{reason}={count}" for reason, count in counts.items()))

    def _give_back(self) -> None:
        if self._leaving is not None and time.monotonic() >= self._leave_at:
            # What a child has is about to begin; and where a crash of Postgres forgot its start, the row says that it has not.
            begun = _by_token(_copy(state.active_requests))
            runs.release(self._connected(), list((self._leaving | set(_held(self._consumer))) - set(begun)))

    def _terminate(self, token: str, request: Any, number: str) -> None:
        signal = int(number) if number.isdecimal() else number
        try:
            if isinstance(request, BundleRequest):
                request.terminate_job(token, self._worker.pool, signal)
            else:
                log.info("terminating a cancelled run task_id=%s signal=%s", request.id, number)
                request.terminate(self._worker.pool, signal=signal)
        except NotImplementedError:
            log.warning("pool %s cannot stop a running task task_id=%s", self._worker.pool_cls, request.id)


def _held(consumer: Any) -> dict[str, Any]:
    """Deliveries of active and reserved messages, and of those that a task's rate limit holds back, by token."""
    requests = {*_copy(state.reserved_requests), *_copy(state.active_requests), *_copy(state.requests.values())}
    for bucket in _copy(consumer.task_buckets.values()):
        if bucket is not None:
            requests.update(request for request, _ in _copy(bucket.contents))
    return _by_token(requests)


def _by_token(requests: Iterable[Any]) -> dict[str, Any]:
    return {delivery.token: request for request in requests for delivery in deliveries(request.request_dict)}


def forget_dropped() -> None:
    """Take out of Celery's list what it let go of when its connection broke; to be called before the first message of a new one.

    Releases before 5.7 leave messages in it that had been taken and not begun, and run them never. Reported as held, they would not be
    published again.
    """
    alive = {*_copy(state.reserved_requests), *_copy(state.active_requests)}
    for request in _copy(state.requests.values()):
        if request not in alive and deliveries(request.request_dict):
            state.requests.pop(request.id, None)


def _copy(requests: Iterable[Any]) -> list[Any]:
    """The members of a set that the main thread goes on changing: Python refuses to walk through it then, so begin again."""
    while True:
        with suppress(RuntimeError):
            return list(requests)
