"""The result backend of an application that keeps results in Postgres alone."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import result_from_tuple

from bridge.job import job_id
from bridge.queries import results
from bridge.queries.connection import OUTAGE
from bridge.queries.results import Scope, Value
from bridge.results.chord import ChordJoiner
from bridge.results.failure import original, revived
from bridge.results.meta import Reader
from bridge.results.text import json_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bridge.queries.connection import Connection
    from bridge.queries.results import Stored

__all__ = ["BridgeBackend"]

_LONGEST_PAUSE = 5.0  # seconds between two tries to go on waiting while Postgres is away


class BridgeBackend(ChordJoiner, BaseBackend):
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

    def _stored_value(self, result: Any, state: str, traceback: str | None, request: Any, **beyond: Any) -> Value:
        if state in states.EXCEPTION_STATES and isinstance(result, BaseException):
            return Value(error=json_text(self._error(original(result), traceback)), outcome=self._beyond(request))
        return self._columns(result, request, **beyond)

    def _store(self, task_id: str, state: str, value: Value) -> None:
        self._ask(lambda connection: results.store(connection, job_id(task_id), task_id, state, value, self._keeping()))

    def _keeping(self, expires: float | None = None) -> timedelta | None:
        """How long the application keeps results, or what has a time of its own; None for ever."""
        seconds = self.expires if expires is None else self.prepare_expires(expires)
        return timedelta(seconds=seconds) if seconds else None

    def _ask(self, question: Callable[[Connection], Any]) -> Any:
        return self._bridge.connections.ask(question)

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
            except OUTAGE:
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
        return isinstance(exc, OUTAGE)


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
