"""Redrive, discard and cancel of many with two drainers and two workers, one drainer of which dies meanwhile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fix_servers import wait_until

if TYPE_CHECKING:
    from uuid import UUID

    from fix_pairs import Pairs, StartPairs
    from fix_sql import Session

STARTS = "select task_id::uuid, count(*) from ledger where event = 'start' group by task_id"


def starts(db: Session) -> dict[UUID, int]:
    """How often the task of each job really began."""
    return dict(db.rows(STARTS))


def test_dead_letters_are_redriven_or_discarded_while_a_drainer_dies(pairs: StartPairs) -> None:
    running = pairs("apps.ledger")
    db = running.db
    ids = [db.enqueue("ledger.divide", args=[0], kwargs={}, max_attempts=1, headers={"n": n}) for n in range(60)]
    wait_until(lambda: db.one("select count(*) from bridge.dead_jobs") == 60, 60, "all are dead letters")
    assert db.one("select bridge.discard_jobs(%s, note => 'a test')", json.dumps({"ids": [str(i) for i in ids[:10]]}))["changed"] == 10

    redrive = """select bridge.redrive_jobs('{"error": "ZeroDivisionError", "max_jobs": 10}', args => '[3]')"""
    reports = [db.one(redrive), db.one(redrive)]
    running.kill_a_drainer()
    while reports[-1]["more"]:
        reports.append(db.one(redrive))
    running.wait_for_all()

    assert sum(report["changed"] for report in reports) == 50
    ended = dict(db.rows("select id, status from bridge.jobs"))
    assert [ended[identity] for identity in ids] == ["failed"] * 10 + ["succeeded"] * 50
    assert {row[0] for row in db.rows("select result from bridge.jobs where status = 'succeeded'")} == {4.0}
    assert all(db.attempts(identity) == [(1, "failed"), (2, "succeeded")] for identity in ids[10:])
    assert [starts(db)[identity] for identity in ids] == [1] * 10 + [2] * 50
    cancel_the_rest(running)


def cancel_the_rest(running: Pairs) -> None:
    """With one drainer left: what is cancelled while it waits never runs, what runs is stopped or had come to its end."""
    db = running.db
    ids = [db.enqueue("ledger.work", args=[number, 0.5], queue="celery") for number in range(60)]
    wait_until(lambda: db.one("select count(*) from ledger where event = 'start' and task_id::uuid = any(%s)", ids) >= 4, 60, "some run")
    wanted = json.dumps({"task": "ledger.w*", "ids": [str(identity) for identity in ids]})
    assert 0 < db.one("select bridge.cancel_jobs(%s, dry_run => true)", wanted)["matched"] <= 60
    report = db.one("select bridge.cancel_jobs(%s)", wanted)
    running.wait_for_all()

    ended = dict(db.rows("select id, status from bridge.jobs where id = any(%s)", ids))
    never = {row[0] for row in db.rows("select id from bridge.jobs where id = any(%s) and attempts = 0", ids)}
    assert report["changed"] > 0
    assert set(ended.values()) <= {"cancelled", "succeeded"}
    assert never & set(starts(db)) == set(), "what was cancelled while it waited has not run"
    assert len(never) >= 40
