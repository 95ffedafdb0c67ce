"""Behind a pgbouncer in transaction mode, where each transaction may run in another session: callers, drainers and workers."""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery import Celery, chord
from fix_servers import missing, wait_until
from fix_stack import Stack
from laboratory.pooler import HOW_TO_GET_IT, Pooler, find_pgbouncer

import bridge
from bridge.queries.connection import connect, is_pooled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def pooled(bare_stack: Stack, server_folder: Path) -> Iterator[str]:
    """DSN of the stack's database through a pgbouncer of our own."""
    if find_pgbouncer() is None:
        missing("pgbouncer", HOW_TO_GET_IT)
    folder = server_folder / f"pgbouncer-{secrets.token_hex(3)}"
    pooler = Pooler(bare_stack.dsn, folder, sessions=4)
    pooler.start()
    pooler.process.wait_ready(lambda: _answers(pooler.dsn))
    yield pooler.dsn
    pooler.stop()
    shutil.rmtree(folder, ignore_errors=True)


def _answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture(scope="module")
def stack(bare_stack: Stack, pooled: str) -> Iterator[Stack]:
    """Drainer and worker know the database through the pooler alone."""
    behind = Stack(pooled, bare_stack.broker_url, bare_stack.folder)
    behind.sql.prepare_threshold = None
    behind.start_drainer()
    behind.start_worker("apps.chords", env={"C_FORCE_ROOT": "1"})
    yield behind
    behind.kill_all()
    behind.sql.close()


@pytest.fixture
def app(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", stack.dsn)
    app = Celery("behind", broker=stack.broker_url, backend="bridge://", set_as_current=False)
    bridge.install(app)
    yield app
    app.close()


def test_a_drainer_behind_a_pooler_wants_to_be_told_nothing(stack: Stack) -> None:
    wait_until(lambda: stack.sql.execute("select count(*) from bridge.drainer").fetchone() == (1,))
    assert stack.sql.execute("select count(*) from bridge.listener").fetchone() == (0,)


def test_a_pooler_is_noticed_and_its_sessions_are_left_as_they_are(bare_stack: Stack, pooled: str) -> None:
    with connect(pooled, name="test", timeout=7.0) as behind, connect(bare_stack.dsn, name="test", timeout=7.0) as direct:
        assert (is_pooled(behind), is_pooled(direct)) == (True, False)
        limits = [session.execute("show statement_timeout").fetchone() for session in (behind, direct)]
    assert limits == [("0",), ("7s",)]


def test_jobs_run_and_results_come_back(app: Any, stack: Stack) -> None:
    results = [app.send_task("chords.more", (number, 1)) for number in range(40)]
    assert [result.get(timeout=PATIENCE) for result in results] == list(range(1, 41))
    assert app.ResultSet(results).get(timeout=PATIENCE) == list(range(1, 41))
    with pytest.raises(ValueError, match="behind"):
        app.send_task("chords.fail", ("behind",)).get(timeout=PATIENCE)
    assert "pooled=True" in stack.processes[0].log_text()


def test_chords_retries_and_waits_work(app: Any, stack: Stack) -> None:
    header = [app.signature("chords.flaky", (1,)), app.signature("chords.give", (2,))]
    assert chord(header, app.signature("chords.collect"))().get(timeout=PATIENCE) == [1, 2]
    job = bridge.enqueue("chords.give", [3])
    assert [one.result for one in bridge.wait(job, timeout=PATIENCE)] == [3]
    wait_until(lambda: stack.sql.execute("select count(*) from bridge.job").fetchone() == (0,), PATIENCE, "no live job")


def test_nobody_listens_in_a_session_that_others_get(app: Any, bare_stack: Stack) -> None:
    assert app.send_task("chords.give", (4,)).get(timeout=PATIENCE) == 4
    listening = "select count(*) from pg_stat_activity where datname = current_database() and query ilike 'listen%'"
    assert bare_stack.sql.execute(listening).fetchone() == (0,)
    assert bare_stack.sql.execute("select count(*) from bridge.waiter").fetchone() == (0,)


def test_who_waits_gives_up_in_time(app: Any) -> None:
    with pytest.raises(app.AsyncResult("x").TimeoutError):
        app.send_task("chords.give", (5,), countdown=600).get(timeout=0.3)
