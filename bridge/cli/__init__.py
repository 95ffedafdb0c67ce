"""The command line: ``bridge …``, and the same as ``celery bridge …``."""

from __future__ import annotations

import importlib
import io
import logging
import sys
from typing import Any

import click

import bridge
from bridge.errors import BridgeError

__all__ = ["main"]

_COMMANDS = {
    **dict.fromkeys(["install", "sql", "drain", "tick"], "bridge.cli.service"),
    "doctor": "bridge.cli.doctor",
    "health": "bridge.cli.health",
    "alerts": "bridge.cli.alerts",
    "top": "bridge.cli.top",
    "jobs": "bridge.cli.jobs",
    "dead": "bridge.cli.dead",
    "queues": "bridge.cli.queues",
    "breakers": "bridge.cli.breakers",
    "limits": "bridge.cli.limits",
    "batches": "bridge.cli.batches",
    "schedules": "bridge.cli.schedules",
    "callbacks": "bridge.cli.callbacks",
    "retries": "bridge.cli.retries",
    "cleanup": "bridge.cli.cleanup",
    "roles": "bridge.cli.roles",
    "tenants": "bridge.cli.tenants",
    **dict.fromkeys(["up", "demo"], "bridge.cli.local"),
    "web": "bridge.cli.web",
    "bench": "bridge.cli.bench",
}


class _Commands(click.Group):
    """Imports a command only when it is asked for, and prints our errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        module = _COMMANDS.get(cmd_name)
        return None if module is None else getattr(importlib.import_module(module), f"{cmd_name}_command")

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a job may hold half of a surrogate pair; JSON knows it by that name too
        try:
            return super().invoke(ctx)
        except BridgeError as error:
            _tell(error)
            sys.exit(1)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from bridge.queries.connection import explained

            ours = explained(error)
            if ours is None:
                raise
            _tell(ours)
            sys.exit(1)


def _tell(error: BridgeError) -> None:
    """One line for people; one object where the process logs for programs."""
    from bridge import records

    if records.is_json():
        logging.getLogger("bridge").error("%s", error)
    else:
        click.echo(f"error: {records.shown(str(error))}", err=True)


@click.group("bridge", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(bridge.__version__, prog_name="bridge")
def main() -> None:
    """Keep Celery, make Postgres the truth.

    Two variables say where things are: BRIDGE_DATABASE_URL (a libpq URI or DSN) and BRIDGE_BROKER_URL (as Celery takes it).

    \b
      bridge install          put the schema into the database
      bridge drain            publish jobs to the broker
      celery -A app worker    run them

    Exit codes: 0 done, 1 a check or job failed, 2 wrong use.
    """
