"""Choosing jobs by what the user gives: ids, or filters."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from bridge.errors import NotFoundError
from bridge.job import Job, Status, job_id
from bridge.queries import jobs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.queries.connection import Connection

__all__ = ["LIVE", "Selection", "by_ids", "select"]

LIVE = tuple(status.value for status in Status if not status.final)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which jobs are meant; every part that is empty or None leaves all through.

    Attributes:
        statuses: in one of these.
        task: of this task.
        queue: of this queue.
        since: changed within so many last seconds.
        limit: most of them.
    """

    statuses: tuple[str, ...] = ()
    task: str | None = None
    queue: str | None = None
    since: float | None = None
    limit: int = 50


def select(connection: Connection, wanted: Selection) -> list[Job]:
    """The jobs that are meant, the last changed first."""
    found = [
        job
        for status in wanted.statuses or (None,)
        for job in jobs.find(connection, jobs.Filter(status, wanted.task, wanted.queue, wanted.limit))
    ]
    # Each list is the newest of its status, so what is cut off here is older than everything kept.
    found.sort(key=lambda job: job.updated_at, reverse=True)
    if wanted.since is not None:
        oldest = datetime.now(UTC) - timedelta(seconds=wanted.since)
        found = [job for job in found if job.updated_at >= oldest]
    return found[: wanted.limit]


def by_ids(connection: Connection, identities: Iterable[str]) -> list[Job]:
    """The jobs with these ids or Celery task ids, each once, in this order.

    Raises:
        NotFoundError: one of them does not exist; it is named as it was given.
    """
    found = {}
    for identity in identities:
        job = jobs.get(connection, job_id(identity))
        if job is None:
            raise NotFoundError(f"job {identity} does not exist", '"bridge jobs list" shows those that do')
        found[job.id] = job
    return list(found.values())
