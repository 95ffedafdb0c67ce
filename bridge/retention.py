"""How long ended jobs are kept, cleaning up, and advice on storage, from Python."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from bridge.asked import interval
from bridge.client import connection_of
from bridge.errors import WaitTimeoutError
from bridge.queries import retention as queries
from bridge.queries.connection import stands_alone

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from bridge.queries.connection import Connection

__all__ = ["cleanup", "cleanups", "create_archive", "remove_retention", "retentions", "set_archive", "set_retention", "upkeep"]

Answer = TypeVar("Answer")
_PAUSE, _PATIENCE = 0.05, 60.0  # seconds between two tries while another cleanup is at it, and for all of them


def set_retention(
    queue: str | None = None, *, status: str | None = None, keep: float | timedelta | None = None, connection: Any = None
) -> str:
    """Keep ended jobs of a queue, of a status, or of a status in a queue for another while than the settings say.

    Of the rules about a job the one for its queue and status counts, else the one for its queue, else the one for its status.

    Args:
        queue: the jobs of this queue; None: of all.
        status: jobs that ended so: "succeeded", "failed" (dead letters, which nobody has discarded), "cancelled", "expired"; None: all
            but dead letters.
        keep: seconds since their end; None: as long as without a rule, against a less special one.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        "created", "changed" or "unchanged".

    Raises:
        InvalidArgumentError: an argument can never work.
    """
    return queries.set_retention(connection_of(connection), queue, status, interval(keep))


def remove_retention(queue: str | None = None, *, status: str | None = None, connection: Any = None) -> bool:
    """Take a rule away.

    Args:
        queue: the rule of this queue.
        status: of this status.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        False when there was none.
    """
    return queries.remove_retention(connection_of(connection), queue, status)


def retentions(*, connection: Any = None) -> list[dict[str, Any]]:
    """How long ended jobs are kept, the most special rule first, as the view ``bridge.retentions`` has it; the settings come last."""
    return queries.retentions(connection_of(connection))


def create_archive(name: str, *, connection: Any = None) -> str:
    """Make a table that ended jobs can be copied to, with this role's rights; or give one that is there the columns that it lacks.

    Args:
        name: schema.table, outside of schema bridge.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        The table's name, for `set_archive`.

    Raises:
        InvalidArgumentError: the name has no schema, or that of the bridge.
    """
    return queries.create_archive(connection_of(connection), name)


def set_archive(archive: str | None, *, connection: Any = None) -> str:
    """Copy ended jobs to a table before they go, in the transaction in which they go.

    Args:
        archive: schema.table, made by `create_archive` or with the columns of ``bridge.finished`` by name; None: none.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        "set", "removed" or "unchanged".

    Raises:
        InvalidArgumentError: it cannot take them.
    """
    return queries.set_archive(connection_of(connection), archive)


def cleanup(
    *, dry_run: bool = False, by: str | None = None, progress: Callable[[dict[str, Any]], None] | None = None, connection: Any = None
) -> list[dict[str, Any]]:
    """Take away all whose time is over: ended jobs by their retention, old logs, results that have expired.

    It goes in batches, each committed by itself, unless the caller stands in a transaction; it may be broken off anywhere, and be called
    beside another.

    Args:
        dry_run: say what would go, change nothing.
        by: who does it, for the log; None: the role.
        progress: called before each batch with ``table_name``, ``operation``, ``rows`` (gone so far) and ``left`` (tables).
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        A dictionary for each table in which something was found: ``operation``, ``table_name``, ``status``, ``found``, ``deleted``,
        ``kept`` (outlived its day), ``archived``, ``detail``.

    Raises:
        WaitTimeoutError: another cleanup stands in the way for more than a minute.
    """
    held = connection_of(connection)
    if dry_run or not stands_alone(held):
        return queries.cleanup(held, dry_run=dry_run, by=by)
    number = _patiently(lambda: queries.begin_cleanup(held, by))
    while _step(held, number, progress):
        pass
    return queries.tables_of(held, number)


def _step(held: Connection, number: int, progress: Callable[[dict[str, Any]], None] | None) -> bool:
    if progress is not None and (now := queries.under_way(held, number)) is not None:
        progress(now)
    return _patiently(lambda: queries.step(held))


def _patiently(call: Callable[[], Answer | None]) -> Answer:
    """The answer of a call that gives None while another cleanup is at it."""
    deadline = time.monotonic() + _PATIENCE
    while (answer := call()) is None:
        if time.monotonic() > deadline:
            raise WaitTimeoutError(
                f"another cleanup has been at it for {_PATIENCE:.0f} s", "see its session in pg_locks, locktype advisory; then try again"
            )
        time.sleep(_PAUSE)
    return answer


def cleanups(number: int | None = None, *, limit: int = 50, connection: Any = None) -> list[dict[str, Any]]:
    """The log: the last cleanups, newest first; or, with the ``id`` of one, what it did in each table."""
    return queries.cleanups(connection_of(connection), number, limit)


def upkeep(*, connection: Any = None) -> list[dict[str, Any]]:
    """What the database needs of whoever looks after it, worst first, each with a command; empty when there is nothing to do."""
    return queries.upkeep(connection_of(connection))
