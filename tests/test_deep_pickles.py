"""Pickles that are deep or large, as arguments and as results: each job ends, and its worker goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from apps.pickled import nested
from celery import Celery
from fix_effort import EFFORT, LONG
from fix_servers import wait_until

import bridge
from bridge.client import forget_connections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_stack import Stack

PATIENCE = 120  # seconds for all of them
SIZE = 50 << 20 if EFFORT > 1 else 8 << 20  # bytes of a result


@pytest.fixture(params=[pytest.param("alone", marks=LONG), "composed"])
def app(request: pytest.FixtureRequest, bare_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An application that calls and reads as the worker's does."""
    url = "bridge://" if request.param == "alone" else f"bridge+{bare_stack.broker_url}"
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.pickled", env={"BRIDGE_TEST_RESULT_BACKEND": url, "C_FORCE_ROOT": "1"})
    monkeypatch.setenv("BRIDGE_DATABASE_URL", bare_stack.dsn)
    app = Celery("client", broker=bare_stack.broker_url, backend=url, set_as_current=False)
    app.conf.update(accept_content=["pickle", "json"], task_serializer="pickle", result_serializer="pickle")
    bridge.install(app)
    yield app
    app.close()
    forget_connections()
    bare_stack.kill_all()


def test_every_job_ends_and_what_it_gave_is_read_again(app: Any, bare_stack: Stack) -> None:
    calls = {
        **{f"argument {depth}": ("pickled.echo", nested(depth)) for depth in (50, 150, 240, 300, 400)},
        **{f"result {depth}": ("pickled.deep", depth) for depth in (50, 240, 400, 600, 5000)},
        "large argument": ("pickled.echo", "x" * (1 << 19)), "large result": ("pickled.large", SIZE),
    }  # fmt: skip
    results = {name: app.send_task(task, (value,)) for name, (task, value) in calls.items()}
    left = "select id from bridge.jobs where id = any (%s::uuid[]) and finished_at is null"
    ids = [result.id for result in results.values()]
    wait_until(lambda: not bare_stack.sql.execute(left, (ids,)).fetchall(), PATIENCE, "the end of every job")
    states = {name: result.state for name, result in results.items()}
    assert {name for name in ("argument 50", "result 50", "large argument", "large result") if states[name] != "SUCCESS"} == set()
    assert {bare_stack.job(result.id)["error"]["type"] for name, result in results.items() if states[name] == "FAILURE"} <= {
        "RecursionError",
        "EncodeError",
    }
    assert len(results["large result"].get(timeout=PATIENCE)) == SIZE
    assert results["argument 50"].get(timeout=PATIENCE) == results["result 50"].get(timeout=PATIENCE) == nested(50)
    assert app.send_task("pickled.echo", ("after",)).get(timeout=PATIENCE) == "after"
    assert all(process.alive for process in bare_stack.processes)
