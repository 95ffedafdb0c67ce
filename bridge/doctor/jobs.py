"""Jobs that do not move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.doctor.finding import Finding, error, ok, warning
from bridge.queries import health

if TYPE_CHECKING:
    from bridge.doctor.subject import Subject

__all__ = ["queued", "stuck"]

_REMEDIES = {
    "published": "see the rows workers, plugin and broker: does a worker consume the queue",
    "running": "is its worker busy with it; if not: bridge jobs cancel <id>",
}


def queued(subject: Subject) -> Finding:
    """A due job should be published at once, unless its queue is paused or its window is full."""
    heads = health.ready_heads(subject.postgres)
    if not heads:
        return ok("queued", "no job is due and unpublished", value=0.0)
    held = [head for head in heads if head.paused]
    waiting = [head for head in heads if not head.paused]
    paused = f"; paused: {', '.join(sorted(head.queue for head in held))}" if held else ""
    if not waiting:
        return ok("queued", f"due jobs wait only where that is wanted{paused}", value=0.0)
    oldest = max(waiting, key=lambda head: (head.room != 0, head.age))
    found = f"the oldest due job of {oldest.queue} has waited {oldest.age:.1f} s{paused}"
    late = [head for head in waiting if head.age > subject.limits.queued_late]
    if not late:
        return ok("queued", found, value=oldest.age)
    if all(head.room == 0 for head in late):
        return warning(
            "queued", f"{found}: as many jobs as the window allows are with the broker and not started",
            f"more workers for {oldest.queue}; see the rows workers and plugin", value=oldest.age,
        )  # fmt: skip
    return error(
        "queued", f"{found} for a drainer", "see the row drainers: one must be alive and serve this queue (BRIDGE_QUEUES)", value=oldest.age
    )


def stuck(subject: Subject) -> Finding:
    """A published job has no deadline and a running one may take its time; beyond ``stuck_after`` a person should look."""
    groups = health.stuck(subject.postgres)
    count = sum(group.count for group in groups)
    if not groups:
        return ok("stuck", "no job is published or running for longer than the setting stuck_after", value=0.0)
    bound = "at least " if count == health.MOST_STUCK else ""
    words = [f"{group.count} {group.status}, the oldest ({group.example}) for {group.age:.0f} s" for group in groups]
    remedies = [_REMEDIES[group.status] for group in groups]
    return warning("stuck", bound + "; ".join(words), "; ".join(remedies), value=float(count))
