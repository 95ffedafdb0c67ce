"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bridge.errors import BridgeError

__all__ = ["Finding", "Grade", "error", "from_exception", "ok", "one_line", "skipped", "warning"]


class Grade(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # jobs still run; worth a look
    ERROR = "error"  # jobs do not run, or soon will not; the exit code is 1
    SKIPPED = "skipped"  # could not be looked at; ``found`` says why


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the doctor's report.

    Attributes:
        name: the check's.
        status: how bad it is.
        found: what was seen, for people.
        remedy: what to do; empty when there is nothing to do.
        value: the number that was judged, where there is one: seconds, a count, or a share of 1.
    """

    name: str
    status: Grade
    found: str
    remedy: str = ""
    value: float | None = None

    def as_dict(self) -> dict[str, str | float | None]:
        """The same, fit for JSON."""
        return {
            "name": self.name, "status": self.status.value, "found": self.found, "remedy": self.remedy, "value": self.value,
        }  # fmt: skip


def ok(name: str, found: str, *, remedy: str = "", value: float | None = None) -> Finding:
    """All is well; a remedy here is an improvement one may make."""
    return Finding(name, Grade.OK, found, remedy, value)


def warning(name: str, found: str, remedy: str, *, value: float | None = None) -> Finding:
    """Jobs still run; worth a look."""
    return Finding(name, Grade.WARNING, found, remedy, value)


def error(name: str, found: str, remedy: str, *, value: float | None = None) -> Finding:
    """A person must act."""
    return Finding(name, Grade.ERROR, found, remedy, value)


def skipped(name: str, reason: str, remedy: str = "") -> Finding:
    """The check could not be made."""
    return Finding(name, Grade.SKIPPED, reason, remedy)


def from_exception(name: str, problem: Exception) -> Finding:
    """A check that failed itself, as a row: its message, and its hint when it is one of ours."""
    if isinstance(problem, BridgeError):
        return error(name, one_line(problem.args[0]), problem.hint)
    return error(name, f"{type(problem).__name__}: {one_line(problem)}", "see the servers' logs; repeat with --check " + name)


def one_line(problem: object) -> str:
    """The words of an error without its line breaks."""
    return " ".join(str(problem).split())
