"""What somebody writes into a job does not steer the terminal, or forge the lines, of who looks at it."""

from __future__ import annotations

import json
import logging
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from psycopg import errors
from rich.console import Console

from bridge.cli import main, tables
from bridge.records import JsonFormatter, Secrets, TextFormatter, shown

if TYPE_CHECKING:
    from fix_sql import Session

EVIL = "\x1b]0;mine\x07\x1b[2J\x9b31m\u202egnihton\rall is well\x7f"


def steering(text: str) -> set[str]:
    """Characters of a text that a terminal obeys."""
    return {sign for sign in text if unicodedata.category(sign) in {"Cc", "Cf"} and sign not in "\n\t"}


def says(*words: str) -> str:
    done = CliRunner().invoke(main, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output


@pytest.fixture
def failed(db: Session, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job whose arguments, log and error are such texts, and a schedule."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", db.dsn)
    monkeypatch.setenv("BRIDGE_BROKER_URL", "memory://")
    identity = db.enqueue("t", args=json.dumps([EVIL]), max_attempts=1, serial_key=EVIL)
    claim, run = db.run()
    error = {"type": "ValueError", "message": EVIL, "traceback": f"Traceback\n  {EVIL}"}
    db.do("select bridge.fail(%s, %s, %s, true, null, %s)", claim.seq, run, json.dumps(error), claim.token)
    db.do("select bridge.schedule('s', '@daily', 't', args => %s)", json.dumps([EVIL]))
    return str(identity)


def test_no_command_prints_what_steers_a_terminal(db: Session, failed: str) -> None:
    printed = {
        " ".join(words): says(*words)
        for words in (
            ["jobs", "list"], ["jobs", "show", failed], ["jobs", "show", failed, "--json"], ["jobs", "history", failed],
            ["jobs", "workflow", failed], ["jobs", "list", "--json"], ["dead", "list"], ["dead", "list", "--json"], ["schedules", "list"],
            ["queues", "list"], ["health"], ["doctor", "--check", "stuck"], ["top", "--count", "1"], ["limits", "list"],
        )
    }  # fmt: skip
    assert {words: steering(text) for words, text in printed.items() if steering(text)} == {}
    assert "\\x1b]0;mine" in printed["jobs list"]
    told = json.loads(printed[f"jobs show {failed} --json"])
    assert told["error"]["message"] == EVIL, "JSON says the same in its own way"
    assert db.one("select args from bridge.jobs where id = %s", failed) == [EVIL]


def test_tables_of_a_terminal_spell_such_signs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, width=200, color_system=None, record=True)
    monkeypatch.setattr(tables, "Console", lambda: console)
    with console.capture() as captured:
        tables.print_table(["id", "status"], [[EVIL, tables.status_text(EVIL)]])
    assert steering(captured.get()) == set()
    assert shown("plain äöü 日本\n\ttext") == "plain äöü 日本\n\ttext"


@pytest.mark.parametrize("sign", ["\x1b", "\x07", "\x9b", "\x7f", "\n"])
def test_names_of_tasks_and_queues_hold_no_such_sign(db: Session, sign: str) -> None:
    for options in ({"task": f"t{sign}"}, {"task": "t", "queue": f"q{sign}"}):
        with pytest.raises(errors.DatabaseError, match=r"(task|queue) is "):
            db.enqueue(**options)


def test_a_line_of_our_logs_is_one_line_whatever_is_in_it() -> None:
    record: Any = logging.LogRecord("bridge", logging.WARNING, "", 0, "refused queue=%s", (f"q\n2026 ERROR forged {EVIL}",), None)
    for formatter in (TextFormatter(Secrets({})), JsonFormatter(Secrets({}))):
        line = formatter.format(record)
        assert "\n" not in line
        assert steering(line) == set()
