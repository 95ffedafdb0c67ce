"""jobs enqueue: one job from the words of a command, or many from lines of JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bridge import client
from bridge.cli.database import open_database
from bridge.cli.tables import print_json
from bridge.cli.values import Json, duration
from bridge.errors import InvalidArgumentError
from bridge.queries import bulk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import IO
    from uuid import UUID

__all__ = ["enqueue_command"]


_MOMENT = click.DateTime(["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M:%S%z", "%Y-%m-%dT%H:%M%z", "%Y-%m-%d %H:%M%z"])
_OPTIONS = (
    click.option("--args", type=Json(list, "JSON array"), help="Positional arguments, a JSON array."),
    click.option("--kwargs", type=Json(dict, "JSON object"), help="Keyword arguments, a JSON object."),
    click.option("--queue", "-Q", help="The Celery queue.  [default: celery]"),
    click.option("--priority", type=int, help="0 to 9, higher is sooner.  [default: 0]"),
    click.option("--run-at", type=_MOMENT, help="When it is due, with its offset: 2030-01-31T06:00+01:00."),
    click.option("--delay", type=duration, help="When it is due, from now: 90, 15m, 2h, 1d."),
    click.option("--max-attempts", type=int, help="How often it may fail; 1 = no retry."),
    click.option("--backoff", type=Json(object, "JSON"), help="Wait between attempts: 30, [60, 300] or an object."),
    click.option("--unique-key", help="At most one job has it."),
    click.option("--on-conflict", help="When another has it: skip, raise, replace, move, debounce."),
    click.option("--unique-until", help="When the key is free again: started or finished."),
    click.option("--unique-for", type=duration, help="How long the key is taken instead."),
    click.option("--depends-on", type=click.UUID, multiple=True, help="A job that must succeed first; may be given more than once."),
    click.option("--on-parent-failure", help="When such a job does not succeed: cancel, run or wait."),
    click.option("--batch", type=click.UUID, help="The batch that it belongs to."),
    click.option("--timeout", type=duration, help="Hard limit of one attempt."),
    click.option("--soft-timeout", type=duration, help="Soft limit of one attempt."),
    click.option("--deadline", type=duration, help="Limit of all attempts, from when it is due."),
    click.option("--expires-at", type=_MOMENT, help="Not started by then, it ends as expired."),
    click.option("--headers", type=Json(dict, "JSON object"), help="Further headers of the message, a JSON object."),
    click.option("--serial-key", help="Jobs of one key run one at a time."),
    click.option("--retry-on", multiple=True, help="A class of errors to retry after; may be given more than once."),
    click.option("--never-on", multiple=True, help="A class of errors never to retry after; may be given more than once."),
    click.option("--webhook", help="An address that its end is posted to."),
)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("enqueue")
@click.argument("task", required=False)
@_options
@click.option("--many", type=click.File(encoding="utf-8"), help="A file of jobs, or - for standard input: a JSON object a line.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of ids.")
def enqueue_command(*, task: str | None, many: IO[str] | None, as_json: bool, **given: Any) -> None:
    """Make one job of a task, or with --many all jobs of a file or none; print their ids.

    A line of the file is an object by the argument names of bridge.enqueue, {"task": "mail.send", "args": [1]}; durations are seconds, and
    depends_on may name earlier lines by their number, from 0.

    \b
    Examples:
      bridge jobs enqueue mail.send --args '[7]' --delay 15m
      bridge jobs enqueue shop.reindex --unique-key 'reindex 7' --on-conflict debounce --delay 30
      bridge jobs enqueue --many jobs.jsonl
      zcat jobs.jsonl.gz | bridge jobs enqueue --many -
    """
    asked = {name: value for name, value in given.items() if value not in (None, ())}
    if (task is None) == (many is None) or (many is not None and asked):
        raise click.UsageError("name a task and its options, or give --many and nothing else")
    with open_database("bridge jobs enqueue") as connection:
        if many is not None:
            ids: Sequence[UUID] = bulk.enqueue_many(connection, _shown(many), own=True)
        else:
            ids = [client.enqueue(str(task), asked.pop("args", ()), asked.pop("kwargs", None), connection=connection, **asked)]
    if as_json:
        print_json(list(ids))
        return
    for identity in ids:
        click.echo(identity)
    if many is not None:
        click.echo(f"enqueue: {len(ids)} jobs", err=True)


def _shown(lines: IO[str]) -> Iterator[dict[str, Any]]:
    """The jobs of a file, while a terminal is told how far it is."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} jobs"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _job(lines.name, number, line)
                progress.advance(task)


def _job(name: str, number: int, line: str) -> dict[str, Any]:
    try:
        job = json.loads(line)
    except ValueError as error:
        raise InvalidArgumentError(f"line {number} of {name} is no JSON: {error}", "give a JSON object a line") from error
    if not isinstance(job, dict):
        raise InvalidArgumentError(f"line {number} of {name} is a JSON {type(job).__name__}", "give a JSON object a line")
    return job
