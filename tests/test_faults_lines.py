"""Lines that the laboratory has not, or not alone: those to a result store of the application's own, and a caller's to the broker."""

from __future__ import annotations

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery
from celery.exceptions import TimeoutError as CeleryTimeoutError
from fix_control import Held
from fix_servers import wait_until
from kombu.exceptions import OperationalError
from laboratory.faults.network import STATES, become
from laboratory.proxy import Proxy

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

SILENCE = 2.0  # seconds that Redis may be silent; Celery's own are 120 for results, and for ever for a caller's broker
PATIENCE = 30  # seconds
UNTOLD = (CeleryTimeoutError, redis.RedisError, RuntimeError)  # how Celery says that it has not heard; the last when it has tried in vain


@dataclass
class Lines:
    """A drainer and a worker of one process, whose results are in Redis; the line from there, and one for callers."""

    stack: Stack
    of_worker: Proxy
    of_caller: Proxy

    def through(self, line: Proxy) -> str:
        """The URL of Redis through a line."""
        return self.stack.broker_url.replace(f":{urlsplit(self.stack.broker_url).port}/", f":{line.port}/")

    def troubles(self) -> int:
        """How often the worker has tried to store a result in vain, as far as anybody sees."""
        return self.of_worker.dropped + self.stack.processes[1].log_text().count("Failed operation")

    def start_worker(self, *words: str, **conf: Any) -> Any:
        env = {
            "BRIDGE_TEST_RESULT_BACKEND": f"bridge+{self.through(self.of_worker)}",
            "BRIDGE_TEST_CONF": json.dumps({"redis_socket_timeout": SILENCE, **conf}),
        }
        return self.stack.start_worker("apps.kinds", "--concurrency=1", *words, env=env)


@pytest.fixture(scope="module")
def lines(bare_stack: Stack) -> Iterator[Lines]:
    port = urlsplit(bare_stack.broker_url).port or 0
    lines = Lines(bare_stack, Proxy(port), Proxy(port))
    bare_stack.start_drainer()
    lines.start_worker("-Q", "celery", result_backend_always_retry=True)
    yield lines
    bare_stack.kill_all()
    lines.of_worker.close()
    lines.of_caller.close()


@pytest.fixture
def app(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An application of the calling side, whose broker and store are at the end of its line."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", lines.stack.dsn)
    url = lines.through(lines.of_caller)
    app = Celery("caller", broker=url, backend=f"bridge+{url}", set_as_current=False)
    app.conf.update(redis_socket_timeout=SILENCE, broker_transport_options={"socket_timeout": SILENCE})
    bridge.install(app)
    yield app
    for line in (lines.of_worker, lines.of_caller):
        line.heal()
        line.cut()  # what has lost bytes stays silent
    app.backend._pending_results.concrete.clear()
    gc.collect()  # result objects tell Redis when they go
    app.close()
    app.bridge.connections.close()


def told(result: Any, timeout: float) -> Any:
    """What a caller hears, or how it is told that nobody knows."""
    try:
        return result.get(timeout=timeout)
    except UNTOLD as error:
        return error


@pytest.mark.parametrize("state", STATES)
def test_a_result_comes_into_its_store_however_the_line_there_failed(lines: Lines, app: Any, tmp_path: Path, state: str) -> None:
    assert app.send_task("kinds.add", (1, 2)).get(timeout=PATIENCE) == 3, "so that there is a connection"
    running, before = Held(app, tmp_path), lines.troubles()
    become(lines.of_worker, state)
    running.go.touch()
    if STATES[state]:
        wait_until(lambda: lines.troubles() > before, PATIENCE, "the worker to fail")
    if STATES[state] and state != "forget":  # on a new connection it succeeds
        assert lines.stack.job(running.id)["status"] == "running", "no row says more than its store"
    lines.of_worker.heal()
    assert running.result.get(timeout=PATIENCE) == "held"
    assert lines.stack.wait(running.id)["status"] == "succeeded"
    assert lines.stack.attempts(running.id) == [(1, "succeeded")]


def test_a_task_whose_result_cannot_be_stored_fails_where_nobody_says_otherwise(lines: Lines, app: Any, tmp_path: Path) -> None:
    process = lines.start_worker("-Q", "impatient")
    assert app.send_task("kinds.add", (1, 2), queue="impatient").get(timeout=PATIENCE) == 3, "so that there is a connection"
    running = Held(app, tmp_path, queue="impatient")
    lines.of_worker.forget()
    running.go.touch()
    with pytest.raises(redis.TimeoutError):
        running.result.get(timeout=PATIENCE)
    assert lines.stack.job(running.id)["error"]["type"] == "TimeoutError"
    assert lines.stack.attempts(running.id) == [(1, "failed")]
    process.stop()
    lines.stack.processes.remove(process)


@pytest.mark.parametrize("state", STATES)
def test_who_waits_for_a_result_hears_it_or_that_nobody_knows(lines: Lines, app: Any, tmp_path: Path, state: str) -> None:
    running = Held(app, tmp_path)
    key = app.backend.get_key_for_task(running.id)
    with redis.Redis.from_url(lines.stack.broker_url) as store, ThreadPoolExecutor(1) as others:
        waiting = others.submit(told, running.result, 8.0)
        wait_until(lambda: store.pubsub_numsub(key)[0][1], PATIENCE, "the caller to listen")
        become(lines.of_caller, state)
        running.go.touch()
        assert lines.stack.wait(running.id)["status"] == "succeeded"
        heard = waiting.result(PATIENCE)
    assert heard == "held" or isinstance(heard, UNTOLD)
    lines.of_caller.heal()
    wait_until(lambda: told(app.AsyncResult(running.id), 8.0) == "held", PATIENCE, "the result, asked for again")


@pytest.mark.parametrize("state", STATES)
def test_what_is_revoked_is_cancelled_while_the_line_to_the_broker_fails(lines: Lines, app: Any, state: str) -> None:
    first, second = (app.send_task("kinds.add", (1, 2), queue="nobody") for _ in range(2))
    first.revoke()  # so that there is a connection

    def revoke() -> None:
        second.revoke()
        app.bridge.connections.close()  # this thread's

    with ThreadPoolExecutor(1) as others:
        become(lines.of_caller, state)
        revoking = others.submit(revoke)
        assert lines.stack.wait(second.id, timeout=PATIENCE)["status"] == "cancelled"
        lines.of_caller.heal()
        assert isinstance(revoking.exception(PATIENCE), OperationalError | None)
