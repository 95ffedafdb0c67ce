"""jobs, of changes before they start: set-priority, move, reschedule."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from bridge import changes as public
from bridge.asked import interval
from bridge.cli import job_text, steering
from bridge.cli.database import open_database
from bridge.cli.selection import by_ids, filter_of, filters, require_one_way
from bridge.cli.tables import json_option
from bridge.cli.values import duration
from bridge.job import Status
from bridge.queries import changes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from bridge.bulk import Operation
    from bridge.queries.connection import Connection

__all__ = ["COMMANDS"]

_DONE = {Status.BLOCKED, Status.SCHEDULED, Status.QUEUED, Status.PUBLISHED}


def _chosen(command: Callable[..., None]) -> Callable[..., None]:
    """The words that choose jobs, the same for all three: ids, or the filter of those that have not started."""
    for option in (
        json_option,
        click.option("--dry-run", is_flag=True, help="Print the jobs that are meant, and change nothing."),
        filters(default_limit=1000, statuses=public.MOVE.statuses),
        click.option("--all", "everything", is_flag=True, help="All that have not started."),
        click.argument("ids", metavar="[ID]...", nargs=-1),
    ):
        command = option(command)
    return command


def _change(
    operation: Operation, verb: str, act: Callable[[Connection, UUID], Status], how: dict[str, Any], *,
    ids: Sequence[str], everything: bool, dry_run: bool, as_json: bool, **chosen: Any,
) -> None:  # fmt: skip
    """Change the jobs that are named, or those that a filter chooses."""
    require_one_way(ids, chosen, chosen=everything, how="give IDs, at least one filter, or --all")
    wanted = filter_of(chosen, everything=everything)
    with open_database(f"bridge jobs {verb}") as connection:
        if not ids:
            steering.operate(connection, operation, wanted, verb, dry_run=dry_run, as_json=as_json, **how)
            return
        meant = by_ids(connection, ids)
        if dry_run:
            job_text.print_jobs(meant, as_json=as_json)
            return
        done = steering.steer(meant, lambda job: act(connection, job), _DONE)
    steering.report(done, verb, as_json=as_json)


@click.command("set-priority")
@click.option("--priority", type=click.IntRange(0, 9), required=True, help="0 to 9, higher is sooner.")
@_chosen
def set_priority_command(*, priority: int, **given: Any) -> None:
    """Give jobs that have not started another priority, also those that are published already. Exit 1 when an ID had started.

    \b
    Examples:
      bridge jobs set-priority 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 --priority 9
      bridge jobs set-priority --task 'mail.*' --with-kwargs '{"tenant": 3}' --priority 0 --dry-run
    """

    def act(connection: Connection, job: UUID) -> Status:
        return changes.set_priority(connection, job, priority)

    _change(public.SET_PRIORITY, "set-priority", act, {"priority": priority}, **given)


@click.command("move")
@click.option("--to", "target", required=True, help="The queue to move them to.")
@_chosen
def move_command(*, target: str, **given: Any) -> None:
    """Move jobs that have not started to another queue, also those that are published already. Exit 1 when an ID had started.

    \b
    Examples:
      bridge jobs move 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 --to bulk
      bridge jobs move --queue mail --task 'mail.newsletter' --to bulk --limit 100000
    """

    def act(connection: Connection, job: UUID) -> Status:
        return changes.move(connection, job, target)

    # The filter has a queue of its own: which jobs.
    _change(public.MOVE, "move", act, {"queue": target}, **given)


@click.command("reschedule")
@click.option("--run-at", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S"]), help="When they are due; UTC without a zone.")
@click.option("--delay", type=duration, help="They are due so long from now: 0 is at once, 90, 15m, 2h.")
@_chosen
def reschedule_command(*, run_at: datetime | None, delay: float | None, **given: Any) -> None:
    """Have jobs that have not started run at another time: sooner, later, or at once. Exit 1 when an ID had started.

    \b
    Examples:
      bridge jobs reschedule 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 --delay 0
      bridge jobs reschedule --status scheduled --task report.daily --run-at 2031-01-31T06:00:00+01:00
    """
    if (run_at is None) == (delay is None):
        raise click.UsageError("when? give --run-at or --delay")
    moment = run_at.replace(tzinfo=UTC) if run_at is not None and run_at.tzinfo is None else run_at

    def act(connection: Connection, job: UUID) -> Status:
        return changes.reschedule(connection, job, moment, interval(delay))

    _change(public.RESCHEDULE, "reschedule", act, {"run_at": moment, "delay": interval(delay)}, **given)


COMMANDS = (set_priority_command, move_command, reschedule_command)
