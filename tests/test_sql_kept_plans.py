"""What a job costs: on its way no statement is planned anew, because a plan of one takes longer than the statement."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fix_sql import Session

WARM = 12  # calls after which Postgres has decided: it plans the first five of each for their own values
MESSAGE = """
  select bridge.enqueue_message(gen_random_uuid(), null, 'a.task', 'celery', 9::smallint, '[]', '{}', null, null, null, null,
    '{"task": "a.task"}', '{}', null, null)
"""


class Planned:
    """The functions whose statements Postgres has planned, as it says itself."""

    def __init__(self, db: Session) -> None:
        self.where: list[str] = []
        db.connection.add_notice_handler(self._hear)
        db.do("set client_min_messages = log")
        db.do("set log_planner_stats = on")

    def _hear(self, notice: Any) -> None:
        if "PLANNER STATISTICS" in (notice.message_primary or "") and notice.context:
            self.where.append(notice.context)


def live(db: Session) -> None:
    """One job's life, as drainers and workers ask for it."""
    db.one("select bridge.ready_queues()")
    claim = db.publish()
    db.one("select bridge.next_look()")
    run = uuid.uuid4()
    db.one("select bridge.start(%s, %s, %s, 1, %s)", claim.seq, claim.token, db.worker, run)
    db.one("select bridge.finish(%s, %s, 'succeeded', '1', null, null, %s, %s)", claim.seq, run, claim.token, claim.id)


def test_no_statement_of_a_jobs_life_is_planned_anew(db: Session) -> None:
    for _ in range(WARM):
        db.enqueue()
        live(db)
        db.one(MESSAGE)
        live(db)
    planned = Planned(db)
    db.enqueue()
    live(db)
    db.one(MESSAGE)
    live(db)
    assert planned.where == []
