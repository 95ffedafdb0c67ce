"""schedules, of what they have done: history, stats, slow, too-often."""

from __future__ import annotations

import click

from bridge.cli.database import open_database
from bridge.cli.schedule_text import print_rows
from bridge.cli.tables import json_option
from bridge.queries import schedule_log

__all__ = ["COMMANDS"]

_HISTORY = ("id", "slot", "trigger_type", "status", "late_by", "duration", "attempts", "rows", "job_id", "error", "reason", "result")
_STATS = (
    "schedule", "runs", "succeeded", "failed", "skipped", "live", "average_duration", "p95_duration", "longest_duration", "average_late",
    "last_run", "next_run",
)  # fmt: skip
_SLOW = ("schedule", "status", "duration", "longest_expected", "basis", "median_duration", "slow_of_last_100", "slot", "job_id")
_TOO_OFTEN = ("schedule", "kind", "found", "remedy", "since")


@click.command("history")
@click.argument("name")
@click.option("--status", help="Only runs in this status: a job's, waiting, skipped or unknown.")
@click.option("--trigger", help="Only these: scheduled, manual or catch_up.")
@click.option("-n", "n", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--before", type=int, help="Only runs with a smaller ID: the last of a page gives the next one.")
@json_option
def history_command(*, name: str, status: str | None, trigger: str | None, n: int, before: int | None, as_json: bool) -> None:
    """List the last runs of a schedule, the newest first: when each was due, how late it began, how it ended.

    Of one that was removed, those that the log still holds.

    \b
    Examples:
      bridge schedules history report
      bridge schedules history report --status failed -n 100
      bridge schedules history report --trigger manual --json | jq '.[].job_id'
    """
    with open_database("bridge schedules history") as connection:
        rows = schedule_log.history(connection, name, status=status, trigger_type=trigger, n=n, before=before)
    print_rows(_HISTORY, rows, as_json=as_json, keep=("id", "slot", "status"))


@click.command("stats")
@click.argument("name", required=False)
@json_option
def stats_command(*, name: str | None, as_json: bool) -> None:
    """Count the runs of all schedules, or of one: how they ended, how long they took, how late they began.

    Counts, average and longest are of all runs since the schedule was made; the 95th percentile is of those that the log holds.

    \b
    Examples:
      bridge schedules stats
      bridge schedules stats report --json
    """
    with open_database("bridge schedules stats") as connection:
        print_rows(_STATS, schedule_log.stats(connection, name), as_json=as_json, keep=("schedule",))


@click.command("slow")
@json_option
def slow_command(*, as_json: bool) -> None:
    """List schedules whose last run, or one under way, takes longer than it should.

    That is longer than --expected-duration, or than three times what is usual.

    \b
    Examples:
      bridge schedules slow
      bridge schedules slow --json | jq '.[] | select(.status == "running") | .job_id'
    """
    with open_database("bridge schedules slow") as connection:
        print_rows(_SLOW, schedule_log.slow(connection), as_json=as_json, keep=("schedule",))


@click.command("too-often")
@json_option
def too_often_command(*, as_json: bool) -> None:
    """List schedules whose work is done more often than it should be, and why.

    Runs that overlap or take longer than their period; two schedules, or one and an entry of pg_cron, that do the same; what runs by
    hand or from elsewhere as often.

    \b
    Examples:
      bridge schedules too-often
      bridge schedules too-often --json | jq -r '.[] | [.schedule, .kind] | @tsv'
    """
    with open_database("bridge schedules too-often") as connection:
        print_rows(_TOO_OFTEN, schedule_log.too_often(connection), as_json=as_json, keep=("schedule", "kind"))


COMMANDS = (history_command, stats_command, slow_command, too_often_command)
