"""What is told of a job whose promise was broken."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laboratory.facts import Facts, Strike


def history(facts: Facts, lab: int) -> Iterator[str]:
    """What is known of a job, and what struck meanwhile, in the order of time."""
    lines = [(at, words) for at, words in _told(facts, lab) if at is not None]
    if lines:
        around = timedelta(seconds=facts.slack)
        began, ended = min(lines)[0] - around, max(lines)[0] + around
        lines += [(one.at, _strike(one)) for one in facts.strikes if began <= one.at <= ended]
    for at, words in sorted(lines):
        yield f"{at:%X.%f} {words}"


def _told(facts: Facts, lab: int) -> Iterator[tuple[Any, str]]:
    if (asked := facts.asked.get(lab)) is not None:
        yield asked.asked_at, f"asked for: {asked.kind} by {asked.door}, {asked.outcome or 'outcome unknown'}"
    for job in facts.jobs.get(lab, []):
        yield job.created_at, f"row {job.id} seq {job.seq} of {job.task}: {job.status}, {job.attempts} attempts, {job.losses} losses"
    for row in facts.attempts_of(lab):
        words = f"rows: attempt {row.attempt} run {row.run} in {row.worker} until {row.ended_at}: {row.outcome}"
        yield row.started_at or row.ended_at, words
    for run in facts.runs.get(lab, []):
        yield run.started, f"witness: run {run.run} in {run.slot} until {run.over}{' (raised)' if run.raised else ''}"
    for one in facts.operated.get(lab, []):
        yield one.at, f"operator: {one.action}, answer {one.answer}"


def _strike(one: Strike) -> str:
    return f"strike {one.id}: {one.fault}, mended at {one.mended_at}, may cost {', '.join(sorted(one.again)) or 'nothing'}"
