"""cleanup: do it; log, advice, retention, archive."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from bridge import retention as public
from bridge.cli.database import open_database
from bridge.cli.tables import cell, json_option, print_json, print_table, seconds, status_text
from bridge.cli.values import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["cleanup_command"]

_TABLES = ("operation", "table_name", "status", "found", "deleted", "kept", "archived", "detail")
_LOG = ("id", "at", "by", "duration", *_TABLES)
_RULES = ("about", "queue", "status", "keep", "changed_at")
_ADVICE = ("severity", "kind", "found", "remedy")
_STATUSES = click.Choice(["succeeded", "failed", "cancelled", "expired"])
_SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.group("cleanup", context_settings=_SETTINGS, invoke_without_command=True)
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@json_option
@click.pass_context
def cleanup_command(context: click.Context, *, dry_run: bool, as_json: bool) -> None:
    """Take away all whose time is over: ended jobs by their retention, old logs, results that have expired.

    It goes in batches, each committed by itself; it may be broken off, and repeated, at any time. pg_cron does the same every night, a
    drainer's tick where there is none. The exit code is 1 when something failed.

    \b
    Examples:
      bridge cleanup --dry-run
      bridge cleanup
      bridge cleanup log
      bridge cleanup retention set --queue noisy --keep 1d
    """
    if context.invoked_subcommand is not None:
        return
    with open_database("bridge cleanup") as connection:
        rows = public.cleanup(dry_run=dry_run, progress=_show if sys.stderr.isatty() else None, connection=connection)
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)
    if rows or as_json:
        _print(_TABLES, rows, as_json=as_json, keep=("table_name",))
    else:
        click.echo("nothing to do")
    if any(row["status"] == "failed" for row in rows):
        context.exit(1)


def _show(now: dict[str, Any]) -> None:
    click.echo(f"\r\x1b[K{now['left']} to do; {now['operation']} {now['table_name']}: {now['rows']} rows", err=True, nl=False)


@cleanup_command.command("log")
@click.argument("number", type=int, required=False)
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most rows.")
@json_option
def log_command(*, number: int | None, limit: int, as_json: bool) -> None:
    """List the last cleanups, newest first; with the NUMBER (id) of one, what it did in each table.

    \b
    Examples:
      bridge cleanup log
      bridge cleanup log 4711 --json
    """
    with open_database("bridge cleanup log") as connection:
        _print(_LOG, public.cleanups(number, limit=limit, connection=connection), as_json=as_json)


@cleanup_command.command("advice")
@json_option
def advice_command(*, as_json: bool) -> None:
    """Say what the database needs: what holds dead rows, indexes to rebuild, storage settings, cleanups that failed; each with a command.

    \b
    Examples:
      bridge cleanup advice
      bridge cleanup advice --json | jq -r '.[].remedy'
    """
    with open_database("bridge cleanup advice") as connection:
        rows = public.upkeep(connection=connection)
    if rows or as_json:
        _print(_ADVICE, rows, as_json=as_json, keep=("severity", "kind"))
    else:
        click.echo("nothing to do")


@cleanup_command.group("retention", context_settings=_SETTINGS)
def retention_command() -> None:
    """How long ended jobs are kept, by queue and status; the rule for both counts, else that for the queue, else that for the status."""


@retention_command.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """List the rules, the most special first; the last two are the settings.

    \b
    Example:
      bridge cleanup retention list
    """
    with open_database("bridge cleanup retention list") as connection:
        _print(_RULES, public.retentions(connection=connection), as_json=as_json, keep=("about", "queue", "status"))


@retention_command.command("set")
@click.option("--queue", "-Q", help="Ended jobs of this queue.")
@click.option("--status", type=_STATUSES, help="Jobs that ended so; failed means dead letters, which other rules are not about.")
@click.option("--keep", type=duration, help="So long after their end, as 12h or 90d. Without it as long as without a rule.")
@json_option
def set_command(*, queue: str | None, status: str | None, keep: float | None, as_json: bool) -> None:
    """Make a rule, or change it.

    \b
    Examples:
      bridge cleanup retention set --queue noisy --keep 1d
      bridge cleanup retention set --queue billing --status failed --keep 365d
    """
    with open_database("bridge cleanup retention set") as connection:
        outcome = public.set_retention(queue, status=status, keep=keep, connection=connection)
    _say({"queue": queue, "status": status, "keep": keep, "outcome": outcome}, as_json=as_json)


@retention_command.command("remove")
@click.option("--queue", "-Q", help="The rule of this queue.")
@click.option("--status", type=_STATUSES, help="The rule of this status.")
@json_option
def remove_command(*, queue: str | None, status: str | None, as_json: bool) -> None:
    """Take a rule away.

    \b
    Example:
      bridge cleanup retention remove --queue noisy
    """
    with open_database("bridge cleanup retention remove") as connection:
        outcome = "removed" if public.remove_retention(queue, status=status, connection=connection) else "was not there"
    _say({"queue": queue, "status": status, "outcome": outcome}, as_json=as_json)


@cleanup_command.group("archive", context_settings=_SETTINGS)
def archive_command() -> None:
    """Copy ended jobs to a table before they go."""


@archive_command.command("set")
@click.argument("table")
@click.option("--create", is_flag=True, help="Make the table first, or give it the columns that it lacks, with this role's rights.")
@json_option
def archive_set_command(*, table: str, create: bool, as_json: bool) -> None:
    """Copy ended jobs to TABLE (schema.table), which has the columns of bridge.finished.

    \b
    Example:
      bridge cleanup archive set history.jobs --create
    """
    with open_database("bridge cleanup archive set") as connection:
        name = public.create_archive(table, connection=connection) if create else table
        outcome = public.set_archive(name, connection=connection)
    _say({"archive": name, "outcome": outcome}, as_json=as_json)


@archive_command.command("remove")
@json_option
def archive_remove_command(*, as_json: bool) -> None:
    """Copy ended jobs nowhere any more; the table stays.

    \b
    Example:
      bridge cleanup archive remove
    """
    with open_database("bridge cleanup archive remove") as connection:
        outcome = public.set_archive(None, connection=connection)
    _say({"archive": None, "outcome": outcome}, as_json=as_json)


def _say(said: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(said)
        return
    outcome = said.pop("outcome")
    click.echo(" ".join([*(f"{name} {value}" for name, value in said.items() if value is not None and name != "keep"), outcome]))


def _print(names: Sequence[str], rows: Sequence[dict[str, Any]], *, as_json: bool, keep: Sequence[str] = ("id", "table_name")) -> None:
    if as_json:
        print_json([{name: seconds(value) for name, value in row.items()} for row in rows])
    else:
        print_table(names, [[status_text(cell(row[name])) for name in names] for row in rows], keep=keep)
