"""Does time bring about what it should: the tick."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.doctor.finding import Finding, error, ok
from bridge.queries import health

if TYPE_CHECKING:
    from bridge.doctor.subject import Subject

__all__ = ["tick"]

_NOBODY = "start a drainer (bridge drain, BRIDGE_TICK not off), or: create extension pg_cron, then bridge install"
_LATE = {
    "pg_cron": "see the row pg_cron; a drainer takes over unless its BRIDGE_TICK is off",
    "drainer": "see the row drainers and the drainer's log: it died, hangs, or has BRIDGE_TICK=off",
}


def tick(subject: Subject) -> Finding:
    """Delayed jobs, retries, expiry and the recovery of what died all wait for it."""
    state = health.tick_state(subject.postgres)
    if state.age is None:
        return error("tick", "nobody has ever ticked: delayed jobs do not start, and nothing that dies is recovered", _NOBODY)
    found = f"{state.source} ticked {state.age:.1f} s ago"
    if state.age > max(subject.limits.tick_late, 3 * state.interval):
        return error(
            "tick", f"{found}: delayed jobs are late, and nothing that dies is recovered", _LATE.get(state.source, _NOBODY), value=state.age
        )
    return ok("tick", found, value=state.age)
