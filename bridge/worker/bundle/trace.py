"""A bundle in the process that runs it: slice by slice, each job through its own task's tracer.

A slice is started in one statement. What its jobs have achieved is ended in one, which is sent with the next start, or a moment later. A
slice is as long as its jobs are short: it should be over within a small part of a second, so that what Postgres says of its jobs (that they
run) is nearly true. When one takes longer, the rest of the slice is asked for anew before it goes on.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery.app.trace import trace_ok_t
from celery.exceptions import NotRegistered, SoftTimeLimitExceeded
from celery.states import FAILURE, SUCCESS
from kombu.utils import json as kombu_json
from kombu.utils.encoding import safe_repr

from bridge.job import job_id
from bridge.message import Delivery
from bridge.queries.connection import OUTAGE
from bridge.queries.runs import Wanted
from bridge.results.failure import error_of
from bridge.worker import outcome
from bridge.worker.bundle.soft_limit import SoftLimits
from bridge.worker.fence import Run, fence
from bridge.worker.request import refuse_said_again

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from bridge.application import Membership

__all__ = ["BundleTrace", "Told"]

log = logging.getLogger("bridge.worker")

_SLICE = 0.05  # seconds that a slice should take
_STALE = 0.1  # seconds after which its rest is asked for anew
_FIRST, _MOST = 8, 200  # jobs of a slice: of a process's first, and of any
_WEIGHT = 0.2  # of a slice in the average of what a job takes
_EVENTS = {SUCCESS: "task-succeeded", FAILURE: "task-failed", "RETRY": "task-retried", "REJECTED": "task-rejected"}


class Told(str):
    """In place of the text of a result: what a bundle's process has to tell the main process, as JSON."""

    __slots__ = ()


@dataclass(slots=True)
class _Job:
    """One job of a bundle, as its message would have brought it."""

    delivery: Delivery
    run: UUID
    headers: dict[str, Any]
    properties: dict[str, Any]
    body: Sequence[Any]


class BundleTrace:
    """In the place of the tracer of the task ``bridge.bundle``, in each process of a pool."""

    fenced = True

    def __init__(self, app: Any, joined: Membership) -> None:
        self._app, self._joined, self._board = app, joined, joined.board
        self._limits = SoftLimits()
        self._each: float | None = None  # seconds that a job takes, lately

    def __call__(self, task_id: str, args: Any, kwargs: Any, request: Any = None) -> Any:  # noqa: ARG002 - Celery's signature
        """Run a bundle; the answer has the deliveries that were not begun, because the worker stops or Postgres is away."""
        began = time.monotonic()
        jobs = deque(_jobs_of(args))
        runs = _Telling(request)
        with self._joined.channels.get().keeping():
            while jobs and not self._board.is_left and self._run_slice(jobs, request, runs):
                pass
        told = {"left": [job.delivery.token for job in jobs], "counts": runs.counts, "events": runs.events}
        return trace_ok_t(None, None, time.monotonic() - began, Told(json.dumps(told, default=str)))

    def _run_slice(self, jobs: deque[_Job], request: dict[str, Any], runs: _Telling) -> bool:
        """Run the next few; False when the others are to be left."""
        began = time.monotonic()
        taken = [jobs.popleft() for _ in range(min(self._size(), len(jobs)))]
        count, admitted, asked_at = len(taken), self._admitted(taken), time.monotonic()
        while taken and admitted is not None:
            if time.monotonic() - asked_at > _STALE and not self._board.is_left:
                self._joined.channels.get().flush()
                admitted, asked_at = self._admitted(taken), time.monotonic()
            elif self._board.is_left:
                break
            elif (job := taken.pop(0)).delivery.seq in admitted:
                self._run(job, request, runs)
        if taken:  # the worker stops, or postgres is away: nothing of these has begun
            jobs.extendleft(reversed(taken))
            return False
        each = (time.monotonic() - began) / count
        self._each = each if self._each is None else (1 - _WEIGHT) * self._each + _WEIGHT * each
        return True

    def _size(self) -> int:
        return _FIRST if self._each is None else max(1, min(_MOST, int(_SLICE / max(self._each, 1e-6))))

    def _admitted(self, taken: Sequence[_Job]) -> set[int] | None:
        """The numbers of those that may run; None while Postgres is away."""
        wanted = sorted((Wanted(job.delivery.seq, job.delivery.token, job.run) for job in taken), key=lambda one: one.seq)
        channel = self._joined.channels.get()
        try:
            return outcome.within_patience(self._joined, lambda: channel.start_many(wanted, self._joined.worker_id, os.getpid()))
        except OUTAGE as error:
            log.warning("handed back, postgres is away jobs=%d error=%s", len(wanted), error)
            return None

    def _run(self, job: _Job, bundle: dict[str, Any], runs: _Telling) -> None:
        run = Run(job.delivery, job.run, job_id(job.headers["id"]))
        began = time.monotonic()
        self._board.begin(job.delivery.seq)
        try:
            traced = self._traced(job, run, bundle)
        except Exception as error:  # noqa: BLE001 - as Celery does with what leaves a tracer
            traced = None
            log.warning("a tracer raised task_id=%s error=%r", job.headers["id"], error)
            if not run.settled:
                outcome.failed(self._joined, run, error_of(error, None), final=outcome.is_final(error))
        finally:
            self._board.begin(0)
        runs.tell(job, traced, began, time.monotonic())

    def _traced(self, job: _Job, run: Run, bundle: dict[str, Any]) -> Any:
        name = job.headers["task"]
        if name not in self._app.tasks:
            raise NotRegistered(name)
        args, kwargs, embed = job.body
        refuse_said_again(embed, job.headers, is_row=True)
        request = {
            **job.headers, "properties": job.properties, "reply_to": job.properties.get("reply_to"),
            "correlation_id": job.properties.get("correlation_id"), "hostname": bundle.get("hostname"),
            "delivery_info": bundle.get("delivery_info"), "args": args, "kwargs": kwargs, "is_eager": False, **(embed or {}),
        }  # fmt: skip
        task = self._app.tasks[name]
        if not hasattr(task.__trace__, "admitted"):  # one that came to be in this process
            fence(self._app, self._joined)
        soft = (job.headers.get("timelimit") or (None, None))[1] or task.soft_time_limit or bundle.get("bridge_soft_limit")
        traced = None
        try:
            with self._limits.of(soft):
                traced = task.__trace__.admitted(run, job.headers["id"], args, kwargs, request)
        except SoftTimeLimitExceeded:
            if traced is None:  # else it came when the task was over
                raise
        return traced


class _Telling:
    """What the main process is told of a bundle's jobs: how many there were of each task, and Celery's events while somebody watches."""

    def __init__(self, bundle: dict[str, Any]) -> None:
        self._watched = bool(bundle.get("bridge_events"))
        self.counts: dict[str, int] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []

    def tell(self, job: _Job, traced: Any, began: float, ended: float) -> None:
        name = job.headers["task"]
        self.counts[name] = self.counts.get(name, 0) + 1
        if self._watched:
            now = time.time() - time.monotonic()
            self.events += _events(job, traced, now + began, now + ended)


def _events(job: _Job, traced: Any, began: float, ended: float) -> list[tuple[str, dict[str, Any]]]:
    """The events that Celery's main process sends of a message that has one job."""
    headers, uuid = job.headers, job.headers["id"]
    received = {
        "uuid": uuid, "name": headers["task"], "args": headers.get("argsrepr"), "kwargs": headers.get("kwargsrepr"),
        "root_id": headers.get("root_id"), "parent_id": headers.get("parent_id"), "retries": headers.get("retries", 0),
        "eta": None, "expires": None, "timestamp": began,
    }  # fmt: skip
    info = None if traced is None else traced[1]
    state = FAILURE if traced is None else SUCCESS if info is None else info.state
    last: dict[str, Any] = {"uuid": uuid, "timestamp": ended}
    if state == SUCCESS:
        last |= {"result": traced[3], "runtime": ended - began}
    elif info is not None:
        last |= {"exception": safe_repr(info.retval), "traceback": str(getattr(traced[0], "traceback", ""))}
    steps = [("task-received", received), ("task-started", {"uuid": uuid, "timestamp": began})]
    return [*steps, (_EVENTS[state], last)] if state in _EVENTS else steps


def _jobs_of(args: Sequence[Any]) -> list[_Job]:
    """The jobs of a bundle; what names no delivery is nobody's."""
    text, found = args[0], []
    # Kombu's own loads looks at each mapping of it for a value that JSON has no form for.
    for headers, properties, body in kombu_json.loads(text) if "__type__" in text else json.loads(text):
        delivery = Delivery.of(headers)
        if delivery is not None:
            found.append(_Job(delivery, uuid4(), headers, properties or {}, body))
    return found
