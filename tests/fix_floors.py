"""Rows that are dead and stay, because somebody holds a snapshot; and floors behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Session

DEAD = 10_000  # from so many on, floors are raised; more than 200 of them are in no page


@pytest.fixture
def held(db: Session) -> Iterator[Session]:
    """A session beside another that holds a snapshot, with more dead rows than floors need."""
    with psycopg.connect(db.dsn) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("select count(*) from bridge.ready")
        leave_dead(db)
        yield db


def leave_dead(db: Session, queue: str = "celery") -> None:
    """Ready rows that came and went; statistics know of them at once."""
    db.do("insert into bridge.ready (queue, rank, seq, size) select %s, 9, -n, 1 from generate_series(1, %s) n", queue, DEAD)
    db.do("delete from bridge.ready where seq < 0")
    db.do("select pg_stat_force_next_flush()")
    assert db.one("select pg_stat_get_dead_tuples('bridge.ready'::regclass)") >= DEAD


def look(db: Session, *queues: str, before: Any = None) -> Any:
    return db.one("select bridge.raise_floors(%s::text[], %s)", list(queues), None if before is None else Jsonb(before))


def raise_floors(db: Session, *queues: str) -> None:
    """As a drainer does that has claimed from these."""
    assert look(db, before=look(db, *queues or ("celery",))) is None
