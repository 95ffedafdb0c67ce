"""Cleaning up from Python and the command line: the same names as in SQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from fix_retention import end_long_ago, ids

import bridge
from bridge.cli import main
from bridge.client import forget_connections
from bridge.errors import InvalidArgumentError

if TYPE_CHECKING:
    from fix_sql import Session

Command = Callable[..., Result]


@pytest.fixture
def command(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Runs `bridge cleanup`."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)
    forget_connections()
    yield lambda *words: CliRunner().invoke(main, ["cleanup", *words])
    forget_connections()


@pytest.mark.usefixtures("command")
def test_python_cleans_up_by_batches_and_tells_how_far_it_is(db: Session) -> None:
    assert bridge.set_retention("noisy", keep=86400) == "created"
    assert bridge.set_retention("noisy", keep=86400) == "unchanged"
    assert [(rule["queue"], rule["about"]) for rule in bridge.retentions()] == [
        ("noisy", "queue"),
        (None, "dead_retention"),
        (None, "retention"),
    ]
    gone, stays = end_long_ago(db, "2 days", queue="noisy"), end_long_ago(db, "2 days")
    assert [row["found"] for row in bridge.cleanup(dry_run=True)] == [1]
    assert ids(db) == {gone, stays}
    seen: list[dict[str, Any]] = []
    done = bridge.cleanup(by="ada", progress=seen.append)
    assert [(row["status"], row["deleted"]) for row in done] == [("done", 1)]
    assert ids(db) == {stays}
    assert seen[0]["left"] > len(seen) // 2
    assert {"table_name", "operation", "rows"} <= seen[0].keys()
    last = bridge.cleanups(limit=1)[0]
    assert (last["by"], last["status"], last["deleted"]) == ("ada", "done", 1)
    assert [row["table_name"] for row in bridge.cleanups(last["id"])] == [done[0]["table_name"]]
    assert bridge.remove_retention("noisy") is True
    assert bridge.remove_retention("noisy") is False
    with pytest.raises(InvalidArgumentError, match="keep is"):
        bridge.set_retention("noisy", keep=-1)


@pytest.mark.usefixtures("command")
def test_a_cleanup_in_the_callers_transaction_stands_and_falls_with_it(db: Session) -> None:
    bridge.set_retention(status="succeeded", keep=86400)
    identity = end_long_ago(db, "2 days")
    with db.connection.transaction(force_rollback=True):
        assert [row["deleted"] for row in bridge.cleanup(connection=db.connection)] == [1]
    assert ids(db) == {identity}


def test_the_command_cleans_up_and_shows_its_log(db: Session, command: Command) -> None:
    assert command("retention", "set", "--queue", "celery", "--status", "cancelled", "--keep", "1d").stdout == (
        "queue celery status cancelled created\n"
    )
    assert command("retention", "list").stdout.splitlines()[1].split("\t")[:4] == ["queue and status", "celery", "cancelled", "1 d 0 h"]
    end_long_ago(db, "2 days", "cancelled")
    header, line = command("--dry-run").stdout.splitlines()
    assert dict(zip(header.split("\t"), line.split("\t"), strict=True)).items() >= {"status": "planned", "found": "1"}.items()
    assert [row["deleted"] for row in json.loads(command("--json").stdout)] == [1]
    whole = json.loads(command("log", "--json").stdout)[0]
    assert (whole["operation"], whole["deleted"]) == ("cleanup", 1)
    assert json.loads(command("log", str(whole["id"]), "--json").stdout)[0]["operation"] == "delete"
    assert command("retention", "remove", "-Q", "celery", "--status", "cancelled").stdout == "queue celery status cancelled removed\n"
    assert command("retention", "set").exit_code == 1
    assert command("retention", "set", "--status", "running", "--keep", "1d").exit_code == 2
    db.do("alter table bridge.ready reset (autovacuum_vacuum_threshold)")
    assert "because: rows live seconds" in command("advice").stdout
    assert "alter table bridge.ready set" in json.loads(command("advice", "--json").stdout)[0]["remedy"]


def test_the_command_sets_an_archive_and_fails_where_a_table_could_not_be_cleaned(db: Session, command: Command) -> None:
    db.do("create schema history")
    assert command("archive", "set", "history.jobs", "--create").stdout == "archive history.jobs set\n"
    end_long_ago(db, "40 days")
    db.do("alter table history.jobs drop column result")
    failed = command()
    assert failed.exit_code == 1
    assert "failed" in failed.stdout
    assert json.loads(command("archive", "remove", "--json").stdout)["outcome"] == "removed"
    assert command().exit_code == 0
    assert ids(db) == set()
