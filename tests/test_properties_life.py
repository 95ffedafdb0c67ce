"""Whatever is done to jobs in whatever order, SQL and a small model agree on where each one is; the rules are in fix_life."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_life import Life
from hypothesis import strategies as st
from hypothesis.stateful import rule
from life_model import FINAL, SHOWN, WITH_BROKER, run_lives

if TYPE_CHECKING:
    import uuid

    from fix_sql import Claim


class SteeredLife(Life):
    """With operators who pause queues and change jobs, and tasks that complete their jobs themselves."""

    paused = False

    def is_held(self, identity: uuid.UUID) -> bool:
        return self.paused or super().is_held(identity)

    @rule(hard=st.booleans())
    def pause(self, *, hard: bool) -> None:
        self.db.one("select bridge.pause(queue => %s, hard => %s)", self.queue, hard)
        self.paused = True
        if hard:
            for job in self.jobs.values():
                if job.status in WITH_BROKER:
                    job.leave("queued")

    @rule()
    def resume(self) -> None:
        assert self.db.one("select bridge.resume(queue => %s)", self.queue) == self.paused
        self.paused = False

    @rule(identity=Life.ids, priority=st.integers(0, 9))
    def set_priority(self, identity: uuid.UUID, priority: int) -> None:
        job = self.jobs[identity]
        if job.status in {*FINAL, "running"}:
            self.refused(identity, "select bridge.set_priority(%s, %s)", priority)
            return
        same = self.db.field(identity, "priority") == priority
        if not same and job.status in {*WITH_BROKER, "queued"}:
            job.leave("queued")
        shown = SHOWN.get(job.status, job.status)
        assert self.db.one("select bridge.set_priority(%s, %s)", identity, priority) == shown

    @rule(identity=Life.ids, steps=st.none() | st.integers(0, 3))
    def reschedule(self, identity: uuid.UUID, steps: int | None) -> None:
        job, due = self.jobs[identity], self.after(steps) or self.now
        ends = min(moment for moment in (job.expires, job.deadline, 1e9) if moment is not None)
        query, delay = "select bridge.reschedule(%s, delay => %s * interval '1 s')", due - self.now
        if job.status in {*FINAL, "running"} or ends <= due:
            self.refused(identity, query, delay)
            return
        job.due = due
        if job.status != "blocked":
            job.leave("queued" if steps is None else "scheduled")
        assert self.db.one(query, identity, delay) == job.status

    @rule(held=Life.started)
    def complete(self, held: tuple[Claim, Any]) -> None:
        delivery, run = held
        job = self.jobs[delivery.id]
        query = "select bridge.complete_run(%s, %s, '1')"
        if job.run != run or job.asked_to_stop or job.overtaken:
            with self.unchanged(delivery.id, unless=False), pytest.raises(psycopg.Error, match=r"is over|was told to stop"):
                self.db.do(query, delivery.seq, run)
            return
        self.db.do(query, delivery.seq, run)
        self.end(delivery.id, "succeeded", counted=1)

    def refused(self, identity: uuid.UUID, query: str, value: object) -> None:
        """It is refused, and changes nothing."""
        with self.unchanged(identity, unless=False), pytest.raises(psycopg.Error, match=str(identity)):
            self.db.do(query, identity, value)


class LimitedLife(Life):
    """With a limit on the queue: what it holds back lives on, and ends, as any job that waits."""

    most = 2

    def __init__(self) -> None:
        super().__init__()
        self.db.do("select bridge.set_limit('two', queue => %s, concurrency => %s)", self.queue, self.most)

    def room(self) -> int:
        alive = sum(job.status in {*WITH_BROKER, "running"} for job in self.jobs.values())
        return max(0, self.most - alive)

    @rule(most=st.integers(1, 3))
    def set_limit(self, most: int) -> None:
        self.db.do("select bridge.set_limit('two', queue => %s, concurrency => %s)", self.queue, most)
        self.most = most


def test_sql_and_model_agree_on_every_life(dsn: str) -> None:
    run_lives(Life, dsn, lives=15)


def test_sql_and_model_agree_on_every_life_that_operators_and_tasks_steer(dsn: str) -> None:
    run_lives(SteeredLife, dsn, lives=20)


def test_sql_and_model_agree_on_every_life_under_a_limit(dsn: str) -> None:
    run_lives(LimitedLife, dsn, lives=10)
