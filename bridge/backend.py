"""The result backend: outcomes reach the row, and ``AsyncResult`` reads them from it.

Alone (``bridge://``) Postgres holds states and results. Composed (``bridge+redis://…``, or any other that the application already
uses) the application's own backend keeps results as it did, and the row follows.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from celery import current_app, group, states
from celery.app import backends
from celery.backends.base import BaseBackend
from celery.exceptions import Reject, WorkerLostError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import result_from_tuple

from bridge.application import Membership, membership
from bridge.choice import OPTION
from bridge.errors import PermanentError, ServerError
from bridge.job import Status, job_id
from bridge.queries import results
from bridge.queries.results import Scope, Value
from bridge.queries.runs import NeverRan
from bridge.results.failure import error_of, original, revived
from bridge.results.meta import Reader
from bridge.results.text import argument_texts, columns, json_text
from bridge.results.waiting import Waiting
from bridge.worker import outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bridge.queries.connection import Connection
    from bridge.queries.results import Stored

__all__ = ["BridgeBackend", "RowWriter", "make_backend"]

_ALONE = ("", "bridge://", "bridge:", "disabled", "disabled://")
_OUTAGE = (ServerError, psycopg.OperationalError)
_LONGEST_PAUSE = 5.0  # seconds between two tries to go on waiting while Postgres is away


def make_backend(app: Any, url: str | None = None, **options: Any) -> Any:
    """The backend of an application: ours alone, or ours over the one that its ``result_backend`` names.

    Celery calls it through the entry point ``bridge`` (``result_backend = "bridge://"``), or because ``install`` has set it.
    """
    configured = url if url is not None else (app.conf.result_backend or "")
    inner = configured.removeprefix("bridge+")
    if inner in _ALONE or inner.startswith("bridge://"):
        return BridgeBackend(app=app, url=inner or "bridge://", **options)
    kind, inner_url = backends.by_url(inner, app.loader)
    mixed = type(f"Bridge{kind.__name__}", (RowWriter, kind), {"bridge_url": configured})
    return mixed(app=app, url=inner_url, **options)


def _remade(url: str) -> Any:
    """A backend that comes out of a pickle, for the application of the process where it does."""
    return make_backend(current_app._get_current_object(), url)  # noqa: SLF001


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
        super().mark_as_done(task_id, result, request=request, store_result=store_result, state=state)
        run = outcome.run_of(request)
        if run is not None:
            outcome.succeeded(self._bridge, run, self._columns(result, request) if store_result else Value())

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
            return outcome.failed(self._bridge, run, self._error(original(exc), traceback), final=final, beyond=self._beyond(request))
        if delivery is None:
            return None
        if isinstance(exc, WorkerLostError):
            return outcome.lost(self._bridge, delivery, str(exc))
        error = self._error(exc, traceback)
        return outcome.ended_outside(self._bridge, delivery, Status.FAILED, error, final=outcome.is_final(exc))

    def _error(self, exc: Any, traceback: Any) -> dict[str, Any]:
        return error_of(exc, traceback, self.serializer)

    def _beyond(self, request: Any) -> str | None:
        children = self.current_task_children(request) if getattr(request, "children", None) else None
        return json_text({"children": children}) if children else None

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, store_result: bool = True, state: str = states.REVOKED
    ) -> None:
        """Celery's hook in the main process: revoked, terminated or expired."""
        delivery = outcome.delivery_in_hand(request)
        if delivery is not None:
            status = Status.EXPIRED if reason == "expired" else Status.CANCELLED
            error = {"type": "TaskRevokedError", "message": reason, "traceback": None}
            outcome.ended_outside(self._bridge, delivery, status, error, final=True)
        super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, state=state)

    def mark_as_retry(self, task_id: str, exc: Any, traceback: str | None = None, request: Any = None, **options: Any) -> Any:
        """Celery's hook: a task has asked for its next attempt, which begins when this has been stored."""
        run = getattr(request, "bridge_run", None)
        if run is not None and exc is not None:
            run.reason = self._error(exc, traceback)
        return super().mark_as_retry(task_id, exc, traceback=traceback, request=request, **options)

    def store_result(self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **options: Any) -> Any:
        """Celery's hook for every state, ``update_state`` with a state of the user's own among them."""
        stored = super().store_result(task_id, result, state, traceback=traceback, request=request, **options)
        self._note(task_id, result, state, request)
        return stored

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


class BridgeBackend(RowWriter, BaseBackend):
    """Postgres alone."""

    supports_autoexpire = True  # days of history are dropped, stored results deleted by the tick
    supports_native_join = True

    @property
    def _reader(self) -> Reader:
        return Reader(self.accept, self.exception_to_python)

    def as_uri(self, include_password: bool = False) -> str:
        """What ``celery report`` shows; there is no password in it."""
        return "bridge://"

    def exception_to_python(self, exc: Any) -> Any:
        """Celery's way back to an exception, and its class also where its constructor wants other arguments than it kept."""
        found = super().exception_to_python(exc)
        return revived(found, exc) if isinstance(exc, dict) else found

    def store_result(self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any) -> Any:
        """Keep a state that is no run's: by hand, of a task that went straight to the broker, of a step that will never run.

        What becomes of a run is written by the hooks above, which name it; a state of the user's own is the run's progress.
        """
        if not self._note(task_id, result, state, request):
            self._store(task_id, state, self._stored_value(result, state, traceback, request))
        return result

    def _stored_value(self, result: Any, state: str, traceback: str | None, request: Any) -> Value:
        if state in states.EXCEPTION_STATES and isinstance(result, BaseException):
            return Value(error=json_text(self._error(original(result), traceback)), outcome=self._beyond(request))
        return self._columns(result, request)

    def _store(self, task_id: str, state: str, value: Value) -> None:
        self._ask(lambda connection: results.store(connection, job_id(task_id), task_id, state, value, self._keeping()))

    def _keeping(self) -> timedelta | None:
        """How long the application keeps results; None for ever."""
        return timedelta(seconds=self.expires) if self.expires else None

    def _ask(self, question: Callable[[Connection], Any]) -> Any:
        """Put a question that may be repeated; once more when the connection had broken unnoticed, as after a restart of Postgres."""
        connection = self._bridge.connections.get()
        try:
            return question(connection)
        except ServerError:
            if not connection.closed:
                raise
            return question(self._bridge.connections.get())

    @property
    def _scope(self) -> Scope:
        return Scope(bool(self.app.conf.find_value_for_key("extended", "result")), self._keeping())

    def _known(self, task_id: str) -> Stored | None:
        found = self._ask(lambda connection: results.many(connection, [job_id(task_id)], self._scope))
        return found[0] if found else None

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        return self._reader.meta(task_id, self._known(task_id))

    def task_result_exists(self, task_id: str) -> bool:
        """Whether the id is known: also of a job that still waits, which its state alone does not tell from an id that never was."""
        return self._known(task_id) is not None

    def wait_for(
        self, task_id: str, timeout: float | None = None, interval: float = 0.5, no_ack: bool = True, on_interval: Any = None,
        on_message: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Wait for one task, woken by NOTIFY.

        Raises:
            celery.exceptions.TimeoutError: it had not ended in time.
        """
        for _, meta in self.get_many([task_id], timeout, interval, on_message=on_message, on_interval=on_interval):
            return meta
        raise CeleryTimeoutError("The operation timed out.")

    def wait_for_pending(
        self, result: Any, timeout: float | None = None, interval: float = 0.5, no_ack: bool = True, on_message: Any = None,
        on_interval: Any = None, callback: Any = None, propagate: bool = True,
    ) -> Any:  # fmt: skip
        """Celery's hook behind ``AsyncResult.get``; ``on_message`` is called with every state that is seen on the way."""
        meta = self.wait_for(result.id, timeout, interval, on_interval=on_interval, on_message=on_message)
        result._maybe_set_cache(meta)  # noqa: SLF001 - as Celery's own backends do
        return result.maybe_throw(propagate=propagate, callback=callback)

    def get_many(
        self, task_ids: Iterable[str], timeout: float | None = None, interval: float = 0.5, no_ack: bool = True, on_message: Any = None,
        on_interval: Any = None, max_iterations: int | None = None, **_: Any,
    ) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
        """Yield (id, meta) of each task as it ends.

        Args:
            task_ids: of whom.
            timeout: seconds for all of them; None waits for ever.
            interval: most seconds between two calls of ``on_interval``.
            no_ack: of other backends.
            on_message: called with each state that is seen on the way.
            on_interval: called whenever the wait was interrupted.
            max_iterations: give what is there and do not wait, when set.

        Raises:
            celery.exceptions.TimeoutError: not all of them had ended in time.
            UncommittedError: one of them is of a transaction that has not committed.
        """
        self._ensure_not_eager()
        names = {job_id(task_id): task_id for task_id in task_ids}
        if not max_iterations:
            self.refuse_uncommitted(names.values())
        until = time.monotonic() if max_iterations else None if timeout is None else time.monotonic() + timeout
        seen = _Changes(self._reader, names, on_message) if on_message else None
        for stored in self._ended(set(names), until, interval or 0.5, on_interval, seen):
            meta = self._reader.meta(names[stored.id], stored)
            if on_message:
                on_message(meta)
            yield names.pop(stored.id), meta
        if names and not max_iterations:
            raise CeleryTimeoutError("The operation timed out.")

    def _ended(self, left: set[Any], until: float | None, interval: float, waking: Any, seen: Any) -> Iterator[Stored]:
        """Each as it ends. While Postgres is away, the wait goes on."""
        pause, waiting = 0.1, True
        while left and waiting:
            try:
                connection = self._bridge.connections.get()
                for stored in results.wait(connection, left, self._scope, until=until, interval=interval, waking=waking, seen=seen):
                    left.discard(stored.id)
                    pause = 0.1
                    yield stored
                waiting = False
            except _OUTAGE:
                if until is not None and time.monotonic() + pause > until:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _forget(self, task_id: str) -> None:
        self._ask(lambda connection: results.forget(connection, job_id(task_id)))

    def _save_group(self, group_id: str, result: Any) -> Any:
        members = json_text(result.as_tuple())
        self._ask(lambda connection: results.save_group(connection, job_id(group_id), members, self._keeping()))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        members = self._ask(lambda connection: results.restore_group(connection, job_id(group_id)))
        return None if members is None else {"result": result_from_tuple(json.loads(members), self.app)}

    def _delete_group(self, group_id: str) -> None:
        self._ask(lambda connection: results.delete_group(connection, job_id(group_id)))

    def cleanup(self) -> None:
        """What the task ``celery.backend_cleanup`` calls; the tick does the same every hour."""
        self._ask(results.clean)

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Whether ``result_backend_always_retry`` may repeat what raised this."""
        return isinstance(exc, _OUTAGE)


class _Changes:
    """Tells ``on_message`` of each state once."""

    def __init__(self, reader: Reader, names: dict[Any, str], on_message: Callable[[dict[str, Any]], Any]) -> None:
        self._reader, self._names, self._on_message = reader, names, on_message
        self._last: dict[Any, Any] = {}

    def __call__(self, stored: Stored) -> None:
        meta = self._reader.meta(self._names[stored.id], stored)
        told = meta["status"], stored.progress
        if meta["status"] != states.PENDING and self._last.get(stored.id) != told:
            self._last[stored.id] = told
            self._on_message(meta)


def _is_step(request: Any) -> bool:
    """Whether this is no request but a later step of a failed chain, of which Celery makes a context to store its failure."""
    return isinstance(getattr(request, "options", None), dict) and hasattr(request, "immutable")
