"""Transactional completion: a task ends its job in the transaction of its own writes, and with it begins what follows the job.

Celery's tracer does its part when the function has returned. What it would do a second time by then is taken out of its hands: the next
step and the callbacks through the request, which says that none are left, the row through the run, which is settled.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.app.task import Context
from kombu.exceptions import EncodeError
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_random_exponential

from bridge.application import membership
from bridge.errors import BridgeError, InvalidArgumentError, ServerError, WrongStateError
from bridge.queries import completion as queries
from bridge.queries.identity import leads_to_same_database
from bridge.settings import without_password
from bridge.transaction.current import named, using
from bridge.worker import outcome
from bridge.worker.current import in_hand
from bridge.worker.follow import follow, followed, rows_alone

if TYPE_CHECKING:
    from bridge.application import Membership
    from bridge.transaction.target import Target
    from bridge.worker.fence import Run

__all__ = ["Completion", "ForgottenError", "LeftOpenError", "complete", "of_request", "stands"]

log = logging.getLogger("bridge.worker")

_UNDECIDED = 5.0  # seconds that a transaction may take to end when its task is over


class LeftOpenError(WrongStateError, EncodeError):
    """A task has ended with the transaction still open in which it completed its job.

    An EncodeError, because that is what the tracers of all releases of Celery take for a failure of the task at this point.
    """


class ForgottenError(WrongStateError, EncodeError):
    """A task has returned, and its completion is not there on a server that is not the one which it was given to.

    Either its transaction has rolled back, or it has committed, and a failover or a crash has forgotten that: nobody can tell. The effect
    is there in neither case, so the run counts as lost. An EncodeError for the same reason as above.
    """


@dataclass
class Completion:
    """That a run has been completed in a transaction, which may or may not commit."""

    joined: Membership
    task: Any
    run: Run
    request: Any
    target: Target | None
    result: Any
    children: int  # how many the task had before those that follow it
    told: bool = False  # the application's own result backend, too, has the result
    left_open: bool = False
    forgotten: bool = False
    server: str | None = None  # which life of which server heard of it
    decided: bool | None = None

    def stands(self) -> bool:
        """Whether its transaction has committed; to be asked when the task's function is over, by when nobody can commit it any more."""
        if self.decided is None:
            fate = outcome.patiently(self._fate)
            if fate == "open":
                fate = self._end_what_is_open()
            self._decide(fate)
        return bool(self.decided)

    def is_withdrawn(self) -> bool:
        """Whether its transaction has rolled back, so that the run goes on; to be asked while the task's function goes on."""
        if self.decided is None and (fate := outcome.patiently(self._fate)) in {"running", "forgotten"}:
            self._decide(fate)
        return self.decided is False

    def _fate(self) -> str:
        """As the query has it, or ``forgotten``: the run goes on, on a server that the completion was not given to."""
        delivery, connection = self.run.delivery, self.joined.connections.get()
        fate = queries.fate(connection, delivery.seq, self.run.id, delivery.token)
        is_elsewhere = fate == "running" and queries.life_of_server(connection) != self.server
        return "forgotten" if is_elsewhere else fate

    def _end_what_is_open(self) -> str:
        """Roll back what the task has left open: it holds the job's row, which must be written now."""
        self.left_open = True
        with suppress(Exception):  # whatever state the user has left it in
            if self.target is not None:
                self.target.roll_back()
        waiting = Retrying(
            retry=retry_if_result("open".__eq__), stop=stop_after_delay(_UNDECIDED), wait=wait_random_exponential(multiplier=0.02, max=0.5)
        )
        try:
            return str(waiting(outcome.patiently, self._fate))
        except RetryError:
            words = "a transaction that completes a job is left open, the job ends or runs again with it task_id=%s"
            log.error(words, self.request.id)  # noqa: TRY400 - it has been tried often enough
            return "open"

    def _decide(self, fate: str) -> None:
        self.decided, self.target = fate in {"completed", "open"}, None
        if self.decided:
            self.run.settled, self.run.next = True, None
            return
        del self.request.children[self.children :]
        if fate == "forgotten":  # a return alone would be taken for a success whose effect is not there
            self.forgotten = True
            return
        log.info("completion rolled back, the run goes on task_id=%s", self.request.id)
        self.run.completion = None
        self.request.__class__ = Context

    def of(self, returned: Any) -> Any:
        """The result, which is what was given, whatever the task has returned."""
        self.told = True
        if returned is not self.result and not self._is_same(returned):
            log.error(
                "a task returned something else than it was completed with, which stands task_id=%s completed=%r returned=%r",
                self.request.id, self.result, returned,
            )  # fmt: skip
        return self.result

    def _is_same(self, returned: Any) -> bool:
        with suppress(Exception):  # what has no form for the row, or cannot be compared, is something else
            return bool(returned == self.result)
        return False


class _CompletedContext(Context):
    """The request of a run that has been completed: once its function is over, nothing follows that the tracer has to send."""

    @property
    def callbacks(self) -> Any:
        return self._left("callbacks")

    @callbacks.setter
    def callbacks(self, value: Any) -> None:
        self.__dict__["callbacks"] = value

    @property
    def chain(self) -> Any:
        return self._left("chain")

    @chain.setter
    def chain(self, value: Any) -> None:
        self.__dict__["chain"] = value

    def _left(self, name: str) -> Any:
        asking = sys._getframe(2)  # noqa: SLF001 - whoever reads the property
        completion = of_request(self)
        if completion is not None and (asking.f_globals.get("__name__"), asking.f_code.co_name) == ("celery.app.trace", "trace_task"):
            if completion.stands():
                return None
            if completion.left_open:
                raise LeftOpenError(
                    "the transaction in which the job was completed was still open when its task returned, and was rolled back",
                    "commit it before the task returns",
                )
            if completion.forgotten:
                raise ForgottenError(
                    "the completion is not there after a failover or restart of postgres, which may have forgotten it: the job runs again"
                )
        return self.__dict__.get(name)


def of_request(request: Any) -> Completion | None:
    """The completion of a request's run; None when it has none, or that was rolled back."""
    run: Run | None = getattr(request, "bridge_run", None)
    return None if run is None else run.completion


def stands(run: Run) -> bool:
    """Whether a run whose function is over has been completed by a transaction that has committed."""
    return run.completion is not None and run.completion.stands()


def complete(session: Any, result: Any) -> Any:
    """End the run in hand in the transaction of its task's own writes, as ``bridge.complete`` says."""
    with in_hand() as task:
        run, joined = _run_of(task)
        target, request = named(session), task.request
        made = Completion(joined, task, run, request, target, result, len(request.children))
        try:
            _write(made, session)
        except Exception as error:
            _refuse_elsewhere(error, joined, target)
            raise
    run.completion = made
    request.__class__ = _CompletedContext
    return result


def _run_of(task: Any) -> tuple[Run, Membership]:
    """The run that calls, and its application's membership.

    Raises:
        WrongStateError: there is no run, or it has chosen another end.
    """
    request = getattr(task, "request", None)
    run, joined = getattr(request, "bridge_run", None), membership(task.app) if task is not None else None
    if joined is None or run is None:
        where = "outside of a task" if request is None else f"in task {task.name}, whose message belongs to no job"
        raise WrongStateError(
            f"bridge.complete is called {where}", "call it in a task that a worker runs for a job; in tests, run the job by run_jobs"
        )
    if run.completion is not None and not run.completion.is_withdrawn():
        raise WrongStateError(f"job number {run.delivery.seq} has been completed by this run already", "call bridge.complete once")
    if run.settled or run.replaced:
        raise WrongStateError(
            f"the run of job number {run.delivery.seq} has asked for a retry, or replaced itself", "complete it instead of that"
        )
    return run, joined


def _write(made: Completion, session: Any) -> None:
    target, run = made.target, made.run
    assert target is not None  # noqa: S101 - it is forgotten when the transaction has ended
    if target.commits_each:
        raise InvalidArgumentError(
            "the connection given to bridge.complete is in autocommit mode, with no transaction open",
            "open one: with connection.transaction(), or atomic() in Django",
        )
    named_run = str(run.delivery.seq), str(run.id)
    outcome.tell_the_rest(made.joined, run)  # nothing of it is taken any more once the row is locked
    if followed(made.request):
        # First, because what follows a run that is over must not be begun.
        target.ask(queries.HOLD, *named_run, run.delivery.token)
        with using(session), rows_alone():
            follow(made.task, made.request, made.result)
    writer = _writer(made.task)
    value, untold = writer.value_of_completed(made.result, made.request), writer.untold(made.request)
    if untold is not None:
        target.ask(queries.KEEP_UNTOLD, *named_run, untold)
    made.server = target.ask(queries.COMPLETE, *named_run, value.result, value.outcome, run.delivery.token)


def _writer(task: Any) -> Any:
    """Who knows the form of a result in the row; a task may have a backend of its own that does not."""
    return task.backend if hasattr(task.backend, "value_of_completed") else task.app.backend


def _refuse_elsewhere(error: Exception, joined: Membership, target: Target) -> None:
    """Say so where the reason of a refusal is that the transaction is of another database; a run is known in its own alone."""
    if isinstance(error, InvalidArgumentError | ServerError):
        return
    ours, theirs = joined.connections.dsn, target.address()
    try:
        same = leads_to_same_database(ours, theirs, joined.settings.timeout)
    except BridgeError:
        return  # nobody can tell, so the error itself must do
    if not same:
        raise InvalidArgumentError(
            f"the transaction given to bridge.complete is of database {without_password(theirs)}, the job of {without_password(ours)}",
            "give one of the job's database, or leave bridge.complete out",
        ) from error
