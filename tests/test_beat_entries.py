"""What an entry of a beat schedule means, read in this process: Celery's crontabs beside our expressions, zones, priorities."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.schedules import crontab
from fix_sql import Session
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bridge.beat import crontab_text, entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases

DAYS = ["sun", "mon", "tuesday", "wed", "thu", "friday", "sat"]


@pytest.fixture(scope="module")
def sql(databases: Databases, template: str) -> Iterator[Session]:
    name = databases.create(template)
    session = Session(databases.server.dsn_of(name))
    yield session
    session.connection.close()
    databases.drop(name)


def make_app(broker: str = "redis://127.0.0.1:1/0", **conf: Any) -> Celery:
    app = Celery("beaten", broker=broker, set_as_current=False)
    app.conf.update(conf)
    return app


def parts(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    # A range may run backwards: Celery goes on at the other end.
    span = st.tuples(number, number).map(lambda ends: f"{ends[0]}-{ends[1]}")
    return st.one_of(number.map(str), span, st.tuples(span, st.integers(2, 5)).map(lambda two: f"{two[0]}/{two[1]}"))


def fields(low: int, high: int) -> st.SearchStrategy[Any]:
    steps = st.integers(2, 9).map(lambda step: f"*/{step}")
    lists = st.lists(parts(low, high), min_size=1, max_size=3).map(",".join)
    return st.one_of(st.just("*"), steps, lists, st.integers(low, high), st.sets(st.integers(low, high), min_size=1, max_size=4))


weekdays = st.one_of(fields(0, 6), st.lists(st.sampled_from(DAYS), min_size=1, max_size=3).map(",".join), st.just("mon-fri"))
specs = st.tuples(fields(0, 59), fields(0, 23), weekdays, fields(1, 31), fields(1, 12))
moments = st.datetimes(datetime.fromisoformat("2012-01-01"), datetime.fromisoformat("2037-01-01")).map(
    lambda moment: moment.replace(tzinfo=UTC, microsecond=0)
)


def by_celery(spec: tuple[Any, ...], after: datetime, n: int) -> list[datetime]:
    app, found = make_app(timezone="UTC"), []
    for _ in range(n):
        when = crontab(*spec, nowfun=lambda now=after: now, app=app)
        after += when.remaining_estimate(after)
        found.append(after)
    return found


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(spec=specs, after=moments)
def test_a_crontab_becomes_an_expression_that_is_due_when_celery_says(sql: Session, spec: tuple[Any, ...], after: datetime) -> None:
    try:
        text = crontab_text(crontab(*spec))
    except ValueError:
        assume(False)  # noqa: FBT003 - days that the months do not have
    rows = sql.rows("select bridge.next_runs(%s, 'UTC', 5, %s)", text, after)
    assert [row[0].astimezone(UTC) for row in rows] == by_celery(spec, after, 5)


def read(app: Celery, schedule: Any, **values: Any) -> Any:
    app.conf.beat_schedule = {"one": {"task": "a.task", "schedule": schedule, **values}}
    return entries(app)[0]


class Eastern(crontab):
    """A crontab with a zone of its own, as django-celery-beat has them; this one without a name."""

    tz = timezone(timedelta(hours=3))


def test_a_crontab_is_read_by_the_clock_of_its_application() -> None:
    assert read(make_app(timezone="Asia/Kolkata"), crontab()).schedule["timezone"] == "Asia/Kolkata"
    assert read(make_app(), crontab()).schedule["timezone"] == "UTC"
    unnamed = read(make_app(), Eastern())
    assert unnamed.refusal.startswith("its time zone UTC+03:00 has no name in the tz database: give --timezone")
    app = make_app(beat_schedule={"one": {"task": "t", "schedule": Eastern()}})
    assert entries(app, timezone="Europe/Minsk")[0].schedule["timezone"] == "Europe/Minsk"  # type: ignore[index]
    assert "nowfun" in read(make_app(), crontab(nowfun=lambda: datetime.now(UTC))).refusal


def test_a_priority_means_what_it_meant_on_the_broker() -> None:
    options = {"options": {"priority": 12}}
    assert read(make_app("amqp://127.0.0.1:1"), 60, **options).schedule["priority"] == 9
    entry = read(make_app(), 60, **options)
    assert entry.schedule["priority"] == 0
    assert "priority 12 means later than others on this broker: it becomes 0" in entry.notes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "every 1 seconds"), (90, "every 90 seconds"), (timedelta(hours=36), "every 36 hours"), (604800, "every 7 days")],
)
def test_an_interval_is_said_in_its_largest_unit(seconds: Any, text: str) -> None:
    assert read(make_app(), seconds).schedule["cron"] == text


@pytest.mark.parametrize("option", ["countdown", "eta", "link_error", "task_id", "chain"])
def test_an_option_that_changes_what_happens_keeps_its_entry_in_beat(option: str) -> None:
    assert f"its option {option} has no place in a schedule" in read(make_app(), 60, options={option: "x"}).refusal
