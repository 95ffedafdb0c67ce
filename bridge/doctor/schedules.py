"""Schedules that are late, fail, are slow, or run too often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.doctor.finding import Finding, error, ok, one_line, warning
from bridge.queries import schedules

if TYPE_CHECKING:
    from bridge.doctor.subject import Subject

__all__ = ["due"]

_MOST = 3  # names in one line


def due(subject: Subject) -> Finding:
    """What is due runs within ``slot_grace``; a last run that failed or is slow, and what runs too often, are worth a look."""
    state = schedules.troubles(subject.postgres)
    if not state.total:
        return ok("schedules", "there are none", value=0.0)
    if state.late:
        return error(
            "schedules", f"due and not run: {_some(state.late)}", "see the row tick: nobody ticks", value=float(len(state.late))
        )  # fmt: skip
    words, remedies = [], []
    for names, trouble, remedy in (
        (state.failed, "the last run failed of", "bridge schedules show <name>"),
        (state.slow, "slow:", "bridge schedules slow"),
        (state.often, "run too often:", "bridge schedules too-often"),
    ):
        if names:
            words.append(f"{trouble} {_some(names)}")
            remedies.append(remedy)
    if words:
        found = len(state.failed) + len(state.slow) + len(state.often)
        return warning("schedules", "; ".join(words), "; ".join(remedies), value=float(found))
    return ok("schedules", f"{state.total} in time, {state.paused} of them paused", value=0.0)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return one_line(", ".join(names[:_MOST])) + more
