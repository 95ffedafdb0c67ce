"""What commands about jobs share: show one, do something to those that are named, or to all that a filter chooses."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress

from bridge.bulk import Counts, Operation, run
from bridge.cli import job_text
from bridge.cli.selection import by_ids, confirm
from bridge.cli.tables import print_json, status_text
from bridge.errors import BridgeError
from bridge.queries import jobs, selection
from bridge.records import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from uuid import UUID

    from bridge.job import Job, Status
    from bridge.queries.connection import Connection

__all__ = ["operate", "report", "show", "steer"]


def show(connection: Connection, identity: str, *, as_json: bool) -> None:
    """Print one job whole: its row, its attempts, what people did to it."""
    (job,) = by_ids(connection, [identity])
    job_text.print_job(job, jobs.attempts(connection, job.id), selection.notes(connection, job.id), as_json=as_json)


def operate(
    connection: Connection, operation: Operation, wanted: Mapping[str, Any], verb: str, *, dry_run: bool, as_json: bool, ask: bool = False,
    **named: Any,
) -> None:  # fmt: skip
    """Do something to the jobs that a filter chooses, and print what became of them; a dry run prints which they are.

    Args:
        connection: where.
        operation: what.
        wanted: the filter, in JSON values.
        verb: the command's word for it.
        dry_run: change nothing.
        as_json: print one JSON document.
        ask: it destroys something: ask a person at a terminal before.
        named: further arguments of the operation.
    """
    planned = run(connection, operation, wanted, dry_run=True, **named)
    if dry_run:
        job_text.print_jobs(selection.find(connection, wanted, operation.statuses, dead=operation.dead), as_json=as_json)
        return
    if planned.matched:
        confirm(f"{verb} {planned.matched} jobs?", yes=not ask)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(verb, total=planned.matched)
        counts = run(connection, operation, wanted, shown=lambda done: progress.advance(bar, done), **named)
    _print_counts(counts, verb, as_json=as_json)


def _print_counts(counts: Counts, verb: str, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(counts))
    more = f"; stopped at --limit {counts.matched}, run it again for more" if counts.more else ""
    click.echo(f"{verb}: {counts.changed} of {counts.matched} jobs, {counts.skipped} skipped{more}", err=as_json)


def steer(meant: Iterable[Job], act: Callable[[UUID], Status], wanted: set[Status]) -> list[dict[str, Any]]:
    """Do it to each job that was named; one that moved on since it was looked at does not keep the others from their turn.

    Args:
        meant: the jobs.
        act: does it to one, and says its status then.
        wanted: the statuses that tell that it was done.

    Returns:
        A row for each: id, task_id, task, status, error.
    """
    done = []
    for job in meant:
        try:
            status: Status | None = act(job.id)
            error = None if status in wanted else f"job {job.task_id} had ended as {status}"
        except BridgeError as refused:
            status, error = None, str(refused)
        done.append({"id": job.id, "task_id": job.task_id, "task": job.task, "status": status, "error": error})
    return done


def report(done: list[dict[str, Any]], verb: str, *, as_json: bool) -> None:
    """Print what became of jobs that were named, and end with 1 when something was refused."""
    refused = [row for row in done if row["error"]]
    if as_json:
        print_json(done)
    else:
        job_text.print_steered([(row["task_id"], row["task"], status_text(row["status"])) for row in done if not row["error"]])
    for row in refused:
        click.echo(f"error: {shown(row['error'])}", err=True)
    click.echo(f"{verb}: {len(done) - len(refused)} jobs, {len(refused)} refused", err=True)
    sys.exit(1 if refused else 0)
