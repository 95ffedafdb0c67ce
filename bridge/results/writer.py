"""The half of the result backend that every application has: what Celery marks is written to the job's row."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from celery import current_app, group, states
from celery.exceptions import Reject, WorkerLostError
from kombu.utils.imports import symbol_by_name

from bridge.application import Membership, membership
from bridge.choice import OPTION
from bridge.errors import DeadlineExceeded, PermanentError
from bridge.job import Status, job_id
from bridge.queries.results import Value
from bridge.queries.runs import NeverRan
from bridge.results.failure import error_of, original
from bridge.results.text import argument_texts, columns, json_text
from bridge.results.waiting import Waiting
from bridge.transaction.current import leave_sessions
from bridge.worker import completion, outcome, replacement

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RowWriter"]


def _remade(url: str) -> Any:
    """A backend that comes out of a pickle, for the application of the process where it does."""
    make: Callable[..., Any] = symbol_by_name("bridge.backend:make_backend")
    return make(current_app._get_current_object(), url)  # noqa: SLF001


def _joined(app: Any) -> Membership:
    """The application's membership; one that only names us as its backend has not joined, and still needs connections."""
    return membership(app) or Membership(app)


class RowWriter(Waiting):
    """Mixed over any backend: what Celery marks is written to the job's row too.

    In a pool's child the request carries the run and the outcome is the run's. In the main process there is only the delivery: it may
    end what never ran, and runs of its own children.
    """

    bridge_url = "bridge://"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bridge = _joined(self.app)

    def __reduce__(self, *_: Any) -> Any:
        """Result objects are pickled with their backend, whose class may be one that exists in this process alone."""
        return _remade, (self.bridge_url,)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing: a call is a row, and works with the result store down."""

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS) -> None:
        """Celery's hook: a task returned. The inner backend first, so that a failure to store is still the task's."""
        completed = completion.of_request(request)
        if completed is not None and completed.stands():
            result = completed.of(result)
        super().mark_as_done(task_id, result, request=request, store_result=store_result, state=state)
        if completed is not None and completed.told:
            self.note_told(request)
        run = outcome.run_of(request)
        if run is not None:
            outcome.patiently(leave_sessions)
            outcome.succeeded(self._bridge, run, self._columns(result, request) if store_result else self._unstored(result, request))

    def _unstored(self, result: Any, request: Any) -> Value:
        """What the row keeps of a task that ignores its result."""
        return Value()

    def value_of_completed(self, result: Any, request: Any) -> Value:
        """What the row of a run that is completed in a transaction will have."""
        if not outcome.ignores_result(self.app.tasks[request.task], request):
            return self._columns(result, request)
        value = self._unstored(result, request)
        return Value(outcome='{"ignored": true}') if value.outcome is None else value

    def untold(self, request: Any) -> str | None:
        """What counting the part of a chord needs that is completed before the application's own backend knows of it; JSON text."""

    def note_told(self, request: Any) -> None:
        """It is counted."""

    def make_up(self, request: Any) -> None:
        """The process of a run was lost after it had completed its job: what the application's own backend should know of that."""

    def _columns(self, result: Any, request: Any, **beyond: Any) -> Value:
        children = self.current_task_children(request) if getattr(request, "children", None) else None
        return columns(self.prepare_value(result), self.serializer, children=children, **beyond)

    def mark_as_failure(
        self, task_id: str, exc: Any, traceback: str | None = None, request: Any = None, store_result: bool = True,
        call_errbacks: bool = True, state: str = states.FAILURE,
    ) -> None:  # fmt: skip
        """Celery's hook: a task failed. The row decides whether that was the last attempt; only then does what follows a failure happen.

        Celery reports some failures twice (a hard time limit), and a run that has been superseded reports one that does not count:
        what the row does not take is not passed on either.
        """
        completed = completion.of_request(request)
        if completed is not None and completed.stands():
            return
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
            outcome.patiently(leave_sessions)
            if isinstance(exc, completion.ForgottenError):
                return outcome.forgotten(self._bridge, run, str(exc))
            final = isinstance(exc, PermanentError | Reject)
            return outcome.failed(self._bridge, run, self._error(original(exc), traceback), final=final, beyond=self._beyond(request))
        if delivery is None:
            return None
        if isinstance(exc, WorkerLostError):
            return outcome.lost(self._bridge, delivery, str(exc), outcome.child_of(request))
        error = self._error(exc, traceback)
        pid = outcome.child_of(request)
        return outcome.ended_outside(self._bridge, delivery, Status.FAILED, error, final=outcome.is_final(exc), pid=pid)

    def _error(self, exc: Any, traceback: Any) -> dict[str, Any]:
        return error_of(exc, traceback, self.serializer)

    def _beyond(self, request: Any) -> str | None:
        children = self.current_task_children(request) if getattr(request, "children", None) else None
        return json_text({"children": children}) if children else None

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, store_result: bool = True, state: str = states.REVOKED
    ) -> None:
        """Celery's hook in the main process: revoked, terminated or expired. The row knows whether that was its deadline: a failure."""
        delivery = outcome.delivery_in_hand(request)
        if delivery is not None:
            status = Status.EXPIRED if reason == "expired" else Status.CANCELLED
            error = {"type": "TaskRevokedError", "message": reason, "traceback": None}
            ended = outcome.ended_outside(self._bridge, delivery, status, error, final=True, pid=outcome.child_of(request))
            if ended is Status.FAILED:
                late = DeadlineExceeded("its deadline has passed")
                super().mark_as_failure(task_id, late, request=request, store_result=store_result)
                return
        super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, state=state)

    def mark_as_retry(self, task_id: str, exc: Any, traceback: str | None = None, request: Any = None, **options: Any) -> Any:
        """Celery's hook: a task has asked for its next attempt, which begins when this has been stored."""
        run = getattr(request, "bridge_run", None)
        if run is not None and completion.stands(run):
            return exc
        if run is not None and exc is not None:
            run.reason = self._error(exc, traceback)
        return super().mark_as_retry(task_id, exc, traceback=traceback, request=request, **options)

    def store_result(self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **options: Any) -> Any:
        """Celery's hook for every state, ``update_state`` with a state of the user's own among them."""
        stored = super().store_result(task_id, result, state, traceback=traceback, request=request, **options)
        self._note(task_id, result, state, request)
        return stored

    def apply_chord(self, header_result_args: Any, body: Any, **options: Any) -> Any:
        """Celery's hook before the parts of a chord are enqueued."""
        self._note_replacement(body)
        return super().apply_chord(header_result_args, body, **options)

    def _note_replacement(self, body: Any) -> None:
        """Whether a run replaces itself by a chord, whose body will have its id."""
        replacement.note(self._bridge, [body])

    def chord_error_from_stack(self, callback: Any, exc: Any = None) -> Any:
        """Celery's hook: a part of a chord failed, so its body will never run."""
        error = exc if exc is not None else sys.exc_info()[1]
        stored = super().chord_error_from_stack(callback, exc=exc)
        for body in callback.tasks if isinstance(callback, group) else [callback]:
            self._note_never_ran(body, error)
        return stored

    def _note(self, task_id: str, result: Any, state: str, request: Any) -> bool:
        """What the row should know of a stored state: progress, and a task that waited for one that failed.

        Returns:
            Whether a row tells this state.
        """
        if outcome.is_of_a_row(request) and request.id == task_id:
            self._note_of_run(outcome.run_of(request), result, state)
            return True
        return state in states.PROPAGATE_STATES and _is_step(request) and self._note_never_ran(request, result)

    def _note_of_run(self, run: Any, result: Any, state: str) -> None:
        if run is None:
            return
        run.noted = (state, result)
        if state not in states.ALL_STATES:
            value = columns(self.prepare_value(result), self.serializer)
            progress = {"state": state, "meta": None if value.result is None else result}
            kept = {"kept": json.loads(value.outcome)} if value.outcome else {}
            outcome.progressed(self._bridge, run, {**progress, **kept})

    def _note_never_ran(self, step: Any, exc: Any) -> bool:
        """Give a signature that will never run its row; False when its calls make none.

        Args:
            step: a signature, or the context that Celery makes of one.
            exc: what the task that it waited for failed with.
        """
        task_id, name = step.options.get("task_id"), step.task
        if task_id is None or not name or not self._bridge.takes(name, step.options.get(OPTION)):
            return False
        identity, parents = job_id(task_id), self._error(original(exc), None)
        message = f"a task that it waits for failed: {parents['type']}: {parents['message']}"
        error = json_text({**parents, "type": "ParentFailed", "message": message, "state": states.FAILURE})
        queue = self.app.amqp.router.route(dict(step.options), name)["queue"]
        args, kwargs = argument_texts(step.args, step.kwargs)
        kept = None if str(identity) == task_id else task_id
        outcome.never_ran(self._bridge, NeverRan(identity, kept, name, getattr(queue, "name", queue), args, kwargs, error))
        return True


def _is_step(request: Any) -> bool:
    """Whether this is no request but a later step of a failed chain, of which Celery makes a context to store its failure."""
    return isinstance(getattr(request, "options", None), dict) and hasattr(request, "immutable")
