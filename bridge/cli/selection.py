"""Choosing jobs by what the user gives: ids, or the filter that every command has which is about many."""

from __future__ import annotations

import getpass
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.values import Json, duration
from bridge.errors import NotFoundError
from bridge.job import Job, Status, job_id
from bridge.queries import jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bridge.queries.connection import Connection

__all__ = ["LIVE", "by_ids", "confirm", "filter_of", "filters", "require_one_way", "whoami"]

LIVE = tuple(status.value for status in Status if not status.final)

_MOMENTS = ["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M%z", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"]


def filters(default_limit: int, statuses: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that choose jobs, the same for every command that has them; ``filter_of`` makes a filter of what was given.

    Args:
        default_limit: most jobs where the user does not say.
        statuses: what ``--status`` may be; without any there is no such option.
    """
    moment = click.DateTime(_MOMENTS)
    options = [
        click.option("--queue", "-Q", multiple=True, help="Only jobs of this queue. May be repeated, as all that choose by a name."),
        click.option("--task", multiple=True, help="Only jobs of this task; * stands for anything: 'mail.*'."),
        click.option("--error", multiple=True, help="Only jobs whose last error is of this class: ValueError, 'requests.*'."),
        click.option("--with-args", "args", type=Json(list, "ARRAY"), help="Only jobs with these values among their args: '[7]'."),
        click.option("--with-kwargs", "kwargs", type=Json(dict, "OBJECT"), help="Only jobs with these kwargs: '{\"tenant\": 3}'."),
        click.option("--batch", multiple=True, help="Only jobs of this batch."),
        click.option("--since", type=duration, help="Only jobs that changed within this last while: 90, 15m, 2h, 1d."),
        *(
            click.option(f"--{what}-{when}", type=moment, help=f"Only jobs {what} {words}: 2031-01-31T12:00:00+01:00; UTC without a zone.")
            for what in ("created", "finished")
            for when, words in (("after", "then or later"), ("before", "earlier"))
        ),
        click.option("--limit", "max_jobs", type=click.IntRange(1, 100_000), default=default_limit, show_default=True, help="Most jobs."),
    ]
    if statuses:
        options.insert(0, click.option("--status", type=click.Choice(statuses), multiple=True, help="Only jobs in this status."))

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def filter_of(given: Mapping[str, Any], *, everything: bool = False) -> dict[str, Any]:
    """The filter that these options make, in JSON values.

    Args:
        given: the options of ``filters`` by name.
        everything: all jobs are meant; not together with an option that chooses.

    Raises:
        click.UsageError: both are given.
    """
    wanted = {name: value for name, value in given.items() if value is not None and value != () and name != "since"}
    wanted = {name: list(value) if isinstance(value, tuple) else _zoned(value) for name, value in wanted.items()}
    if given.get("since") is not None:
        wanted["changed_after"] = (datetime.now(UTC) - timedelta(seconds=given["since"])).isoformat()
    if everything and set(wanted) > {"max_jobs"}:
        raise click.UsageError("--all and filters do not go together: give one or the other")
    return {**wanted, "all": True} if everything else wanted


def _zoned(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    return value


def require_one_way(ids: Sequence[str], given: Mapping[str, Any], *, chosen: bool, how: str) -> None:
    """Refuse a command that names no jobs, or names them in two ways.

    Args:
        ids: what was given as arguments.
        given: the options of ``filters`` by name.
        chosen: another option chooses already.
        how: what the command takes, for the message.

    Raises:
        click.UsageError: neither or both were given.
    """
    narrowed = any(value is not None and value != () for name, value in given.items() if name != "max_jobs")
    if ids and (chosen or narrowed):
        raise click.UsageError(f"IDs and filters do not go together: {how}")
    if not (ids or chosen or narrowed):
        raise click.UsageError(f"which jobs? {how}")


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


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed, where a person sits at a terminal and has not said yes.

    Raises:
        click.Abort: the answer is no.
    """
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        click.confirm(question, abort=True, err=True)


def whoami() -> str | None:
    """The user at this machine, for the history; None where he has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
