"""What children do when a parent fails, and graphs of jobs: made in one call, added to, and settled by ends that see each other or not."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session

if TYPE_CHECKING:
    from uuid import UUID

CHAIN = 3000  # jobs one after the other: too many for a call within a call


def flow(db: Session, *jobs: dict[str, Any]) -> dict[str, UUID]:
    rows = db.rows("select ref, id from bridge.enqueue_flow(%s)", json.dumps([{"task": "a.task", **job} for job in jobs]))
    return dict(rows)


def refusal(db: Session, query: str, *params: Any) -> str:
    with pytest.raises(psycopg.Error) as refused:
        db.rows(query, *params)
    assert str(refused.value.sqlstate).startswith("JB")
    return str(refused.value.diag.message_primary)


def failed(db: Session, **options: Any) -> UUID:
    """A job that has failed."""
    identity = db.enqueue(max_attempts=1, **options)
    assert db.fail(*db.run()) == "failed"
    return identity


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_child_that_runs_anyway_is_due_however_its_parents_end(db: Session, end: str) -> None:
    parent, other = db.enqueue(max_attempts=1), db.enqueue(delay="1 hour")
    child = db.enqueue(depends_on=[parent, other], on_parent_failure="run")
    grandchild = db.enqueue(depends_on=[child])
    if end == "failed":
        db.fail(*db.run())
    else:
        db.do("select bridge.cancel(%s)", parent)
    assert db.status(child) == "blocked"
    db.do("select bridge.cancel(%s)", other)
    assert [db.status(child), db.status(grandchild)] == ["queued", "blocked"]


def test_a_child_that_waits_is_due_when_its_parent_was_redriven_and_succeeds(db: Session) -> None:
    parent = db.enqueue(max_attempts=1)
    child = db.enqueue(depends_on=[parent], on_parent_failure="wait")
    for _ in range(2):
        db.fail(*db.run())
        db.tick()
        assert db.status(child) == "blocked"
        db.do("select bridge.retry(%s)", parent)
        assert db.status(child) == "blocked"
    db.finish(*db.run())
    assert db.status(child) == "queued"


def test_a_child_that_waits_is_cancelled_when_its_parent_is(db: Session) -> None:
    parent = db.enqueue(max_attempts=1)
    child = db.enqueue(depends_on=[parent], on_parent_failure="wait")
    db.fail(*db.run())
    db.do("select bridge.retry(%s)", parent)
    db.do("select bridge.cancel(%s)", parent)
    assert db.status(child) == "cancelled"


def test_a_parent_that_had_failed_before_is_taken_as_the_child_asks(db: Session) -> None:
    parent = failed(db)
    assert "ended as failed" in refusal(db, "select bridge.enqueue('t', depends_on => array[%s])", parent)
    assert db.status(db.enqueue(depends_on=[parent], on_parent_failure="run")) == "queued"
    db.finish(*db.run())
    child = db.enqueue(depends_on=[parent], on_parent_failure="wait")
    db.tick()
    assert db.status(child) == "blocked"
    db.do("select bridge.retry(%s)", parent)
    db.finish(*db.run())
    assert db.status(child) == "queued"


def test_a_parent_that_was_cancelled_before_is_no_parent_to_wait_for(db: Session) -> None:
    parent = db.enqueue()
    db.do("select bridge.cancel(%s)", parent)
    query = "select bridge.enqueue('t', depends_on => array[%s], on_parent_failure => 'wait')"
    assert "ended as cancelled" in refusal(db, query, parent)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("depends_on => array[gen_random_uuid()], on_parent_failure => 'run'", "does not exist"),
        ("on_parent_failure => 'ignore'", "on_parent_failure is 'ignore'"),
        ("batch => gen_random_uuid()", "does not exist"),
    ],
)
def test_what_can_never_be_waited_for_is_refused(db: Session, options: str, words: str) -> None:
    assert words in refusal(db, f"select bridge.enqueue('t', {options})")


@pytest.mark.parametrize("mode", ["run", "wait"])
def test_a_child_enqueued_while_its_parent_fails_does_as_it_was_asked(db: Session, dsn: str, mode: str) -> None:
    parent = db.enqueue(max_attempts=1)
    run = db.run()
    other = Session(dsn)
    with other.connection.transaction():
        child = other.enqueue(depends_on=[parent], on_parent_failure=mode)
        db.fail(*run)
    db.tick()
    assert db.status(child) == {"run": "queued", "wait": "blocked"}[mode]
    if mode == "wait":
        db.do("select bridge.retry(%s)", parent)
        db.finish(*db.run())
        assert db.status(child) == "queued"


def test_a_child_in_other_hands_when_its_parent_fails_is_cancelled_afterwards(db: Session, dsn: str) -> None:
    parent = db.enqueue(max_attempts=1)
    child = db.enqueue(depends_on=[parent])
    run = db.run()
    other = Session(dsn)
    with other.connection.transaction(force_rollback=True):
        other.do("select bridge.cancel(%s)", child)
        db.fail(*run)
        assert db.status(child) == "blocked"
        db.tick()
        assert db.status(child) == "blocked"
    db.tick()
    assert db.status(child) == "cancelled"


def test_an_end_that_is_rolled_back_releases_nothing(db: Session, dsn: str) -> None:
    parents = [db.enqueue(), db.enqueue()]
    child = db.enqueue(depends_on=parents)
    one, two = ((claim, db.start(claim)) for claim in db.claim())
    other = Session(dsn)
    with other.connection.transaction(force_rollback=True):
        other.finish(*one)
        db.finish(*two)
    db.tick()
    assert db.status(child) == "blocked"
    db.finish(*one)
    assert db.status(child) == "queued"


def test_the_work_list_is_empty_when_there_is_nothing_to_do(db: Session) -> None:
    parent = db.enqueue()
    for _ in range(20):
        db.enqueue(depends_on=[parent])
    db.tick()
    assert db.one("select count(*) from bridge.second_look") == 0
    db.finish(*db.run())
    assert db.one("select count(*) from bridge.second_look") == 0


def test_a_line_of_thousands_of_jobs_is_cancelled_to_its_end(db: Session) -> None:
    jobs = [{"ref": str(n), "depends_on": [str(n - 1)] if n else []} for n in range(CHAIN)]
    first = flow(db, *jobs)["0"]
    db.do("select bridge.cancel(%s)", first)
    for _ in range(3):
        db.tick()
    assert db.rows("select status, count(*) from bridge.jobs group by status") == [("cancelled", CHAIN)]


def test_a_flow_names_jobs_in_any_order(db: Session) -> None:
    before = db.enqueue("before")
    ids = flow(
        db, {"ref": "report", "depends_on": ["left", "right"]}, {"ref": "left", "depends_on": ["fetch"]},
        {"ref": "right", "depends_on": ["fetch", str(before)]}, {"ref": "fetch"},
    )  # fmt: skip
    assert list(ids) == ["report", "left", "right", "fetch"]
    order = []
    while claims := db.claim():
        for claim in claims:
            order.append(claim.id)
            db.finish(claim, db.start(claim))
    assert order == [before, ids["fetch"], ids["left"], ids["right"], ids["report"]]


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ([{"ref": "a", "depends_on": ["a"]}], "depends_on goes in a circle: a → a"),
        (
            [{"ref": "x"}, {"ref": "a", "depends_on": ["b", "x"]}, {"ref": "b", "depends_on": ["c"]}, {"ref": "c", "depends_on": ["a"]}],
            "a → b → c → a",
        ),
        ([{"ref": str(n), "depends_on": [str((n + 1) % 30)]} for n in range(30)], "jobs) →"),
        ([{"ref": "a", "depends_on": ["b"]}], "jobs[0]: depends_on names 'b', which is neither a ref of this call nor an id"),
        ([{"ref": "a"}, {"ref": "a"}], "jobs[1]: ref a is that of jobs[0] too"),
        ([{"ref": "a"}, {}], "jobs[1]: ref is missing"),
        ([{"ref": "a", "depends_on": "b"}], "jobs[0]: depends_on is a JSON string"),
        ([{"ref": "a"}, {"ref": "b", "priority": 10}], "jobs[1] (b): priority is 10"),
        ([{"ref": "a"}, {"ref": "b", "colour": "red"}], "jobs[1] (b): unknown key colour"),
    ],
)  # fmt: skip
def test_a_flow_that_cannot_be_is_refused_whole(db: Session, jobs: list[dict[str, Any]], words: str) -> None:
    said = refusal(db, "select bridge.enqueue_flow(%s)", json.dumps([{"task": "a.task", **job} for job in jobs]))
    assert words in said.replace("b → c → a → b", "a → b → c → a").replace("c → a → b → c", "a → b → c → a")
    assert db.one("select count(*) from bridge.jobs") == 0


def test_an_empty_flow_is_no_job(db: Session) -> None:
    assert flow(db) == {}


def test_a_job_that_waits_can_be_made_to_wait_for_another(db: Session) -> None:
    parent, child, later = db.enqueue("parent"), db.enqueue("child", priority=9), db.enqueue("later", delay="1 hour")
    add = "select bridge.add_dependency(%s, %s)"
    assert [db.one(add, child, parent), db.one(add, later, child)] == ["blocked", "blocked"]
    db.finish(*db.run())
    assert [db.status(child), db.status(later)] == ["queued", "blocked"]
    db.finish(*db.run())
    assert db.status(later) == "scheduled"
    assert db.one(add, later, parent) == "scheduled", "it has succeeded already"


def test_a_dependency_that_closes_a_circle_is_refused(db: Session) -> None:
    first, second, third = db.enqueue(), db.enqueue(), db.enqueue()
    add = "select bridge.add_dependency(%s, %s)"
    db.do(add, second, first)
    db.do(add, third, second)
    assert refusal(db, add, first, third) == f"depends_on goes in a circle: {first} → {third} → {second} → {first}"
    assert refusal(db, add, first, first) == f"depends_on goes in a circle: {first} → {first}"
    assert db.status(first) == "queued"


def test_two_dependencies_that_would_close_a_circle_together_end_as_one(db: Session, dsn: str) -> None:
    first, second = db.enqueue(), db.enqueue()
    other = Session(dsn)
    with other.connection.transaction():
        other.do("select bridge.add_dependency(%s, %s)", first, second)
        db.do("set lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            db.do("select bridge.add_dependency(%s, %s)", second, first)
    assert "circle" in refusal(db, "select bridge.add_dependency(%s, %s)", second, first)


WAITS = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


@pytest.mark.parametrize("first", ["cancel", "add_dependency"])
def test_a_child_that_is_cancelled_while_it_is_made_to_wait_is_cancelled(db: Session, dsn: str, first: str) -> None:
    parent, child = db.enqueue(), db.enqueue()
    calls = {"cancel": ("select bridge.cancel(%s)", child), "add_dependency": ("select bridge.add_dependency(%s, %s)", child, parent)}
    (second,) = calls.keys() - {first}
    one, two = Session(dsn), Session(dsn)
    with ThreadPoolExecutor(1) as pool:
        with one.connection.transaction():
            one.do(*calls[first])
            answer = pool.submit(two.do, *calls[second])
            wait_until(lambda: db.one(WAITS) == 1, what="the second waits for the first")
        if first == "cancel":
            with pytest.raises(psycopg.Error) as refused:
                answer.result()
            assert refused.value.sqlstate == "JB006"
        else:
            answer.result()
    assert db.status(child) == "cancelled"


def test_what_has_begun_or_ended_cannot_be_made_to_wait(db: Session) -> None:
    parent = db.enqueue(delay="1 hour")
    running = db.enqueue()
    run = db.run()
    add = "select bridge.add_dependency(%s, %s)"
    assert refusal(db, add, running, parent) == f"child {running} is running"
    db.finish(*run)
    assert refusal(db, add, running, parent) == f"child {running} has ended as succeeded"
    assert "on_parent_failure is 'x'" in refusal(db, "select bridge.add_dependency(%s, %s, 'x')", parent, running)
    assert "does not exist" in refusal(db, "select bridge.add_dependency(gen_random_uuid(), %s)", parent)


# A start, three layers of so many jobs, and an end that waits for all of the last layer: written as enqueue_flow would.
WIDE = 3333
GRAPH = """
with made as (
  insert into bridge.job (id, task, queue, rank, args, kwargs, size, max_attempts, run_at, created_at, updated_at)
  select bridge.new_id(), 't', 'celery', 9, '[]', '{}', 4, 1, now(), now(), now() from generate_series(0, 3 * %(wide)s + 1) returning seq
), numbered as (
  select seq, seq - (select min(seq) from made) as n, (select min(seq) from made) as zero from made
), pairs as (
  insert into bridge.dependency (parent, child)
  select zero, seq from numbered where n between 1 and %(wide)s
  union all select seq - %(wide)s, seq from numbered where n between %(wide)s + 1 and 3 * %(wide)s
  union all select zero + 1 + (n - %(wide)s) %% %(wide)s, seq from numbered where n between %(wide)s + 1 and 2 * %(wide)s
  union all select p.seq, e.seq from numbered p, numbered e where p.n between 2 * %(wide)s + 1 and 3 * %(wide)s and e.n = 3 * %(wide)s + 1
), waiting as (
  insert into bridge.blocked (seq, run_at) select seq, now() from numbered where n > 0
)
insert into bridge.ready (queue, rank, seq, size) select 'celery', 9, seq, 4 from numbered where n = 0"""
END_ALL = """
do $$
declare
  v_ready bigint[];
  v_seq bigint;
begin
  loop
    v_ready := array(select r.seq from bridge.ready r order by md5(r.seq::text) limit 5000);
    exit when v_ready = '{}';
    foreach v_seq in array v_ready loop
      delete from bridge.ready where seq = v_seq;
      perform bridge.end_job(v_seq, 'succeeded', null, null, null, 1, null, null, null, null);
      commit;
    end loop;
  end loop;
end $$"""
TOUCHED = """
  select sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit) from pg_statio_user_tables
  where schemaname = 'bridge' and relname in ('dependency', 'blocked', 'second_look')"""


def test_an_end_does_not_walk_through_what_else_its_child_waits_for(db: Session, dsn: str) -> None:
    """Ten thousand jobs, which end in any order, each by itself. Nothing is vacuumed: another session holds a snapshot."""
    db.connection.execute(GRAPH.encode(), {"wide": WIDE})
    db.do("set enable_seqscan = off; set jit = off")  # as all that ends jobs does
    with Session(dsn).connection as holder:
        holder.execute("begin isolation level repeatable read")
        holder.execute("select count(*) from bridge.job")
        db.do("select pg_stat_force_next_flush()")
        before = db.one(TOUCHED)
        db.do(END_ALL)
        db.do("select pg_stat_force_next_flush()")
        touched = db.one(TOUCHED) - before
    assert db.one("select count(*) from bridge.finished where status = 'succeeded'") == 3 * WIDE + 2
    assert touched / (3 * WIDE + 2) < 60, "buffers an end, whatever the width"
