"""Running jobs in the process of a test: through Celery's own tracer, without a broker, a drainer or a worker."""

from __future__ import annotations

import socket
import uuid
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app.trace import build_tracer
from celery.exceptions import InvalidTaskError, NotRegistered, Reject, Retry
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.message import Message
from kombu.serialization import prepare_accept_content
from kombu.utils.json import object_hook

from bridge import message as wire
from bridge.errors import BridgeError
from bridge.queries import dispatch, jobs, runs, testing
from bridge.testing.applications import connections_of, joined_application, writing_through
from bridge.worker.fence import TaskMemoryError, fenced

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from bridge.job import Job
    from bridge.queries.connection import Connection
    from bridge.queries.dispatch import Claimed
    from bridge.queries.testing import Delayed

__all__ = ["run_jobs"]

_UNREADABLE = (InvalidTaskError, ContentDisallowed, DecodeError)


def run_jobs(
    app: Any = None,
    *,
    connection: Any = None,
    queues: Sequence[str] | None = None,
    later: float | timedelta = 0.0,
    propagate: bool = False,
    limit: int = 1000,
) -> list[Job]:
    """Run what is due, and what that leads to, in this process and thread, until nothing is due any more.

    Each job goes through the start fence and Celery's own tracer: hooks, signals, callbacks and retries are as in a worker, and its
    outcome is on its row when this returns. Jobs run one at a time: queues by name, in each the most urgent first, then the oldest. Time
    limits and rate limits are a worker's, and do not apply.

    Args:
        app: the Celery application; None takes the current one, or the only one that has joined.
        connection: psycopg 3's, Django's, or a SQLAlchemy Session or Connection: jobs of its uncommitted transaction run in it, and
            what becomes of them is rolled back with it. None means the transaction around a test of Django's; elsewhere, none: what is
            committed runs.
        queues: only jobs of these queues; None runs all.
        later: seconds, or a timedelta: what is due within that time too, as if it passed: earliest first, delays that begin on the way
            counted from where they begin. Each call counts from the real time.
        propagate: raise what a task raises, once its row tells of it; a retry is no error.
        limit: most runs.

    Returns:
        The jobs that ran, in the order of their first runs, as they are at the end.

    Raises:
        BridgeError: so many jobs have run, and more are due.
        InvalidArgumentError: it is not clear which application is meant.
    """
    app = joined_application(app)
    app.loader.import_default_modules()
    connections = connections_of(app.bridge, connection)
    with writing_through(app, connections):
        runner = _Runner(app, queues, propagate=propagate, limit=limit)
        runner.run(later if isinstance(later, int | float) else later.total_seconds())
        return runner.jobs()


class _Runner:
    def __init__(self, app: Any, queues: Sequence[str] | None, *, propagate: bool, limit: int) -> None:
        self.app = app
        self.hostname = f"run_jobs@{socket.gethostname()}"
        self._queues = None if queues is None else sorted(queues)
        self._propagate = propagate
        self._left = self._limit = limit
        self._drainer = uuid.uuid4()
        self._passed = 0.0  # seconds of pretended time
        self._moments: dict[tuple[UUID, datetime], tuple[float, float | None]] = {}  # when delayed jobs are due and expire, in that time
        self._ran: dict[UUID, None] = {}
        runs.prepare(self._postgres())
        runs.make_days(self._postgres())

    def run(self, later: float) -> None:
        self._run_due()
        while (step := self._next(later)) is not None:
            job, due, expires = step
            self._passed = max(self._passed, due)
            if expires is not None and job.expires_at is not None and expires <= due:
                testing.expire(self._postgres(), job.expires_at)
            else:
                jobs.retry(self._postgres(), job.id)
                self._run_due()

    def jobs(self) -> list[Job]:
        found = (jobs.get(self._postgres(), identity) for identity in self._ran)
        return [job for job in found if job is not None]

    def _postgres(self) -> Connection:
        connection: Connection = self.app.bridge.connections.get()
        return connection

    def _next(self, later: float) -> tuple[Delayed, float, float | None] | None:
        """The delayed job that is due first in pretended time, and when; None when there is none that early."""
        waiting = testing.delayed(self._postgres(), self._queues)
        for job in waiting:
            expires = None if job.expires_in is None else job.expires_in + self._passed
            self._moments.setdefault((job.id, job.run_at), (job.due_in + self._passed, expires))
        first = min(waiting, key=lambda job: self._moments[job.id, job.run_at][0], default=None)
        if first is None:
            return None
        due, expires = self._moments[first.id, first.run_at]
        return None if due > later else (first, due, expires)

    def _run_due(self) -> None:
        while (job := self._claim()) is not None:
            if self._left == 0:
                raise BridgeError(f"{self._limit} jobs have run and more are due", "does a task call itself for ever? else raise the limit")
            self._left -= 1
            self._ran[uuid.UUID(job.id)] = None
            self._execute(job)

    def _claim(self) -> Claimed | None:
        """The job to run next, claimed and published as far as its row knows; the tick brings about what time has made due."""
        job = self._claim_ready()
        if job is None:
            dispatch.tick(self._postgres(), "manual")
            job = self._claim_ready()
        return job

    def _claim_ready(self) -> Claimed | None:
        shipment = uuid.uuid4()
        for queue in sorted(dispatch.ready_queues(self._postgres())):
            if self._queues is not None and queue not in self._queues:
                continue
            claimed = dispatch.claim(self._postgres(), self._drainer, queue, shipment, limit=1, size=1)
            if claimed:
                dispatch.mark_published(self._postgres(), shipment, [claimed[0].seq])
                return claimed[0]
        return None

    def _execute(self, job: Claimed) -> None:
        """Run a job; a message that a worker would refuse is refused with the signals of a worker, which ends the job."""
        message = self._message(job)
        try:
            request = Request(message, app=self.app, task=self.app.tasks[job.task], hostname=self.hostname)
        except _UNREADABLE as error:
            signals.task_rejected.send(sender=self, message=message, exc=error)
        except NotRegistered as error:
            signals.task_unknown.send(sender=self, message=message, exc=error, name=job.task, id=message.headers["id"])
        else:
            self._trace(request)

    def _message(self, job: Claimed) -> Message:
        """What a worker gets from the broker."""
        sent = wire.envelope(job, object_hook)
        info = dict(zip(("exchange", "routing_key"), sent.route, strict=True))
        return Message(
            sent.body, content_type=sent.content_type, content_encoding=sent.content_encoding, headers=sent.headers,
            properties=sent.properties, delivery_info=info, accept=prepare_accept_content(self.app.conf.accept_content),
        )  # fmt: skip

    def _trace(self, request: Request) -> None:
        task = request.task
        # A tracer of its own: the task's may belong to a worker in this process, and remembers its result backend.
        trace = fenced(task, build_tracer(task.name, task, self.app.loader, hostname=request.hostname, app=self.app), self.app.bridge)
        _, _, embed = request._payload
        asked = {**request.request_dict, "is_eager": False, **(embed or {})}
        try:
            raised = getattr(trace(request.id, request.args, request.kwargs, asked)[0], "exception", None)
            raised = getattr(raised, "exc", raised)  # billiard's wrapper
        except (SystemExit, TaskMemoryError) as left:
            raised = left  # which a worker's process would not survive; the fence has noted it
        if isinstance(raised, Reject) and not raised.requeue:
            # As a worker's main process does.
            task.backend.mark_as_failure(request.id, raised, request=request._context, store_result=True)
        if self._propagate and isinstance(raised, BaseException) and not isinstance(raised, Retry):
            raise raised
