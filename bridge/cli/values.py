"""What options of commands may be, beyond what click knows: durations, JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import click

__all__ = ["Json", "duration"]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str) -> float:
    """Seconds, from a number with or without a unit: 90, 30s, 15m, 2h, 1d.

    Raises:
        click.BadParameter: it is something else.
    """
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text)
    if parts is None:
        raise click.BadParameter(f"{text!r} is no duration: give seconds, or a number with s, m, h or d, as 15m")
    return float(parts[1]) * _UNITS[parts[2]]


class Json(click.ParamType):  # type: ignore[type-arg]
    """A JSON document of one kind, given as a word."""

    def __init__(self, kind: type, name: str) -> None:
        self._kind = kind
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the word; what is no text is there already, as a default."""
        if not isinstance(value, str):
            return value
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)
        if not isinstance(found, self._kind):
            self.fail(f"{value!r} is no {self.name.lower()}", param, ctx)
        return found
