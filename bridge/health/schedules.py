"""Schedules that are late, fail, or do the same twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.health.finding import Finding, error, ok, one_line, warning
from bridge.queries import schedules

if TYPE_CHECKING:
    from bridge.health.subject import Subject

__all__ = ["due"]

_MOST = 3  # names in one line


def due(subject: Subject) -> Finding:
    """What is due runs within ``slot_grace``; a last run that failed and two schedules that do the same are worth a look."""
    state = schedules.troubles(subject.postgres)
    if not state.total:
        return ok("schedules", "there are none", value=0.0)
    if state.late:
        return error(
            "schedules", f"due and not run: {_some(state.late)}", "see the row tick: nobody ticks", value=float(len(state.late))
        )  # fmt: skip
    words = [f"the last run failed of {_some(state.failed)}"] if state.failed else []
    remedies = ["bridge schedules show <name>"] if state.failed else []
    if state.twins:
        words.append(f"the same task with the same arguments: {_some(state.twins)}")
        remedies.append("remove one of them: bridge schedules remove <name>")
    if words:
        return warning("schedules", "; ".join(words), "; ".join(remedies), value=float(len(state.failed) + len(state.twins)))
    return ok("schedules", f"{state.total} in time, {state.paused} of them paused", value=0.0)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return one_line(", ".join(names[:_MOST])) + more
