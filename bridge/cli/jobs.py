"""jobs: list, show, history, wait, retry, cancel; further commands are in enqueue, job_complete, job_flows and job_notes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from bridge import bulk, dead
from bridge.cli import enqueue, job_changes, job_complete, job_flows, job_notes, job_text, steering
from bridge.cli.database import open_database
from bridge.cli.selection import LIVE, by_ids, filter_of, filters, require_one_way, whoami
from bridge.cli.tables import json_option, print_json, span
from bridge.cli.values import duration
from bridge.errors import BridgeError
from bridge.job import Job, Status
from bridge.queries import jobs, selection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

__all__ = ["jobs_command"]

_dry_run = click.option("--dry-run", is_flag=True, help="Print the jobs that are meant, and change nothing.")
_yes = click.option("--yes", is_flag=True, help="Do not ask, on a terminal either.")
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
@filters(default_limit=50, statuses=[status.value for status in Status])
@json_option
def list_command(*, as_json: bool, **chosen: Any) -> None:
    """List jobs, the last changed first.

    \b
    Examples:
      bridge jobs list
      bridge jobs list --status failed --task 'mail.*' --since 2h
      bridge jobs list --queue celery --limit 1000 --json | jq '.[].error.message'
    """
    with open_database("bridge jobs list") as connection:
        found = selection.find(connection, filter_of(chosen))
    job_text.print_jobs(found, as_json=as_json)


@jobs_command.command("show")
@click.argument("identity", metavar="ID")
@json_option
def show_command(*, identity: str, as_json: bool) -> None:
    """Show one job with all its attempts and what people did to it; the traceback of the last error comes at the end.

    \b
    Examples:
      bridge jobs show 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs show my-own-task-id --json
    """
    with open_database("bridge jobs show") as connection:
        steering.show(connection, identity, as_json=as_json)


@jobs_command.command("history")
@click.argument("identity", metavar="ID")
@json_option
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
@json_option
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
@click.option("--failed", is_flag=True, help="Retry the failed jobs that the filters leave, except discarded ones.")
@filters(default_limit=1000)
@click.option("--note", help="Why, for the history.")
@_dry_run
@json_option
def retry_command(*, ids: Sequence[str], failed: bool, note: str | None, dry_run: bool, as_json: bool, **chosen: Any) -> None:
    """Run ended jobs again under their ids, or scheduled ones at once.

    "bridge dead redrive" does it with other arguments.

    \b
    Examples:
      bridge jobs retry 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs retry --failed --since 1h --dry-run
      bridge jobs retry --failed --task 'mail.*' --queue mail
    """
    how = "give IDs, or --failed with filters"
    require_one_way(ids, chosen, chosen=failed, how=how)
    if not ids and not failed:
        raise click.UsageError(f"which jobs? {how}")
    with open_database("bridge jobs retry") as connection:
        if not ids:
            wanted = filter_of(chosen)
            steering.operate(
                connection,
                dead.REDRIVE,
                wanted if len(wanted) > 1 else {**wanted, "all": True},
                "retry",
                dry_run=dry_run,
                as_json=as_json,
                by=whoami(),
                note=note,
            )
            return
        meant = by_ids(connection, ids)
        if dry_run:
            job_text.print_jobs(meant, as_json=as_json)
            return
        done = steering.steer(meant, lambda job: jobs.retry(connection, job, whoami(), note), {Status.QUEUED})
    steering.report(done, "retry", as_json=as_json)


@jobs_command.command("cancel")
@_ids
@click.option("--all", "everything", is_flag=True, help="All that have not ended.")
@filters(default_limit=1000, statuses=LIVE)
@click.option("--terminate/--no-terminate", default=True, help="Stop what runs, or let it come to its end without a further attempt.")
@click.option("--signal", default="TERM", show_default=True, help="What the process of a run gets.")
@_dry_run
@_yes
@json_option
def cancel_command(
    *, ids: Sequence[str], everything: bool, terminate: bool, signal: str, dry_run: bool, yes: bool, as_json: bool, **chosen: Any
) -> None:
    """Cancel jobs: what waits never runs, what runs is asked to stop. Exit 1 when an ID had ended before.

    With filters instead of IDs, the jobs that have not ended and that all filters leave. On a terminal it asks before.

    \b
    Examples:
      bridge jobs cancel 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs cancel --task 'mail.*' --dry-run
      bridge jobs cancel --status scheduled --queue mail
    """
    require_one_way(ids, chosen, chosen=everything, how="give IDs, at least one filter, or --all")
    wanted = filter_of(chosen, everything=everything)
    how: Any = {"terminate": terminate, "signal": signal}
    with open_database("bridge jobs cancel") as connection:
        if not ids:
            steering.operate(connection, bulk.CANCEL, wanted, "cancel", dry_run=dry_run, as_json=as_json, ask=not yes, **how)
            return
        meant = by_ids(connection, ids)
        if dry_run:
            job_text.print_jobs(meant, as_json=as_json)
            return
        done = steering.steer(meant, lambda job: jobs.cancel(connection, job, **how), {Status.CANCELLED, Status.RUNNING})
    steering.report(done, "cancel", as_json=as_json)


for _command in (enqueue.enqueue_command, *job_changes.COMMANDS, *job_notes.COMMANDS, *job_flows.COMMANDS, *job_complete.COMMANDS):
    jobs_command.add_command(_command)
