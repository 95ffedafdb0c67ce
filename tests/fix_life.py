"""The life of jobs as a state machine: each rule does one thing in SQL and says what a small model expects of it.

A test of a further operation derives from `Life`, adds rules, and calls `run_lives` of life_model. What it needs beyond the model it keeps
by the job's id; what holds a job back from claims it says in `is_held`.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

import psycopg
import pytest
from fix_sql import Claim, Session
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule
from invariants import assert_sound
from life_model import EMPTIED, FINAL, MAX_LOSSES, MOMENTS, OTHER, OWN, PLACES, SHOWN, STEP, WITH_BROKER, Model, Unchanged


class Life(RuleBasedStateMachine):
    """The operations of callers, drainers, workers, operators and the tick."""

    dsn = ""
    queue = "celery"
    ids = Bundle("ids")
    deliveries = Bundle("deliveries")
    started = Bundle("started")

    def __init__(self) -> None:
        super().__init__()
        self.db = Session(self.dsn)
        self.db.do(f"truncate {', '.join(f'bridge.{table}' for table in EMPTIED)}")
        self.now = 0.0
        self.jobs: dict[uuid.UUID, Model] = {}
        self.runs: dict[Any, uuid.UUID] = {}  # every run there was, with its job
        self.seen: dict[uuid.UUID, tuple[int, int, str, Any, Any]] = {}

    def teardown(self) -> None:
        assert_sound(self.dsn)
        for identity, job in self.jobs.items():
            self.assert_history(identity, job)
        self.db.connection.close()

    # Callers

    def after(self, steps: int | None) -> float | None:
        """A moment in between, so many steps from now."""
        return None if steps is None else self.now + STEP * steps + STEP / 2

    @rule(
        target=ids, max_attempts=st.integers(1, 3), priority=st.integers(0, 9), backoff=st.sampled_from([0, 150]), picky=st.booleans(),
        delay=st.none() | st.integers(0, 2), expires=st.none() | st.integers(3, 4), deadline=st.none() | st.integers(0, 3),
    )  # fmt: skip
    def enqueue(self, priority: int, delay: int | None, expires: int | None, deadline: int | None, **asked: Any) -> uuid.UUID:
        job = Model(**asked, due=self.after(delay) or self.now, expires=self.after(expires))
        job.deadline = None if deadline is None else job.due + STEP * deadline + STEP / (2 if delay is None else 1)
        job.status = "queued" if delay is None else "scheduled"
        options: dict[str, Any] = {"never_on": [OWN]} if job.picky else {}
        for name, moment in {"delay": None if delay is None else job.due, "deadline": job.deadline}.items():
            if moment is not None:
                options[name] = f"{moment - (job.due if name == 'deadline' else self.now)} s"
        if job.expires is not None:
            options["expires_at"] = self.db.one("select clock_timestamp() + %s * interval '1 s'", job.expires - self.now)
        identity = self.db.enqueue(queue=self.queue, max_attempts=job.max_attempts, backoff=job.backoff, priority=priority, **options)
        self.jobs[identity] = job
        return identity

    @rule(target=ids, parents=st.lists(ids, min_size=1, max_size=3))
    def enqueue_child(self, parents: list[uuid.UUID]) -> Any:
        if any(self.jobs[parent].status in FINAL - {"succeeded"} for parent in parents):
            with pytest.raises(psycopg.Error, match="depends_on names job"):
                self.db.enqueue(queue=self.queue, depends_on=parents)
            return multiple()
        identity = self.db.enqueue(queue=self.queue, max_attempts=1, depends_on=parents)
        waits = [parent for parent in parents if self.jobs[parent].status != "succeeded"]
        self.jobs[identity] = Model(1, due=self.now, parents=waits, status="blocked" if waits else "queued")
        return identity

    # Drainers

    def is_held(self, identity: uuid.UUID) -> bool:
        """Whether something holds a queued job back from claims: a pause, a limit."""
        del identity
        return False

    def room(self) -> int:
        """How many queued jobs a claim may take at most: of a limit, what is left of it."""
        return len(self.jobs)

    @rule(target=deliveries, limit=st.integers(1, 3))
    def claim(self, limit: int) -> Any:
        claims = self.db.claim(queue=self.queue, limit=limit)
        free = [identity for identity, job in self.jobs.items() if job.status == "queued" and not self.is_held(identity)]
        assert len(claims) == min(limit, len(free), self.room())
        for claim in claims:
            assert claim.id in free
            job = self.jobs[claim.id]
            assert job.token in {None, claim.token}, "what was put back keeps its token"
            job.status, job.token, job.claimed_at = "claimed", claim.token, self.now
        return multiple(*claims)

    def current(self, delivery: Claim) -> bool:
        return bool(self.jobs[delivery.id].token == delivery.token)

    @rule(delivery=deliveries)
    def mark(self, delivery: Claim) -> None:
        shipment = self.db.rows("select shipment from bridge.inflight where seq = %s", delivery.seq)
        job = self.jobs[delivery.id]
        if shipment and self.current(delivery):
            marked = self.db.one("select bridge.mark_published(%s, %s)", shipment[0][0], [delivery.seq])
            assert marked == (job.status == "claimed")
            job.status = "published" if marked else job.status

    @rule(delivery=deliveries)
    def unclaim(self, delivery: Claim) -> None:
        job = self.jobs[delivery.id]
        expected = job.status == "claimed" and bool(self.db.rows("select from bridge.inflight where seq = %s", delivery.seq))
        assert bool(self.db.one("select bridge.unclaim(%s)", [delivery.seq])) == expected
        if expected:
            job.status = "queued"

    @rule(delivery=deliveries)
    def republish(self, delivery: Claim) -> None:
        """Its message has been missing for long enough, and a look has been answered since."""
        job, expected = self.jobs[delivery.id], self.current(delivery) and self.jobs[delivery.id].status == "published"
        self.db.do("update bridge.inflight set missing_since = now() - interval '1 hour' where token = %s", delivery.token)
        self.db.do("update bridge.look set answered_at = clock_timestamp()")
        query = "select count(*) from bridge.republish(%s, gen_random_uuid(), array[%s]::uuid[])"
        assert self.db.one(query, self.db.drainer, delivery.token) == expected
        self.db.do("update bridge.inflight set missing_since = null where token = %s", delivery.token)
        if expected:
            job.status, job.claimed_at = "claimed", self.now

    # Workers

    @rule(target=started, delivery=deliveries)
    def start(self, delivery: Claim) -> Any:
        job = self.jobs[delivery.id]
        run = self.db.start(delivery)
        assert (run is not None) == (self.current(delivery) and job.status in WITH_BROKER)
        if run is None:
            return multiple()
        assert run not in self.runs
        job.status, job.run, job.ran = "running", run, True
        self.runs[run] = delivery.id
        return (delivery, run)

    @rule(held=started)
    def tell(self, held: tuple[Claim, Any]) -> None:
        delivery, run = held
        note = "select bridge.note(%s, %s, '{\"fraction\": 0.5}')"
        assert self.db.one(note, delivery.seq, run) == (self.jobs[delivery.id].run == run)

    @rule(held=started, result=st.integers())
    def finish(self, held: tuple[Claim, Any], result: int) -> None:
        delivery, run = held
        job = self.jobs[delivery.id]
        with self.unchanged(delivery.id, unless=job.run == run):
            assert self.db.finish(delivery, run, result=result) == (job.run == run)
        if job.run == run:
            self.end(delivery.id, "succeeded", counted=1)
            assert self.db.field(delivery.id, "result") == result

    def after_failure(self, job: Model, error: str, *, final: bool) -> str:
        """What becomes of a job whose attempt has failed."""
        if job.asked_to_stop:
            return "cancelled"
        late = job.deadline is not None and self.now + job.backoff >= job.deadline
        last = final or job.attempts + 1 >= job.max_attempts or (job.picky and error == OWN) or job.overtaken or late
        return "failed" if last else "scheduled" if job.backoff else "queued"

    def settle(self, identity: uuid.UUID, expected: str | None) -> None:
        """An attempt has failed, and this is what became of its job."""
        if expected in FINAL:
            self.end(identity, expected, counted=1)
        elif expected is not None:
            self.jobs[identity].due = self.now + self.jobs[identity].backoff
            self.jobs[identity].leave(expected, counted=1)

    @rule(held=started, final=st.booleans(), error=st.sampled_from([OWN, OTHER]))
    def fail(self, held: tuple[Claim, Any], error: str, *, final: bool) -> None:
        delivery, run = held
        job = self.jobs[delivery.id]
        expected = self.after_failure(job, error, final=final) if job.run == run else None
        # In new words each time: a failure that is told again in the same words is answered as it was the first time.
        message = f"broken {uuid.uuid4()}"
        said = json.dumps({"type": error, "message": message, "bases": [f"builtins.{error}", "builtins.Exception"]})
        with self.unchanged(delivery.id, unless=job.run == run):
            assert self.db.one("select bridge.fail(%s, %s, %s::json, %s)", delivery.seq, run, said, final) == expected
        self.settle(delivery.id, expected)

    @rule(held=started, later=st.booleans())
    def ask_for_more(self, held: tuple[Claim, Any], *, later: bool) -> None:
        """Celery's self.retry."""
        delivery, run = held
        job, pause = self.jobs[delivery.id], 150 if later else 0
        query = """select bridge.retry_run(%s, %s, 'a.task', %s, 9::smallint, '[]', '{}', null, null, null, null, '{}', null, null,
            clock_timestamp() + %s * interval '1 s')"""
        with self.unchanged(delivery.id, unless=job.run == run):
            assert self.db.one(query, delivery.seq, run, self.queue, pause or None) == (job.run == run)
        if job.run != run:
            return
        if job.asked_to_stop:
            self.end(delivery.id, "cancelled", counted=1)
        elif job.deadline is not None and self.now + pause >= job.deadline:
            self.end(delivery.id, "failed", counted=1)
        else:
            job.due, job.expires = self.now + pause, None
            job.max_attempts += 1  # what it asks for itself is no failure that is counted against it
            job.leave("scheduled" if pause else "queued", counted=1)

    @rule(delivery=deliveries)
    def lose(self, delivery: Claim) -> None:
        job, expected = self.jobs[delivery.id], None
        if self.current(delivery) and job.status in {*WITH_BROKER, "running"}:
            late = job.deadline is not None and job.deadline <= self.now
            over = job.status == "running" and (late or job.losses + 1 > MAX_LOSSES)
            expected = "cancelled" if job.asked_to_stop else "failed" if over else "queued"
            job.losses += job.status == "running" and expected == "queued"
        with self.unchanged(delivery.id, unless=expected is not None):
            assert self.db.one("select bridge.lose(%s, %s, 'killed')", delivery.seq, delivery.token) == expected
        if expected in FINAL:
            self.end(delivery.id, str(expected), counted=1)
        elif expected:
            job.leave("queued")

    @rule(delivery=deliveries)
    def release_delivery(self, delivery: Claim) -> None:
        """A worker that stops gives back what it has not begun."""
        expected = self.current(delivery) and self.jobs[delivery.id].status in WITH_BROKER
        assert self.db.one("select bridge.release(array[%s]::uuid[])", delivery.token) == expected
        if expected:
            self.jobs[delivery.id].leave("queued")

    @rule()
    def stop_worker(self) -> None:
        """A worker says good-bye: its runs were broken off."""
        broken = [identity for identity, job in self.jobs.items() if job.status == "running"]
        assert self.db.one("select bridge.stop_worker(%s)", self.db.worker) == len(broken)
        for identity in broken:
            if self.jobs[identity].asked_to_stop:
                self.end(identity, "cancelled", counted=1)
            else:
                self.jobs[identity].leave("queued")

    @rule(delivery=deliveries, status=st.sampled_from(["failed", "cancelled", "expired"]), final=st.booleans(), ours=st.booleans())
    def end_delivery(self, delivery: Claim, status: str, *, final: bool, ours: bool) -> None:
        """A worker's main process ends what never ran, or a run of its own."""
        job, expected = self.jobs[delivery.id], None
        running = job.status == "running"
        if self.current(delivery) and (job.status in WITH_BROKER or (running and ours)):
            expected = status
            if status == "failed":
                expected = self.after_failure(job, OTHER, final=final)
            elif running and status == "expired":
                expected = None  # it has begun in time
            elif running and job.overtaken and not job.asked_to_stop:
                expected = "failed"
            elif status == "expired" and not running and job.deadline is not None and job.deadline <= (job.expires or job.deadline):
                expected = "failed" if job.ran else "expired"
        counted = status == "failed" or running
        worker = self.db.worker if ours else uuid.uuid4()
        query = f'select bridge.end_delivery(%s, %s, %s, %s, \'{{"type": "{OTHER}"}}\', %s)'
        with self.unchanged(delivery.id, unless=expected is not None):
            assert self.db.one(query, delivery.seq, delivery.token, worker, status, final) == expected
        if expected in FINAL:
            self.end(delivery.id, str(expected), counted=int(counted))
        else:
            self.settle(delivery.id, expected)

    # Operators

    @rule(identity=ids)
    def cancel(self, identity: uuid.UUID) -> None:
        job = self.jobs[identity]
        expected = job.status if job.status in {*FINAL, "running"} else "cancelled"
        assert self.db.one("select bridge.cancel(%s)", identity) == expected
        if job.status == "running":
            job.asked_to_stop = True
        elif job.status not in FINAL:
            self.end(identity, "cancelled")

    @rule(identity=ids)
    def retry(self, identity: uuid.UUID) -> None:
        job = self.jobs[identity]
        if job.status not in {*FINAL, "scheduled"}:
            with pytest.raises(psycopg.Error, match=f"job {identity} is "):
                self.db.one("select bridge.retry(%s)", identity)
            return
        assert self.db.one("select bridge.retry(%s)", identity) == "queued"
        self.open_again(job)

    @rule(identity=ids)
    def redrive(self, identity: uuid.UUID) -> None:
        job = self.jobs[identity]
        if job.status != "failed":
            with pytest.raises(psycopg.Error, match=f"job {identity} is "):
                self.db.one("select bridge.redrive(%s)", identity)
            return
        assert self.db.one("select bridge.redrive(%s)", identity) == "queued"
        self.open_again(job)

    def open_again(self, job: Model) -> None:
        """A job is due at once; one that had ended has its attempts again, and neither expiry nor deadline."""
        if job.status in FINAL:
            job.max_attempts += job.attempts - job.before
            job.before, job.losses, job.expires, job.deadline = job.attempts, 0, None, None
        job.due = self.now
        job.leave("queued")

    # Time

    @rule(steps=st.integers(1, 3))
    def time_passes(self, steps: int) -> None:
        self.now += STEP * steps
        for table, moments in MOMENTS.items():
            moved = ", ".join(f"{name} = {name} - %(gone)s * interval '1 s'" for name in moments)
            self.db.connection.execute(f"update bridge.{table} set {moved}".encode(), {"gone": STEP * steps})

    @rule()
    def tick(self) -> None:
        self.db.do("select bridge.tick('test')")
        for job in self.jobs.values():
            if job.status == "scheduled" and job.due <= self.now:
                job.status = "queued"
        waiting = {"blocked", "scheduled", "queued", "published"}
        for identity in [name for name, job in self.jobs.items() if job.expires is not None and job.expires <= self.now]:
            if self.jobs[identity].status in waiting:
                self.end(identity, "expired")
        for identity in [name for name, job in self.jobs.items() if job.deadline is not None and job.deadline <= self.now]:
            job = self.jobs[identity]
            if job.status in waiting:
                self.end(identity, "failed" if job.ran else "expired")
            elif job.status == "running" and not job.asked_to_stop:
                job.overtaken = True
        for job in self.jobs.values():
            if job.status == "claimed" and job.claimed_at < self.now:
                job.status = "queued"  # its drainer died; the token stays

    # What follows from an end, and what must hold

    def end(self, identity: uuid.UUID, status: str, *, counted: int = 0) -> None:
        """A job ends; its children are due, or end with it."""
        self.jobs[identity].leave(status, counted=counted)
        for name, child in self.jobs.items():
            if child.status != "blocked" or identity not in child.parents:
                continue
            if status == "succeeded":
                child.parents = [other for other in child.parents if other != identity]
                child.status = "blocked" if child.parents else "queued" if child.due <= self.now else "scheduled"
            else:
                self.end(name, "cancelled")

    def unchanged(self, identity: uuid.UUID, *, unless: bool) -> Any:
        """What a superseded run or delivery says changes nothing of the job."""
        return Unchanged(self.db, identity, skipped=unless)

    def assert_history(self, identity: uuid.UUID, job: Model) -> None:
        """Its history begins with the call, ends with what the job is, and has each run once that ended or runs."""
        rows = self.db.rows("select event, attempt, run from bridge.history(%s)", identity)
        last = [event for event, *_ in rows if event != "superseded"][-1]
        assert (rows[0][0], last) == ("enqueued", SHOWN.get(job.status, job.status))
        counted = [(run, attempt) for event, attempt, run in rows if run is not None and event not in {"superseded", "lost", "released"}]
        runs = [run for event, _, run in rows if run is not None and event != "superseded"]
        assert len(runs) == len(set(runs)) == sum(owner == identity for owner in self.runs.values())
        numbers = [attempt for _, attempt in counted]
        assert numbers == sorted(set(numbers)), "each attempt that counts has a number of its own, in order"

    @invariant()
    def every_job_is_where_the_model_says(self) -> None:
        rows = self.db.rows(f"select * from ({PLACES}) p order by 1")
        expected = [(key, job.attempts, job.losses, job.status) for key, job in sorted(self.jobs.items())]
        assert [row[:4] for row in rows] == expected
        self.assert_forwards({row[0]: row[1:] for row in rows})

    def assert_forwards(self, now: dict[uuid.UUID, tuple[int, int, str, Any, Any]]) -> None:
        """A run that is over never comes back, a delivery does not go back behind its start, and attempts never become fewer."""
        for identity, (attempts, losses, status, token, run) in now.items():
            old = self.seen.get(identity, (0, 0, "", None, None))
            assert attempts >= old[0]
            assert losses >= old[1] or old[2] in FINAL, "only who runs an ended job again forgets its losses"
            if old[3] is not None and token == old[3] and old[2] == "running":
                assert (status, run) == ("running", old[4])
            if old[2] == "running" and run != old[4]:
                assert run is None, "between two runs a job waits"
        self.seen = now

    @invariant()
    def the_counters_are_right(self) -> None:
        live = dict.fromkeys(["blocked", "scheduled", "queued", "published", "running"], 0)
        for job in self.jobs.values():
            if job.status not in FINAL:
                live[SHOWN.get(job.status, job.status)] += 1
        rows = self.db.rows(f"select {', '.join(live)} from bridge.job_queue_stats where queue = %s", self.queue)
        assert rows == [tuple(live.values())] or not self.jobs
