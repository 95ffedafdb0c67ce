"""retries: list, set, remove."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from bridge import policies
from bridge.cli.database import open_database
from bridge.cli.tables import cell, dry_run_option, json_option, print_json, print_table, seconds
from bridge.cli.values import duration
from bridge.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["retries_command"]

_LIST = ("task", "queue", "max_attempts", "backoff", "retry_on", "never_on", "timeout", "soft_timeout", "deadline")


def backoff(text: str) -> Any:
    """Seconds, a list of them with commas, or a JSON object.

    Raises:
        click.BadParameter: it is something else.
    """
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not JSON: {error}") from error
    pauses = [duration(part.strip()) for part in text.split(",")]
    return pauses[0] if len(pauses) == 1 else pauses


def _whose(command: Callable[..., None]) -> Callable[..., None]:
    """The options that name a task or a queue."""
    for option in (click.option("--queue", "-Q", help="Whose policy: a queue's."), click.option("--task", help="Whose policy: a task's.")):
        command = option(command)
    return command


@click.group("retries", context_settings={"help_option_names": ["-h", "--help"]})
def retries_command() -> None:
    """Look at retry policies and set them: what jobs of a task or of a queue do when they fail, where they do not say it themselves.

    The database is BRIDGE_DATABASE_URL, else that of the stack that "bridge up" runs here.

    \b
    Examples:
      bridge retries list
      bridge retries set --task mail.send --max-attempts 5 --backoff 1m,5m,15m --never-on ValueError
      bridge retries remove --task mail.send
    """


@retries_command.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """List all policies; what one does not say is empty.

    \b
    Examples:
      bridge retries list
      bridge retries list --json | jq '.[] | select(.max_attempts == 1) | .task'
    """
    with open_database("bridge retries list") as connection:
        found = policies.retry_policies(connection=connection)
    if as_json:
        print_json([{name: seconds(value) for name, value in row.items()} for row in found])
    else:
        print_table(_LIST, [[_cell(row[name]) for name in _LIST] for row in found], keep=("task", "queue", "max_attempts"))


@retries_command.command("set")
@_whose
@click.option("--max-attempts", type=int, help="How often a job may fail; 1 = no retry.")
@click.option("--backoff", type=backoff, help='Wait between attempts: 30s, a list 1m,5m,15m, or {"base": 10, "factor": 2, "cap": 3600}.')
@click.option("--retry-on", multiple=True, help="Further attempts only after errors of this class; may be given more than once.")
@click.option("--never-on", multiple=True, help="No further attempt after errors of this class; may be given more than once.")
@click.option("--timeout", type=duration, help="Hard limit of one attempt: 90, 15m, 2h.")
@click.option("--soft-timeout", type=duration, help="Soft limit of one attempt.")
@click.option("--deadline", type=duration, help="Limit of all attempts, from when a job is due.")
@dry_run_option
@json_option
def set_command(*, retry_on: Sequence[str], never_on: Sequence[str], dry_run: bool, as_json: bool, **given: Any) -> None:
    """Make the policy of a task or of a queue, or give the one that is there these values: what is not named is not said by it.

    \b
    Examples:
      bridge retries set --task mail.send --max-attempts 5 --backoff 1m,5m,15m
      bridge retries set --queue slow --timeout 10m --deadline 2h
      bridge retries set --task pay --retry-on requests.exceptions.Timeout --dry-run
    """
    with open_database("bridge retries set") as connection, connection.transaction(force_rollback=dry_run):
        outcome = policies.set_retry(**given, retry_on=list(retry_on) or None, never_on=list(never_on) or None, connection=connection)
    _say(given["task"], given["queue"], outcome, dry_run=dry_run, as_json=as_json)


@retries_command.command("remove")
@_whose
@dry_run_option
@json_option
def remove_command(*, task: str | None, queue: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove the policy of a task or of a queue.

    \b
    Examples:
      bridge retries remove --task mail.send
      bridge retries remove --queue slow --dry-run
    """
    with open_database("bridge retries remove") as connection, connection.transaction(force_rollback=dry_run):
        if not policies.remove_retry(task, queue, connection=connection):
            raise NotFoundError(f"{_name(task, queue)} has no retry policy", '"bridge retries list" shows those that are there')
    _say(task, queue, "removed", dry_run=dry_run, as_json=as_json)


def _say(task: str | None, queue: str | None, outcome: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({"task": task, "queue": queue, "outcome": outcome})
    else:
        click.echo(f"{'dry run, nothing is changed: ' if dry_run else ''}{_name(task, queue)} {outcome}")


def _name(task: str | None, queue: str | None) -> str:
    return f"queue {queue}" if task is None else f"task {task}"


def _cell(value: Any) -> str:
    known = value is None or isinstance(value, str | timedelta)
    return cell(value) if known else json.dumps(value)
