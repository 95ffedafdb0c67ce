"""One entry of another scheduler, and what it would be as a schedule of ours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Entry", "NotCarriedOverError"]


class NotCarriedOverError(Exception):
    """Why an entry cannot become a schedule of ours."""


@dataclass(slots=True)
class Entry:
    """One entry of another scheduler.

    Attributes:
        name: as the other one has it.
        schedule: arguments of ``bridge.schedule`` by name; None when it cannot be carried over.
        refusal: why it cannot; empty when it can.
        notes: what of it becomes different, or is left behind.
        role: the role of the database that it runs as; empty for whoever imports.
        job: its number in pg_cron, where it is active there.
        line: where it stands in a crontab, from 1; 0 elsewhere.
        columns: where each field of its expression begins in that line, from 1.
    """

    name: str
    schedule: dict[str, Any] | None = None
    refusal: str = ""
    notes: list[str] = field(default_factory=list)
    role: str = ""
    job: int | None = None
    line: int = 0
    columns: tuple[int, ...] = ()

    def located(self, message: str) -> str:
        """What was refused, with the line, and the character of it, that an error about the expression means."""
        if not self.line:
            return message
        found = re.match(r"cron '.*', character (\d+): (.*)", message, re.DOTALL)
        if found is None or self.schedule is None or not self.columns:
            return f"line {self.line}: {message}"
        before = self.schedule["cron"][: int(found[1]) - 1]
        words = before.split(" ")
        column = self.columns[min(len(words), len(self.columns)) - 1] + len(words[-1])
        return f"line {self.line}, character {column}: {found[2]}"
