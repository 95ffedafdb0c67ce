"""What a small model knows of a job, and how the tables are asked about it; the rules of its life are in fix_life."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fix_sql import Session
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

if TYPE_CHECKING:
    import uuid

    from hypothesis.stateful import RuleBasedStateMachine

MAX_LOSSES = 2
FINAL = {"succeeded", "failed", "cancelled", "expired"}
WITH_BROKER = {"claimed", "published"}
STEP = 100  # seconds that pass at a time; moments lie between two of them, so that the time which a test takes changes nothing
SHOWN = {"claimed": "queued"}  # what bridge.jobs calls a place, where that has another name
OWN, OTHER = "ValueError", "OSError"  # classes of errors; jobs with never_on name the first
EMPTIED = [
    "job", "ready", "held", "scheduled", "inflight", "blocked", "dependency", "unique_key", "finished", "attempt", "job_note", "paused",
    "permit", "lane", "bucket",
]  # fmt: skip
# What the tables that move hold in moments: when time passes, all of them are longer ago.
MOMENTS = {
    "job": ["run_at", "expires_at", "deadline", "created_at", "updated_at"], "scheduled": ["run_at"], "blocked": ["run_at"],
    "ready": ["since"], "held": ["since"], "inflight": ["claimed_at", "published_at", "started_at", "cancelled_at"],
}  # fmt: skip
PLACES = """
    select j.id, j.attempts, j.losses, case when i.state is not null then i.state when r.seq is not null or h.seq is not null then 'queued'
      when s.seq is not null then 'scheduled' when b.seq is not null then 'blocked' end as place, i.token, i.run
    from bridge.job j left join bridge.inflight i on i.seq = j.seq left join bridge.ready r on r.seq = j.seq
    left join bridge.held h on h.seq = j.seq
    left join bridge.scheduled s on s.seq = j.seq left join bridge.blocked b on b.seq = j.seq
    union all select f.id, f.attempts, f.losses, f.status, null, null from bridge.finished f"""
WHOLE = """
    select jsonb_build_array((select to_jsonb(j) from bridge.job j where j.id = %(id)s),
      (select to_jsonb(f) from bridge.finished f where f.id = %(id)s),
      (select jsonb_agg(to_jsonb(i)) from bridge.inflight i join bridge.job j using (seq) where j.id = %(id)s),
      (select jsonb_agg(to_jsonb(r)) from bridge.ready r join bridge.job j using (seq) where j.id = %(id)s))"""


@dataclass
class Model:
    """What is known of one job; moments are seconds of the model's own clock."""

    max_attempts: int
    backoff: int = 0
    picky: bool = False  # never_on names OWN
    due: float = 0.0
    expires: float | None = None
    deadline: float | None = None
    parents: list[uuid.UUID] = field(default_factory=list)
    status: str = "queued"
    claimed_at: float = 0.0
    token: Any = None  # of the delivery that may still start or end
    run: Any = None
    ran: bool = False  # an attempt of it has begun
    asked_to_stop: bool = False  # by a cancel
    overtaken: bool = False  # by its deadline
    attempts: int = 0
    losses: int = 0
    before: int = 0  # attempts that had ended when it was last run again

    def leave(self, status: str, *, counted: int = 0) -> None:
        """Go on to another status; the delivery, and a run, are over."""
        self.status, self.token, self.run, self.asked_to_stop, self.overtaken = status, None, None, False, False
        self.attempts += counted


class Unchanged:
    """Inside of it nothing of a job may change."""

    def __init__(self, db: Session, identity: uuid.UUID, *, skipped: bool) -> None:
        self._db, self._identity, self._skipped = db, identity, skipped

    def _whole(self) -> Any:
        row = self._db.connection.execute(WHOLE.encode(), {"id": self._identity}).fetchone()
        return row and row[0]

    def __enter__(self) -> None:
        self._before = None if self._skipped else self._whole()

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if not self._skipped and failed is None:
            assert self._whole() == self._before


def run_lives(machine: type[RuleBasedStateMachine], dsn: str, *, lives: int = 25, steps: int = 40) -> None:
    """Drive random operations on a database; `lives` times so many steps.

    Args:
        machine: fix_life's `Life`, or what derives from it.
        dsn: a database of its own.
        lives: how often it begins anew.
        steps: of each.
    """
    session = Session(dsn)
    session.do("update bridge.setting set value = %s where name = 'max_losses'", str(MAX_LOSSES))
    session.do("update bridge.setting set value = '0' where name = 'republish_grace'")  # which counts from the start of the server at least
    session.connection.close()
    here = type(f"{machine.__name__}Here", (machine,), {"dsn": dsn})
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    chosen = settings(max_examples=lives, stateful_step_count=steps, deadline=None, suppress_health_check=slow)
    run_state_machine_as_test(here, settings=chosen)  # type: ignore[arg-type]
