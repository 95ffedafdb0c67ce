"""What a running system does to a job is what the model of the protocol allows, step by step."""

from __future__ import annotations

import os
import signal
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from apps.ledger import TABLE
from fix_servers import wait_until
from model import trace
from model.replay import Replayed, replay

if TYPE_CHECKING:
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session
    from model.trace import Record

QUICK = {"heartbeat": 1, "republish_grace": 3, "worker_lost": 5, "publish_lease": 3, "window": 60}
STEPS = {"claim", "mark_published", "start", "finish", "fail", "lose", "move_due", "cancel_job", "take_ended", "end_delivery"}
JOBS = 150
LOAD = f"""
select bridge.enqueue('ledger.work', jsonb_build_array(n, case when n % 5 = 0 then 0.1 else 0 end)) from generate_series(1, {JOBS}) n
union all
select bridge.enqueue('ledger.fail', '["broken"]', max_attempts => 1 + n % 3, backoff => to_jsonb(n % 2)) from generate_series(1, 12) n
union all select bridge.enqueue('ledger.work', '[4]', delay => make_interval(secs => n % 4)) from generate_series(1, 20) n"""

# A step of a chain whose parent ran twice.
CALL = """select bridge.enqueue_message(%s, null, 'a.task', 'celery', 0::smallint, '[]', '{}', null, null, null, null, null, '{}', null,
  now() + interval '1 hour')"""


def story(found: Replayed) -> str:
    return "\n".join(line for lines in list(found.refused.values())[:3] for line in [*lines, ""])


def is_empty(db: Session) -> bool:
    return bool(db.one("select count(*) = 0 from bridge.job"))


def has_begun(db: Session, ids: list[Any]) -> bool:
    query = "select count(*) from bridge.inflight i join bridge.job j using (seq) where j.id = any (%s) and i.run is not null"
    return bool(db.one(query, ids) == len(ids))


@pytest.mark.timeout(400)
def test_every_step_of_jobs_whose_drainer_and_pool_child_die_is_one_of_the_model(
    db: Session, dsn: str, drainer: StartDrainer, worker: StartWorker
) -> None:
    db.do(TABLE)
    for name, value in QUICK.items():
        db.do("update bridge.setting set value = %s where name = %s", str(value), name)
    trace.install(dsn)
    doomed, workers = drainer(ready=False), worker("apps.ledger", ready=False)
    held = [db.enqueue("ledger.work", args=[1, 60]) for _ in range(2)]
    ids = [row[0] for row in db.rows(LOAD)]
    wait_until(lambda: has_begun(db, held), 90, "both held jobs run")
    doomed.kill(signal.SIGKILL)
    doomed.wait(10)
    os.kill(db.one("select pid from bridge.inflight i join bridge.job j using (seq) where j.id = %s", held[0]), signal.SIGKILL)
    wait_until(lambda: db.one("select losses from bridge.job where id = %s", held[0]), 30, "a loss")
    drainer(ready=False)
    for one in (*ids[JOBS - 10 : JOBS], *ids[-10:], *held):
        db.do("select bridge.cancel(%s)", one)
    wait_until(lambda: is_empty(db), 120, "every job ended")
    db.do("select bridge.retry(id) from bridge.finished where status = 'failed'")
    wait_until(lambda: is_empty(db), 120, "every job ended again")
    workers.stop()
    found = replay(trace.read(dsn), max_losses=5)
    assert not found.refused, story(found)
    assert found.jobs == JOBS + 34
    assert found.taken.keys() >= STEPS


@pytest.fixture
def records(db: Session, dsn: str) -> list[Record]:
    """One job that fails, is lost, is put back by its drainer, succeeds, and is called once more; one that is cancelled while it runs."""
    trace.install(dsn)
    identity = db.enqueue(max_attempts=3, backoff=0)
    for ends in (db.fail, lambda claim, _run: db.do("select bridge.lose(%s, %s, 'killed')", claim.seq, claim.token)):
        (claim,) = db.claim()
        db.mark([claim])
        ends(claim, db.start(claim))
    (claim,) = db.claim()
    db.do("select bridge.unclaim(array[%s::bigint])", claim.seq)
    (claim,) = db.claim()
    db.mark([claim])
    assert db.finish(claim, db.start(claim))
    assert db.status(identity) == "succeeded"
    db.do(CALL, identity)
    identity = db.enqueue()
    db.run()
    db.do("select bridge.cancel(%s)", identity)
    db.do("select bridge.stop_worker(%s)", db.worker)
    return trace.read(dsn)


def refused(records: list[Record]) -> str:
    """What a replay says of a trace that somebody has changed."""
    found = replay(records, max_losses=5)
    return " ".join(lines[-1] for lines in found.refused.values())


def test_a_trace_is_accepted_as_it_is_and_refused_without_any_of_its_steps(records: list[Record]) -> None:
    assert replay(records, max_losses=5).refused == {}
    steps = [(number, record) for number, record in enumerate(records) if record.place != "attempt"]
    last = {records[-1].id, records[-2].id, records[-3].id}
    for number, record in steps:
        said = refused(records[:number] + records[number + 1 :])
        assert said or record.id in last, str(record)


@pytest.fixture
def bundled(db: Session, dsn: str) -> list[Record]:
    """A slice of five: one ends, one is cancelled before its turn, one is lost, one is given back, one its worker's death puts back.

    Of a sixth nobody has asked the fence.
    """
    trace.install(dsn)
    for number in range(6):
        db.enqueue(args=[number], max_attempts=3)
    claims = db.claim()
    db.mark(claims)
    slice_, runs = claims[:5], [uuid.uuid4() for _ in range(5)]
    columns = [claim.seq for claim in slice_], [claim.token for claim in slice_], db.worker, 1, runs
    db.do("select bridge.start_many(%s, %s, %s, %s, %s)", *columns)
    ends, cancelled, lost, left, swept = slice_
    ended = [ends.seq], runs[:1], [ends.token], [ends.id], ["1"], [None]
    db.do("select bridge.finish_many(%s, %s, %s, %s, %s, %s::text[])", *ended)
    db.do("select bridge.cancel(%s)", cancelled.id)
    db.do("select bridge.start_many(%s, %s, %s, %s, %s)", *columns)
    db.do("select bridge.lose(%s, %s, 'killed', %s, 1)", lost.seq, lost.token, db.worker)
    db.do("select bridge.unbundle(%s, %s, 1)", [left.token, claims[5].token], db.worker)
    db.do("select bridge.lose(%s, %s, 'worker died', %s)", swept.seq, swept.token, db.worker)
    assert db.rows("select status, attempts, losses from bridge.jobs order by seq") == [
        ("succeeded", 1, 0), ("cancelled", 0, 0), ("queued", 0, 1), *[("queued", 0, 0)] * 3
    ]  # fmt: skip
    return trace.read(dsn)


def test_a_trace_of_a_bundle_is_accepted_as_it_is_and_refused_when_what_has_not_begun_is_charged(bundled: list[Record]) -> None:
    assert replay(bundled, max_losses=5).refused == {}
    for function in ("unbundle", "lose"):
        at = [number for number, one in enumerate(bundled) if function in one.by and one.place == "job" and one.after][-1]
        charged = [*bundled[:at], replace(bundled[at], after={**(bundled[at].after or {}), "losses": 2}), *bundled[at + 1 :]]
        assert f"{function} may not lead from" in refused(charged), function


# Which change of a row is written down otherwise than it was: the function, the column, its new value, what the model says then.
CHANGES = {
    "a start takes what nobody has claimed": ("start", "by", ("claim",), "claim may not lead from"),
    "a start by nobody": ("start", "by", (), "nobody that the model knows"),
    "a claim that gives a new token after an unclaim": ("claim", "token", "another", "claim may not lead from"),
    "a claim that does not tell that copies may exist": ("claim", "copied", False, "claim may not lead from"),
    "a publish that is not of what is claimed": ("mark_published", "shipment", "another", "mark_published may not lead from"),
    "a failure that counts twice": ("fail", "attempts", 2, "fail may not lead from"),
    "a loss that is not counted": ("lose", "losses", 0, "lose may not lead from"),
    "an end by another run": ("finish", "run", "another", "finish may not lead from"),
}


def test_a_trace_is_refused_when_one_of_its_steps_is_another(records: list[Record]) -> None:
    answers = {name: refused(altered(records, *change[:3])) for name, change in CHANGES.items()}
    assert [name for name, said in answers.items() if CHANGES[name][3] not in said] == [], answers


def altered(records: list[Record], function: str, column: str, value: Any) -> list[Record]:
    """The last change of the first job by a function, and what follows from it in the records after, written down otherwise."""
    ours = [(number, one) for number, one in enumerate(records) if one.seq == records[0].seq and function in one.by]
    at = [number for number, one in ours if column == "by" or column in (one.after or {})][-1]
    changed = records[at]
    if column == "by":
        return [*records[:at], replace(changed, by=value), *records[at + 1 :]]
    assert changed.after is not None
    was, found = changed.after, records[:at]
    for one in records[at:]:
        same = one.place == changed.place and one.seq == changed.seq
        rows = [{**row, column: value} if same and row and row[column] == was[column] else row for row in (one.before, one.after)]
        found.append(replace(one, before=one.before if one is changed else rows[0], after=rows[1]))
    return found
