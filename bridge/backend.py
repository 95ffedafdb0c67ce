"""The result backend: outcomes reach the row, and ``AsyncResult`` reads them from it.

Alone (``bridge://``) Postgres holds states and results. Composed (``bridge+redis://…``, or any other that the application already
uses) the application's own backend keeps results as it did, and the row follows.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from celery import group, states
from celery.app import backends
from celery.backends.base import Backend, BaseBackend
from celery.exceptions import Reject, WorkerLostError
from celery.exceptions import TimeoutError as CeleryTimeoutError

from bridge.application import Membership, membership
from bridge.choice import OPTION
from bridge.errors import PermanentError
from bridge.job import Job, Status, job_id
from bridge.queries import jobs
from bridge.queries.runs import NeverRan
from bridge.worker import outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BridgeBackend", "RowWriter", "make_backend"]

_ALONE = ("", "bridge://", "bridge:", "disabled", "disabled://")
_STATES = {
    Status.RUNNING: states.STARTED, Status.SUCCEEDED: states.SUCCESS, Status.FAILED: states.FAILURE,
    Status.CANCELLED: states.REVOKED, Status.EXPIRED: states.REVOKED,
}  # fmt: skip


def make_backend(app: Any, url: str | None = None, **options: Any) -> Any:
    """The backend of an application: ours alone, or ours over the one that its ``result_backend`` names.

    Celery calls it through the entry point ``bridge`` (``result_backend = "bridge://"``), or because ``install`` has set it.
    """
    configured = url if url is not None else (app.conf.result_backend or "")
    inner = configured.removeprefix("bridge+")
    if inner in _ALONE or inner.startswith("bridge://"):
        return BridgeBackend(app=app, url=inner or "bridge://", **options)
    kind, inner_url = backends.by_url(inner, app.loader)
    mixed = type(f"Bridge{kind.__name__}", (RowWriter, kind), {})
    return mixed(app=app, url=inner_url, **options)


def _joined(app: Any) -> Membership:
    """The application's membership; one that only names us as its backend has not joined, and still needs connections."""
    return membership(app) or Membership(app)


class RowWriter(Backend):
    """Mixed over any backend: what Celery marks is written to the job's row too.

    In a pool's child the request carries the run and the outcome is the run's. In the main process there is only the delivery: it may
    end what never ran, and runs of its own children.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bridge = _joined(self.app)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing: a call is a row, and works with the result store down."""

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS) -> None:
        """Celery's hook: a task returned. The inner backend first, so that a failure to store is still the task's."""
        super().mark_as_done(task_id, result, request=request, store_result=store_result, state=state)
        run = outcome.run_of(request)
        if run is not None:
            result_text, beyond = outcome.result_columns(self.prepare_value(result)) if store_result else (None, None)
            outcome.succeeded(self._bridge, run, result_text, beyond)

    def mark_as_failure(
        self, task_id: str, exc: Any, traceback: str | None = None, request: Any = None, store_result: bool = True,
        call_errbacks: bool = True, state: str = states.FAILURE,
    ) -> None:  # fmt: skip
        """Celery's hook: a task failed. The row decides whether that was the last attempt; only then does what follows a failure happen.

        Celery reports some failures twice (a hard time limit), and a run that has been superseded reports one that does not count:
        what the row does not take is not passed on either.
        """
        ended = self._end_failed(exc, traceback, request) if outcome.is_of_a_row(request) else Status.FAILED
        if ended is None:
            return
        if ended.final:
            super().mark_as_failure(
                task_id,
                exc,
                traceback=traceback,
                request=request,
                store_result=store_result,
                call_errbacks=call_errbacks,
                state=state,
            )
        elif store_result:
            self.store_result(task_id, exc, states.RETRY, traceback=traceback, request=request)

    def _end_failed(self, exc: Any, traceback: str | None, request: Any) -> Status | None:
        run, delivery = outcome.run_of(request), outcome.delivery_of(request)
        if run is not None:
            final = isinstance(exc, PermanentError | Reject)
            return outcome.failed(self._bridge, run, outcome.error_of(exc, traceback), final=final, beyond=self._beyond(exc))
        if delivery is None:
            return None
        if isinstance(exc, WorkerLostError):
            return outcome.lost(self._bridge, delivery, str(exc))
        return outcome.ended_outside(
            self._bridge,
            delivery,
            Status.FAILED,
            outcome.error_of(exc, traceback),
            final=outcome.is_final(exc),
            beyond=self._beyond(exc),
        )

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, store_result: bool = True, state: str = states.REVOKED
    ) -> None:
        """Celery's hook in the main process: revoked, terminated or expired."""
        delivery = outcome.delivery_of(request)
        if delivery is not None:
            status = Status.EXPIRED if reason == "expired" else Status.CANCELLED
            error = {"type": "TaskRevokedError", "message": reason, "traceback": None}
            outcome.ended_outside(self._bridge, delivery, status, error, final=True, beyond=None)
        super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, state=state)

    def store_result(self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **options: Any) -> Any:
        """Celery's hook for every state, ``update_state`` with a state of the user's own among them."""
        self._note(task_id, result, state, request)
        return super().store_result(task_id, result, state, traceback=traceback, request=request, **options)

    def chord_error_from_stack(self, callback: Any, exc: Any = None) -> Any:
        """Celery's hook: a part of a chord failed, so its body will never run."""
        error = exc if exc is not None else sys.exc_info()[1]
        stored = super().chord_error_from_stack(callback, exc=exc)
        for body in callback.tasks if isinstance(callback, group) else [callback]:
            self._note_never_ran(body, error)
        return stored

    def _note(self, task_id: str, result: Any, state: str, request: Any) -> None:
        """What the row should know of a stored state: progress, and a task that waited for one that failed."""
        run = outcome.run_of(request)
        if run is not None:
            run.noted = (state, result)
            if state not in states.ALL_STATES:
                outcome.progressed(self._bridge, run, {"state": state, "meta": result})
        elif state in states.PROPAGATE_STATES and _is_step(request):
            self._note_never_ran(request, result)

    def _note_never_ran(self, step: Any, exc: Any) -> None:
        """Give a signature that will never run its row.

        Args:
            step: a signature, or the context that Celery makes of one.
            exc: what the task that it waited for failed with.
        """
        task_id, name = step.options.get("task_id"), step.task
        if task_id is None or not name or not self._bridge.takes(name, step.options.get(OPTION)):
            return
        identity, parents = job_id(task_id), outcome.error_of(exc, None)
        message = f"a task that it waits for failed: {parents['type']}: {parents['message']}"
        error = {**parents, "type": "ParentFailed", "message": message, "state": states.FAILURE, **(self._beyond(exc) or {})}
        queue = self.app.amqp.router.route(dict(step.options), name)["queue"]
        args, kwargs = outcome.argument_texts(step.args, step.kwargs)
        kept = None if str(identity) == task_id else task_id
        outcome.never_ran(
            self._bridge, NeverRan(identity, kept, name, getattr(queue, "name", queue), args, kwargs, outcome.json_text(error))
        )

    def _beyond(self, exc: Any) -> dict[str, Any] | None:
        """What rebuilding the exception needs beyond its text."""
        prepared = self.prepare_exception(exc, serializer="json") if isinstance(exc, BaseException) else None
        return {"exception": prepared} if prepared else None


class BridgeBackend(RowWriter, BaseBackend):
    """Postgres alone."""

    supports_autoexpire = True  # days of history are dropped
    supports_native_join = True

    def as_uri(self, include_password: bool = False) -> str:
        """What ``celery report`` shows; there is no password in it."""
        return "bridge://"

    def store_result(self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any) -> Any:
        """Final states are written by the hooks above, with their run; a state of the user's own is progress."""
        self._note(task_id, result, state, request)
        return result

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        """State and result of one task, as Celery's result objects want them."""
        self._ensure_not_eager()
        if cache and task_id in self._cache:
            return dict(self._cache[task_id])
        job = jobs.get(self._bridge.connections.get(), job_id(task_id))
        meta = self._meta(task_id, job)
        if cache and meta["status"] in states.READY_STATES:
            self._cache[task_id] = meta
        return meta

    def _meta(self, task_id: str, job: Job | None) -> dict[str, Any]:
        if job is None:
            return {"status": states.PENDING, "result": None, "traceback": None, "children": [], "task_id": task_id}
        state = (job.error or {}).get("state") or _STATES.get(job.status, states.RETRY if job.error else states.PENDING)
        result: Any = json.loads(job.outcome["json"]) if job.outcome and "json" in job.outcome else job.result
        if job.status is Status.RUNNING and job.progress and "state" in job.progress:
            state, result = job.progress["state"], job.progress.get("meta")
        if state in states.EXCEPTION_STATES:
            result = self.exception_to_python(_exception(job))
        return {
            "status": state, "result": result, "traceback": (job.error or {}).get("traceback"), "children": [], "task_id": task_id,
            "date_done": job.finished_at.isoformat() if job.finished_at else None, "name": job.task, "worker": job.worker,
            "args": job.args, "kwargs": job.kwargs, "queue": job.queue, "retries": max(job.attempts - 1, 0),
        }  # fmt: skip

    def wait_for(
        self, task_id: str, timeout: float | None = None, interval: float = 0.5, no_ack: bool = True, on_interval: Any = None
    ) -> dict[str, Any]:
        """Wait for one task, woken by NOTIFY.

        Raises:
            celery.exceptions.TimeoutError: it had not ended in time.
        """
        self._ensure_not_eager()
        connection = self._bridge.connections.get()
        for job in jobs.wait(connection, [job_id(task_id)], timeout):
            return self._meta(task_id, job)
        raise CeleryTimeoutError("The operation timed out.")

    def get_many(self, task_ids: Iterable[str], timeout: float | None = None, **_: Any) -> Any:
        """Yield (id, meta) of each task as it ends."""
        names = {job_id(task_id): task_id for task_id in task_ids}
        waiting = jobs.wait(self._bridge.connections.get(), list(names), timeout)
        for job in waiting:
            names_id = names.pop(job.id)
            yield names_id, self._meta(names_id, job)
        if names:
            raise CeleryTimeoutError("The operation timed out.")

    def _forget(self, task_id: str) -> None:
        """Rows are kept for their retention: forgetting empties the cache only."""
        self._cache.pop(task_id, None)


def _is_step(request: Any) -> bool:
    """Whether this is no request but a later step of a failed chain, of which Celery makes a context to store its failure."""
    return isinstance(getattr(request, "options", None), dict) and hasattr(request, "immutable")


def _exception(job: Job) -> dict[str, Any]:
    error = job.error or {}
    kept = error.get("exception")
    if isinstance(kept, dict):
        return kept
    if job.status in {Status.CANCELLED, Status.EXPIRED}:
        message = error.get("message") or job.status.value
        return {"exc_type": "TaskRevokedError", "exc_message": [message], "exc_module": "celery.exceptions"}
    return {
        "exc_type": error.get("type") or "Exception",
        "exc_message": [error.get("message") or ""],
        "exc_module": error.get("module"),
    }
