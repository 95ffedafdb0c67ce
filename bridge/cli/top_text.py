"""What `bridge top` shows: one look as a screen, and how fast jobs ended over the last minute."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bridge.cli.tables import ago, one_line, span, status_text
from bridge.records import shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from bridge.queries.overview import Ended, Overview

__all__ = ["Rates", "plain", "screen"]

_WINDOW = 60.0  # seconds that rates are taken over: counters come in steps of ten
_TITLE = 3  # lines of a table that are not rows: an empty one, its title, its headers
_STATES = {"failing": "bold red", "degraded": "yellow", "healthy": "", "inactive": "dim"}


class Rates:
    """Jobs that ended a second, by queue and outcome, from counters that were looked at again and again."""

    def __init__(self) -> None:
        self._looks: deque[tuple[datetime, Ended]] = deque()

    def add(self, at: datetime, ended: Ended) -> None:
        """Take up one look; those that the window no longer needs are forgotten."""
        self._looks.append((at, ended))
        while len(self._looks) > 2 and (at - self._looks[1][0]).total_seconds() >= _WINDOW:  # noqa: PLR2004 - two make a difference
            self._looks.popleft()

    def of(self, queue: str, *outcomes: str) -> float | None:
        """Of one queue and these outcomes; None before the second look."""
        (first_at, first), (last_at, last) = self._looks[0], self._looks[-1]
        passed = (last_at - first_at).total_seconds()
        if passed <= 0:
            return None
        return max(sum(last.get((queue, outcome), 0) - first.get((queue, outcome), 0) for outcome in outcomes) / passed, 0.0)


def plain(found: Overview, rates: Rates) -> dict[str, Any]:
    """A look as one JSON object."""
    queues = [
        {
            **row,
            "succeeded_per_second": rates.of(row["queue"], "succeeded"),
            "failed_per_second": rates.of(row["queue"], "failed", "expired"),
        }
        for row in found.queues
    ]
    return {
        "at": found.at, "database": found.database, "health": found.health, "queues": queues, "running": found.running,
        "workers": found.workers, "drainers": found.drainers,
    }  # fmt: skip


def screen(found: Overview, rates: Rates, *, lines: int | None = None, lost: str | None = None) -> Group:
    """A look as text.

    Args:
        found: what there is now, or was when the database could last be asked.
        rates: of the last minute.
        lines: as many as there is room for; None for all.
        lost: why this look is not of now.
    """
    head, health = _head(found, lost), _health(found)
    tables = {"queues": _queues(found, rates), "running": _running(found), "workers": _workers(found)}
    wanted = {"health": len(health), **{name: len(rows) for name, (_, rows) in tables.items()}}
    rooms = wanted if lines is None else _rooms(wanted, lines - len(head) - 1 - _TITLE * len(tables))
    hidden = len(health) - rooms["health"]
    return Group(
        *head, *health[: rooms["health"]], *([Text(f"and {hidden} more: bridge health", style="dim")] if hidden > 0 else []),
        *(part for name, (headers, rows) in tables.items() for part in _table(name, headers, rows, rooms[name])),
    )  # fmt: skip


def _rooms(wanted: dict[str, int], free: int) -> dict[str, int]:
    """How many rows each table gets of those that are free: one in turn, as long as it has more."""
    rooms = dict.fromkeys(wanted, 0)
    while free > 0 and (more := [name for name, rows in wanted.items() if rooms[name] < rows][:free]):
        for name in more:
            rooms[name] += 1
        free -= len(more)
    return rooms


def _head(found: Overview, lost: str | None) -> list[Text]:
    drainers = [part for row in found.drainers for part in (Text(f"  drainer {row['name']} "), status_text(row["status"]))]
    lines = [Text.assemble((found.database, "bold"), f"  {found.at:%Y-%m-%d %H:%M:%S %Z}", *drainers)]
    return [*lines, _line(f"not of now: {lost}", "bold red")] if lost else lines


def _health(found: Overview) -> list[Text]:
    """What is not well, the worst first."""
    lines = []
    for row in sorted(found.health, key=lambda row: list(_STATES).index(row["status"])):
        what = " ".join(str(row[part]) for part in ("component", "subject") if row[part])
        lines.append(_line(f"{what}: {row['found']}" + (f" → {row['remedy']}" if row["remedy"] else ""), _STATES[row["status"]]))
    return lines


def _line(words: str, style: str) -> Text:
    return Text(shown(words), style=style, no_wrap=True, overflow="ellipsis")


def _queues(found: Overview, rates: Rates) -> tuple[Sequence[str], list[list[str | Text]]]:
    headers = ("queue", "pause", "queued", "published", "running", "scheduled", "blocked", "done/s", "failed/s", "oldest")
    return headers, [
        [
            row["queue"], Text(row["pause"] or "", style="bold yellow"), str(row["queued"]), str(row["published"]), str(row["running"]),
            str(row["scheduled"]), str(row["blocked"]), _rate(rates.of(row["queue"], "succeeded")),
            Text(_rate(rates.of(row["queue"], "failed", "expired")), style="red"), span(row["oldest_seconds"]),
        ]
        for row in found.queues
    ]  # fmt: skip


def _running(found: Overview) -> tuple[Sequence[str], list[list[str | Text]]]:
    headers = ("running", "task", "queue", "worker", "attempt", "for", "progress")
    return headers, [
        [
            str(row["id"]), row["task"], row["queue"], row["worker"] or "", str(row["attempt"]),
            span((found.at - row["started_at"]).total_seconds()),
            "stopping" if row["cancelled_at"] else one_line(row["progress"] or "", 40),
        ]
        for row in found.running
    ]  # fmt: skip


def _workers(found: Overview) -> tuple[Sequence[str], list[list[str | Text]]]:
    headers = ("worker", "status", "pool", "queues", "holds", "seen")
    return headers, [
        [
            row["name"], status_text(row["status"]), f"{row['pool']} {row['concurrency']}", ", ".join(row["queues"] or []),
            str(row["holding"] or 0), ago(row["seen_at"], found.at),
        ]
        for row in found.workers
    ]  # fmt: skip


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value else "0"


def _table(name: str, headers: Sequence[str], rows: list[list[str | Text]], room: int) -> list[Text | Table]:
    hidden = len(rows) - room
    title = Text(f"{len(rows)} {name}" + (f", {hidden} of them not shown" if hidden > 0 else ""), style="dim")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header, no_wrap=True, overflow="ellipsis", justify="right" if _is_number(header) else "left")
    for row in rows[:room]:
        table.add_row(*(content if isinstance(content, Text) else Text(shown(content)) for content in row))
    return [Text(), title, table] if rows else [Text(), title]


def _is_number(header: str) -> bool:
    return header in {"queued", "published", "scheduled", "blocked", "done/s", "failed/s", "oldest", "attempt", "for", "holds"}
