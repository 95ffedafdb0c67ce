"""What limits hold back costs nobody anything: claims read the same rows whether fifty thousand jobs are held in front of them or none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from fix_sql import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases

HELD = 50_000
# Twice as many jobs as lanes; every lane waits for a bucket of its own.
FILL = f"""
  with made as (
    insert into bridge.job (id, task, queue, rank, args, kwargs, size, max_attempts, run_at, created_at, updated_at)
    select gen_random_uuid(), 'a.task', 'celery', 9, json_build_array(n % {HELD // 2}), '{{}}', 4, 1, now(), now(), now()
    from generate_series(1, {HELD}) n returning seq, queue, rank, args->>0 as key, size
  ), limited as (select l.id, g.version from bridge.job_limit l cross join bridge.gate g
  ), lanes as (
    insert into bridge.lane (queue, rank, version, buckets, limits, keys, turn, blocked_by)
    select m.queue, m.rank, l.version, array[bridge.bucket_id(l.id, m.key)], array[l.id], array[m.key], min(m.seq),
      bridge.bucket_id(l.id, m.key)
    from made m cross join limited l group by m.queue, m.rank, m.key, l.id, l.version returning id, keys[1] as key
  ), buckets as (
    insert into bridge.bucket (id, job_limit, key, due_at) select bridge.bucket_id(l.id, n.key), l.id, n.key, now() + interval '5 minutes'
    from lanes n cross join limited l
  )
  insert into bridge.held (seq, lane, pos, size)
  select m.seq, n.id, nextval('bridge.ready_pos_seq'), m.size from made m join lanes n using (key)"""
TOUCHED = """
  select relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_xact_user_tables
  where schemaname = 'bridge' and relname = any ('{held,lane,bucket,permit,ready,job,inflight}')"""


@pytest.fixture(scope="module")
def full(databases: Databases, template: str) -> Iterator[Session]:
    """A database where many jobs are held, in lanes without room."""
    name = databases.create(template)
    db = Session(databases.server.dsn_of(name))
    db.do("select bridge.set_limit('l', task => 'a.*', key => 'args.0', concurrency => 0)")
    db.do(FILL)
    db.do("vacuum bridge.held, bridge.lane, bridge.bucket")
    yield db
    db.connection.close()
    databases.drop(name)


def touched(db: Session, query: str) -> dict[str, int]:
    """How many rows of each table a call reads; what it did is undone."""
    with db.connection.transaction(force_rollback=True):
        before = dict(db.rows(TOUCHED))  # also of transactions before, until the session reports them
        db.rows(query)
        return {name: int(count - before.get(name, 0)) for name, count in db.rows(TOUCHED)}


def many(db: Session, task: str, jobs: int) -> None:
    db.do(f"select count(bridge.enqueue('{task}')) from generate_series(1, {jobs})")


def test_claims_of_other_jobs_read_no_row_of_what_is_held(full: Session) -> None:
    many(full, "b.task", 100)
    read = touched(full, "select * from bridge.claim(gen_random_uuid(), 'celery', gen_random_uuid(), 50)")
    assert (read["held"], read["lane"], read["bucket"]) == (0, 0, 0)
    assert read["ready"] < 400
    assert touched(full, "select bridge.ready_queues()")["lane"] == 0
    assert touched(full, "select bridge.next_look()")["bucket"] <= 1


def test_a_run_that_ends_opens_one_lane_and_reads_no_other(full: Session) -> None:
    full.do("select bridge.set_limit('all', task => 'c.*', concurrency => 1)")
    many(full, "c.task", 3)
    claim = full.publish()
    run = full.start(claim)
    assert run is not None
    read = touched(full, f"select bridge.finish({claim.seq}, '{run}', 'succeeded')")
    assert sum(read.get(name, 0) for name in ("held", "lane", "bucket", "permit")) <= 5
    full.finish(claim, run)
    read = touched(full, "select * from bridge.claim(gen_random_uuid(), 'celery', gen_random_uuid(), 50)")
    assert read["held"] + read["lane"] + read["bucket"] + read["permit"] < 100
    assert len(full.claim(limit=50)) > 0


def plans(db: Session, query: str) -> str:
    seen: list[str] = []
    db.connection.add_notice_handler(lambda notice: seen.append(notice.message_primary or ""))
    for setting in ("log_min_duration = 0", "log_nested_statements = on", "log_level = notice"):
        db.do(f"set auto_explain.{setting}")
    db.do("set client_min_messages = notice")
    with db.connection.transaction(force_rollback=True):
        db.rows(query)
    db.do("set auto_explain.log_min_duration = -1")
    db.connection._notice_handlers.clear()
    return "\n".join(seen)


CALLS: dict[str, Any] = {
    "claim": ("select * from bridge.claim(gen_random_uuid(), 'celery', gen_random_uuid(), 50)", "lane_open"),
    "open": ("select bridge.open_lanes(now() + interval '10 minutes')", "bucket_due"),
    "enqueue": ("select bridge.enqueue('a.task', '[17]')", "lane_same"),
    "cancel": ("select bridge.cancel('{held}')", "held_pkey"),
    "turn": ("select bridge.enqueue('a.task', '[17]', queue => 'serial', serial_key => 'k')", "lane_same"),
    "next turn": ("select * from bridge.claim(gen_random_uuid(), 'serial', gen_random_uuid())", "held_serial"),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_gate_reads_by_its_indexes(full: Session, call: str) -> None:

    query, index = CALLS[call]
    full.do("load 'auto_explain'")
    full.do("select bridge.enqueue('b.task', queue => 'serial', serial_key => 'k')")
    text = plans(full, query.format(held=full.one("select j.id from bridge.held h join bridge.job j using (seq) order by h.seq limit 1")))
    assert re.search(index, text), text
    big = ("held", "lane", "bucket", "permit", "job", "ready", "inflight")
    scans = [line.strip() for line in text.splitlines() if any(f"Seq Scan on {name} " in line for name in big)]
    assert [line for line in scans if "One-Time" not in line] == []
