# ruff: noqa: INP001 - a script, no package
"""Parse every SQL file with the parser of Postgres itself, without a server.

A psql meta-command or a template's placeholder is a syntax error here, as it is in a web SQL editor. What is inside plpgsql
functions is judged by plpgsql_check, in tests/test_repository.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pglast

ROOT = Path(__file__).resolve().parent.parent


def complaint(file: Path) -> str | None:
    """What the parser has against one file; None when it is well."""
    try:
        pglast.parse_sql(file.read_text(encoding="utf-8"))
    except pglast.Error as error:
        return f"{file.relative_to(ROOT)}: {error}"
    return None


def main() -> None:
    """Check them all; status 1 when one is not SQL."""
    files = sorted([*ROOT.glob("sql/**/*.sql"), *ROOT.glob("tasks/*/sql/**/*.sql")])
    complaints = [said for file in files if (said := complaint(file))]
    for said in complaints:
        click.echo(said, err=True)
    click.echo(f"{len(files)} SQL files, {len(complaints)} with errors")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
