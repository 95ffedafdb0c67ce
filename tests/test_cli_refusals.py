"""What a command says to somebody who may not, and where there is no schema: one line with a remedy, never a traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fix_client import command
from psycopg import conninfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Session

COMMANDS = ["health", "top", "cleanup", "tick", "jobs list", "queues list", "schedules list", "alerts list", "roles rights"]


@pytest.fixture
def viewer(db: Session) -> Iterator[str]:
    """A login that may look."""
    name = f"looking_{db.one('select current_database()')}"
    db.do(f"create role {name} login in role bridge_viewer")
    yield name
    db.do(f"drop role {name}")


@pytest.mark.parametrize("words", COMMANDS)
def test_a_database_without_the_schema_is_told_what_to_run(words: str, empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", empty_dsn)
    result = command(*words.split())
    assert (result.exit_code, result.stderr) == (1, 'error: schema bridge is missing or of another release: run "bridge install"\n')


def test_a_table_that_is_not_there_is_named(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)
    result = command("cleanup", "archive", "set", "nowhere.jobs")
    assert (result.exit_code, result.stderr.partition(": give")[0]) == (1, 'error: schema "nowhere" does not exist')


def test_who_may_not_is_told_which_role_may(db: Session, viewer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", conninfo.make_conninfo(db.dsn, user=viewer))
    assert command("alerts", "list").exit_code == 0
    refused = {"alerts set paused --disable": "set_alert", "cleanup": "begin_cleanup", "schedules run x": "run_schedule"}
    for words, function in refused.items():
        result = command(*words.split())
        said = f"error: permission denied for function {function}: grant the role bridge_viewer to look, bridge_operator to change things"
        assert (result.exit_code, result.stderr.partition(";")[0]) == (1, said)
