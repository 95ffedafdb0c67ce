"""Results through Celery's own face, ways to join the bridge, and workers that have not joined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery import Celery, chain, group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from fix_servers import wait_until

import bridge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fix_stack import Stack


pytestmark = pytest.mark.versions


@pytest.fixture(scope="module")
def started(bare_stack: Stack) -> Stack:
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.kinds", "-Q", "celery")
    return bare_stack


@pytest.fixture
def stack(started: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", started.dsn)
    yield started
    extra, started.processes[2:] = started.processes[2:], []
    for process in extra:
        process.stop()


@pytest.fixture
def make_app(stack: Stack) -> Iterator[Callable[[str], Any]]:
    """Applications of the caller's side: they know no task, only names."""
    made = []

    def make(backend: str) -> Any:
        app = Celery("client", broker=stack.broker_url, backend=backend, set_as_current=False)
        bridge.install(app)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(make_app: Callable[[str], Any]) -> Any:
    return make_app("bridge://")


def test_get_gives_what_the_task_returned(app: Any) -> None:
    assert app.send_task("kinds.add", (20, 22)).get(timeout=30) == 42


def test_get_raises_the_tasks_own_error(app: Any) -> None:
    with pytest.raises(ValueError, match="as expected"):
        app.send_task("kinds.fail", ("as expected",)).get(timeout=30)


def test_get_gives_up_when_its_time_is_over_and_the_job_goes_on(app: Any, stack: Stack, tmp_path: Path) -> None:
    result = app.send_task("kinds.hold", (str(tmp_path / "started"), str(tmp_path / "go")))
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0.2)
    (tmp_path / "go").touch()
    assert stack.wait(result.id)["status"] == "succeeded"


def test_a_call_with_celery_counts_one_attempt(app: Any, stack: Stack) -> None:
    result = app.send_task("kinds.fail", ("once",))
    assert (stack.wait(result.id)["attempts"], stack.job(result.id)["max_attempts"]) == (1, 1)


def test_states_are_those_that_celery_knows(app: Any, tmp_path: Path) -> None:
    result = app.send_task("kinds.hold", (str(tmp_path / "started"), str(tmp_path / "go")), countdown=0.5)
    seen = {result.state}
    wait_until(lambda: seen.add(state := result.state) or state == "STARTED", 30)  # type: ignore[func-returns-value]
    (tmp_path / "go").touch()
    assert result.get(timeout=30) == "held"
    assert (seen, result.state) == ({"PENDING", "STARTED"}, "SUCCESS")


def test_a_task_id_that_is_no_uuid_is_kept(app: Any, stack: Stack) -> None:
    result = app.send_task("kinds.add", (1, 2), task_id="invoice-7")
    assert result.get(timeout=30) == 3
    assert stack.sql.execute("select task_id from bridge.jobs where id = %s", (bridge.get("invoice-7").id,)).fetchone() == ("invoice-7",)


def test_results_that_json_in_postgres_does_not_take_come_back_all_the_same(app: Any) -> None:
    given = ["nul \x00", "surrogate \ud800", float("inf"), 10**400]
    assert app.send_task("kinds.echo", given).get(timeout=30)["args"] == given
    assert repr(app.send_task("kinds.echo", (float("nan"),)).get(timeout=30)["args"]) == "[nan]"


def test_a_chain_and_a_group_run_through(app: Any) -> None:
    steps = chain(app.signature("kinds.add", (1, 2)), app.signature("kinds.add", (10,)))
    assert steps.apply_async().get(timeout=30) == 13
    many = group(app.signature("kinds.add", (n, n)) for n in range(5))
    assert many.apply_async().get(timeout=30) == [0, 2, 4, 6, 8]


def test_a_retried_job_gives_its_new_result(app: Any, stack: Stack, tmp_path: Path) -> None:
    result = app.send_task("kinds.reject_once", (str(tmp_path / "missing" / "mark"),))
    with pytest.raises(FileNotFoundError):
        result.get(timeout=30)
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "mark").touch()
    stack.sql.execute("select bridge.retry(%s)", (result.id,))
    assert app.AsyncResult(result.id).get(timeout=30) == "second time"


def test_an_app_that_only_names_our_backend_reads_results(app: Any, stack: Stack) -> None:
    reader = Celery("reader", broker=stack.broker_url, backend="bridge://", set_as_current=False)
    identity = app.send_task("kinds.add", (2, 2)).id
    assert reader.AsyncResult(identity).get(timeout=30) == 4


def test_with_a_composed_backend_redis_keeps_the_result_and_the_row_follows(make_app: Callable[[str], Any], stack: Stack) -> None:
    url = f"bridge+{stack.broker_url}"
    stack.start_worker("apps.kinds", "-Q", "composed", env={"BRIDGE_TEST_RESULT_BACKEND": url})
    result = make_app(url).send_task("kinds.add", (30, 3), queue="composed")
    assert result.get(timeout=30) == 33
    assert stack.wait(result.id)["result"] == 33
    with redis.Redis.from_url(stack.broker_url) as client:
        assert client.exists(f"celery-task-meta-{result.id}")


def test_with_a_composed_backend_errors_reach_both(make_app: Callable[[str], Any], stack: Stack) -> None:
    url = f"bridge+{stack.broker_url}"
    stack.start_worker("apps.kinds", "-Q", "composed", env={"BRIDGE_TEST_RESULT_BACKEND": url})
    result = make_app(url).send_task("kinds.fail", ("both",), queue="composed")
    with pytest.raises(ValueError, match="both"):
        result.get(timeout=30)
    assert stack.wait(result.id)["error"]["message"] == "both"


def test_the_loader_joins_an_app_that_does_not_know_of_the_bridge(stack: Stack) -> None:
    stack.start_worker("apps.plain", "-Q", "zero", env={"CELERY_LOADER": "bridge.loader.Loader"})
    job = stack.run("plain.add", 3, 4, queue="zero")
    assert (job["status"], job["result"]) == ("succeeded", 7)


def test_with_the_loader_a_call_inside_a_task_becomes_a_row(stack: Stack) -> None:
    stack.start_worker("apps.plain", "-Q", "zero", env={"CELERY_LOADER": "bridge.loader.Loader"})
    child = stack.run("plain.spawn", queue="zero")["result"]
    assert stack.wait(child)["result"] == 3


def test_a_worker_without_the_plugin_runs_a_job_once_and_is_not_fed_it_again(stack: Stack, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    # Look again soon, so that the test sees several looks.
    stack.sql.execute("update bridge.setting set value = '1' where name = 'republish_grace'")
    stack.start_worker("apps.plain", "-Q", "old")
    identity = stack.enqueue("plain.mark", str(marks), queue="old")
    drainer = stack.processes[0]
    wait_until(lambda: "see bridge.unreported_jobs queue=old" in drainer.log_text(), 60, "a look for the missing message")
    stack.sql.execute("update bridge.setting set value = '10' where name = 'republish_grace'")
    assert marks.read_text() == "run\n"
    assert stack.job(identity)["status"] == "published"
