"""schedules import: what another scheduler has, entry by entry, with what cannot be carried over and why."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

from bridge import schedules as public
from bridge import settings
from bridge.cli import schedule_text
from bridge.cli.database import open_database
from bridge.cli.tables import json_option
from bridge.errors import BridgeError, InvalidArgumentError
from bridge.moving import crontab, pgcron
from bridge.queries import moving
from bridge.queries.connection import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bridge.moving.entry import Entry
    from bridge.queries.connection import Connection

    Read = Callable[[Connection, Connection], list[Entry]]

__all__ = ["import_command"]

_LEFT = "not carried over"
_STOP = {
    "beat": "while celery beat runs with these entries, each of them runs twice: take them out of beat_schedule",
    "django": "while celery beat runs with these entries, each of them runs twice: stop it, or disable them in its tables",
    "crontab": "while these lines are in the crontab, each of them runs twice: take them out",
}


class _Mapped(click.ParamType):  # type: ignore[type-arg]
    """A pattern of commands and the task that they go to."""

    name = "PATTERN=NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Split at the last =."""
        pattern, _, task = str(value).rpartition("=")
        if not pattern or not task:
            self.fail(f"{value!r} is no PATTERN=NAME, such as '/usr/bin/backup*=shop.backup'", param, ctx)
        return pattern, task


@click.command("import")
@click.option("--from-beat", is_flag=True, help="From the beat_schedule of a Celery application.")
@click.option(
    "--from-crontab", type=click.File(encoding="utf-8"), metavar="FILE", help="From the lines of a crontab; - reads crontab -l from a pipe."
)
@click.option("--from-cron", is_flag=True, help="From the entries of pg_cron for this database.")
@click.option("--from-django", is_flag=True, help="From the tables of django-celery-beat.")
@click.option("-A", "--app", help="The application; celery -A app bridge … has it already.")
@click.option("--timezone", help="Whose clock crontabs are read by.  [default: what goes for each there]")
@click.option("--task", help="Of --from-crontab: the task that is called with a command as its one argument.")
@click.option(
    "--map", "mapping", multiple=True, type=_Mapped(), help="Of --from-crontab: a task for the commands of a pattern; repeatable."
)
@click.option("--queue", "-Q", default="celery", show_default=True, help="Of --from-crontab: the queue of its jobs.")
@click.option("--system", is_flag=True, help="Of --from-crontab: a column has the user, as in /etc/crontab.")
@click.option("--disable", is_flag=True, help="Of --from-cron: switch what was carried over off there.")
@click.option("--source-url", metavar="URL", help="Where pg_cron or those tables are, if not in the bridge's database.")
@click.option("--dry-run", is_flag=True, help="Say what would be, and change nothing.")
@json_option
@click.pass_context
def import_command(ctx: click.Context, /, *, disable: bool, source_url: str | None, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Make schedules of what another scheduler has; repeating it changes nothing. Exit 1 when something was not carried over.

    \b
    Examples:
      bridge schedules import --from-beat -A shop --dry-run
      celery -A shop bridge schedules import --from-beat
      crontab -l | bridge schedules import --from-crontab - --task shop.run_command
      bridge schedules import --from-cron --disable
      bridge schedules import --from-django -A shop --dry-run
    """
    kind, read = _reader(ctx, given)
    if disable and kind != "cron":
        raise click.UsageError("--disable goes with --from-cron")
    if kind != "crontab" and (given["task"] or given["mapping"] or given["system"]):
        raise click.UsageError("--task, --map and --system go with --from-crontab")
    with open_database("bridge schedules import") as connection, _source(source_url, connection) as source:
        with connection.transaction(force_rollback=dry_run):
            entries = read(connection, source)
            rows = [_carry_over(connection, entry) for entry in entries]
            running = {entry.job: row for entry, row in zip(entries, rows, strict=True) if entry.job and row["outcome"] != _LEFT}
            if disable and source is connection:
                running = _switch_off(source, running)
        if disable and source is not connection:
            with source.transaction(force_rollback=dry_run):
                running = _switch_off(source, running)
    schedule_text.print_imported(rows, as_json=as_json)
    left = sum(row["outcome"] == _LEFT for row in rows)
    click.echo(f"{'dry run, nothing is changed: ' if dry_run else ''}{len(rows) - left} of {len(rows)} entries carried over", err=True)
    _warn(kind, rows, running, left)
    sys.exit(1 if left or (disable and running) else 0)


def _reader(ctx: click.Context, given: dict[str, Any]) -> tuple[str, Read]:
    """From where, and what reads the entries there on a connection of ours and one of the source."""
    chosen = [name for name in ("beat", "crontab", "cron", "django") if given[f"from_{name}"]]
    app = given["app"] or getattr(ctx.find_root().obj, "app", None)
    if len(chosen) != 1 or (chosen == ["beat"] and app is None):
        raise click.UsageError("from where? bridge schedules import --from-beat -A APP, --from-crontab FILE, --from-cron or --from-django")
    if chosen in (["beat"], ["django"]):
        return chosen[0], _from_celery(chosen[0], app, given["timezone"])
    if chosen == ["cron"]:
        return "cron", lambda connection, source: _from_cron(connection, source, given["timezone"])
    return "crontab", lambda connection, _source: _from_crontab(connection, given["from_crontab"], given)


def _from_celery(kind: str, app: Any, timezone: str | None) -> Read:
    from bridge import beat, periodic  # here, because Celery takes half a second that no other command pays

    known = beat.application(app) if isinstance(app, str) else app
    if kind == "django":
        return lambda _connection, source: periodic.entries(moving.periodic_tasks(source), known, timezone=timezone)
    found = beat.entries(known, timezone=timezone)
    return lambda _connection, _source: found


def _from_cron(connection: Connection, source: Connection, timezone: str | None) -> list[Entry]:
    rows = moving.cron_entries(source, moving.here(connection)["dbname"])
    return pgcron.entries(rows, moving.Functions(connection), timezone or moving.cron_zone(source))


def _from_crontab(connection: Connection, file: TextIO, given: dict[str, Any]) -> list[Entry]:
    target = crontab.Target(given["task"], given["mapping"], moving.here(connection), moving.Functions(connection), given["queue"])
    try:
        text = file.read()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{file.name} is not in UTF-8: byte {error.start}: {error.reason}", "convert it with iconv") from error
    return crontab.entries(text, target, timezone=given["timezone"] or crontab.local_zone(), is_system=given["system"])


@contextmanager
def _source(url: str | None, connection: Connection) -> Iterator[Connection]:
    if url is None:
        yield connection
        return
    with connect(url, name="bridge schedules import", timeout=settings.load().timeout) as other:
        yield other


def _carry_over(connection: Connection, entry: Entry) -> dict[str, Any]:
    row = {"name": entry.name, "outcome": _LEFT, "cron": None, "timezone": None, "task": None, "note": entry.refusal}
    if entry.schedule is None:
        return row
    given = dict(entry.schedule)
    row |= {"cron": given["cron"], "timezone": given["timezone"], "task": given.get("task") or f"function {given['function']}"}
    try:
        with connection.transaction():
            if "enabled" in given and moving.is_made(connection, entry.name):
                del given["enabled"]  # what an operator paused or resumed since stays
            with moving.acting_as(connection, entry.role):
                row["outcome"] = public.schedule(entry.name, connection=connection, **given)
    except BridgeError as refusal:
        return {**row, "note": entry.located(str(refusal))}
    return {**row, "note": "; ".join(entry.notes)}


def _switch_off(source: Connection, running: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Switch entries of pg_cron off; those that stay on, with what to run there in their notes."""
    still: dict[int, dict[str, Any]] = {}
    for job, row in running.items():
        refusal = moving.switch_off(source, job)
        said = f"still on in pg_cron ({refusal}): as its owner, {_statement(job)}" if refusal else "switched off in pg_cron"
        row["note"] = "; ".join(filter(None, [row["note"], said]))
        still |= {job: row} if refusal else {}
    return still


def _statement(job: int) -> str:
    return f"select cron.alter_job({job}, active => false)"


def _warn(kind: str, rows: list[dict[str, Any]], running: dict[int, dict[str, Any]], left: int) -> None:
    if kind in _STOP and len(rows) > left:
        click.echo(f"warning: {_STOP[kind]}", err=True)
    elif running:
        click.echo("warning: each of these runs twice while it is on in pg_cron; --disable switches them off, or", err=True)
        for job in running:
            click.echo(f"  {_statement(job)};", err=True)
