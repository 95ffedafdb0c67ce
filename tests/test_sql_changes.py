"""Changing jobs that have not started: priority, queue, time; wherever they wait, and against who takes them meanwhile."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_client import command
from fix_servers import wait_until
from fix_sql import Session

import bridge
from bridge.errors import InvalidArgumentError, NotFoundError, WrongStateError
from bridge.message import envelope
from bridge.queries.dispatch import CLAIMED, Claimed

if TYPE_CHECKING:
    from fix_calls import MakeApp

NOBODY = uuid.UUID("00000000-0000-4000-8000-000000000000")
CHANGES = {"set_priority": "set_priority(%s, 7)", "move": "move(%s, 'mail')", "reschedule": "reschedule(%s, delay => '1 hour')"}
CHANGED = {"set_priority": (7, "celery", False), "move": (0, "mail", False), "reschedule": (0, "celery", True)}
PLACES = ["blocked", "scheduled", "queued", "claimed", "published", "kept"]


def put(db: Session, place: str) -> uuid.UUID:
    """A job in one of the places; kept: ready again, its old message still valid."""
    options = {"scheduled": {"delay": "1 minute"}, "blocked": {"depends_on": [db.enqueue(delay="1 day")]}}.get(place, {})
    identity = db.enqueue(**options)
    if place in {"claimed", "published", "kept"}:
        claims = db.claim()
        if place == "published":
            db.mark(claims)
        elif place == "kept":
            db.do("select bridge.unclaim(%s)", [claims[0].seq])
    return identity


def row(db: Session, identity: uuid.UUID) -> tuple[Any, ...]:
    return db.rows("select priority, queue, run_at > now() + interval '50 minutes' from bridge.jobs where id = %s", identity)[0]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_job_is_changed_wherever_it_waits_and_an_old_message_of_it_does_not_start(db: Session, change: str, place: str) -> None:
    identity = put(db, place)
    old = db.rows("select seq, token from bridge.inflight union all select seq, token from bridge.ready where token is not null")
    status = db.one(f"select bridge.{CHANGES[change]}", identity)
    later = change == "reschedule" and place != "blocked"
    assert status == ("blocked" if place == "blocked" else "scheduled" if later or place == "scheduled" else "queued")
    assert db.status(identity) == status
    assert row(db, identity) == CHANGED[change]
    assert [db.one("select bridge.start(%s, %s, %s, 1)", *copy, db.worker) for copy in old] == [None] * len(old)
    while db.status(identity) != "succeeded":
        db.do("select bridge.retry(id) from bridge.jobs where status = 'scheduled'")
        for claim in db.claim(queue="mail") + db.claim():
            assert db.finish(claim, db.start(claim))
    assert row(db, identity)[:2] == CHANGED[change][:2]


def test_what_is_so_already_is_left_where_it_is(db: Session) -> None:
    identity = db.enqueue(priority=3)
    claim = db.publish()
    assert db.one("select bridge.set_priority(%s, 3)", identity) == "published"
    assert db.one("select bridge.move(%s, 'celery')", identity) == "published"
    assert db.start(claim) is not None


def test_a_blocked_job_that_is_rescheduled_waits_for_its_time_and_for_its_parent(db: Session) -> None:
    parent = db.enqueue()
    child = db.enqueue(depends_on=[parent])
    db.do("select bridge.reschedule(%s, delay => '1 hour')", child)
    db.finish(*db.run())
    assert db.status(child) == "scheduled"
    assert db.one("select bridge.reschedule(%s, now() - interval '1 hour')", child) == "queued"


@pytest.mark.parametrize("call", CHANGES.values())
def test_what_has_started_ended_or_never_was_is_refused(db: Session, call: str) -> None:
    def refusal(identity: uuid.UUID) -> tuple[str | None, str | None]:
        with pytest.raises(psycopg.Error) as caught:
            db.do(f"select bridge.{call}", identity)
        assert caught.value.diag.message_hint
        return caught.value.diag.sqlstate, caught.value.diag.message_primary

    identity = db.enqueue()
    held = db.run()
    assert refusal(identity) == ("JB006", f"job {identity} is running")
    db.finish(*held)
    assert refusal(identity) == ("JB006", f"job {identity} is succeeded")
    assert refusal(NOBODY) == ("JB002", f"job {NOBODY} does not exist")
    taken = db.enqueue()
    db.publish()
    db.do("select bridge.note_silent('{old@host}', '{celery}')")
    assert refusal(taken) == ("JB006", f"job {taken} may have been taken by a worker that reports nothing")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("set_priority(%s, 10)", "priority is 10"),
        ("set_priority(%s, null)", "priority is null"),
        ("move(%s, 'a b')", "queue is 'a b'"),
        ("move(%s, null)", "queue is NULL, task is NULL, everything is 'f'"),
        ("reschedule(%s)", "run_at is null, delay is null"),
        ("reschedule(%s, now(), '1 s')", r"run_at is 2.*, delay is 00:00:01"),
        ("reschedule(%s, delay => '-1 s')", "delay is -00:00:01"),
        ("reschedule(%s, delay => '101 years')", "delay is 101 years"),
        ("reschedule(%s, 'infinity')", "run_at is infinity"),
        ("reschedule(%s, delay => '2 hours')", "run_at is 2.*, job .* ends by 2.*"),
    ],
)
def test_what_cannot_be_is_refused_by_name(db: Session, call: str, message: str) -> None:
    identity = db.enqueue()
    db.do("update bridge.job set expires_at = now() + interval '1 hour'")
    with pytest.raises(psycopg.Error, match=f"^{message}") as caught:
        db.do(f"select bridge.{call}", identity)
    assert caught.value.diag.sqlstate == "JB001"
    assert db.status(identity) == "queued"


def test_an_urgent_job_that_was_moved_up_comes_before_what_was_there(db: Session) -> None:
    for number in range(4):
        db.enqueue(args=[number], priority=5)
    last = db.enqueue(args=[4])
    db.do("select bridge.set_priority(%s, 9)", last)
    assert [claim.args[0] for claim in db.claim()] == [4, 0, 1, 2, 3]


@pytest.mark.parametrize("step", ["claim", "start", "finish"])
def test_a_change_that_meets_another_step_ends_as_if_it_had_come_before_or_after(db: Session, dsn: str, step: str) -> None:
    identity = db.enqueue()
    claim = db.publish() if step != "claim" else None
    run = db.start(claim) if claim and step == "finish" else None
    other = Session(dsn)

    def move() -> str | None:
        try:
            return str(other.one("select bridge.move(%s, 'mail')", identity))
        except psycopg.Error as error:
            return error.diag.sqlstate

    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction():
            if claim is None:
                claim = db.claim()[0]
            elif run is None:
                run = db.start(claim)
            else:
                db.finish(claim, run)
            waiting = pool.submit(move)
            blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid = %s"
            wait_until(lambda: waiting.done() or db.one(blocked, other.connection.info.backend_pid), 20, "the move to meet it")
        outcome = waiting.result(20)
    assert outcome == ("queued" if step == "claim" else "JB006")
    assert db.field(identity, "queue") == ("mail" if step == "claim" else "celery")
    if step == "claim":
        assert db.start(claim) is None


@pytest.mark.usefixtures("ours")
def test_python_says_the_same(db: Session) -> None:
    identity = db.enqueue()
    with db.connection.transaction(force_rollback=True):
        assert bridge.set_priority(identity, 9, connection=db.connection) == bridge.Status.QUEUED
    assert row(db, identity) == (0, "celery", False)
    assert bridge.set_priority(identity, 9) == bridge.Status.QUEUED
    assert bridge.move(str(identity), "mail") == bridge.Status.QUEUED
    assert bridge.reschedule(identity, delay=3600) == bridge.Status.SCHEDULED
    assert row(db, identity) == (9, "mail", True)
    assert bridge.set_priority_jobs({"ids": [identity]}, 1, dry_run=True) == bridge.Counts(1, 0, 0, more=False)
    assert bridge.set_priority_jobs({"ids": [identity]}, 1) == bridge.Counts(1, 1, 0, more=False)
    assert bridge.move_jobs({"queue": "mail"}, "bulk", connection=db.connection).changed == 1
    assert bridge.reschedule_jobs({"queue": "bulk"}, delay=0).changed == 1
    assert row(db, identity) == (1, "bulk", False)
    with pytest.raises(InvalidArgumentError, match="priority is 11"):
        bridge.set_priority_jobs({"all": True}, 11)
    with pytest.raises(InvalidArgumentError, match="give one of them"):
        bridge.reschedule(identity)
    with pytest.raises(NotFoundError):
        bridge.move(NOBODY, "mail")
    db.do("select bridge.cancel(%s)", identity)
    with pytest.raises(WrongStateError, match="is cancelled: only jobs that have not started"):
        bridge.set_priority(identity, 1)


@pytest.mark.usefixtures("ours")
def test_the_command_line_says_the_same(db: Session) -> None:
    jobs = partial(command, "jobs")
    one, two = db.enqueue(), db.enqueue("b.task")
    assert jobs("set-priority", one, "--priority", 9).stdout.splitlines()[1].endswith("queued")
    assert jobs("move", "--task", "b.*", "--to", "mail", "--dry-run").exit_code == 0
    assert (row(db, one)[:2], row(db, two)[:2]) == ((9, "celery"), (0, "celery"))
    assert json.loads(jobs("move", "--queue", "celery", "--task", "b.*", "--to", "mail", "--json").stdout)["changed"] == 1
    assert row(db, two)[:2] == (0, "mail")
    assert jobs("reschedule", "--all", "--delay", "2h").stdout.startswith("reschedule: 2 of 2 jobs")
    assert db.rows("select distinct status from bridge.jobs") == [("scheduled",)]
    assert jobs("reschedule", one, two, "--delay", 0).exit_code == 0
    db.finish(*db.run())
    refused = jobs("set-priority", one, two, "--priority", 1)
    assert (refused.exit_code, refused.stderr.count("is succeeded: only jobs that have not started")) == (1, 1)
    for words in (("move", one), ("reschedule", one), ("reschedule", one, "--delay", 1, "--run-at", "2031-01-31T06:00:00")):
        assert jobs(*words).exit_code == 2


def claimed(db: Session, queue: str) -> Claimed:
    found = db.rows(f"select {CLAIMED} from bridge.claim(%s, %s, %s)", db.drainer, queue, uuid.uuid4())
    return Claimed._make(found[0])


def test_the_message_of_a_celery_call_goes_to_the_new_queue_with_the_new_priority(make_caller: MakeApp, db: Session) -> None:
    from kombu import Exchange, Queue

    queue = Queue("topics", Exchange("news", type="topic"), routing_key="news.#", queue_arguments={"x-max-priority": 10})
    app = make_caller(task_queues=[queue], task_default_queue="topics")
    result = app.send_task("a.task", (1,), queue=queue, routing_key="news.sport", priority=2)
    before = envelope(claimed(db, "topics"))
    assert (before.route, before.properties["priority"], len(before.declare)) == (("news", "news.sport"), 2, 1)
    db.do("select bridge.move(%s, 'mail')", result.id)
    db.do("select bridge.set_priority(%s, 8)", result.id)
    job = claimed(db, "mail")
    after = envelope(job)
    assert (after.route, after.properties["priority"], after.declare) == (("", "mail"), 8, [])
    assert "priority" not in envelope(job, ranked=False).properties
    assert after.headers["id"] == result.id
    assert json.loads(after.body)[0] == [1]


def test_many_are_changed_by_a_filter_and_each_is_noted(db: Session) -> None:
    waiting = [db.enqueue(args=[number]) for number in range(3)]
    db.publish(limit=1)
    later = db.enqueue(delay="1 hour")
    other = db.enqueue("b.task")
    assert db.one("""select bridge.set_priority_jobs('{"task": "a.*"}', 9, dry_run => true)""") == {
        "matched": 4, "changed": 0, "skipped": 0, "more": False,
    }  # fmt: skip
    assert db.one("""select bridge.set_priority_jobs('{"task": "a.*"}', 9)""")["changed"] == 4
    assert db.one("""select bridge.move_jobs('{"task": "a.task", "status": "queued"}', 'mail')""")["changed"] == 3
    assert db.one("""select bridge.reschedule_jobs('{"queue": "mail", "max_jobs": 2}', delay => '1 hour')""") == {
        "matched": 2, "changed": 2, "skipped": 0, "more": True,
    }  # fmt: skip
    found = dict(db.rows("select id, (priority, queue, status)::text from bridge.jobs"))
    assert [found[identity] for identity in waiting] == ["(9,mail,scheduled)", "(9,mail,scheduled)", "(9,mail,queued)"]
    assert (found[later], found[other]) == ("(9,celery,scheduled)", "(0,celery,queued)")
    noted = "select action, before - 'run_at' from bridge.job_note where id = %s order by at"
    assert db.rows(noted, waiting[0]) == [("reprioritised", {"priority": 0}), ("moved", {"queue": "celery"}), ("rescheduled", {})]
    assert {event for (event,) in db.rows("select event from bridge.history(%s)", waiting[2])} == {
        "enqueued",
        "reprioritised",
        "moved",
        "queued",
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("set_priority_jobs('{}', 3)", "filter names nothing"),
        ("set_priority_jobs('{\"all\": true}', -1)", "priority is -1"),
        ("move_jobs('{\"status\": \"running\"}', 'mail')", "status of the filter is 'running'"),
        ("move_jobs('{\"all\": true}', '')", "queue is ''"),
        ("reschedule_jobs('{\"all\": true}')", "run_at is null, delay is null"),
    ],
)
def test_a_change_of_many_that_cannot_be_is_refused_by_name(db: Session, call: str, message: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        db.do(f"select bridge.{call}")
    assert (caught.value.diag.sqlstate, caught.value.diag.message_primary) == ("JB001", message)
