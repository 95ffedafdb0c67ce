"""What revoke, revoke by stamp and purge do to rows, in whatever place they are."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from kombu.exceptions import OperationalError

if TYPE_CHECKING:
    from fix_sql import Session

CALL = "select bridge.enqueue_message(%s, null, 'a.task', %s, 0::smallint, '[]', '{}', null, null, null, null, %s, null, null, %s)"


def call(db: Session, identity: uuid.UUID | None = None, queue: str = "celery", later: str | None = None, **stamps: Any) -> uuid.UUID:
    """What a Celery call writes."""
    identity = identity or uuid.uuid4()
    run_at = None if later is None else db.one("select now() + %s::interval", later)
    headers = {"task": "a.task", "stamped_headers": list(stamps) or None, "stamps": stamps}
    assert db.one(CALL, identity, queue, json.dumps(headers), run_at)
    return identity


def revoke(db: Session, *ids: uuid.UUID, terminate: bool = False, signal: str = "TERM") -> int:
    return int(db.one("select bridge.revoke(%s::uuid[], %s, %s)", list(ids), terminate, signal))


def test_revoked_jobs_never_run_wherever_they_wait(db: Session) -> None:
    published = call(db)
    claim = db.publish()
    scheduled, ready = call(db, later="1 day"), call(db)
    blocked = db.enqueue(depends_on=[scheduled])
    assert revoke(db, published, scheduled, ready, blocked) == 4
    assert db.rows("select distinct status from bridge.jobs") == [("cancelled",)]
    assert db.start(claim) is None
    assert db.claim() == []


def test_a_running_job_that_is_revoked_without_terminate_comes_to_its_end(db: Session) -> None:
    identity = call(db)
    claim, run = db.run()
    assert revoke(db, identity) == 1
    assert db.report(claim.token) == {}
    db.finish(claim, run, result=1)
    assert db.status(identity) == "succeeded"


RETRY = (
    "select bridge.retry_run(%s, %s, 'a.task', 'celery', 0::smallint, '[]', '{}', null, null, null, null, '{}', null, null,"
    " now() + interval '1 hour', null, %s)"
)


def test_a_running_job_that_is_revoked_gets_no_further_attempt(db: Session) -> None:
    identity = call(db)
    claim, run = db.run()
    revoke(db, identity)
    assert db.one(RETRY, claim.seq, run, claim.token)
    assert (db.status(identity), db.field(identity, "attempts")) == ("cancelled", 1)


def test_a_run_is_stopped_with_the_signal_that_was_asked_for(db: Session) -> None:
    identity = call(db)
    claim, _ = db.run()
    db.do("listen bridge_stop")
    revoke(db, identity, terminate=True, signal="KILL")
    assert db.report(claim.token) == {str(claim.token): "KILL"}
    assert [notice.payload for notice in db.connection.notifies(timeout=5, stop_after=1)] == [str(db.worker)]


@pytest.mark.parametrize("signal", ["", "term", "0", "KILL; drop"])
def test_what_is_no_signal_is_refused(db: Session, signal: str) -> None:
    with pytest.raises(psycopg.Error, match="signal is"):
        revoke(db, call(db), terminate=True, signal=signal)
    with pytest.raises(psycopg.Error, match="signal is"):
        db.do("select bridge.cancel(%s, signal => %s)", uuid.uuid4(), signal)


def test_an_id_that_is_revoked_before_it_comes_is_cancelled_when_it_comes(db: Session) -> None:
    identity = uuid.uuid4()
    assert revoke(db, identity) == 0
    call(db, identity)
    assert db.status(identity) == "cancelled"
    assert db.claim() == []


def test_a_revoke_of_what_never_came_is_forgotten(db: Session) -> None:
    late = uuid.uuid4()
    revoke(db, late)
    db.do("update bridge.revoked set revoked_at = now() - interval '2 days'")
    db.do("insert into bridge.revoked_stamp values ('order', '1', now() - interval '2 days')")
    assert db.status(call(db, order=1)) == "queued"
    assert db.status(call(db, late)) == "queued"
    db.do("select bridge.cleanup()")
    assert db.one("select (select count(*) from bridge.revoked) + (select count(*) from bridge.revoked_stamp)") == 0


def test_a_revoked_job_that_is_retried_runs(db: Session) -> None:
    identity = call(db)
    revoke(db, identity)
    assert db.one("select bridge.retry(%s)", identity) == "queued"
    assert not db.one("select bridge.heed_revoke(%s)", identity)
    claim, run = db.run()
    db.finish(claim, run, result=2)
    assert (db.status(identity), db.field(identity, "result")) == ("succeeded", 2)


def test_a_worker_that_remembers_a_revoke_catches_up_with_a_job_that_came_beside_it(db: Session) -> None:
    identity = call(db)
    db.do("insert into bridge.revoked values (%s, now())", identity)
    assert db.one("select bridge.heed_revoke(%s)", identity)
    assert db.status(identity) == "cancelled"


def test_jobs_with_a_revoked_stamp_are_cancelled_and_those_that_come_later_too(db: Session) -> None:
    one, listed = call(db, order=7), call(db, order=[6, 7], shop="x")
    others = [call(db, order=8), call(db), call(db, shop=7)]
    stamps = json.dumps({"order": [7, 9]})
    assert db.one("select bridge.revoke_stamped(%s::jsonb)", stamps) == 2
    assert {db.status(identity) for identity in (one, listed)} == {"cancelled"}
    assert {db.status(identity) for identity in others} == {"queued"}
    later = call(db, order=9)
    assert db.status(later) == "cancelled"
    db.one("select bridge.retry(%s)", later)
    assert db.status(later) == "queued"


def test_a_purge_cancels_what_waits_in_a_queue_and_nothing_else(db: Session) -> None:
    running = call(db)
    db.run()
    published = call(db)
    db.publish()
    for _ in range(3):
        call(db)
    call(db, later="1 day")
    db.enqueue(depends_on=[published])
    elsewhere = [call(db, queue="other"), call(db, queue="other", later="1 day")]
    assert db.rows("select * from bridge.purge('celery', max_jobs => 2)") == [(2, 0)]
    assert db.rows("select * from bridge.purge('celery')") == [(3, 1)]
    assert db.rows("select * from bridge.purge('celery')") == [(0, 0)]
    for wrong in ("purge('celery', max_jobs => -1)", "settle_unreported(true, max_jobs => -1)"):
        with pytest.raises(psycopg.Error, match="max_jobs is -1") as refused:
            db.do(f"select bridge.{wrong}")
        assert refused.value.sqlstate == "JB001"
    assert db.status(running) == "running"
    assert [db.status(identity) for identity in elsewhere] == ["queued", "scheduled"]
    assert db.one("select count(*) from bridge.jobs where status = 'cancelled'") == 6


def test_a_revoke_while_the_broker_is_down_cancels_the_row_and_says_that_workers_did_not_hear(caller: Any, db: Session) -> None:
    result = caller.send_task("kinds.add", (1, 2))
    with pytest.raises(OperationalError):
        result.revoke()
    assert db.status(result.id) == "cancelled"
