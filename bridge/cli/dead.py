"""dead: list, show, redrive, discard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bridge import dead
from bridge.cli import job_text, steering
from bridge.cli.database import open_database
from bridge.cli.selection import by_ids, filter_of, filters, require_one_way, whoami
from bridge.cli.tables import json_option
from bridge.cli.values import Json, duration
from bridge.job import Status
from bridge.queries import selection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

__all__ = ["dead_command"]

_dry_run = click.option("--dry-run", is_flag=True, help="Print the jobs that are meant, and change nothing.")
_ids = click.argument("ids", metavar="ID...", nargs=-1)
_all = click.option("--all", "everything", is_flag=True, help="All dead letters.")
_note = click.option("--note", help="Why, for the history.")
_HOW = "give IDs, at least one filter, or --all"


@click.group("dead", context_settings={"help_option_names": ["-h", "--help"]})
def dead_command() -> None:
    """Look at dead letters, jobs whose last attempt failed, and redrive or discard them. An ID is a job's id or a Celery task id.

    The database is BRIDGE_DATABASE_URL, else that of the stack that "bridge up" runs here.

    \b
    Examples:
      bridge dead list --error TimeoutError
      bridge dead redrive 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 --kwargs '{"size": 10}'
      bridge dead redrive --task 'mail.*' --dry-run
    """


@dead_command.command("list")
@filters(default_limit=50)
@json_option
def list_command(*, as_json: bool, **chosen: Any) -> None:
    """List dead letters, the last that failed first.

    \b
    Examples:
      bridge dead list
      bridge dead list --task 'mail.*' --error 'smtplib.*' --since 1d
      bridge dead list --limit 1000 --json | jq '.[].error.message'
    """
    with open_database("bridge dead list") as connection:
        found = selection.find(connection, filter_of(chosen), dead.REDRIVE.statuses, dead=True)
    job_text.print_jobs(found, as_json=as_json)


@dead_command.command("show")
@click.argument("identity", metavar="ID")
@json_option
def show_command(*, identity: str, as_json: bool) -> None:
    """Show one job with all its attempts and what people did to it; the traceback of the last error comes at the end.

    \b
    Examples:
      bridge dead show 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge dead show my-own-task-id --json
    """
    with open_database("bridge dead show") as connection:
        steering.show(connection, identity, as_json=as_json)


@dead_command.command("redrive")
@_ids
@_all
@filters(default_limit=1000)
@click.option("--args", "new_args", type=Json(list, "ARRAY"), help="Other positional arguments, a JSON array.")
@click.option("--kwargs", "new_kwargs", type=Json(dict, "OBJECT"), help="Other keyword arguments, a JSON object.")
@click.option("--to-queue", help="Another queue.")
@click.option("--priority", type=click.IntRange(0, 9), help="Another priority; higher is sooner.")
@click.option("--delay", type=duration, help="Not at once: 90, 15m, 2h.")
@click.option(
    "--max-attempts", type=click.IntRange(1, 10_000), help="How often each may fail from now on; as often as at first by default."
)
@_note
@_dry_run
@json_option
def redrive_command(
    *, ids: Sequence[str], everything: bool, new_args: list[Any] | None, new_kwargs: dict[str, Any] | None, to_queue: str | None,
    priority: int | None, delay: float | None, max_attempts: int | None, note: str | None, dry_run: bool, as_json: bool, **chosen: Any,
) -> None:  # fmt: skip
    """Run dead letters again, under their ids, with all their attempts before. Old arguments stay readable in "bridge dead show".

    \b
    Examples:
      bridge dead redrive 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 --args '[3, "ada@example.org"]' --note 'typo in the address'
      bridge dead redrive --task 'mail.*' --error TimeoutError --since 1d --dry-run
      bridge dead redrive --all --limit 100 --delay 10m
    """
    require_one_way(ids, chosen, chosen=everything, how=_HOW)
    wanted = filter_of(chosen, everything=everything)
    named = {**dead.edits(new_args, new_kwargs, to_queue, priority, delay, max_attempts), "by": whoami(), "note": note}
    with open_database("bridge dead redrive") as connection:
        if not ids:
            steering.operate(connection, dead.REDRIVE, wanted, "redrive", dry_run=dry_run, as_json=as_json, **named)
            return
        meant = by_ids(connection, ids)
        if dry_run:
            job_text.print_jobs(meant, as_json=as_json)
            return
        done = steering.steer(meant, lambda job: Status(selection.redrive(connection, job, named)), {Status.QUEUED, Status.SCHEDULED})
    steering.report(done, "redrive", as_json=as_json)


@dead_command.command("discard")
@_ids
@_all
@filters(default_limit=1000)
@_note
@_dry_run
@click.option("--yes", is_flag=True, help="Do not ask, on a terminal either.")
@json_option
def discard_command(
    *, ids: Sequence[str], everything: bool, note: str | None, dry_run: bool, yes: bool, as_json: bool, **chosen: Any
) -> None:
    """Take jobs out of the dead letters. They stay failed and readable, with a note, and no redrive of many finds them.

    With filters instead of IDs, it asks before on a terminal.

    \b
    Examples:
      bridge dead discard 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 --note 'a test order'
      bridge dead discard --task report --finished-before 2031-01-01 --dry-run
      bridge dead discard --all --yes
    """
    require_one_way(ids, chosen, chosen=everything, how=_HOW)
    wanted = filter_of(chosen, everything=everything)
    named = {"by": whoami(), "note": note}

    with open_database("bridge dead discard") as connection:
        if not ids:
            steering.operate(connection, dead.DISCARD, wanted, "discard", dry_run=dry_run, as_json=as_json, ask=not yes, **named)
            return
        meant = by_ids(connection, ids)
        if dry_run:
            job_text.print_jobs(meant, as_json=as_json)
            return

        def discard(job: UUID) -> Status:
            selection.discard(connection, job, named)
            return Status.FAILED

        done = steering.steer(meant, discard, {Status.FAILED})
    steering.report(done, "discard", as_json=as_json)
