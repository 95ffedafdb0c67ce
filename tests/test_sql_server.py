"""What SQL makes of a server that is another one than before: restarted, promoted, or with a clock that went back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fix_servers import wait_until

if TYPE_CHECKING:
    from fix_sql import Session

AHEAD = "interval '10 minutes'"


def steady(db: Session) -> None:
    """As if ticks had come without a gap for long, on a server that has been up for long."""
    db.tick()
    db.do("update bridge.tick_state set steady_since = '-infinity'")


def go_back(db: Session) -> None:
    """As if the clock had gone ten minutes back since everything that has happened."""
    db.do(f"update bridge.tick_state set ticked_at = ticked_at + {AHEAD}, steady_since = steady_since + {AHEAD}")
    db.do(f"update bridge.worker set seen_at = seen_at + {AHEAD}, started_at = started_at + {AHEAD}")
    moments = ("claimed_at", "published_at", "started_at", "missing_since")
    db.do("update bridge.inflight set " + ", ".join(f"{moment} = {moment} + {AHEAD}" for moment in moments))
    db.do(f"update bridge.look set asked_at = clock_timestamp() + {AHEAD}, answered_at = clock_timestamp() + {AHEAD}")
    db.do(f"update bridge.bucket set refilled_at = refilled_at + {AHEAD}, due_at = due_at + {AHEAD}")


def lost(db: Session, by: str) -> int:
    """One sweep at a later moment."""
    return int(db.one("select bridge.sweep(p_now => greatest(clock_timestamp(), pg_postmaster_start_time()) + %s::interval)->>'lost'", by))


def test_a_drainer_ticks_after_the_clock_went_back(db: Session) -> None:
    steady(db)
    go_back(db)
    assert db.one("select bridge.tick_if_late('drainer')") is not None
    assert db.one("select bridge.tick_if_late('drainer')") is None, "the last tick is one of this clock now"


def test_a_worker_that_died_is_noticed_as_soon_as_ever_after_the_clock_went_back(db: Session) -> None:
    identity = db.enqueue()
    claim, _ = db.run()
    db.report(claim.token)
    steady(db)
    go_back(db)
    db.tick()
    assert lost(db, by="19 seconds") == 0, "it has time to report"
    assert lost(db, by="21 seconds") == 1
    assert db.attempts(identity)[0] == (1, "lost")


def test_a_claim_whose_drainer_died_is_freed_as_soon_as_ever_after_the_clock_went_back(db: Session) -> None:
    steady(db)
    db.enqueue()
    db.claim()
    go_back(db)
    db.tick()
    assert db.one("select bridge.sweep(p_now => clock_timestamp() + interval '31 seconds')->>'unclaimed'") == "1"


def test_a_message_that_is_gone_is_suspected_as_soon_as_ever_after_the_clock_went_back(db: Session) -> None:
    steady(db)
    db.do("update bridge.setting set value = '0' where name = 'republish_grace'")
    db.enqueue()
    claim = db.publish()
    db.do("select bridge.mark_missing(%s::uuid[])", [claim.token])
    go_back(db)
    db.tick()
    assert db.one("select count(*) from bridge.suspects()") == 1
    assert db.one("select bridge.may_look()") is False, "one look was asked for at the moment of the jump"
    db.do("update bridge.look set asked_at = asked_at - interval '5 seconds'")
    assert db.one("select bridge.may_look()") is True
    assert db.one("select missing_since <= clock_timestamp() from bridge.inflight") is True


def test_a_rate_lets_through_what_it_should_after_the_clock_went_back(db: Session) -> None:
    steady(db)
    db.do("select bridge.set_limit(name => 'slow', task => 'a.task', rate => 2, per => '1 second')")
    for _ in range(6):
        db.enqueue()
    assert 0 < len(db.claim()) < 6
    go_back(db)
    db.tick()
    assert wait_until(db.claim, 10, "the next token")


def test_what_is_wanted_at_a_moment_stays_there_when_the_clock_goes_back(db: Session) -> None:
    identity = db.enqueue(delay="1 hour")
    before = db.field(identity, "run_at")
    go_back(db)
    db.tick()
    assert db.field(identity, "run_at") == before


def test_nobody_is_dead_before_there_was_time_to_report_to_another_server(db: Session) -> None:
    db.enqueue()
    claim, _ = db.run()
    db.report(claim.token)
    steady(db)
    # As a promoted standby finds it, which has been up for as long.
    db.do("update bridge.worker set seen_at = clock_timestamp() - interval '1 minute'")
    db.do("update bridge.tick_state set server_started_at = server_started_at - interval '1 day'")
    db.tick()
    assert lost(db, by="19 seconds") == 0
    assert lost(db, by="21 seconds") == 1


def test_the_first_tick_after_an_upgrade_takes_nobody_for_another_server(db: Session) -> None:
    steady(db)
    db.do("update bridge.tick_state set server_started_at = null")
    db.tick()
    assert db.one("select steady_since = '-infinity' from bridge.tick_state") is True


def late_finish(db: Session, seq: int, identity: Any) -> bool:
    query = "select bridge.finish(%s, gen_random_uuid(), 'succeeded', '42', p_token => gen_random_uuid(), p_id => %s)"
    return bool(db.one(query, seq, identity))


def test_a_run_that_a_promoted_standby_never_heard_of_leaves_no_trace_on_the_job_that_has_its_number_now(db: Session) -> None:
    identity = db.enqueue()
    seq = db.one("select seq from bridge.job")
    stranger = db.one("select bridge.new_id()")
    error = json.dumps({"type": "ValueError", "message": "of another job", "traceback": None})
    failure = "select bridge.fail(%s, gen_random_uuid(), %s::json, p_token => gen_random_uuid(), p_id => %s)"
    for number in ("before", "running", "after"):
        assert late_finish(db, seq, stranger) is False
        assert db.one(failure, seq, error, stranger) is None
        if number == "before":
            claim, run = db.run()
        elif number == "running":
            assert db.finish(claim, run, result=1)
    assert db.attempts(identity) == [(1, "succeeded")]
    assert late_finish(db, seq, identity) is False
    assert (1, "superseded") in db.attempts(identity), "what comes late of the job itself is kept aside"
