"""install, sql, drain, tick: what runs the queue. They need no application and no extra, only the environment."""

from __future__ import annotations

import ctypes
import json
import logging
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridge import records, schema, settings
from bridge.cli.tables import print_table
from bridge.drainer import Drainer
from bridge.queries import dispatch
from bridge.queries.connection import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.settings import Settings

__all__ = ["drain_command", "install_command", "keep_memory_flat", "sql_command", "tick_command"]

_LAST_CALL = 4.0  # seconds that a drainer's last call may take; what it leaves behind is recovered when its lease is over
_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # glibc's names of options of mallopt(3)
_LARGE = 128 << 10  # bytes from which a piece of memory has pages of its own, at first; a value that is set stays


@click.command("install")
@click.option("--pipeline", metavar="NAME", help="Install the SQL of tasks/NAME/sql of this checkout as well.")
@click.option("--check", is_flag=True, help="Say what would change, and change nothing; exit code 1 when there is something.")
@click.option(
    "--patience",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Try so long while transactions of others are in the way.",
)
@click.option("--cron-database", metavar="NAME", help="Have the pg_cron of this other database of the cluster tick.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def install_command(*, pipeline: str | None, check: bool, patience: float, cron_database: str | None, as_json: bool) -> None:
    """Install or upgrade the schema; safe to repeat, also while everything runs.

    \b
    Examples:
      BRIDGE_DATABASE_URL=postgresql://me@host/db bridge install
      bridge install --check
      bridge install --pipeline media
    """
    dsn = settings.load().require_database()
    if check:
        if pipeline is not None:
            raise click.UsageError("--check looks at the schema bridge alone, not at a pipeline's")
        _check_install(dsn, cron_database, as_json=as_json)
        return
    said = schema.install(dsn, patience=patience, cron_database=cron_database, told=lambda words: click.echo(words, err=True))
    if pipeline is not None:
        files = schema.install_pipeline(dsn, Path("tasks") / pipeline / "sql")
        said += f"; pipeline {pipeline} is installed ({files} files)"
    click.echo(json.dumps({"installed": said}) if as_json else said)


def _check_install(dsn: str, cron_database: str | None, *, as_json: bool) -> None:
    changes = schema.preview(dsn, cron_database=cron_database)
    todo = [change for change in changes if change.action not in schema.LEFT]
    if as_json:
        click.echo(json.dumps({"changes": len(todo), "objects": [asdict(change) for change in changes]}))
    else:
        if changes:
            rows = [(one.action, one.kind, one.name, one.before, one.after) for one in changes]
            print_table(("action", "kind", "name", "before", "after"), rows, keep=("action", "kind", "name"))
        click.echo(f"{len(todo)} changes: bridge install" if todo else "nothing to do")
    sys.exit(1 if todo else 0)


@click.command("sql")
def sql_command() -> None:
    """Print the SQL that install runs, for psql or another tool's migrations.

    \b
    Example:
      bridge sql | psql -1 "$BRIDGE_DATABASE_URL"
    """
    click.echo(schema.script())


@click.command("drain")
@click.option("--once", is_flag=True, help="Tick, publish what is ready, and exit.")
@click.option("--queues", "-Q", help="Only these queues, separated by commas (BRIDGE_QUEUES).")
@click.option("--metrics-port", metavar="[HOST:]PORT", help="Answer /metrics and /health there (BRIDGE_METRICS).  [default: nowhere]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="How much to log (BRIDGE_LOG_LEVEL).")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="How to log (BRIDGE_LOG_FORMAT).")
def drain_command(*, once: bool, queues: str | None, metrics_port: str | None, log_level: str | None, log_format: str | None) -> None:
    """Publish ready jobs to the broker until SIGTERM; any number may run.

    \b
    Examples:
      bridge drain
      bridge drain --once
      bridge drain -Q mail,reports
      bridge drain --metrics-port 9464
    """
    given = {"queues": queues, "metrics": metrics_port, "log_level": log_level, "log_format": log_format}
    chosen = settings.load().changed(**{key: value for key, value in given.items() if value is not None})
    records.set_up(chosen)
    keep_memory_flat()
    drainer = Drainer(chosen, _stop_event())
    if once:
        _drain_once(drainer, chosen.require_database())
    else:
        with _endpoint(drainer, chosen):
            drainer.run()


def keep_memory_flat() -> None:
    """Have glibc give this process one heap, and what is large pages of its own, which go back when it is freed.

    By default threads have heaps of their own, and a drainer's are many and short: each left pieces in the heap that it was given, 25 KiB
    a look at the workers. And once something large has been freed, the next of its size comes from the heap, where whatever small thing
    lies above keeps the room: 1.8 MiB twice in an hour. Python knows nothing of either. Other C libraries have neither.
    """
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)


@contextmanager
def _endpoint(drainer: Drainer, chosen: Settings) -> Iterator[None]:
    """Answer scrapers as long as the drainer works, where its settings say so."""
    if not chosen.metrics:
        yield
        return
    from bridge.endpoint import Server
    from bridge.web import drainer_app, environment_token

    host, port = settings.address(chosen.metrics)
    app, reading = drainer_app(drainer, chosen, environment_token())
    with Server(app, host, port, setting="--metrics-port or BRIDGE_METRICS"):
        yield
    reading.close()


def _stop_event() -> threading.Event:
    """Set by SIGTERM and SIGINT. A server that does not answer must not keep the process: soon after, the call in hand is given up."""
    stop = threading.Event()

    def begin(*_: object) -> None:
        stop.set()
        signal.setitimer(signal.ITIMER_REAL, _LAST_CALL)

    def give_up(*_: object) -> None:
        logging.getLogger("bridge.drainer").warning("stopped in the middle of a call that nobody answers")
        sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, begin)
    signal.signal(signal.SIGALRM, give_up)
    return stop


def _drain_once(drainer: Drainer, dsn: str) -> None:
    schema.check(dsn)
    with connect(dsn, name="bridge drain --once") as connection:
        dispatch.tick(connection, "manual")
    while drainer.drain_once():
        pass
    drainer.close()
    click.echo(f"published {drainer.published} jobs")


@click.command("tick")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def tick_command(*, as_json: bool) -> None:
    """Do once what time has brought about: due jobs, expiry, the recovery of what dead processes left.

    \b
    Example:
      bridge tick --json
    """
    chosen = settings.load()
    records.set_up(chosen)
    with connect(chosen.require_database(), name="bridge tick") as connection:
        done: dict[str, Any] | None = dispatch.tick(connection, "manual")
    if as_json:
        click.echo(json.dumps(done))
    elif done is None:
        click.echo("another tick is at work")
    else:
        click.echo(" ".join(f"{step}={count}" for step, count in done.items()))
