"""Callbacks in SQL: which events make which messages, in whose transaction, and what is refused."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session

if TYPE_CHECKING:
    from uuid import UUID

URL = "https://hooks.example.org/in"


def deliver_elsewhere(db: Session) -> None:
    """Deliveries go to a queue of their own, so that the next job that a test runs is one of the test's."""
    db.do("update bridge.setting set value = '\"callbacks\"' where name = 'callback_queue'")


def deliveries(db: Session) -> list[tuple[Any, ...]]:
    return db.rows("select callback, event, job, target, status from bridge.deliveries order by created_at, callback")


def finish(db: Session, *, status: str = "succeeded", **options: Any) -> UUID:
    identity = db.enqueue(**options)
    claim, run = db.run(queue=options.get("queue", "celery"))
    db.do("select bridge.finish(%s, %s, %s, '{\"answer\": 42}'::json)", claim.seq, run, status)
    return identity


def test_an_end_makes_a_message_for_each_callback_that_wants_to_know(db: Session) -> None:
    deliver_elsewhere(db)
    db.do("select bridge.set_webhook('all', %s)", URL)
    db.do("select bridge.set_webhook('mail', %s, task => 'mail.*', events => '{failed}')", URL)
    db.do("select bridge.set_notifier('pager', 'ops', queue => 'urgent')")
    sent = finish(db, task="mail.send", queue="a")
    failed = finish(db, task="mail.send", queue="a", status="failed")
    urgent = finish(db, task="pay", queue="urgent", status="failed")
    assert [row[:4] for row in deliveries(db)] == [
        ("all", "job.succeeded", str(sent), URL), ("all", "job.failed", str(failed), URL), ("mail", "job.failed", str(failed), URL),
        ("all", "job.failed", str(urgent), URL), ("pager", "job.failed", str(urgent), "ops"),
    ]  # fmt: skip


def test_a_message_belongs_to_the_transaction_of_the_end(db: Session) -> None:
    db.do("select bridge.set_webhook('all', %s)", URL)
    identity = db.enqueue()
    with db.connection.transaction(force_rollback=True):
        db.do("select bridge.cancel(%s)", identity)
        assert len(deliveries(db)) == 1
    assert deliveries(db) == []
    db.do("select bridge.cancel(%s)", identity)
    assert [row[:3] for row in deliveries(db)] == [("all", "job.cancelled", str(identity))]


def test_a_message_tells_what_happened_and_its_job_names_the_other_as_parent(db: Session) -> None:
    db.do("select bridge.set_webhook('all', %s, result => true, delivery_queue => 'hooks')", URL)
    identity = finish(db, task="mail.send")
    (kwargs, queue, headers, attempts) = db.rows(
        "select kwargs, queue, headers, max_attempts from bridge.jobs where task like 'bridge.%%'"
    )[0]
    data = kwargs["payload"]["data"]
    assert (kwargs["callback"], kwargs["url"], kwargs["secret"], kwargs["payload"]["type"]) == ("all", URL, "default", "job.succeeded")
    told = (data["id"], data["task"], data["status"], data["attempts"], data["error"], data["result"])
    assert told == (str(identity), "mail.send", "succeeded", 1, None, {"answer": 42})
    assert (queue, headers["parent_id"], attempts) == ("hooks", str(identity), 10)


def test_the_setting_names_the_queue_of_deliveries_where_the_callback_names_none(db: Session) -> None:
    deliver_elsewhere(db)
    db.do("select bridge.set_webhook('all', %s)", URL)
    finish(db, queue="a")
    assert db.one("select queue from bridge.jobs where task = 'bridge.deliver_webhook'") == "callbacks"


def test_a_setting_that_names_no_queue_does_not_keep_jobs_from_ending(db: Session) -> None:
    db.do("update bridge.setting set value = '\"no queue\"' where name = 'callback_queue'")
    db.do("select bridge.set_webhook('all', %s)", URL)
    identity = finish(db, queue="a")
    assert db.status(identity) == "succeeded"
    assert db.one("select queue from bridge.jobs where task = 'bridge.deliver_webhook'") == "a"


def test_a_job_has_a_webhook_of_its_own(db: Session) -> None:
    own = json.dumps({"url": URL, "events": ["failed"], "secret": "shop"})
    for webhook in (own, json.dumps(URL)):
        identity = db.one("select bridge.enqueue('a.task', webhook => %s::jsonb)", webhook)
        db.finish(*db.run())
        assert db.status(identity) == "succeeded"
    assert [row[:4] for row in deliveries(db)] == [("webhook", "job.succeeded", str(identity), URL)]
    db.do("select bridge.purge('celery')")
    many = json.dumps([{"task": "a.task", "webhook": {"url": URL, "events": ["failed"], "secret": "shop"}, "max_attempts": 1}])
    identity = db.one("select bridge.enqueue_many(%s)", many)
    db.fail(*db.run())
    assert db.rows("select kwargs->>'secret', kwargs->'payload'->'data'->'error'->>'message' from bridge.jobs where status = 'queued'") == [
        ("shop", "broken")
    ]
    # A retry by hand keeps the webhook.
    db.do("select bridge.purge('celery')")
    db.do("select bridge.retry(%s)", identity)
    db.fail(*db.run())
    assert [row[1] for row in deliveries(db)] == ["job.succeeded", "job.failed", "job.failed"]


def test_an_attempt_that_another_follows_is_told_where_that_is_asked_for(db: Session) -> None:
    db.do("select bridge.set_webhook('each', %s, events => '{retrying, failed}')", URL)
    identity = db.enqueue(max_attempts=2, backoff=[0])
    db.fail(*db.run())
    assert [row[:3] for row in deliveries(db)] == [("each", "job.retrying", str(identity))]
    claim, _ = db.run()
    db.do("select bridge.lose(%s, %s, 'its worker died')", claim.seq, claim.token)
    assert [row[1] for row in deliveries(db)] == ["job.retrying", "job.retrying"]


def test_deliveries_are_told_to_nobody(db: Session) -> None:
    db.do("select bridge.set_webhook('all', %s)", URL)
    finish(db)
    db.do("select bridge.cancel(id) from bridge.deliveries")
    assert len(deliveries(db)) == 1


def test_an_error_that_no_text_can_hold_lets_its_job_end(db: Session) -> None:
    deliver_elsewhere(db)
    db.do("select bridge.set_webhook('all', %s, result => true)", URL)
    claim, run = db.run() if db.enqueue(max_attempts=1) else (None, None)
    error = r'{"type": "ValueError", "message": "nul \u0000", "traceback": null}'
    assert db.one("select bridge.finish(%s, %s, 'failed', null, %s::json)", claim.seq, run, error) is True  # type: ignore[union-attr]
    claim, run = db.run() if db.enqueue() else (None, None)
    assert db.one(r"""select bridge.finish(%s, %s, 'succeeded', '"nul \u0000"'::json)""", claim.seq, run) is True  # type: ignore[union-attr]
    assert [row[1] for row in deliveries(db)] == ["job.failed", "job.succeeded"]


def test_a_channel_is_notified_of_its_queue_alone(db: Session, dsn: str) -> None:
    db.do("select bridge.set_channel('screens', 'jobs_done', queue => 'a', events => '{succeeded}')")
    listener = Session(dsn)
    listener.do("listen jobs_done")
    finish(db, queue="b")
    identity = finish(db, queue="a")
    (notice,) = listener.connection.notifies(timeout=10, stop_after=1)
    assert json.loads(notice.payload) == {
        "event": "succeeded", "id": str(identity), "task_id": str(identity), "task": "a.task", "queue": "a", "attempts": 1,
    }  # fmt: skip
    assert deliveries(db) == []


def test_the_same_name_changes_a_callback_and_the_same_words_leave_it(db: Session) -> None:
    calls = [("", "created"), (", queue => 'a'", "changed"), (", queue => 'a'", "unchanged")]
    assert [db.one(f"select bridge.set_webhook('w', '{URL}'{words})") for words, _ in calls] == [said for _, said in calls]
    assert db.one("select bridge.set_notifier('w', 'ops')") == "changed"
    assert db.rows("select kind, target, events, secret, queue from bridge.callbacks") == [("notifier", "ops", ["failed"], None, None)]
    db.do("select bridge.try_callback('w')")
    assert [(row[0], row[1], row[3]) for row in deliveries(db)] == [("w", "job.failed", "ops")]
    db.do("select bridge.remove_callback('w')")
    assert db.one("select count(*) from bridge.callbacks") == 0


@pytest.mark.parametrize("first", ["remove", "change"])
def test_a_change_and_a_removal_at_once_leave_one_of_two_states(db: Session, dsn: str, first: str) -> None:
    db.do("select bridge.set_webhook('w', %s)", URL)
    other, answers = Session(dsn), []
    remove, change = "select bridge.remove_callback('w')", f"select bridge.set_webhook('w', '{URL}', queue => 'a')"

    def second() -> None:
        try:
            answers.append(other.one(change if first == "remove" else remove))
        except psycopg.Error as error:
            answers.append(error.sqlstate)

    with db.connection.transaction():
        db.do(remove if first == "remove" else change)
        thread = threading.Thread(target=second)
        thread.start()
        wait_until(lambda: db.one("select exists (select from pg_locks where not granted)"), what="the second waits for the first")
    thread.join(20)
    left = db.rows("select name, queue from bridge.callbacks")
    assert (answers, left) == ((["created"], [("w", "a")]) if first == "remove" else ([""], []))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("set_webhook('w', 'ftp://example.org')", "url of the webhook is 'ftp://example.org': give an http or https address"),
        ("set_webhook('w', 'https://me:pass@example.org')", "url of the webhook is 'https://***@example.org': give an http or https"),
        ("set_webhook('w', 'https://example.org/a b')", "give an http or https address"),
        ("set_webhook('w', null)", "url of the webhook is NULL"),
        ("set_webhook('', 'https://example.org')", "name is '': give a name"),
        ("set_webhook('w', 'https://example.org', events => '{done}')", "events is {done}: give some of succeeded, failed"),
        ("set_webhook('w', 'https://example.org', events => '{}')", "events is {}"),
        ("set_webhook('w', 'https://example.org', secret => 'whsec_MfKQ9r8GKYqrTwjU')", "secret is no name: give the name of one"),
        ("set_webhook('w', 'https://example.org', task => 'a b')", "task is 'a b'"),
        ("set_webhook('w', 'https://example.org', queue => 'a,b')", "queue or delivery_queue is 'a,b'"),
        ("set_notifier('n', 'slack://token/here')", "target is no name: give the name of a notifier"),
        ("set_channel('c', 'Bad Channel')", "channel is 'Bad Channel': give a plain name"),
        ("set_channel('c', 'bridge_done')", "channel is 'bridge_done'"),
        ("enqueue('t', webhook => '5')", "webhook is a JSON number: give an address"),
        ("""enqueue('t', webhook => '{"url": "https://example.org", "colour": 1}')""", "webhook has the unknown key colour"),
        ("""enqueue('t', webhook => '{"url": "https://example.org", "events": "failed"}')""", "events or result of the wrong type"),
        ("""enqueue('t', webhook => '{"events": ["failed"]}')""", "url of the webhook is NULL"),
        ("""enqueue_many('[{"task": "t"}, {"task": "t", "webhook": "x"}]')""", "jobs[1]: url of the webhook is 'x'"),
    ],
)  # fmt: skip
def test_what_could_never_be_delivered_is_refused_by_name(db: Session, call: str, words: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        db.do(f"select bridge.{call}")
    assert raised.value.sqlstate == "JB001"
    said = f"{raised.value.diag.message_primary}: {raised.value.diag.message_hint}"
    assert words in said
    assert "MfKQ9r8GKYqrTwjU" not in said
    assert db.one("select (select count(*) from bridge.callbacks) + (select count(*) from bridge.jobs)") == 0


def test_hosts_that_are_not_allowed_are_refused_before_anything_is_written(db: Session) -> None:
    db.do("""update bridge.setting set value = '["*.example.org"]' where name = 'webhook_hosts'""")
    assert db.one("select bridge.set_webhook('w', %s)", URL) == "created"
    with pytest.raises(psycopg.Error, match=r"url leads to host example\.com, which the setting webhook_hosts does not allow"):
        db.do("select bridge.set_webhook('v', 'https://example.com/x')")
    db.do("""update bridge.setting set value = '"example.org"' where name = 'webhook_hosts'""")
    with pytest.raises(psycopg.Error, match=r'setting webhook_hosts is "example\.org"'):
        db.do("select bridge.set_webhook('v', 'https://example.org/x')")


@pytest.mark.parametrize("call", ["remove_callback('none')", "try_callback('none')"])
def test_a_callback_that_is_not_there_is_named(db: Session, call: str) -> None:
    with pytest.raises(psycopg.Error, match="callback 'none' does not exist") as raised:
        db.do(f"select bridge.{call}")
    assert raised.value.sqlstate == "JB002"


def test_waiting_in_sql_ends_with_the_last_job_and_gives_them_in_order(db: Session, dsn: str) -> None:
    first, second = db.enqueue(), db.enqueue()
    other, answers = Session(dsn), []
    waiting = "select id, status, result->>'answer', finished_at is not null from bridge.wait(%s, '1 minute')"
    thread = threading.Thread(target=lambda: answers.extend(other.rows(waiting, [second, first])))
    thread.start()
    finish_two(db)
    thread.join(30)
    assert answers == [(second, "succeeded", None, True), (first, "succeeded", None, True)]


def finish_two(db: Session) -> None:
    for claim in db.claim():
        db.mark([claim])
        run = db.start(claim)
        db.finish(claim, run)


def test_waiting_in_sql_gives_up_when_the_time_is_over(db: Session) -> None:
    identity = db.enqueue()
    assert db.rows("select id, status, finished_at from bridge.wait(%s, '0.05 seconds')", [identity]) == [(identity, "queued", None)]


def test_waiting_in_sql_for_what_can_never_end_is_refused(db: Session) -> None:
    def refused(*ids: Any, timeout: str = "1 second") -> str:
        with pytest.raises(psycopg.Error) as raised, db.connection.transaction():
            db.rows("select * from bridge.wait(%s, %s::interval)", list(ids), timeout)
        return f"{raised.value.sqlstate} {raised.value.diag.message_primary}"

    committed = db.enqueue()
    with db.connection.transaction():
        own = db.enqueue()
        assert refused(committed, own) == f"JB006 job {own} was made in this transaction"
        with db.connection.transaction():
            inner = db.enqueue()
        assert refused(inner) == f"JB006 job {inner} was made in this transaction"
        assert db.rows("select id from bridge.wait(%s, '0')", [committed]) == [(committed,)]
    assert refused(committed, timeout="-1 second").startswith("JB001 timeout is -00:00:01")
    assert refused("00000000-0000-0000-0000-000000000000") == "JB002 job 00000000-0000-0000-0000-000000000000 does not exist"
    with db.connection.transaction():
        db.do("set transaction isolation level repeatable read")
        assert refused(committed).startswith("JB006 a transaction of isolation repeatable read sees no job end")
