"""What time brings about: due and expired jobs, and the recovery of what dead processes left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_sql import Session

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_scheduled_job_is_queued_when_its_time_has_come_and_not_before(db: Session) -> None:
    identity = db.enqueue(delay="1 hour")
    assert db.tick(by="59 minutes")["due"] == 0
    assert db.tick(by="61 minutes")["due"] == 1
    assert db.status(identity) == "queued"


def test_due_jobs_come_in_the_order_of_their_time(db: Session) -> None:
    for number, delay in enumerate(["3 hours", "1 hour", "2 hours"]):
        db.enqueue(args=[number], delay=delay)
    db.tick(by="4 hours")
    assert [claim.args for claim in db.claim()] == [[1], [2], [0]]


def test_a_backlog_takes_several_ticks_none_of_them_long(db: Session) -> None:
    for _ in range(5):
        db.enqueue(delay="1 hour")
    query = "select bridge.tick('test', 2, clock_timestamp() + interval '2 hours')->>'due'"
    assert [db.one(query) for _ in range(4)] == ["2", "2", "1", "0"]


def test_a_tick_wakes_drainers_of_the_queues_that_have_work_now(db: Session, dsn: str) -> None:
    db.enqueue(queue="later", delay="1 hour")
    listener = Session(dsn)
    listener.listen()
    db.tick(by="2 hours")
    assert [notice.payload for notice in listener.connection.notifies(timeout=20, stop_after=1)] == ["later"]


def test_one_tick_at_a_time_does_the_work(db: Session, dsn: str) -> None:
    other = Session(dsn)
    with db.connection.transaction():
        assert db.one("select bridge.tick('one')") is not None
        assert other.one("select bridge.tick('two')") is None


def test_a_tick_is_made_only_where_nobody_else_ticks(db: Session) -> None:
    db.do("update bridge.tick_state set source = 'pg_cron', ticked_at = clock_timestamp()")
    assert db.one("select bridge.tick_if_late('drainer')") is None
    db.do("update bridge.tick_state set ticked_at = clock_timestamp() - interval '3 seconds'")
    assert db.one("select bridge.tick_if_late('drainer')") is None
    db.do("update bridge.tick_state set ticked_at = clock_timestamp() - interval '5 seconds'")
    assert db.one("select bridge.tick_if_late('drainer')") is not None
    assert db.one("select source from bridge.tick_state") == "drainer"


def in_place(db: Session, place: str) -> Callable[[], None]:
    """A job that expires in an hour, in one of the places; gives what brings it on from there."""
    parents = [db.enqueue("parent", delay="1 year")] if place == "blocked" else None
    delay = "1 minute" if place == "scheduled" else None
    db.enqueue("mortal", expires_at=db.one("select clock_timestamp() + interval '1 hour'"), depends_on=parents, delay=delay)
    if place in {"published", "running"}:
        claim = db.publish()
        if place == "running":
            run = db.start(claim)
            return lambda: db.finish(claim, run) and None
        return lambda: db.start(claim) and None
    return lambda: None


@pytest.mark.parametrize("place", ["blocked", "scheduled", "queued", "published"])
def test_a_job_that_was_not_started_in_time_is_expired_wherever_it_waits(db: Session, place: str) -> None:
    bring_on = in_place(db, place)
    assert db.tick(by="59 minutes")["expired"] == 0
    assert db.tick(by="61 minutes")["expired"] == 1
    bring_on()
    assert db.rows("select status from bridge.jobs where task = 'mortal'") == [("expired",)]


def test_a_job_that_runs_does_not_expire(db: Session) -> None:
    finish = in_place(db, "running")
    assert db.tick(by="61 minutes")["expired"] == 0
    finish()
    assert db.rows("select status from bridge.jobs where task = 'mortal'") == [("succeeded",)]


def test_running_jobs_that_are_past_their_time_do_not_keep_others_from_expiring(db: Session) -> None:
    for _ in range(3):
        db.enqueue("runs", expires_at="2100-01-01")
    for claim in db.claim():
        db.start(claim)
    db.enqueue("waits", expires_at="2100-01-02")
    done = db.one("select bridge.tick('test', 3, '2100-01-03')")
    assert done["expired"] == 1


def test_children_of_an_expired_job_are_cancelled(db: Session) -> None:
    parent = db.enqueue(expires_at="2100-01-01", delay="1 hour")
    child = db.enqueue(depends_on=[parent])
    db.tick(by="100 years")
    assert db.status(child) == "cancelled"


def test_a_claim_that_its_drainer_never_marked_is_ready_again_after_its_lease(db: Session) -> None:
    db.enqueue()
    token = db.claim()[0].token
    assert db.tick(by="29 seconds")["unclaimed"] == 0
    assert db.tick(by="31 seconds")["unclaimed"] == 1
    assert db.claim()[0].token == token, "a copy that was sent all the same stays valid"


def steady(db: Session) -> None:
    """As if ticks had come without a gap for long, on a server that has been up for long."""
    db.do("update bridge.tick_state set ticked_at = clock_timestamp(), steady_since = '-infinity'")


def lost(db: Session, by: str) -> int:
    """One sweep at a later moment; each tick before it would have been a sign of life of the ticker."""
    return int(db.one("select bridge.sweep(p_now => greatest(clock_timestamp(), pg_postmaster_start_time()) + %s::interval)->>'lost'", by))


def test_the_run_of_a_worker_that_reports_no_more_is_lost_after_a_while(db: Session) -> None:
    identity = db.enqueue()
    claim, _ = db.run()
    db.report(claim.token)
    steady(db)
    assert lost(db, "15 seconds") == 0
    assert lost(db, "45 seconds") == 1
    assert db.rows("select status, losses from bridge.jobs where id = %s", identity) == [("queued", 1)]
    assert db.one("select status from bridge.workers") == "lost"


def test_what_a_worker_begins_whose_reports_do_not_get_through_is_lost_no_sooner_than_a_report_would_let_it(db: Session) -> None:
    identity = db.enqueue()
    db.report()
    db.do("update bridge.worker set seen_at = clock_timestamp() - interval '1 hour', lost_at = clock_timestamp()")
    db.run()
    db.do("update bridge.inflight set started_at = greatest(clock_timestamp(), pg_postmaster_start_time()) + interval '10 seconds'")
    steady(db)
    assert lost(db, "25 seconds") == 0
    assert db.status(identity) == "running"
    assert lost(db, "45 seconds") == 1


def test_a_worker_that_stops_gives_back_what_it_ran_and_held_uncharged(db: Session) -> None:
    running, held, cancelled = db.enqueue(), db.enqueue(), db.enqueue()
    claims = db.claim()
    db.mark(claims)
    db.start(claims[0])
    db.start(claims[2])
    db.do("select bridge.cancel(%s)", cancelled)
    db.report(*(claim.token for claim in claims))
    assert db.one("select bridge.stop_worker(%s)", db.worker) == 3
    assert [db.status(identity) for identity in (running, held, cancelled)] == ["queued", "queued", "cancelled"]
    assert db.rows("select attempts, losses from bridge.jobs where status = 'queued'") == [(0, 0)] * 2
    assert db.attempts(running) == [(1, "released")]
    again = {claim.token for claim in db.claim()}
    assert len(again) == 2
    assert again.isdisjoint(claim.token for claim in claims)


def report_later(db: Session, *tokens: object) -> None:
    """A heartbeat of 25 seconds from now."""
    db.report(*tokens)
    db.do("update bridge.worker set seen_at = greatest(clock_timestamp(), pg_postmaster_start_time()) + interval '25 seconds'")


def test_a_run_that_its_living_worker_no_longer_names_is_lost_when_two_reports_say_so(db: Session) -> None:
    db.enqueue()
    db.run()
    steady(db)
    report_later(db)
    assert lost(db, "26 seconds") == 0
    assert lost(db, "40 seconds") == 1


def test_a_run_that_is_named_again_is_not_lost(db: Session) -> None:
    db.enqueue()
    claim, _ = db.run()
    steady(db)
    report_later(db)
    assert lost(db, "26 seconds") == 0
    report_later(db, claim.token)
    assert lost(db, "40 seconds") == 0


def test_a_run_that_its_living_worker_names_goes_on_for_hours(db: Session) -> None:
    identity = db.enqueue()
    claim, _ = db.run()
    db.do("update bridge.inflight set started_at = started_at - interval '10 hours'")
    steady(db)
    for _ in range(4):
        report_later(db, claim.token)
        assert lost(db, "26 seconds") == 0
    assert db.status(identity) == "running"


def test_a_worker_that_has_not_reported_yet_is_given_time(db: Session) -> None:
    identity = db.enqueue()
    db.run()
    steady(db)
    assert lost(db, "15 seconds") == 0
    assert db.status(identity) == "running"
    assert lost(db, "45 seconds") == 1


def test_what_a_dead_worker_had_in_hand_and_not_begun_is_published_again_with_another_token(db: Session) -> None:
    identity = db.enqueue()
    claim = db.publish()
    db.report(claim.token)
    steady(db)
    assert lost(db, "45 seconds") == 1
    assert db.rows("select status, losses from bridge.jobs where id = %s", identity) == [("queued", 0)]
    assert db.start(claim) is None


def test_a_published_job_has_no_deadline(db: Session) -> None:
    identity = db.enqueue()
    db.publish()
    steady(db)
    db.tick(by="10 days")
    assert db.status(identity) == "published"


def test_after_an_outage_nobody_is_dead_until_there_was_time_to_report(db: Session) -> None:
    identity = db.enqueue()
    claim, _ = db.run()
    db.report(claim.token)
    db.do("update bridge.worker set seen_at = seen_at - interval '1 hour'")
    db.do("update bridge.inflight set started_at = started_at - interval '1 hour'")
    db.do("update bridge.tick_state set ticked_at = clock_timestamp() - interval '1 hour', steady_since = '-infinity'")
    assert db.tick()["lost"] == 0
    assert db.status(identity) == "running"


def days(db: Session, parent: str = "finished") -> list[str]:
    query = "select relid::text from pg_partition_tree('bridge.' || %s) where isleaf order by 1"
    return [row[0].removeprefix("bridge.") for row in db.rows(query, parent)]


def test_days_are_made_ahead_by_install_and_by_the_tick(db: Session) -> None:
    assert len(days(db)) >= 7
    before = set(days(db))
    db.do("update bridge.tick_state set upkeep_at = '-infinity'")
    assert db.one("select bridge.make_days()") == 0
    tomorrow = "((now() + interval '1 day') at time zone 'utc')::date"
    assert db.one(f"select bridge.make_days({tomorrow}, 7)") == 3
    assert len(set(days(db)) - before) == 1
    assert len(days(db, "attempt")) == len(days(db, "log_line")) == len(days(db))


def test_making_a_day_does_not_wait_for_an_open_writer(db: Session, dsn: str) -> None:
    db.enqueue()
    run = db.run()
    other = Session(dsn)
    other.do("set lock_timeout = '3s'")
    with db.connection.transaction():
        db.finish(*run)
        assert other.one("select bridge.make_days((now() + interval '40 days')::date, 1)") == 3


def test_a_finish_on_a_day_that_nobody_made_says_so_and_changes_nothing(db: Session) -> None:
    identity = db.enqueue()
    run = db.run()
    for parent in ("finished", "attempt"):
        for day in days(db, parent):
            db.do(f"drop table bridge.{day}")
    with pytest.raises(psycopg.errors.CheckViolation):
        db.finish(*run)
    assert db.status(identity) == "running"
    db.do("select bridge.make_days()")
    assert db.finish(*run) is True


def test_the_statistics_of_a_queue_count_each_status(db: Session) -> None:
    db.enqueue()
    db.finish(*db.run())
    db.enqueue(max_attempts=1)
    db.fail(*db.run())
    db.enqueue()
    db.run()
    db.enqueue()
    db.publish()
    db.enqueue(delay="1 hour")
    db.enqueue(depends_on=[db.enqueue()])
    columns = "blocked, scheduled, queued, published, running, succeeded_last_hour, failed_last_hour"
    assert db.rows(f"select {columns} from bridge.job_queue_stats where queue = 'celery'") == [(1, 1, 1, 1, 1, 1, 1)]


def test_a_job_that_waits_or_runs_for_too_long_shows_as_stuck_with_a_reason(db: Session) -> None:
    identity = db.enqueue()
    db.run()
    db.enqueue()
    db.do("update bridge.setting set value = '0' where name = 'stuck_after'")
    reasons = dict(db.rows("select status, reason from bridge.stuck_jobs"))
    assert "worker busy" in reasons["running"]
    assert "is a drainer alive" in reasons["queued"]
    assert db.one("select count(*) from bridge.stuck_jobs where id = %s", identity) == 1
