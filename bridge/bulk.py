"""What is done to many jobs at once from Python: which jobs a filter chooses, and the pages in which it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from bridge.asked import mapping, plain, require_json_of, several
from bridge.client import connection_of
from bridge.job import Job, Status, job_id
from bridge.queries import selection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["CANCEL", "Counts", "Filter", "Operation", "cancel_jobs", "jsonable", "run", "select_jobs"]

_PAGE = 500  # jobs of one statement, whose locks are held together


class Filter(TypedDict, total=False):
    """Which jobs are meant: ``bridge.Filter(task="mail.*", queue="mail")``, or a dict of the same. All that it names must hold.

    Attributes:
        ids: ids or Celery task ids.
        status: one status, or several.
        task: a task's name, or several; ``*`` stands for anything.
        queue: one queue, or several.
        error: the class of the last error, with or without its module, or several; ``*`` stands for anything.
        args: values that are anywhere in the positional arguments.
        kwargs: keyword arguments with these values.
        batch: id of a batch.
        created_after: made at this moment or later.
        created_before: made earlier.
        finished_after: ended at this moment or later.
        finished_before: ended earlier.
        changed_after: whatever happened to it last did so at this moment or later.
        all: True: all jobs are meant; what is done to many is refused without a word which.
        max_jobs: most jobs, 1 to 100,000; 1,000 where nothing is said.
    """

    ids: Sequence[UUID | str]
    status: Status | str | Sequence[Status | str]
    task: str | Sequence[str]
    queue: str | Sequence[str]
    error: str | Sequence[str]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    batch: UUID | str
    created_after: datetime
    created_before: datetime
    finished_after: datetime
    finished_before: datetime
    changed_after: datetime
    all: bool
    max_jobs: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of many jobs.

    Attributes:
        matched: the filter chose so many.
        changed: it was done to so many.
        skipped: so many had moved on meanwhile, or had to stay.
        more: as many as ``max_jobs`` were chosen, so there may be more.
    """

    matched: int
    changed: int
    skipped: int
    more: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """One of the SQL functions that do something to many.

    Attributes:
        name: of the function.
        statuses: of the jobs that it can do something with.
        dead: it does it to dead letters alone.
    """

    name: str
    statuses: tuple[str, ...]
    dead: bool = False


CANCEL = Operation("cancel_jobs", tuple(status.value for status in Status if not status.final))


def jsonable(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A filter in JSON values.

    Raises:
        InvalidArgumentError: a value is no JSON.
    """
    found = plain(mapping("filter", wanted), durations=())
    if "ids" in found and not isinstance(found["ids"], str):
        found["ids"] = [str(job_id(identity)) for identity in several("ids of the filter", found["ids"])]
    require_json_of("the filter", found)
    return found


def select_jobs(wanted: Filter | None = None, *, connection: Any = None) -> list[Job]:
    """The jobs that a filter chooses, the last changed first.

    Args:
        wanted: see ``Filter``; None for all.
        connection: see them as this transaction does.

    Raises:
        InvalidArgumentError: the filter names what there is not, or contradicts itself.
    """
    return selection.find(connection_of(connection), jsonable(wanted or {}))


def cancel_jobs(wanted: Filter, *, dry_run: bool = False, terminate: bool = True, signal: str = "TERM", connection: Any = None) -> Counts:
    """Cancel the jobs that a filter chooses, of those that have not ended: as ``cancel`` does, the first made first.

    Args:
        wanted: see ``Filter``.
        dry_run: count, change nothing.
        terminate: stop what runs; False lets it come to its end and gives it no further attempt.
        signal: what the process of a run gets.
        connection: whose transaction to join, as for ``enqueue``. Without one, each page of 500 jobs is committed by itself.

    Raises:
        InvalidArgumentError: the filter names nothing, or what there is not; or there is no such signal.
    """
    return run(connection_of(connection), CANCEL, jsonable(wanted), dry_run=dry_run, terminate=terminate, signal=signal)


def run(
    connection: Connection,
    operation: Operation,
    wanted: Mapping[str, Any],
    *,
    dry_run: bool = False,
    shown: Callable[[int], object] = lambda _: None,
    **named: Any,
) -> Counts:
    """Do something to the jobs that a filter chooses at this moment, in pages that hold no lock for long.

    Args:
        connection: where; each page is a transaction of its own where the connection has none open.
        operation: what.
        wanted: the filter, in JSON values.
        dry_run: count, change nothing.
        shown: is told after each page how many jobs it had.
        named: the function's other arguments; those that are None are left out.

    Raises:
        InvalidArgumentError: the filter or an argument can never work; said before anything is done.
    """
    # Asked first for all: it refuses what is wrong before the first page.
    said = selection.operate(connection, operation.name, wanted, {**named, "dry_run": True})
    planned = Counts(said["matched"], said["changed"], said["skipped"], said["more"])
    if dry_run or not planned.matched:
        return planned
    ids = selection.select(connection, wanted, operation.statuses, dead=operation.dead)
    narrowed = {name: value for name, value in wanted.items() if name not in {"all", "ids", "max_jobs"}}
    changed = 0
    for page in (ids[at : at + _PAGE] for at in range(0, len(ids), _PAGE)):
        of_page = {**narrowed, "ids": [str(identity) for identity in page], "max_jobs": len(page)}
        changed += selection.operate(connection, operation.name, of_page, named)["changed"]
        shown(len(page))
    return Counts(len(ids), changed, len(ids) - changed, planned.more)
