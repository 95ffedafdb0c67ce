"""Metrics in SQL: what is there now, and counters that never fall whatever becomes of the rows that they counted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases

OLD = 50_000
# Ten days of history, an hour ago the last of it.
FILL = f"""
  select bridge.make_days((now() at time zone 'utc')::date - 10, 11);
  insert into bridge.finished (seq, id, task, queue, rank, args, kwargs, size, max_attempts, attempts, losses, run_at, created_at,
    started_at, finished_at, status)
  select -n, gen_random_uuid(), 'old.task' || n % 20, 'celery', 9, '[]', '{{}}', 4, 1, 1, 0, t.at, t.at, t.at, t.at,
    case when n % 500 = 0 then 'failed' else 'succeeded' end
  from generate_series(1, {OLD}) n, lateral (select now() - interval '1 hour' - n * interval '17 seconds') t (at)"""
TOUCHED = """
  select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0) from pg_stat_xact_user_tables
  where schemaname = 'bridge' and (relname like 'finished%' or relname like 'attempt%')"""


def value(db: Session, name: str, **labels: str) -> float:
    """The sum of a metric's series with these labels."""
    query = "select coalesce(sum(value), 0) from bridge.metrics() where name = %s and labels @> %s::jsonb"
    return float(db.one(query, name, psycopg.types.json.Json(labels)))


def end(db: Session, status: str = "succeeded", **options: Any) -> Any:
    """A job that has run and ended."""
    identity = db.enqueue(**options)
    claim, run = db.run(queue=options.get("queue", "celery"))
    assert db.finish(claim, run, status)
    return identity


def tally(db: Session) -> int:
    """Bring counters up to date; the newest second is left for the next time. How many slices are open."""
    return db.one("select bridge.tally_ends(p_after => '0')") or 0


def wait_for_ended(db: Session, number: int, **labels: str) -> None:
    def counted() -> bool:
        tally(db)
        return value(db, "bridge_jobs_ended_total", **labels) == number

    wait_until(counted, 20.0, f"{number} jobs counted")


def test_live_jobs_are_told_by_queue_and_status(db: Session) -> None:
    db.enqueue(queue="mail")
    db.enqueue(queue="mail", delay="1 hour")
    parent = db.enqueue(queue="mail")
    db.enqueue(queue="reports", depends_on=[parent])
    db.claim(queue="mail", limit=1)
    db.do("update bridge.ready set since = since - interval '1 minute'")
    assert value(db, "bridge_jobs", queue="mail", status="queued") == 2
    assert value(db, "bridge_jobs", queue="mail", status="scheduled") == 1
    assert value(db, "bridge_jobs", queue="reports", status="blocked") == 1
    assert value(db, "bridge_jobs", queue="reports", status="running") == 0
    assert 60 <= value(db, "bridge_oldest_job_age_seconds", queue="mail", status="queued") < 120
    assert value(db, "bridge_jobs_enqueued_total") == 4


def test_jobs_beyond_a_bound_are_told_by_a_sample(db: Session) -> None:
    db.do("select count(bridge.enqueue('a.task', queue => 'q' || n % 2, delay => '1 hour')) from generate_series(1, 4000) n")
    db.do("select count(bridge.enqueue('a.task', queue => 'r' || n % 2, priority => n % 3)) from generate_series(1, 4000) n")
    db.do("select bridge.enqueue('a.task', queue => 'small')")
    assert dict(db.rows("select queue, jobs from bridge.delayed_by_queue()")) == {"q0": 2000, "q1": 2000}
    assert dict(db.rows("select queue, jobs from bridge.ready_by_queue()")) == {"r0": 2000, "r1": 2000, "small": 1}
    pages = int(db.one("select pg_relation_size('bridge.scheduled') / 8192"))
    scheduled = dict(db.rows("select queue, jobs from bridge.delayed_by_queue(500, %s)", pages // 2))
    assert set(scheduled) == {"q0", "q1"}
    assert 1000 <= sum(scheduled.values()) <= 8000
    ready = dict(db.rows("select queue, jobs from bridge.ready_by_queue(500, %s)", pages // 2))
    assert set(ready) == {"r0", "r1", "small"}
    assert ready["small"] == 1
    assert 1000 <= sum(ready.values()) <= 8000
    assert db.one("select max(oldest) from bridge.ready_by_queue()") <= db.one("select max(since) from bridge.ready")


def test_names_follow_the_conventions_and_every_series_is_in_the_catalog(db: Session) -> None:
    end(db)
    wait_for_ended(db, 1)
    catalog = dict(db.rows("select name, type from bridge.metric_catalog()"))
    rows = db.rows("select name, type, labels from bridge.metrics()")
    assert {name: kind for name, kind, _ in rows}.items() <= catalog.items()
    # No attempt was followed by another here; everything else has a series from the first day on.
    assert catalog.keys() - {name for name, _, _ in rows} == {"bridge_attempts_total"}
    for name, kind in catalog.items():
        assert re.fullmatch(r"bridge_[a-z]+(_[a-z]+)*", name)
        assert name.endswith("_total") == (kind == "counter")
    assert len({(name, str(sorted(labels.items()))) for name, _, labels in rows}) == len(rows)


def test_a_counter_keeps_what_history_has_lost(db: Session) -> None:
    failed = end(db, "failed")
    end(db, task="b.task", queue="mail")
    wait_for_ended(db, 2)
    assert value(db, "bridge_jobs_ended_total", task="b.task", queue="mail", outcome="succeeded") == 1
    assert value(db, "bridge_dead_jobs") == 1
    db.one("select bridge.retry(%s)", failed)
    db.do("delete from bridge.finished")
    tally(db)
    assert value(db, "bridge_jobs_ended_total") == 2
    assert value(db, "bridge_dead_jobs") == 0


def test_a_job_whose_end_commits_late_is_counted_once_and_holds_nobody_up(db: Session) -> None:
    other = Session(db.dsn)
    db.enqueue()
    late, late_run = db.run()
    with other.connection.transaction():
        assert other.finish(late, late_run)
        end(db)
        wait_for_ended(db, 1)
        assert tally(db) >= 1
    wait_for_ended(db, 2)

    def settled() -> bool:
        tally(db)
        return db.one("select sum(number) from bridge.tally where since = '-infinity'") == 2

    wait_until(settled, 20.0, "both settled")
    tally(db)
    assert value(db, "bridge_jobs_ended_total") == 2
    other.connection.close()


def test_an_end_is_counted_whose_transaction_was_the_newest_when_its_time_was(db: Session, other: Session) -> None:
    db.enqueue()
    late, late_run = db.run()
    with other.connection.transaction():
        assert other.finish(late, late_run)
        wait_until(lambda: other.one("select finished_at < clock_timestamp() - interval '1 second' from bridge.finished"))
        assert tally(db) >= 1
        assert tally(db) >= 1
    wait_for_ended(db, 1)


def test_after_a_time_without_ticks_counting_catches_up_in_short_calls(db: Session) -> None:
    db.do("update bridge.tally_slice set since = since - interval '1 hour', until = until - interval '1 hour'")
    end(db)
    db.do("update bridge.finished set finished_at = finished_at - interval '30 minutes'")
    began = db.one("select max(until) from bridge.tally_slice")
    tally(db)
    assert db.one("select max(until) - %s from bridge.tally_slice", began).total_seconds() == 300
    assert value(db, "bridge_tally_age_seconds") > 3000
    wait_for_ended(db, 1)


def test_attempts_that_another_followed_are_counted_by_their_outcome(db: Session) -> None:
    db.enqueue(max_attempts=2, backoff=0)
    claim, run = db.run()
    db.fail(claim, run)
    db.tick()
    claim, run = db.run()
    db.finish(claim, run)
    wait_for_ended(db, 1)
    assert value(db, "bridge_attempts_total", task="a.task", queue="celery", outcome="failed") == 1
    assert value(db, "bridge_job_run_seconds_total", task="a.task") > 0
    assert value(db, "bridge_job_wait_seconds_total", task="a.task") > 0


def test_names_beyond_the_setting_are_counted_together(db: Session) -> None:
    db.do("update bridge.setting set value = '2' where name = 'metric_names'")
    for task in ("one", "two"):
        end(db, task=task, queue="a")
    wait_for_ended(db, 2)
    for queue, task in [("b", "three"), ("c", "four"), ("d", "five")]:
        end(db, task=task, queue=queue)
    wait_for_ended(db, 5)
    ended = {(labels["queue"], labels["task"]): number for labels, number in db.rows(
        "select labels, value from bridge.metrics() where name = 'bridge_jobs_ended_total'")}  # fmt: skip
    assert ended == {("a", "one"): 1, ("a", "two"): 1, ("b", "(other)"): 1, ("(other)", "(other)"): 2}
    db.enqueue(queue="e")
    assert value(db, "bridge_jobs", queue="(other)", status="queued") == 1
    assert value(db, "bridge_jobs", queue="e") == 0


def test_a_viewer_may_read_metrics_and_may_not_count(db: Session) -> None:
    with db.connection.transaction(force_rollback=True):
        db.do("set local role bridge_viewer")
        assert value(db, "bridge_info") == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.one("select bridge.tally_ends()")


@pytest.fixture(scope="module")
def old(databases: Databases, template: str) -> Iterator[Session]:
    """A database with much history."""
    name = databases.create(template)
    db = Session(databases.server.dsn_of(name))
    db.connection.execute(FILL.encode())
    yield db
    db.connection.close()
    databases.drop(name)


def touched(db: Session, query: str) -> int:
    """How many rows of history a query reads from tables; index entries alone are not among them."""
    with db.connection.transaction():
        before = db.one(TOUCHED)
        db.rows(query)
        return int(db.one(TOUCHED) - before)


def test_counting_reads_what_is_new_and_metrics_read_no_history(old: Session) -> None:
    for _ in range(5):
        end(old, task="new.task")
    old.do("vacuum bridge.finished")
    slice_of_now = "select * from bridge.count_ended(clock_timestamp() - interval '1 minute', clock_timestamp())"
    assert touched(old, slice_of_now) <= 5 + 50  # its own, and one of each task for its name
    assert touched(old, "select * from bridge.metrics()") <= OLD // 500
    assert value(old, "bridge_dead_jobs") == OLD // 500


def test_a_page_of_history_is_read_from_its_index_and_nothing_else(old: Session) -> None:
    old.do("analyze bridge.finished")
    task = old.one("select task from bridge.finished where status = 'succeeded' order by finished_at limit 1")
    page = f"select * from bridge.jobs where task = '{task}' and status = 'succeeded' order by finished_at desc limit 20"
    assert len(old.rows(page)) == 20
    assert touched(old, page) <= 20 + 40  # one more of each day


def test_queue_statistics_are_not_compiled_for_days_that_they_do_not_read(old: Session) -> None:
    old.do("analyze")
    an_hour = "select queue, status from bridge.finished where finished_at > now() - interval '1 hour'"
    view, days = (
        old.one(f"explain (format json) {query}")[0]["Plan"]["Total Cost"] for query in ("select * from bridge.job_queue_stats", an_hour)
    )
    assert view < days / 4  # what decides whether a plan is compiled
