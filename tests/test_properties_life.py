"""A job's life against a small model: whatever is done to jobs in whatever order, SQL and model agree on where each one is."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_sql import Claim, Session
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from invariants import assert_sound

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_LOSSES = 2
ENDED = {"succeeded", "failed", "cancelled"}
WITH_BROKER = {"claimed", "published"}


@dataclass
class Model:
    """What is known of one job."""

    max_attempts: int
    parents: list[uuid.UUID] = field(default_factory=list)
    later: bool = False
    status: str = "queued"
    token: Any = None  # of the delivery that may still start or end
    run: Any = None
    asked_to_stop: bool = False
    attempts: int = 0
    losses: int = 0

    def leave(self, status: str, *, counted: int = 0) -> None:
        self.status, self.token, self.run, self.asked_to_stop = status, None, None, False
        self.attempts += counted


class Life(RuleBasedStateMachine):
    """Each rule does one thing in SQL and says what the model expects of it."""

    dsn = ""
    ids = Bundle("ids")
    deliveries = Bundle("deliveries")
    started = Bundle("started")

    def __init__(self) -> None:
        super().__init__()
        self.db = Session(self.dsn)
        self.queue = f"q{uuid.uuid4().hex}"
        self.jobs: dict[uuid.UUID, Model] = {}

    def teardown(self) -> None:
        assert_sound(self.dsn)
        self.db.connection.close()

    @rule(target=ids, max_attempts=st.integers(1, 3), later=st.booleans(), priority=st.integers(0, 9))
    def enqueue(self, max_attempts: int, priority: int, *, later: bool) -> uuid.UUID:
        options = {"delay": "1 day"} if later else {}
        identity = self.db.enqueue(queue=self.queue, max_attempts=max_attempts, backoff=0, priority=priority, **options)
        self.jobs[identity] = Model(max_attempts, later=later, status="scheduled" if later else "queued")
        return identity

    @rule(target=ids, parents=st.lists(ids, min_size=1, max_size=3))
    def enqueue_child(self, parents: list[uuid.UUID]) -> Any:
        hopeless = any(self.jobs[parent].status in {"failed", "cancelled"} for parent in parents)
        if hopeless:
            with pytest.raises(psycopg.Error, match="depends_on names job"):
                self.db.enqueue(queue=self.queue, depends_on=parents)
            return multiple()
        identity = self.db.enqueue(queue=self.queue, max_attempts=1, depends_on=parents)
        waits = [parent for parent in parents if self.jobs[parent].status != "succeeded"]
        self.jobs[identity] = Model(1, parents=waits, status="blocked" if waits else "queued")
        return identity

    @rule(target=deliveries, limit=st.integers(1, 3))
    def claim(self, limit: int) -> Any:
        claims = self.db.claim(queue=self.queue, limit=limit)
        assert len(claims) == min(limit, sum(job.status == "queued" for job in self.jobs.values()))
        for claim in claims:
            job = self.jobs[claim.id]
            assert job.status == "queued"
            assert job.token in {None, claim.token}, "what was put back keeps its token"
            job.status, job.token = "claimed", claim.token
        return multiple(*claims)

    @rule(delivery=deliveries)
    def mark(self, delivery: Claim) -> None:
        shipment = self.db.rows("select shipment from bridge.inflight where seq = %s", delivery.seq)
        job = self.jobs[delivery.id]
        if shipment and job.token == delivery.token:
            marked = self.db.one("select bridge.mark_published(%s, %s)", shipment[0][0], [delivery.seq])
            assert marked == (job.status == "claimed")
            job.status = "published" if marked else job.status

    @rule(delivery=deliveries)
    def unclaim(self, delivery: Claim) -> None:
        job = self.jobs[delivery.id]
        current = bool(self.db.rows("select from bridge.inflight where seq = %s", delivery.seq))
        expected = current and job.status == "claimed"
        assert bool(self.db.one("select bridge.unclaim(%s)", [delivery.seq])) == expected
        if expected:
            job.status = "queued"

    @rule(target=started, delivery=deliveries)
    def start(self, delivery: Claim) -> Any:
        job = self.jobs[delivery.id]
        run = self.db.start(delivery)
        assert (run is not None) == (job.token == delivery.token and job.status in WITH_BROKER)
        if run is None:
            return multiple()
        job.status, job.run = "running", run
        return (delivery, run)

    @rule(held=started, result=st.integers())
    def finish(self, held: tuple[Claim, Any], result: int) -> None:
        delivery, run = held
        job = self.jobs[delivery.id]
        assert self.db.finish(delivery, run, result=result) == (job.run == run)
        if job.run == run:
            job.leave("succeeded", counted=1)
            assert self.db.field(delivery.id, "result") == result
            self.release(delivery.id)

    @rule(held=started, final=st.booleans())
    def fail(self, held: tuple[Claim, Any], *, final: bool) -> None:
        delivery, run = held
        job = self.jobs[delivery.id]
        expected = None
        if job.run == run:
            last = final or job.attempts + 1 >= job.max_attempts
            expected = "cancelled" if job.asked_to_stop else "failed" if last else "queued"
            job.leave(expected, counted=1)
            self.release(delivery.id)
        assert self.db.fail(delivery, run, final=final) == expected

    @rule(delivery=deliveries)
    def lose(self, delivery: Claim) -> None:
        job = self.jobs[delivery.id]
        expected = None
        if job.token == delivery.token and job.status in {*WITH_BROKER, "running"}:
            was_running, stop = job.status == "running", job.asked_to_stop
            job.losses += was_running
            expected = "cancelled" if stop else "failed" if job.losses > MAX_LOSSES else "queued"
            if expected in ENDED and was_running:
                job.losses -= 1
            job.leave(expected, counted=expected in ENDED)
            self.release(delivery.id)
        assert self.db.one("select bridge.lose(%s, %s, 'killed')", delivery.seq, delivery.token) == expected

    @rule(identity=ids)
    def cancel(self, identity: uuid.UUID) -> None:
        job = self.jobs[identity]
        expected = job.status if job.status in {*ENDED, "running"} else "cancelled"
        assert self.db.one("select bridge.cancel(%s)", identity) == expected
        if job.status == "running":
            job.asked_to_stop = True
        elif job.status not in ENDED:
            job.leave("cancelled")
            self.release(identity)

    @rule(identity=ids)
    def retry(self, identity: uuid.UUID) -> None:
        job = self.jobs[identity]
        if job.status not in {*ENDED, "scheduled"}:
            with pytest.raises(psycopg.Error, match=f"job {identity} is "):
                self.db.one("select bridge.retry(%s)", identity)
            return
        assert self.db.one("select bridge.retry(%s)", identity) == "queued"
        if job.status in ENDED:
            job.max_attempts += job.attempts
            job.losses, job.later = 0, False
        job.leave("queued")

    @rule(time_has_come=st.booleans())
    def tick(self, *, time_has_come: bool) -> None:
        if time_has_come:
            self.db.do("update bridge.job set run_at = now() where queue = %s and run_at > now()", self.queue)
            self.db.do("update bridge.scheduled s set run_at = j.run_at from bridge.job j where j.seq = s.seq")
        self.db.do("select bridge.tick('test')")
        for job in self.jobs.values():
            if time_has_come and job.status == "scheduled":
                job.status = "queued"

    def release(self, parent: uuid.UUID) -> None:
        """What follows for the children of a job that may have ended."""
        status = self.jobs[parent].status
        for identity, child in self.jobs.items():
            if child.status != "blocked" or parent not in child.parents or status not in ENDED:
                continue
            if status == "succeeded":
                child.parents = [other for other in child.parents if other != parent]
                child.status = "blocked" if child.parents else "queued"
            else:
                child.leave("cancelled")
                self.release(identity)

    @invariant()
    def every_job_is_where_the_model_says(self) -> None:
        columns = "id, status, attempts - (status = 'running')::int, losses"
        rows: Iterable[Any] = self.db.rows(f"select {columns} from bridge.jobs where queue = %s", self.queue)
        shown = {"claimed": "queued"}
        expected = {key: (shown.get(job.status, job.status), job.attempts, job.losses) for key, job in self.jobs.items()}
        assert {row[0]: row[1:] for row in rows} == expected


def test_sql_and_model_agree_on_every_life(dsn: str) -> None:
    Session(dsn).do("update bridge.setting set value = %s where name = 'max_losses'", str(MAX_LOSSES))
    machine = type("LifeHere", (Life,), {"dsn": dsn})
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    chosen = settings(max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=slow)
    run_state_machine_as_test(machine, settings=chosen)  # type: ignore[arg-type]
