"""What `bridge doctor` looks at: one check a function, each with what was found and what to do about it."""

from __future__ import annotations

from bridge.doctor.examination import CHECKS, examine
from bridge.doctor.finding import Finding, Grade
from bridge.doctor.limits import Limits

__all__ = ["CHECKS", "Finding", "Grade", "Limits", "examine"]
