"""Later steps of chains: what becomes of them when a step ends in SQL alone, and how they show before they have rows."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fix_sql import Session

NOTHING = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def signature(task: str, identity: Any, **options: Any) -> dict[str, Any]:
    return {"task": task, "args": [1], "kwargs": {}, "options": {"task_id": str(identity), "queue": "q", **options}, "immutable": False}


def canvas(kind: str, **parts: Any) -> dict[str, Any]:
    return {"task": f"celery.{kind}", "args": [], "kwargs": parts, "options": {}, "subtask_type": kind}


def call(db: Session, task: str, identity: Any, *, links: Any = None, **embed: Any) -> None:
    """A Celery call; `chain` in the order of the steps."""
    if "chain" in embed:
        embed["chain"] = embed["chain"][::-1]
    db.do(
        "select bridge.enqueue_message(%s, null, %s, 'celery', 9::smallint, '[]', '{}', %s, null, null, null, null, '{}', null, null,"
        " p_links => %s)",
        identity, task, json.dumps({**NOTHING, **embed}), json.dumps(links) if links else None,
    )  # fmt: skip


def ids(count: int) -> list[uuid.UUID]:
    return [uuid.uuid4() for _ in range(count)]


def shown(db: Session, identity: Any) -> dict[uuid.UUID, tuple[str, str, str, dict[uuid.UUID, str]]]:
    rows = db.rows("select node, kind, name, status, parents, relations from bridge.workflow(%s)", identity)
    return {row[0]: (row[1], row[2], row[3], dict(zip(row[4], row[5], strict=True))) for row in rows}


@pytest.mark.parametrize("end", ["cancel", "expiry", "last loss"])
def test_steps_after_one_that_ends_in_sql_alone_never_run(db: Session, end: str) -> None:
    first, second, third = ids(3)
    call(db, "first", first, chain=[signature("second", second), signature("third", third)])
    if end == "cancel":
        db.do("select bridge.cancel(%s)", first)
    elif end == "expiry":
        db.do("update bridge.job set expires_at = now() where id = %s", first)
        db.tick()
    else:
        db.do("update bridge.setting set value = '0' where name = 'max_losses'")
        claim, _ = db.run()
        db.do("select bridge.lose(%s, %s, 'gone')", claim.seq, claim.token)
    assert [db.status(step) for step in (second, third)] == ["cancelled", "cancelled"]
    assert "a task that it waits for ended as" in db.field(third, "error->>'message'")


@pytest.mark.parametrize("when", ["after the run", "before its end"])
def test_a_job_that_replaced_itself_by_a_chain_ends_with_a_step_that_is_cancelled(db: Session, when: str) -> None:
    job = db.enqueue("the.first")
    claim, run = db.run()
    db.do("select bridge.mark_replaced(%s, %s, %s)", claim.seq, run, claim.token)
    (step,) = ids(1)
    call(db, "a.step", step, chain=[signature("the.last", job)])
    if when == "after the run":
        assert db.one("select bridge.step_aside(%s, %s, %s)", claim.seq, run, claim.token)
        assert db.status(job) == "blocked"
    db.do("select bridge.cancel(%s)", step)
    assert (db.status(job), db.field(job, "error->>'type'")) == ("failed", "ParentFailed")
    assert db.one("select count(*) from bridge.replaced") == 0


def test_a_part_of_a_chord_that_never_comes_is_counted(db: Session) -> None:
    first, part = ids(2)
    body = signature("body", uuid.uuid4())
    db.do("select bridge.begin_chord('g1', %s, null, 'celery', null)", json.dumps(body))
    db.do("select bridge.size_chord('g1', 1)")
    call(db, "first", first, chain=[signature("part", part, group_id="g1", group_index=0, chord=body)])
    db.do("select bridge.cancel(%s)", first)
    assert db.tick()["joins"] == 1


def test_a_chain_shows_with_the_steps_that_have_no_row_yet(db: Session) -> None:
    first, second, left, right, body, last = ids(6)
    group = canvas("group", tasks=[signature("left", left), signature("right", right)])
    chain = [signature("second", second), canvas("chord", header=group, body=signature("body", body)), signature("last", last)]
    call(db, "first", first, chain=chain)
    found = shown(db, first)
    assert {name: (kind, status) for kind, name, status, _ in found.values()} == {
        "first": ("job", "queued"), **dict.fromkeys(["second", "left", "right", "body", "last"], ("step", "planned")),
    }  # fmt: skip
    assert found[second][3] == {first: "chain"}
    assert found[left][3] == {second: "group"}
    assert found[body][3] == {left: "chord", right: "chord"}
    assert found[last][3] == {body: "chain"}


def test_a_chain_shows_whole_from_any_of_its_steps(db: Session) -> None:
    first, second, third = ids(3)
    call(db, "first", first, chain=[signature("second", second), signature("third", third)])
    call(db, "second", second, links={"called": str(first)}, chain=[signature("third", third)])
    for identity in (first, second):
        assert shown(db, identity) == {
            first: ("job", "first", "queued", {}), second: ("job", "second", "queued", {first: "chain"}),
            third: ("step", "third", "planned", {second: "chain"}),
        }  # fmt: skip


def test_a_group_and_the_body_of_its_chord_show_together(db: Session) -> None:
    group, body = ids(2)
    parts = ids(3)
    for part in parts:
        call(db, "part", part, links={"group": str(group)}, chord=signature("body", body))
    found = shown(db, parts[0])
    assert found[group][:3] == ("group", "group", "running")
    assert found[parts[2]][3] == {group: "group"}
    assert found[body] == ("step", "body", "planned", dict.fromkeys(parts, "chord"))
    for _ in parts:
        db.finish(*db.run(limit=1))
    assert shown(db, group)[group][2] == "succeeded"


def test_dependencies_and_batches_show_with_what_celery_has_called(db: Session) -> None:
    batch = db.one("select bridge.create_batch('the batch', 'the.callback')")
    parent = db.enqueue("parent", batch=batch)
    child = db.enqueue("child", depends_on=[parent], batch=batch)
    (called,) = ids(1)
    call(db, "called", called, links={"called": str(child)})
    db.do("select bridge.seal_batch(%s)", batch)
    for _ in range(3):
        db.finish(*db.run(limit=1))
    (callback,) = db.rows("select callback_job from bridge.batches")[0]
    assert shown(db, called) == {
        batch: ("batch", "the batch", "succeeded", {}), parent: ("job", "parent", "succeeded", {batch: "batch"}),
        child: ("job", "child", "succeeded", {parent: "depends_on", batch: "batch"}),
        called: ("job", "called", "succeeded", {child: "called"}),
        callback: ("job", "the.callback", "queued", {batch: "callback"}),
    }  # fmt: skip


def test_a_workflow_shows_no_more_than_asked(db: Session) -> None:
    parent = db.enqueue()
    for _ in range(20):
        db.enqueue(depends_on=[parent])
    assert len(db.rows("select * from bridge.workflow(%s, 5)", parent)) == 5


def test_links_are_forgotten_with_history(db: Session) -> None:
    parent = db.enqueue()
    child = db.enqueue(depends_on=[parent], on_parent_failure="wait", delay="1 year")
    db.do("select bridge.seal_batch(bridge.create_batch('old'))")
    db.do("select bridge.cleanup(p_now => now() + interval '40 days')")
    assert db.one("select count(*) from bridge.batch") == 0
    assert db.one("select count(*) from bridge.link") == 1, "its child still waits"
    db.do("select bridge.make_days()")  # today was among the days that are over
    db.do("select bridge.cancel(%s)", child)
    db.do("select bridge.cleanup(p_now => now() + interval '40 days')")
    assert db.one("select count(*) from bridge.link") == 0
