"""The main process's view of a row's task: its row says whether it is revoked, and a refused copy is no success."""

from __future__ import annotations

import logging
import math
import threading
from datetime import datetime
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import psycopg
from celery.exceptions import InvalidTaskError, TaskRevokedError, WorkerLostError
from celery.worker import state
from kombu.utils.imports import symbol_by_name

from bridge.application import membership
from bridge.content import OURS
from bridge.errors import CompletingError, ServerError
from bridge.job import job_id
from bridge.message import BUNDLE_TASK, Delivery
from bridge.queries import revokes
from bridge.worker import outcome
from bridge.worker.fence import Refusal
from bridge.worker.unreadable import OF_THE_MESSAGE, throw_away

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RowRequest", "compose_requests", "refuse_said_again"]

log = logging.getLogger("bridge.worker")

_IN_BODIES = {"callbacks", "errbacks", "chain", "chord"}  # the words of Celery's protocol for the third part of a body


def compose_requests(app: Any) -> None:
    """Mix ours into the class of each task's requests, the user's own among them."""
    for task in app.tasks.values():
        theirs = symbol_by_name(task.Request)
        if task.name != BUNDLE_TASK and not issubclass(theirs, RowRequest):
            task.Request = _mixed(theirs)


@cache
def _mixed(theirs: type) -> type:
    return type("BridgeRequest", (RowRequest, theirs), {})


class RowRequest:
    """Mixed into a task's Request class. Celery derives from that class once more for each task; see ``__init_subclass__``."""

    app: Any
    id: Any  # text, in messages that somebody meant
    expires: Any
    time_limits: Any
    request_dict: dict[str, Any]
    worker_pid: int | None

    def __init__(self, *args: Any, **options: Any) -> None:
        """Refuse, as Celery refuses an eta that is no time, what would fail only when a process of the pool is already set aside for it.

        Raises:
            InvalidTaskError: the message's time limits are no numbers, a row's id is no text, or its body says what headers are there for.
        """
        super().__init__(*args, **options)
        if not _are_limits(self.time_limits):
            raise InvalidTaskError(f"invalid time limits {self.time_limits!r}")
        if not isinstance(self.id, str) and _is_row(self):
            raise InvalidTaskError(f"invalid task id {self.id!r}")
        refuse_said_again(self._payload[2], self.request_dict, is_row=_is_row(self))  # type: ignore[attr-defined]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Celery's derived class has methods of its own that call no others.
        if "on_success" in cls.__dict__:
            cls.on_success = _unless_refused(cls.__dict__["on_success"])  # type: ignore[attr-defined]
            cls.execute_using_pool = _giving_back(cls.__dict__["execute_using_pool"])  # type: ignore[attr-defined]

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A child has this copy: noted where the result backend finds it, should it have to say what has become of that child."""
        self.request_dict["bridge_pid"] = pid
        super().on_accepted(pid, time_accepted)  # type: ignore[misc]

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """Celery's word of a failure. A message that it gives back, because the child died, it reports to no backend: that is done here."""
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(exc, WorkerLostError | SystemExit):
            try:
                if self._was_completed():
                    return self._on_completed(exc)
            except CompletingError:
                return self._on_undecided(exc)
        if isinstance(exc, WorkerLostError) and _is_row(self) and _is_given_back(self.task):  # type: ignore[attr-defined]
            self.task.backend.mark_as_failure(self.id, exc, request=self._context, store_result=self.store_errors)  # type: ignore[attr-defined]
        return super().on_failure(exc_info, *args, **options)  # type: ignore[misc]

    def _was_completed(self) -> bool:
        delivery, joined = Delivery.of(self.request_dict), membership(self.app)
        return delivery is not None and joined is not None and outcome.was_completed(joined, delivery)

    def _on_undecided(self, exc: BaseException) -> None:
        """The child died in the transaction that completes its job, and that goes on for a while: a thread waits for its end."""
        log.warning("a process was lost while its run was being completed task_id=%s error=%s", self.id, exc)
        state.task_ready(self)
        self.acknowledge()  # type: ignore[attr-defined]
        threading.Thread(target=self._decide_later, args=(exc,), name="bridge-decide", daemon=True).start()

    def _decide_later(self, exc: BaseException) -> None:
        delivery, joined = Delivery.of(self.request_dict), membership(self.app)
        if delivery is None or joined is None:
            return
        if outcome.insist(self._was_completed):
            self.task.backend.make_up(self._context)  # type: ignore[attr-defined]
        else:
            outcome.lost(joined, delivery, str(exc), self.worker_pid)

    def _on_completed(self, exc: BaseException) -> None:
        """The child died after it had completed its job in a transaction. Celery's ways with lost workers could run it again."""
        log.warning("a process was lost after its run was completed, which stands task_id=%s error=%s", self.id, exc)
        state.task_ready(self)
        self.task.backend.make_up(self._context)  # type: ignore[attr-defined]
        self.acknowledge()  # type: ignore[attr-defined]
        self.send_event("task-succeeded", result=None, runtime=None)  # type: ignore[attr-defined]

    def revoked(self) -> bool:
        """Celery's question before each start. A worker's memory of revoked ids and stamps says too much: the job may be retried since."""
        if _is_row(self) and self._is_remembered() and not self._is_cancelled():
            return self._has_ended_before()
        return bool(super().revoked())  # type: ignore[misc]

    def maybe_expire(self) -> Any:
        """Celery's question whether it is too late, by this machine's clock. A row's time is over when Postgres says so."""
        if _is_row(self) and self.expires and self.expires < datetime.now(self.expires.tzinfo) and self._is_in_time():
            return None
        return super().maybe_expire()  # type: ignore[misc]

    def _is_in_time(self) -> bool:
        """Whether it is not too late by the clock of Postgres; where that is away the start fence will decide."""
        joined = membership(self.app)
        try:
            return joined is not None and self.expires > revokes.clock(joined.connections.get())
        except (ServerError, psycopg.Error):
            return True

    def _is_remembered(self) -> bool:
        stamps = set(self.stamped_headers) & set(state.revoked_stamps)  # type: ignore[attr-defined]
        return self.id in state.revoked or bool(stamps)

    def _is_cancelled(self) -> bool:
        """Whether the row, too, says so; where Postgres is away the start fence will decide."""
        joined = membership(self.app)
        try:
            return joined is not None and revokes.heed_revoke(joined.connections.get(), job_id(self.id))
        except (ServerError, psycopg.Error, UnicodeError):  # no row has an id that is no text
            return False

    def _has_ended_before(self) -> bool:
        """The rest of Celery's question: terminated before it began, or expired."""
        if not self._already_revoked and self.expires and self.maybe_expire():  # type: ignore[attr-defined]
            self._announce_revoked("expired", False, None, True)  # type: ignore[attr-defined] # noqa: FBT003 - Celery's signature
        return bool(self._already_revoked)  # type: ignore[attr-defined]


def _unless_refused(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def on_success(self: Any, failed__retval__runtime: Any, **options: Any) -> Any:
        if not isinstance(failed__retval__runtime[1], Refusal):
            return theirs(self, failed__retval__runtime, **options)
        if self._is_cancelled():
            self._announce_revoked("revoked", False, None, False)  # noqa: FBT003 - Celery's signature
        else:
            state.task_ready(self)
            self.acknowledge()
        return None

    return on_success


def _giving_back(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """A message that cannot be handed to the pool must not keep the process that was set aside for it."""

    @wraps(theirs)
    def execute_using_pool(self: Any, pool: Any, **options: Any) -> Any:
        try:
            return theirs(self, pool, **options)
        except OF_THE_MESSAGE as error:
            state.task_ready(self)
            throw_away(self.app, self._message, error, self._connection_errors)
            raise TaskRevokedError(self.id) from error  # Celery lets the process go, and no more

    return execute_using_pool


def _are_limits(limits: Any) -> bool:
    try:
        hard, soft = limits
    except (TypeError, ValueError):
        return False
    return all(one is None or (isinstance(one, int | float) and math.isfinite(one)) for one in (hard, soft))


def _is_given_back(task: Any) -> bool:
    """Whether the message of a task whose child died returns to its queue. Celery 5.7 may retry instead: the job is live then."""
    return bool(task.acks_late and task.reject_on_worker_lost and not getattr(task, "retry_on_worker_lost", False))


def refuse_said_again(embed: Any, headers: dict[str, Any], *, is_row: bool) -> None:
    """Refuse a message whose body says in its third part what headers are there for.

    Celery lays that over the headers: the fence would look for a delivery in vain, and let the task run beside its row.

    Raises:
        InvalidTaskError: it does.
    """
    named = {str(name) for name in embed} if isinstance(embed, dict) else set()
    again = named & ({*OURS, *headers} - _IN_BODIES if is_row else {*OURS})
    if again:
        raise InvalidTaskError(f"a body that says what headers say: {', '.join(sorted(again))}")


def _is_row(request: Any) -> bool:
    return Delivery.of(request.request_dict) is not None
