"""The start fence: wrapped around a task's tracer, it admits one of all copies of a delivery.

It stands before everything else of a task's life in a pool process: before STARTED is stored, before signals, before the user's own
``before_start`` and ``__call__``. A refused copy enters none of them and writes nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback as tracebacks
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from billiard import common
from billiard.common import human_status
from billiard.einfo import ExceptionInfo
from billiard.process import current_process
from celery.app.task import Context
from celery.app.trace import TraceInfo, build_tracer, trace_ok_t
from celery.exceptions import WorkerLostError, WorkerShutdown, WorkerTerminate
from celery.states import FAILURE, IGNORED, REJECTED, SUCCESS

from bridge.errors import BridgeError
from bridge.job import job_id
from bridge.message import Delivery
from bridge.queries.connection import OUTAGE
from bridge.queries.results import Value
from bridge.results.failure import noted_error
from bridge.results.text import columns
from bridge.transaction.current import of_a_run
from bridge.worker import outcome
from bridge.worker.completion import stands
from bridge.worker.traced import run_span

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from bridge.application import Membership
    from bridge.queries.jobs import Content
    from bridge.worker.completion import Completion
    from bridge.worker.notes import Notes

__all__ = ["Refusal", "Run", "TaskMemoryError", "fence", "fenced"]

log = logging.getLogger("bridge.worker")


class Refusal(str):
    """In place of the text of a result: what tells the main process that this copy was refused, and nothing ran."""

    __slots__ = ()


class TaskMemoryError(Exception):
    """A task's MemoryError on its way to the main process."""


@dataclass
class Run:
    """One admitted start. Whoever writes its outcome settles it, so that nobody writes a second one."""

    delivery: Delivery
    id: UUID
    job: UUID
    settled: bool = False
    noted: tuple[str, Any] | None = None  # the last state that was stored, with its result: what counts of a task that raises Ignore
    next: Content | None = None  # the attempt that the run has asked for
    reason: dict[str, Any] | None = None  # why it did
    replaced: bool = False  # it has enqueued the first of several tasks that replace it
    notes: Notes | None = None  # what it has told; None of most
    completion: Completion | None = None  # it has been completed in a transaction, of which nobody knows yet whether it commits

    def asks_for(self, content: Content) -> None:
        """Note the run's next attempt, which takes its place when all of this one is over: its state is stored, its handlers have run."""
        self.settled, self.next = True, content


def fence(app: Any, joined: Membership) -> None:
    """Wrap the tracer of every registered task; those wrapped already stay as they are."""
    for task in app.tasks.values():
        trace = task.__dict__.get("__trace__") or task.__trace__
        if not getattr(trace, "fenced", False):
            task.__trace__ = fenced(task, trace or build_tracer(task.name, task, app.loader, app=app), joined)


def fenced(task: Any, trace: Callable[..., Any], joined: Membership) -> Callable[..., Any]:
    """The tracer of a task with the fence around it; its ``admitted`` runs what has been started already."""

    def admitted(run: Run, task_id: str, args: Any, kwargs: Any, request: Any) -> Any:
        request["bridge_run"] = run
        try:
            with of_a_run(), run_span(task, request, run) as judge:
                traced = trace(task_id, args, kwargs, request)
                judge(traced[1])
        except BaseException as left:  # noqa: BLE001 - it is raised again, or told to the main process
            return _left(joined, task, request, left)
        if stands(run):
            _tell(task, request)
        elif run.next is not None:
            _go_on(joined, task, request)
        elif not run.settled:
            _settle(joined, task, request, traced[1])
        if isinstance(getattr(traced[0], "exception", None), MemoryError):
            # The row has the true error. To the main process, which ends the whole worker on a MemoryError, it goes by another name.
            traced[0].exception = TaskMemoryError(str(traced[0].exception))
        return traced

    @wraps(trace)
    def fenced_trace(task_id: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        delivery = Delivery.of(request)
        if delivery is None:
            return trace(task_id, args, kwargs, request)
        run = _start(joined, delivery, task_id)
        if run is None:
            log.info("refused a copy that must not run task_id=%s delivery=%s", task_id, delivery)
            return trace_ok_t(None, None, 0.0, Refusal("refused: another copy of this delivery ran, or the job was cancelled"))
        return admitted(run, task_id, args, kwargs, request)

    fenced_trace.fenced = True  # type: ignore[attr-defined]
    fenced_trace.admitted = admitted  # type: ignore[attr-defined]
    return fenced_trace


def _left(joined: Membership, task: Any, request: Any, left: BaseException) -> Any:
    """The tracer has raised: for its task, whose failure this is then, or for its process, which ends."""
    if isinstance(left, MemoryError):
        _end(joined, task, request, left)
        raise TaskMemoryError(str(left)) from None
    if isinstance(left, Exception) or _is_told_to_stop(left):
        raise left
    exc = _as_celery_names_it(left)
    _end(joined, task, request, exc)
    if current_process().name != "MainProcess":
        raise left
    # Where tasks run in the worker's only process, one of them must not end it.
    return trace_ok_t(ExceptionInfo((type(exc), exc, left.__traceback__)), TraceInfo(FAILURE, exc), 0.0, None)


def _is_told_to_stop(left: BaseException) -> bool:
    """Whether the task ends because somebody has told its process or greenlet to: who did, or notices the death, reports it."""
    by_pool = type(left).__module__.partition(".")[0] in {"gevent", "greenlet"}  # its time is over, or it is killed
    return by_pool or isinstance(left, WorkerShutdown | WorkerTerminate) or common._should_have_exited[0]  # noqa: SLF001


def _as_celery_names_it(left: BaseException) -> BaseException:
    """A task that leaves its process is a lost worker to Celery. Were it raised by ``get``, SystemExit would end the caller too."""
    if not isinstance(left, SystemExit):
        return left
    code = left.code if isinstance(left.code, int) else int(left.code is not None)
    lost: BaseException = WorkerLostError(f"Worker exited prematurely: {human_status(code)}.")
    return lost


def _end(joined: Membership, task: Any, request: Any, exc: BaseException) -> None:
    """The tracer itself has raised."""
    if stands(request["bridge_run"]):
        _tell(task, request)
    elif request["bridge_run"].next is not None:
        _go_on(joined, task, request)
    else:
        _report(task, request, exc)


def _tell(task: Any, request: Any) -> None:
    """The run was completed in a transaction, whatever became of its task since: the result goes where the tracer has not brought it."""
    completion = request["bridge_run"].completion
    if not completion.told:
        log.error("a task did not return after it was completed, which stands task_id=%s", request["id"])
        context = Context(request, called_directly=False)
        stored = not outcome.ignores_result(task, context)
        task.backend.mark_as_done(context.id, completion.result, request=context, store_result=stored)


def _go_on(joined: Membership, task: Any, request: Any) -> None:
    """Put the next attempt in the run's place; what no row takes (arguments that are too large) fails this one."""
    run: Run = request["bridge_run"]
    try:
        outcome.go_on(joined, run)
    except BridgeError as error:
        run.settled, run.next = False, None
        _report(task, request, error)


def _report(task: Any, request: Any, exc: BaseException) -> None:
    """The task failed in a way that leaves it to the main process, or to nobody, to say so: say it here, in the run's own name."""
    context = Context(request, called_directly=False)
    ignored = outcome.ignores_result(task, context)
    text = "".join(tracebacks.format_exception(*sys.exc_info())) if sys.exc_info()[0] else None
    stored = not ignored or task.store_errors_even_if_ignored
    task.backend.mark_as_failure(context.id, exc, text, request=context, store_result=stored)


def _start(joined: Membership, delivery: Delivery, task_id: str) -> Run | None:
    """Ask for admission; Postgres may be away for a moment, but not for long: the message is then left unstarted.

    The run has its id from here, so that a start whose answer was lost admits its own copy when it is asked again.
    """
    wanted = uuid4()
    ask = lambda: joined.channels.get().start(delivery.seq, delivery.token, joined.worker_id, os.getpid(), wanted)  # noqa: E731
    try:
        identity = outcome.within_patience(joined, ask)
    except OUTAGE as error:
        # Not started as far as anybody knows, so still published: once no worker reports the message, a drainer publishes it again.
        log.warning("handed back, postgres is away delivery=%s error=%s", delivery, error)
        return None
    return None if identity is None else Run(delivery, identity, job_id(task_id))


def _settle(joined: Membership, task: Any, request: Any, info: Any) -> None:
    """End a run whose outcome no backend hook has written."""
    run: Run = request["bridge_run"]
    state = getattr(info, "state", None)
    if state == REJECTED and info.retval.requeue:
        # With early acknowledgement nothing would come back: handing back means publishing again, with a new token.
        outcome.tell_the_rest(joined, run)
        run.settled = True
        outcome.lost(joined, run.delivery, "the task rejected its message with requeue=True", os.getpid())
    elif state == REJECTED:
        _report(task, request, info.retval)  # Celery before 5.7 reports it nowhere
    elif state == IGNORED or info is None:
        _settle_ignored(joined, run)


def _settle_ignored(joined: Membership, run: Run) -> None:
    """The task raised Ignore: what it has stored itself by ``update_state`` stands, else it has nothing to say."""
    state, result = run.noted or (None, None)
    if run.replaced:
        outcome.stepped_aside(joined, run)
    elif state == FAILURE:
        outcome.failed(joined, run, noted_error(result), final=True)
    elif state == SUCCESS:
        outcome.succeeded(joined, run, columns(result))
    else:
        outcome.succeeded(joined, run, Value())
