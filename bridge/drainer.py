"""The drainer: claim, commit, publish with confirmation, mark; tick when nobody else does; notice when the broker forgot."""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_when_event_set, wait_random_exponential

import bridge
from bridge import ahead, schema, tracing
from bridge.ahead import Ahead
from bridge.alarm import Alarm, Trouble
from bridge.broker import open_broker
from bridge.bundles import Bundles
from bridge.calls import Calls
from bridge.caution import LONGEST_PAUSE, Holds, Suspicion
from bridge.errors import PublishError, RefusedError, ServerError, UnsendableError
from bridge.floors import Floors
from bridge.job import Status
from bridge.listening import Listening
from bridge.lookout import Lookout
from bridge.meter import Meter
from bridge.queries import dispatch, runs, silent
from bridge.queries.connection import OUTAGE, connect, is_pooled
from bridge.records import Fields
from bridge.vitals import Vitals

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from threading import Event

    from bridge.broker import Broker
    from bridge.broker.sifting import Unsendable
    from bridge.bundles import Sizes
    from bridge.queries.connection import Connection
    from bridge.queries.dispatch import Claimed
    from bridge.settings import Settings

__all__ = ["Drainer"]

log = logging.getLogger("bridge.drainer")

_REPORT_EVERY = 5.0  # seconds between two reports, and two looks for messages that are gone
_MOST_WORDS = 1000  # characters of the reason why a job cannot be sent
_OUTAGE = (PublishError, *OUTAGE)


@dataclass
class _Clock:
    """When each periodic duty is due next, on the monotonic clock."""

    tick: float = 0.0
    report: float = 0.0
    recover: float = field(default_factory=lambda: time.monotonic() + _REPORT_EVERY)


class Drainer:
    """Moves ready jobs to the broker until it is told to stop. Any number may run.

    Everything it holds in memory is one shipment: a crash at any line loses nothing, because a job is claimed before it is sent and
    marked only after the broker has confirmed it.
    """

    def __init__(self, settings: Settings, stop: Event) -> None:
        self.id = uuid.uuid4()
        self.published = 0
        self.meter = Meter()
        self.vitals = Vitals()
        self._settings = settings
        self._stop = stop
        self._wanted = settings.queue_names()
        self._clock = _Clock()
        self._holds = Holds()
        self._suspicion = Suspicion()
        self._connection: Connection | None = None
        self._broker: Broker | None = None
        self._broker_facts: dict[str, object] = {}
        self._lookout = Lookout()
        self._calls = Calls(settings)
        self._bundles = Bundles()
        self._trouble = Trouble()
        self._alarm = Alarm()
        self._floors = Floors()
        self._listening = Listening(self._wanted, settings.poll, stop)
        self._ahead = Ahead(self._connect, self.id)

    def run(self) -> None:
        """Work until the stop event is set; outages of Postgres or the broker are waited out with growing, jittered pauses.

        Raises:
            SchemaError: the schema does not fit this process.
        """
        schema.check(self._settings.require_database(), timeout=self._settings.timeout) if self._reachable() else None
        retrying = Retrying(
            retry=retry_if_exception_type(_OUTAGE), wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE),
            stop=stop_when_event_set(self._stop), sleep=self._sleep, before_sleep=self._report_outage, reraise=True,
        )  # fmt: skip
        while not self._stop.is_set():
            with suppress(*_OUTAGE):
                retrying(self._work)
        self.close()

    def _reachable(self) -> bool:
        try:
            self._open()
        except _OUTAGE as error:
            log.warning("not connected yet error=%s", error)
            return False
        return True

    def _sleep(self, seconds: float) -> None:
        """Pause during an outage. A broker that is down is no reason not to tick and report."""
        end = time.monotonic() + seconds
        while not self._stop.is_set() and (left := end - time.monotonic()) > 0:
            self.vitals.turn()
            with suppress(*_OUTAGE):
                if self._connection is not None:
                    self._do_duties()
                    self._listening.forget(self._connection)
            self._stop.wait(min(left, 1.0))

    def _report_outage(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._trouble.note(error)
        log.warning("outage pause=%.1f error=%s", state.next_action.sleep if state.next_action else 0.0, error)

    def _work(self) -> None:
        """Work until stopped or broken; an outage after progress starts a new round of pauses, small again."""
        before = self.published
        try:
            self._open()
            while not self._stop.is_set():
                self.vitals.turn()
                self._do_duties()
                published = self.drain_once()
                self._trouble.over()
                if published < self._settings.shipment:
                    self._wait_for_work(published)
                else:
                    self._listening.hurry(self._postgres())  # so that a claim which meets another drainer's comes again soon
        except _OUTAGE as error:
            self._drop()
            self._trouble.note(error)
            if self.published == before:
                raise
            log.warning("outage error=%s", error)

    def _connect(self) -> Connection:
        return connect(self._settings.require_database(), name="bridge drain", timeout=self._settings.timeout, asynchronous_commit=True)

    def _open(self) -> None:
        """Connect to both sides, and listen."""
        if self._connection is None:
            self._connection = self._connect()
            if not is_pooled(self._connection):
                self._connection.execute("listen bridge_ready")
            self.vitals.postgres = True
            log.info("connected to postgres drainer=%s pooled=%s", self.id, is_pooled(self._connection))
        if self._broker is None:
            self._broker = open_broker(self._settings)
            if not self._broker_facts:
                for one in self._broker.shortcomings:
                    log.warning("this broker cannot %s", one)
            self._broker_facts = self._broker.describe()
            self._clock.report = 0.0  # which says that it listens
            self.vitals.broker = True
            log.info("connected to broker %s", Fields(self._broker_facts))

    def _drop(self) -> None:
        """Let go of connections that may be broken, and of what was claimed ahead."""
        self._ahead.give_back(self._connection)
        with suppress(Exception):
            if self._broker is not None:
                self._broker.close()
        if self._connection is not None and self._connection.closed:
            self._connection.close()
            self._connection = None
        self._broker = None
        self._clock.report = 0.0  # nobody need tell it of jobs now
        self.vitals.postgres, self.vitals.broker = self._connection is not None, False

    def close(self) -> None:
        """Say good-bye and disconnect."""
        self._ahead.give_back(self._connection)
        self._ahead.close()
        with suppress(psycopg.Error):
            if self._connection is not None:
                self._report(stopped=True)
                self._connection.close()
        self._connection = None
        self._drop()
        log.info("stopped published=%d", self.published)

    def drain_once(self) -> int:
        """Claim one shipment of each queue that has ready jobs, publish it, and mark it published.

        The order is what makes a job survive a crash at any line: it is claimed before it is sent and marked only after the broker
        confirms. A crash in between sends a job twice, never zero times; the worker's start fence admits one of the copies.

        Returns:
            How many jobs were published; 0 when none was ready, the windows are full, or other drainers claim at this moment.

        Raises:
            PublishError: the broker refused or timed out; what was claimed is ready again.
        """
        self._open()
        connection = self._postgres()
        queues = self._serve({*(self._listening.told() or dispatch.ready_queues(connection)), *self._ahead.queues})
        random.shuffle(queues)  # no queue is always first
        return sum(self._drain_queue(connection, queue) for queue in queues)

    def _drain_queue(self, connection: Connection, queue: str) -> int:
        limit, size = self._suspicion.limit(queue, self._settings.shipment), self._settings.shipment_bytes
        sizes = self._bundles.sizes(connection, queue)
        claimed = self._ahead.take(queue) or ahead.claim(connection, self.id, queue, limit=limit, size=size)
        jobs = claimed.jobs
        self.meter.claimed(claimed.seconds, len(jobs))
        self._floors.claimed(queue, len(jobs))
        if len(jobs) == limit == self._settings.shipment:  # there is more
            self._ahead.begin(queue, limit=limit, size=size)
        if sizes is not None and jobs:
            jobs = dispatch.set_alone(connection, jobs)
        try:
            count = self._ship(claimed.id, jobs, sizes)
        except RefusedError as error:
            # The broker is well, so the other queues go on.
            self._ahead.give_back(connection, queue)
            pause = self._holds.hold(queue, took_some=bool(error.confirmed))
            log.warning("refused queue=%s jobs=%d pause=%.1f error=%s", queue, len(jobs) - len(error.confirmed), pause, error)
            return len(error.confirmed)
        except PublishError as error:
            if not error.blamed:
                raise
            log.warning("broken off at a message queue=%s jobs=%d error=%s", queue, len(jobs) - len(error.confirmed), error)
            self._drop()  # the broker is well, so the other queues go on, on a new connection
            self._open()
            return len(error.confirmed)
        self._holds.release(queue)
        return count

    def _ship(self, shipment: uuid.UUID, jobs: Sequence[Claimed], sizes: Sizes | None = None) -> int:
        if not jobs:
            return 0
        sent_at, began = time.time(), time.monotonic()
        try:
            with tracing.publish_span(jobs[0].queue, [job.headers for job in jobs]):
                unsendable = self._publish(jobs, sizes)
        except PublishError as error:
            self.meter.failed("refused" if isinstance(error, RefusedError) else "outage")
            self._mark(shipment, [job for job in jobs if job.seq in error.confirmed], sent_at)
            if error.blamed and self._suspicion.accuse(jobs):
                self._end_unsendable(jobs[0], error)
            # Uncertain: some may have arrived. They keep their tokens, so a second copy is harmless.
            dispatch.unclaim(self._postgres(), shipment, [job.seq for job in jobs if job.seq not in error.confirmed])
            raise
        self.meter.shipped(time.monotonic() - began, len(jobs))
        self._suspicion.sent(jobs[0].queue, len(jobs))
        for job, reason in unsendable:
            self._end_unsendable(job, reason)
        gone = {job.seq for job, _ in unsendable}
        self._mark(shipment, [job for job in jobs if job.seq not in gone] if gone else jobs, sent_at)
        return len(jobs)

    def _end_unsendable(self, job: Claimed, reason: Exception) -> None:
        """A job of which no message can be sent fails with the reason: sent again it would be the same, and hold up all others."""
        reason = reason.__cause__ if isinstance(reason.__cause__, Exception) else reason  # the broker's own words
        words = f"no message of it can be sent: {type(reason).__name__} {reason}"[:_MOST_WORDS]
        words = words.encode(errors="replace").decode().replace("\x00", "\ufffd")
        error = json.dumps({"type": UnsendableError.__name__, "module": UnsendableError.__module__, "message": words, "traceback": None})
        runs.end_delivery(self._postgres(), job.seq, job.token, self.id, Status.FAILED, error, final=True, outcome=None, pid=None)
        log.error("job failed queue=%s id=%s task=%s error=%s", job.queue, job.id, job.task, words)

    def _mark(self, shipment: uuid.UUID, jobs: Sequence[Claimed], sent_at: float) -> None:
        """The broker has these."""
        if not jobs:
            return
        dispatch.mark_published(self._postgres(), shipment, [job.seq for job in jobs])
        self._announce(jobs, sent_at)
        self.published += len(jobs)
        self._trouble.published()
        log.debug("published queue=%s jobs=%d shipment=%s", jobs[0].queue, len(jobs), shipment)

    def _publish(self, jobs: Sequence[Claimed], sizes: Sizes | None) -> list[Unsendable]:
        if self._broker is None:
            raise PublishError("not connected to the broker")
        return self._bundles.publish(self._broker, jobs, sizes)

    def _announce(self, jobs: Sequence[Claimed], sent_at: float) -> None:
        """Tell Flower and its like, after everything that a job waits for; a worker's events may come first, so the time is told."""
        if self._broker is not None:
            self._broker.announce(jobs, sent_at)

    def _postgres(self) -> Connection:
        if self._connection is None:
            raise ServerError("not connected to postgres")
        return self._connection

    def _wait_for_work(self, published: int) -> None:
        """Sleep until there is something to do."""
        connection = self._postgres()
        ready = lambda: bool(self._serve(dispatch.ready_queues(connection)))  # noqa: E731
        self._listening.wait(connection, published, ready, until=min(self._clock.tick, self._clock.report))

    def _serve(self, queues: Iterable[str]) -> list[str]:
        """Those of these queues that this drainer serves now."""
        return [queue for queue in queues if queue not in self._holds and self._is_mine(queue)]

    def _is_mine(self, queue: str) -> bool:
        """Whether this drainer was started for the queue: others may lie with another broker."""
        return not self._wanted or queue in self._wanted

    def _do_duties(self) -> None:
        """Tick, report and look for messages that are gone, each when it is due."""
        if (seen := self._lookout.take()) is not None:
            plain = [consumer for consumer in seen if consumer.plugin is None]
            silent.note_silent(self._postgres(), [one.name for one in plain], [one.queue for one in plain])
        self._floors.raise_if_due(self._postgres())  # before a tick, which needs them
        now = time.monotonic()
        if now >= self._clock.tick:
            self._clock.tick = now + 1.0
            self._tick()
        if self._listening.look(self._postgres()) or now >= self._clock.report:
            self._clock.report = now + _REPORT_EVERY
            self._report()
            self._alarm.say(self._postgres())
        if now >= self._clock.recover:
            self._clock.recover = now + _REPORT_EVERY
            if self._broker is not None and self._lookout.idle and silent.may_look(self._postgres()):
                self._lookout.begin(self._broker.consumers)
            self.recover()

    def _tick(self) -> None:
        if self._settings.tick == "off":
            return
        self._calls.look(self._postgres())
        tick = dispatch.tick if self._settings.tick == "drainer" else dispatch.tick_if_late
        with self.meter.ticking():
            done = tick(self._postgres(), "drainer")
        if done and any(done.values()):
            log.info("ticked %s", Fields({step: count for step, count in done.items() if count}))

    def _report(self, *, stopped: bool = False) -> None:
        listens = self._listening.wanted(self._postgres()) if self._broker is not None else []
        dispatch.report_drainer(
            self._postgres(), self.id, name=f"{socket.gethostname()}:{os.getpid()}", pid=os.getpid(),
            software=f"bridge {bridge.__version__} python {platform.python_version()}", published=self.published,
            clock=datetime.now(UTC), broker={**self._broker_facts, **self._trouble.facts(self._holds.refused())}, stopped=stopped,
            listens=listens,
        )  # fmt: skip
        self._listening.reported(self._postgres(), listens)

    def recover(self) -> int:
        """Publish again what the broker has lost.

        A published job has no deadline: it may wait behind long tasks or all night without a worker. Its message counts as gone only when
        no living worker reports it, the broker certainly does not have it, and both are still so after a grace. What a worker without
        our plugin may have taken is set aside: that worker reports nothing, and a person must say what became of it.

        Returns:
            How many jobs were published again.
        """
        connection, broker = self._postgres(), self._broker
        suspects = [one for one in dispatch.suspects(connection) if self._is_mine(one.queue)]
        if not suspects or broker is None:
            return 0
        missing = broker.missing(suspects)
        dispatch.mark_missing(connection, missing, {suspect.token for suspect in suspects} - missing)
        late = {one.token for one in suspects if one.token in missing and one.missing_since is not None}
        if not late:
            return 0
        for queue, number in silent.set_aside(connection, late).items():
            log.error("taken by workers that report nothing, see bridge.unreported_jobs queue=%s jobs=%d", queue, number)
        shipment = uuid.uuid4()
        jobs = dispatch.republish(connection, self.id, shipment, late)
        try:
            count = self._ship(shipment, jobs)
        except RefusedError as error:
            count = len(error.confirmed)
            log.warning("refused jobs=%d error=%s", len(jobs) - count, error)
        self.meter.recovered(count)
        if count:
            log.warning("published again, their messages were gone jobs=%d", count)
        return count
