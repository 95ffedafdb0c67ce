"""bridge.health: each component healthy, then as it is when something is wrong, with what to do; and cheap however long history is."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_schedules import schedule
from fix_sql import Session

from bridge.doctor import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases

STATUSES = {"healthy", "degraded", "failing", "inactive"}
COLUMNS = (
    "component", "subject", "status", "found", "remedy", "last_run", "next_run", "error_count", "success_rate", "value",
)  # fmt: skip


def health(db: Session, component: str, subject: str | None = None, **later: str) -> dict[str, Any]:
    """The row of one component."""
    query = (
        "select * from bridge.health(p_now => clock_timestamp() + %s::interval) where component = %s and subject is not distinct from %s"
    )
    (row,) = db.rows(query, later.get("by", "0"), component, subject)
    return dict(zip(COLUMNS, row, strict=True))


def status(db: Session, component: str, subject: str | None = None, **later: str) -> str:
    return str(health(db, component, subject, **later)["status"])


def report_drainer(db: Session, name: str = "here:1", **broker: Any) -> None:
    query = "select bridge.report_drainer(%s, %s, 1, 'test', 7, clock_timestamp(), %s::jsonb)"
    db.do(query, db.drainer, name, json.dumps(broker))


def test_every_row_says_what_it_is_how_it_is_and_where_that_is_bad_what_to_do(db: Session) -> None:
    db.enqueue()
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in db.rows("select * from bridge.health()")]
    assert {row["status"] for row in rows} <= STATUSES
    assert all(row["component"] and row["found"] for row in rows)
    assert [row for row in rows if row["status"] in {"degraded", "failing"} and not row["remedy"]] == []
    assert len({(row["component"], row["subject"]) for row in rows}) == len(rows)


def test_the_tick_is_failing_until_somebody_ticks_and_when_nobody_does_any_more(db: Session) -> None:
    assert health(db, "tick")["found"].startswith("nobody has ever ticked")
    assert status(db, "tick") == "failing"
    db.tick()
    row = health(db, "tick")
    assert (row["status"], row["remedy"]) == ("healthy", None)
    assert row["next_run"] > row["last_run"]
    assert status(db, "tick", by="8 seconds") == "healthy"  # a few seconds may pass before this is asked
    late = health(db, "tick", by="20 seconds")
    assert late["status"] == "failing"
    assert re.fullmatch(r"test ticked 2\d s ago", late["found"])


def test_a_drainer_is_healthy_while_it_reports_then_silent_and_none_is_failing(db: Session) -> None:
    assert status(db, "drainer") == "failing"
    report_drainer(db)
    assert status(db, "drainer", "here:1") == "healthy"
    assert "has published 7 jobs" in health(db, "drainer", "here:1")["found"]
    assert status(db, "drainer", "here:1", by="20 seconds") == "degraded"
    assert status(db, "drainer", by="20 seconds") == "failing"
    db.do("select bridge.report_drainer(%s, 'here:1', 1, 'test', 7, clock_timestamp() + '1 minute')", db.drainer)
    assert "its clock is 60.0 s off" in health(db, "drainer", "here:1")["found"]
    db.do("select bridge.report_drainer(%s, 'here:1', 1, 'test', 7, clock_timestamp(), '{}', true)", db.drainer)
    assert db.rows("select subject from bridge.health() where component = 'drainer'") == [(None,)]


def test_the_broker_is_as_drainers_report_it(db: Session) -> None:
    assert status(db, "broker") == "inactive"
    report_drainer(db, kind="redis", url="redis://broker/0", published_at="2026-11-25T22:00:00+00:00")
    row = health(db, "broker")
    assert (row["status"], row["found"]) == ("healthy", "redis at redis://broker/0 takes what 1 drainers publish")
    assert row["last_run"].isoformat() == "2026-11-25T22:00:00+00:00"
    report_drainer(db, kind="redis", refused=["mail"])
    assert (status(db, "broker"), health(db, "broker")["found"].partition("but ")[2]) == ("degraded", "refuses messages of mail")
    report_drainer(db, kind="redis", trouble="connection refused", since="2026-11-25T22:00:00+00:00")
    row = health(db, "broker")
    assert (row["status"], row["error_count"]) == ("failing", 1)
    assert row["found"] == "1 of 1 drainers cannot publish since 2026-11-25 22:00:00 UTC: connection refused"


def test_a_queue_is_failing_when_its_jobs_are_not_published_and_when_nobody_consumes_it(db: Session) -> None:
    assert status(db, "workers") == "inactive"
    db.enqueue()
    assert (status(db, "workers", "celery"), status(db, "queue", "celery")) == ("failing", "healthy")
    late = health(db, "queue", "celery", by="2 minutes")
    assert (late["status"], late["found"]) == ("failing", "0 published, 0 running; the oldest due job has waited 2 min 0 s")
    db.report()
    assert health(db, "workers", "celery")["found"] == "1 workers run 2 jobs at once"
    db.do("insert into bridge.queue (name, \"window\") values ('celery', 1)")
    db.publish()
    db.enqueue()
    assert status(db, "queue", "celery", by="2 minutes") == "degraded"
    assert "the window" in health(db, "queue", "celery", by="2 minutes")["found"]
    db.do("select bridge.pause('celery')")
    assert status(db, "queue", "celery", by="2 minutes") == "inactive"


def test_a_queue_says_how_its_jobs_ended_lately(db: Session) -> None:
    for end in (db.finish, db.finish, db.finish, db.fail):
        db.enqueue(max_attempts=1)
        end(*db.run())
    db.report()
    row = health(db, "queue", "celery")
    assert (row["error_count"], row["success_rate"]) == (1, 0.75)
    assert row["last_run"] is not None
    assert row["found"] == "0 published, 0 running"
    db.enqueue()
    assert health(db, "queue", "celery", by="11 minutes")["success_rate"] is None


def test_a_worker_without_the_plugin_is_named(db: Session) -> None:
    db.enqueue()
    db.do("select bridge.note_silent(array['old@host'], array['celery'])")
    row = health(db, "workers", "celery")
    assert (row["status"], row["found"]) == ("degraded", "only workers that report nothing consume it: old@host")


def test_stuck_jobs_dead_letters_and_lost_messages_are_worth_a_look(db: Session) -> None:
    assert [status(db, name) for name in ("stuck_jobs", "dead_letters", "callbacks", "days")] == [
        "healthy",
        "healthy",
        "inactive",
        "healthy",
    ]
    db.enqueue()
    db.run()
    assert health(db, "stuck_jobs", by="2 hours")["found"].startswith("1 running, the oldest (")
    assert status(db, "stuck_jobs", by="2 hours") == "degraded"
    db.enqueue("bridge.deliver_webhook", kwargs={"callback": "shop"}, max_attempts=1)
    db.fail(*db.run(), "answered 500")
    row = health(db, "dead_letters")
    assert (row["status"], row["error_count"], row["value"]) == ("degraded", 1, 1)
    assert status(db, "dead_letters", by="2 hours") == "healthy"
    row = health(db, "callbacks")
    assert (row["status"], row["found"]) == ("degraded", "1 messages have failed within a day, the last of shop: answered 500")


def test_a_day_without_a_partition_is_failing_when_it_is_today(db: Session) -> None:
    assert [status(db, "days", by=f"{days} days") for days in (4, 5, 7)] == ["healthy", "degraded", "failing"]
    assert "select bridge.make_days()" in health(db, "days", by="7 days")["remedy"]


def test_schedules_and_breakers_say_what_is_wrong_with_them(db: Session) -> None:
    assert (status(db, "schedules"), status(db, "breakers")) == ("inactive", "inactive")
    schedule(db, max_attempts=1)
    row = health(db, "schedules")
    assert (row["status"], row["found"]) == ("healthy", "1 schedules, 0 of them paused")
    assert row["next_run"] is not None
    db.do("select bridge.run_schedule('nightly')")
    db.fail(*db.run())
    db.tick()
    row = health(db, "schedules")
    assert (row["status"], row["error_count"], row["success_rate"]) == ("degraded", 1, 0.0)
    db.do("update bridge.schedule set next_at = clock_timestamp() - interval '2 minutes'")
    assert status(db, "schedules") == "failing"
    db.do("select bridge.set_breaker('celery', minimum => 1)")
    assert health(db, "breakers")["found"] == "1 closed"
    db.do("select bridge.turn_breaker('queue', 'celery', 'open', 'everything fails')")
    row = health(db, "breakers")
    assert (row["status"], row["found"]) == ("degraded", "queue celery is open: everything fails")


def test_a_snapshot_that_is_held_for_long_and_days_that_nobody_drops_are_found(db: Session) -> None:
    db.do("select count(*) from bridge.cleanup()")
    assert status(db, "cleanup") == "healthy"
    assert status(db, "cleanup", by="4 days") == "degraded"
    with psycopg.connect(db.dsn, application_name="forgotten report") as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select 1")
        row = health(db, "snapshots", by="6 minutes")
        assert row["status"] == "degraded"
        assert f"pid {holder.info.backend_pid} (forgotten report, idle in transaction)" in row["found"]


def test_what_counts_as_late_is_the_same_to_health_and_to_the_doctor(db: Session) -> None:
    arguments = db.one("select pg_get_function_arguments('bridge.health'::regproc)")
    said = {
        name: db.one("select extract(epoch from %s::interval)::float8", text)
        for name, text in re.findall(r"(\w+) interval DEFAULT '([^']+)'", arguments)
    }
    limits = Limits()
    assert said == {"tick_late": limits.tick_late, "queued_late": limits.queued_late, "snapshot_age": limits.snapshot_age}


def test_entries_of_pg_cron_have_their_last_and_next_run(cron_dsn: str) -> None:
    db = Session(cron_dsn)
    found = db.rows(
        "select subject, status, found, next_run > clock_timestamp() from bridge.health() where component = 'pg_cron' order by 1"
    )
    assert [row[1] for row in found] == ["healthy", "healthy"]
    assert found[0][2] == "17 3 * * *"
    assert found[0][3]
    db.do("select cron.alter_job(jobid, active => false) from cron.job where jobname like 'bridge-cleanup-%'")
    assert health(db, "pg_cron", found[0][0])["status"] == "inactive"
    assert "cron.alter_job" in health(db, "pg_cron", found[0][0])["remedy"]
    db.connection.close()


FILL = """
  insert into bridge.finished (seq, id, task, queue, rank, args, kwargs, size, max_attempts, attempts, losses, run_at, created_at,
    finished_at, started_at, status)
  select n, gen_random_uuid(), 't' || n % 50, 'q' || n % 5, 9, '[]', '{}', 4, 1, 1, 0, d.at, d.at, d.at, d.at,
    case when n % 500 = 0 then 'failed' else 'succeeded' end
  from generate_series(1, 200000) n, lateral (select clock_timestamp() - n * interval '0.4 seconds' as at) d"""
TOUCHED = """
  select coalesce(sum(seq_tup_read), 0) + coalesce(sum(idx_tup_fetch), 0) from pg_stat_xact_user_tables
  where schemaname = 'bridge' and relname like any ('{finished%,attempt%,job,ready,inflight,held}')"""


@pytest.fixture(scope="module")
def full(databases: Databases, template: str) -> Iterator[Session]:
    """A database with a day of history, fifty thousand jobs that wait, and many queues."""
    name = databases.create(template)
    db = Session(databases.server.dsn_of(name))
    db.do("select bridge.make_days((now() - interval '2 days')::date)")
    db.do(FILL)
    db.do("select count(bridge.enqueue('a.task', queue => 'q' || n % 5)) from generate_series(1, 5000) n")
    db.do("insert into bridge.ready (queue, rank, seq, size) select 'q1', 9, -n, 4 from generate_series(1, 50000) n")
    db.do("vacuum analyze bridge.finished")
    yield db
    db.connection.close()
    databases.drop(name)


@pytest.mark.parametrize(("call", "most"), [("select * from bridge.health()", 25_000), ("select bridge.check_alerts()", 25_000)])
def test_what_watches_reads_little_of_a_long_history_and_of_a_long_queue(full: Session, call: str, most: int) -> None:
    with full.connection.transaction(force_rollback=True):
        before = full.one(TOUCHED)
        assert full.rows(call)
        assert full.one(TOUCHED) - before < most
