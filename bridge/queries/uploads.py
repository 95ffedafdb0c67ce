"""What the demo says to the media pipeline, whose code it never imports: uploads in, jobs out."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from bridge.job import Job, Status
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["add_uploads", "states"]

_COLUMNS = tuple(field.name for field in fields(Job))


def add_uploads(connection: Connection, files: Iterable[Path], version: str) -> list[UUID]:
    """Insert an upload for each file, whose trigger makes a job, and let all of them start at once, whatever the pipeline's pace.

    Args:
        connection: where; all or none of them are there afterwards.
        files: as the worker reads them.
        version: tells these uploads from earlier ones of the same files.

    Returns:
        The jobs' ids, in the order of the files.

    Raises:
        BridgeError: the pipeline refuses one of them.
    """
    added = []
    with translated(), connection.transaction():
        for file in files:
            row = connection.execute("select media.add_upload(path => %s, version => %s)", (str(file), version)).fetchone()
            started = connection.execute(
                "select u.job_id, media.start_now(u.job_id) from media.upload_jobs u where u.upload_id = %s", row
            ).fetchone()
            assert started is not None  # noqa: S101 - the trigger has made it
            added.append(started[0])
    return added


def states(connection: Connection, identities: Sequence[UUID]) -> list[Job]:
    """Those jobs as they are now, in no order."""
    query = f"select {', '.join(_COLUMNS)} from bridge.jobs where id = any(%s)"
    with translated():
        return [_job(row) for row in connection.execute(query, (list(identities),))]


def _job(row: tuple[Any, ...]) -> Job:
    columns = dict(zip(_COLUMNS, row, strict=True))
    return Job(**{**columns, "status": Status(columns["status"])})
