"""Databases that are made once and cloned for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from psycopg import sql

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
    _days: dict[str, date] = field(default_factory=dict)

    def make_template(self, fill: Callable[[str], object]) -> str:
        """Make a database that `fill` puts a schema into, given its DSN; its name."""
        name = self.create()
        self._fills[name] = fill
        self._fill(name)
        return name

    def create(self, template: str = "template0") -> str:
        """As those it extends."""
        if template in self._fills and self._days[template] != _today():
            self.drop(template)
            self._execute(sql.SQL("create database {} template template0 encoding 'UTF8'").format(sql.Identifier(template)))
            self._fill(template)
        return super().create(template)

    def _fill(self, name: str) -> None:
        self._days[name] = _today()
        self._fills[name](self.dsn_of(name))
