"""jobs: list, show, history, wait, retry, cancel; what they tell while they run is in job_notes."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import click

from bridge.cli import job_notes, job_text
from bridge.cli.database import open_database
from bridge.cli.selection import LIVE, Selection, by_ids, select
from bridge.cli.tables import print_json, span, status_text
from bridge.errors import BridgeError
from bridge.job import Job, Status
from bridge.queries import jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["jobs_command"]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str) -> float:
    """Seconds, from a number with or without a unit: 90, 30s, 15m, 2h, 1d.

    Raises:
        click.BadParameter: it is something else.
    """
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text)
    if parts is None:
        raise click.BadParameter(f"{text!r} is no duration: give seconds, or a number with s, m, h or d, as 15m")
    return float(parts[1]) * _UNITS[parts[2]]


def _filters(default_limit: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that choose jobs, the same for every command that has them."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--limit", type=click.IntRange(1, 100_000), default=default_limit, show_default=True, help="Most jobs."),
            click.option("--since", type=duration, help="Only jobs that changed within this last while: 90, 15m, 2h, 1d."),
            click.option("--queue", "-Q", help="Only jobs of this queue."),
            click.option("--task", help="Only jobs of this task, by its full name."),
        ):
            command = option(command)
        return command

    return add


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_dry_run = click.option("--dry-run", is_flag=True, help="Print the jobs that are meant, and change nothing.")
_ids = click.argument("ids", metavar="ID...", nargs=-1)


@click.group("jobs", context_settings={"help_option_names": ["-h", "--help"]})
def jobs_command() -> None:
    """Look at jobs and steer them. An ID is a job's id or a Celery task id.

    The database is BRIDGE_DATABASE_URL, else that of the stack that "bridge up" runs here.

    \b
    Examples:
      bridge jobs list --status failed --since 1h
      bridge jobs show 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs retry --failed --task mail.send --dry-run
    """


@jobs_command.command("list")
@click.option("--status", type=click.Choice([status.value for status in Status]), help="Only jobs in this status.")
@_filters(default_limit=50)
@_json
def list_command(*, status: str | None, as_json: bool, **chosen: Any) -> None:
    """List jobs, the last changed first.

    \b
    Examples:
      bridge jobs list
      bridge jobs list --status failed --task mail.send --since 2h
      bridge jobs list --queue celery --limit 1000 --json | jq '.[].error.message'
    """
    with open_database("bridge jobs list") as connection:
        found = select(connection, Selection(() if status is None else (status,), **chosen))
    job_text.print_jobs(found, as_json=as_json)


@jobs_command.command("show")
@click.argument("identity", metavar="ID")
@_json
def show_command(*, identity: str, as_json: bool) -> None:
    """Show one job with all its attempts; the traceback of the last error comes at the end.

    \b
    Examples:
      bridge jobs show 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs show my-own-task-id --json
    """
    with open_database("bridge jobs show") as connection:
        (job,) = by_ids(connection, [identity])
        history = jobs.attempts(connection, job.id)
    job_text.print_job(job, history, as_json=as_json)


@jobs_command.command("history")
@click.argument("identity", metavar="ID")
@_json
def history_command(*, identity: str, as_json: bool) -> None:
    """Tell the whole life of one job: when it was enqueued, each attempt and why there was another, and where it is now.

    \b
    Examples:
      bridge jobs history 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs history my-own-task-id --json | jq '.[] | select(.event == "lost") | .reason'
    """
    with open_database("bridge jobs history") as connection:
        (job,) = by_ids(connection, [identity])
        events = jobs.history(connection, job.id)
    job_text.print_events(events, as_json=as_json)


@jobs_command.command("wait")
@_ids
@click.option("--timeout", type=duration, help="Give up after this while: 90, 15m, 2h; without it there is no end.")
@_json
def wait_command(*, ids: Sequence[str], timeout: float | None, as_json: bool) -> None:
    """Wait until jobs have ended; exit 0 when all succeeded, 1 when one did not or the time is over.

    \b
    Examples:
      bridge jobs wait 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs wait my-task-1 my-task-2 --timeout 5m && echo done
    """
    if not ids:
        raise click.UsageError("name the jobs to wait for: bridge jobs wait ID...")
    with open_database("bridge jobs wait") as connection:
        wanted = {job.id: job for job in by_ids(connection, ids)}
        for job in jobs.wait(connection, list(wanted), timeout):
            wanted[job.id] = job
            if not as_json:
                click.echo(f"{job.task_id} {job.status}{f' in {span(job.seconds)}' if job.seconds else ''}")
    if as_json:
        print_json(list(wanted.values()))
    _complain_of_late(wanted, timeout)
    sys.exit(0 if all(job.status is Status.SUCCEEDED for job in wanted.values()) else 1)


def _complain_of_late(seen: dict[UUID, Job], timeout: float | None) -> None:
    late = [f"{job.task_id} ({job.status})" for job in seen.values() if not job.status.final]
    if late:
        raise BridgeError(f"not ended after {timeout:g} s: {', '.join(late)}", "they go on; wait again, or see bridge jobs show")


@jobs_command.command("retry")
@_ids
@click.option("--failed", is_flag=True, help="Retry the failed jobs that the filters leave.")
@_filters(default_limit=1000)
@_dry_run
@_json
def retry_command(*, ids: Sequence[str], failed: bool, dry_run: bool, as_json: bool, **chosen: Any) -> None:
    """Run ended jobs again under their ids, or scheduled ones at once.

    \b
    Examples:
      bridge jobs retry 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs retry --failed --since 1h --dry-run
      bridge jobs retry --failed --task mail.send --queue mail
    """
    _require_one_way(ids, by_filter=failed, filters=chosen, how="give IDs, or --failed with filters")
    with open_database("bridge jobs retry") as connection:
        meant = by_ids(connection, ids) if ids else select(connection, Selection(("failed",), **chosen))
        if dry_run:
            job_text.print_jobs(meant, as_json=as_json)
            return
        done = _steer(connection, meant, jobs.retry, {Status.QUEUED})
    _report(done, "retry", as_json=as_json, limit=None if ids else chosen["limit"])


@jobs_command.command("cancel")
@_ids
@click.option("--status", type=click.Choice(LIVE), multiple=True, help="Jobs in this status; may be given more than once.")
@_filters(default_limit=1000)
@_dry_run
@_json
def cancel_command(*, ids: Sequence[str], status: tuple[str, ...], dry_run: bool, as_json: bool, **chosen: Any) -> None:
    """Cancel jobs: what waits never runs, what runs is asked to stop. Exit 1 when one had ended before.

    With filters instead of IDs, the jobs that have not ended and that all filters leave.

    \b
    Examples:
      bridge jobs cancel 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs cancel --task mail.send --dry-run
      bridge jobs cancel --status scheduled --queue mail
    """
    by_filter = bool(status) or any(chosen[name] is not None for name in ("task", "queue", "since"))
    _require_one_way(ids, by_filter=by_filter, filters=chosen, how="give IDs, or at least one of --status, --task, --queue, --since")
    with open_database("bridge jobs cancel") as connection:
        meant = by_ids(connection, ids) if ids else select(connection, Selection(status or LIVE, **chosen))
        if dry_run:
            job_text.print_jobs(meant, as_json=as_json)
            return
        done = _steer(connection, meant, jobs.cancel, {Status.CANCELLED, Status.RUNNING})
    _report(done, "cancel", as_json=as_json, limit=None if ids else chosen["limit"])


def _require_one_way(ids: Sequence[str], *, by_filter: bool, filters: dict[str, Any], how: str) -> None:
    filtered = by_filter or any(filters[name] is not None for name in ("task", "queue", "since"))
    if ids and filtered:
        raise click.UsageError(f"IDs and filters do not go together: {how}")
    if not ids and not by_filter:
        raise click.UsageError(f"which jobs? {how}")


def _steer(
    connection: Connection, meant: Iterable[Job], act: Callable[[Connection, UUID], Status], wanted: set[Status]
) -> list[dict[str, Any]]:
    """Do it to each; a job that moved on since it was looked at does not keep the others from their turn."""
    done = []
    for job in meant:
        try:
            status: Status | None = act(connection, job.id)
            error = None if status in wanted else f"job {job.task_id} had ended as {status}"
        except BridgeError as refused:
            status, error = None, str(refused)
        done.append({"id": job.id, "task_id": job.task_id, "task": job.task, "status": status, "error": error})
    return done


def _report(done: list[dict[str, Any]], verb: str, *, as_json: bool, limit: int | None) -> None:
    refused = [row for row in done if row["error"]]
    if as_json:
        print_json(done)
    else:
        job_text.print_steered([(row["task_id"], row["task"], status_text(row["status"])) for row in done if not row["error"]])
    for row in refused:
        click.echo(f"error: {row['error']}", err=True)
    more = f"; stopped at --limit {limit}, run it again for more" if limit == len(done) else ""
    click.echo(f"{verb}: {len(done) - len(refused)} jobs, {len(refused)} refused{more}", err=True)
    sys.exit(1 if refused else 0)


for _command in job_notes.COMMANDS:
    jobs_command.add_command(_command)
