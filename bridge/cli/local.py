"""up, demo: the servers and processes of one machine."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.cli.tables import print_json
from bridge.local.home import state_home
from bridge.records import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.local.stack import Stack

__all__ = ["demo_command", "up_command"]

_DEFAULT_APP = "tasks"
_NO_APP = "none"


@click.command("up")
@click.option(
    "--app", "-A", help=f"What celery -A gets; {_NO_APP}: no worker.  [default: {_DEFAULT_APP} where it can be imported, else {_NO_APP}]"
)
@click.option("--concurrency", "-c", type=click.IntRange(min=1), help="Pool children of the worker.  [default: one a core]")
@click.option("--flower/--no-flower", default=True, help="Start Flower where it is installed.  [default: flower]")
@click.option("--json", "as_json", is_flag=True, help="Print where things are as one JSON document.")
def up_command(*, app: str | None, concurrency: int | None, flower: bool, as_json: bool) -> None:
    """Run Postgres, a broker, a drainer, a worker and Flower on this machine until Ctrl-C.

    Everything is kept below BRIDGE_HOME, else in a folder of your own; a second start finds the jobs of the first. Nothing
    listens on the network but Flower, on the loopback.

    \b
    Examples:
      bridge up
      bridge up --app myproject --concurrency 4
      bridge up --app none
    """
    from bridge.local.stack import Stack

    chosen = _default_app() if app is None else None if app == _NO_APP else app
    # Ctrl-C is how it is meant to end, also before it is ready.
    with suppress(KeyboardInterrupt), Stack(chosen, concurrency=concurrency, flower=flower) as stack:
        tell = _teller()
        stack.start(lambda step: tell("starting", step))
        if as_json:
            print_json(stack.endpoints)
        else:
            _print_places(stack)
        sys.stdout.flush()
        stack.run()
        tell("stopping", "everything")


def _teller() -> Callable[[str, str], None]:
    """Tells what begins or ends now: to people, or to programs that read logs."""
    from bridge import records, settings

    chosen = settings.load()
    if chosen.log_format == "text":
        return lambda doing, what: click.echo(f"{doing} {what}", err=True)
    records.set_up(chosen)
    return lambda doing, what: logging.getLogger("bridge.up").info("%s step=%s", doing, what)


def _default_app() -> str | None:
    found = PathFinder.find_spec(_DEFAULT_APP, [str(Path.cwd())])
    return _DEFAULT_APP if found is not None and found.origin is not None else None


def _print_places(stack: Stack) -> None:
    from bridge.settings import without_password

    endpoints = stack.endpoints
    worker = f"celery -A {stack.app} worker" if stack.app else "none: name an application with --app"
    places = [
        ("postgres", f"{without_password(endpoints.dsn)} (version {endpoints.postgres}{', with pg_cron' if endpoints.cron else ''})"),
        ("broker", endpoints.broker_url), ("broker folder", endpoints.broker_folder), ("worker", worker), ("flower", endpoints.flower_url),
        ("logs", str(Path(endpoints.home) / "logs")),
    ]  # fmt: skip
    for name, place in places:
        if place:
            click.echo(f"{name:<14}{place}")
    click.echo("\nin another terminal:")
    for name, value in endpoints.environment().items():
        click.echo(f"  export {name}='{value}'")
    click.echo("\nCtrl-C stops everything; the jobs are kept")


@click.command("demo")
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--pictures",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for what the jobs draw.  [default: pictures in BRIDGE_HOME]",
)
def demo_command(*, files: tuple[Path, ...], pictures: Path | None) -> None:
    """Start everything from nothing, run real files through the media pipeline, show what came out, and stop everything.

    FILES are pictures, PDFs and videos, or folders of them; without any, the samples that ship with the repository, one of
    which is corrupt. Files that cannot be read end as failed jobs and are no failure of the demo.

    \b
    Examples:
      bridge demo
      bridge demo ~/Pictures report.pdf
    """
    from bridge.cli.demo.files import checkout, media_files
    from bridge.cli.demo.run import Demo
    from bridge.cli.demo.screen import open_screen
    from bridge.cli.demo.summary import faults_of_ours, last_line, print_summary
    from bridge.local.stack import Stack

    place = checkout()
    chosen = media_files(files, place)
    target = (pictures or state_home() / "pictures").absolute()
    with Stack(_DEFAULT_APP, workdir=place, wait_for_flower=False) as stack:
        with open_screen() as screen:
            demo = Demo(place, target, screen)
            demo.start(stack)
            outcome = demo.run(stack, chosen)
        print_summary(outcome, target, stack.endpoints)
        click.echo("stopping", err=True)
    faults = faults_of_ours(outcome)
    for job in faults:
        click.echo(f"error: job {job.id} ({job.task}) is {job.status}: {shown(str((job.error or {}).get('message')))}", err=True)
    click.echo(last_line(outcome, target))
    sys.exit(1 if faults else 0)
