"""Alerts: who is told of one and how often, who answers it, what a rule may be, and that those who race make one."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from fix_alerts import URL, alerts, check, dead_letter, jobs_wait, only, told
from fix_sql import Session


def test_more_than_a_hundred_jobs_queued_for_an_hour_reach_a_webhook_by_one_call(db: Session) -> None:
    only(db)
    assert (
        db.one("select bridge.set_alert('alert-stuck-jobs', 'queued_jobs', threshold => 100, within => '1 hour', webhook => %s)", URL)
        == "created"
    )
    jobs_wait(db)
    db.publish(limit=60)
    check(db, "59 minutes")
    assert told(db) == []
    check(db, "61 minutes")
    ((url, payload, secret),) = db.rows(
        "select kwargs->>'url', kwargs->'payload', kwargs->>'secret' from bridge.jobs where task = 'bridge.deliver_webhook'"
    )
    data = payload["data"]
    assert (url, secret, payload["type"]) == (URL, "default", "alert.opened")
    assert (data["rule"], data["value"], data["threshold"], data["severity"], data["state"]) == (
        "alert-stuck-jobs",
        101,
        100,
        "warning",
        "open",
    )


def test_a_message_is_repeated_when_the_quiet_time_is_over_and_an_answer_begins_it_anew(db: Session) -> None:
    only(db, "dead_letters")
    db.do("select bridge.set_alert('dead_letters', within => '1 day', quiet => '10 minutes', webhook => %s)", URL)
    dead_letter(db)
    check(db)
    check(db, "9 minutes")
    assert told(db) == ["alert.opened"]
    check(db, "11 minutes")
    assert told(db) == ["alert.opened", "alert.reminder"]
    assert db.one("select bridge.acknowledge_alert(id, 'anna', 'at it') from bridge.alerts")
    assert not db.one("select bridge.acknowledge_alert(id, 'berta') from bridge.alerts")
    assert alerts(db, "state, acknowledged_by, note") == [("acknowledged", "berta", "at it")]
    db.do("update bridge.alert set told_at = told_at - interval '1 hour'")
    check(db, "9 minutes")
    assert told(db) == ["alert.opened", "alert.reminder"]
    check(db, "11 minutes")
    assert told(db) == ["alert.opened", "alert.reminder", "alert.reminder"]
    check(db, "2 days")
    assert told(db)[-1] == "alert.resolved"
    assert alerts(db, "state, acknowledged_by") == [("resolved", "berta")]


def test_what_comes_back_is_another_alert_that_keeps_the_quiet_time(db: Session) -> None:
    only(db, "paused")
    db.do("select bridge.set_alert('paused', threshold => 0, webhook => %s)", URL)
    for _ in range(2):
        db.do("select bridge.pause('celery')")
        check(db, "1 second")
        db.do("select bridge.resume('celery')")
        check(db, "1 second")
    assert alerts(db, "state, told") == [("resolved", 1), ("resolved", 0)]
    assert told(db) == ["alert.opened", "alert.resolved"]
    db.do("select bridge.pause('celery')")
    check(db, "10 seconds")
    check(db, "61 minutes")
    assert told(db) == ["alert.opened", "alert.resolved", "alert.opened"]


def test_who_listens_hears_of_an_alert_without_any_address(db: Session) -> None:
    listener = Session(db.dsn)
    listener.do("listen bridge_alert")
    dead_letter(db)
    check(db)
    (notice,) = listener.connection.notifies(timeout=20, stop_after=1)
    payload = json.loads(notice.payload)
    assert (payload["type"], payload["data"]["rule"], payload["data"]["message"][:12]) == ("alert.opened", "dead_letters", "1 jobs have ")


def test_messages_go_to_a_queue_that_somebody_consumes(db: Session) -> None:
    only(db, "no_worker")
    db.do("select bridge.set_alert('no_worker', lasting => '0', notifier => 'ops')")
    db.enqueue(queue="payments")
    db.do("select bridge.report_worker(gen_random_uuid(), 'w', 1, 'solo', 1, '{mail}', 'test', '{}', clock_timestamp())")
    check(db)
    delivery = "select queue, kwargs->>'target', kwargs->>'callback' from bridge.jobs where task = 'bridge.deliver_notification'"
    assert db.rows(delivery) == [("mail", "ops", "alert no_worker")]
    assert db.rows("select callback, event from bridge.deliveries") == [("alert no_worker", "alert.opened")]


def test_of_two_who_look_at_once_one_opens_an_alert_and_tells_of_it(db: Session) -> None:
    db.do("select bridge.set_alert('dead_letters', webhook => %s)", URL)
    dead_letter(db)
    other = Session(db.dsn)
    with db.connection.transaction():
        assert check(db) == {"opened": 1, "unresolved": 1}
        assert check(other) is None, "somebody else is at it"
        assert other.one("select bridge.tick('other')") is not None, "the tick waits for nobody"
    sessions = [Session(db.dsn) for _ in range(4)]
    db.do("delete from bridge.alert")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(check, sessions * 5))
    assert sum(one["opened"] for one in done if one) == 1
    assert len(alerts(db)) == 1
    assert told(db) == ["alert.opened", "alert.opened"]


def test_a_look_passes_by_what_somebody_is_answering(db: Session) -> None:
    only(db, "dead_letters")
    dead_letter(db)
    check(db)
    other = Session(db.dsn)
    with other.connection.transaction():
        other.do("select bridge.resolve_alert(id) from bridge.alerts")
        assert check(db) == {"opened": 0, "unresolved": 1}
        assert check(db, "2 hours") == {"opened": 0, "unresolved": 1}, "it is not taken for ended either"
    assert alerts(db, "state, resolved_by = session_user") == [("resolved", True)]
    assert check(db) == {"opened": 1, "unresolved": 1}


def test_a_rule_that_is_disabled_or_removed_ends_what_is_open_of_it(db: Session) -> None:
    dead_letter(db)
    check(db)
    db.do("select bridge.set_alert('dead_letters', enabled => false)")
    check(db)
    db.do("select bridge.set_alert('dead_letters', enabled => true)")
    check(db)
    db.do("select bridge.remove_alert('dead_letters')")
    assert alerts(db, "state, resolved_by, note") == [
        ("resolved", "rule", None),
        ("resolved", db.connection.info.user, "its rule was removed"),
    ]


def test_a_look_at_the_rules_does_not_wait_for_who_removes_one(db: Session) -> None:
    only(db)
    db.do("select bridge.set_alert('backlog', 'queued_jobs', threshold => 100, within => '1 hour', lasting => '1 day')")
    jobs_wait(db)
    check(db, "61 minutes")
    pending = "select rule from bridge.alert_pending"
    assert db.rows(pending) == [("backlog",)]
    db.do("set lock_timeout = '15s'")
    other = Session(db.dsn)
    with other.connection.transaction():
        other.do("select bridge.remove_alert('backlog')")
        db.do("select bridge.purge('celery')")
        assert check(db, "62 minutes") is not None
        assert db.rows(pending) == [], "the condition is over"
        jobs_wait(db)
        check(db, "63 minutes")
    other.connection.close()
    assert check(db, "64 minutes") is not None
    assert db.rows(pending) == []


def test_a_rule_that_cannot_be_judged_keeps_neither_the_others_nor_the_tick(db: Session) -> None:
    db.do(
        "create or replace function bridge.read_dead_letters(p_rule bridge.alert_rule, p_now timestamptz)"
        " returns setof bridge.alert_reading language plpgsql as $$ begin raise exception 'broken'; end $$"
    )
    warnings: list[str] = []
    db.connection.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    db.do("select bridge.pause('celery'), bridge.set_alert('paused', threshold => 0)")
    check(db, "1 minute")
    assert alerts(db) == [("paused", "queue celery", "open")]
    db.do("update bridge.setting set value = '\"never\"' where name = 'alert_interval'")
    assert db.tick() is not None
    assert [text.partition(":")[0] for text in warnings] == ["alert rule dead_letters cannot be judged", "alert rules cannot be judged"]


def test_the_tick_looks_every_alert_interval_and_not_more_often(db: Session) -> None:
    db.tick()
    dead_letter(db)
    db.tick(by="14 seconds")
    assert alerts(db) == []
    db.tick(by="16 seconds")
    assert len(alerts(db)) == 1


def test_a_failure_rate_is_that_of_its_task_and_of_enough_attempts(db: Session) -> None:
    only(db)
    db.do("select bridge.set_alert('rate', 'failure_rate', 0.3, task => 'a.task', minimum => 4, within => '1 hour')")
    for end in (db.fail, db.fail, db.finish):
        db.enqueue(max_attempts=1)
        end(*db.run())
    check(db)
    assert alerts(db) == [], "three attempts prove nothing"
    for _ in range(4):
        db.enqueue()
        db.finish(*db.run())
        check(db)
    assert alerts(db, "state, value") == [("resolved", 0.333)], "two of seven are less than three of ten"
    assert alerts(db, "message")[0][0].startswith("2 of 6 attempts of task a.task have failed since ")


def test_old_alerts_are_forgotten_and_open_ones_are_not(db: Session) -> None:
    only(db, "dead_letters")
    dead_letter(db)
    check(db)
    db.do("select bridge.resolve_alert(id) from bridge.alerts")
    check(db)
    for days, left in ((89, 2), (91, 1)):
        db.rows("select * from bridge.cleanup(p_now => clock_timestamp() + make_interval(days => %s))", days)
        assert len(alerts(db)) == left
    assert alerts(db) == [("dead_letters", None, "open")]


def test_a_test_reaches_the_address_and_opens_nothing(db: Session) -> None:
    db.do("select bridge.set_alert('queue_age', webhook => %s), bridge.test_alert('queue_age')", URL)
    assert (told(db), alerts(db)) == (["alert.test"], [])


def test_health_tells_of_what_is_open_and_nobody_answers(db: Session) -> None:
    row = "select status, found, error_count from bridge.health() where component = 'alerts'"
    assert db.rows(row) == [("healthy", "none is open", 0)]
    dead_letter(db)
    check(db)
    ((status, found, count),) = db.rows(row)
    assert (status, count) == ("degraded", 1)
    assert found.startswith("1 are open, 0 of them critical, 0 acknowledged; dead_letters: 1 jobs")
    db.do("select bridge.acknowledge_alert(id) from bridge.alerts")
    assert db.rows(row)[0][0] == "healthy"


def test_what_is_not_said_of_a_rule_stays_and_an_empty_text_takes_it_away(db: Session) -> None:
    assert db.one("select bridge.set_alert('queue_age')") == "unchanged"
    assert db.one("select bridge.set_alert('queue_age', queue => 'mail', webhook => %s)", URL) == "changed"
    assert db.one("select bridge.set_alert('queue_age', threshold => 30, severity => 'critical')") == "changed"
    row = "select queue, webhook, threshold, severity from bridge.alert_rules where name = 'queue_age'"
    assert db.rows(row) == [("mail", URL, 30, "critical")]
    assert db.one("select bridge.set_alert('queue_age', queue => '', webhook => '')") == "changed"
    assert db.rows(row) == [(None, None, 30, "critical")]


REFUSED = [
    ("set_alert('x')", "JB001", "kind is 'x'"),
    ("set_alert('x', 'queue_ages')", "JB001", "kind is 'queue_ages'"),
    ("set_alert('queue_age', 'late_tick')", "JB001", "kind is 'late_tick', and alert 'queue_age' is of kind queue_age"),
    ("set_alert(' ')", "JB001", "name is ' '"),
    ("set_alert('late_tick', queue => 'a')", "JB001", "queue is 'a', and kind late_tick is not about one"),
    ("set_alert('queue_age', task => 'a')", "JB001", "task is 'a', and kind queue_age is not about one"),
    ("set_alert('stuck_jobs', queue => 'a', task => 'b')", "JB001", "queue is 'a', task is 'b', everything is 'f'"),
    ("set_alert('stuck_jobs', task => 'mail.*')", "JB001", "task is 'mail.*'"),
    ("set_alert('queue_age', threshold => -1)", "JB001", "threshold is -1"),
    ("set_alert('queue_age', threshold => 'NaN')", "JB001", "threshold is NaN"),
    ("set_alert('failure_rate', threshold => 1)", "JB001", "threshold is 1"),
    ("set_alert('no_worker', threshold => 0)", "JB001", "threshold is 0"),
    ("set_alert('queue_age', within => '1 hour')", "JB001", "within is 01:00:00, and kind queue_age knows none"),
    ("set_alert('dead_letters', within => '0')", "JB001", "within is 00:00:00"),
    ("set_alert('queue_age', lasting => '-1 s')", "JB001", "lasting is -00:00:01"),
    ("set_alert('queue_age', quiet => '1 s')", "JB001", "quiet is 00:00:01"),
    ("set_alert('queue_age', minimum => 3)", "JB001", "minimum is 3"),
    ("set_alert('queue_age', severity => 'bad')", "JB001", "severity is 'bad'"),
    ("set_alert('queue_age', webhook => 'ftp://x')", "JB001", "url of the webhook is 'ftp://x'"),
    ("set_alert('queue_age', notifier => 'slack://token')", "JB001", "notifier is no name"),
    ("set_alert('queue_age', secret => 'whsec_AbC')", "JB001", "secret is no name"),
    ("set_alert('queue_age', delivery_queue => 'a b')", "JB001", "delivery_queue is 'a b'"),
    ("remove_alert('x')", "JB002", "alert rule 'x' does not exist"),
    ("test_alert('x')", "JB002", "alert rule 'x' does not exist"),
    ("acknowledge_alert(7)", "JB002", "alert 7 does not exist"),
    ("resolve_alert(null)", "JB002", "alert null does not exist"),
]


def test_what_cannot_be_is_refused_by_name(db: Session) -> None:
    found = []
    for call, _, _ in REFUSED:
        with pytest.raises(psycopg.Error) as caught:
            db.rows(f"select bridge.{call}")
        found.append((call, caught.value.diag.sqlstate, caught.value.diag.message_primary))
        assert caught.value.diag.message_hint, call
    assert found == REFUSED


def test_an_alert_that_is_resolved_takes_no_answer(db: Session) -> None:
    dead_letter(db)
    check(db)
    db.do("select bridge.resolve_alert(id, 'anna', 'not wanted') from bridge.alerts")
    assert alerts(db, "resolved_by, note") == [("anna", "not wanted")]
    for call in ("acknowledge_alert", "resolve_alert"):
        with pytest.raises(psycopg.Error) as caught:
            db.do(f"select bridge.{call}(id) from bridge.alerts")
        assert caught.value.diag.sqlstate == "JB006"
