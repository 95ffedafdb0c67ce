"""Jobs that depend on each other: making graphs of them, adding to one, reading what is connected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from bridge.queries.answers import columns, value
from bridge.queries.connection import plainly, translated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["Node", "add_dependency", "enqueue_flow", "workflow"]


@dataclass(frozen=True, slots=True)
class Node:
    """One row of ``bridge.workflow``.

    Attributes:
        kind: job, batch, group (one of Celery's), or step (a later task of a chain or chord that has no row yet).
        name: the task; of a batch its name.
        status: of a job or batch as ever; of a group how far its members are; of a step ``planned``.
        parents: the nodes that it comes after or belongs to; ``relations`` says of each how: depends_on, batch, callback, called, group,
            chain or chord.
        error: the message of a job's last error.
    """

    node: UUID
    kind: str
    name: str
    status: str
    parents: list[UUID]
    relations: list[str]
    queue: str | None
    attempts: int | None
    error: str | None
    created_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None


def enqueue_flow(connection: Connection, jobs: Sequence[dict[str, Any]]) -> dict[str, UUID]:
    """Call ``bridge.enqueue_flow``."""
    with translated():
        return {row[0]: row[1] for row in plainly(connection).execute("select ref, id from bridge.enqueue_flow(%s)", (Jsonb(jobs),))}


def add_dependency(connection: Connection, child: UUID, parent: UUID, on_parent_failure: str | None) -> str:
    """Call ``bridge.add_dependency``; the child's status."""
    return str(value(connection, "select bridge.add_dependency(%s, %s, %s)", (child, parent, on_parent_failure)))


def workflow(connection: Connection, identity: UUID, max_nodes: int) -> list[Node]:
    """Call ``bridge.workflow``; the oldest first, what has no row yet last."""
    with translated(), connection.cursor(row_factory=class_row(Node)) as cursor:
        return cursor.execute(f"select {columns(Node)} from bridge.workflow(%s, %s)".encode(), (identity, max_nodes)).fetchall()
