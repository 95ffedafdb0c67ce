"""Graphs of jobs from Python: made in one call, added to, and read with everything that is connected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge import tracing
from bridge.asked import mapping, plain, require_json
from bridge.client import connection_of
from bridge.job import Status, job_id
from bridge.queries import flows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from bridge.queries.flows import Node

__all__ = ["add_dependency", "enqueue_flow", "workflow"]


def enqueue_flow(jobs: Mapping[str, Mapping[str, Any]], *, connection: Any = None) -> dict[str, UUID]:
    """Enqueue a graph of jobs at once, all or none. They name each other by their keys here, so no id needs to be known before.

    Args:
        jobs: mappings whose keys are the argument names of ``enqueue``; ``depends_on`` names other keys, in any order, or ids of existing
            jobs.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        The ids by those keys.

    Raises:
        InvalidArgumentError: the jobs go in a circle, which the message names, or one of them cannot be.
    """
    named = mapping("jobs", jobs)
    with tracing.bulk_span(named.values(), "enqueue flow") as traced:
        rows = [{**plain(mapping(f"job {ref}", job)), "ref": ref} for ref, job in zip(named, traced, strict=True)]
        for row in rows:
            require_json(f"{row.get('task')} ({row['ref']})", **row)
        return flows.enqueue_flow(connection_of(connection), rows)


def add_dependency(child: UUID | str, parent: UUID | str, *, on_parent_failure: str | None = None, connection: Any = None) -> Status:
    """Have a job that has not begun wait for another as well.

    Args:
        child: a job that is blocked, scheduled or queued.
        parent: what it waits for.
        on_parent_failure: of the child, for all of its parents: "cancel", "run" or "wait"; None leaves it as it is.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        The child's status.

    Raises:
        InvalidArgumentError: they would wait for each other, or the parent has failed.
        NotFoundError: there is no such job.
        WrongStateError: the child is published, runs or has ended.
    """
    return Status(flows.add_dependency(connection_of(connection), job_id(child), job_id(parent), on_parent_failure))


def workflow(identity: UUID | str, *, max_nodes: int = 10_000, connection: Any = None) -> list[Node]:
    """Everything that is connected with a job, a batch or a group of Celery's, the oldest first.

    Args:
        identity: of any of them.
        max_nodes: most of them, the nearest.
        connection: see it as this transaction does.

    Raises:
        NotFoundError: nothing is known of that id.
    """
    return flows.workflow(connection_of(connection), job_id(identity), max_nodes)
