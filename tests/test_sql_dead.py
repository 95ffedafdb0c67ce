"""Dead letters: what is one, redrive with other arguments, discard, and two who do opposite things at once."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session

NOBODY = uuid.UUID("00000000-0000-4000-8000-000000000000")
BLOCKED = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid = %s"


def die(db: Session, task: str = "a.task", **options: Any) -> uuid.UUID:
    """A job whose last attempt failed."""
    identity = db.enqueue(task, max_attempts=1, **options)
    claim, run = db.run(queue=options.get("queue", "celery"))
    assert db.fail(claim, run) == "failed"
    return identity


def dead(db: Session) -> set[uuid.UUID]:
    return {row[0] for row in db.rows("select id from bridge.dead_jobs")}


def notes(db: Session, identity: uuid.UUID) -> list[tuple[Any, ...]]:
    return db.rows("select action, by, note, attempts, before from bridge.job_note where id = %s order by at", identity)


def refusal(db: Session, query: str, *params: Any) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        db.rows(query, *params)
    assert caught.value.diag.message_hint
    return caught.value


def test_a_job_is_a_dead_letter_when_its_last_attempt_has_failed_and_only_then(db: Session) -> None:
    identity = db.enqueue(max_attempts=2, backoff="0")
    db.fail(*db.run())
    assert dead(db) == set()
    db.fail(*db.run())
    assert dead(db) == {identity}
    other = db.enqueue()
    db.finish(*db.run())
    assert db.status(other) == "succeeded"
    assert dead(db) == {identity}


def test_a_redriven_job_keeps_its_id_its_attempts_and_who_did_it(db: Session) -> None:
    identity = die(db, args=[1])
    assert db.one("select bridge.redrive(%s, by => 'ada', note => 'the disk was full')", identity) == "queued"
    assert dead(db) == set()
    assert notes(db, identity) == [("redriven", "ada", "the disk was full", 1, None)]
    db.finish(*db.run(), result="at last")
    assert db.field(identity, "result") == "at last"
    assert db.attempts(identity) == [(1, "failed"), (2, "succeeded")]


def test_who_is_not_named_is_the_role_of_the_session(db: Session) -> None:
    identity = die(db)
    with db.connection.transaction():
        db.do("set local role bridge_operator")
        db.do("select bridge.redrive(%s)", identity)
    assert notes(db, identity)[0][1] == db.one("select session_user::text")


def test_a_redrive_with_other_arguments_runs_those_and_the_old_ones_stay_readable(db: Session) -> None:
    identity = die(db, args=[1], kwargs={"size": 2}, priority=3)
    query = """select bridge.redrive(%s, args => '["new"]', kwargs => '{"size": 9}', queue => 'slow', priority => 7, max_attempts => 4)"""
    assert db.one(query, identity) == "queued"
    columns = "args, kwargs, queue, priority, max_attempts"
    assert db.rows(f"select {columns} from bridge.jobs where id = %s", identity) == [(["new"], {"size": 9}, "slow", 7, 5)]
    assert notes(db, identity)[0][4] == {"args": [1], "kwargs": {"size": 2}, "queue": "celery", "priority": 3}
    assert db.claim(queue="slow")[0].args == ["new"]


def test_a_redrive_may_wait(db: Session) -> None:
    identity = die(db)
    assert db.one("select bridge.redrive(%s, delay => '1 hour')", identity) == "scheduled"
    assert db.claim() == []
    db.tick(by="2 hours")
    assert len(db.claim()) == 1


def test_each_redrive_gives_as_many_attempts_as_the_job_had_at_first(db: Session) -> None:
    identity = db.enqueue(max_attempts=3, backoff="0")
    for ended in (3, 6, 9, 12):
        for _ in range(3):
            db.fail(*db.run())
        assert db.rows("select status, attempts, max_attempts from bridge.jobs where id = %s", identity) == [("failed", ended, ended)]
        db.do("select bridge.redrive(%s)" if ended % 2 else "select bridge.retry(%s)", identity)


def enqueue_call(db: Session, name: str, *, payload: bytes | None = None) -> uuid.UUID:
    """A Celery call for an exchange of its own."""
    from bridge.job import job_id

    headers = {"lang": "py", "task": "a.task", "id": name, "argsrepr": "(1,)", "kwargsrepr": "{}", "retries": 0}
    properties = {"exchange": "mail", "routing_key": "mail.urgent", "declare": [{"queue": "celery"}], "priority": 0, "correlation_id": name}
    db.do(
        "select bridge.enqueue_message(%s, %s, 'a.task', 'celery', 9::smallint, '[1]', '{}', null, %s, %s, null, %s, %s, null, null)",
        job_id(name), name, payload, "application/x-python-serialize" if payload else None, json.dumps(headers), json.dumps(properties),
    )  # fmt: skip
    claim, run = db.run()
    db.fail(claim, run, final=True)
    return job_id(name)


def test_the_message_of_a_celery_call_shows_the_arguments_and_the_queue_it_was_redriven_with(db: Session) -> None:
    identity = enqueue_call(db, "my-call")
    db.do("""select bridge.redrive(%s, args => '[2, "two"]', queue => 'slow')""", identity)
    headers, properties = db.rows("select headers, properties from bridge.job where id = %s", identity)[0]
    assert (headers["argsrepr"], headers["task"], headers["retries"]) == ('[2, "two"]', "a.task", 0)
    assert properties == {"exchange": "", "routing_key": "slow", "priority": 0, "correlation_id": "my-call"}


def test_arguments_that_are_kept_as_bytes_cannot_be_edited_but_go_as_they_are(db: Session) -> None:
    identity = enqueue_call(db, "pickled", payload=b"\x80\x04.")
    refused = refusal(db, "select bridge.redrive(%s, args => '[2]')", identity)
    assert (refused.sqlstate, refused.diag.message_primary) == (
        "JB001",
        f"args of job {identity} are kept as application/x-python-serialize",
    )
    assert dead(db) == {identity}
    assert db.one("select bridge.redrive(%s)", identity) == "queued"


WRONG = {
    "args => '{}'": "args of task a.task is a JSON object",
    "kwargs => '[]'": "kwargs of task a.task is a JSON array",
    "queue => 'two words'": "queue is 'two words'",
    "queue => ''": "queue is ''",
    "priority => 10": "priority is 10",
    "delay => '-1 s'": "delay is -00:00:01",
    "max_attempts => 0": "max_attempts is 0",
}


def test_a_redrive_that_can_never_be_is_refused_and_the_dead_letter_stays(db: Session) -> None:
    identity = die(db)
    for options, words in WRONG.items():
        for query in (
            f"select bridge.redrive(%s, {options})",
            f"""select bridge.redrive_jobs('{{"all": true}}', note => %s::text, {options})""",
        ):
            refused = refusal(db, query, str(identity))
            assert (refused.sqlstate, refused.diag.message_primary) == ("JB001", words)
    assert dead(db) == {identity}


def test_a_discarded_job_is_no_dead_letter_but_stays_failed_and_readable(db: Session) -> None:
    identity = die(db)
    db.do("select bridge.discard(%s, by => 'ada', note => 'a test order')", identity)
    assert dead(db) == set()
    assert db.rows("select status, discarded_at is not null from bridge.jobs where id = %s", identity) == [("failed", True)]
    assert db.rows("select id, discarded_at is not null from bridge.failed_jobs") == [(identity, True)]
    assert notes(db, identity) == [("discarded", "ada", "a test order", 1, None)]
    assert db.one("""select bridge.redrive_jobs('{"all": true}')""")["matched"] == 0
    assert db.one("select bridge.retry_failed()") == 0
    assert db.status(identity) == "failed"


def test_a_discarded_job_is_not_redriven_but_retried_when_that_is_meant(db: Session) -> None:
    identity = die(db)
    db.do("select bridge.discard(%s, by => 'ada')", identity)
    for function in ("redrive", "discard"):
        refused = refusal(db, f"select bridge.{function}(%s)", identity)
        assert refused.sqlstate == "JB006"
        assert str(refused.diag.message_primary).startswith(f"job {identity} was discarded by ada on ")
    assert db.one("select bridge.retry(%s, by => 'grace')", identity) == "queued"
    assert [note[:2] for note in notes(db, identity)] == [("discarded", "ada"), ("retried", "grace")]
    db.fail(*db.run())
    assert dead(db) == {identity}, "it has failed anew"


def test_what_is_no_dead_letter_is_neither_redriven_nor_discarded(db: Session) -> None:
    for query, verb in ((REDRIVE, "redriven"), (DISCARD, "discarded")):
        identity = db.enqueue()
        refused = refusal(db, query, identity)
        assert (refused.sqlstate, refused.diag.message_primary) == ("JB006", f"job {identity} is queued")
        assert f"only dead letters can be {verb}" in str(refused.diag.message_hint)
        assert refusal(db, query, NOBODY).sqlstate == "JB002"
        db.do("select bridge.cancel(%s)", identity)
        assert refusal(db, query, identity).diag.message_primary == f"job {identity} is cancelled"


def test_many_are_redriven_by_filter_and_counted_first_in_a_dry_run(db: Session) -> None:
    mail, other = [die(db, "mail.send", args=[number]) for number in range(3)], die(db, "report")
    wanted = json.dumps({"task": "mail.*", "max_jobs": 2})
    assert db.one("select bridge.redrive_jobs(%s, dry_run => true)", wanted) == {"matched": 2, "changed": 0, "skipped": 0, "more": True}
    assert dead(db) == {*mail, other}
    assert db.one("select bridge.redrive_jobs(%s, queue => 'slow')", wanted) == {"matched": 2, "changed": 2, "skipped": 0, "more": True}
    assert dead(db) == {mail[2], other}, "the oldest go first"
    assert [claim.id for claim in db.claim(queue="slow")] == mail[:2]


def test_many_are_discarded_by_filter_and_counted_first_in_a_dry_run(db: Session) -> None:
    mail, other = [die(db, "mail.send", kwargs={"to": number}) for number in range(2)], die(db, "report")
    wanted = json.dumps({"kwargs": {"to": 1}})
    assert db.one("select bridge.discard_jobs(%s, dry_run => true)", wanted)["matched"] == 1
    assert db.one("select bridge.discard_jobs(%s, note => 'old')", wanted) == {"matched": 1, "changed": 1, "skipped": 0, "more": False}
    assert dead(db) == {mail[0], other}
    assert db.one("""select bridge.discard_jobs('{"all": true}')""")["changed"] == 2
    assert dead(db) == set()


def at_once(db: Session, dsn: str, first: str, second: str, identity: uuid.UUID) -> tuple[Any, Any]:
    """What two sessions got: the first holds its locks until the second waits for them."""
    other = Session(dsn)

    def try_it() -> Any:
        try:
            return other.one(second, identity)
        except psycopg.Error as error:
            return error.sqlstate

    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction():
            got = db.one(first, identity)
            waiting = pool.submit(try_it)
            wait_until(lambda: db.one(BLOCKED, other.connection.info.backend_pid), 20, "the second to meet the first")
        return got, waiting.result(20)


MANY = """select bridge.{}_jobs(jsonb_build_object('ids', %s::text))->>'changed'"""
REDRIVE, DISCARD = "select bridge.redrive(%s)", "select bridge.discard(%s)"


def test_two_who_redrive_and_discard_one_job_at_once_end_in_what_the_first_did(db: Session, dsn: str) -> None:
    for first, second, status in [
        (REDRIVE, DISCARD, "queued"),
        (DISCARD, REDRIVE, "failed"),
        (REDRIVE, REDRIVE, "queued"),
        (DISCARD, DISCARD, "failed"),
        (MANY.format("redrive"), MANY.format("discard"), "queued"),
        (MANY.format("discard"), MANY.format("redrive"), "failed"),
    ]:
        identity = die(db)
        _, refused = at_once(db, dsn, first, second, identity)
        assert refused in {"JB006", "0"}
        assert db.status(identity) == status
        assert len(notes(db, identity)) == 1
        db.claim()


def test_a_cancel_that_meets_a_redrive_finds_the_job_failed_or_cancels_it(db: Session, dsn: str) -> None:
    identity = die(db)
    other = Session(dsn)
    with db.connection.transaction():
        db.do("select bridge.redrive(%s)", identity)
        assert other.one("select bridge.cancel(%s)", identity) == "failed"
    assert db.status(identity) == "queued"
    with db.connection.transaction():
        assert db.one("select bridge.cancel(%s)", identity) == "cancelled"
        assert refusal(other, "select bridge.redrive(%s)", identity).diag.message_primary == f"job {identity} is queued"
    assert db.status(identity) == "cancelled"


def test_fifty_dead_letters_redriven_and_discarded_at_once_each_end_one_way(db: Session, dsn: str) -> None:
    ids = [db.enqueue(max_attempts=1) for _ in range(50)]
    for claim in db.claim():
        db.fail(claim, db.start(claim))
    sessions = [Session(dsn), Session(dsn)]

    def do(session: Session, function: str, order: list[uuid.UUID]) -> set[uuid.UUID]:
        done = set()
        for page in (order[at : at + 5] for at in range(0, 50, 5)):
            for identity in page:
                with suppress(psycopg.DatabaseError):
                    session.do(f"select bridge.{function}(%s)", identity)
                    done.add(identity)
        return done

    with ThreadPoolExecutor(2) as pool:
        redriven = pool.submit(do, sessions[0], "redrive", ids)
        discarded = pool.submit(do, sessions[1], "discard", ids[::-1])
        went = redriven.result(60), discarded.result(60)
    assert went[0] | went[1] == set(ids)
    assert went[0] & went[1] == set()
    assert {identity for identity in ids if db.status(identity) == "queued"} == went[0]


KEYED = {"unique_key": "order-7"}


def test_a_redriven_job_has_its_unique_key_again(db: Session) -> None:
    identity = die(db, **KEYED)
    db.do(REDRIVE, identity)
    assert db.enqueue(**KEYED) == identity
    assert db.field(identity, "unique_key") == "order-7"
    db.finish(*db.run())
    assert db.enqueue(**KEYED) != identity


def test_a_job_whose_key_another_has_is_not_run_beside_it(db: Session) -> None:
    identity = die(db, **KEYED)
    other = db.enqueue(**KEYED)
    for query in (REDRIVE, "select bridge.retry(%s)"):
        refused = refusal(db, query, identity)
        assert (refused.sqlstate, refused.diag.message_primary) == ("JB003", f"unique_key 'order-7' belongs to job {other}")
    assert db.one("""select bridge.redrive_jobs('{"all": true}')""") == {"matched": 1, "changed": 0, "skipped": 1, "more": False}
    assert dead(db) == {identity}
    assert notes(db, identity) == []
    db.finish(*db.run())
    assert db.one(REDRIVE, identity) == "queued"


def test_a_key_that_a_start_or_time_has_given_back_is_not_taken_again(db: Session) -> None:
    for scope in ({"unique_until": "started"}, {"unique_for": "1 hour"}):
        identity = die(db, unique_key=str(scope), **scope)
        if "unique_for" in scope:
            db.do("delete from bridge.unique_key where kept_until is not null")
        other = db.enqueue(unique_key=str(scope), **scope)
        assert db.one(REDRIVE, identity) == "queued"
        assert other != identity
        assert len(db.claim()) == 2
