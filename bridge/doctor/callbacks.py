"""Messages that did not arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.doctor.finding import Finding, ok, warning
from bridge.queries import callbacks

if TYPE_CHECKING:
    from bridge.doctor.subject import Subject

__all__ = ["undelivered"]


def undelivered(subject: Subject) -> Finding:
    """A message that nobody took in all its attempts has failed; until then it is tried again."""
    lost = callbacks.undelivered(subject.postgres)
    if not lost.failed:
        return ok("callbacks", f"{lost.rules} callbacks; no message has failed within a day", value=0.0)
    return warning(
        "callbacks", f"{lost.failed} messages have failed within a day, the last to {lost.target}: {lost.error}",
        'set right what it says, then run them again: bridge jobs retry --failed --task "bridge.deliver_webhook"', value=float(lost.failed),
    )  # fmt: skip
