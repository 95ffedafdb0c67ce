"""What hardly any task gives or raises: its job ends all the same, everybody can read it, and the worker goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from apps.strange import GIVEN, RAISED
from celery import Celery
from fix_client import command
from fix_effort import EFFORT
from fix_servers import wait_until

import bridge
from bridge.client import forget_connections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_stack import Stack

PATIENCE = 240  # seconds for all of them, on a busy machine
# What has a form in JSON succeeds, as it does with Celery alone; the error of the others says what has none.
SUCCEED = {
    "nul", "surrogate", "nan", "bytes", "decimal", "numbered", "fairly_deep", "huge", "swapped", "tuple", "nothing", "escaped", "wide",
}  # fmt: skip
KINDS = {
    "mute": "MuteError", "heavy": "HeavyError", "sly": "ZeroDivisionError", "many": "ExceptionGroup", "recursion": "RecursionError",
    "dynamic": "UnicodeEncodeError", "base": "KeyboardInterrupt",
}  # fmt: skip


@pytest.fixture(scope="module", params=["alone", "composed"])
def backend(request: pytest.FixtureRequest, bare_stack: Stack) -> Iterator[str]:
    """The URL of the result backend; a drainer and a worker run over it."""
    url = "bridge://" if request.param == "alone" else f"bridge+{bare_stack.broker_url}"
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.strange", "-Q", "celery", env={"BRIDGE_TEST_RESULT_BACKEND": url})
    yield url
    bare_stack.kill_all()


@pytest.fixture
def jobs(backend: str, bare_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[str, str], Any]]:
    """A job of every kind, each ended; by task and kind."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", bare_stack.dsn)
    forget_connections()
    kinds = [("give", name) for name in GIVEN if name != "huge" or backend == "bridge://" or EFFORT > 1]
    kinds += [("throw", name) for name in RAISED]
    made = {kind: bare_stack.enqueue(f"strange.{kind[0]}", kind[1], max_attempts=1) for kind in kinds}
    made["say", ""] = bare_stack.enqueue("strange.say", max_attempts=1)
    query = "select status, count(*) from bridge.jobs where id = any (%s) and finished_at is null group by 1"
    wait_until(lambda: not bare_stack.sql.execute(query, (list(made.values()),)).fetchall(), PATIENCE, "the end of every job")
    yield made
    forget_connections()


def test_every_job_ends_is_readable_everywhere_and_leaves_its_worker_alive(
    jobs: dict[tuple[str, str], Any], backend: str, bare_stack: Stack
) -> None:
    seen = {kind: bridge.get(identity) for kind, identity in jobs.items()}
    given = {name: job for (task, name), job in seen.items() if task == "give"}
    assert {name for name, job in given.items() if job.status == "succeeded"} == SUCCEED & given.keys()
    assert {job.error["type"] for job in given.values() if job.error} == {"EncodeError"}
    raised = {name: job.error for (task, name), job in seen.items() if task == "throw"}
    assert {name: error and error["type"] for name, error in raised.items()} == {name: KINDS.get(name, "ValueError") for name in RAISED}
    assert max(len(error["message"]) for error in raised.values() if error) < 70_000
    assert seen["say", ""].result == "said"
    assert {len(bare_stack.attempts(identity)) for identity in jobs.values()} == {1}
    assert all(process.alive for process in bare_stack.processes)
    app = Celery("client", broker=bare_stack.broker_url, backend=backend, set_as_current=False)
    bridge.install(app)
    for kind, identity in jobs.items():
        if kind[1] != "huge":
            assert command("jobs", "show", identity, "--json").exit_code == 0, kind
        result = app.AsyncResult(str(identity))
        assert (result.state == "SUCCESS") == (seen[kind].status == "succeeded"), kind
        value = result.get(timeout=PATIENCE, propagate=False)
        assert value is not None or kind[1] == "nothing", kind
        assert kind[1] != "huge" or len(value) == 50 << 20, "all of it"
    app.close()
