"""Snapshots of metrics: kept by the tick, forgotten after their time, and what graphs are drawn from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import bridge

if TYPE_CHECKING:
    import pytest
    from fix_sql import Session

KEPT = "select count(distinct at) from bridge.metric_snapshot"


def keep(db: Session, ago: str, value: float, **labels: str) -> None:
    query = "insert into bridge.metric_snapshot select date_trunc('minute', now()) - %s::interval, 'bridge_jobs_ended_total', %s::jsonb, %s"
    db.do(query, ago, json.dumps(labels), value)


def rates(db: Session, labels: dict[str, str], past: str = "1 day") -> list[Any]:
    return [
        row[0]
        for row in db.rows("select per_minute from bridge.metric_rate('bridge_jobs_ended_total', %s::jsonb, %s)", json.dumps(labels), past)
    ]


def test_the_tick_keeps_a_snapshot_every_minute_and_not_more_often(db: Session) -> None:
    db.enqueue(queue="mail")
    db.tick()
    db.tick(by="50 seconds")
    assert db.one(KEPT) == 1
    db.tick(by="61 seconds")
    assert db.one(KEPT) == 2
    query = "select value from bridge.metric_snapshot where name = 'bridge_jobs' and labels = %s::jsonb order by at"
    assert db.rows(query, json.dumps({"queue": "mail", "status": "queued"})) == [(1,), (1,)]
    assert db.one("select status from bridge.health() where component = 'metrics'") == "healthy"


def test_snapshots_are_forgotten_when_their_time_is_over(db: Session) -> None:
    keep(db, "8 days", 1)
    keep(db, "6 days", 1)
    assert db.one("select bridge.collect_metrics() > 0")
    assert db.one("select count(*) from bridge.metric_snapshot where at < now() - interval '1 hour'") == 1


def test_of_two_who_collect_at_once_one_does(db: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge import client

    monkeypatch.setenv("BRIDGE_DATABASE_URL", db.dsn)
    client.forget_connections()
    with db.connection.transaction():
        assert db.one("select bridge.collect_metrics()") > 0
        assert bridge.collect_metrics() is None
    assert bridge.collect_metrics()
    client.forget_connections()


def test_metrics_that_cannot_be_kept_do_not_keep_the_tick(db: Session) -> None:
    db.do("alter table bridge.metric_snapshot add constraint never check (false)")
    warnings: list[str] = []
    db.connection.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    assert db.tick() is not None
    assert [text.partition(":")[0] for text in warnings] == ["metrics cannot be kept"]


def test_the_rate_of_a_counter_is_by_how_much_its_series_have_grown_a_minute(db: Session) -> None:
    for minute, value in enumerate([100, 160, 160, 400]):
        keep(db, f"{10 - 2 * minute} minutes", value, queue="celery", outcome="succeeded")
    keep(db, "6 minutes", 4, queue="mail", outcome="succeeded")
    keep(db, "4 minutes", 10, queue="mail", outcome="succeeded")
    assert rates(db, {"queue": "celery"}) == [None, 30, 0, 120]
    assert rates(db, {}) == [None, 30, 2, 123], "a series that was not there yet has grown from nothing"
    assert rates(db, {"queue": "other"}) == []
    assert rates(db, {"queue": "celery"}, "7 minutes") == [None, 120]


def test_views_tell_of_the_last_hour_by_minutes_and_of_the_last_day_by_hours(db: Session) -> None:
    for end in (db.finish, db.finish, db.fail):
        db.enqueue(max_attempts=1)
        end(*db.run())
    assert db.rows("select queue, sum(succeeded), sum(failed), sum(ended) from bridge.job_rate_per_minute group by 1") == [
        ("celery", 2, 1, 3)
    ]
    keep(db, "3 hours", 5, queue="celery", task="a.task", outcome="failed")
    for ago, succeeded, failed in (("2 hours", 10, 5), ("1 hour", 30, 6)):
        keep(db, ago, succeeded, queue="celery", task="a.task", outcome="succeeded")
        keep(db, ago, failed, queue="celery", task="a.task", outcome="failed")
    found = db.rows("select queue, task, succeeded, failed, ended from bridge.job_stats_hourly order by hour")
    assert found == [("celery", "a.task", 10, 0, 10), ("celery", "a.task", 20, 1, 21)]
