"""Each kind of alert rule: what makes it fire, and that it is resolved by itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from fix_alerts import URL, alerts, check, dead_letter, jobs_wait, only, told
from fix_schedules import schedule
from fix_servers import wait_until
from fix_sql import Session

if TYPE_CHECKING:
    from collections.abc import Callable

RULES = [
    "breaker_open", "broker_trouble", "dead_letters", "failed_schedule", "failure_rate", "late_schedule", "late_tick", "no_drainer",
    "no_worker", "old_snapshot", "paused", "queue_age", "queued_jobs", "slow_schedule", "stuck_jobs",
]  # fmt: skip


@dataclass
class Story:
    """How the condition of a rule comes and goes; `by` is how much later it is looked at."""

    come: Callable[[Session], Any]
    go: Callable[[Session], Any]
    message: str
    subject: str | None = None
    by: str = "0"
    lasting: str = "0"


def jobs_fail(db: Session) -> None:
    db.report()
    for _ in range(20):
        dead_letter(db)


def schedule_fails(db: Session) -> None:
    schedule(db, max_attempts=1)
    db.do("select bridge.run_schedule('nightly')")
    db.fail(*db.run(), "torn")


def schedule_succeeds(db: Session) -> None:
    db.do("select bridge.run_schedule('nightly')")
    db.finish(*db.run())


def schedule_is_late(db: Session) -> None:
    schedule(db)
    db.do("update bridge.schedule set next_at = clock_timestamp() - interval '5 minutes'")


def schedule_is_slow(db: Session) -> None:
    schedule(db, expected_duration="1 minute")
    db.do("select bridge.run_schedule('nightly')")
    claim, run = db.run()
    db.do("update bridge.inflight set started_at = started_at - interval '1 hour'")
    db.finish(claim, run)
    db.tick()


def jobs_succeed(db: Session) -> None:
    for _ in range(20):
        db.enqueue()
        db.finish(*db.run())


def report_drainer(db: Session, **broker: str) -> None:
    db.do("select bridge.report_drainer(%s, 'here:1', 1, 'test', 7, clock_timestamp(), %s::jsonb)", db.drainer, json.dumps(broker))


def take_all(db: Session) -> None:
    db.do("select bridge.cancel(id) from bridge.jobs where finished_at is null")


def hold_a_snapshot(db: Session) -> None:
    holder = Session(db.dsn)
    holder.do("begin transaction isolation level repeatable read")
    holder.do("select 1")
    STATE["holder"] = holder


def let_go_of_it(_: Session) -> None:
    STATE.pop("holder").connection.close()


STATE: dict[str, Session] = {}
HELD: list[Any] = []
STORIES = {
    "queued_jobs": Story(
        jobs_wait, take_all, "101 jobs have waited for longer than 1 h 0 min, the oldest for 1 h 10 min", by="70 minutes",
    ),
    "queue_age": Story(
        jobs_wait, take_all, "the oldest due job of queue celery has waited 20 min 0 s; ", "celery", by="20 minutes", lasting="1 minute",
    ),
    "stuck_jobs": Story(
        lambda db: (db.enqueue(), HELD.append(db.run())), lambda db: db.finish(*HELD.pop()),
        "1 jobs have been running for longer than 1 h 0 min, the oldest (", by="70 minutes",
    ),
    "failure_rate": Story(jobs_fail, jobs_succeed, "20 of 20 attempts of queue celery have failed", "celery"),
    "dead_letters": Story(
        dead_letter, lambda db: db.do("select bridge.discard_jobs('{\"queue\": \"celery\"}')"), "1 jobs have failed for good within 1 h",
    ),
    "no_drainer": Story(lambda db: db.enqueue(), report_drainer, "0 drainers report, and due jobs wait", lasting="1 minute"),
    "no_worker": Story(
        lambda db: db.enqueue(), lambda db: db.report(), "0 workers consume queue celery, where the oldest", "celery", lasting="2 minutes",
    ),
    "broker_trouble": Story(
        lambda db: report_drainer(db, trouble="refused", since="2026-01-01T00:00:00Z"), report_drainer,
        "1 of 1 drainers cannot publish for ",
    ),
    "late_schedule": Story(
        schedule_is_late, lambda db: db.tick(), "schedule nightly has been due for 5 min 0 s and not run", "nightly",
    ),
    "failed_schedule": Story(schedule_fails, schedule_succeeds, "the last 1 runs of schedule nightly failed: torn", "nightly"),
    "slow_schedule": Story(
        schedule_is_slow, schedule_succeeds, "a run of schedule nightly takes 1 h 0 min, and no more than 1 min 0 s is expected", "nightly",
    ),
    "breaker_open": Story(
        lambda db: db.do("select bridge.set_breaker('celery'), bridge.turn_breaker('queue', 'celery', 'open', 'all fail')"),
        lambda db: db.do("select bridge.reset_breaker('celery')"), "circuit breaker of queue celery is open: all fail", "queue celery",
    ),
    "paused": Story(
        lambda db: db.do("select bridge.pause('celery', reason => 'deployment')"), lambda db: db.do("select bridge.resume('celery')"),
        "queue celery has been paused by ", "queue celery", by="25 hours",
    ),
    "old_snapshot": Story(hold_a_snapshot, let_go_of_it, "pid ", by="16 minutes"),
}  # fmt: skip


@pytest.mark.parametrize("rule", STORIES)
def test_a_rule_that_is_installed_fires_and_is_resolved_by_itself(db: Session, rule: str) -> None:
    story = STORIES[rule]
    only(db, rule)
    assert check(db, story.by) == {"opened": 0, "unresolved": 0}
    story.come(db)
    if story.lasting != "0":
        assert check(db, story.by) == {"opened": 0, "unresolved": 0}, "it has to last"
        db.do("update bridge.alert_pending set since = since - %s::interval", story.lasting)
    assert check(db, story.by) == {"opened": 1, "unresolved": 1}
    assert check(db, story.by) == {"opened": 0, "unresolved": 1}
    ((kind, subject, state, message),) = alerts(db, "kind, subject, state, message")
    assert (kind, subject, state) == (rule, story.subject, "open")
    assert message.startswith(story.message)
    story.go(db)
    if rule.endswith("_schedule"):
        db.tick()
    wait_until(
        lambda: check(db, "0" if rule in {"no_drainer", "no_worker", "broker_trouble"} else story.by) == {"opened": 0, "unresolved": 0}
    )
    assert alerts(db, "state, resolved_by") == [("resolved", "condition")]
    assert told(db) == []


def test_a_late_tick_is_told_by_the_tick_that_ends_it_and_by_whoever_looks_before(db: Session) -> None:
    db.tick()
    assert alerts(db) == []
    db.do("update bridge.tick_state set ticked_at = clock_timestamp() - interval '5 minutes'")
    db.do("update bridge.alert_state set checked_at = '-infinity'")
    assert [row[0] for row in db.rows("select rule from bridge.watch_alerts()")] == ["late_tick"]
    db.do("update bridge.alert_state set checked_at = '-infinity'")
    db.tick()
    assert alerts(db) == [("late_tick", None, "open")]
    db.tick(by="20 seconds")
    assert alerts(db) == [("late_tick", None, "resolved")]


def test_every_kind_has_a_rule_that_tells_nobody_until_an_address_is_given(db: Session) -> None:
    assert [row[0] for row in db.rows("select name from bridge.alert_rules where enabled order by name")] == RULES
    assert sorted([*STORIES, "late_tick"]) == RULES
    dead_letter(db)
    check(db)
    assert (len(alerts(db)), told(db)) == (1, [])
    db.do("select bridge.resolve_alert(id) from bridge.alerts")
    db.do("update bridge.setting set value = %s::jsonb where name = 'alert_webhook'", json.dumps(URL))
    check(db, "2 hours")
    assert told(db) == [], "it is over by then"
    dead_letter(db)
    db.do("update bridge.alert set told_at = told_at - interval '2 hours'")
    check(db)
    assert told(db) == ["alert.opened"]


def test_a_rule_that_was_removed_does_not_come_back_with_the_next_install(db: Session) -> None:
    from bridge import schema

    db.do("select bridge.remove_alert('old_snapshot'), bridge.set_alert('queue_age', threshold => 5)")
    schema.install(db.dsn)
    assert db.rows("select count(*), max(threshold) filter (where name = 'queue_age') from bridge.alert_rules") == [(len(RULES) - 1, 5)]
