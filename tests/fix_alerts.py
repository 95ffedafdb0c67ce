"""Alerts in tests: looked at when the test says, and what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fix_sql import Session

URL = "https://ops.example.org/hooks"


def check(db: Session, by: str = "0") -> dict[str, int] | None:
    """Look at the rules, at a moment that is later than now by an interval; the last tick was just then."""
    return db.one("select bridge.check_alerts(n, n) from (select clock_timestamp() + %s::interval) n (n)", by)  # type: ignore[no-any-return]


def alerts(db: Session, columns: str = "rule, subject, state") -> list[tuple[Any, ...]]:
    return db.rows(f"select {columns} from bridge.alerts order by id")


def told(db: Session) -> list[str]:
    """What was posted, in order."""
    return [
        row[0] for row in db.rows("select kwargs->'payload'->>'type' from bridge.jobs where task = 'bridge.deliver_webhook' order by seq")
    ]


def only(db: Session, *rules: str) -> None:
    db.do("update bridge.alert_rule set enabled = name = any (%s)", list(rules))


def dead_letter(db: Session) -> None:
    db.enqueue(max_attempts=1)
    db.fail(*db.run(), "torn")


def jobs_wait(db: Session) -> None:
    """A hundred and one jobs are due, and there is a worker."""
    db.do("select count(bridge.enqueue('a.task')) from generate_series(1, 101)")
    db.report()
