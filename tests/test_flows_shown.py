"""Workflows and batches from Python and the command line: the same names, the same rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fix_client import command

import bridge
from bridge.errors import InvalidArgumentError, NotFoundError, WaitTimeoutError

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result
    from fix_sql import Session

pytestmark = pytest.mark.usefixtures("ours")


def run(*words: object, exit_code: int = 0) -> Result:
    result = command(*words)
    assert result.exit_code == exit_code, result.output
    return result


def shape(nodes: Any) -> list[tuple[str, str, list[str]]]:
    return [(node.name, node.status, node.relations) for node in nodes]


def test_a_flow_is_made_shown_and_added_to(db: Session, tmp_path: Path) -> None:
    ids = bridge.enqueue_flow({"report": {"task": "t.report", "depends_on": ["fetch"]}, "fetch": {"task": "t.fetch"}})
    other = bridge.enqueue("t.other")
    assert bridge.add_dependency(ids["report"], other) == "blocked"
    expected = [("t.fetch", "queued", []), ("t.report", "blocked", ["depends_on", "depends_on"]), ("t.other", "queued", [])]
    for identity in (ids["fetch"], other):
        assert sorted(shape(bridge.workflow(identity))) == sorted(expected)
    file = tmp_path / "flow.json"
    file.write_text(json.dumps({"a": {"task": "t.a"}, "b": {"task": "t.b", "depends_on": ["a", str(other)]}}))
    made = json.loads(run("jobs", "enqueue-flow", file, "--json").output)
    assert {node["name"] for node in json.loads(run("jobs", "workflow", made["a"], "--json").output)} == {
        "t.a", "t.b", "t.other", "t.report", "t.fetch",
    }  # fmt: skip
    run("jobs", "add-dependency", made["a"], ids["fetch"], "--on-parent-failure", "wait")
    assert db.status(made["a"]) == "blocked"
    assert "circle" in run("jobs", "add-dependency", ids["fetch"], made["a"], exit_code=1).output
    assert run("jobs", "workflow", ids["fetch"]).output.splitlines()[0] == "id\tkind\tname\tstatus\tafter\terror"


def test_a_flow_that_cannot_be_is_refused_in_words(db: Session) -> None:
    with pytest.raises(InvalidArgumentError, match=r"circle: (a → b → a|b → a → b)"):
        bridge.enqueue_flow({"a": {"task": "t", "depends_on": ["b"]}, "b": {"task": "t", "depends_on": ["a"]}})
    with pytest.raises(InvalidArgumentError, match="not JSON"):
        bridge.enqueue_flow({"a": {"task": "t", "args": [object()]}})
    with pytest.raises(NotFoundError, match="nothing is known"):
        bridge.workflow(db.one("select gen_random_uuid()"))


def test_a_batch_is_made_filled_waited_for_and_shown(db: Session) -> None:
    identity = bridge.create_batch("import", callback="t.done", args=[1], callback_on="success")
    jobs = [bridge.enqueue("t.part", [n], batch=identity) for n in range(2)]
    assert bridge.seal_batch(identity) == "running"
    with pytest.raises(WaitTimeoutError, match="is running after"):
        bridge.wait_batch(identity, timeout=0.01)
    for _ in jobs:
        db.finish(*db.run(limit=1))
    batch = bridge.wait_batch(identity, timeout=10)
    assert (batch.status, batch.succeeded, batch.total, batch.progress) == ("succeeded", 2, 2, 1.0)
    assert ("t.done", "queued", ["callback"]) in shape(bridge.workflow(identity))
    assert json.loads(run("batches", "list", "--json").output)[0]["id"] == str(identity)
    assert "2 succeeded" in run("batches", "show", identity).output
    run("batches", "wait", identity, "--timeout", "5")


def test_a_batch_of_the_command_line_is_cancelled(db: Session) -> None:
    identity = run("batches", "create", "--name", "b", "--callback", "t.done").output.strip()
    db.enqueue("t.part", batch=identity)
    assert "running" in run("batches", "seal", identity).output
    assert "1 jobs" in run("batches", "cancel", identity).output
    assert db.one("select status from bridge.batches") == "cancelled"
    assert "cancelled" in run("batches", "wait", identity, exit_code=1).output
    assert "does not exist" in run("batches", "show", db.one("select gen_random_uuid()"), exit_code=1).output


def test_celery_calls_join_a_batch_and_wait_for_jobs(db: Session, caller: Any) -> None:
    identity = bridge.create_batch("calls")
    parent = bridge.enqueue("t.parent", max_attempts=1)
    caller.signature("t.celery").apply_async(bridge={"batch": identity, "depends_on": [parent], "on_parent_failure": "run"})
    bridge.seal_batch(identity)
    (row,) = db.rows("select status, batch from bridge.jobs where task = 't.celery'")
    assert row == ("blocked", identity)
    db.fail(*db.run())
    assert db.one("select status from bridge.jobs where task = 't.celery'") == "queued"
    db.finish(*db.run())
    assert bridge.get_batch(identity).status == "succeeded"
