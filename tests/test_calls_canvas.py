"""Every way to put task calls together: each part is a row, knows its root and its parent, and runs through a real worker."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import ChordError
from fix_servers import ROOT, wait_until

import bridge
from bridge.job import job_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_stack import Stack

PATIENCE = 60  # seconds that a result may take


@pytest.fixture(scope="module")
def started(bare_stack: Stack) -> Stack:
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.canvas")
    return bare_stack


@pytest.fixture
def app(started: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The caller's side: it knows no task, only names."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", started.dsn)
    app = Celery("client", broker=started.broker_url, backend="bridge://", set_as_current=False)
    bridge.install(app)
    yield app
    app.close()


def sig(app: Any, name: str, *args: Any, **options: Any) -> Any:
    return app.signature(f"canvas.{name}", args=args, **options)


def settled(stack: Stack, root: str, *expected: tuple[str, str]) -> None:
    """Wait until the rows of one workflow are these; a parent's last word may come after its child's."""
    wait_until(lambda: family(stack, root) == list(expected), PATIENCE, f"rows {expected}")


def family(stack: Stack, root: str) -> list[tuple[str, str]]:
    """Task and status of every row of one workflow, in the order in which they were made."""
    query = "select task, status from bridge.jobs where headers ->> 'root_id' = %s order by seq"
    return stack.sql.execute(query, (root,)).fetchall()


def test_the_steps_of_a_chain_are_rows_that_know_their_parent(app: Any, started: Stack) -> None:
    result = chain(sig(app, "add", 1, 2), sig(app, "add", 10), sig(app, "add", 100)).apply_async()
    assert result.get(timeout=PATIENCE) == 113
    parents = started.sql.execute(
        "select headers ->> 'parent_id' from bridge.jobs where id = any(%s) order by created_at",
        ([job_id(one.id) for one in (result.parent.parent, result.parent, result)],),
    )
    assert [row[0] for row in parents] == [None, result.parent.parent.id, result.parent.id]
    settled(started, result.parent.parent.id, *[("canvas.add", "succeeded")] * 3)


def test_a_step_that_fails_ends_its_chain_and_the_rest_never_was(app: Any, started: Stack) -> None:
    result = chain(sig(app, "add", 1, 2), sig(app, "fail", "halt", immutable=True), sig(app, "add", 3)).apply_async()
    root = result.parent.parent
    settled(started, root.id, ("canvas.add", "succeeded"), ("canvas.fail", "failed"))


def test_a_group_is_a_row_a_part_and_its_results_keep_their_order(app: Any, started: Stack) -> None:
    result = group(sig(app, "add", number, number) for number in range(8)).apply_async()
    assert result.get(timeout=PATIENCE) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert {started.job(job_id(part.id))["headers"]["group"] for part in result.results} == {result.id}


def test_a_chord_calls_its_body_once_with_all_results(app: Any, started: Stack) -> None:
    result = chord([sig(app, "add", number, 1) for number in range(5)])(sig(app, "total"))
    assert result.get(timeout=PATIENCE) == 15
    bodies = started.sql.execute(
        "select count(*) from bridge.jobs where task = 'canvas.total' and args ->> 0 = '[1, 2, 3, 4, 5]'"
    ).fetchone()
    assert bodies == (1,)


def test_a_chord_inside_a_chain_inside_a_chord_adds_up(app: Any) -> None:
    inner = chain(group(sig(app, "add", 1, 1), sig(app, "add", 2, 2)), sig(app, "total"), sig(app, "add", 100))
    result = chord([inner, sig(app, "add", 0, 5)])(sig(app, "total"))
    assert result.get(timeout=PATIENCE) == 111


def test_map_starmap_and_chunks_run_what_they_name(app: Any) -> None:
    total, add = app.signature("canvas.total"), app.signature("canvas.add")
    assert app.signature("celery.map", kwargs={"task": total, "it": [[1, 2], [3]]}).apply_async().get(timeout=PATIENCE) == [3, 3]
    assert app.signature("celery.starmap", kwargs={"task": add, "it": [(1, 2), (3, 4)]}).apply_async().get(timeout=PATIENCE) == [3, 7]
    from apps.canvas import add as theirs

    parts = theirs.chunks([(n, n) for n in range(6)], 2).group()
    assert group((part.clone() for part in parts.tasks), app=app).apply_async().get(timeout=PATIENCE) == [[0, 2], [4, 6], [8, 10]]


def test_a_link_is_called_with_the_result_and_a_link_error_with_the_failure(app: Any, started: Stack) -> None:
    linked, sorry = sig(app, "add", 5).set(task_id="after-success"), sig(app, "sorry").set(task_id="after-failure")
    app.send_task("canvas.add", (1, 1), link=linked)
    failed = app.send_task("canvas.fail", ("no luck",), link_error=sorry)
    assert app.AsyncResult("after-success").get(timeout=PATIENCE) == 7
    wait_until(lambda: started.job(job_id("after-failure")).get("status") == "succeeded", PATIENCE, "the errback")
    assert started.job(job_id("after-failure"))["result"] == f"sorry for {failed.id}"


def test_a_task_that_replaces_itself_keeps_its_id_and_gives_the_others_result(app: Any, started: Stack) -> None:
    result = app.send_task("canvas.delegate", (20, 22))
    assert result.get(timeout=PATIENCE) == 42
    job = started.job(job_id(result.id))
    assert (job["task"], job["status"]) == ("canvas.add", "succeeded")
    assert [outcome for _, outcome in started.attempts(job_id(result.id))] == ["retried", "succeeded"]


def test_a_task_that_replaces_itself_by_a_group_gives_all_results(app: Any) -> None:
    assert app.send_task("canvas.spread", ([1, 2, 3],)).get(timeout=PATIENCE) == [101, 102, 103]


def test_a_task_that_replaces_itself_by_steps_is_not_over_before_the_last(app: Any, started: Stack) -> None:
    result = app.send_task("canvas.in_steps", (1,))
    seen = {started.job(job_id(result.id)).get("status")}
    assert result.get(timeout=PATIENCE) == 1034
    job = started.job(job_id(result.id))
    assert (job["task"], job["status"]) == ("canvas.add", "succeeded")
    assert "succeeded" not in seen
    assert [outcome for _, outcome in started.attempts(job_id(result.id))] == ["retried", "succeeded"]


def test_a_task_whose_replacement_fails_has_failed(app: Any, started: Stack) -> None:
    result = app.send_task("canvas.hopeless")
    with pytest.raises(ChordError, match="one of them"):
        result.get(timeout=PATIENCE)
    assert started.job(job_id(result.id))["status"] == "failed"


def test_a_part_of_a_chord_that_replaces_itself_counts_once_when_its_last_task_has_ended(app: Any) -> None:
    result = chord([sig(app, "in_steps", 1), sig(app, "add", 1, 1)])(sig(app, "total"))
    assert result.get(timeout=PATIENCE) == 1036


def test_a_part_may_add_another_to_its_chord(app: Any) -> None:
    result = chord([sig(app, "grow", 1), sig(app, "add", 2, 0)])(sig(app, "total"))
    assert result.get(timeout=PATIENCE) == 1004


def test_stamps_reach_the_task(app: Any) -> None:
    from celery.canvas import StampingVisitor

    class ByTenant(StampingVisitor):
        def on_signature(self, _sig: Any, **_headers: Any) -> dict[str, Any]:
            return {"tenant": "t-7"}

    marked = sig(app, "stamps")
    marked.stamp(ByTenant())
    assert marked.apply_async().get(timeout=PATIENCE) == {"tenant": "t-7"}


def test_celery_call_makes_a_row(started: Stack) -> None:
    command = [sys.executable, "-m", "celery", "-A", "apps.canvas", "call", "canvas.add", "--args", "[2, 3]", "--countdown", "0.1"]
    environment = started.processes[0].env
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    job = started.wait(job_id(done.stdout.split()[-1]))
    assert (job["task"], job["args"], job["result"]) == ("canvas.add", [2, 3], 5)


def shown(identity: str) -> dict[str, tuple[str, str, list[str]]]:
    """What a workflow shows, by the arguments of a job or else its name."""
    return {str(node.node): (node.kind, node.name, sorted(node.relations)) for node in bridge.workflow(identity)}


def test_a_chain_shows_as_a_workflow_from_any_of_its_steps(app: Any) -> None:
    result = chain(sig(app, "add", 1, 2), sig(app, "add", 10), sig(app, "add", 100)).apply_async()
    assert result.get(timeout=PATIENCE) == 113
    step = ("job", "canvas.add", ["chain"])
    assert shown(result.id) == {result.parent.parent.id: ("job", "canvas.add", []), result.parent.id: step, result.id: step}


def test_a_chord_shows_with_its_group_and_its_body(app: Any) -> None:
    result = chord(group(sig(app, "add", 1, 2), sig(app, "add", 3, 4)), sig(app, "total")).apply_async()
    assert result.get(timeout=PATIENCE) == 10
    found = shown(result.id)
    assert found[result.parent.id] == ("group", "group", [])
    assert [found[part.id] for part in result.parent.results] == [("job", "canvas.add", ["group"])] * 2
    assert found[result.id] == ("job", "canvas.total", ["chord", "chord"])


def test_a_job_that_replaced_itself_by_a_chain_fails_when_a_step_of_it_is_cancelled(app: Any, started: Stack) -> None:
    started.sql.execute("select bridge.pause(task => 'canvas.add')")
    try:
        result = sig(app, "in_steps", 1).apply_async()
        settled(started, result.id, ("canvas.in_steps", "blocked"), ("canvas.add", "queued"))
        started.sql.execute(
            "select bridge.cancel(id) from bridge.jobs where headers ->> 'root_id' = %s and status = 'queued'", (result.id,)
        )
        with pytest.raises(Exception, match="a task that it waits for ended as cancelled"):
            result.get(timeout=PATIENCE)
    finally:
        started.sql.execute("select bridge.resume(task => 'canvas.add')")
    assert bridge.get(result.id).status == "failed"
