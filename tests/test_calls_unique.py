"""Unique keys of Celery calls: the result is that of the job that stands for the call, and nothing waits for one that never comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import chain, chord, group, signals

import bridge
from bridge.errors import ConflictError, InvalidArgumentError

if TYPE_CHECKING:
    from fix_calls import MakeApp
    from fix_sql import Session

CALLS = "select args->>0, headers->>'id', id::text from bridge.jobs order by seq"


@pytest.fixture
def app(make_caller: MakeApp) -> Any:
    """An application with a task that is unique by its first argument, and one that is not."""
    app = make_caller()

    def task(*_: Any) -> None:
        """Nothing."""

    app.task(name="unique.report", shared=False, bridge={"unique_key": "report-{0}"})(task)
    app.task(name="unique.plain", shared=False)(task)
    return app


@pytest.fixture
def report(app: Any) -> Any:
    return app.tasks["unique.report"]


def test_the_result_of_a_skipped_call_is_that_of_the_job_that_has_the_key(report: Any, db: Session) -> None:
    first, second = report.delay("sales"), report.delay("sales")
    assert second.id == first.id
    assert report.delay("costs").id != first.id
    assert db.one("select count(*) from bridge.jobs") == 2
    db.finish(*db.run(limit=1), result=42)
    assert second.get(timeout=20) == 42


def test_an_id_that_the_caller_has_chosen_gives_way_to_that_of_the_job_that_has_the_key(report: Any, db: Session) -> None:
    first = report.apply_async(("sales",), task_id="mine")
    assert report.apply_async(("sales",), task_id="mine").id == "mine"
    assert report.apply_async(("sales",), task_id="another").id == db.one("select id::text from bridge.jobs")
    assert first.id == "mine"


def test_whoever_hears_of_a_skipped_call_by_a_signal_hears_of_the_other_job(report: Any) -> None:
    heard: list[str] = []

    def hear(headers: dict[str, Any] | None = None, **_: Any) -> None:
        heard.append((headers or {})["id"])

    signals.after_task_publish.connect(hear)
    try:
        first = report.delay("sales")
        report.delay("sales")
    finally:
        signals.after_task_publish.disconnect(hear)
    assert heard == [first.id, first.id]


def test_a_call_inside_a_transaction_learns_whose_the_key_is(report: Any, db: Session) -> None:
    first = report.delay("sales")
    with bridge.using(db.connection), db.connection.transaction():
        assert report.delay("sales").id == first.id


def test_a_replaced_call_is_published_under_the_id_that_its_job_has(report: Any, db: Session) -> None:
    first = report.apply_async(("sales", 1))
    second = report.apply_async(("sales", 2), bridge={"on_conflict": "replace"})
    assert second.id == first.id
    query = "select args, headers->>'id', headers->>'root_id', properties->>'correlation_id' from bridge.job"
    assert db.rows(query) == [(["sales", 2], first.id, first.id, first.id)]


def test_a_call_may_ask_to_be_refused(report: Any, db: Session) -> None:
    report.delay("sales")
    with pytest.raises(ConflictError, match="unique_key 'report-sales' belongs to a job that has not ended"):
        report.apply_async(("sales",), bridge={"on_conflict": "raise"})
    assert db.one("select count(*) from bridge.jobs") == 1


def test_a_period_is_given_in_seconds(report: Any, db: Session) -> None:
    report.apply_async(("sales",), bridge={"unique_for": 60})
    assert db.one("select kept_until > clock_timestamp() + interval '50 s' from bridge.unique_key")


@pytest.mark.parametrize(
    ("canvas", "message"),
    [
        (lambda unique, plain: chain(plain.s(), unique.s("sales")), "in a step of a chain"),
        (lambda unique, plain: chain(unique.s("sales"), plain.s()), "in a call with chain"),
        (lambda unique, plain: chain(plain.s(), group(unique.si("sales"), plain.si())), "in a step of a chain"),
        (lambda unique, plain: group(unique.s("sales"), plain.s()), "in a call with group"),
        (lambda unique, plain: chord([unique.s("sales"), plain.s()], plain.s()), "in a call with group and chord"),
        (lambda unique, plain: unique.s("sales").on_error(plain.s()), "in a call with link_error"),
    ],
)
def test_a_call_that_something_waits_for_has_no_unique_key(app: Any, canvas: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"unique_key of task unique\.report is given {message}"):
        canvas(app.tasks["unique.report"], app.tasks["unique.plain"]).apply_async()
