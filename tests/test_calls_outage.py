"""Calls while something is down, from threads and forked processes, in eager mode; and the signals that go with them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery import chain, chord, group, signals
from fix_proxy import without_an_answer
from fix_servers import ROOT, wait_until
from kombu.exceptions import OperationalError

if TYPE_CHECKING:
    from fix_calls import MakeApp
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session
    from laboratory.proxy import Proxy

NOWHERE = "postgresql://127.0.0.1:1/none"


@pytest.mark.parametrize("retry", [True, False])
def test_a_call_while_postgres_is_down_fails_at_once_as_with_a_lost_broker(
    make_caller: MakeApp, monkeypatch: pytest.MonkeyPatch, *, retry: bool
) -> None:
    app = make_caller(task_publish_retry=retry, task_publish_retry_policy={"max_retries": None, "interval_start": 60})
    monkeypatch.setenv("BRIDGE_DATABASE_URL", NOWHERE)
    begun = time.monotonic()
    with pytest.raises(OperationalError, match="cannot reach"):
        app.send_task("calls.lost")
    assert time.monotonic() - begun < 3


def test_a_connection_that_broke_unnoticed_costs_no_call(caller: Any, dsn: str, db: Session) -> None:
    caller.send_task("calls.first")
    ours = caller.bridge.connections.get().info.backend_pid
    with psycopg.connect(dsn) as other:
        other.execute("select pg_terminate_backend(%s, 5000)", (ours,))
    caller.send_task("calls.second")
    assert db.one("select count(*) from bridge.jobs") == 2


def test_a_call_whose_answer_is_lost_makes_one_job_though_that_has_ended(
    make_caller: MakeApp, postgres_proxy: tuple[Proxy, str], db: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, through = postgres_proxy
    app = make_caller()
    monkeypatch.setenv("BRIDGE_DATABASE_URL", through)
    app.send_task("calls.first", queue="others")  # nothing but the call itself is asked from here on
    result = without_an_answer(proxy, db, lambda: app.send_task("calls.told"))
    assert db.rows("select id::text, status from bridge.jobs where queue = 'celery'") == [(result.id, "succeeded")]


def test_a_second_call_of_an_id_that_has_ended_is_a_new_job_though_its_connection_broke(caller: Any, dsn: str, db: Session) -> None:
    result = caller.send_task("calls.first")
    claim = db.claim()[0]
    db.finish(claim, db.start(claim))
    db.do("update bridge.finished set created_at = created_at - interval '1 min'")
    with psycopg.connect(dsn) as other:
        other.execute("select pg_terminate_backend(%s, 5000)", (caller.bridge.connections.get().info.backend_pid,))
    caller.send_task("calls.first", task_id=result.id)
    assert db.rows("select id::text, status from bridge.jobs") == [(result.id, "queued")]


def test_eager_mode_never_touches_the_database(make_caller: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_caller(task_always_eager=True)
    monkeypatch.setenv("BRIDGE_DATABASE_URL", NOWHERE)

    @app.task(name="calls.add")
    def add(left: int, right: int) -> int:
        return left + right

    @app.task(name="calls.total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="calls.flaky", bind=True, default_retry_delay=0)
    def flaky(self: Any) -> int:
        if self.request.retries < 2:
            raise self.retry(exc=ValueError("again"))
        return int(self.request.retries)

    assert add.apply_async((1, 2), bridge=True).get() == 3
    assert chain(add.s(1, 2), add.s(3), app=app)().get() == 6
    assert group([add.s(1, 2), add.s(3, 4)], app=app)().get() == [3, 7]
    assert chord([add.s(1, 2), add.s(3, 4)], total.s(), app=app)().get() == 10
    assert flaky.delay().get() == 2


def test_signals_around_a_call_see_final_values_and_the_first_may_change_them(caller: Any, db: Session) -> None:
    seen: dict[str, Any] = {}

    def before(sender: str, headers: Any, properties: Any, routing_key: str, **_: Any) -> None:
        seen["before"] = (sender, routing_key, db.one("select count(*) from bridge.jobs"))
        headers["trace"] = "t-1"
        properties["priority"] = 7

    def after(sender: str, headers: Any, body: Any, **_: Any) -> None:
        seen["after"] = (sender, headers["trace"], body[0], db.one("select count(*) from bridge.jobs"))

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        caller.send_task("calls.seen", (1,), queue="q")
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
    assert seen == {"before": ("calls.seen", "q", 0), "after": ("calls.seen", "t-1", (1,), 1)}
    assert db.rows("select headers ->> 'trace', properties ->> 'priority', rank from bridge.job") == [("t-1", "7", 16)]


def test_a_call_that_celery_refuses_makes_no_row(caller: Any, db: Session) -> None:
    with pytest.raises(TypeError, match="task args must be a list or tuple"):
        caller.send_task("calls.wrong", 5)
    assert db.one("select count(*) from bridge.jobs") == 0


def test_calls_from_many_threads_each_make_their_row(caller: Any, db: Session) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda number: caller.send_task("calls.thread", (number,)).id, range(200)))
    assert {row[0] for row in db.rows("select id::text from bridge.jobs")} == set(ids)
    assert sorted(row[0] for row in db.rows("select (args ->> 0)::int from bridge.jobs")) == list(range(200))


def test_the_next_step_of_a_chain_waits_for_postgres(
    make_caller: MakeApp, dsn: str, redis_url: str, worker: StartWorker, drainer: StartDrainer
) -> None:
    app = make_caller(redis_url)
    process = worker("apps.kinds", broker_url=redis_url)
    drainer(broker_url=redis_url)
    last = chain(app.signature("kinds.lock_out"), app.signature("kinds.add", (1,))).apply_async()
    wait_until(lambda: "what follows a task waits task=kinds.add" in process.log_text(), 30, "the worker to find nobody")
    with psycopg.connect(dsn, dbname="postgres", autocommit=True) as connection:
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        connection.execute(f'alter database "{name}" allow_connections true'.encode())
    assert last.get(timeout=60) == 2
    with psycopg.connect(dsn) as connection:
        assert connection.execute("select task, status, attempts from bridge.jobs order by created_at").fetchall() == [
            ("kinds.lock_out", "succeeded", 1), ("kinds.add", "succeeded", 1),
        ]  # fmt: skip


FORKING = """
import os
from celery import Celery
import bridge
app = Celery("forking", broker="redis://127.0.0.1:1/0", backend="bridge://")
bridge.install(app)
app.send_task("calls.master")  # as a server that loads its application before it forks
backend = app.bridge.connections.get().info.backend_pid
children = []
for number in range(3):
    child = os.fork()
    if not child:
        for _ in range(5):
            app.send_task("calls.child")
        raise SystemExit(0)
    children.append(child)
app.send_task("calls.master")
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
app.send_task("calls.master")
assert app.bridge.connections.get().info.backend_pid == backend, "a child ended its parent's session"
"""


def test_calls_before_and_after_a_fork_leave_each_other_alone(dsn: str, db: Session) -> None:
    environment = {**os.environ, "BRIDGE_DATABASE_URL": dsn, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FORKING], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(db.rows("select task, count(*) from bridge.jobs group by 1")) == [("calls.child", 15), ("calls.master", 3)]
