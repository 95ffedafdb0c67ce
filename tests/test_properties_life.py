"""Whatever is done to jobs in whatever order, SQL and a small model agree on where each one is; the rules are in fix_life."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fix_life import Life
from hypothesis import strategies as st
from hypothesis.stateful import rule
from life_model import WITH_BROKER, run_lives

if TYPE_CHECKING:
    import uuid


class PausedLife(Life):
    """With operators who pause and resume the queue."""

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


def test_sql_and_model_agree_on_every_life(dsn: str) -> None:
    run_lives(Life, dsn)


def test_sql_and_model_agree_on_every_life_with_pauses(dsn: str) -> None:
    run_lives(PausedLife, dsn, lives=10)
