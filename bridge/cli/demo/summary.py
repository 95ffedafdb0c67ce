"""What the demo prints when the jobs are done."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.cli.demo.screen import file_name
from bridge.cli.job_text import note
from bridge.cli.tables import one_line, print_table, span, status_text
from bridge.job import Job, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.cli.demo.run import Outcome
    from bridge.local.endpoints import Endpoints

__all__ = ["faults_of_ours", "last_line", "print_summary"]

_MOST = 40  # rows of the table; those that failed come first when there are more
# A user's file may be missing or closed to the worker; every other error that is not the pipeline's own is a fault of ours.
_FILE_ERRORS = ("FileNotFoundError", "IsADirectoryError", "PermissionError")


def print_summary(outcome: Outcome, pictures: Path, endpoints: Endpoints) -> None:
    """Print the jobs, where the pictures are, and what to try next."""
    shown = _most_telling(outcome.jobs)
    click.echo()
    headers = ("job", "status", "attempts", "took", "result")
    rows = [
        (file_name(job), status_text(job.status), f"{job.attempts}/{job.max_attempts}", span(job.seconds), _result(job)) for job in shown
    ]
    print_table(headers, rows, keep=("status", "attempts", "took"), lines=False)
    if len(shown) < len(outcome.jobs):
        click.echo(f"and {len(outcome.jobs) - len(shown)} more")
    click.echo(f"\nthumbnails and cards   {pictures}, a folder for each file")
    if outcome.sheet is not None and outcome.sheet.status is Status.SUCCEEDED:
        click.echo(f"all on one picture     {outcome.sheet.kwargs['target']}")
    click.echo(f"logs                   {Path(endpoints.home) / 'logs'}\n\nwhat to try next")
    for command, purpose in _next(outcome.jobs):
        click.echo(f"  {command}   # {purpose}")
    click.echo()


def last_line(outcome: Outcome, pictures: Path) -> str:
    """The one line that scripts read."""
    succeeded = outcome.count(Status.SUCCEEDED)
    count = len(outcome.jobs)
    return f"{succeeded} succeeded, {count - succeeded} failed of {count} jobs in {outcome.seconds:.1f} s; pictures in {pictures}"


def faults_of_ours(outcome: Outcome) -> list[Job]:
    """The jobs that did not succeed for another reason than their file."""
    return [job for job in outcome.jobs if job.status is not Status.SUCCEEDED and not _file_is_at_fault(job)]


def _file_is_at_fault(job: Job) -> bool:
    error = job.error or {}
    of_pipeline = str(error.get("module") or "").startswith("tasks.")
    return bool((job.kwargs or {}).get("path")) and (of_pipeline or error.get("type") in _FILE_ERRORS)


def _most_telling(jobs: Sequence[Job]) -> list[Job]:
    if len(jobs) <= _MOST:
        return list(jobs)
    return sorted(jobs, key=lambda job: job.status is Status.SUCCEEDED)[:_MOST]


def _result(job: Job) -> str:
    found = job.result
    if job.status is not Status.SUCCEEDED or not isinstance(found, dict):
        return one_line((job.error or {}).get("message") or note(job))
    facts = [
        f"{found.get('format')}, {found.get('width')} x {found.get('height')}",
        f"{found['pages']} pages" if "pages" in found else None,
        f"{found['duration']:.1f} s" if "duration" in found else None,
        found.get("title"),
    ]
    return one_line(", ".join(fact for fact in facts if fact))


def _next(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    bridge = _program()
    failed = next((job for job in jobs if job.status is Status.FAILED), None)
    commands = [(f"{bridge} up", "the same stack, left running; the next commands need it")]
    if failed is not None:
        commands += [
            (f"{bridge} jobs show {failed.id}", f"why {file_name(failed)} failed"),
            (f"{bridge} jobs retry {failed.id}", "run it again"),
        ]
    return [*commands, (f"{bridge} jobs list --task media.process", "every run so far"), (f"{bridge} demo ~/Pictures", "your own files")]


def _program() -> str:
    # Debian's iproute2 owns another `bridge`, so the whole path is named; the short way from here where there is one.
    program = Path(sys.executable).parent / "bridge"
    if not program.exists():
        return f"{sys.executable} -m bridge"
    return os.path.relpath(program) if program.is_relative_to(Path.cwd()) else str(program)
