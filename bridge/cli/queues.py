"""queues: list, pauses, pause, resume, drain, window, bundle."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from bridge import queues as public
from bridge.cli import queue_text
from bridge.cli.database import open_database
from bridge.cli.tables import json_option, print_json
from bridge.cli.values import duration
from bridge.queries import queues
from bridge.queries.queues import Load, What

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.queries.connection import Connection

__all__ = ["queues_command"]


def _which(command: Callable[..., None]) -> Callable[..., None]:
    """The words that say what is meant, the same for pause and resume."""
    for option in (
        click.option("--all", "everything", is_flag=True, help="Everything, whatever queue and task."),
        click.option("--task", "tasks", multiple=True, help="A task, by its full name, whatever queue; may be given more than once."),
        click.argument("names", metavar="[QUEUE]...", nargs=-1),
    ):
        command = option(command)
    return command


def _meant(names: Sequence[str], tasks: Sequence[str], *, everything: bool) -> list[What]:
    if everything == bool(names or tasks):
        raise click.UsageError("which? give queues, --task NAME, or --all alone")
    return [What(everything=True)] if everything else [*(What(queue=name) for name in names), *(What(task=name) for name in tasks)]


@click.group("queues", context_settings={"help_option_names": ["-h", "--help"]})
def queues_command() -> None:
    """Look at queues, pause and resume them, and drain them for a deployment.

    The database is BRIDGE_DATABASE_URL, else that of the stack that "bridge up" runs here.

    \b
    Examples:
      bridge queues list
      bridge queues pause mail --hard --reason "the mail server is down"
      bridge queues drain --all --timeout 5m && systemctl restart worker && bridge queues resume --all
    """


@queues_command.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """List all queues: what waits, what runs, what ended within the last hour, and whether they are paused.

    \b
    Examples:
      bridge queues list
      bridge queues list --json | jq '.[] | select(.queued > 1000) | .queue'
    """
    with open_database("bridge queues list") as connection:
        queue_text.print_queues(queues.stats(connection), as_json=as_json)


@queues_command.command("pauses")
@json_option
def pauses_command(*, as_json: bool) -> None:
    """List what is paused: queues, tasks, everything; since when, by whom and why.

    \b
    Example:
      bridge queues pauses
    """
    with open_database("bridge queues pauses") as connection:
        queue_text.print_pauses(queues.pauses(connection), as_json=as_json)


@queues_command.command("pause")
@_which
@click.option("--hard", is_flag=True, help="What is published does not start either: it is taken back.")
@click.option("--reason", help="Shown to whoever looks at it.")
@json_option
def pause_command(
    *, names: tuple[str, ...], tasks: tuple[str, ...], everything: bool, hard: bool, reason: str | None, as_json: bool
) -> None:
    """Publish nothing more of queues, of tasks, or of anything, until it is resumed. What runs goes on.

    \b
    Examples:
      bridge queues pause mail reports
      bridge queues pause --task mail.send --hard
      bridge queues pause --all --reason "moving the database"
    """
    meant = _meant(names, tasks, everything=everything)
    with open_database("bridge queues pause") as connection, connection.transaction():
        rows = [
            {**_told(what), "outcome": "paused", "taken_back": queues.pause(connection, what, hard=hard, reason=reason)} for what in meant
        ]
    queue_text.print_done(rows, as_json=as_json)


@queues_command.command("resume")
@_which
@json_option
def resume_command(*, names: tuple[str, ...], tasks: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """End pauses, each by itself: queues that were paused before everything was stay paused.

    \b
    Examples:
      bridge queues resume mail reports
      bridge queues resume --all
    """
    _resume(_meant(names, tasks, everything=everything), as_json=as_json)


def _resume(meant: Sequence[What], *, as_json: bool) -> None:
    with open_database("bridge queues resume") as connection, connection.transaction():
        rows = [{**_told(what), "outcome": "resumed" if queues.resume(connection, what) else "was not paused"} for what in meant]
    queue_text.print_done(rows, as_json=as_json)


def _told(what: What) -> dict[str, str]:
    kind = "queue" if what.queue is not None else "task" if what.task is not None else "everything"
    return {"kind": kind, "name": what.queue or what.task or ""}


@queues_command.command("drain")
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All queues, by a pause of everything.")
@click.option("--timeout", type=duration, help="Give up after this while: 90, 15m, 2h; without it there is no end.")
@click.option("--hard", is_flag=True, help="Take back what is published, and wait for what runs alone.")
@click.option("--resume", "ends", is_flag=True, help="The counterpart, for after the deployment: resume them.")
@json_option
def drain_command(*, names: tuple[str, ...], everything: bool, timeout: float | None, hard: bool, ends: bool, as_json: bool) -> None:
    """Empty queues for a deployment: pause them, and wait until nothing of them is published or runs.

    Exit 0 when they are empty, 1 when the time is over first. They stay paused in both cases, and also after Ctrl-C.

    \b
    Examples:
      bridge queues drain --all --timeout 10m
      bridge queues drain mail reports --hard --timeout 90
      bridge queues drain --all --resume
    """
    meant = _meant(names, (), everything=everything)
    if ends:
        _resume(meant, as_json=as_json)
        return
    with open_database("bridge queues drain") as connection:
        with connection.transaction():
            for what in meant:
                queues.pause(connection, what, hard=hard, reason="drained")
        _wait(connection, None if everything else names, timeout, as_json=as_json)


def _wait(connection: Connection, names: Sequence[str] | None, timeout: float | None, *, as_json: bool) -> None:
    """Show what is left until nothing is; end the process with the answer."""
    began, left, over = time.monotonic(), list[Load](), "the time is over"
    try:
        with queue_text.open_drain(Console(stderr=True)) as tell:
            for left in public.watch(connection, names, timeout):
                tell(left)
    except KeyboardInterrupt:
        over = "interrupted"
    drained = over != "interrupted" and not any(load.total for load in left)
    facts: dict[str, Any] = {"drained": drained, "seconds": round(time.monotonic() - began, 2), "queues": left}
    if as_json:
        print_json(facts)
    else:
        click.echo(f"drained in {facts['seconds']} s" if drained else f"not drained, {over}: {queue_text.summary(left)}")
    if not drained:
        words = " ".join(names) if names else "--all"
        click.echo(f"the pause stays; bridge queues resume {words} ends it", err=True)
    sys.exit(0 if drained else 1)


@queues_command.command("window")
@click.argument("queue")
@click.argument("jobs", metavar="JOBS|default")
@json_option
def window_command(*, queue: str, jobs: str, as_json: bool) -> None:
    """Set how many jobs of a queue may be published and not started; 0 is no bound, "default" the setting window.

    Smaller: priority, pause and cancel act sooner. It must not be smaller than what the workers of the queue fetch ahead.

    \b
    Examples:
      bridge queues window mail 100
      bridge queues window mail default
    """
    window = _number_or_default(jobs, "0, a positive number, or default")
    with open_database("bridge queues window") as connection:
        queues.set_window(connection, queue, window)
    queue_text.print_done([{"kind": "queue", "name": queue, "outcome": "window", "window": window}], as_json=as_json)


@queues_command.command("bundle")
@click.argument("queue")
@click.argument("jobs", metavar="JOBS|default")
@json_option
def bundle_command(*, queue: str, jobs: str, as_json: bool) -> None:
    """Set how many jobs of a queue one message may have, for tasks without the option bridge_bundle; "default" is one.

    \b
    Examples:
      bridge queues bundle mail 100
      bridge queues bundle mail default
    """
    bundle = _number_or_default(jobs, "1 to 1000, or default")
    with open_database("bridge queues bundle") as connection:
        queues.set_bundle(connection, queue, bundle)
    queue_text.print_done([{"kind": "queue", "name": queue, "outcome": "bundle", "bundle": bundle}], as_json=as_json)


def _number_or_default(jobs: str, allowed: str) -> int | None:
    if jobs != "default" and not jobs.isdecimal():
        raise click.BadParameter(f"{jobs!r} is no number of jobs: give {allowed}")
    return None if jobs == "default" else int(jobs)
