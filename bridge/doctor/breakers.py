"""Circuit breakers that hold something back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.doctor.finding import Finding, ok, warning
from bridge.queries import breakers

if TYPE_CHECKING:
    from bridge.doctor.subject import Subject

__all__ = ["tripped"]


def tripped(subject: Subject) -> Finding:
    """A breaker that is open, or half open, holds a queue or task back because its attempts fail."""
    found = breakers.breakers(subject.postgres)
    tripped = [row for row in found if row["state"] != "closed"]
    if not tripped:
        return ok("breakers", f"{len(found)} closed" if found else "there are none", value=0.0)
    return warning(
        "breakers", "; ".join(f"{row['kind']} {row['name']} is {row['state'].replace('_', ' ')}: {row['reason']}" for row in tripped),
        "see why: bridge jobs list --status failed; it closes by itself when its probes succeed, or by bridge breakers reset",
        value=float(len(tripped)),
    )  # fmt: skip
