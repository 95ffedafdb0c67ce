"""breakers: list, log, set, reset, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bridge import circuit as public
from bridge.cli.database import open_database
from bridge.cli.tables import cell, json_option, print_json, print_table, seconds, status_text
from bridge.cli.values import duration
from bridge.queries import breakers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


__all__ = ["breakers_command"]

_LIST = ("kind", "name", "state", "changed_at", "reason", "half_open_at", "ratio", "minimum", "within", "cooldown", "probes")
_LOG = ("at", "kind", "name", "state", "reason", "by")


def _which(command: Callable[..., None]) -> Callable[..., None]:
    """The words that say whose breaker is meant."""
    for option in (
        click.option("--task", help="That of a task, by its full name."),
        click.option("--queue", "-Q", help="That of a queue."),
    ):
        command = option(command)
    return command


def _require_one(queue: str | None, task: str | None) -> dict[str, Any]:
    if (queue is None) == (task is None):
        raise click.UsageError("which? give --queue NAME or --task NAME")
    return {"queue": queue} if queue is not None else {"task": task}


@click.group("breakers", context_settings={"help_option_names": ["-h", "--help"]})
def breakers_command() -> None:
    """Look at circuit breakers and steer them: queues and tasks that are held back by themselves while too many attempts fail.

    The database is BRIDGE_DATABASE_URL, else that of the stack that "bridge up" runs here.

    \b
    Examples:
      bridge breakers list
      bridge breakers set --task mail.send --ratio 0.5 --minimum 20 --within 5m --cooldown 1m
      bridge breakers reset --task mail.send
    """


@breakers_command.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """List all breakers with their state, since when and why.

    \b
    Examples:
      bridge breakers list
      bridge breakers list --json | jq '.[] | select(.state != "closed") | .name'
    """
    with open_database("bridge breakers list") as connection:
        _print(_LIST, breakers.breakers(connection), as_json=as_json)


@breakers_command.command("log")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most changes.")
@json_option
def log_command(*, limit: int, as_json: bool) -> None:
    """List changes of state, the last first: when, why, and by whom.

    \b
    Example:
      bridge breakers log --limit 10
    """
    with open_database("bridge breakers log") as connection:
        _print(_LOG, breakers.changes(connection, limit), as_json=as_json)


@breakers_command.command("set")
@_which
@click.option("--ratio", type=float, default=0.5, show_default=True, help="It opens when this part of all attempts has failed,")
@click.option("--minimum", type=int, default=20, show_default=True, help="of at least so many,")
@click.option("--within", type=duration, default="5m", show_default=True, help="that ended within this last while.")
@click.option("--cooldown", type=duration, default="1m", show_default=True, help="So long after it opened, probes are let out.")
@click.option("--probes", type=int, default=1, show_default=True, help="When so many have succeeded it closes.")
@json_option
def set_command(*, queue: str | None, task: str | None, as_json: bool, **numbers: Any) -> None:
    """Make a breaker, or give the one that is there these numbers; its state stays.

    \b
    Examples:
      bridge breakers set --queue mail
      bridge breakers set --task mail.send --ratio 0.2 --minimum 50 --within 10m --cooldown 5m --probes 3
    """
    which = _require_one(queue, task)
    with open_database("bridge breakers set") as connection:
        outcome = public.set_breaker(**which, **numbers, connection=connection)
    _say(which, outcome, as_json=as_json)


@breakers_command.command("reset")
@_which
@json_option
def reset_command(*, queue: str | None, task: str | None, as_json: bool) -> None:
    """Close a breaker by hand; what failed before counts no more.

    \b
    Example:
      bridge breakers reset --queue mail
    """
    which = _require_one(queue, task)
    with open_database("bridge breakers reset") as connection:
        before = public.reset_breaker(**which, connection=connection)
    _say(which, f"was {before}", as_json=as_json)


@breakers_command.command("remove")
@_which
@json_option
def remove_command(*, queue: str | None, task: str | None, as_json: bool) -> None:
    """Remove a breaker; what it held goes on.

    \b
    Example:
      bridge breakers remove --queue mail
    """
    which = _require_one(queue, task)
    with open_database("bridge breakers remove") as connection:
        outcome = "removed" if public.remove_breaker(**which, connection=connection) else "was not there"
    _say(which, outcome, as_json=as_json)


def _say(which: dict[str, Any], outcome: str, *, as_json: bool) -> None:
    if as_json:
        print_json({**which, "outcome": outcome})
    else:
        click.echo(" ".join([*(f"{kind} {name}" for kind, name in which.items()), outcome]))


def _print(names: Sequence[str], rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json([{name: seconds(value) for name, value in row.items()} for row in rows])
    else:
        print_table(names, [[status_text(cell(row[name])) for name in names] for row in rows], keep=("kind", "name", "state"))
