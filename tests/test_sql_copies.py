"""What has become of one copy of a message is no word about the run that another copy has begun; found by tests/model."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fix_sql import Claim, Session

STEADY = "update bridge.tick_state set steady_since = '-infinity', ticked_at = clock_timestamp()"
GONE = "update bridge.worker set seen_at = clock_timestamp() - interval '1 hour' where id = %s"
FAIR = "update bridge.setting set value = '1' where name = 'worker_lost'"  # the server may have been started a moment ago


def running(db: Session) -> Claim:
    """A job that runs in process 1 of db's worker."""
    db.enqueue()
    claim, _ = db.run()
    db.report(claim.token)
    return claim


@pytest.mark.parametrize("pid", [1, 2])
def test_a_child_that_dies_with_a_copy_loses_no_run_of_another_worker(db: Session, other: Session, pid: int) -> None:
    claim = running(db)
    assert other.one("select bridge.lose(%s, %s, 'killed', %s, %s)", claim.seq, claim.token, other.worker, pid) is None
    assert db.status(claim.id) == "running"


def test_a_child_that_dies_with_a_copy_loses_no_run_of_another_child(db: Session) -> None:
    claim = running(db)
    assert db.one("select bridge.lose(%s, %s, 'killed', %s, 2)", claim.seq, claim.token, db.worker) is None
    assert db.one("select bridge.lose(%s, %s, 'killed', %s, 1)", claim.seq, claim.token, db.worker) == "queued"


def test_the_time_limit_of_a_copy_ends_no_run_of_another_child(db: Session) -> None:
    claim = running(db)
    end = "select bridge.end_delivery(%s, %s, %s, 'failed', '{}', p_pid => %s)"
    assert db.one(end, claim.seq, claim.token, db.worker, 2) is None
    assert db.one(end, claim.seq, claim.token, db.worker, 1) == "failed"


def test_a_copy_that_has_expired_ends_no_run_of_its_own_worker(db: Session) -> None:
    claim = running(db)
    assert db.one("select bridge.end_delivery(%s, %s, %s, 'expired', '{}')", claim.seq, claim.token, db.worker) is None
    assert db.status(claim.id) == "running"


def test_a_sweep_takes_no_run_that_began_after_it_had_read_that_a_dead_worker_held_a_copy(db: Session, other: Session) -> None:
    """What the sweep reads first, and then takes, each by a lock of its own; the second job's run begins in between."""
    db.do(FAIR)
    for _ in range(2):
        db.enqueue()
    claims = db.claim()
    db.mark(claims)
    other.report(*(claim.token for claim in claims))
    db.do(GONE, other.worker)
    db.do(STEADY)
    db.do(
        f"""create function pg_temp.begin() returns trigger language plpgsql as $$ begin
          perform bridge.start(i.seq, i.token, '{db.worker}', 1) from bridge.inflight i; return null; end $$"""
    )
    db.do("create trigger begins after delete on bridge.inflight for each row execute function pg_temp.begin()")
    db.tick()
    assert sorted(db.rows("select status, losses from bridge.jobs")) == [("queued", 0), ("running", 0)]


def test_what_a_dead_worker_held_is_left_to_a_living_one_that_holds_it_too(db: Session, other: Session) -> None:
    db.do(FAIR)
    db.enqueue()
    claim = db.publish()
    other.report(claim.token)
    db.do(GONE, other.worker)
    db.report(claim.token)
    db.do("update bridge.worker set seen_at = clock_timestamp() + interval '1 hour' where id = %s", db.worker)
    db.do(STEADY)
    db.tick()
    assert db.rows("select token from bridge.inflight") == [(claim.token,)]
    assert db.start(claim) is not None


def missing(db: Session) -> Claim:
    """Published, popped, and not yet reported, when a drainer looked for it an hour ago."""
    db.enqueue()
    claim = db.publish()
    db.do("select bridge.mark_missing(array[%s::uuid])", claim.token)
    db.do("update bridge.inflight set missing_since = missing_since - interval '1 hour'")
    db.do("update bridge.look set answered_at = clock_timestamp()")
    return claim


def republished(db: Session, claim: Claim) -> bool:
    return bool(db.rows("select from bridge.republish(%s, %s, array[%s::uuid])", db.drainer, uuid.uuid4(), claim.token))


def test_what_a_living_worker_has_is_missing_no_more(db: Session) -> None:
    claim = missing(db)
    db.report(claim.token)
    db.do("select bridge.sweep()")
    assert db.rows("select missing_since from bridge.inflight") == [(None,)]


def test_nothing_is_published_again_before_workers_had_time_to_report_after_an_outage(db: Session) -> None:
    """The server of the tests may have been started a moment ago, or long ago; a gap in the ticks says the same."""
    db.do("update bridge.setting set value = '60' where name = 'republish_grace'")
    claim = missing(db)
    db.do("update bridge.tick_state set steady_since = clock_timestamp() - interval '59 s'")
    assert not republished(db, claim)
    db.do("update bridge.setting set value = '0' where name = 'republish_grace'")
    assert republished(db, claim)


def test_a_message_that_is_published_again_is_known_after_a_crash(db: Session) -> None:
    """Until a copy is on disk, a start that no copy is known of would not be forced there either."""
    claim = missing(db)
    db.do(STEADY)
    db.do("update bridge.setting set value = '0' where name = 'republish_grace'")
    with db.connection.transaction():
        db.do("set local synchronous_commit = off")
        assert republished(db, claim)
        assert db.one("show synchronous_commit") == "on"
