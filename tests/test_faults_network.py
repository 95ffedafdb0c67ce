"""A network that fails between us and Postgres: nothing waits for ever, nothing is lost, and nothing runs twice for it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from apps.ledger import TABLE
from celery.exceptions import TimeoutError as CeleryTimeoutError
from fix_servers import wait_for_row, wait_for_value, wait_until
from kombu.exceptions import OperationalError
from psycopg import conninfo

import bridge
from bridge import schema
from bridge.client import forget_connections
from bridge.errors import BridgeError, ServerError, WaitTimeoutError
from bridge.message import Delivery
from bridge.queries.connection import connect
from bridge.queries.runs import Finish, prepare
from bridge.settings import load
from bridge.worker.board import Board
from bridge.worker.channel import RunChannel
from bridge.worker.fence import _start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_calls import MakeApp
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session
    from laboratory.proxy import Proxy

TIMEOUT = 1.0  # seconds that a call may take; silence is given up half a second later
BOUND = 30.0  # seconds, ten times what the longest of these calls may take on an idle machine


@pytest.fixture
def far(postgres_proxy: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """This process reaches the test's database through the proxy alone, with little patience."""
    monkeypatch.setenv("BRIDGE_TIMEOUT", str(TIMEOUT))
    monkeypatch.setenv("BRIDGE_DATABASE_URL", postgres_proxy[1])
    forget_connections()
    yield postgres_proxy[0]
    postgres_proxy[0].heal()
    forget_connections()


@pytest.fixture
def far_app(make_caller: MakeApp, postgres_proxy: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """An application of this process, which knows the database through the proxy alone."""
    app = make_caller()
    monkeypatch.setenv("BRIDGE_DATABASE_URL", postgres_proxy[1])
    return app


def calls_of(app: Any, job: Any) -> dict[str, Callable[[], Any]]:
    """What a client may be waiting in, by name."""
    return {
        "enqueue": lambda: bridge.enqueue("a.task"),
        "enqueue_many": lambda: bridge.enqueue_many([{"task": "a.task"}] * 3),
        "get": lambda: bridge.get(job),
        "wait": lambda: bridge.wait(job, timeout=2 * TIMEOUT),
        "delay": lambda: app.send_task("a.task"),
        "result": lambda: app.AsyncResult(str(job)).get(timeout=2 * TIMEOUT),
        "state": lambda: app.AsyncResult(str(job)).state,
    }


def broken_off(fault: Callable[[], None], calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """What calls give or raise, each in a thread of its own that had a good connection until the fault."""
    met = threading.Barrier(len(calls) + 1, timeout=BOUND)

    def run(call: Callable[[], Any]) -> Any:
        try:
            bridge.get(calls["enqueue"]())
            calls["delay"]()
            met.wait()
            met.wait()
            return call()
        except (BridgeError, OperationalError, CeleryTimeoutError) as error:
            return error
        finally:
            forget_connections()

    pool = ThreadPoolExecutor(len(calls))
    running = {name: pool.submit(run, call) for name, call in calls.items()}
    met.wait()
    fault()
    met.wait()
    return {name: future.result(BOUND) for name, future in running.items()}


@pytest.mark.parametrize("state", ["half_open", "stall"])
def test_no_call_of_a_client_waits_for_ever(far: Proxy, far_app: Any, state: str) -> None:
    job = bridge.enqueue("a.task")
    answers = broken_off(getattr(far, state), calls_of(far_app, job))
    assert {name: type(answer) for name, answer in answers.items() if name != "delay"} == dict.fromkeys(
        answers.keys() - {"delay"}, ServerError
    )
    assert isinstance(answers["delay"], OperationalError)  # as with a broker that is away
    assert "no answer within 1.5 s" in str(answers["enqueue"])
    for new in (lambda: bridge.enqueue("a.task"), lambda: schema.check(far_app.bridge.settings.database_url, timeout=TIMEOUT)):
        with pytest.raises(ServerError, match="connection timeout expired"):
            new()


def test_a_connection_that_was_reset_while_it_idled_costs_no_call(far: Proxy, far_app: Any) -> None:
    job = bridge.enqueue("a.task")
    answers = broken_off(far.cut, calls_of(far_app, job))
    assert isinstance(answers.pop("wait"), WaitTimeoutError)  # it had its time: nobody runs the job
    assert isinstance(answers.pop("result"), CeleryTimeoutError)
    assert not [answer for answer in answers.values() if isinstance(answer, Exception)]


def test_a_call_is_made_once_when_its_answer_was_lost(far: Proxy, far_app: Any, db: Session) -> None:
    far_app.send_task("calls.first")
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(lambda: (far_app.send_task("calls.warm"), far.drop("answers"), far_app.send_task("calls.lost"))[-1])
        wait_until(lambda: db.one("select count(*) from bridge.jobs where task = 'calls.lost'"), what="the commit")
        far.heal()
        identity = lost.result(BOUND).id
    assert db.rows("select id::text from bridge.jobs where task = 'calls.lost'") == [(identity,)]


def test_a_call_that_must_not_be_repeated_is_not(far: Proxy, far_app: Any, db: Session) -> None:
    far_app.send_task("calls.first")
    far.forget()
    with pytest.raises(OperationalError, match="no answer within"):
        far_app.send_task("calls.second", retry=False)
    far_app.send_task("calls.third")
    assert [row[0] for row in db.rows("select task from bridge.jobs order by created_at")] == ["calls.first", "calls.third"]


def test_a_job_may_be_there_when_the_answer_was_lost_and_its_unique_key_makes_the_call_repeatable(far: Proxy, db: Session) -> None:
    bridge.enqueue("calls.first")
    far.drop("answers")
    with pytest.raises(ServerError, match="no answer within"):
        bridge.enqueue("calls.lost", unique_key="one")
    far.heal()
    identity = bridge.enqueue("calls.lost", unique_key="one")
    assert db.rows("select id from bridge.jobs where task = 'calls.lost'") == [(identity,)]


def test_an_outcome_whose_answer_was_lost_counts_once(far: Proxy, db: Session) -> None:
    channel = RunChannel(load(), Board())
    begun = []
    for _ in range(2):
        db.enqueue()
        claim = db.publish()
        run = channel.start(claim.seq, str(claim.token), db.worker, 1)
        assert run is not None
        begun.append((claim, Finish(claim.seq, run, str(claim.token), claim.id, "succeeded", "1")))
    channel.finish(begun[0][1])
    channel.settle()
    far.drop("answers")
    channel.finish(begun[1][1])
    with pytest.raises(ServerError, match="no answer within"):
        channel.start(claim.seq, str(claim.token), db.worker, 1)
    far.heal()
    channel.settle()
    assert db.rows("select status, attempts from bridge.jobs") == [("succeeded", 1)] * 2
    assert db.one("select count(*) from bridge.attempt where outcome = 'superseded'") == len(db.attempts(claim.id)) - 1


def test_a_start_whose_answer_was_lost_is_no_loss(far: Proxy, far_app: Any, db: Session) -> None:
    identity = db.enqueue()
    claim = db.publish()
    delivery = Delivery(claim.seq, str(claim.token))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: far_app.bridge.channels.get().ask(prepare)).result(BOUND)
        far.drop("answers")
        asked = pool.submit(_start, far_app.bridge, delivery, str(identity))
        wait_until(lambda: db.status(identity) == "running", what="the start")
        far.heal()
        run = asked.result(BOUND)
    assert run is not None
    assert db.one("select run from bridge.inflight") == run.id


def test_a_finish_is_sent_again_before_its_run_is_missed(db: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", db.dsn)
    db.enqueue()
    claim, run = db.run()
    channel = RunChannel(load(), Board())
    channel.finish(Finish(claim.seq, UUID(str(run)), str(claim.token), claim.id, "succeeded", "1"))
    patience = channel._connected().patience
    channel.settle()
    assert patience < 2 * db.one("select value::float from bridge.setting where name = 'heartbeat'")


def test_what_a_url_says_of_the_way_stands(postgres_proxy: tuple[Proxy, str]) -> None:
    kept = conninfo.make_conninfo(postgres_proxy[1], keepalives_idle="7", tcp_user_timeout="4000")
    with connect(kept, name="test") as far:
        said = far.info.get_parameters()
        assert (said["keepalives_idle"], said["tcp_user_timeout"], said["keepalives_count"]) == ("7", "4000", "3")


def test_nobody_is_taken_for_dead_while_nobody_can_report(db: Session) -> None:
    identity = db.enqueue()
    claim, _ = db.run()
    db.report(claim.token)
    db.do("select bridge.report_drainer(%s, 'd@test', 1, 'test', 0, clock_timestamp())", db.drainer)
    then = db.one("select greatest(clock_timestamp(), pg_postmaster_start_time()) + interval '1 minute'")

    def seen(kind: str, ago: float) -> None:
        db.do(f"update bridge.{kind} set seen_at = %s - %s * interval '1 second'", then, ago)

    def tick(after: float) -> None:
        db.do("select bridge.tick('pg_cron', p_now => %s + %s * interval '1 second')", then, after)  # it needs no network

    db.do("update bridge.tick_state set steady_since = '-infinity', ticked_at = %s", then - timedelta(seconds=1))
    seen("worker", 25)
    seen("drainer", 21)
    tick(0)
    seen("drainer", -1)  # the network is back
    tick(1)
    assert db.status(identity) == "running"
    assert db.one("select bridge.sweep(p_now => %s)->>'lost'", then + timedelta(seconds=21)) == "1", "it has had its time"


def test_a_worker_whose_connections_were_forgotten_reports_before_it_is_missed(
    postgres_proxy: tuple[Proxy, str], db: Session, drainer: StartDrainer, worker: StartWorker
) -> None:
    proxy, through = postgres_proxy
    db.do(TABLE)
    drainer()
    worker("apps.ledger", dsn=through, concurrency=1, env={"LEDGER_DATABASE_URL": db.dsn})  # which has no patience of ours
    identity = db.enqueue("ledger.work", args=[1, 5.0])
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="running", timeout=60)
    proxy.forget()
    seen = db.one("select seen_at from bridge.worker")
    again = wait_for_row(db.dsn, "select seen_at, lost_at from bridge.worker where seen_at > %s", (seen,), timeout=60)
    assert again[0] - seen < timedelta(seconds=20)
    assert again[1] is None
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (identity,), value="succeeded", timeout=90)
    assert db.rows("select losses, attempts from bridge.jobs") == [(0, 1)]
    assert db.one("select count(*) from ledger where event = 'start'") == 1
