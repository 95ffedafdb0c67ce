"""jobs, of what they tell while they run: logs, log, progress, checkpoint, save-checkpoint."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.database import open_database
from bridge.cli.selection import by_ids
from bridge.cli.tables import json_option, print_json
from bridge.job import LEVELS
from bridge.queries import jobs, notes
from bridge.records import shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from uuid import UUID

    from bridge.job import LogLine
    from bridge.queries.connection import Connection

__all__ = ["COMMANDS"]

_LOOK = 0.5  # seconds between two looks at a log that is followed: it is written as often

_id = click.argument("identity", metavar="ID")


@click.command("logs")
@_id
@click.option("--attempt", type=click.IntRange(min=1), help="Only lines of this attempt.")
@click.option("--follow", "-f", is_flag=True, help="Go on printing new lines until the job has ended.")
@json_option
def logs_command(*, identity: str, attempt: int | None, follow: bool, as_json: bool) -> None:
    """Print what a job has logged, in all its attempts, while it runs and after.

    \b
    Examples:
      bridge jobs logs 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs logs my-own-task-id --follow
      bridge jobs logs my-own-task-id --attempt 2 --json
    """
    if follow and as_json:
        raise click.UsageError("--follow prints lines as they come: leave out --json")
    with open_database("bridge jobs logs") as connection:
        (job,) = by_ids(connection, [identity])
        if as_json:
            print_json(notes.logs(connection, job.id, attempt, None))
            return
        for line in _followed(connection, job.id, attempt) if follow else notes.logs(connection, job.id, attempt, None):
            _print(line)


def _followed(connection: Connection, identity: UUID, attempt: int | None) -> Iterator[LogLine]:
    """Lines as they come, until the job has ended; the last look is after that."""
    seen: set[tuple[UUID, int]] = set()
    since: datetime | None = None
    ended = False
    while not ended:
        job = jobs.get(connection, identity)
        ended = job is None or job.status.final
        for line in notes.logs(connection, identity, attempt, since):
            if (line.run, line.number) not in seen:
                yield line
            since = line.at
            seen.add((line.run, line.number))
        if not ended:
            time.sleep(_LOOK)


def _print(line: LogLine) -> None:
    if line.left_out:
        click.echo(f"… {line.left_out} lines left out …")
    click.echo(f"{line.at.isoformat(sep=' ', timespec='milliseconds')} {line.attempt} {line.level:<8} {shown(line.message)}")


@click.command("log")
@_id
@click.argument("message")
@click.option("--level", type=click.Choice(LEVELS), default="info", show_default=True, help="How much it matters.")
def log_command(*, identity: str, message: str, level: str) -> None:
    """Add a line to the log of a job that runs: for the programs that a task calls.

    \b
    Examples:
      bridge jobs log 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 'frame 200 of 900'
      bridge jobs log my-own-task-id 'no sound track' --level warning
    """
    with open_database("bridge jobs log") as connection:
        (job,) = by_ids(connection, [identity])
        notes.log(connection, job.id, message, level)


@click.command("progress")
@_id
@click.argument("fraction", type=click.FloatRange(0.0, 1.0))
@click.argument("message", default="")
def progress_command(*, identity: str, fraction: float, message: str) -> None:
    """Say how far a job that runs has come, from 0 to 1: for the programs that a task calls.

    \b
    Examples:
      bridge jobs progress 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 0.5 'half way'
    """
    with open_database("bridge jobs progress") as connection:
        (job,) = by_ids(connection, [identity])
        notes.progress(connection, job.id, fraction, message)


@click.command("checkpoint")
@_id
def checkpoint_command(*, identity: str) -> None:
    """Print, as JSON, what a job's next attempt would go on from; null when there is nothing.

    \b
    Examples:
      bridge jobs checkpoint 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
    """
    with open_database("bridge jobs checkpoint") as connection:
        (job,) = by_ids(connection, [identity])
        print_json(notes.checkpoint(connection, job.id))


@click.command("save-checkpoint")
@_id
@click.argument("data", metavar="JSON")
def save_checkpoint_command(*, identity: str, data: str) -> None:
    """Give a job another checkpoint, from which its next attempt goes on; null takes it away.

    \b
    Examples:
      bridge jobs save-checkpoint 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 '{"page": 41}'
    """
    with open_database("bridge jobs save-checkpoint") as connection:
        (job,) = by_ids(connection, [identity])
        notes.save_checkpoint(connection, job.id, json.dumps(_parsed(data)), None)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no JSON: {error}", param_hint="JSON") from None


COMMANDS = (logs_command, log_command, progress_command, checkpoint_command, save_checkpoint_command)
