"""doctor: one row a check, each with what to do. It needs no application and no extra, only the environment."""

from __future__ import annotations

import json
import sys

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.doctor import CHECKS, Finding, Grade, Limits, examine
from bridge.errors import SettingError
from bridge.records import shown

__all__ = ["doctor_command"]

_MARKS = {
    Grade.OK: ("ok", "green"),
    Grade.WARNING: ("warning", "yellow"),
    Grade.ERROR: ("error", "bold red"),
    Grade.SKIPPED: ("skipped", "dim"),
}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: ok, and checks with name, status, found, remedy, value.")
@click.option(
    "--check", "names", multiple=True, type=click.Choice(list(CHECKS)), help="Only this check and what it needs; may be repeated."
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=NUMBER",
    help="From where on a check complains (--limits lists them); may be repeated.",
)
@click.option("--limits", "show_limits", is_flag=True, help="List the limits with their values, and exit.")
@click.option("--timeout", type=click.FloatRange(min=0.1), help="Seconds that a server may take to answer (BRIDGE_TIMEOUT, 10).")
def doctor_command(*, as_json: bool, names: tuple[str, ...], limits: tuple[str, ...], show_limits: bool, timeout: float | None) -> None:
    """Look at everything that jobs need, and say what to do where something is wrong. Changes nothing.

    \b
    Examples:
      bridge doctor
      bridge doctor --json | jq '.checks[] | select(.status != "ok")'
      bridge doctor --check tick --check drainers --limit tick_late=5

    A check is ok, a warning (jobs still run), an error (they do not, or soon will not) or skipped (with the reason).

    Exit code: 1 when a check is an error, otherwise 0.
    """
    chosen = _limits(limits)
    if show_limits:
        _show_limits(chosen, as_json=as_json)
        return
    findings = examine(limits=chosen, names=names, timeout=timeout)
    failed = any(finding.status is Grade.ERROR for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [finding.as_dict() for finding in findings]}))
    else:
        Console().print(_table(findings))
    sys.exit(1 if failed else 0)


def _limits(given: tuple[str, ...]) -> Limits:
    pairs = [text.partition("=") for text in given]
    try:
        return Limits.of({name.strip(): value.strip() for name, _, value in pairs})
    except SettingError as problem:
        raise click.UsageError(str(problem)) from None


def _show_limits(limits: Limits, *, as_json: bool) -> None:
    if as_json:
        click.echo(limits.model_dump_json())
        return
    table = Table("limit", "value", "of what", box=None, pad_edge=False)
    for name, field in Limits.model_fields.items():
        table.add_row(name, f"{getattr(limits, name):g}", field.description)
    Console().print(table)


def _table(findings: list[Finding]) -> Table:
    table = Table("check", "status", "what was found, and → what to do", box=box.SIMPLE_HEAD, pad_edge=False)
    for finding in findings:
        words, style = _MARKS[finding.status]
        # As Text: what servers say may hold square brackets, which are markup to rich.
        table.add_row(
            finding.name, Text(words, style=style), Text(shown(finding.found + (f"\n→ {finding.remedy}" if finding.remedy else "")))
        )
    return table
