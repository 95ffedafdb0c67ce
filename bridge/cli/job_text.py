"""Jobs as text."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from bridge.cli.tables import ago, one_line, print_json, print_table, span, status_text
from bridge.records import shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rich.text import Text

    from bridge.job import Event, Job

__all__ = ["note", "print_events", "print_job", "print_jobs", "print_steered"]

_WIDE = ("id", "task", "queue", "status", "attempts", "changed", "took", "note")
_NARROW = ("id", "task", "status", "changed", "note")
_WIDE_ENOUGH = 120  # columns of a terminal that hold all of it


def print_jobs(found: Sequence[Job], *, as_json: bool = False) -> None:
    """Print many jobs, a row each."""
    if as_json:
        print_json(found)
        return
    console = Console()
    headers = _NARROW if console.is_terminal and console.width < _WIDE_ENOUGH else _WIDE
    rows = [_row(job, for_people=console.is_terminal) for job in found]
    print_table(headers, [[row[name] for name in headers] for row in rows], keep=("id", "status", "attempts", "changed"))


def _row(job: Job, *, for_people: bool) -> dict[str, str | Text]:
    return {
        "id": job.task_id, "task": job.task, "queue": job.queue, "status": status_text(job.status),
        "attempts": f"{job.attempts}/{job.max_attempts}",
        "changed": ago(job.updated_at) if for_people else job.updated_at.isoformat(),
        "took": span(job.seconds) if for_people else _number(job.seconds), "note": note(job),
    }  # fmt: skip


def print_steered(rows: Sequence[Sequence[str | Text]]) -> None:
    """Print what became of jobs that were retried or cancelled."""
    print_table(("id", "task", "status"), rows)


def note(job: Job) -> str:
    """What matters most about a job, in one line: its error, its result, or how far it is."""
    if job.error is not None:
        return one_line(_reason(job.error))
    if job.progress is not None and not job.status.final:
        return f"{job.progress.get('fraction', 0):.0%} {one_line(job.progress.get('message') or '')}".strip()
    return "" if job.result is None else one_line(job.result)


def print_job(job: Job, history: Sequence[dict[str, Any]], notes: Sequence[dict[str, Any]], *, as_json: bool = False) -> None:
    """Print one job whole: its row, its attempts, what people did to it, and the traceback of its last error."""
    if as_json:
        row = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
        print_json({**row, "history": history, "notes": notes})
        return
    for name, value in _facts(job):
        click.echo(f"{name:<14}{shown(value)}")
    if history:
        click.echo()
        _print_history(history)
    if notes:
        click.echo()
        _print_notes(notes)
    if job.error and job.error.get("traceback"):
        click.echo(f"\n{shown(job.error['traceback'].rstrip())}")


def _facts(job: Job) -> list[tuple[str, str]]:
    facts = [
        ("id", str(job.id)), ("task id", job.task_id if job.task_id != str(job.id) else None), ("task", job.task),
        ("queue", job.queue), ("status", job.status.value), ("attempts", f"{job.attempts} of at most {job.max_attempts}"),
        ("priority", str(job.priority)), ("worker", job.worker), ("args", _json(job.args)), ("kwargs", _json(job.kwargs)),
        ("created", _moment(job.created_at)), ("due", _moment(job.run_at)), ("started", _moment(job.started_at)),
        ("finished", _moment(job.finished_at)), ("took", span(job.seconds)),
        ("progress", None if job.progress is None else _json(job.progress)),
        ("result", _json(job.result) if job.status == "succeeded" else None), ("error", _reason(job.error)),
    ]  # fmt: skip
    return [(name, value) for name, value in facts if value]


def _print_history(history: Sequence[dict[str, Any]]) -> None:
    rows = [
        (
            str(attempt["attempt"]), status_text(attempt["outcome"]), attempt["worker"] or "", _moment(attempt["started_at"]),
            span(_seconds(attempt)), one_line(_reason(attempt["error"])),
        )
        for attempt in history
    ]  # fmt: skip
    print_table(("attempt", "outcome", "worker", "started", "took", "error"), rows, keep=("attempt", "outcome"))


def print_events(events: Sequence[Event], *, as_json: bool = False) -> None:
    """Print what happened to a job, a row each."""
    if as_json:
        print_json(events)
        return
    rows = [
        (
            f"{event.at:%Y-%m-%d %H:%M:%S}", status_text(event.event), str(event.attempt or ""),
            event.worker or "", span(_length(event.started_at, event.ended_at)), one_line(_reason(event.error)),
            one_line(event.reason or ""),
        )
        for event in events
    ]  # fmt: skip
    print_table(("at", "event", "attempt", "worker", "took", "error", "reason"), rows, keep=("at", "event", "attempt"))


def _length(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else (end - start).total_seconds()


def _print_notes(notes: Sequence[dict[str, Any]]) -> None:
    rows = [
        (
            note["action"],
            note["by"],
            _moment(note["at"]),
            one_line(note["note"] or ""),
            "" if note["before"] is None else one_line(note["before"]),
        )
        for note in notes
    ]
    print_table(("action", "by", "at", "note", "before"), rows, keep=("action", "by"))


def _reason(error: dict[str, Any] | None) -> str:
    return "" if error is None else f"{error.get('type')}: {error.get('message')}"


def _seconds(attempt: dict[str, Any]) -> float | None:
    if attempt["started_at"] is None or attempt["ended_at"] is None:
        return None
    return float((attempt["ended_at"] - attempt["started_at"]).total_seconds())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.isoformat(sep=' ', timespec='milliseconds')} ({ago(moment)})"


def _number(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f}"
