"""batches: list, show, create, seal, cancel, wait."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from bridge import batches as public
from bridge.cli import flow_text
from bridge.cli.database import open_database
from bridge.cli.tables import json_option, print_json
from bridge.cli.values import Json, duration
from bridge.errors import BridgeError, NotFoundError
from bridge.queries import batches

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["batches_command"]

_id = click.argument("identity", metavar="ID", type=click.UUID)


@click.group("batches", context_settings={"help_option_names": ["-h", "--help"]})
def batches_command() -> None:
    """Make batches, follow and cancel them: sets of jobs with counts, and a task that is called when all have ended.

    The database is BRIDGE_DATABASE_URL, else that of the stack that "bridge up" runs here.

    \b
    Examples:
      bridge batches list --status running
      bridge batches wait 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 --timeout 10m
    """


@batches_command.command("list")
@click.option("--status", type=click.Choice(["open", "running", "succeeded", "failed", "cancelled"]), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Most batches.")
@json_option
def list_command(*, status: str | None, limit: int, as_json: bool) -> None:
    """List batches, the newest first."""
    with open_database("bridge batches list") as connection:
        found = batches.find(connection, status, limit)
    flow_text.print_batches(found, as_json=as_json)


@batches_command.command("show")
@_id
@json_option
def show_command(*, identity: UUID, as_json: bool) -> None:
    """Show one batch with its counts."""
    with open_database("bridge batches show") as connection:
        flow_text.print_batch(public.get_batch(identity, connection=connection), as_json=as_json)


@batches_command.command("create")
@click.option("--name", help="For people.")
@click.option("--callback", metavar="TASK", help="Called when the batch has ended.")
@click.option("--args", type=Json(list, "JSON array"), default="[]", show_default=True, help="Its positional arguments.")
@click.option("--kwargs", type=Json(dict, "JSON object"), default="{}", show_default=True, help="Its keyword arguments.")
@click.option("--queue", "-Q", default="celery", show_default=True, help="Its queue.")
@click.option("--callback-on", type=click.Choice(["complete", "success"]), default="complete", show_default=True)
@json_option
def create_command(*, as_json: bool, **given: Any) -> None:
    """Make a batch, and print its id, which jobs are enqueued with.

    \b
    Examples:
      bridge batches create --name import --callback shop.imported --callback-on success
    """
    with open_database("bridge batches create") as connection:
        identity = public.create_batch(connection=connection, **given)
    if as_json:
        print_json({"id": str(identity)})
    else:
        click.echo(identity)


@batches_command.command("seal")
@_id
@json_option
def seal_command(*, identity: UUID, as_json: bool) -> None:
    """Say that all jobs have been added: the batch ends with its last job."""
    with open_database("bridge batches seal") as connection:
        status = public.seal_batch(identity, connection=connection)
    _say(identity, {"status": status}, status, as_json=as_json)


@batches_command.command("cancel")
@_id
@json_option
def cancel_command(*, identity: UUID, as_json: bool) -> None:
    """Cancel a batch: what waits never runs, what runs is asked to stop, its callback is not called."""
    with open_database("bridge batches cancel") as connection:
        count = public.cancel_batch(identity, connection=connection)
    _say(identity, {"cancelled": count}, f"{count} jobs cancelled or asked to stop", as_json=as_json)


def _say(identity: UUID, facts: dict[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": str(identity), **facts})
    else:
        click.echo(f"{identity} {words}")


@batches_command.command("wait")
@_id
@click.option("--timeout", type=duration, help="Give up after this while: 90, 15m, 2h; without it there is no end.")
@json_option
def wait_command(*, identity: UUID, timeout: float | None, as_json: bool) -> None:
    """Wait until a batch has ended; exit 0 when all of its jobs succeeded, 1 when one did not or the time is over.

    \b
    Examples:
      bridge batches wait 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 && echo done
    """
    with open_database("bridge batches wait") as connection:
        batch = batches.wait(connection, identity, timeout)
    if batch is None:
        raise NotFoundError(f"batch {identity} does not exist", "bridge batches list shows those that do")
    flow_text.print_batch(batch, as_json=as_json)
    if batch.ended_at is None:
        raise BridgeError(f"batch {identity} is {batch.status} after {timeout:g} s", "it goes on; an open one is to be sealed first")
    sys.exit(0 if batch.status == "succeeded" else 1)
