"""What a Celery call asks of its job beyond Celery's own options: the mapping `bridge` of its task and of the call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import bridge
from bridge.errors import InvalidArgumentError

if TYPE_CHECKING:
    from fix_calls import MakeApp
    from fix_sql import Session


@pytest.fixture
def report(make_caller: MakeApp) -> Any:
    """A task that is unique by its first argument and its argument `year`."""
    app = make_caller()

    @app.task(name="asked.report", shared=False, bridge={"unique_key": "report-{0}-{year}", "max_attempts": 2, "backoff": [1, 5]})
    def task(kind: str, year: int = 2026) -> None:
        """Nothing."""

    return task


def test_a_task_asks_by_its_option_and_a_call_adds_its_own(report: Any, db: Session) -> None:
    report.apply_async(("sales",), {"year": 2025}, bridge={"max_attempts": 5})
    report.apply_async(("costs",), {"year": 2025})
    found = "select unique_key, max_attempts from bridge.jobs order by seq"
    assert db.rows(found) == [("report-sales-2025", 5), ("report-costs-2025", 2)]
    assert db.rows("select distinct backoff from bridge.job") == [([1, 5],)]


def test_a_second_call_with_the_key_of_a_live_job_makes_none(report: Any, db: Session) -> None:
    for _ in range(2):
        report.apply_async(("sales",), {"year": 2025})
    assert db.one("select count(*) from bridge.jobs") == 1


def test_an_option_joins_the_transaction_with_its_call(report: Any, db: Session) -> None:
    with bridge.using(db.connection), db.connection.transaction():
        report.apply_async(("sales",), {"year": 2025})
    assert db.rows("select unique_key from bridge.jobs") == [("report-sales-2025",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unique_key": "report-{2}"}, r"unique_key 'report-\{2\}' of task asked\.report does not fit"),
        ({"colour": "red"}, r"option bridge of task asked\.report has colour"),
        ({"priority": 3}, r"option bridge of task asked\.report has priority"),
        ({"max_attempts": 0}, "max_attempts is 0"),
        ({"backoff": object()}, r"backoff of task asked\.report is not JSON"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(report: Any, db: Session, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        report.apply_async(("sales",), {"year": 2025}, bridge=options)
    assert db.one("select count(*) from bridge.jobs") == 0
