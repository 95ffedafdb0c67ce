"""What becomes of a run or a delivery, written to its row; an outage of Postgres is waited out, because an outcome exists only once."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from celery.exceptions import NotRegistered, Reject
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from bridge.errors import CompletingError, PermanentError, ServerError
from bridge.job import Status
from bridge.message import HEADER, Delivery
from bridge.queries import completion, jobs, runs
from bridge.queries.connection import OUTAGE
from bridge.results.text import json_text
from bridge.worker import notes

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.application import Membership
    from bridge.queries.results import Value
    from bridge.queries.runs import NeverRan
    from bridge.worker.fence import Run

__all__ = [
    "about_to_be_replaced",
    "child_of",
    "delivery_in_hand",
    "delivery_of",
    "ended_before",
    "ended_outside",
    "failed",
    "forgotten",
    "go_on",
    "ignores_result",
    "insist",
    "is_final",
    "is_of_a_row",
    "lost",
    "never_ran",
    "orphans_ended",
    "patiently",
    "progressed",
    "run_of",
    "stepped_aside",
    "succeeded",
    "tell_the_rest",
    "tells_no_more",
    "unbundled",
    "was_completed",
    "within_patience",
]

log = logging.getLogger("bridge.worker")

Written = TypeVar("Written")


def run_of(request: Any) -> Run | None:
    """The run that a request carries in a pool's child, while nobody has settled it."""
    run: Run | None = getattr(request, "bridge_run", None)
    return run if run is not None and not run.settled else None


def delivery_of(request: Any) -> Delivery | None:
    """The delivery that a request came with; None when a run has it, or the message is not ours."""
    if getattr(request, "bridge_run", None) is not None:
        return None
    return Delivery.parse(getattr(request, HEADER, None))


def delivery_in_hand(request: Any) -> Delivery | None:
    """The delivery of a request that nobody has settled, in the main process or, where tasks run in this very process, with its run."""
    run = run_of(request)
    return run.delivery if run is not None else delivery_of(request)


def child_of(request: Any) -> int | None:
    """The process that was given this copy of a message, as far as the main process has heard of it."""
    pid: int | None = getattr(request, "bridge_pid", None)
    return pid


def is_of_a_row(request: Any) -> bool:
    """Whether a request came with a row's delivery, in whatever process."""
    return getattr(request, "bridge_run", None) is not None or Delivery.parse(getattr(request, HEADER, None)) is not None


def ignores_result(task: Any, request: Any) -> bool:
    """Whether nobody wants the result of a task: its call says so, else the task itself."""
    said = request.__dict__.get("ignore_result")
    return bool(task.ignore_result if said is None else said)


def patiently(write: Callable[[], Written]) -> Written:
    """Repeat a write until Postgres takes it: seconds of outage must not cost a finished run."""
    try:
        return write()  # nearly always enough, and each job asks: a retry is made when there is something to retry
    except OUTAGE:
        again = retry_if_exception_type(OUTAGE)
        return Retrying(retry=again, wait=wait_random_exponential(multiplier=0.1, max=5), reraise=True)(write)


def within_patience(joined: Membership, ask: Callable[[], Written]) -> Written:
    """Ask for a start. Postgres may be away for a moment, but not for long: the message is then left unstarted.

    Raises:
        ServerError: it was away for longer than the setting ``start_patience``; or psycopg's OperationalError.
    """
    try:
        return ask()
    except OUTAGE:
        patience, wait = stop_after_delay(joined.settings.start_patience), wait_random_exponential(multiplier=0.05, max=1)
        return Retrying(retry=retry_if_exception_type(OUTAGE), stop=patience, wait=wait, reraise=True)(ask)


def is_final(exc: Any) -> bool:
    """Whether no further attempt could help: nobody knows the task, it was rejected, or it says so itself."""
    return isinstance(exc, NotRegistered | Reject | PermanentError)


def succeeded(joined: Membership, run: Run, value: Value) -> None:
    """The run returned; its job ends when Postgres has taken the result, which is on its way when this returns."""
    tell_the_rest(joined, run)
    run.settled = True
    finish = runs.Finish(run.delivery.seq, run.id, run.delivery.token, run.job, "succeeded", value.result, outcome=value.outcome)
    joined.channels.get().finish(finish)


def go_on(joined: Membership, run: Run) -> None:
    """Put the next attempt, which the run has asked for, in the run's place.

    Raises:
        BridgeError: no row takes it.
    """
    if run.next is None:
        return
    tell_the_rest(joined, run)
    content, delivery, reason = run.next, run.delivery, None if run.reason is None else json_text(run.reason)
    patiently(lambda: jobs.retry_run(joined.connections.get(), delivery.seq, run.id, delivery.token, content, reason))


def about_to_be_replaced(joined: Membership, run: Run) -> None:
    """The run is about to enqueue the first of the tasks that replace it."""
    run.replaced = True
    patiently(lambda: runs.mark_replaced(joined.connections.get(), run.delivery.seq, run.id, run.delivery.token))


def stepped_aside(joined: Membership, run: Run) -> None:
    """The run is over, and the last of the tasks that replace it will go on with its job."""
    tell_the_rest(joined, run)
    run.settled = True
    patiently(lambda: runs.step_aside(joined.connections.get(), run.delivery.seq, run.id, run.delivery.token))


def failed(joined: Membership, run: Run, error: dict[str, Any], *, final: bool, beyond: str | None = None) -> Status | None:
    """The run raised; the job's new status. ``beyond`` is the column ``outcome``."""
    tell_the_rest(joined, run)
    run.settled = True
    text = json_text(error)
    return _status(
        patiently(
            lambda: runs.fail(
                joined.connections.get(), run.delivery.seq, run.id, run.delivery.token, run.job, text, final=final, outcome=beyond
            )
        )
    )


def forgotten(joined: Membership, run: Run, reason: str) -> Status | None:
    """What the run has come to cannot be told: it is lost, and its job is due again; the job's new status."""
    run.settled = True
    return lost(joined, run.delivery, reason, os.getpid())


def lost(joined: Membership, delivery: Delivery, reason: str, pid: int | None) -> Status | None:
    """The child that had this delivery is dead; the job's new status, None also while that is open.

    Args:
        joined: the application's membership.
        delivery: what it had.
        reason: for the history.
        pid: the child's: a run that another has begun, with another copy of the message, goes on. None where nobody knows it.
    """

    def write() -> str | None:
        if pid != os.getpid():
            ended_before(joined, pid)  # its task may have returned
        return runs.lose(joined.connections.get(), delivery.seq, delivery.token, reason, joined.worker_id, pid)

    return _from_outside(write)


def ended_before(joined: Membership, process: int | None) -> None:
    """Write what a process had achieved when it died: before that nobody may lose what it had.

    Raises:
        ServerError: Postgres is away, or has no time for it.
    """
    if process is None:
        return
    kept = joined.board.held(process)
    try:
        if kept:
            runs.finish_many(joined.connections.get(), kept)
    except ServerError as error:
        log.warning("outcomes wait for postgres, their process is dead pid=%d jobs=%d error=%s", process, len(kept), error)
        raise
    except psycopg.Error as error:
        log.error("outcomes dropped, postgres refuses them: the jobs run again pid=%d jobs=%d error=%s", process, len(kept), error)  # noqa: TRY400
    joined.board.forget(process)


def orphans_ended(joined: Membership) -> None:
    """The same for all processes that have died, also such as had no job in hand; what cannot be written yet waits for the next call."""
    with suppress(ServerError):
        for process in joined.board.orphans():
            ended_before(joined, process)


def unbundled(joined: Membership, tokens: list[str], pid: int | None, *, alone: bool) -> None:
    """Give back what of a bundle has not been run. During an outage it is left to the sweep, because nobody names it any more.

    Args:
        joined: the application's membership.
        tokens: of the deliveries.
        pid: the process that had them.
        alone: they are in no bundle any more.
    """
    try:
        count = runs.unbundle(joined.connections.get(), tokens, joined.worker_id, pid, alone=alone)
    except (ServerError, psycopg.Error) as error:
        log.warning("not given back, the sweep will do it jobs=%d error=%s", len(tokens), error)
    else:
        log.info("gave back what a bundle had not begun jobs=%d", count)


def ended_outside(
    joined: Membership, delivery: Delivery, status: Status, error: dict[str, Any], *, final: bool, pid: int | None
) -> Status | None:
    """The main process ends a delivery; the job's new status, None also while that is open. ``pid`` as in ``lost``."""
    text = json_text(error)

    def write() -> str | None:
        if pid not in {None, os.getpid()} and any(one.token == delivery.token for one in joined.board.held(pid)):
            ended_before(joined, pid)  # its task has returned, and something else holds its process up
        connection = joined.connections.get()
        return runs.end_delivery(
            connection, delivery.seq, delivery.token, joined.worker_id, status, text, final=final, outcome=None, pid=pid
        )

    return _from_outside(write)


def _from_outside(write: Callable[[], str | None]) -> Status | None:
    """The main process must not wait for a transaction in which a task completes its job: the child may have to be killed to end it."""
    try:
        return _status(patiently(write))
    except CompletingError as error:
        log.info("the end of a run waits for a transaction of its task error=%s", error)
        threading.Thread(target=insist, args=(write,), name="bridge-insist", daemon=True).start()
        return None


def insist(ask: Callable[[], Written]) -> Written:
    """Repeat it until that transaction has ended, in a thread. Should this process end before, the sweep does the rest."""
    again = retry_if_exception_type((CompletingError, *OUTAGE))
    return Retrying(retry=again, wait=wait_random_exponential(multiplier=0.1, max=5), reraise=True)(ask)


def was_completed(joined: Membership, delivery: Delivery) -> bool:
    """Whether a run whose process is dead had completed its job in a transaction."""
    return patiently(lambda: completion.was_completed(joined.connections.get(), delivery.seq, delivery.token))


def never_ran(joined: Membership, job: NeverRan) -> bool:
    """Give a task that will never run a row that says why; False when there is one already."""
    return patiently(lambda: runs.never_ran(joined.connections.get(), job))


def progressed(joined: Membership, run: Run, value: dict[str, Any]) -> None:
    """Note how far the run has come; at most two a second are written, the last one always."""
    if not tells_no_more(run):
        notes.set_progress(joined, run, json_text(value))


def tells_no_more(run: Run) -> bool:
    """Whether a transaction of its own task has the run's row, to complete it: nobody else may write there, and would only wait."""
    return run.completion is not None and not run.completion.is_withdrawn()


def tell_the_rest(joined: Membership, run: Run) -> None:
    """Write what the run has told and nobody has written yet: its outcome comes next, after which nothing of it is taken any more."""
    if run.notes is not None:
        patiently(lambda: notes.settle(joined, run))


def _status(value: str | None) -> Status | None:
    return None if value is None else Status(value)
