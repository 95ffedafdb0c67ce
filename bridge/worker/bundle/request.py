"""A bundle in the worker's main process: what becomes of its jobs when the process that runs them ends, or is asked to stop one."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from celery.platforms import signals
from celery.worker import state
from celery.worker.request import Request

from bridge.application import membership
from bridge.message import BUNDLE_TASK, deliveries
from bridge.worker import outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from billiard.einfo import ExceptionInfo

    from bridge.application import Membership
    from bridge.message import Delivery

__all__ = ["BundleRequest", "register"]

log = logging.getLogger("bridge.worker")


def register(app: Any) -> None:
    """Give an application the task that bundles are messages of."""

    def bundle(*_jobs: Any) -> None:
        raise RuntimeError(f"{BUNDLE_TASK} is run by a worker that has joined the bridge, and by nobody else")

    app.task(
        name=BUNDLE_TASK, shared=False, ignore_result=True, acks_late=False, send_events=False, rate_limit=None, bridge=False,
        Request=BundleRequest,
    )(bundle)  # fmt: skip


class BundleRequest(Request):
    """A message that has several jobs. Of the message itself nobody is told anything."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.deliveries: list[Delivery] = deliveries(self.request_dict)
        joined = self._joined
        self.request_dict["bridge_events"] = bool(self._eventer and self._eventer.enabled)
        self.request_dict["bridge_soft_limit"] = None if joined is None else joined.soft_limit

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "on_success" in cls.__dict__:  # Celery derives a class for each task, whose own calls no other
            cls.on_success = _on_success
            cls.execute_using_pool = _without_limits(cls.execute_using_pool)

    @property
    def _joined(self) -> Membership | None:
        return membership(self._app)

    def revoked(self) -> bool:
        """Celery's question before the start: its jobs are asked about one by one."""
        return False

    def on_failure(self, exc_info: ExceptionInfo, *_args: Any, **_options: Any) -> None:
        """Its process has died, or could not go on: the job that it was at is lost, the others go back uncharged, alone from now on."""
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        state.task_ready(self)
        self.acknowledge()
        joined, pid = self._joined, self.worker_pid
        if joined is None:
            return
        at = joined.board.at(pid)
        log.warning("a bundle broke off jobs=%d at=%s error=%s", len(self.deliveries), at, exc)
        outcome.patiently(lambda: outcome.ended_before(joined, pid))
        for delivery in self.deliveries:
            if delivery.seq == at:
                outcome.lost(joined, delivery, str(exc), pid)
        outcome.unbundled(joined, [one.token for one in self.deliveries if one.seq != at], pid, alone=True)

    def terminate_job(self, token: str, pool: Any, signal: Any) -> None:
        """Stop the process that runs one of its jobs; one that has not begun will find that it is cancelled."""
        joined = self._joined
        wanted = next((one.seq for one in self.deliveries if one.token == token), None)
        if joined is not None and wanted is not None and joined.board.at(self.worker_pid) == wanted:
            pool.terminate_job(self.worker_pid, signals.signum(signal))


def _without_limits(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Hand a bundle to the pool, whose limits are meant for a job: they are kept job by job, by the process that runs them."""

    def execute_using_pool(self: Any, pool: Any, **options: Any) -> Any:
        result = execute(self, pool, **options)
        # Called when its process begins. A timer that nobody needs stays in Celery's memory until it is due, even when it is cancelled.
        if hasattr(result, "_on_timeout_set"):
            result._on_timeout_set = None  # noqa: SLF001
        return result

    return execute_using_pool


def _on_success(self: Any, failed__retval__runtime: Any, **_options: Any) -> None:
    """Its process is through with it: give back what it has not begun, count, and tell those who watch."""
    failed, retval, _runtime = failed__retval__runtime
    if failed:
        self.on_failure(retval)
        return
    state.task_ready(self)
    told = json.loads(retval)
    if told["left"]:
        outcome.unbundled(self._joined, told["left"], self.worker_pid, alone=False)
    for name, count in told["counts"].items():
        state.total_count[name] += count
    for kind, fields in told["events"]:
        self._eventer.send(kind, **fields)
