"""Schedules and their runs as text."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from bridge.cli.tables import ago, cell, one_line, print_json, print_table, seconds, status_text
from bridge.records import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["print_imported", "print_moments", "print_rows", "print_schedule", "print_schedules"]

_LIST = ("name", "status", "cron", "timezone", "task", "next_run", "last_run", "last_status")
_RUN = ("slot", "trigger_type", "status", "late_by", "duration", "attempts", "job_id", "error", "reason")
_FACTS = (
    "name", "status", "cron", "timezone", "next_run", "task", "args", "kwargs", "queue", "priority", "max_attempts", "backoff", "timeout",
    "headers", "overlap", "missed", "missed_within", "jitter", "expires", "expected_duration", "starts_at", "ends_at", "last_run",
    "last_status", "last_error", "function", "role", "webhook",
)  # fmt: skip


def print_schedules(found: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print many schedules, a row each; as text, one that posts with its address, because all of those run the same task."""
    rows = found if as_json else [{**row, "task": (row["webhook"] or {}).get("url", row["task"])} for row in found]
    print_rows(_LIST, rows, as_json=as_json, keep=("name", "status", "cron"))


def print_rows(names: Sequence[str], found: Sequence[dict[str, Any]], *, as_json: bool, keep: Sequence[str]) -> None:
    """Print rows whole as JSON, or these columns of them as a table, of which a narrow terminal keeps some."""
    if as_json:
        print_json([_plain(row) for row in found])
    else:
        print_table(names, [[_cell(name, row[name]) for name in names] for row in found], keep=keep)


def print_schedule(row: dict[str, Any], runs: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print one schedule whole, with its last runs."""
    if as_json:
        print_json({**_plain(row), "runs": [_plain(run) for run in runs]})
        return
    for name in _FACTS:
        if row[name] is not None:
            click.echo(f"{name.replace('_', ' '):<18}{shown(str(_cell(name, row[name])))}")
    if runs:
        click.echo()
        print_table(_RUN, [[_cell(name, run[name]) for name in _RUN] for run in runs], keep=("slot", "status"))


def print_moments(moments: Sequence[datetime], *, as_json: bool) -> None:
    """Print moments, one a line, in the zone that they are in."""
    if as_json:
        print_json(list(moments))
    else:
        for moment in moments:
            click.echo(f"{moment.isoformat(sep=' ', timespec='seconds')} ({moment:%a}, {ago(moment)})")


def print_imported(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print what became of entries that were imported."""
    if as_json:
        print_json(rows)
    else:
        names = ("name", "outcome", "cron", "timezone", "task", "note")
        print_table(names, [[status_text(str(row[name] or "")) for name in names] for row in rows], keep=("name", "outcome"))


def _cell(name: str, value: Any) -> Any:
    if value is not None and name in {"status", "last_status"}:
        return status_text(value)
    known = value is None or isinstance(value, str | UUID | datetime | timedelta)
    return one_line(cell(value)) if known else json.dumps(value, ensure_ascii=False, default=str)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: seconds(value) for name, value in row.items()}
