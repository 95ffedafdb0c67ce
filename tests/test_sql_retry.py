"""Whether there is a further attempt: by the job's own word, the policies of its task and its queue, the error's class, the deadline."""

from __future__ import annotations

import json
import threading
from typing import Any

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Claim, Session

VALUE_ERROR = {"type": "ValueError", "module": "builtins", "message": "broken", "bases": ["builtins.ValueError", "builtins.Exception"]}
TIMED_OUT = {
    "type": "ReadTimeout", "module": "requests.exceptions", "message": "slow",
    "bases": ["requests.exceptions.ReadTimeout", "requests.exceptions.Timeout", "builtins.OSError", "builtins.Exception"],
}  # fmt: skip


def fail(db: Session, claim: Claim, run: Any, error: dict[str, Any] | None = None, *, final: bool = False) -> str | None:
    query = "select bridge.fail(%s, %s, %s::json, %s)"
    return db.one(query, claim.seq, run, json.dumps(error or VALUE_ERROR), final)  # type: ignore[no-any-return]


def set_retry(db: Session, **given: Any) -> str:
    casts = {"backoff": "::jsonb", "retry_on": "::text[]", "never_on": "::text[]", "max_attempts": "::integer"}
    spans = dict.fromkeys(["timeout", "soft_timeout", "deadline"], "::interval")
    call = ", ".join(f"{name} => %s{({**casts, **spans}).get(name, '')}" for name in given)
    values = [json.dumps(value) if name == "backoff" else value for name, value in given.items()]
    return str(db.one(f"select bridge.set_retry({call})", *values))


def delay(db: Session, identity: Any) -> float:
    return float(db.one("select extract(epoch from run_at - updated_at) from bridge.jobs where id = %s", identity))


def end_of(db: Session, identity: Any) -> tuple[Any, ...]:
    query = "select event, attempt, reason, error->>'type' from bridge.history(%s) offset 1"
    return tuple(db.rows(query, identity)[-1])


def test_the_jobs_own_word_wins_over_its_tasks_policy_and_that_over_its_queues(db: Session) -> None:
    set_retry(db, queue="celery", max_attempts=7, backoff=700)
    set_retry(db, task="a.task", max_attempts=5)
    own, by_task, by_queue = db.enqueue(max_attempts=2, backoff=20), db.enqueue(), db.enqueue(task="b.task")
    found = db.rows("select id, max_attempts from bridge.jobs order by seq")
    assert found == [(own, 2), (by_task, 5), (by_queue, 7)]
    for claim in db.claim():
        fail(db, claim, db.start(claim))
    assert [round(delay(db, identity)) for identity in (own, by_task, by_queue)] == [20, 700, 700]


def test_a_policy_counts_for_jobs_that_wait_already_and_stays_on_the_row_when_they_end(db: Session) -> None:
    identity = db.enqueue()
    claim, run = db.run()
    set_retry(db, task="a.task", max_attempts=1)
    assert fail(db, claim, run) == "failed"
    assert db.field(identity, "max_attempts") == 1
    assert end_of(db, identity) == ("failed", 1, "it was the last attempt", "ValueError")


def test_without_a_policy_the_defaults_count_and_a_policy_that_is_gone_counts_no_more(db: Session) -> None:
    set_retry(db, task="a.task", max_attempts=9)
    assert db.one("select bridge.remove_retry(task => 'a.task')") is True
    assert db.one("select bridge.remove_retry(task => 'a.task')") is False
    assert db.field(db.enqueue(), "max_attempts") == 3


def test_a_celery_call_is_retried_when_a_policy_says_so(db: Session) -> None:
    query = """select bridge.enqueue_message(gen_random_uuid(), null, 'a.task', 'celery', 9::smallint, '[]', '{}', null, null, null, null,
        '{"task": "a.task", "timelimit": [null, 7]}', '{}', null, null)"""
    for _ in range(2):
        db.one(query)
    one, other = db.claim()
    assert fail(db, one, db.start(one)) == "failed"
    set_retry(db, task="a.task", max_attempts=2, backoff=0)
    assert fail(db, other, db.start(other)) == "queued"


@pytest.mark.parametrize(
    ("rules", "error", "reason"),
    [
        ({"never_on": ["ValueError"]}, VALUE_ERROR, "never_on names ValueError, or a class that it derives from"),
        ({"never_on": ["builtins.Exception"]}, TIMED_OUT, "never_on names ReadTimeout, or a class that it derives from"),
        ({"never_on": ["requests.exceptions.Timeout"]}, VALUE_ERROR, None),
        ({"retry_on": ["Timeout"]}, TIMED_OUT, None),
        ({"retry_on": ["OSError", "KeyError"]}, VALUE_ERROR, "retry_on does not name ValueError"),
        ({"retry_on": ["Exception"], "never_on": ["OSError"]}, TIMED_OUT, "never_on names ReadTimeout, or a class that it derives from"),
        ({"retry_on": ["urllib3.exceptions.ReadTimeout"]}, TIMED_OUT, "retry_on does not name ReadTimeout"),
        ({"retry_on": ["ValueError"]}, {"message": "from SQL"}, "retry_on does not name an error without a type"),
    ],
)
@pytest.mark.parametrize("whose", ["job", "policy"])
def test_the_class_of_the_error_decides(db: Session, whose: str, rules: dict[str, Any], error: dict[str, Any], reason: str | None) -> None:
    if whose == "policy":
        set_retry(db, queue="celery", **rules)
    identity = db.enqueue(**(rules if whose == "job" else {}))
    assert fail(db, *db.run(), error) == ("scheduled" if reason is None else "failed")
    if reason is not None:
        assert end_of(db, identity)[:3] == ("failed", 1, reason)


@pytest.mark.parametrize(("asked", "waits"), [(600, 600), (1e9, 86400), (-5, 0), ("600", 60), (None, 60)])
def test_an_error_that_names_a_time_is_tried_again_then(db: Session, asked: Any, waits: float) -> None:
    identity = db.enqueue(backoff=60)
    error = json.dumps({"type": "DeliveryError", "message": "busy", "traceback": None, "retry_after": asked})
    claim, run = db.run()
    db.do("select bridge.fail(%s, %s, %s::json)", claim.seq, run, error)
    assert float(db.field(identity, "extract(epoch from run_at - now())")) == pytest.approx(waits, abs=30)


def test_an_error_that_says_it_is_final_is_so_whatever_the_rules(db: Session) -> None:
    identity = db.enqueue(retry_on=["ValueError"])
    assert fail(db, *db.run(), final=True) == "failed"
    assert end_of(db, identity)[2] == "its error allows no further attempt"


def test_a_redriven_job_has_as_many_attempts_again_whatever_its_policy(db: Session) -> None:
    set_retry(db, task="a.task", max_attempts=2, backoff=0)
    identity = db.enqueue()
    assert [fail(db, *db.run()) for _ in range(2)] == ["queued", "failed"]
    db.one("select bridge.retry(%s)", identity)
    assert [fail(db, *db.run()) for _ in range(2)] == ["queued", "failed"]
    assert db.field(identity, "attempts") == 4


def test_an_old_dead_letter_of_one_attempt_is_redriven_although_the_attempts_of_its_day_are_gone(db: Session) -> None:
    db.do("update bridge.setting set value = '172800' where name = 'retention'")
    db.do("select bridge.make_days((now() - interval '5 days')::date, 5)")
    identity = db.enqueue(max_attempts=1)
    fail(db, *db.run())
    db.do("update bridge.finished set finished_at = finished_at - interval '4 days', created_at = created_at - interval '4 days'")
    assert db.one("select sum(kept) from bridge.cleanup() where table_name like 'finished%%'") == 1
    assert db.one("select bridge.redrive(%s)", identity) == "queued"
    assert [row[0] for row in db.rows("select event from bridge.history(%s)", identity)][-3:] == ["failed", "redriven", "queued"]


def limits(db: Session) -> list[Any]:
    claimed = db.rows("select headers from bridge.claim(%s, 'celery', gen_random_uuid())", db.drainer)
    return [json.loads(headers)["timelimit"] if headers else None for (headers,) in claimed]


def test_a_message_carries_the_time_limits_of_its_job_else_of_its_policy(db: Session) -> None:
    db.enqueue(timeout="9 s", soft_timeout="8.5 s")
    db.enqueue()
    assert limits(db) == [[9.0, 8.5], None]
    set_retry(db, task="a.task", timeout="60 s")
    set_retry(db, queue="celery", timeout="90 s", soft_timeout="50 s")
    db.enqueue(timeout="9 s")
    db.enqueue(task="b.task")
    assert limits(db) == [[9, 50], [90, 50]]


def overdue(db: Session) -> dict[str, int]:
    """Tick as if the deadline of every job had just come."""
    db.do("update bridge.job set deadline = clock_timestamp() where deadline is not null")
    return db.tick()


@pytest.mark.parametrize("place", ["blocked", "scheduled", "ready", "published"])
def test_a_job_that_waits_beyond_its_deadline_expires(db: Session, place: str) -> None:
    options = {"blocked": {"depends_on": [db.enqueue(delay="1 h")]}, "scheduled": {"delay": "1 h"}}.get(place, {})
    identity = db.enqueue(queue="own", deadline="2 h", **options)
    if place == "published":
        db.publish(queue="own")
    overdue(db)
    assert end_of(db, identity) == ("expired", None, "the deadline passed while it waited", "DeadlineExceeded")


def test_a_job_that_ran_and_waits_for_its_next_attempt_beyond_its_deadline_fails(db: Session) -> None:
    identity = db.enqueue(deadline="1 h", backoff=60)
    assert fail(db, *db.run()) == "scheduled"
    overdue(db)
    assert end_of(db, identity)[:3] == ("failed", None, "the deadline passed while it waited")
    assert db.rows("select status, attempts from bridge.jobs where id = %s", identity) == [("failed", 1)]
    assert "; before, ValueError: broken" in db.field(identity, "error")["message"]


def test_no_attempt_is_scheduled_beyond_the_deadline(db: Session) -> None:
    identity = db.enqueue(deadline="60 s", backoff=61)
    assert fail(db, *db.run()) == "failed"
    assert end_of(db, identity)[2].startswith("the next attempt would be due after the deadline, 2")


def test_what_a_run_asks_for_itself_ends_at_the_deadline_too(db: Session) -> None:
    identity = db.enqueue(deadline="60 s")
    claim, run = db.run()
    query = """select bridge.retry_run(%s, %s, 'a.task', 'celery', 9::smallint, '[2]', '{}', null, null, null, null, '{}', '{}', null,
        clock_timestamp() + interval '2 min')"""
    assert db.one(query, claim.seq, run) is True
    assert end_of(db, identity) == (
        "failed", 1, "the next attempt, which it asked for, would be due after the deadline", "DeadlineExceeded",
    )  # fmt: skip


def stop(db: Session, claim: Claim) -> str | None:
    """What the worker's main process says when it has stopped a run."""
    query = "select bridge.end_delivery(%s, %s, %s, 'cancelled', '{\"type\": \"TaskRevokedError\"}')"
    return db.one(query, claim.seq, claim.token, db.worker)  # type: ignore[no-any-return]


def test_a_run_is_stopped_at_the_deadline_and_its_job_has_failed(db: Session) -> None:
    identity = db.enqueue(deadline="1 h")
    claim, _ = db.run()
    assert overdue(db)["overdue"] == 1
    assert db.report(claim.token) == {str(claim.token): "TERM"}
    assert db.tick()["overdue"] == 0, "it is told once"
    assert stop(db, claim) == "failed"
    assert end_of(db, identity) == ("failed", 1, "it ran beyond the deadline and was stopped", "DeadlineExceeded")


@pytest.mark.parametrize("how", ["fail", "lose"])
def test_a_run_that_ends_otherwise_after_its_deadline_has_failed_by_it(db: Session, how: str) -> None:
    identity = db.enqueue(deadline="1 h")
    claim, run = db.run()
    overdue(db)
    said = fail(db, claim, run) if how == "fail" else db.one("select bridge.lose(%s, %s, 'killed')", claim.seq, claim.token)
    assert said == "failed"
    assert db.field(identity, "error")["type"] == "DeadlineExceeded"


def test_a_success_that_comes_before_the_stop_counts(db: Session) -> None:
    identity = db.enqueue(deadline="1 h")
    claim, run = db.run()
    overdue(db)
    assert db.finish(claim, run) is True
    assert db.status(identity) == "succeeded"


def test_a_cancel_of_a_run_that_is_stopped_at_its_deadline_cancels_the_job(db: Session) -> None:
    identity = db.enqueue(deadline="1 h")
    claim, _ = db.run()
    overdue(db)
    assert db.one("select bridge.cancel(%s)", identity) == "running"
    assert stop(db, claim) == "cancelled"


def test_a_run_that_its_worker_gave_back_fails_at_the_deadline(db: Session) -> None:
    identity = db.enqueue(deadline="1 h")
    db.report()
    db.run()
    db.one("select bridge.stop_worker(%s)", db.worker)
    overdue(db)
    assert db.status(identity) == "failed"


def test_a_redriven_job_has_no_deadline_any_more(db: Session) -> None:
    identity = db.enqueue(deadline="1 h")
    overdue(db)
    db.one("select bridge.retry(%s)", identity)
    overdue(db)
    assert db.status(identity) == "queued"


def test_a_policys_deadline_counts_from_when_the_job_was_due_and_goes_with_its_message(db: Session) -> None:
    set_retry(db, queue="celery", deadline="1 h")
    identity = db.enqueue()
    sent = db.one("select expires_at from bridge.claim(%s, 'celery', gen_random_uuid())", db.drainer)
    assert sent == db.one("select run_at + interval '1 h' from bridge.jobs where id = %s", identity)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"deadline": "-1 s"}, "deadline is -00:00:01: give a positive interval from when the job is due"),
        ({"deadline": "1000 years"}, "deadline is 1000 years: give a positive interval"),
        ({"soft_timeout": "0"}, "soft_timeout is 00:00:00: give a positive interval"),
        ({"soft_timeout": "9 s", "timeout": "9 s"}, "soft_timeout is 00:00:09, not before timeout, 00:00:09: give a shorter interval"),
        ({"retry_on": []}, "retry_on is empty: name classes"),
        ({"never_on": ["Value Error"]}, "never_on names 'Value Error', which is no class of errors: give names as ValueError"),
        ({"never_on": [None]}, "never_on names NULL, which is no class of errors"),
        ({"max_attempts": 0}, "max_attempts is 0: give 1 to 10000"),
        ({"backoff": 1e12}, "backoff is 1000000000000"),
        ({"backoff": {"jitter": 2}}, 'backoff is {"jitter": 2}'),
        ({"backoff": []}, r"backoff is \[\]"),
    ],
)
@pytest.mark.parametrize("whose", ["job", "policy"])
def test_rules_that_can_never_be_are_refused_by_name(db: Session, whose: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        db.enqueue(**given) if whose == "job" else set_retry(db, task="a.task", **given)
    assert refused.value.sqlstate == "JB001"
    assert message.replace("\\", "") in f"{refused.value.diag.message_primary}: {refused.value.diag.message_hint}"
    assert db.one("select count(*) from bridge.retry_policy") == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_attempts": 3}, "neither task nor queue is given"),
        ({"task": "a.task", "queue": "celery", "max_attempts": 3}, "both task and queue are given"),
        ({"task": "a.task"}, "the policy of task a.task says nothing"),
        ({"task": "a task", "max_attempts": 3}, "task is 'a task'"),
        ({"queue": "a,b", "max_attempts": 3}, "queue is 'a,b'"),
    ],
)
def test_a_policy_of_nobody_is_refused(db: Session, given: dict[str, Any], message: str) -> None:
    with pytest.raises(psycopg.Error, match=message):
        set_retry(db, **given)
    with pytest.raises(psycopg.Error, match="neither task nor queue"):
        db.one("select bridge.remove_retry()")


def test_a_policy_says_what_was_last_said_of_it_and_nothing_else(db: Session) -> None:
    assert set_retry(db, task="a.task", max_attempts=5, retry_on=["OSError"]) == "created"
    assert set_retry(db, task="a.task", max_attempts=5, retry_on=["OSError"]) == "unchanged"
    assert set_retry(db, task="a.task", max_attempts=5) == "changed"
    assert db.rows("select task, queue, max_attempts, retry_on from bridge.retry_policies") == [("a.task", None, 5, None)]


@pytest.mark.parametrize("first", ["set", "remove"])
def test_of_two_operators_who_set_and_remove_a_policy_at_once_the_later_one_stands(db: Session, dsn: str, first: str) -> None:
    """The second waits for the first's lock; what is there then is one of the two states, whole."""
    set_retry(db, task="a.task", max_attempts=5, timeout="5 s")
    acts = {
        "set": "select bridge.set_retry(task => 'a.task', max_attempts => 9)",
        "remove": "select bridge.remove_retry(task => 'a.task')",
    }
    second = Session(dsn)
    with db.connection.transaction():
        db.one(acts.pop(first))
        later = threading.Thread(target=second.one, args=acts.popitem()[1:])
        later.start()
        waits = "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
        wait_until(lambda: db.one(waits, second.connection.info.backend_pid) == 1, what="the second waits for the first")
    later.join(20)
    policies = db.rows("select max_attempts, timeout from bridge.retry_policies")
    assert policies == ([] if first == "set" else [(9, None)])
