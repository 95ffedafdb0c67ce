"""Celery as it comes: a Redis broker, with results in Redis or in Postgres."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psycopg

from bridge.bench import results
from bridge.bench.contestants.contestant import Contestant, begun
from bridge.bench.cost import dead_rows
from bridge.bench.databases import uri
from bridge.bench.jobs import QUEUE
from bridge.bench.making import Making, Producer
from bridge.bench.measure import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bridge.bench.contestants.contestant import Running

__all__ = ["DatabaseResults", "RedisResults"]

_THERE = "select to_regclass('celery_taskmeta') is not null"
_ENDS = """
  select extract(epoch from percentile_disc(0.1) within group (order by date_done)), extract(epoch from max(date_done)) from celery_taskmeta
"""


class RedisResults(Contestant):
    """Results in Redis: what most have."""

    name = "celery"
    uses = frozenset({"redis"})

    @property
    def environment(self) -> Mapping[str, str]:
        """What its processes find."""
        return self.rig.plain_environment

    def making(self, act: str, count: int, *, warm: int = 0, rate: float = 0.0, first: int = 0) -> Producer:
        """Calls of its application."""
        return Producer(Making(f"celery.{act}", count, warm, rate, first), self.environment)

    @contextmanager
    def workers(self, concurrency: int) -> Iterator[Running]:
        """One prefork worker."""
        with self.rig.worker("plain", concurrency, self.environment) as worker:
            yield {"worker": [worker]}

    def ended(self, jobs: int) -> int:
        """The results, which are alone in their database."""
        del jobs
        return results.plain_count(self.rig)()

    def ends(self, jobs: int) -> tuple[float, float]:
        """As the results say."""
        metas = results.plain_results(self.rig, jobs)
        results.check_get("plain", self.environment, [meta["task_id"] for meta in metas])
        ends = sorted(datetime.fromisoformat(meta["date_done"]).timestamp() for meta in metas)
        return ends[begun(jobs) - 1], ends[-1]

    def left_behind(self) -> int | None:
        """There is no database."""
        return None


class DatabaseResults(RedisResults):
    """Results in a database of their own on the same Postgres, by Celery's own backend; the broker is Redis."""

    name = "celery, db results"
    share = 0.25
    uses = frozenset({"redis", "postgres"})

    @cached_property
    def _dsn(self) -> str:
        dsn = self.rig.databases.create()
        self.stack.callback(self.rig.databases.drop, dsn)
        return dsn

    @cached_property
    def _control(self) -> psycopg.Connection[tuple[Any, ...]]:
        return self.stack.enter_context(psycopg.connect(self._dsn, autocommit=True))

    @cached_property
    def environment(self) -> Mapping[str, str]:
        """The same with its database."""
        return {**self.rig.plain_environment, "CELERY_RESULT_BACKEND": uri(self._dsn, "db+postgresql+psycopg")}

    def clear(self) -> None:
        """Empty its table, where the backend has made it."""
        if self._exists():
            self._control.execute("truncate celery_taskmeta")

    def ended(self, jobs: int) -> int:
        """Its rows."""
        del jobs
        return self._value("select count(*) from celery_taskmeta where status = 'SUCCESS'") if self._exists() else 0

    def ends(self, jobs: int) -> tuple[float, float]:
        """As its rows say."""
        good, left = self.ended(jobs), int(self.rig.broker.llen(QUEUE))
        if good != jobs or left:
            raise BenchError(f"{self.name} has {good} good results of {jobs} jobs, and {left} messages are left")
        ids = [str(row[0]) for row in self._control.execute("select task_id from celery_taskmeta limit 1000")]
        results.check_get("plain", self.environment, ids)
        first, last = self._control.execute(_ENDS).fetchone() or (0, 0)
        return float(first), float(last)

    def left_behind(self) -> int | None:
        """In its own database."""
        return dead_rows(self._control)

    def _exists(self) -> bool:
        return bool(self._value(_THERE))

    def _value(self, query: str) -> int:
        row = self._control.execute(query.encode()).fetchone()
        return int(row[0]) if row else 0
