"""Results through Celery's own face, with rows alone: values, errors, states and children, and what is said of ids from outside."""

from __future__ import annotations

import datetime as dt
import pickle
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import redis
from apps.results import NarrowError, OddError
from celery import Celery, chain, group, states
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, GroupResult
from fix_servers import ROOT, wait_until

import bridge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fix_stack import Stack

pytestmark = pytest.mark.versions

PATIENCE = 60  # seconds
AS_ROOT = {"C_FORCE_ROOT": "1"}  # Celery asks for it where pickle is accepted


@pytest.fixture(scope="module")
def started(bare_stack: Stack) -> Stack:
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.results", "-Q", "celery", env=AS_ROOT)
    return bare_stack


@pytest.fixture
def stack(started: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", started.dsn)
    return started


@pytest.fixture
def make_app(stack: Stack) -> Iterator[Callable[..., Any]]:
    """Applications of the caller's side: they know no task, only names."""
    made = []

    def make(**conf: Any) -> Any:
        app = Celery("client", broker=stack.broker_url, backend="bridge://", set_as_current=False)
        app.conf.update(conf)
        bridge.install(app)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(make_app: Callable[..., Any]) -> Any:
    return make_app()


@pytest.mark.parametrize(("kind", "error", "text"), [
    ("plain", KeyError, "'plain'"), ("odd", OddError, "7: seven"), ("narrow", NarrowError, "3"), ("nan", ValueError, "nan"),
])  # fmt: skip
def test_an_error_comes_back_as_its_own_class(app: Any, stack: Stack, kind: str, error: type[Exception], text: str) -> None:
    result = app.send_task("results.fail", (kind,))
    with pytest.raises(error) as caught:
        result.get(timeout=PATIENCE)
    assert (type(caught.value), str(caught.value)) == (error, text)
    assert (result.state, "in fail" in result.traceback) == ("FAILURE", True)
    assert result.get(propagate=False).args == caught.value.args
    assert stack.job(result.id)["error"]["type"] == error.__name__


def test_values_keep_the_types_that_celerys_json_knows(app: Any) -> None:
    assert app.send_task("results.dated").get(timeout=PATIENCE) == {"day": dt.date(2026, 2, 3), "many": [1, 2]}


def test_with_pickle_results_and_errors_are_kept_as_they_are(make_app: Callable[..., Any], stack: Stack) -> None:
    stack.start_worker("apps.results", "-Q", "pickled", env={**AS_ROOT, "BRIDGE_TEST_RESULT_SERIALIZER": "pickle"})
    app = make_app(result_serializer="pickle", result_accept_content=["pickle"])
    result = app.send_task("results.dated", queue="pickled")
    assert result.get(timeout=PATIENCE) == {"day": dt.date(2026, 2, 3), "many": {1, 2}}
    assert stack.job(result.id)["result"] is None  # a set has no JSON form
    with pytest.raises(KeyError, match="plain"):
        app.send_task("results.fail", ("plain",), queue="pickled").get(timeout=PATIENCE)
    assert app.send_task("results.add", (1, 2), queue="pickled").get(timeout=PATIENCE) == 3


def test_children_are_there_with_collect_and_graph(app: Any) -> None:
    result = app.send_task("results.fan", (3,))
    result.get(timeout=PATIENCE)
    many, first = app.AsyncResult(result.id).children
    assert (type(many), many.get(timeout=PATIENCE), first.get(timeout=PATIENCE)) == (app.GroupResult, [0, 2, 4], 3)
    assert [child.get(timeout=PATIENCE) for child in first.children] == [13]
    assert sorted(value for node, value in result.collect(timeout=PATIENCE) if not node.children) == [0, 2, 4, 13]
    assert {node.id for node in result.graph} == {result.id, many.id, first.id, first.children[0].id, *(one.id for one in many)}


def test_a_step_of_a_chain_is_its_parents_child(app: Any) -> None:
    last = chain(app.signature("results.add", (1, 2)), app.signature("results.add", (3,))).apply_async()
    assert (last.get(timeout=PATIENCE), last.parent.get(timeout=PATIENCE)) == (6, 3)
    assert [child.id for child in last.parent.children] == [last.id]


def test_what_follows_a_failed_step_has_failed_too(app: Any) -> None:
    last = chain(app.signature("results.fail", ("odd",)), app.signature("results.add", (3,))).apply_async()
    for wait in (lambda: last.get(timeout=PATIENCE), lambda: app.AsyncResult(last.id).get(timeout=PATIENCE)):
        with pytest.raises(OddError, match="seven"):
            wait()


def test_between_attempts_the_state_says_why(app: Any, stack: Stack) -> None:
    result = app.send_task("results.again", (600,))
    wait_until(lambda: repr(result.info) == "ValueError(5)", PATIENCE, "the reason of the retry")
    assert (result.state, result.get(propagate=False) if result.ready() else None, result.traceback is None) == ("RETRY", None, False)
    assert stack.sql.execute("select error->>'type' from bridge.attempts where id = %s", (result.id,)).fetchone() == ("ValueError",)
    stack.sql.execute("select bridge.retry(%s)", (result.id,))
    assert result.get(timeout=PATIENCE) == "second time"


def test_a_retry_in_ninety_days_is_a_row_and_nothing_that_broker_or_worker_holds(app: Any, stack: Stack) -> None:
    result = app.send_task("results.again", (90 * 86400,))
    row = stack.wait(result.id, "scheduled")
    assert row["attempts"] == 1
    assert dt.timedelta(days=89) < row["run_at"] - dt.datetime.now(dt.UTC) < dt.timedelta(days=91)
    with redis.Redis.from_url(stack.broker_url) as client:
        wait_until(lambda: not client.exists("celery", "unacked", "unacked_index"), PATIENCE, "an empty broker")
    asked = app.control.inspect(timeout=5)
    for held in (asked.scheduled(), asked.reserved(), asked.active()):
        assert held, "the workers answer"
        assert {name: one for name, one in held.items() if one} == {}
    stack.sql.execute("select bridge.retry(%s)", (result.id,))
    assert result.get(timeout=PATIENCE) == "second time"


def test_forgetting_a_result_leaves_its_row(app: Any, stack: Stack) -> None:
    result = app.send_task("results.add", (1, 2))
    assert result.get(timeout=PATIENCE) == 3
    result.forget()
    other = app.AsyncResult(result.id)
    assert (other.state, other.result, other.backend.task_result_exists(other.id)) == ("PENDING", None, False)
    assert (stack.job(result.id)["status"], stack.job(result.id)["result"]) == ("succeeded", None)


def test_a_result_older_than_the_app_keeps_them_is_gone(make_app: Callable[..., Any], app: Any, stack: Stack) -> None:
    identity = app.send_task("results.add", (1, 2)).id
    assert stack.wait(identity)["result"] == 3
    stack.sql.execute("update bridge.finished set finished_at = finished_at - interval '2 seconds' where id = %s", (identity,))
    assert make_app(result_expires=1).AsyncResult(identity).state == "PENDING"
    assert make_app(result_expires=None).AsyncResult(identity).get(timeout=PATIENCE) == 3


def test_a_result_that_redis_keeps_expires_there_and_stays_on_its_row(make_app: Callable[..., Any], stack: Stack) -> None:
    env = {"BRIDGE_TEST_RESULT_BACKEND": f"bridge+{stack.broker_url}", "BRIDGE_TEST_RESULT_EXPIRES": "1"}
    stack.start_worker("apps.results", "-Q", "brief", env={**AS_ROOT, **env})
    with redis.Redis.from_url(stack.broker_url) as client, client.pubsub() as ear:
        client.config_set("notify-keyspace-events", "Ex")
        ear.psubscribe("__keyevent@*__:expired")
        identity = make_app().send_task("results.add", (1, 2), queue="brief").id
        ended = stack.wait(identity)
        heard = lambda: (ear.get_message(timeout=1) or {}).get("data") == f"celery-task-meta-{identity}".encode()  # noqa: E731
        wait_until(heard, PATIENCE, "the result to expire")
    reader = Celery("reader", broker=stack.broker_url, backend=f"bridge+{stack.broker_url}", set_as_current=False)
    bridge.install(reader)
    assert reader.AsyncResult(identity).state == "PENDING"
    assert stack.job(identity) == ended
    assert (ended["status"], ended["result"]) == ("succeeded", 3)
    reader.close()


def test_an_id_that_never_was_is_told_from_one_that_waits(app: Any) -> None:
    waits, never = app.send_task("results.add", (1, 2), countdown=600), app.AsyncResult(str(uuid.uuid4()))
    assert [(one.state, one.name, one.backend.task_result_exists(one.id)) for one in (waits, never)] == [
        ("PENDING", "results.add", True), ("PENDING", None, False)]  # fmt: skip
    with pytest.raises(CeleryTimeoutError):
        never.get(timeout=0.1)


def test_states_stored_from_outside_count_until_the_job_goes_on(app: Any, stack: Stack) -> None:
    result = app.send_task("results.add", (1, 2), countdown=600)
    app.backend.store_result(result.id, {"place": 3}, "IN_LINE")
    assert (result.state, result.info) == ("IN_LINE", {"place": 3})
    app.send_task("results.speak_for", (result.id,)).get(timeout=PATIENCE)
    assert result.state == "HALFWAY"
    stack.sql.execute("select bridge.retry(%s)", (result.id,))
    assert result.get(timeout=PATIENCE) == 3
    app.backend.store_result(result.id, None, "LATE")
    assert app.AsyncResult(result.id).state == "SUCCESS"


def test_results_of_ids_without_a_job_are_kept_and_wake_who_waits(app: Any, stack: Stack) -> None:
    name = f"by-hand-{uuid.uuid4()}"
    app.backend.store_result(name, "done", states.SUCCESS)
    app.backend.store_result(name, ValueError("late"), states.FAILURE)  # a success is never written over
    assert app.AsyncResult(name).get(timeout=PATIENCE) == "done"
    assert app.send_task("results.aside", (4,), bridge=False).get(timeout=PATIENCE) == 4
    with pytest.raises(NarrowError):
        app.send_task("results.aside", (-1,), bridge=False).get(timeout=PATIENCE)
    stack.sql.execute("update bridge.result set expires_at = now() - interval '1 s' where task_id = %s", (name,))
    assert app.AsyncResult(name).backend.get_task_meta(name, cache=False)["status"] == "PENDING"
    app.backend.cleanup()
    assert stack.sql.execute("select 1 from bridge.result where task_id = %s", (name,)).fetchone() is None


def test_a_group_is_waited_for_in_every_way(app: Any) -> None:
    result = group(app.signature("results.double", (number,)) for number in range(4)).apply_async()
    assert result.get(timeout=PATIENCE) == result.join(timeout=PATIENCE) == result.join_native(timeout=PATIENCE) == [0, 2, 4, 6]
    heard: dict[str, int] = {}
    app.GroupResult(result.id, [app.AsyncResult(one.id) for one in result]).get(timeout=PATIENCE, callback=heard.__setitem__)
    assert sorted(heard.values()) == [0, 2, 4, 6]
    assert {task_id: meta["result"] for task_id, meta in result.iter_native(timeout=PATIENCE)} == {
        one.id: 2 * at for at, one in enumerate(result)
    }
    assert (result.ready(), result.successful(), result.completed_count()) == (True, True, 4)
    mixed = app.ResultSet([app.send_task("results.fail", ("plain",)), app.send_task("results.double", (1,))])
    with pytest.raises(KeyError):
        mixed.get(timeout=PATIENCE)
    assert [type(value) for value in mixed.get(timeout=PATIENCE, propagate=False)] == [KeyError, int]


def test_a_group_waits_no_longer_than_it_may_and_only_looks_when_told(app: Any) -> None:
    waits = app.send_task("results.add", (1, 2), countdown=600)
    several = app.ResultSet([waits, app.send_task("results.double", (1,))])
    with pytest.raises(CeleryTimeoutError):
        several.get(timeout=0.2)
    wait_until(lambda: len(list(app.backend.get_many({one.id for one in several}, max_iterations=1))) == 1, PATIENCE)


def test_a_saved_group_is_restored_until_it_is_deleted(app: Any) -> None:
    result = group(app.signature("results.double", (number,)) for number in range(2)).apply_async()
    result.save()
    restored = GroupResult.restore(result.id, app=app)
    assert (restored, restored.get(timeout=PATIENCE)) == (result, [0, 2])
    restored.delete()
    assert GroupResult.restore(result.id, app=app) is None


def test_who_waits_hears_of_states_and_pauses(app: Any, tmp_path: Path) -> None:
    heard, pauses, go = [], [], tmp_path / "go"
    result = app.send_task("results.boast", (str(go),))

    def listen(meta: dict[str, Any]) -> None:
        heard.append((meta["status"], meta["result"]))
        if meta["status"] == "COOKING":
            go.touch()

    assert result.get(timeout=PATIENCE, interval=0.05, on_message=listen, on_interval=lambda: pauses.append(1)) == "cooked"
    assert heard[-2:] == [("COOKING", {"minutes": 3}), ("SUCCESS", "cooked")]
    assert pauses


def test_results_travel_pickled_and_the_command_line_shows_them(app: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    result = app.send_task("results.add", (20, 22))
    assert result.get(timeout=PATIENCE) == 42
    monkeypatch.setattr("celery._state._tls.current_app", app)  # for which a result comes out of its pickle
    copy: AsyncResult = pickle.loads(pickle.dumps(result))  # noqa: S301 - our own
    assert (copy.id, copy.backend.get_result(result.id)) == (result.id, 42)
    command = [sys.executable, "-m", "celery", "-A", "apps.results", "result", result.id]
    environment = {"BRIDGE_DATABASE_URL": stack.dsn, "BRIDGE_BROKER_URL": stack.broker_url, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    shown = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert shown.stdout.strip() == "42"


def test_extended_results_have_the_arguments_of_any_serializer(make_app: Callable[..., Any]) -> None:
    app = make_app(result_extended=True, result_accept_content=["json", "pickle"])
    for serializer in ("json", "pickle"):
        result = app.send_task("results.add", (1,), {"right": 2}, serializer=serializer, compression="gzip")
        assert result.get(timeout=PATIENCE) == 3
        assert (list(result.args), result.kwargs, result.name, result.queue) == ([1], {"right": 2}, "results.add", "celery")
        assert result.worker.startswith("w")
        assert result.date_done.tzinfo is not None


def test_an_eager_result_is_stored_when_the_app_says_so(make_app: Callable[..., Any]) -> None:
    app = make_app(task_always_eager=True, task_store_eager_result=True)

    @app.task(name="eager.add")
    def add(left: int, right: int) -> int:
        return left + right

    result = add.delay(1, 2)
    assert (result.get(), app.AsyncResult(result.id).get(timeout=PATIENCE)) == (3, 3)
