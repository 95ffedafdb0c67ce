"""Redrive, discard and cancel of many with two drainers and two workers, one drainer of which dies meanwhile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fix_servers import wait_until

if TYPE_CHECKING:
    from uuid import UUID

    from fix_pairs import StartPairs
    from fix_sql import Session

STARTS = "select task_id::uuid, count(*) from ledger where event = 'start' group by task_id"


def starts(db: Session) -> dict[UUID, int]:
    """How often the task of each job really began."""
    return dict(db.rows(STARTS))


def pages(db: Session, operation: str, options: str = "") -> list[int]:
    """Do it page by page while there is more to do; how many each page changed."""
    changed = [db.one(f"select bridge.{operation}{options})")["changed"]]
    while changed[-1]:
        changed.append(db.one(f"select bridge.{operation}{options})")["changed"])
    return changed


def test_dead_letters_are_redriven_or_discarded_and_what_waits_cancelled_while_a_drainer_dies(pairs: StartPairs) -> None:
    running = pairs("apps.ledger")
    db = running.db
    broken = [db.enqueue("ledger.divide", args=[0], max_attempts=1) for _ in range(60)]
    wait_until(lambda: db.one("select count(*) from bridge.dead_jobs") == 60, 60, "all are dead letters")
    assert db.one("select bridge.discard_jobs(%s, note => 'a test')", json.dumps({"ids": [str(i) for i in broken[:10]]}))["changed"] == 10
    long = [db.enqueue("ledger.work", args=[number, 3.0]) for number in range(100)]
    wait_until(lambda: db.one("select count(*) from ledger where event = 'start' and task_id::uuid = any(%s)", long) >= 4, 60, "some run")

    redrive = """redrive_jobs('{"error": "ZeroDivisionError", "max_jobs": 10}', args => '[3]'"""
    cancel = """cancel_jobs('{"task": "ledger.w*", "status": ["scheduled", "queued", "published"], "max_jobs": 20}'"""
    assert db.one(f"select bridge.{redrive})")["changed"] == 10
    first = db.one(f"select bridge.{cancel})")["changed"]
    running.kill_a_drainer()
    assert sum(pages(db, redrive)) == 40
    cancelled = first + sum(pages(db, cancel))
    db.one("""select bridge.cancel_jobs('{"task": "ledger.work", "status": "running"}')""")
    running.wait_for_all()
    check_the_dead(db, broken)
    check_the_cancelled(db, long, cancelled)


def check_the_dead(db: Session, broken: list[UUID]) -> None:
    """What was discarded has not run again; the others have, once, with the new arguments."""
    ended = dict(db.rows("select id, status from bridge.jobs"))
    assert [ended[identity] for identity in broken] == ["failed"] * 10 + ["succeeded"] * 50
    assert {row[0] for row in db.rows("select result from bridge.jobs where id = any(%s) and status = 'succeeded'", broken)} == {4.0}
    assert all(db.attempts(identity) == [(1, "failed"), (2, "succeeded")] for identity in broken[10:])
    assert [starts(db)[identity] for identity in broken] == [1] * 10 + [2] * 50


def check_the_cancelled(db: Session, long: list[UUID], cancelled: int) -> None:
    """What was cancelled while it waited has never begun; what ran was stopped, or had come to its end."""
    never = {row[0] for row in db.rows("select id from bridge.jobs where id = any(%s) and attempts = 0", long)}
    assert len(never) == cancelled > 50
    assert never & set(starts(db)) == set()
    assert {row[0] for row in db.rows("select status from bridge.jobs where id = any(%s)", long)} <= {"cancelled", "succeeded"}
