"""Queues, pauses and the progress of a drain as text."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.tables import cell, one_line, print_json, print_table, span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from bridge.queries.queues import Load

__all__ = ["open_drain", "print_done", "print_pauses", "print_queues", "summary"]

_LIST = (
    "queue", "pause", "window", "blocked", "scheduled", "queued", "published", "running", "succeeded_last_hour", "failed_last_hour",
    "oldest_queued_at",
)  # fmt: skip
_PAUSES = ("kind", "name", "pause", "paused_at", "paused_by", "reason")


def print_queues(found: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print all queues, a row each."""
    _print(_LIST, found, as_json=as_json, keep=("queue",))


def print_pauses(found: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print what is paused, a row each."""
    _print(_PAUSES, found, as_json=as_json, keep=("kind", "name", "pause"))


def print_done(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print what was done, a row for each queue or task."""
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(
            " ".join(f"{name}={value}" if isinstance(value, int) else str(value) for name, value in row.items() if value not in (None, ""))
        )


def _print(names: Sequence[str], rows: Sequence[dict[str, Any]], *, as_json: bool, keep: Sequence[str]) -> None:
    if as_json:
        print_json(rows)
    else:
        print_table(names, [[one_line(cell(row[name])) for name in names] for row in rows], keep=keep)


def summary(left: Sequence[Load]) -> str:
    """What is left of queues, in one line."""
    busy = [load for load in left if load.total]
    return "; ".join(_one(load) for load in busy) or "nothing published, nothing runs"


def _one(load: Load) -> str:
    parts = [f"{load.publishing} being published"] if load.publishing else []
    parts += [f"{load.published} published", f"{load.running} running"]
    if load.oldest_started_at is not None:
        parts[-1] += f" (the oldest for {span((datetime.now(UTC) - load.oldest_started_at).total_seconds())})"
    return f"{load.queue}: {', '.join(parts)}"


@contextmanager
def open_drain(console: Console) -> Iterator[Callable[[Sequence[Load]], None]]:
    """Show how a drain goes on: one line that changes on a terminal, elsewhere a line for each change."""
    if console.is_terminal:
        with console.status("pausing") as status:
            yield lambda left: status.update(f"draining, {summary(left)}")
        return
    seen: list[tuple[int, ...]] = []

    def tell(left: Sequence[Load]) -> None:
        counts = tuple(count for load in left for count in (load.publishing, load.published, load.running))
        if seen != [counts]:
            seen[:] = [counts]
            console.print(f"draining, {summary(left)}", soft_wrap=True, highlight=False, markup=False)

    yield tell
