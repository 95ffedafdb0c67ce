"""Tests of applications whose framework rolls each test back: what they enqueue and run is rolled back too."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from fix_servers import ROOT
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from bridge.testing import assert_enqueued, refute_enqueued, run_jobs
from bridge.testing.applications import renew

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_calls import MakeApp
    from sqlalchemy import Connection


def test_djangos_test_case_sees_runs_and_rolls_back_its_jobs(empty_dsn: str) -> None:
    ours = {
        "DJANGO_SETTINGS_MODULE": "django_shop.settings_joined", "SHOP_DATABASE_URL": empty_dsn, "SHOP_BROKER_URL": "redis://127.0.0.1:1/0",
        "SHOP_RESULTS_URL": "bridge://", "SHOP_JOINS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/apps'}",
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "CELERY_"))}
    command = [sys.executable, "-m", "django", "test", "django_shop"]
    done = subprocess.run(command, env={**kept, **ours}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 3 tests" in done.stderr


@pytest.fixture
def outer(dsn: str) -> Iterator[Connection]:
    """A connection with a transaction around the test, which sessions join by savepoints: SQLAlchemy's recipe for test suites."""
    engine = create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        transaction = connection.begin()
        yield connection
        transaction.rollback()
    engine.dispose()


def test_a_session_in_an_outer_transaction_sees_runs_and_rolls_back_its_jobs(make_caller: MakeApp, outer: Connection) -> None:
    renew()
    app = make_caller()
    session = Session(outer, join_transaction_mode="create_savepoint")
    session.execute(text("create table written (word text)"))
    session.commit()

    @app.task(shared=False, name="orm.note")
    def note(word: str) -> str:
        return word

    @app.task(shared=False, name="orm.write")
    def write(word: str) -> None:
        with Session(outer, join_transaction_mode="create_savepoint") as own:
            own.execute(text("insert into written values (:word)"), {"word": word})
            note.delay(word)
            if not word:
                own.execute(text("select 1/0"))
            own.commit()

    session.execute(text("select 1"))  # a transaction is open, which both calls join
    write.delay("kept")
    write.delay("")
    session.commit()
    run_jobs(app, connection=session)
    assert list(session.scalars(text("select word from written"))) == ["kept"]
    assert_enqueued(write, args=[""], status="failed", connection=session)
    assert_enqueued(note, args=["kept"], status="succeeded", connection=session)
    assert_enqueued(note, times=1, connection=session)  # the other went with its session
    refute_enqueued()  # for everybody else there is nothing
    session.close()


def test_a_session_left_open_on_a_closed_connection_does_not_stop_other_calls(make_caller: MakeApp, dsn: str) -> None:
    renew()
    engine = create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        session = Session(connection)
        session.execute(text("select 1"))
    make_caller().send_task("orm.later")
    assert_enqueued("orm.later")
    session.close()
    engine.dispose()
