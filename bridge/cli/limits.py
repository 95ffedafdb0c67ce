"""limits: list, keys, set, remove."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.database import open_database
from bridge.cli.tables import cell, dry_run_option, json_option, print_json, print_table, seconds
from bridge.cli.values import duration
from bridge.errors import NotFoundError
from bridge.gate import set_limit
from bridge.queries import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["limits_command"]

_LIST = ("name", "queue", "task", "key", "concurrency", "rate", "per", "burst", "keys", "in_use", "waiting", "waiting_since")
_KEYS = ("name", "key", "concurrency", "rate", "in_use", "waiting", "waiting_since", "tokens")


@click.group("limits", context_settings={"help_option_names": ["-h", "--help"]})
def limits_command() -> None:
    """Bound how many jobs run, or start, at once: by queue, by task, by a key from the arguments.

    The database is BRIDGE_DATABASE_URL, else that of the stack that "bridge up" runs here.

    \b
    Examples:
      bridge limits set mail --task 'mail.*' --rate 100 --per 1m
      bridge limits set tenants --key 'kwargs.tenant|args.0' --concurrency 5
      bridge limits list
    """


@limits_command.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """List all limits: what they say, what is in use of them and what waits.

    \b
    Examples:
      bridge limits list
      bridge limits list --json | jq '.[] | select(.waiting > 1000) | .name'
    """
    with open_database("bridge limits list") as connection:
        _print(_LIST, limits.limits(connection), as_json=as_json)


@limits_command.command("keys")
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many, those first that most wait for.")
@json_option
def keys_command(*, name: str | None, limit: int, as_json: bool) -> None:
    """List the keys of the limit NAME, or of all limits, and the serial keys, with what is in use and what waits.

    \b
    Examples:
      bridge limits keys tenants
      bridge limits keys --limit 10 --json
    """
    with open_database("bridge limits keys") as connection:
        _print(_KEYS, limits.keys(connection, name, limit), as_json=as_json)


@limits_command.command("set")
@click.argument("name")
@click.option("--queue", "-Q", default="*", show_default=True, help="Which queues: a name, or a pattern with * and ?.")
@click.option("--task", default="*", show_default=True, help="Which tasks, likewise.")
@click.option("--key", help="Count apart by queue, task, or a path: kwargs.tenant, args.0; several with | between them.")
@click.option("--concurrency", type=int, help="Most runs alive at once; 0 lets nothing through.")
@click.option("--rate", type=int, help="Most jobs published in each interval --per.")
@click.option("--per", type=duration, default="1", show_default=True, help="Seconds, or 15m, 2h.")
@click.option("--burst", type=int, help="How many may go at once after a rest.  [default: a tenth of a second's]")
@click.option("--fair", is_flag=True, help="Keys take turns, without any bound.")
@dry_run_option
@json_option
def set_command(*, as_json: bool, dry_run: bool, **given: Any) -> None:
    """Make a limit, or give the one of this NAME these values, all of them. What is in flight goes on, and counts.

    \b
    Examples:
      bridge limits set exports --queue exports --concurrency 2
      bridge limits set api --task 'shop.sync.*' --rate 600 --per 1m --burst 20
      bridge limits set tenants --key kwargs.tenant --fair
    """
    with open_database("bridge limits set") as connection, connection.transaction(force_rollback=dry_run):
        outcome = set_limit(connection=connection, **given)
    _say({"name": given["name"], "outcome": outcome}, as_json=as_json, dry_run=dry_run)


@limits_command.command("remove")
@click.argument("name")
@dry_run_option
@json_option
def remove_command(*, name: str, dry_run: bool, as_json: bool) -> None:
    """Remove a limit. What waited for it alone is due at once.

    \b
    Examples:
      bridge limits remove tenants
      bridge limits remove tenants --dry-run
    """
    with open_database("bridge limits remove") as connection, connection.transaction(force_rollback=dry_run):
        waiting = {limit.name: limit.waiting for limit in limits.limits(connection)}
        if not limits.remove_limit(connection, name):
            raise NotFoundError(f"limit {name!r} does not exist", '"bridge limits list" shows those that do')
    _say({"name": name, "outcome": "removed", "waiting": waiting[name]}, as_json=as_json, dry_run=dry_run)


def _say(result: dict[str, Any], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(result)
    else:
        what = " ".join(f"{name}={value}" if isinstance(value, int) else str(value) for name, value in result.items())
        click.echo(f"{'dry run, nothing is changed: ' if dry_run else ''}{what}")


def _print(names: Sequence[str], rows: Sequence[Any], *, as_json: bool) -> None:
    if as_json:
        print_json([{name: seconds(value) for name, value in dataclasses.asdict(row).items()} for row in rows])
    else:
        print_table(names, [[cell(getattr(row, name)) for name in names] for row in rows], keep=("name", "key"))
