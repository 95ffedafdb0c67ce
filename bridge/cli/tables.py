"""How the command line prints data: a table on a terminal, lines with tabs in a pipe, JSON on request."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.records import escaped, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "STYLES",
    "ago",
    "cell",
    "dry_run_option",
    "json_option",
    "one_line",
    "paper",
    "print_json",
    "print_table",
    "seconds",
    "span",
    "status_text",
]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be, and change nothing.")

# What each status looks like on a terminal; anything else is plain.
STYLES = {
    "succeeded": "green", "failed": "bold red", "cancelled": "magenta", "expired": "magenta", "running": "cyan", "published": "blue",
    "alive": "green", "lost": "bold red", "closed": "green", "open": "bold red", "half_open": "cyan",
}  # fmt: skip

_LOG_WIDTH = 200
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str | Text]], *, keep: Sequence[str] = ("id",), lines: bool = True) -> None:
    """Print rows of text.

    On a terminal as a table that fits it. Elsewhere one line a row, columns separated by tabs and nothing shortened, the headers
    first: made for cut, awk and spreadsheets.

    Args:
        headers: names of the columns.
        rows: the cells; a tab or line break in one becomes a space where lines matter.
        keep: columns that a narrow terminal must not shorten.
        lines: whether other programs may read it; if not, it is a table elsewhere too, as wide as it needs.
    """
    console = Console()
    if lines and not console.is_terminal:
        for row in (headers, *rows):
            click.echo("\t".join(shown(" ".join(str(cell).split())) for cell in row))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in headers:
        table.add_column(name, no_wrap=name in keep)
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    paper().print(table)


def paper() -> Console:
    """What tables are printed on: the terminal, or as wide as they need, because a log has no edge at which something must be cut off."""
    console = Console()
    return console if console.is_terminal else Console(width=_LOG_WIDTH)


def _cell(content: str | Text) -> Text:
    # As Text, because what comes from a job may look like rich's markup; shortened, because wrapped cells cannot be scanned.
    text = content.copy() if isinstance(content, Text) else Text(shown(content))
    if shown(text.plain) != text.plain:
        text = Text(shown(text.plain), style=text.style)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def print_json(value: Any, *, on_one_line: bool = False) -> None:
    """Print one JSON document; dataclasses become objects, moments ISO 8601, ids and other values their text.

    What a task's value has below a hundred levels is left out: neither people nor most programs read that.
    """
    text = json.dumps(_plain(value), default=str, indent=None if on_one_line else 2, ensure_ascii=False)
    click.echo(escaped(text))


def _plain(value: Any, levels: int = 100) -> Any:
    if levels == 0 and isinstance(value, dict | list | tuple):
        return "… nested deeper"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), levels - 1) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, levels - 1) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=STYLES.get(status, ""))


def one_line(value: Any, width: int = 200) -> str:
    """A JSON value or text as one line of at most so many characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = shown(" ".join(text.split()))
    return text if len(text) <= width else f"{text[: width - 1]}…"


def cell(value: Any) -> str:
    """A value of a row for a table: moments as people say them on a terminal and in ISO 8601 elsewhere, durations, the text of the rest."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return ago(value) if Console().is_terminal else value.isoformat()
    return span(value.total_seconds()) if isinstance(value, timedelta) else str(value)


def seconds(value: Any) -> Any:
    """A duration as seconds, as everywhere outside of SQL; other values as they are."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def span(seconds: float | None) -> str:
    """A duration for people: ``0.42 s``, ``3 min 20 s``, ``2 h 5 min``, ``4 d 3 h``; empty for None."""
    if seconds is None:
        return ""
    if seconds < _MINUTE:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004 - two digits are enough for any
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """How far a moment is away: ``3 min 20 s ago``, ``in 5 s``; empty for None."""
    if moment is None:
        return ""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"
