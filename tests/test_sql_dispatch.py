"""What a drainer asks: claim in order and within bounds, mark, put back, publish again."""

from __future__ import annotations

import uuid

import pytest
from fix_servers import wait_until
from fix_sql import Session

from bridge.queries import dispatch
from bridge.queries.connection import connect


def numbers(db: Session, **options: object) -> list[int]:
    return [claim.args[0] for claim in db.claim(**options)]  # type: ignore[arg-type]


def test_jobs_go_out_in_their_order_and_end_in_any(db: Session) -> None:
    first, second = db.enqueue(), db.enqueue()
    claims = db.claim()
    assert [claim.id for claim in claims] == [first, second]
    db.mark(claims)
    _, run = db.start(claims[0]), db.start(claims[1])
    db.finish(claims[1], run)
    assert (db.status(first), db.status(second)) == ("running", "succeeded")


def test_a_claim_takes_the_most_urgent_first_and_the_oldest_of_those(db: Session) -> None:
    for number, priority in enumerate([0, 9, 5, 9, 0]):
        db.enqueue(args=[number], priority=priority)
    assert numbers(db) == [1, 3, 2, 0, 4]


def test_a_claim_takes_no_more_than_it_was_asked_for(db: Session) -> None:
    for number in range(5):
        db.enqueue(args=[number])
    assert numbers(db, limit=2) == [0, 1]
    assert numbers(db) == [2, 3, 4]


def test_a_claim_ends_with_the_job_that_reaches_the_bytes(db: Session) -> None:
    for number in range(4):
        db.enqueue(args=[number, "x" * 1000])
    assert numbers(db, size=1500) == [0, 1]
    assert numbers(db, size=1) == [2]


def test_a_claim_of_one_queue_leaves_the_others(db: Session) -> None:
    db.enqueue(queue="mail", args=[1])
    db.enqueue(args=[2])
    assert numbers(db, queue="mail") == [1]
    assert numbers(db, queue="nothing") == []


def test_one_claim_of_a_queue_at_a_time_so_that_two_sessions_fill_one_window(db: Session, dsn: str) -> None:
    db.do("update bridge.setting set value = '4' where name = 'window'")
    for number in range(6):
        db.enqueue(args=[number])
    db.enqueue(args=["other"], queue="other")
    other = Session(dsn)
    with db.connection.transaction():
        first = numbers(db, limit=3)
        assert numbers(other) == [], "the first has not committed"
        assert numbers(other, queue="other") == ["other"], "of another queue it may"
    # Claimed, not yet marked: while the first publishes, the second claims what the window leaves.
    assert (first, numbers(other)) == ([0, 1, 2], [3])


def test_a_claim_whose_transaction_hangs_holds_its_queue_up_for_one_publish_lease(db: Session, dsn: str) -> None:
    db.do("update bridge.setting set value = '0.3' where name = 'publish_lease'")
    for number in range(4):
        db.enqueue(args=[number])
    other = Session(dsn)
    with db.connection.transaction():
        first = numbers(db, limit=2)
        assert numbers(other) == []
        second = wait_until(lambda: numbers(other), what="the claim that hangs is passed over")
    assert (first, second) == ([0, 1], [2, 3])


def test_claimed_jobs_show_as_queued_and_marked_ones_as_published(db: Session) -> None:
    identity = db.enqueue()
    claims = db.claim()
    assert db.status(identity) == "queued"
    assert db.mark(claims) == 1
    assert db.status(identity) == "published"


def test_a_claim_that_rolls_back_leaves_the_jobs_ready(db: Session) -> None:
    identity = db.enqueue()
    with db.connection.transaction(force_rollback=True):
        assert len(db.claim()) == 1
    assert [claim.id for claim in db.claim()] == [identity]


def test_a_date_that_no_program_has_stops_no_queue(db: Session) -> None:
    for number in range(2):
        db.enqueue(args=[number])
    # As rows of before such dates were refused.
    db.do("update bridge.job set expires_at = 'infinity' where args->>0 = '0'")
    with connect(db.dsn, name="bridge drain") as connection:
        claimed = dispatch.claim(connection, db.drainer, "celery", uuid.uuid4(), limit=10, size=10_000)
    assert [(job.args, job.expires_at) for job in claimed] == [("[0]", None), ("[1]", None)]


def test_a_full_window_holds_further_jobs_back(db: Session) -> None:
    db.do("update bridge.setting set value = '3' where name = 'window'")
    for number in range(5):
        db.enqueue(args=[number])
    claims = db.claim()
    assert len(claims) == 3
    assert db.claim() == []
    db.mark(claims)
    assert db.claim() == []
    db.start(claims[0])
    assert numbers(db) == [3]


def test_a_window_of_zero_has_no_bound(db: Session) -> None:
    db.do("update bridge.setting set value = '0' where name = 'window'")
    for number in range(5):
        db.enqueue(args=[number])
    assert len(db.claim()) == 5


def test_a_queue_may_have_a_window_of_its_own(db: Session) -> None:
    db.do("insert into bridge.queue (name, \"window\") values ('celery', 1)")
    db.enqueue()
    db.enqueue()
    assert len(db.claim()) == 1


def test_a_paused_queue_gives_nothing_until_it_is_resumed(db: Session) -> None:
    db.enqueue()
    db.do("select bridge.pause('celery')")
    assert db.claim() == []
    assert db.rows("select bridge.ready_queues()") == []
    db.do("select bridge.resume('celery')")
    assert db.rows("select bridge.ready_queues()") == [("celery",)]
    assert len(db.claim()) == 1


def test_ready_queues_are_named_once_each(db: Session) -> None:
    for queue in ("b", "a", "b", "c"):
        db.enqueue(queue=queue)
    db.enqueue(queue="later", delay="1 hour")
    assert db.rows("select bridge.ready_queues()") == [("a",), ("b",), ("c",)]


def test_a_mark_that_names_another_shipment_marks_nothing(db: Session) -> None:
    db.enqueue()
    claims = db.claim()
    db.shipment = uuid.uuid4()
    assert db.mark(claims) == 0


def test_a_mark_leaves_a_job_running_that_has_started_already(db: Session) -> None:
    identity = db.enqueue()
    claims = db.claim()
    db.start(claims[0])
    db.mark(claims)
    assert db.status(identity) == "running"


def test_what_is_put_back_keeps_its_token_so_that_a_copy_already_sent_stays_valid(db: Session) -> None:
    db.enqueue()
    before = db.claim()
    assert db.one("select bridge.unclaim(%s, %s)", [before[0].seq], db.shipment) == 1
    after = db.claim()
    assert after[0].token == before[0].token


def test_what_is_put_back_comes_before_younger_jobs_of_its_priority_only_by_its_place_in_time(db: Session) -> None:
    db.enqueue(args=[0])
    claims = db.claim()
    db.do("select bridge.unclaim(%s)", [claims[0].seq])
    db.enqueue(args=[1], priority=5)
    assert numbers(db) == [1, 0]


def test_a_started_job_is_not_put_back(db: Session) -> None:
    identity = db.enqueue()
    claims = db.claim()
    db.start(claims[0])
    assert db.one("select bridge.unclaim(%s)", [claims[0].seq]) == 0
    assert db.status(identity) == "running"


def test_enqueue_wakes_a_drainer_once_a_transaction(db: Session, dsn: str) -> None:
    listener = Session(dsn)
    listener.listen()
    with db.connection.transaction():
        for _ in range(50):
            db.enqueue()
    db.enqueue(queue="other")
    heard = [notice.payload for notice in listener.connection.notifies(timeout=20, stop_after=2)]
    assert heard == ["celery", "other"]


def suspects(db: Session) -> list[uuid.UUID]:
    return [row[0] for row in db.rows("select token from bridge.suspects()")]


@pytest.fixture
def impatient(db: Session) -> Session:
    """Graces of no time at all."""
    db.do("update bridge.setting set value = '0' where name = 'republish_grace'")
    return db


def test_a_published_job_that_a_living_worker_holds_is_no_suspect(impatient: Session) -> None:
    impatient.enqueue()
    claim = impatient.publish()
    assert suspects(impatient) == [claim.token]
    impatient.report(claim.token)
    assert suspects(impatient) == []


def test_a_published_job_is_no_suspect_within_its_grace(db: Session) -> None:
    db.enqueue()
    db.publish()
    assert suspects(db) == []


def test_a_missing_message_is_published_again_with_the_same_token(impatient: Session) -> None:
    db = impatient
    identity = db.enqueue()
    claim = db.publish()
    db.do("select bridge.mark_missing(array[%s::uuid])", claim.token)
    republish = "select token::uuid from bridge.republish(%s, %s, array[%s::uuid])"
    assert db.rows(republish, db.drainer, uuid.uuid4(), claim.token) == [], "nobody has looked yet who else consumes there"
    db.do("select bridge.note_silent('{}', '{}')")
    again = db.rows(republish, db.drainer, uuid.uuid4(), claim.token)
    assert again == [(claim.token,)]
    assert db.status(identity) == "queued"
    assert db.one("select republished from bridge.inflight") == 1


def test_a_message_that_was_found_again_is_not_published_again(impatient: Session) -> None:
    db = impatient
    db.enqueue()
    claim = db.publish()
    db.do("select bridge.mark_missing(array[%s::uuid])", claim.token)
    db.do("select bridge.mark_missing('{}', array[%s::uuid])", claim.token)
    assert db.rows("select bridge.republish(%s, %s, array[%s::uuid])", db.drainer, uuid.uuid4(), claim.token) == []


def test_a_message_that_is_missing_for_less_than_the_grace_is_not_published_again(db: Session) -> None:
    db.enqueue()
    claim = db.publish()
    db.do("select bridge.mark_missing(array[%s::uuid])", claim.token)
    assert db.rows("select bridge.republish(%s, %s, array[%s::uuid])", db.drainer, uuid.uuid4(), claim.token) == []


def test_each_time_it_is_published_again_the_next_look_comes_later(db: Session) -> None:
    db.enqueue()
    claim = db.publish()
    db.do("update bridge.inflight set published_at = clock_timestamp() - interval '30 seconds'")
    assert suspects(db) == [claim.token]
    db.do("update bridge.inflight set republished = 2")
    assert suspects(db) == []
