"""jobs complete: say by hand that the work of jobs is done."""

from __future__ import annotations

import json
from typing import Any

import click

from bridge.cli.database import open_database
from bridge.cli.selection import by_ids
from bridge.queries import completion

__all__ = ["COMMANDS"]


@click.command("complete")
@click.argument("identity", metavar="ID")
@click.option("--result", metavar="JSON", help="What its task would have returned; without it, null.")
def complete_command(*, identity: str, result: str | None) -> None:
    """End a job that has not started as succeeded, because its work is done otherwise. What waits for it goes on.

    \b
    Examples:
      bridge jobs complete 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs complete my-own-task-id --result '{"rows": 17}'
    """
    text = None if result is None else json.dumps(_parsed(result))
    with open_database("bridge jobs complete") as connection:
        (job,) = by_ids(connection, [identity])
        completion.by_hand(connection, job.id, text)
    click.echo(f"{job.task_id} succeeded")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no JSON: {error}", param_hint="--result") from None


COMMANDS = (complete_command,)
