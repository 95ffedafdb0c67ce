"""Databases that are made once and cloned for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bridge.testing.databases import Databases

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date

__all__ = ["TemplateDatabases"]


def _today() -> date:
    return datetime.now(UTC).date()


@dataclass
class TemplateDatabases(Databases):
    """Databases whose templates are made anew when their day is over: what an installation makes depends on it, by its partitions."""

    _fills: dict[str, Callable[[str], object]] = field(default_factory=dict)
    _filled: dict[str, tuple[date, str]] = field(default_factory=dict)  # by template: its day, and the database that is cloned on it

    def make_template(self, fill: Callable[[str], object]) -> str:
        """Make a database that `fill` puts a schema into, given its DSN; its name."""
        name = super().create()
        self._fills[name] = fill
        self._fill(name, name)
        return name

    def create(self, template: str = "template0") -> str:
        """As those it extends."""
        if template in self._fills:
            day, current = self._filled[template]
            template = current if day == _today() else self._fill(template, super().create())
        return super().create(template)

    def _fill(self, template: str, name: str) -> str:
        self._filled[template] = _today(), name
        self._fills[template](self.dsn_of(name))
        return name
