"""The README is run: its marked blocks in their order, as a reader would, against real servers."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis
from fix_documents import Block, blocks_of
from fix_servers import ROOT, drainer_reports, missing, wait_for_value

from bridge.local.binaries import find_postgres
from bridge.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_servers import Launcher

    from bridge.local.process import Process

README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
# An application from before, which keeps its results in Redis.
EXISTING = """
import os
from celery import Celery

app = Celery("shop", broker=os.environ["BRIDGE_BROKER_URL"], backend=os.environ["BRIDGE_BROKER_URL"])


@app.task(name="shop.receipt")
def receipt(order, email):
    return f"receipt {order} for {email}"
"""
# What a reader replaces by his own.
THEIR_DATABASE, THEIR_BROKER = "postgresql://me@localhost/shop", "redis://localhost:6379/0"
LAST_LINE = re.compile(r"(\d+) succeeded, (\d+) failed of (\d+) jobs in [\d.]+ s; pictures in (.+)")


def blocks() -> list[Block]:
    return blocks_of(ROOT / "README.md")


def block(name: str) -> Block:
    return next(block for block in blocks() if block.name == name)


def table(heading: str) -> dict[str, str]:
    """Name and default of each row of the first table of the settings that has this heading."""
    rows = SETTINGS.partition(f"| {heading} | default |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]
    return {name: default for name, default, *_ in cells}


@dataclass
class Reader:
    """Does what the README says, in a folder and with servers of his own."""

    launcher: Launcher
    folder: Path
    dsn: str
    broker_url: str

    def follow(self, step: Block) -> None:
        text = step.text.replace(THEIR_DATABASE, self.dsn).replace(THEIR_BROKER, self.broker_url)
        match step.kind:
            case "write":
                (self.folder / step.name).write_text(text)
            case "sql":
                self.query(text)
            case "start":
                for line in text.splitlines():
                    self.start(line.split())
            case "python":
                self.run([sys.executable, "-c", text])
            case _:
                self.run(["bash", "-euo", "pipefail", "-c", text])

    def query(self, text: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(text.encode())

    def run(self, command: list[str]) -> None:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"

    def start(self, words: list[str]) -> Process:
        name = "worker" if "worker" in words else "drainer"
        # A line may begin with variables, as for a shell.
        process = self.launcher.start(name, ["env", *words], self.environment, dsn=self.dsn, broker_url=self.broker_url)
        process.wait_ready(lambda: " ready." in process.log_text() if name == "worker" else drainer_reports(process), 60.0)
        return process

    @property
    def environment(self) -> dict[str, str]:
        """That of a shell in which the exports were made and the environment of the application is active."""
        ours = self.launcher.environment({}, dsn=self.dsn, broker_url=self.broker_url)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**ours, "PATH": path, "PYTHONPATH": os.pathsep.join([str(self.folder), ours["PYTHONPATH"]])}


@pytest.fixture
def reader(launcher: Launcher, tmp_path: Path, empty_dsn: str, redis_url: str) -> Reader:
    return Reader(launcher, tmp_path, empty_dsn, redis_url)


def test_the_first_steps_work_as_they_are_written(reader: Reader) -> None:
    for step in blocks():
        if step.name not in {"demo", "move"}:
            reader.follow(step)
    ended = "select count(*) from bridge.jobs where status = 'succeeded' and task = 'shop.receipt' and result is not null"
    wait_for_value(reader.dsn, ended, value=4)


def test_an_existing_application_moves_as_it_is_written(reader: Reader) -> None:
    (reader.folder / "shop.py").write_text(EXISTING)
    old = reader.start(["celery", "-A", "shop", "worker", "--loglevel", "INFO", "--concurrency", "1"])
    reader.run(["celery", "-A", "shop", "call", "shop.receipt", "--args", '[1, "ada@example.org"]', "--countdown", "1"])
    steps = [step for step in blocks() if step.name == "move"]
    for step in steps[:-1]:
        reader.follow(step)
    old.ask_to_stop()
    old.wait(30)
    reader.follow(steps[-1])
    ended = "select count(*) from bridge.jobs where status = 'succeeded' and args->>1 = 'barbara@example.org' and result is not null"
    wait_for_value(reader.dsn, ended, value=1)
    wait_for_value(reader.dsn, "select count(*) from bridge.jobs", value=1)
    assert len(redis.Redis.from_url(reader.broker_url).keys("celery-task-meta-*")) == 2, "results are where they were"


def test_make_demo_ends_with_the_line_that_sums_it_up(server_folder: Path) -> None:
    if find_postgres() is None:
        missing("postgres 15 or newer", "apt-get install postgresql-15 postgresql-15-cron")
    # A make of its own, also when make runs the tests.
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment["BRIDGE_HOME"] = str(server_folder / "readme")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block("demo").text],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = LAST_LINE.fullmatch(done.stdout.strip().splitlines()[-1])
    assert summary is not None, done.stdout
    succeeded, failed, all_of_them = (int(number) for number in summary.groups()[:3])
    assert succeeded + failed == all_of_them
    assert failed == 1
    assert Path(summary[4]).exists()


def test_the_first_command_stands_where_a_reader_sees_it() -> None:
    assert next(number for number, line in enumerate(README.splitlines(), 1) if line == "make demo") <= 25


def test_the_table_of_variables_is_that_of_the_settings() -> None:
    defaults = {f"BRIDGE_{name.upper()}": str(field.default) for name, field in Settings.model_fields.items()}
    assert table("variable") == defaults


def test_the_table_of_the_queues_settings_is_that_of_the_database(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("select name, value #>> '{}' from bridge.setting").fetchall()
    assert table("name") == dict(rows)


def test_every_link_inside_the_repository_leads_somewhere() -> None:
    for document in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
        assert [link for link in links if not (document.parent / link).exists()] == []


def always_run(path: Path) -> Iterator[str]:
    """Tests of a file that every run of the gate has: none that stands in an `if`, or says of itself when it is passed over."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    assigned = {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in module.body if isinstance(node, ast.Assign)}
    marks = {name for name, value in assigned.items() if "mark.skip" in value}
    for node in module.body if "pytestmark" not in marks else []:
        if isinstance(node, ast.FunctionDef):
            over = {ast.unparse(each) for each in node.decorator_list}
            if not over & marks and "mark.skip" not in str(over) and "pytest.skip(" not in ast.unparse(node):
                yield node.name


def test_every_promise_names_tests_that_the_gate_runs() -> None:
    proofs = dict(re.findall(r"^\| ([1-9]|that .*) \| (`test_.*`) \|$", README, re.MULTILINE))
    assert [what for what in proofs if len(what) == 1] == list("123456")
    not_promised = README.partition("**Not promised.**")[2].partition("\n### ")[0]
    assert not_promised.count("\n| that ") == len(proofs) - 6 >= 6
    there = {name for path in (ROOT / "tests").rglob("test_*.py") for name in always_run(path)}
    named = {name for words in proofs.values() for name in re.findall(r"`(test_\w+)`", words)}
    assert named - there == set()


def test_every_promise_is_there() -> None:
    promises = README.partition("## What it promises")[2].partition("### ")[0]
    assert re.findall(r"^(\d)\. ", promises, re.MULTILINE) == list("123456")
    assert "Kept in the broker by choice" in promises
