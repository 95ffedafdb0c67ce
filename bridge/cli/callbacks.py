"""callbacks: list, set-webhook, set-notifier, set-channel, remove, try, deliveries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bridge.cli.database import open_database
from bridge.cli.tables import ago, json_option, one_line, print_json, print_table, status_text
from bridge.cli.values import Json
from bridge.queries import callbacks

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["callbacks_command"]

_ENDS = ("succeeded", "failed", "cancelled", "expired")
_EVENTS = click.Choice([*_ENDS, "retrying"])
_delivery_queue = click.option("--delivery-queue", help="Queue of the jobs that deliver; else the setting callback_queue, else the job's.")


def _which(*events: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that say what a callback is told of."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option(
                "--event", "events", type=_EVENTS, multiple=True, default=events, show_default=True, help="More than once for more."
            ),
            click.option("--queue", "-Q", help="Only of this queue."),
            click.option("--task", help="Only of this task, or a pattern such as 'mail.*'."),
        ):
            command = option(command)
        return command

    return add


@click.group("callbacks", context_settings={"help_option_names": ["-h", "--help"]})
def callbacks_command() -> None:
    """Say who is told of what becomes of jobs: webhooks, notifications, channels.

    \b
    Examples:
      bridge callbacks set-webhook orders https://shop.example.org/hooks --task 'orders.*' --secret shop
      bridge callbacks set-notifier pager ops --event failed
      bridge callbacks try pager
    """


@callbacks_command.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """List the callbacks.

    \b
    Examples:
      bridge callbacks list --json
    """
    with open_database("bridge callbacks list") as connection:
        found = callbacks.find(connection)
    if as_json:
        print_json(found)
        return
    rows = [
        [row["name"], row["kind"], row["target"], row["task"] or "", row["queue"] or "", ", ".join(row["events"]), row["secret"] or ""]
        for row in found
    ]
    print_table(("name", "kind", "target", "task", "queue", "events", "secret"), rows, keep=("name", "kind"))


@callbacks_command.command("set-webhook")
@click.argument("name")
@click.argument("url")
@_which(*_ENDS)
@click.option(
    "--secret", default="default", show_default=True, help="Name of the secret; NAME is BRIDGE_WEBHOOK_SECRET_NAME in the workers."
)
@click.option("--result", is_flag=True, help="Send the job's result along.")
@click.option("--headers", type=Json(dict, "OBJECT"), help="Further headers as JSON; a secret by reference, see the example.")
@_delivery_queue
def set_webhook_command(**named: Any) -> None:
    """Post a signed message to URL whenever something of a task or a queue happens.

    \b
    Examples:
      bridge callbacks set-webhook orders https://shop.example.org/hooks --task 'orders.*' --event failed
      bridge callbacks set-webhook crm https://crm.example.org/hooks --headers '{"X-Api-Key": {"secret": "vault:crm"}}'
    """
    _set("webhook", named)


@callbacks_command.command("set-notifier")
@click.argument("name")
@click.argument("target")
@_which("failed")
@_delivery_queue
def set_notifier_command(**named: Any) -> None:
    """Send a notification to the Apprise addresses in BRIDGE_NOTIFIER_TARGET of the workers' environment.

    \b
    Examples:
      bridge callbacks set-notifier pager ops --queue payments
    """
    _set("notifier", named)


@callbacks_command.command("set-channel")
@click.argument("name")
@click.argument("channel")
@_which(*_ENDS)
def set_channel_command(**named: Any) -> None:
    """NOTIFY a channel of Postgres whenever something of a task or a queue happens.

    \b
    Examples:
      bridge callbacks set-channel screens jobs_done --queue celery
    """
    _set("channel", named)


def _set(kind: str, named: dict[str, Any]) -> None:
    with open_database(f"bridge callbacks set-{kind}") as connection:
        done = callbacks.set_callback(connection, kind, {**named, "events": list(named["events"])})
    click.echo(f"{named['name']} {done}")


@callbacks_command.command("remove")
@click.argument("name")
def remove_command(*, name: str) -> None:
    """End a callback; what it has made already is delivered.

    \b
    Examples:
      bridge callbacks remove pager
    """
    with open_database("bridge callbacks remove") as connection:
        callbacks.remove(connection, name)
    click.echo(f"{name} removed")


@callbacks_command.command("try")
@click.argument("name")
def try_command(*, name: str) -> None:
    """Tell a callback of something that did not happen, to see whether it arrives.

    \b
    Examples:
      bridge callbacks try pager && bridge callbacks deliveries --callback pager
    """
    with open_database("bridge callbacks try") as connection:
        callbacks.try_callback(connection, name)
    click.echo(f'{name} is told; "bridge callbacks deliveries --callback {name}" shows how it goes')


@callbacks_command.command("deliveries")
@click.option("--callback", help="Only of this one; those of jobs' own webhooks are called webhook.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most of them.")
@json_option
def deliveries_command(*, callback: str | None, limit: int, as_json: bool) -> None:
    """List what was delivered, or is still to be, the newest first. Each is a job: jobs show, jobs retry and jobs cancel take its id.

    \b
    Examples:
      bridge callbacks deliveries --callback orders --json
    """
    with open_database("bridge callbacks deliveries") as connection:
        found = callbacks.deliveries(connection, callback, limit)
    if as_json:
        print_json(found)
        return
    rows = [
        [str(row["id"]), row["callback"], row["event"], status_text(row["status"]), f"{row['attempts']}/{row['max_attempts']}",
         ago(row["created_at"]), one_line(row["error"] or "")]
        for row in found
    ]  # fmt: skip
    print_table(("id", "callback", "event", "status", "attempts", "made", "error"), rows, keep=("id", "status", "attempts"))
