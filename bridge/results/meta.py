"""What Celery's result objects ask for, from what the database knows of a task id."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from celery import states
from kombu.compression import decompress
from kombu.serialization import loads
from kombu.utils.json import loads as json_loads

from bridge.job import Status
from bridge.results.failure import rebuilt
from bridge.results.text import value_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.queries.results import Stored

__all__ = ["Reader", "pending"]

_STATES: dict[Status, str] = {
    Status.RUNNING: states.STARTED, Status.SUCCEEDED: states.SUCCESS, Status.FAILED: states.FAILURE,
    Status.CANCELLED: states.REVOKED, Status.EXPIRED: states.REVOKED,
}  # fmt: skip


def pending(task_id: str) -> dict[str, Any]:
    """Celery's word for an id that nothing is known of."""
    return {"status": states.PENDING, "result": None, "traceback": None, "children": [], "task_id": task_id}


class Reader:
    """Makes Celery's form of results.

    Args:
        accept: content types that the application takes in results.
        to_python: Celery's own way from JSON to an exception.
    """

    def __init__(self, accept: Any, to_python: Callable[[Any], Any]) -> None:
        self._accept = accept
        self._to_python = to_python

    def meta(self, task_id: str, stored: Stored | None) -> dict[str, Any]:
        """State and result of one task."""
        if stored is None:
            return pending(task_id)
        headers = json.loads(stored.headers) if stored.headers else {}
        error = json.loads(stored.error) if stored.error else {}
        outcome = json.loads(stored.outcome) if stored.outcome else {}
        state = self.state(stored, error)
        failed, ready = state in states.EXCEPTION_STATES, state in states.READY_STATES
        meta = {
            "status": state, "result": self._result(state, stored, error, outcome), "traceback": error.get("traceback") if failed else None,
            "children": outcome.get("children", []), "date_done": stored.done_at.isoformat() if ready and stored.done_at else None,
            "task_id": task_id, "name": stored.task, "worker": stored.worker, "queue": stored.queue,
            "retries": max((stored.attempts or 0) - 1, 0),
        }  # fmt: skip
        meta |= {name: headers[key] for name, key in (("group_id", "group"), ("parent_id", "parent_id")) if headers.get(key)}
        return meta | _arguments(stored, headers, self._accept)

    def state(self, stored: Stored, error: dict[str, Any]) -> str:
        """Celery's word for where a task is; the row of one that never ran says it itself."""
        if stored.status is None:
            return stored.state or states.PENDING
        if stored.done_at is not None and "state" in error:
            return str(error["state"])
        if stored.status == Status.RUNNING and stored.progress:
            own = json_loads(stored.progress).get("state")
            if own:
                return str(own)
        return _STATES.get(Status(stored.status)) or (states.RETRY if stored.attempts else states.PENDING)

    def state_now(self, stored: Stored) -> str:
        """Celery's word for where a task is."""
        return self.state(stored, json.loads(stored.error) if stored.error else {})

    def value(self, stored: Stored) -> Any:
        """The value of a task that succeeded, also one that ignores its result."""
        return value_of(stored.result, json.loads(stored.outcome) if stored.outcome else {}, self._accept)

    def exception(self, stored: Stored) -> Any:
        """The exception of a task that did not succeed."""
        return self._exception(stored, json.loads(stored.error) if stored.error else {})

    def _result(self, state: str, stored: Stored, error: dict[str, Any], outcome: dict[str, Any]) -> Any:
        if state in states.EXCEPTION_STATES:
            return self._exception(stored, error)
        if stored.status == Status.RUNNING:
            progress = json_loads(stored.progress) if stored.progress else {}
            if "state" not in progress:
                return {"pid": stored.pid, "hostname": stored.worker}
            return value_of(None, progress["kept"], self._accept) if "kept" in progress else progress.get("meta")
        if outcome.get("ignored"):
            return None
        return value_of(stored.result, outcome, self._accept)

    def _exception(self, stored: Stored, error: dict[str, Any]) -> Any:
        if stored.status in {Status.CANCELLED, Status.EXPIRED} and "state" not in error:
            message = error.get("message") or stored.status
            error = {"type": "TaskRevokedError", "module": "celery.exceptions", "message": message}
        return rebuilt(error, self._accept, self._to_python) if error else None


def _arguments(stored: Stored, headers: dict[str, Any], accept: Any) -> dict[str, Any]:
    """What ``result_extended`` adds: the arguments, as the task got them."""
    if stored.args is None or stored.kwargs is None:
        return {}
    if stored.payload is None:
        return {"args": json_loads(stored.args), "kwargs": json_loads(stored.kwargs)}
    body = decompress(stored.payload, headers["compression"]) if headers.get("compression") else stored.payload
    args, kwargs, _ = loads(body, stored.content_type, stored.content_encoding, accept=accept)
    return {"args": args, "kwargs": kwargs}
