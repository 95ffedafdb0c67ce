"""What was recorded of the jobs' rows while faults struck, replayed against the model of the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model import trace
from model.replay import replay

from laboratory.checker import Sin

if TYPE_CHECKING:
    from collections import Counter

SHOWN = 40  # records of a story, up to the step that is refused


def replayed(dsn: str, *, max_losses: int) -> tuple[list[Sin], Counter[str]]:
    """A sin for each job of which a step is none of the model's, and how often each step was taken that is."""
    found = replay(trace.read(dsn), max_losses=max_losses)
    sins = [Sin("not_in_the_model", None, f"job {job}: {lines[-1]}", tuple(lines[-SHOWN - 1 : -1])) for job, lines in found.refused.items()]
    return sins, found.taken
