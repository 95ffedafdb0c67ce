# ruff: noqa: INP001 - a script, no package
"""Print who may what as the table of docs/security.md, from the list in sql/90_role.sql; with --write put it there.

The list is what people decide, the page what they read. tests/test_sql_roles.py asks Postgres whether the page is true.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
LIST, PAGE = ROOT / "sql/90_role.sql", ROOT / "docs/security.md"
ROLES = ("producer", "worker", "operator", "viewer", "tenant")
VERBS = {"function": "execute", "read": "select", "update": "update"}
MARKS = ("<!-- roles -->\n", "<!-- end of roles -->\n")
_LINE = re.compile(rf"^({'|'.join(VERBS)})\s+(\S+)\s+(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Line:
    """One line of the list: which roles may do something with one object."""

    kind: str
    name: str
    roles: tuple[str, ...]


def lines() -> list[Line]:
    """The lines of ``bridge.granted``."""
    return [Line(kind, name, tuple(roles.split())) for kind, name, roles in _LINE.findall(LIST.read_text(encoding="utf-8"))]


def table() -> str:
    """The table, a line an object."""
    rows = [f"| may | of | {' | '.join(ROLES)} |", f"|---|---|{'---|' * len(ROLES)}"]
    for line in lines():
        marks = " | ".join("yes" if role in line.roles else "" for role in ROLES)
        rows.append(f"| {VERBS[line.kind]} | `{line.name.replace('(', '.').rstrip(')')}` | {marks} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """The page with the table as it should be."""
    begin, end = MARKS
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    return f"{before}{begin}{table()}{end}{rest.split(end)[1]}"


@click.command()
@click.option("--write", is_flag=True, help="Put the table into docs/security.md instead of printing it.")
def main(*, write: bool) -> None:
    """Say who may what."""
    if write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        click.echo(table(), nl=False)


if __name__ == "__main__":
    main()
