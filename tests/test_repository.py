"""What no linter knows about this repository: sizes, versions that must agree, words that must not be there, plpgsql_check."""

from __future__ import annotations

import ast
import gc
import os
import re
import subprocess
from functools import cache
from statistics import median
from typing import TYPE_CHECKING

import psycopg
import pytest
import yaml
from fix_servers import ROOT, missing

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONGEST_FILE = 400
LONGEST_FUNCTION, MOST_BRANCHES = 60, 10
BRANCHES = (ast.If, ast.For, ast.While, ast.IfExp, ast.ExceptHandler, ast.match_case)
# Put together here, so that this file does not hold what it looks for.
HOSTS = (("py", "pi."), ("python", "hosted."), ("registry", ".npm"), ("deb", ".debian"))
REGISTRIES = re.compile("|".join(re.escape(start + end) for start, end in HOSTS))
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:" + "work|root" + r")/\w|/(?:" + "home|Users" + r")/(?!me\b|you\b)\w")
# psycopg, outside of the modules that speak SQL, is there for the names of its errors.
SPEAKS_SQL = ("bridge/queries/", "bridge/schema/", "bridge/session.py", "bridge/local/", "bridge/bench/", "bridge/testing/databases.py")


@cache
def tracked() -> tuple[Path, ...]:
    """The files that git would take, those not yet added included; all files where there is no git, as in an unpacked sdist."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, check=False)
    if done.returncode == 0:
        names = [name for name in os.fsdecode(done.stdout).split("\0") if name]
        return tuple(path for name in names if (path := ROOT / name).is_file())
    return tuple(path for path in ROOT.rglob("*") if path.is_file() and not {".venv", ".matrix", "__pycache__"} & set(path.parts))


def texts(*suffixes: str) -> Iterator[tuple[str, str]]:
    """Name and text of the tracked text files; all of them without suffixes."""
    for path in tracked():
        if not suffixes or path.suffix in suffixes:
            try:
                yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def parsed(text: str) -> ast.Module:
    """Parse without a garbage collection in between: CPython counts the depths of two threads as one (gh-106905), and one may run then."""
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        gc.enable()


def functions() -> Iterator[tuple[str, int, int]]:
    """Place, lines without the docstring, and branches of every function."""
    for name, text in texts(".py"):
        for node in ast.walk(parsed(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                told = ast.get_docstring(node, clean=False) is not None
                words = (first.end_lineno or 0) - first.lineno + 1 if told else 0
                lines = (node.end_lineno or 0) - node.lineno + 1 - words
                yield f"{name}:{node.lineno} {node.name}", lines, sum(isinstance(part, BRANCHES) for part in ast.walk(node))


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_no_file_of_code_is_too_long_to_be_read_at_once() -> None:
    assert [name for name, text in texts(".py", ".sql") if len(text.splitlines()) > LONGEST_FILE] == []


def test_no_function_is_too_long_or_branches_too_much() -> None:
    assert [place for place, lines, branches in functions() if lines > LONGEST_FUNCTION or branches > MOST_BRANCHES] == []


def test_functions_are_short_as_a_rule() -> None:
    lengths = sorted(lines for place, lines, _ in functions() if place.startswith("bridge/"))
    assert median(lengths) <= 8
    assert lengths[len(lengths) * 9 // 10] <= 25


def test_no_file_names_a_package_registry() -> None:
    assert [(name, found[0]) for name, text in texts() if (found := REGISTRIES.search(text))] == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    assert [(name, found[0]) for name, text in texts() if (found := MACHINE_PATHS.search(text))] == []


def test_lines_of_documents_are_not_wider_than_a_page() -> None:
    documents = {path.name: path.read_text(encoding="utf-8").splitlines() for path in ROOT.glob("*.md")}
    lines = ((name, number, line) for name, text in documents.items() for number, line in enumerate(text, 1))
    wide = [(name, number) for name, number, line in lines if len(line) > 130 and not line.startswith("|")]
    assert wide == []


def test_the_schema_is_of_the_same_release_as_the_package() -> None:
    schema = (ROOT / "sql/00_schema.sql").read_text()
    serves_from = re.search(r"function bridge\.serves_from.*?return '(\d+\.\d+\.\d+)';", schema, re.DOTALL)
    assert serves_from is not None
    others = schema[: serves_from.start()] + schema[serves_from.end() :]
    assert set(re.findall(r"\b\d+\.\d+\.\d+\b", others)) == {bridge.__version__}


def test_the_changelog_tells_of_this_release() -> None:
    assert f"\n## [{bridge.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_hooks_run_what_make_check_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = re.search(r"^check: ([\w -]+?) *##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert checks is not None
    assert sorted(hook["entry"].removeprefix("make ") for hook in hooks) == sorted(checks[1].split())
    assert {hook["language"] for hook in hooks} == {"system"}


def test_every_make_target_that_a_document_names_exists() -> None:
    named = {word for _, text in texts(".md") for word in re.findall(r"`?make ([a-z-]+)(?=[` \n]|$)", text)}
    documented = {word for word in named if re.search(rf"[`\s]make {word}", (ROOT / "README.md").read_text())}
    assert documented - makefile_targets() == set()


@pytest.mark.parametrize("name", [".ci/run", "scripts/environment", "scripts/fuzz", "scripts/pg_cron", "scripts/test-matrix"])
def test_scripts_can_be_run(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    assert (ROOT / name).read_text().startswith("#!")


def test_what_is_not_written_against_sql_takes_only_errors_from_psycopg() -> None:
    others = {}
    for name, text in texts(".py"):
        if name.startswith("bridge/") and not name.startswith(SPEAKS_SQL):
            taken = set(re.findall(r"\bpsycopg\.(\w+)", text)) | set(re.findall(r"from psycopg\S* import (.+)", text))
            others[name] = {word for word in taken if not word.endswith("Error") and word != "errors"}
    assert {name: words for name, words in others.items() if words} == {}


@pytest.fixture
def checked_dsn(cron_dsn: str) -> Iterator[str]:
    """A database with plpgsql_check and every schema of ours; it has pg_cron, because functions name its tables."""
    with psycopg.connect(cron_dsn, autocommit=True) as connection:
        row = connection.execute("select 1 from pg_available_extensions where name = 'plpgsql_check'").fetchone()
        if row is None:
            missing("plpgsql_check in this postgres", "apt-get install postgresql-15-plpgsql-check")
        connection.execute("drop schema if exists media cascade")
        for file in sorted(ROOT.glob("tasks/*/sql/*.sql")):
            connection.execute(file.read_text().encode())
        connection.execute("create extension if not exists plpgsql_check")
        yield cron_dsn
        connection.execute("drop extension plpgsql_check")
        connection.execute("drop schema media cascade")


def test_plpgsql_check_has_nothing_to_say_about_any_function(checked_dsn: str) -> None:
    query = """
        select p.oid::regprocedure::text, c.level, c.message, c.lineno
        from pg_proc p join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
          left join pg_trigger t on t.tgfoid = p.oid,
          -- one trigger is there only while a day is put aside
          lateral plpgsql_check_function_tb(p.oid,
            coalesce(t.tgrelid, case when p.prorettype = 'trigger'::regtype then 'bridge.finished'::regclass end, 0)) c
        where p.pronamespace::regnamespace::text in ('bridge', 'media')
    """
    with psycopg.connect(checked_dsn) as connection:
        assert connection.execute(query).fetchall() == []
