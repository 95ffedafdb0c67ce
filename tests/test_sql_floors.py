"""Floors: looks begin behind what is dead, and pass nothing by that lives or may still come."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_floors import DEAD, leave_dead, look, raise_floors
from fix_servers import wait_for_value
from fix_sql import Claim, Session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    import uuid

    from fix_servers import StartDrainer

    from bridge.local.postgres import PostgresServer

BUFFERS = "explain (analyze, buffers, format json) "


def floors(db: Session) -> dict[tuple[str, str], int]:
    return {(row[0], row[1]): row[2] for row in db.rows("select hot, queue, pos from bridge.floor")}


def pages(db: Session, query: str) -> int:
    """How many pages a call touches; what it did is undone."""
    with db.connection.transaction(force_rollback=True):
        db.rows(query)
        plan = db.one(BUFFERS + query)
    return int(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])


def ready_queues(db: Session) -> set[str]:
    return {row[0] for row in db.rows("select bridge.ready_queues()")}


def passes_the_dead_until_floors_are_raised(db: Session, query: str) -> None:
    before = pages(db, query)
    raise_floors(db)
    assert pages(db, query) < before - DEAD / 200


def positions(db: Session) -> dict[int, int]:
    return dict(db.rows("select seq, pos from bridge.ready"))


def test_where_few_rows_are_dead_no_floor_is_raised(db: Session) -> None:
    db.enqueue()
    db.claim()
    assert look(db, "celery") is None
    assert floors(db) == {}


LOOKS = {
    "claim": "select * from bridge.claim(gen_random_uuid(), 'celery', gen_random_uuid(), 10)",
    "queues": "select bridge.ready_queues()",
    "heads": "select * from bridge.ready_heads()",
    "counts": "select * from bridge.ready_by_queue()",
}


@pytest.mark.parametrize("name", LOOKS)
def test_what_is_dead_in_ready_is_not_passed_any_more(held: Session, name: str) -> None:
    job = held.enqueue()
    passes_the_dead_until_floors_are_raised(held, LOOKS[name])
    assert held.one("select id from bridge.job") == job


FLYING = {
    "tick": "select bridge.tick('test')",
    "room": "select bridge.room('celery')",
    "suspects": "select * from bridge.suspects()",
    "look": "select bridge.may_look()",
    "samples": "select * from bridge.live_samples(now())",
}


@pytest.mark.parametrize("name", FLYING)
def test_what_is_dead_in_flight_is_not_passed_any_more(held: Session, name: str) -> None:
    held.do(
        "insert into bridge.inflight (seq, queue, token, shipment, drainer, claimed_at)"
        " select -n, 'celery', gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), now() from generate_series(1, %s) n", DEAD,
    )  # fmt: skip
    held.do("delete from bridge.inflight where seq < 0")
    held.do("update bridge.look set asked_at = '2000-01-01'")
    passes_the_dead_until_floors_are_raised(held, FLYING[name])
    assert floors(held)["inflight", "celery"] >= DEAD


def test_a_floor_waits_for_who_has_a_number_and_has_not_committed(held: Session) -> None:
    with Session(held.dsn).connection as other:
        other.autocommit = False
        (late,) = other.execute("select bridge.enqueue('a.task')").fetchone()  # type: ignore[misc]
        held.enqueue()
        held.claim()
        waiting = look(held, "celery")
        assert len(waiting["waits"]) == 1
        assert look(held, "mail", before=waiting) == waiting
        assert floors(held) == {}
        other.commit()
        assert look(held, before=waiting) is None
    assert floors(held)["ready", "celery"] == min(positions(held).values())
    assert [claim.id for claim in held.claim()] == [late]


def test_a_number_that_is_taken_after_the_look_is_not_waited_for(held: Session) -> None:
    first = look(held, "celery")
    with Session(held.dsn).connection as other:
        other.autocommit = False
        (late,) = other.execute("select bridge.enqueue('a.task')").fetchone()  # type: ignore[misc]
        assert look(held, before=first) is None
        assert floors(held)["ready", "celery"] >= DEAD
        assert held.claim() == []
        other.commit()
    assert [claim.id for claim in held.claim()] == [late]


def test_a_floor_waits_for_who_has_prepared_a_transaction_for_another_session_to_end(held: Session) -> None:
    with closing(psycopg.connect(held.dsn)) as other:
        (late,) = other.execute("select bridge.enqueue('a.task')").fetchone()  # type: ignore[misc]
        held.enqueue()
        held.claim()
        waiting = look(held, "celery")
        other.execute("prepare transaction 'later'")
    held.claim()
    restarted = {**waiting, "waits": ["7/7"]}  # it has another number from then on
    assert [look(held, before=before) for before in (waiting, restarted)] == [waiting, restarted]
    assert floors(held) == {}
    held.do("commit prepared 'later'")
    assert look(held, before=waiting) is None
    assert floors(held)["ready", "celery"] >= DEAD
    assert [claim.id for claim in held.claim()] == [late]


def test_of_two_who_raise_floors_at_once_one_does(held: Session) -> None:
    before = look(held, "celery")
    other = Session(held.dsn)
    with other.connection.transaction():
        assert look(other, before=before) is None
        assert look(held, before=before) == before
    assert look(held, before=before) is None


def test_a_floor_goes_up_to_the_first_job_that_waits_and_never_down(held: Session) -> None:
    first, second = held.enqueue(), held.enqueue()
    place = min(positions(held).values())
    raise_floors(held)
    assert floors(held)["ready", "celery"] == place
    assert [claim.id for claim in held.claim(limit=1)] == [first]
    raise_floors(held)
    assert floors(held)["ready", "celery"] == place + 1
    raise_floors(held)
    assert floors(held)["ready", "celery"] == place + 1
    assert [claim.id for claim in held.claim()] == [second]


def test_the_most_urgent_above_the_floor_comes_first(held: Session) -> None:
    raise_floors(held)
    jobs = [held.enqueue(priority=priority) for priority in (0, 9, 5, 9, 0)]
    assert [claim.id for claim in held.claim(limit=4)] == [jobs[1], jobs[3], jobs[2], jobs[0]]
    assert [claim.id for claim in held.claim()] == [jobs[4]]


def test_bytes_bound_a_claim_above_the_floor(held: Session) -> None:
    raise_floors(held)
    for _ in range(3):
        held.enqueue(args=["x" * 1000])
    assert [len(held.claim(size=1500)) for _ in range(2)] == [2, 1]


def test_what_had_its_turn_stands_before_all_above_the_floor(held: Session) -> None:
    turned = held.enqueue()
    claim = held.publish()
    assert claim.id == turned
    raise_floors(held)
    waits = held.enqueue()
    turn_back(held, claim)
    assert [claim.id for claim in held.claim()] == [turned, waits]
    assert held.rows("select bridge.ready_queues()") == []


def turn_back(db: Session, claim: Claim) -> None:
    """Back to the front, as what a worker gives back that it has not begun."""
    db.do("delete from bridge.inflight where seq = %s", claim.seq)
    db.do("select bridge.make_ready(%s, 'celery', 9::smallint, 1, null, true)", claim.seq)


def test_a_job_that_a_limit_held_goes_to_the_front_when_the_floor_has_passed_it(held: Session) -> None:
    held.do("select bridge.set_limit('one', task => 'b.task', concurrency => 1)")
    first, second = held.enqueue("b.task"), held.enqueue("b.task")
    assert [claim.id for claim in held.claim()] == [first]
    raise_floors(held)
    waits = held.enqueue()
    held.do("select bridge.remove_limit('one')")
    assert [claim.id for claim in held.claim()] == [second, waits]


def test_no_lane_is_taken_apart_while_floors_are_raised(held: Session) -> None:
    held.do("select bridge.set_limit('one', task => 'b.task', concurrency => 1)")
    held.enqueue("b.task")
    second = held.enqueue("b.task")
    held.claim()
    held.do("select bridge.remove_limit('one')")
    other = Session(held.dsn)
    with other.connection.transaction():
        look(other, "celery")
        assert held.claim() == []
    assert [claim.id for claim in held.claim()] == [second]


def test_a_job_that_was_set_aside_and_starts_after_all_is_found_again(held: Session) -> None:
    held.enqueue()
    claim = held.publish()
    held.do("update bridge.inflight set taken_by = '{old@host}'")
    held.enqueue()
    held.finish(*held.run())
    raise_floors(held)
    assert held.start(claim) is not None
    assert held.rows("select i.seq from bridge.flights() f join bridge.inflight i on i.queue = f.queue and i.pos >= f.low") == [
        (claim.seq,)
    ]


def test_queues_with_and_without_a_floor_are_all_named(held: Session) -> None:
    for queue in ("a", "c", "e"):
        leave_dead(held, queue)
        raise_floors(held, queue)
    named: set[str] = set()
    for queue in ("b", "d", "c", "f", "a"):
        held.enqueue(queue=queue)
        named.add(queue)
        assert ready_queues(held) == named
    for queue in sorted(named):
        held.claim(queue)
        named.remove(queue)
        assert ready_queues(held) == named
    assert [row[0] for row in held.rows("select f from bridge.flying_queues() f order by 1")] == ["a", "b", "c", "d", "f"]


def test_a_sequence_that_was_set_back_takes_its_floors_away(held: Session) -> None:
    raise_floors(held)
    held.do("alter sequence bridge.ready_pos_seq restart")
    hidden = held.enqueue()
    assert held.claim() == []
    assert look(held) is None, "as a drainer does that begins"
    assert [claim.id for claim in held.claim()] == [hidden]


@pytest.mark.parametrize("lost", ["numbers", "epoch"])
def test_what_was_seen_before_a_crash_or_a_failover_raises_nothing(held: Session, lost: str) -> None:
    """Numbers that were not written yet are given out again, and whoever has one is none of those who were waited for."""
    held.enqueue()
    before = look(held, "celery")
    if lost == "numbers":
        held.do("alter sequence bridge.ready_pos_seq restart with 500")
    else:
        held.do("delete from bridge.floor_epoch")
    after = look(held, "celery", before=before)
    assert floors(held) == {}
    assert (after["epoch"] == before["epoch"]) is (lost == "numbers")
    assert look(held, before=after) is None
    assert floors(held)


def test_a_crash_begins_another_epoch(durable_postgres: PostgresServer) -> None:
    epochs = []
    for _ in range(2):
        db = Session(durable_postgres.dsn)
        with psycopg.connect(durable_postgres.dsn) as holder:
            holder.execute("select count(*) from bridge.ready")
            leave_dead(db)
            epochs.append(look(db, "celery")["epoch"])
            db.do("checkpoint")
        durable_postgres.kill()
        durable_postgres.start()
    assert epochs[0] != epochs[1]


def test_a_drainer_raises_the_floors_of_the_queues_it_claims_from(held: Session, drainer: StartDrainer) -> None:
    drainer()
    held.do("select bridge.enqueue('a.task', queue => 'mail') from generate_series(1, 3)")
    wait_for_value(held.dsn, "select count(*) from bridge.jobs where status = 'published'", value=3)
    wait_for_value(held.dsn, "select array_agg(hot order by hot) from bridge.floor where queue = 'mail'", value=["inflight", "ready"])
    last = held.enqueue(queue="mail")
    wait_for_value(held.dsn, "select status from bridge.jobs where id = %s", (last,), value="published")


class Mixed:
    """What drainers and callers do in some order, two of the callers' transactions open meanwhile."""

    def __init__(self, db: Session) -> None:
        self.db = db
        self.there: set[uuid.UUID] = set()
        self.flying: list[Claim] = []
        self.open: list[tuple[psycopg.Connection, uuid.UUID]] = []
        self.seen: Any = None
        for table in ("inflight", "ready", "job"):
            db.do(f"delete from bridge.{table}")

    def enqueue(self, priority: int = 4) -> None:
        self.there.add(self.db.enqueue(priority=priority))

    def urgent(self) -> None:
        self.enqueue(9)

    def begin(self) -> None:
        other = psycopg.connect(self.db.dsn)
        self.open.append((other, other.execute("select bridge.enqueue('a.task')").fetchone()[0]))  # type: ignore[index]

    def commit(self) -> None:
        if self.open:
            other, job = self.open.pop(0)
            other.commit()
            other.close()
            self.there.add(job)

    def roll_back(self) -> None:
        if self.open:
            self.open.pop(0)[0].close()

    def claim(self) -> None:
        self.flying += self.db.claim(limit=2)

    def unclaim(self) -> None:
        if self.flying:
            self.db.do("select bridge.unclaim(%s)", [self.flying.pop().seq])

    def turn_back(self) -> None:
        if self.flying:
            turn_back(self.db, self.flying.pop(0))

    def look(self) -> None:
        self.seen = look(self.db, "celery")

    def lift(self) -> None:
        if self.seen is not None:
            self.seen = look(self.db, before=self.seen)

    def end(self) -> None:
        """Whoever is open commits; everything is claimed."""
        while self.open:
            self.commit()
        while more := self.db.claim(limit=3):
            self.flying += more


STEPS = ("enqueue", "urgent", "begin", "commit", "roll_back", "claim", "claim", "unclaim", "turn_back", "look", "lift", "look", "lift")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(STEPS), min_size=15, max_size=40))
def test_whatever_happens_in_whatever_order_each_job_is_claimed_once(held: Session, steps: list[str]) -> None:
    mixed = Mixed(held)
    for step in steps:
        getattr(mixed, step)()
    mixed.end()
    assert sorted(claim.id for claim in mixed.flying) == sorted(mixed.there)
    found = "select i.seq from bridge.flights() f join bridge.inflight i on i.queue = f.queue and i.pos >= f.low order by 1"
    assert [row[0] for row in held.rows(found)] == sorted(claim.seq for claim in mixed.flying)
