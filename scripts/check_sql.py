# ruff: noqa: INP001 - a script, no package
"""Parse every SQL file with the parser of Postgres itself, without a server, and hold functions to the rules of rights.

A psql meta-command or a template's placeholder is a syntax error here, as it is in a web SQL editor. What is inside plpgsql
functions is judged by plpgsql_check, in tests/test_repository.py.

Every function fixes its search_path, with pg_temp last: where that is not named it comes first, and a caller's temporary type called
text would stand for Postgres's own, its checks run with the owner's rights. One that runs with its owner's rights (security definer) is
an entry: some role may execute it, or it is a trigger's. What bridge.granted lists exists, in the order of the alphabet, and what Python
calls by a role it lists.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click
import pglast
from pglast import ast
from table_of_roles import ROLES, lines

ROOT = Path(__file__).resolve().parent.parent
# What only the owner of the schema does: installing, archives with his own rights, tenants, and pretending another time in tests.
OWNERS_READS = {"drainer"}  # of the stack that `bridge up` runs
OWNERS_CALLS = {
    "announce_cron",
    "create_archive",
    "cron_plan",
    "disable_tenants",
    "enable_tenants",
    "expire_due",
    "grant_all",
    "register_cron",
}
_READS = re.compile(r"\b(?:from|join) bridge\.(\w+)(?![\w(.])(?! import)")
_MADE = re.compile(r"create table bridge\.(\w+)|define_view\('(\w+)'")
_CALLS = re.compile(r'(?:select|from|call|lateral|,) bridge\.(\w+)\(|by_name\(\s*"(\w+)"')
_PATH = ["pg_catalog", "pg_temp"]
REMEDY = "add a line to bridge.granted in sql/90_role.sql, then run python scripts/table_of_roles.py --write"


@dataclass(frozen=True)
class Function:
    """What the rules ask of one function."""

    schema: str
    name: str
    pinned: bool
    definer: bool
    trigger: bool
    procedure: bool


def complaint(file: Path) -> str | None:
    """What the parser has against one file; None when it is well."""
    try:
        pglast.parse_sql(file.read_text(encoding="utf-8"))
    except pglast.Error as error:
        return f"{file.relative_to(ROOT)}: {error}"
    return None


def functions_of(file: Path) -> list[Function]:
    """The functions and procedures that a file creates."""
    made = [raw.stmt for raw in pglast.parse_sql(file.read_text(encoding="utf-8")) if isinstance(raw.stmt, ast.CreateFunctionStmt)]
    return [function_of(statement) for statement in made]


def path_of(statement: ast.CreateFunctionStmt) -> list[str]:
    """The search_path that a function sets; empty when it sets none."""
    for option in statement.options or ():
        if option.defname == "set" and option.arg.name == "search_path":
            return [value.val.sval for value in option.arg.args or ()]
    return []


def function_of(statement: ast.CreateFunctionStmt) -> Function:
    """What one CREATE FUNCTION says."""
    options = {option.defname: option.arg for option in statement.options or () if option.defname != "set"}
    schema, name = (part.sval for part in statement.funcname or ())
    returned = statement.returnType.names[-1].sval if statement.returnType and statement.returnType.names else ""
    definer = "security" in options and bool(options["security"].boolval)
    return Function(schema, name, path_of(statement) == _PATH, definer, returned == "trigger", bool(statement.is_procedure))


def complaints_about(functions: list[Function]) -> list[str]:
    """What breaks the rules of rights."""
    listed = {line.name for line in lines() if line.kind == "function"}
    known = {function.name for function in functions if function.schema == "bridge"}
    said = [
        f'{f.schema}.{f.name} does not fix search_path: write "set search_path = pg_catalog, pg_temp"'
        for f in functions
        if not f.pinned and not f.procedure
    ]
    entries = (f for f in functions if f.schema == "bridge" and f.definer and not f.trigger)
    said += [f"bridge.{f.name} is security definer and no role may execute it: {REMEDY}" for f in entries if f.name not in listed]
    said += [f"bridge.granted lists the function {name}, which no file makes" for name in sorted(listed - known)]
    said += [
        f"Python calls bridge.{name}, and no role may execute it: {REMEDY}" for name in sorted((called() & known) - listed - OWNERS_CALLS)
    ]
    return said


def complaints_about_reads() -> list[str]:
    """Tables and views that the library reads by a role, and no role may read."""
    made = {table or view for file in ROOT.glob("sql/*.sql") for table, view in _MADE.findall(file.read_text(encoding="utf-8"))}
    listed = {line.name for line in lines() if line.kind == "read"}
    read = {name for text in library() for name in _READS.findall(text)}
    return [f"Python reads bridge.{name}, and no role may: {REMEDY}" for name in sorted((read & made) - listed - OWNERS_READS)]


def library() -> list[str]:
    """The modules that programs run: neither benchmarks nor what helps tests."""
    paths = (path for path in ROOT.glob("bridge/**/*.py") if not {"bench", "testing", "testing.py"} & set(path.parts))
    return [path.read_text(encoding="utf-8") for path in paths]


def called() -> set[str]:
    """The functions that the library calls in its SQL."""
    return {name or other for text in library() for name, other in _CALLS.findall(text)}


def complaints_about_list() -> list[str]:
    """What is wrong with the list itself."""
    order = list(ROLES)
    odd = (line for line in lines() if list(line.roles) != sorted(set(line.roles) & set(order), key=order.index))
    said = [f"bridge.granted: {line.name} has roles {' '.join(line.roles)}: give some of {' '.join(order)}, in this order" for line in odd]
    turned = (after for before, after in pairwise(lines()) if before.kind == after.kind and before.name >= after.name)
    said += [f"bridge.granted: {line.name} is out of its place: keep the order of the alphabet, a line each" for line in turned]
    return said


def main() -> None:
    """Check them all; status 1 when one is not SQL or breaks a rule."""
    files = sorted([*ROOT.glob("sql/**/*.sql"), *ROOT.glob("tasks/*/sql/**/*.sql")])
    complaints = [said for file in files if (said := complaint(file))]
    if not complaints:
        functions = [function for file in files for function in functions_of(file)]
        complaints = [*complaints_about(functions), *complaints_about_reads(), *complaints_about_list()]
    for said in complaints:
        click.echo(said, err=True)
    click.echo(f"{len(files)} SQL files, {len(complaints)} complaints")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
