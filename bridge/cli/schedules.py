"""schedules: list, show, add, remove, pause, resume, run, next; import, history, stats, slow and too-often are next door."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from bridge import schedules as public
from bridge.cli import schedule_import, schedule_log, schedule_text
from bridge.cli.database import open_database
from bridge.cli.tables import dry_run_option, json_option, print_json
from bridge.cli.values import Json, duration
from bridge.errors import NotFoundError
from bridge.queries import schedules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.queries.connection import Connection

__all__ = ["schedules_command"]


_name = click.argument("name")


@contextmanager
def _changes(command: str, *, dry_run: bool) -> Iterator[Connection]:
    """A transaction on the database; nothing of it stays in a dry run."""
    with open_database(f"bridge schedules {command}") as connection, connection.transaction(force_rollback=dry_run):
        yield connection


def _say(result: dict[str, Any], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(result)
    else:
        what = " ".join(str(value) for value in result.values() if value is not None)
        click.echo(f"{'dry run, nothing is changed: ' if dry_run else ''}{what}")


@click.group("schedules", context_settings={"help_option_names": ["-h", "--help"]})
def schedules_command() -> None:
    """Look at schedules and steer them: rows that the tick makes jobs of when they are due.

    The database is BRIDGE_DATABASE_URL, else that of the stack that "bridge up" runs here.

    \b
    Examples:
      bridge schedules list
      bridge schedules add report "0 6 * * mon-fri" shop.report --timezone Europe/Berlin
      bridge schedules import --from-beat -A shop --dry-run
    """


@schedules_command.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """List all schedules by name, with their next and their last run.

    \b
    Examples:
      bridge schedules list
      bridge schedules list --json | jq '.[] | select(.last_status == "failed") | .name'
    """
    with open_database("bridge schedules list") as connection:
        schedule_text.print_schedules(schedules.find(connection), as_json=as_json)


@schedules_command.command("show")
@_name
@click.option("--runs", type=click.IntRange(0, 10_000), default=10, show_default=True, help="How many of its last runs.")
@json_option
def show_command(*, name: str, runs: int, as_json: bool) -> None:
    """Show one schedule with its last runs.

    \b
    Examples:
      bridge schedules show report
      bridge schedules show report --runs 100 --json
    """
    with open_database("bridge schedules show") as connection:
        row = schedules.get(connection, name)
        schedule_text.print_schedule(row, schedules.runs(connection, name, runs), as_json=as_json)


@schedules_command.command("add")
@_name
@click.argument("cron")
@click.argument("task", required=False)
@click.option("--function", help="Instead of TASK: a function of the database, public.reset; no worker is needed.")
@click.option("--webhook", metavar="URL", help="Instead of TASK: an address that schedule and slot are posted to.")
@click.option("--secret", metavar="NAME", help="Of --webhook: the name of the secret that signs.  [default: default]")
@click.option("--args", type=Json(list, "ARRAY"), default="[]", help="Its positional arguments, a JSON array.")
@click.option("--kwargs", type=Json(dict, "OBJECT"), default="{}", help="Its keyword arguments, a JSON object.")
@click.option("--timezone", default="UTC", show_default=True, help="Whose clock CRON is read by.")
@click.option("--queue", "-Q", default="celery", show_default=True, help="The queue of its jobs.")
@click.option("--priority", type=int, default=0, show_default=True, help="0 to 9, higher is sooner.")
@click.option("--max-attempts", type=int, help="How often a job may fail; 1 = no retry.  [default: by retry policy, else 3]")
@click.option("--timeout", type=duration, help="Hard limit of one attempt: 90, 15m, 2h.")
@click.option("--expires", type=duration, help="A job not started so long after it was due ends as expired.")
@click.option("--jitter", type=duration, default="0", help="Each job is due up to so much later, by chance.")
@click.option("--starts-at", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]), help="No slot before: 2031-01-01T00:00:00+01:00.")
@click.option("--ends-at", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]), help="No slot after.")
@click.option("--overlap", default="allow", show_default=True, help="While a run has not ended: allow, skip, queue_one, cancel_old.")
@click.option("--missed", default="once", show_default=True, help="Slots that passed while nothing ticked: skip, once, all.")
@click.option("--missed-within", type=duration, default="7d", show_default=True, help="What is longer ago is not made up for.")
@click.option("--expected-duration", type=duration, help="A run that takes longer is slow.  [default: learnt from its runs]")
@dry_run_option
@json_option
def add_command(*, secret: str | None, as_json: bool, dry_run: bool, **given: Any) -> None:
    """Make a schedule, or give the one of this NAME these values. A pause stays as it is.

    CRON is five fields, @hourly and its like, or an interval; TASK the registered name of a Celery task. With --function or --webhook
    there is no TASK.

    \b
    Examples:
      bridge schedules add report "0 6 * * mon-fri" shop.report --timezone Europe/Berlin --overlap skip
      bridge schedules add sync "every 15 minutes" shop.sync --args '["all"]' --expires 10m
      bridge schedules add close "0 0 L * *" shop.close --dry-run
      bridge schedules add reset "@daily" --function public.reset_daily_challenges --timeout 5m
      bridge schedules add ping "@hourly" --webhook https://hooks.example.org/ping --secret partner
    """
    if secret is not None:
        if given["webhook"] is None:
            raise click.UsageError("--secret goes with --webhook")
        given["webhook"] = {"url": given["webhook"], "secret": secret}
    with _changes("add", dry_run=dry_run) as connection:
        outcome = public.schedule(connection=connection, **given)
        next_run = schedules.get(connection, given["name"])["next_run"]
    _say({"name": given["name"], "outcome": outcome, "next_run": next_run}, as_json=as_json, dry_run=dry_run)


@schedules_command.command("remove")
@_name
@dry_run_option
@json_option
def remove_command(*, name: str, dry_run: bool, as_json: bool) -> None:
    """Remove a schedule. Jobs that it made go on, the log of its runs stays.

    \b
    Examples:
      bridge schedules remove report
      bridge schedules remove report --dry-run
    """
    with _changes("remove", dry_run=dry_run) as connection:
        if not schedules.unschedule(connection, name):
            raise NotFoundError(f"schedule {name!r} does not exist", '"bridge schedules list" shows those that do')
    _say({"name": name, "outcome": "removed"}, as_json=as_json, dry_run=dry_run)


@schedules_command.command("pause")
@_name
@dry_run_option
@json_option
def pause_command(*, name: str, dry_run: bool, as_json: bool) -> None:
    """Let a schedule make no jobs until it is resumed.

    \b
    Example:
      bridge schedules pause report
    """
    with _changes("pause", dry_run=dry_run) as connection:
        schedules.pause(connection, name)
    _say({"name": name, "outcome": "paused"}, as_json=as_json, dry_run=dry_run)


@schedules_command.command("resume")
@_name
@dry_run_option
@json_option
def resume_command(*, name: str, dry_run: bool, as_json: bool) -> None:
    """End a pause; what fell into it does not run.

    \b
    Example:
      bridge schedules resume report
    """
    with _changes("resume", dry_run=dry_run) as connection:
        next_run = schedules.resume(connection, name)
    _say({"name": name, "outcome": "resumed", "next_run": next_run}, as_json=as_json, dry_run=dry_run)


@schedules_command.command("run")
@_name
@dry_run_option
@json_option
def run_command(*, name: str, dry_run: bool, as_json: bool) -> None:
    """Run a schedule now, whatever its time; its slots stay as they are.

    \b
    Example:
      bridge jobs wait $(bridge schedules run report --json | jq -r .job)
    """
    with _changes("run", dry_run=dry_run) as connection:
        job = schedules.run(connection, name)
    _say({"name": name, "outcome": "job", "job": job}, as_json=as_json, dry_run=dry_run)


@schedules_command.command("next")
@click.argument("name", required=False)
@click.option("--cron", help="An expression, instead of a schedule's NAME.")
@click.option("--timezone", default="UTC", show_default=True, help="Whose clock --cron is read by.")
@click.option("-n", "count", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many.")
@json_option
def next_command(*, name: str | None, cron: str | None, timezone: str, count: int, as_json: bool) -> None:
    """Say when a schedule, or an expression, is due next.

    \b
    Examples:
      bridge schedules next report -n 10
      bridge schedules next --cron "0 9 1-7 * &mon" --timezone Europe/Berlin
    """
    if (name is None) == (cron is None):
        raise click.UsageError('name a schedule, or give an expression: bridge schedules next --cron "0 6 * * *"')
    with open_database("bridge schedules next") as connection:
        if name is None:
            moments = schedules.next_runs(connection, str(cron), timezone, count, None)
        else:
            try:
                timezone = schedules.get(connection, name)["timezone"]
            except NotFoundError as error:
                raise NotFoundError(error.args[0], f"{error.hint}; an expression stands behind --cron") from None
            moments = schedules.next_runs_of(connection, name, count)
    schedule_text.print_moments([moment.astimezone(ZoneInfo(timezone)) for moment in moments], as_json=as_json)


for _command in (*schedule_log.COMMANDS, schedule_import.import_command):
    schedules_command.add_command(_command)
