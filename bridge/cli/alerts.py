"""alerts: list, rules, set, remove, check, ack, resolve, test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bridge import monitoring as public
from bridge.cli.database import open_database
from bridge.cli.tables import cell, json_option, print_json, print_table, seconds, status_text
from bridge.cli.values import duration
from bridge.queries import monitoring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["alerts_command"]

_LIST = ("id", "rule", "severity", "state", "subject", "message", "opened_at", "acknowledged_by", "note")
_RULES = (
    "name", "kind", "queue", "task", "threshold", "within", "lasting", "severity", "quiet", "enabled", "webhook", "notifier", "unresolved",
)  # fmt: skip
_STATES = ("open", "acknowledged", "resolved")


def _who(command: Callable[..., None]) -> Callable[..., None]:
    """Who says so, and what."""
    for option in (
        click.option("--note", help="Shown in the list."),
        click.option("--who", help="Shown in the list; else the role of the database."),
        click.argument("identity", metavar="ID", type=int),
    ):
        command = option(command)
    return command


@click.group("alerts", context_settings={"help_option_names": ["-h", "--help"]})
def alerts_command() -> None:
    """Look at alerts, answer them, and say what raises one and who is told.

    The database is BRIDGE_DATABASE_URL, else that of the stack that "bridge up" runs here.

    \b
    Examples:
      bridge alerts list
      bridge alerts set queued_jobs --threshold 100 --within 1h --webhook https://ops.example.org/hooks
      bridge alerts ack 17 --note 'restarting the workers'
    """


@alerts_command.command("list")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="More than once for more; else open and acknowledged.")
@click.option("--all", "everything", is_flag=True, help="Resolved ones, too.")
@click.option("--rule", help="Only of this rule.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most alerts.")
@json_option
def list_command(*, states: tuple[str, ...], everything: bool, rule: str | None, limit: int, as_json: bool) -> None:
    """List alerts, the newest first.

    \b
    Examples:
      bridge alerts list
      bridge alerts list --all --rule queue_age --json
    """
    wanted = list(states) or (None if everything else ["open", "acknowledged"])
    with open_database("bridge alerts list") as connection:
        _print(_LIST, monitoring.alerts(connection, wanted, rule, limit), ("id", "rule", "state"), as_json=as_json)


@alerts_command.command("rules")
@json_option
def rules_command(*, as_json: bool) -> None:
    """List the rules: what raises an alert, and who is told.

    \b
    Examples:
      bridge alerts rules
      bridge alerts rules --json | jq '.[] | select(.enabled | not) | .name'
    """
    with open_database("bridge alerts rules") as connection:
        _print(_RULES, monitoring.alert_rules(connection), ("name", "kind", "severity"), as_json=as_json)


@alerts_command.command("set")
@click.argument("name")
@click.argument("kind", required=False)
@click.option("--threshold", type=float, help="It fires above this; no_worker and no_drainer below it.")
@click.option("--queue", "-Q", help="Only of this queue; '' of all again.")
@click.option("--task", help="Only of this task, by its full name; '' of all again.")
@click.option("--within", type=duration, help="How far back it looks, or how long a job may wait.")
@click.option("--lasting", type=duration, help="How long the condition must hold.")
@click.option("--severity", type=click.Choice(["info", "warning", "critical"]), help="How bad it is.")
@click.option("--quiet", type=duration, help="At most one message in this time.")
@click.option("--minimum", type=int, help="Of a failure rate: of at least so many attempts.")
@click.option("--webhook", help="Address that it is posted to; '' the setting alert_webhook again.")
@click.option("--notifier", help="Name of a notifier that is told; '' the setting alert_notifier again.")
@click.option("--secret", help="Name of the secret that signs; NAME is BRIDGE_WEBHOOK_SECRET_NAME in the workers.")
@click.option("--delivery-queue", help="Queue of the jobs that deliver; '' one that has a worker.")
@click.option("--enable/--disable", "enabled", default=None, help="A disabled rule is not looked at.")
@json_option
def set_command(*, name: str, as_json: bool, **named: Any) -> None:
    """Make a rule, or change what is said of the one that is there. Without KIND the name says it.

    \b
    Examples:
      bridge alerts set queued_jobs --threshold 100 --within 1h --webhook https://ops.example.org/hooks
      bridge alerts set payments-late queue_age --queue payments --threshold 60 --severity critical --notifier ops
      bridge alerts set old_snapshot --disable
    """
    with open_database("bridge alerts set") as connection:
        outcome = public.set_alert(name, **named, connection=connection)
    _say({"name": name, "outcome": outcome}, f"{name} {outcome}", as_json=as_json)


@alerts_command.command("remove")
@click.argument("name")
@json_option
def remove_command(*, name: str, as_json: bool) -> None:
    """Remove a rule. What is open of it is resolved; its history stays.

    \b
    Example:
      bridge alerts remove payments-late
    """
    with open_database("bridge alerts remove") as connection:
        monitoring.remove_alert(connection, name)
    _say({"name": name, "outcome": "removed"}, f"{name} removed", as_json=as_json)


@alerts_command.command("check")
@json_option
def check_command(*, as_json: bool) -> None:
    """Look at all rules now, as the tick does every 15 seconds.

    \b
    Example:
      bridge alerts check && bridge alerts list
    """
    with open_database("bridge alerts check") as connection:
        done = monitoring.check_alerts(connection)
    words = "somebody else is at it" if done is None else f"{done['opened']} opened, {done['unresolved']} unresolved"
    _say(done, words, as_json=as_json)


@alerts_command.command("ack")
@_who
@json_option
def ack_command(*, identity: int, who: str | None, note: str | None, as_json: bool) -> None:
    """Say that somebody is at it: nothing more is told of the alert for its rule's quiet time.

    \b
    Example:
      bridge alerts ack 17 --who anna --note 'restarting the workers'
    """
    with open_database("bridge alerts ack") as connection:
        outcome = "acknowledged" if monitoring.acknowledge_alert(connection, identity, who, note) else "was acknowledged already"
    _say({"id": identity, "outcome": outcome}, f"alert {identity} {outcome}", as_json=as_json)


@alerts_command.command("resolve")
@_who
@json_option
def resolve_command(*, identity: int, who: str | None, note: str | None, as_json: bool) -> None:
    """End an alert by hand. Where its condition still holds, the next look opens another.

    \b
    Example:
      bridge alerts resolve 17 --note 'the jobs were not wanted any more'
    """
    with open_database("bridge alerts resolve") as connection:
        monitoring.resolve_alert(connection, identity, who, note)
    _say({"id": identity, "outcome": "resolved"}, f"alert {identity} resolved", as_json=as_json)


@alerts_command.command("test")
@click.argument("name")
@json_option
def test_command(*, name: str, as_json: bool) -> None:
    """Tell of something that did not happen, as the rule would, to see whether it arrives.

    \b
    Example:
      bridge alerts test queued_jobs && bridge callbacks deliveries --callback 'alert queued_jobs'
    """
    with open_database("bridge alerts test") as connection:
        monitoring.test_alert(connection, name)
        addressed = monitoring.has_address(connection, name)
    if addressed:
        words = f"""{name} is told; "bridge callbacks deliveries --callback 'alert {name}'" shows how it goes"""
    else:
        words = f"{name} has no address, only listeners of bridge_alert hear it: bridge alerts set {name} --webhook URL, or --notifier NAME"
    _say({"name": name, "outcome": "told" if addressed else "no address"}, words, as_json=as_json)


def _say(done: Any, words: str, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        click.echo(words)


def _print(names: Sequence[str], rows: Sequence[dict[str, Any]], keep: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json([{name: seconds(value) for name, value in row.items()} for row in rows])
    else:
        print_table(names, [[status_text(_cell(row[name])) for name in names] for row in rows], keep=keep)


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else cell(value)
