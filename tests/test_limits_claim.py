"""What claims let through: concurrency, rates, turns and serial keys, seen from SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fix_servers import wait_until

if TYPE_CHECKING:
    from fix_sql import Session


def set_limit(db: Session, name: str = "l", **options: Any) -> str:
    call = ", ".join(f"{option} => %({option})s" + ("::interval" if option == "per" else "") for option in options)
    return str(db.connection.execute(f"select bridge.set_limit('{name}', {call})".encode(), options).fetchone()[0])  # type: ignore[index]


def many(db: Session, count: int, task: str = "a.task", args: str = "[]", **options: Any) -> None:
    named = "".join(f", {name} => '{value}'" for name, value in options.items())
    db.do(f"select count(bridge.enqueue('{task}', '{args}'{named})) from generate_series(1, {count})")


def test_no_more_jobs_are_claimed_than_may_run_at_once(db: Session) -> None:
    assert set_limit(db, task="a.*", concurrency=2) == "created"
    many(db, 5)
    claims = db.claim()
    db.mark(claims)
    assert len(claims) == 2
    assert db.claim() == []
    run = db.start(claims[0])
    assert db.claim() == []
    db.finish(claims[0], run)
    assert len(db.claim()) == 1
    assert db.one("select count(*) from bridge.jobs where status = 'queued'") == 3


def test_the_bound_holds_over_all_queues_and_ways_out_of_flight(db: Session) -> None:
    set_limit(db, task="a.*", concurrency=1)
    many(db, 2, queue="one")
    many(db, 2, queue="two")
    first = db.claim("one")
    assert len(first) == 1
    assert db.claim("two") == []
    db.do("select bridge.unclaim(%s)", [first[0].seq])
    again = db.claim("two") or db.claim("one")
    assert len(again) == 1
    db.mark(again)
    db.do("select bridge.lose(%s, %s, 'it died')", again[0].seq, again[0].token)
    third = db.claim("one") or db.claim("two")
    assert len(third) == 1
    db.do("select bridge.cancel(%s)", third[0].id)
    last = db.claim("one") + db.claim("two")
    assert len(last) == 1


def test_keys_from_the_arguments_are_counted_apart(db: Session) -> None:
    set_limit(db, key="kwargs.tenant|args.0", concurrency=1)
    for args, kwargs in (([1], {}), ([2], {}), ([1], {}), ([], {"tenant": 1}), ([], {}), ([], {})):
        db.enqueue(args=args, kwargs=kwargs)
    claims = db.claim()
    assert [claim.args for claim in claims] == [[1], [2], []]
    db.do("select bridge.cancel(%s)", claims[0].id)
    assert len(db.claim()) == 1


def test_a_job_needs_room_in_every_limit_that_is_about_it(db: Session) -> None:
    set_limit(db, "all", queue="celery", concurrency=3)
    set_limit(db, "each", key="args.0", concurrency=2)
    for tenant in (1, 1, 1, 1, 2, 2):
        db.enqueue(args=[tenant])
    claims = db.claim()
    assert sorted(claim.args[0] for claim in claims) == [1, 1, 2]
    two = next(claim for claim in claims if claim.args == [2])
    db.do("select bridge.cancel(%s)", two.id)
    assert [claim.args[0] for claim in db.claim()] == [2]


def test_keys_take_turns(db: Session) -> None:
    set_limit(db, key="args.0", fair=True)
    many(db, 5000, args='["large"]')
    many(db, 5, args='["small"]')
    rounds = [[claim.args[0] for claim in db.claim(limit=10)] for _ in range(2)]
    assert rounds == [["large", "small"] * 5, ["large"] * 10]


def test_held_and_other_jobs_of_a_queue_share_a_claim_and_urgent_ones_come_first(db: Session) -> None:
    set_limit(db, task="a.*", concurrency=100)
    many(db, 20, task="a.held")
    many(db, 20, task="b.free")
    urgent = db.enqueue("a.urgent", priority=9), db.enqueue("b.urgent", priority=9)
    claims = db.claim(limit=12)
    assert {claim.id for claim in claims[:2]} == set(urgent)
    tasks = [db.one("select task from bridge.job where seq = %s", claim.seq) for claim in claims]
    assert tasks.count("a.held") == tasks.count("b.free") == 5
    assert len(db.claim(limit=100)) == 30


def test_a_rate_lets_a_burst_through_and_then_one_token_after_the_other(db: Session) -> None:
    set_limit(db, rate=2, per="1 minute", burst=3)
    many(db, 10)
    assert len(db.claim()) == 3
    assert db.claim() == []
    assert 20 < db.one("select bridge.next_look()") <= 30
    db.do("update bridge.bucket set refilled_at = refilled_at - interval '61 seconds', due_at = now()")
    assert db.one("select array_agg(q) from bridge.ready_queues() q") == ["celery"]
    assert len(db.claim()) == 2
    db.do("update bridge.bucket set refilled_at = refilled_at - interval '1 hour', due_at = now()")
    assert len(db.claim()) == 3


def test_jobs_of_a_serial_key_run_one_at_a_time_in_their_order(db: Session) -> None:
    ids = [db.enqueue(serial_key="account-7", queue=queue, priority=priority) for queue, priority in (("a", 0), ("b", 9), ("a", 5))]
    others = db.enqueue(serial_key="account-8", queue="a")
    claims = db.claim("a")
    db.mark(claims)
    assert {claim.id for claim in claims} == {ids[0], others}
    assert db.claim("b") == []
    first = next(claim for claim in claims if claim.id == ids[0])
    run = db.start(first)
    assert db.fail(first, run) == "scheduled"
    assert db.claim("a") == db.claim("b") == [], "its next attempt comes before the others"
    db.do("select bridge.retry(%s)", ids[0])
    assert [claim.id for claim in db.claim("b")] == []
    again = db.publish(queue="a")
    assert again.id == ids[0]
    db.finish(again, db.start(again))
    assert db.claim("a") == [], "the second is in the other queue"
    second = db.publish(queue="b")
    assert second.id == ids[1]
    db.do("select bridge.cancel(%s, false)", second.id)
    third = db.publish(queue="a")
    assert third.id == ids[2]


def test_a_cancelled_job_passes_its_turn_on(db: Session) -> None:
    first, second, third = (db.enqueue(serial_key="k") for _ in range(3))
    assert [claim.id for claim in db.claim()] == [first]
    db.do("select bridge.cancel(%s)", second)
    db.do("select bridge.cancel(%s)", first)
    assert [claim.id for claim in db.claim()] == [third]


def test_a_limit_holds_what_is_ready_already_and_counts_what_is_in_flight(db: Session) -> None:
    many(db, 10, task="a.task")
    many(db, 10, task="b.task")
    db.mark(db.claim(limit=2))
    set_limit(db, task="a.*", concurrency=3)
    claims = db.claim()
    tasks = [db.one("select task from bridge.job where seq = %s", claim.seq) for claim in claims]
    assert (tasks.count("a.task"), tasks.count("b.task")) == (1, 10)
    assert db.one("select count(*) from bridge.held") == 7
    assert db.claim() == []


def test_a_limit_counts_what_was_claimed_while_its_transaction_was_open_for_long(db: Session, other: Session) -> None:
    many(db, 3)
    with other.connection.transaction():
        set_limit(other, concurrency=1)
        db.mark(db.claim(limit=1))
    assert db.one("select isfinite(changed_at) from bridge.limits")
    assert db.tick(by="10 minutes")["counted"] == 1
    assert db.claim() == []


def test_a_limit_that_is_removed_lets_everything_go_in_the_order_of_arrival(db: Session) -> None:
    set_limit(db, key="args.0", concurrency=0)
    ids = [db.enqueue(args=[number % 3]) for number in range(9)]
    assert db.claim() == []
    assert db.one("select bridge.remove_limit('l')")
    assert not db.one("select bridge.remove_limit('l')")
    claims: list[Any] = []
    wait_until(lambda: claims.extend(db.claim()) or len(claims) == 9, what="all nine are claimed")
    assert {claim.id for claim in claims} == set(ids)


def test_changed_numbers_act_at_once_and_the_same_again_changes_nothing(db: Session) -> None:
    set_limit(db, task="a.*", concurrency=1)
    many(db, 5)
    assert len(db.claim()) == 1
    assert db.claim() == []
    assert set_limit(db, task="a.*", concurrency=1) == "unchanged"
    assert set_limit(db, task="a.*", concurrency=3) == "changed"
    assert db.one("select array_agg(q) from bridge.ready_queues() q") == ["celery"]
    assert len(db.claim()) == 2


def test_a_second_limit_splits_what_waits_for_the_first(db: Session) -> None:
    set_limit(db, "first", task="*", concurrency=4)
    many(db, 6, task="a.task")
    many(db, 6, task="b.task")
    assert len(db.claim(limit=2)) == 2
    set_limit(db, "second", task="a.*", concurrency=0)
    tasks = [db.one("select task from bridge.job where seq = %s", claim.seq) for claim in db.claim()]
    assert tasks == ["b.task"] * 2


def test_two_drainers_never_admit_more_than_there_is_room_for(db: Session, other: Session) -> None:
    set_limit(db, task="a.*", concurrency=3)
    many(db, 10)
    many(db, 10, queue="two")
    with db.connection.transaction():
        mine = db.claim(limit=1)
        assert len(mine) == 1
        assert other.claim("two") == [], "the first has the bucket in hand"
    assert len(other.claim("two") or other.claim()) == 2
    assert db.claim() == db.claim("two") == []


def test_an_open_transaction_that_enqueues_holds_no_claim_up(db: Session, other: Session) -> None:
    set_limit(db, task="a.*", concurrency=1)
    with db.connection.transaction():
        many(db, 1)
        with other.connection.transaction():
            many(other, 2)
        [claim] = other.claim()
        assert other.claim() == []
    other.do("select bridge.cancel(%s)", claim.id)
    assert len(other.claim() + other.claim()) == 1


def test_a_repeatable_read_transaction_may_enqueue_what_is_held(db: Session, other: Session) -> None:
    set_limit(db, task="a.*", concurrency=1)
    many(db, 3)
    with other.connection.transaction():
        other.do("set transaction isolation level repeatable read")
        other.one("select count(*) from bridge.lane")
        db.claim()
        many(other, 3)
    assert db.one("select count(*) from bridge.held") == 5
    assert db.one("select count(*) from bridge.lane") == 2


def test_dead_claims_come_back_and_keep_their_tokens(db: Session) -> None:
    set_limit(db, task="a.*", concurrency=1)
    many(db, 2)
    [claim] = db.claim()
    assert db.tick(by="1 hour")["unclaimed"] == 1
    seen = [db.claim()[0]]
    db.do("select bridge.cancel(%s)", seen[0].id)
    seen += db.claim()
    assert {one.token for one in seen if one.seq == claim.seq} == {claim.token}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"concurrency": -1}, "concurrency is -1"), ({}, "bounds nothing"), ({"rate": 0}, "rate is 0"),
        ({"burst": 3, "concurrency": 1}, "burst is 3"), ({"rate": 1, "per": "0 seconds"}, "per is 00:00:00"),
        ({"fair": True}, "fair is true without a key"), ({"key": "tenant", "fair": True}, "key is"),
        ({"queue": "a b", "concurrency": 1}, "queue is 'a b'"), ({"task": "", "concurrency": 1}, "task is ''"),
    ],
)  # fmt: skip
def test_a_limit_that_cannot_be_is_refused_with_its_reason(db: Session, options: dict[str, Any], word: str) -> None:
    with pytest.raises(Exception, match=word):
        set_limit(db, **{"concurrency": None, **options})


def test_the_next_of_a_serial_key_is_found_among_many_lanes_at_once(db: Session) -> None:
    set_limit(db, key="args.0", concurrency=2)
    ids = [db.enqueue(args=[number], serial_key="k", priority=number % 10) for number in range(20)]
    for identity in ids:
        [claim] = db.claim() or db.claim()
        assert claim.id == identity
        db.do("select bridge.cancel(%s)", identity)
    db.claim()
    assert db.one("select count(*) from bridge.lane") == 0


def test_held_jobs_expire_are_purged_and_show_when_they_wait_long(db: Session) -> None:
    set_limit(db, concurrency=0)
    expiring = db.one("select bridge.enqueue('a.task', expires_at => clock_timestamp() + interval '1 minute')")
    many(db, 3)
    many(db, 1, queue="other")
    assert db.claim() == []
    assert db.tick(by="2 minutes")["expired"] == 1
    assert db.status(expiring) == "expired"
    db.do("update bridge.held set since = since - interval '1 day'")
    assert db.rows("select distinct status, reason like 'held back by a limit%' from bridge.stuck_jobs") == [("queued", True)]
    assert db.one("select oldest_queued_at < now() - interval '1 hour' from bridge.job_queue_stats where queue = 'celery'")
    assert db.rows("select * from bridge.purge('celery')") == [(3, 0)]
    assert db.rows("select queue from bridge.live_jobs") == [("other",)]


def test_what_a_hand_has_deleted_leaves_no_permit_behind(db: Session) -> None:
    set_limit(db, task="a.*", concurrency=2)
    many(db, 3)
    claims = db.claim()
    with db.connection.transaction():
        db.do("set local session_replication_role = replica")
        db.do("delete from bridge.inflight where seq = %s", claims[0].seq)
        db.do("delete from bridge.job where seq = %s", claims[0].seq)
    assert db.claim() == []
    db.do("update bridge.tick_state set upkeep_at = '-infinity'")
    assert db.tick()["permits"] == 1
    assert len(db.claim()) == 1
