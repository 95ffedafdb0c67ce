"""What is going on at this moment, in as many numbers as a screen takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.queries import metrics, monitoring
from bridge.queries.answers import records, value
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from bridge.queries.connection import Connection
    from bridge.queries.metrics import Metric

__all__ = ["Ended", "Overview", "look"]

Ended = dict[tuple[str, str], float]

_LIVE = ("queued", "published", "running", "scheduled", "blocked")
_RUNNING = """select j.id, j.task, j.queue, w.name as worker, j.attempts + 1 as attempt, i.started_at, i.progress, i.cancelled_at
  from bridge.inflight i join bridge.job j on j.seq = i.seq left join bridge.worker w on w.id = i.worker
  where i.state = 'running' order by i.started_at limit %s"""
_WORKERS = """select name, status, pool, concurrency, queues, holding, seen_at, clock_skew from bridge.workers
  where status <> 'stopped' and seen_at > %s - interval '1 hour' order by status = 'alive', name"""
_DRAINERS = """select name, status, published, seen_at from bridge.drainers
  where status <> 'stopped' and seen_at > %s - interval '1 hour' order by status = 'alive', name"""


@dataclass(frozen=True, slots=True)
class Overview:
    """One look at everything.

    Attributes:
        at: when, by the database's clock.
        database: its name.
        queues: live jobs by queue, ``{"queue": …, "pause": …, "queued": …, "oldest_seconds": …}``; the fullest first.
        running: the jobs that run for longest.
        ended: counters of ended jobs by queue and outcome; brought up to date every ten seconds.
        workers: those that report, or did within the hour; the lost ones first.
        drainers: likewise.
        health: of the components that are neither healthy nor out of use, and of the tick.
    """

    at: datetime
    database: str
    queues: list[dict[str, Any]]
    running: list[dict[str, Any]]
    ended: Ended
    workers: list[dict[str, Any]]
    drainers: list[dict[str, Any]]
    health: list[dict[str, Any]]


def look(connection: Connection, *, most: int = 50) -> Overview:
    """Read all of it, in one transaction that sees one moment.

    Args:
        connection: where.
        most: so many running jobs.

    Raises:
        ServerError: the database went away.
    """
    with translated(), connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        at, database = value(connection, "select clock_timestamp()"), value(connection, "select current_database()")
        series = metrics.read(connection)
        pauses = {row["name"]: row["pause"] for row in records(connection, "select name, pause from bridge.pauses where kind = 'queue'")}
        return Overview(
            at, database, _queues(series, pauses), records(connection, _RUNNING, (most,)), _ended(series),
            records(connection, _WORKERS, (at,)), records(connection, _DRAINERS, (at,)),
            [row for row in monitoring.health(connection) if row["component"] == "tick" or row["status"] not in {"healthy", "inactive"}],
        )  # fmt: skip


def _queues(series: list[Metric], pauses: Mapping[str, str]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for metric in series:
        if metric.name not in {"bridge_jobs", "bridge_oldest_job_age_seconds"}:
            continue
        name, status = metric.labels["queue"], metric.labels["status"]
        row = found.setdefault(name, {"queue": name, "pause": pauses.get(name), **dict.fromkeys(_LIVE, 0), "oldest_seconds": None})
        if metric.name == "bridge_jobs":
            row[status] = int(metric.value)
        elif status == "queued":
            row["oldest_seconds"] = metric.value
    for row in found.values():
        row["oldest_seconds"] = row["oldest_seconds"] if row["queued"] else None
    return sorted(found.values(), key=lambda row: (-sum(row[status] for status in _LIVE), row["queue"]))


def _ended(series: list[Metric]) -> Ended:
    ended: Ended = {}
    for metric in series:
        if metric.name == "bridge_jobs_ended_total":
            key = metric.labels["queue"], metric.labels["outcome"]
            ended[key] = ended.get(key, 0.0) + metric.value
    return ended
