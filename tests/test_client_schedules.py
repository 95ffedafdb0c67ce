"""The Python face of schedules: the same names and values as in SQL, in the caller's transaction."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session as OrmSession

import bridge
from bridge.errors import ConflictError, InvalidArgumentError, NotFoundError, WrongStateError

if TYPE_CHECKING:
    from fix_sql import Session
    from sqlalchemy.engine import Engine


def test_every_argument_arrives_in_its_column(db: Session) -> None:
    starts, ends = dt.datetime(2031, 1, 1, tzinfo=dt.UTC), dt.datetime(2032, 1, 1, tzinfo=dt.UTC)
    made = bridge.schedule(
        "report", "0 6 * * mon-fri", "shop.report", [1], {"to": "you"}, connection=db.connection, timezone="Europe/Berlin",
        queue="reports", priority=5, max_attempts=4, jitter=30, starts_at=starts, ends_at=ends, overlap="skip", missed="all",
        missed_within=dt.timedelta(hours=6), backoff=[1, 5], timeout=20.5, headers={"tenant": "x"}, expires=600, enabled=False,
        expected_duration=90,
    )  # fmt: skip
    assert made == "created"
    columns = (
        "cron, task, args, kwargs, timezone, queue, priority, max_attempts, starts_at, ends_at, overlap, missed, backoff, headers, status"
    )
    assert db.rows(f"select {columns} from bridge.schedules") == [
        (
            "0 6 * * mon-fri", "shop.report", [1], {"to": "you"}, "Europe/Berlin", "reports", 5, 4, starts, ends, "skip", "all", [1, 5],
            {"tenant": "x"}, "paused",
        )
    ]  # fmt: skip
    spans = db.rows("select jitter, missed_within, timeout, expires, expected_duration from bridge.schedules")[0]
    assert [span.total_seconds() for span in spans] == [30, 21600, 20.5, 600, 90]


def test_a_function_or_an_address_takes_the_place_of_a_task(db: Session) -> None:
    db.do("create function public.reset_daily(season integer) returns integer language sql as 'select 1'")
    made = bridge.schedule("reset", "@daily", function="public.reset_daily", kwargs={"season": 3}, timeout=60, connection=db.connection)
    assert (made, db.rows("select task, function from bridge.schedules")) == ("created", [("public.reset_daily", "public.reset_daily")])
    made = bridge.schedule("reset", "@daily", webhook="https://hooks.example.org/x", connection=db.connection)
    assert (made, db.rows("select task, function, role from bridge.schedules")) == ("changed", [("bridge.deliver_webhook", None, None)])
    with pytest.raises(InvalidArgumentError, match="none of task, function and webhook"):
        bridge.schedule("nothing", "@daily", connection=db.connection)
    with pytest.raises(InvalidArgumentError, match="args of schedule odd is not JSON"):
        bridge.schedule("odd", "@daily", args=[object()], function="public.reset_daily", connection=db.connection)


def test_a_schedule_belongs_to_the_callers_transaction(db: Session) -> None:
    with psycopg.connect(db.dsn) as connection:
        bridge.schedule("report", "@daily", "shop.report", connection=connection)
        connection.rollback()
        assert db.rows("select name from bridge.schedules") == []
        bridge.schedule("report", "@daily", "shop.report", connection=connection)
    assert bridge.schedule("report", "@daily", "shop.report", connection=db.connection) == "unchanged"


def test_a_schedule_belongs_to_the_session_that_the_call_stands_in(db: Session, engine: Engine) -> None:
    with OrmSession(engine) as session:
        for end, expected in ((session.rollback, 0), (session.commit, 1)):
            session.execute(text("select 1"))
            bridge.schedule("report", "@daily", "shop.report")
            assert db.one("select count(*) from bridge.schedules") == 0
            end()
            assert db.one("select count(*) from bridge.schedules") == expected
    assert bridge.unschedule("report") is True
    assert db.one("select count(*) from bridge.schedules") == 0, "outside of a session a call commits by itself"


def test_pause_resume_run_and_remove(db: Session) -> None:
    bridge.schedule("report", "@daily", "shop.report", overlap="skip", connection=db.connection)
    bridge.pause_schedule("report", connection=db.connection)
    job = bridge.run_schedule("report", connection=db.connection)
    assert bridge.get(job, connection=db.connection).task == "shop.report"
    with pytest.raises(WrongStateError, match=f"job {job} has not ended"):
        bridge.run_schedule("report", connection=db.connection)
    assert bridge.resume_schedule("report", connection=db.connection) == db.one("select next_run from bridge.schedules")
    assert bridge.unschedule("report", connection=db.connection) is True
    assert bridge.unschedule("report", connection=db.connection) is False


def test_next_runs_previews_an_expression(db: Session) -> None:
    after = dt.datetime(2026, 3, 28, 12, tzinfo=dt.UTC)
    found = bridge.next_runs("30 2 * * *", "Europe/Berlin", 2, after, connection=db.connection)
    assert found == [dt.datetime(2026, 3, 29, 1, tzinfo=dt.UTC), dt.datetime(2026, 3, 30, 0, 30, tzinfo=dt.UTC)]
    assert len(bridge.next_runs("@hourly", connection=db.connection)) == 5


def test_the_log_is_read_in_the_callers_transaction(db: Session) -> None:
    with psycopg.connect(db.dsn) as connection:
        for name in ("report", "again"):
            bridge.schedule(name, "@daily", "shop.report", expected_duration=0.001, connection=connection)
        jobs = [bridge.run_schedule("report", connection=connection) for _ in range(3)]
        connection.commit()
        db.finish(*db.run())
        connection.execute("select bridge.tick('test')")
        runs = bridge.schedule_history("report", n=2, connection=connection)
        assert [run["job_id"] for run in runs] == jobs[:0:-1]
        assert [run["job_id"] for run in bridge.schedule_history("report", before=runs[-1]["id"], connection=connection)] == jobs[:1]
        (stats,) = bridge.schedule_stats("report", connection=connection)
        assert (stats["runs"], stats["succeeded"], stats["live"]) == (3, 1, 2)
        assert [row["schedule"] for row in bridge.schedule_stats(connection=connection)] == ["again", "report"]
        connection.execute("update bridge.schedule_run set finished_at = started_at + interval '1 second' where status = 'succeeded'")
        assert [(row["schedule"], row["basis"]) for row in bridge.slow_schedules(connection=connection)] == [("report", "given")]
        twins = bridge.too_often_schedules(connection=connection)
        assert [(row["schedule"], row["kind"], row["other"]) for row in twins] == [("again", "twin", "report")]
        connection.rollback()
    assert db.one("select status from bridge.schedule_run order by id limit 1") == "open"
    with pytest.raises(NotFoundError, match="schedule 'weekly' does not exist"):
        bridge.schedule_history("weekly", connection=db.connection)
    with pytest.raises(NotFoundError, match="schedule 'weekly' does not exist"):
        bridge.schedule_stats("weekly", connection=db.connection)


def test_what_cannot_work_raises_our_exceptions(db: Session) -> None:
    with pytest.raises(InvalidArgumentError, match="character 1: minute 99 does not exist"):
        bridge.schedule("report", "99 * * * *", "shop.report", connection=db.connection)
    with pytest.raises(InvalidArgumentError, match="is not JSON"):
        bridge.schedule("report", "@daily", "shop.report", [object()], connection=db.connection)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        bridge.schedule("report", "@daily", "shop.report", colour="red", connection=db.connection)
    with pytest.raises(NotFoundError, match="schedule 'report' does not exist"):
        bridge.run_schedule("report", connection=db.connection)
    bridge.schedule("report", "@daily", "shop.report", connection=db.connection)
    with pytest.raises(ConflictError, match="differs from it in case or blanks alone"):
        bridge.schedule("Report", "@daily", "shop.report", connection=db.connection)
