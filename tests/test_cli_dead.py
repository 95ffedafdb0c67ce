"""What `bridge dead` prints, does and answers with its exit code, and the same from Python."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from fix_client import command
from fix_servers import ROOT

import bridge
from bridge import bulk
from bridge.errors import InvalidArgumentError, NotFoundError, WrongStateError

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable

    from click.testing import Result
    from fix_sql import Session


@pytest.fixture
def dead(ours: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:  # noqa: ARG001
    """Runs `bridge dead` with these words."""
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("LOGNAME", "ada")
    return partial(command, "dead")


def die(db: Session, task: str = "mail.send", **options: Any) -> uuid.UUID:
    identity = db.enqueue(task, max_attempts=1, **options)
    db.fail(*db.run())
    return identity


def listed(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_dead_letters_are_listed_shown_redriven_and_discarded(db: Session, dead: Callable[..., Result]) -> None:
    first, second, third = (die(db, args=[number]) for number in range(3))
    db.enqueue()
    assert [row["id"] for row in listed(dead("list", "--json"))] == [str(third), str(second), str(first)]
    assert [row["id"] for row in listed(dead("list", "--with-args", "[1]", "--error", "Value*", "--json"))] == [str(second)]
    assert dead("list").stdout.splitlines()[1].split("\t")[:4] == [str(third), "mail.send", "celery", "failed"]

    result = dead("redrive", first, "--args", '["new"]', "--to-queue", "slow", "--priority", 5, "--max-attempts", 2, "--note", "a typo")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[1].split("\t") == [str(first), "mail.send", "queued"]
    shown = listed(dead("show", first, "--json"))
    assert (shown["args"], shown["queue"], shown["priority"], shown["max_attempts"]) == (["new"], "slow", 5, 3)
    (note,) = shown["notes"]
    assert (note["action"], note["by"], note["note"]) == ("redriven", "ada", "a typo")
    assert note["before"] == {"args": [0], "queue": "celery", "priority": 0}
    assert "redriven\tada" in dead("show", first).stdout

    assert dead("discard", second, "--note", "a test order").exit_code == 0
    assert [row["id"] for row in listed(dead("list", "--json"))] == [str(third)]
    again = dead("discard", second)
    assert again.exit_code == 1
    assert f"job {second} was discarded by ada on " in again.stderr


def test_many_are_meant_by_filters_and_a_dry_run_shows_which(db: Session, dead: Callable[..., Result]) -> None:
    mail, other = [die(db) for _ in range(3)], die(db, "report")
    dry = listed(dead("redrive", "--task", "mail.*", "--dry-run", "--json"))
    assert {row["id"] for row in dry} == set(map(str, mail))
    assert db.status(mail[0]) == "failed"
    result = dead("redrive", "--task", "mail.*", "--limit", 2, "--delay", "1h")
    assert result.stdout == "redrive: 2 of 2 jobs, 0 skipped; stopped at --limit 2, run it again for more\n"
    assert [db.status(identity) for identity in mail] == ["scheduled", "scheduled", "failed"]
    assert listed(dead("redrive", "--task", "mail.*", "--json")) == {"matched": 1, "changed": 1, "skipped": 0, "more": False}
    assert listed(dead("discard", "--all", "--json"))["changed"] == 1
    assert db.one("select note from bridge.job_note where id = %s", other) is None
    assert listed(dead("list", "--json")) == []
    assert [row[0] for row in db.rows("select distinct by from bridge.job_note")] == ["ada"]


@pytest.mark.parametrize(
    "words",
    [
        ("redrive",), ("discard",), ("redrive", "an-id", "--all"), ("redrive", "an-id", "--task", "t"), ("discard", "--all", "-Q", "q"),
        ("redrive", "an-id", "--args", "{}"), ("redrive", "an-id", "--kwargs", "nonsense"), ("redrive", "an-id", "--priority", "10"),
        ("redrive", "--all", "--delay", "soon"), ("list", "--status", "failed"), ("show",),
    ],
)  # fmt: skip
def test_wrong_use_ends_with_2_and_says_what_to_give(words: tuple[str, ...]) -> None:
    result = command("dead", *words)
    assert result.exit_code == 2
    assert "Error" in result.stderr


@pytest.mark.parametrize("named", ["list", "show", "redrive", "discard"])
def test_help_shows_examples_line_by_line(named: str) -> None:
    assert f"Examples:\n    bridge dead {named}" in command("dead", named, "--help").stdout


def test_before_many_are_discarded_a_person_at_a_terminal_is_asked(db: Session, dead: Callable[..., Result]) -> None:
    identity = die(db)
    assert dead("list").exit_code == 0
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}

    def at_a_terminal(answer: bytes, *words: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "bridge", *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=ROOT
        ) as process:
            os.write(ours, answer)
            code = process.wait(60)
        os.close(theirs)
        said = os.read(ours, 100_000).decode()
        os.close(ours)
        return code, said

    code, said = at_a_terminal(b"n\n", "dead", "discard", "--all")
    assert (code, "discard 1 jobs? [y/N]" in said) == (1, True)
    assert db.one("select count(*) from bridge.dead_jobs") == 1
    code, said = at_a_terminal(b"y\n", "dead", "discard", "--all")
    assert (code, "discard: 1 of 1 jobs" in said) == (0, True)
    db.do("select bridge.retry(%s)", identity)
    code, said = at_a_terminal(b"", "jobs", "cancel", "--task", "mail.*", "--yes")
    assert (code, "[y/N]" in said) == (0, False)
    assert db.status(identity) == "cancelled"


@pytest.mark.usefixtures("dead")
def test_python_redrives_and_discards_by_the_same_names(db: Session) -> None:
    first, second = (die(db, args=[number]) for number in range(2))
    assert bridge.redrive(str(first), args=["new"], delay=timedelta(hours=1), by="grace") is bridge.Status.SCHEDULED
    assert bridge.get(first).args == ["new"]
    bridge.discard(second, note="a test order")
    for function in (bridge.redrive, bridge.discard):
        with pytest.raises(WrongStateError, match=f"job {second} was discarded by"):
            function(second)
        with pytest.raises(NotFoundError, match="does not exist"):
            function("no-such-job")
    with pytest.raises(InvalidArgumentError, match="args of the redrive is not JSON"):
        bridge.redrive(first, args=[object()])
    assert db.rows("select action, by, note from bridge.job_note order by at")[0] == ("redriven", "grace", None)


@pytest.mark.usefixtures("dead")
def test_python_does_it_to_many_in_pages_that_are_committed_one_by_one(db: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_PAGE", 2)
    ids = [db.enqueue("mail.send", args=[number], max_attempts=1) for number in range(5)]
    for claim in db.claim():
        db.fail(claim, db.start(claim))
    assert bridge.redrive_jobs({"task": "mail.*"}, dry_run=True) == bridge.Counts(5, 0, 0, more=False)
    pages: list[int] = []

    def shown(count: int) -> None:
        pages.append(count)
        assert db.one("select count(*) from bridge.dead_jobs") == 5 - sum(pages), "what came before is committed"

    from bridge.dead import REDRIVE

    wanted = bulk.jsonable(bridge.Filter(task="mail.*", finished_after=datetime(2020, 1, 1, tzinfo=UTC), max_jobs=5))
    assert bulk.run(db.connection, REDRIVE, wanted, shown=shown) == bridge.Counts(5, 5, 0, more=True)
    assert pages == [2, 2, 1]
    assert bridge.cancel_jobs(bridge.Filter(ids=[str(ids[0]), "no-such-job"])) == bridge.Counts(1, 1, 0, more=False)
    assert [job.id for job in bridge.select_jobs({"status": bridge.Status.CANCELLED})] == [ids[0]]
    assert bridge.discard_jobs({"all": True}) == bridge.Counts(0, 0, 0, more=False)


@pytest.mark.usefixtures("dead")
def test_python_refuses_what_sql_refuses_before_anything_is_done(db: Session) -> None:
    identity = die(db)
    for wanted, words in [
        ({}, "filter names nothing"),
        ({"tsak": "a"}, "filter names 'tsak'"),
        ({"status": "queued"}, "status of the filter"),
    ]:
        for function in (bridge.redrive_jobs, bridge.discard_jobs):
            with pytest.raises(InvalidArgumentError, match=words):
                function(wanted)  # type: ignore[operator]
    for cancel, meant in ((bridge.cancel_jobs, {"all": True}), (bridge.cancel, identity)):
        with pytest.raises(InvalidArgumentError, match="signal is 'NO SIGNAL'"):
            cancel(meant, signal="NO SIGNAL")
    with pytest.raises(InvalidArgumentError, match="created_after of the filter is not JSON"):
        bridge.select_jobs({"created_after": object()})  # type: ignore[typeddict-item]
    assert db.status(identity) == "failed"


@pytest.mark.usefixtures("dead")
def test_many_belong_to_the_callers_transaction_where_he_names_one(db: Session) -> None:
    identity = die(db)
    with db.connection.transaction(force_rollback=True):
        assert bridge.redrive_jobs({"all": True}, connection=db.connection).changed == 1
    assert db.status(identity) == "failed"
