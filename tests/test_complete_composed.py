"""Completions over a result backend of the application's own: it hears of them after the commit, whoever dies in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from apps.completing import TABLES
from celery import Celery, chord, signature
from fix_servers import wait_until
from invariants import assert_sound

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_stack import Stack


@pytest.fixture(scope="module")
def stack(bare_stack: Stack) -> Iterator[Stack]:
    bare_stack.sql.execute(TABLES)
    bare_stack.sql.execute("update bridge.setting set value = '0.5' where name = 'heartbeat'")
    bare_stack.sql.execute("update bridge.setting set value = '3' where name = 'worker_lost'")
    bare_stack.start_drainer()
    start_worker(bare_stack, "celery")
    yield bare_stack
    assert_sound(bare_stack.dsn)
    bare_stack.kill_all()


def start_worker(stack: Stack, queue: str, **options: Any) -> Any:
    env = {"BRIDGE_TEST_RESULT_BACKEND": f"bridge+{stack.broker_url}"}
    return stack.start_worker("apps.completing", "-Q", queue, env=env, **options)


@pytest.fixture
def app(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", stack.dsn)
    app = Celery("client", broker=stack.broker_url, backend=f"bridge+{stack.broker_url}", set_as_current=False)
    bridge.install(app)
    yield app
    app.close()


@pytest.fixture
def plain(stack: Stack) -> Iterator[Any]:
    """An application that knows nothing of the bridge and reads the same backend."""
    app = Celery("plain", broker=stack.broker_url, backend=stack.broker_url, set_as_current=False)
    yield app
    app.close()


def wait_until_all_is_told(stack: Stack) -> None:
    """The note that a part is to be counted goes after it is: a body may have run before."""
    wait_until(lambda: stack.sql.execute("select * from bridge.untold").fetchall() == [], 20, "no part left to count")


def work(app: Any, number: int, dies: str = "", queue: str = "celery") -> Any:
    return signature("completing.work", (number, "psycopg", dies), app=app, queue=queue)


@pytest.mark.parametrize("dies", ["", "after", "before"])
def test_a_result_is_where_the_application_keeps_it_whoever_dies(app: Any, plain: Any, dies: str) -> None:
    result = work(app, 4, dies).apply_async()
    assert plain.AsyncResult(result.id).get(timeout=30) == 4
    assert plain.AsyncResult(result.id).state == "SUCCESS"


def test_a_result_that_the_task_ignores_stays_unknown(app: Any, stack: Stack) -> None:
    result = app.send_task("completing.quiet", (4,), ignore_result=True)
    wait_until(lambda: stack.job(result.id).get("status") == "succeeded", 30, "its row")
    assert app.AsyncResult(result.id).state == "PENDING"


def test_the_parts_of_a_chord_are_counted_whoever_dies(app: Any, stack: Stack) -> None:
    total = signature("completing.total", app=app)
    for dies in ("", "after", "before"):
        body = chord([work(app, 1, dies), work(app, 2, dies)], app=app)(total)
        assert body.get(timeout=60) == 3, dies
    wait_until_all_is_told(stack)


def test_a_part_whose_whole_worker_died_is_counted_by_another(app: Any, stack: Stack) -> None:
    doomed = start_worker(stack, "doomed", pool="solo")
    total = signature("completing.total", app=app)
    body = chord([work(app, 1, "after", "doomed"), work(app, 2)], app=app)(total)
    doomed.wait(30)
    assert stack.sql.execute("select queue from bridge.untold").fetchall() == [("doomed",)]
    start_worker(stack, "doomed")
    assert body.get(timeout=90) == 3
    wait_until_all_is_told(stack)
    made_up = "select status from bridge.jobs where task = 'bridge.make_up'"
    wait_until(lambda: stack.sql.execute(made_up).fetchall() == [("succeeded",)], 20, "the job that counted it")


def test_whoever_waits_finds_what_a_dead_worker_has_completed(app: Any, plain: Any, stack: Stack) -> None:
    doomed = start_worker(stack, "alone", pool="solo")
    result = work(app, 6, "after", "alone").apply_async()
    doomed.wait(30)
    assert result.get(timeout=30) == 6
    assert plain.AsyncResult(result.id).state == "SUCCESS"
