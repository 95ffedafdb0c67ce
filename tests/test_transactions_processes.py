"""Jobs in sessions that are open when their process forks or ends, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fix_servers import ROOT
from fix_transactions import engine_url, tasks_of

if TYPE_CHECKING:
    from fix_sql import Session as Sql
    from sqlalchemy import Engine

BEGIN = """
import logging, os, sys
import bridge
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
logging.basicConfig(level="WARNING")
bridge.join_sessions()
session = Session(create_engine(sys.argv[1]))
session.execute(text("select 1"))
"""


@pytest.fixture
def run(dsn: str, engine: Engine) -> Any:
    """Run a program that has begun a session and read in it; what it wrote to its log."""
    del engine

    def run(program: str) -> str:
        words = [sys.executable, "-c", BEGIN + program, engine_url(dsn, "psycopg")]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def test_a_program_that_only_read_and_ends_with_its_session_open_loses_no_job(run: Any, db: Sql) -> None:
    assert run("bridge.enqueue('mail.send')") == ""
    assert tasks_of(db) == ["mail.send"]


def test_a_program_that_wrote_and_never_committed_says_which_jobs_went_with_it(run: Any, db: Sql) -> None:
    log = run("session.execute(text(\"insert into orders values (1)\")); bridge.enqueue('mail.send')")
    assert "jobs lost with a session that was neither committed nor closed count=1 first=" in log
    assert tasks_of(db) == []


def test_a_forked_child_does_not_join_the_session_of_its_parent(run: Any, db: Sql) -> None:
    program = """
session.execute(text("insert into orders values (1)"))
bridge.enqueue("parent")
child = os.fork()
if child == 0:
    bridge.enqueue("child")
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
with bridge.using(None):
    bridge.enqueue("alone")
session.commit()
"""
    assert run(program) == ""
    assert tasks_of(db) == ["child", "alone", "parent"]
