"""What is known by its number is looked up by it, also where statistics say that a table is empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fix_floors import DEAD, raise_floors

if TYPE_CHECKING:
    from fix_sql import Session


def leave_lives(db: Session) -> None:
    """Jobs that came and went, and statistics of a vacuum that came when none was there: the planner counts on one row."""
    db.do(
        "with made as (insert into bridge.job (id, task, queue, rank, args, kwargs, size, max_attempts, run_at, created_at, updated_at)"
        " select gen_random_uuid(), 'a.task', 'celery', 9, '[]', '{}', 4, 3, now(), now(), now() from generate_series(1, %s) returning seq)"
        " insert into bridge.inflight (seq, queue, token, shipment, drainer, claimed_at)"
        " select m.seq, 'celery', gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), now() from made m", DEAD,
    )  # fmt: skip
    for table in ("inflight", "job"):
        db.do(f"delete from bridge.{table}")
        db.do(f"vacuum bridge.{table}")
        assert db.one(f"select reltuples = 0 and relpages > 100 from pg_class where oid = 'bridge.{table}'::regclass")
    raise_floors(db)


def entries(db: Session, query: str) -> int:
    """How many entries of the indexes of hot tables a call passes, alive and dead; what it did is undone."""
    passed = (
        "select sum(pg_stat_get_xact_tuples_returned(i.indexrelid))::bigint from pg_index i"
        " where i.indrelid = any (array['bridge.job', 'bridge.inflight', 'bridge.ready']::regclass[])"
    )
    with db.connection.transaction(force_rollback=True):
        before = db.one(passed)
        db.rows(query)
        return int(db.one(passed) - before)


BY_NUMBER = {
    "claim": "select * from bridge.claim(gen_random_uuid(), 'celery', gen_random_uuid(), 10)",
    "unclaim": "select bridge.unclaim(array(select seq from bridge.flying() where state = 'claimed'))",
    "due": "select bridge.move_due(100, now() + interval '1 day')",
    "missing": "select bridge.forget_missing()",
    "unheld": "select bridge.note_unheld(now())",
    "suspects": "select * from bridge.suspects()",
    "finish": "select bridge.finish(seq, run, 'succeeded') from bridge.flying() where run is not null",
    "finish_many": (
        "select bridge.finish_many(array_agg(seq order by seq), array_agg(run order by seq), array_agg(token order by seq),"
        " array_agg(gen_random_uuid()), array_agg('null'::text), array_agg(null::text)) from bridge.flying() where run is not null"
    ),
    "alerts": "select bridge.check_alerts()",
    "stuck": "select * from bridge.stuck_in_flight(now())",
    "results": "select * from bridge.results(array['{id}'::uuid, '{id}'])",
    "cancel": "select bridge.cancel('{id}')",
    "calls": "select bridge.stop_calls()",
    "metrics": "select * from bridge.metrics()",
    "queues": "select * from bridge.queues_seen()",
}


@pytest.mark.parametrize("name", BY_NUMBER)
def test_a_job_is_looked_up_by_its_number_where_statistics_say_that_there_is_none(held: Session, name: str) -> None:
    leave_lives(held)
    held.do("select bridge.enqueue('a.task') from generate_series(1, 40)")
    held.do("select bridge.enqueue('a.task', delay => '1 hour') from generate_series(1, 10)")
    publish = "update bridge.inflight set state = 'published', published_at = now() - interval '1 hour' where seq = any (%s)"
    runs, published, _ = (held.claim(limit=10) for _ in range(3))
    held.do(publish, [claim.seq for claim in runs + published])
    assert all(held.start(claim) for claim in runs)
    held.do("update bridge.inflight set missing_since = now() where seq = %s", published[0].seq)
    held.report(published[0].token, runs[0].token)  # a message that was missing is found, and nine runs are not held any more
    assert entries(held, BY_NUMBER[name].replace("{id}", str(runs[1].id))) < DEAD / 10
