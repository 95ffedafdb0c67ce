"""Schedules in tests: made with short names, ticked at a time that is passed in, and what the log of runs says of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import BridgeError
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_sql import Session

DAY = datetime(2031, 5, 5, tzinfo=UTC)  # a Monday, later than now: simulated time only goes on
HOUR = timedelta(hours=1)


def schedule(db: Session, name: str = "nightly", cron: str = "0 * * * *", task: str | None = "a.task", **options: Any) -> str:
    named = {"name": name, "cron": cron, "task": task, **options}
    casts = {"args": "::jsonb", "kwargs": "::jsonb", "headers": "::jsonb", "priority": "::integer", "max_attempts": "::integer"}
    casts |= dict.fromkeys(["timeout", "expires", "jitter", "missed_within", "expected_duration"], "::interval")
    casts |= {**dict.fromkeys(["starts_at", "ends_at"], "::timestamptz"), "webhook": "::jsonb"}
    call = ", ".join(f"{key} => %({key})s{casts.get(key, '')}" for key in named)
    with translated():
        return str(db.connection.execute(f"select bridge.schedule({call})".encode(), named).fetchone()[0])  # type: ignore[index]


def due_at(db: Session, slot: datetime, name: str = "nightly") -> None:
    db.do("update bridge.schedule set next_at = %s where name = %s", slot, name)


def tick(db: Session, now: datetime) -> int:
    return int(db.one("select bridge.tick('test', p_now => %s)->>'slots'", now))


def runs(db: Session, name: str = "nightly") -> list[tuple[Any, ...]]:
    found = db.rows("select slot, trigger_type, status from bridge.schedule_runs where schedule = %s order by slot, id", name)
    return [(row[0].astimezone(UTC), *row[1:]) for row in found]


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(BridgeError) as caught, translated():
        call()
    return str(caught.value)
