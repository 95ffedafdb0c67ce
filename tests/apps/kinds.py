"""One task of each kind that a worker must report right."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

import psycopg
from celery import Celery, Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

import bridge
from bridge import PermanentError

app = Celery("kinds", broker=os.environ.get("BRIDGE_BROKER_URL"), backend=os.environ.get("BRIDGE_TEST_RESULT_BACKEND", "bridge://"))
app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1)
app.conf.update(json.loads(os.environ.get("BRIDGE_TEST_CONF", "{}")))  # what a test wants otherwise
if not os.environ.get("CELERY_LOADER"):
    bridge.install(app)


@app.task(name="kinds.add")
def add(left: Any, right: Any) -> Any:
    return left + right


@app.task(name="kinds.echo")
def echo(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"args": args, "kwargs": kwargs}


@app.task(name="kinds.quiet", ignore_result=True)
def quiet() -> str:
    return "nobody asked"


@app.task(name="kinds.fail")
def fail(words: str) -> NoReturn:
    raise ValueError(words)


@app.task(name="kinds.hopeless")
def hopeless() -> NoReturn:
    raise PermanentError("no further attempt can help")


@app.task(name="kinds.quiet_fail", ignore_result=True)
def quiet_fail() -> NoReturn:
    raise KeyError("quiet")


@app.task(name="kinds.steps")
def steps(go: str) -> str:
    bridge.progress(0.5, "half way")
    wait_for_file(go)
    return "done"


@app.task(name="kinds.own_state", bind=True)
def own_state(self: Task, go: str) -> str:
    self.update_state(state="COOKING", meta={"minutes": 3})
    wait_for_file(go)
    return "cooked"


@app.task(name="kinds.hold")
def hold(started: str, go: str) -> str:
    """Say that it runs, by a file; end when another file is there."""
    mark(started, str(os.getpid()))
    wait_for_file(go)
    return "held"


@app.task(name="kinds.lock_out")
def lock_out() -> int:
    """End every session of the bridge's database, this process's own among them, and let nobody in any more."""
    with psycopg.connect(os.environ["BRIDGE_DATABASE_URL"]) as connection:
        name = connection.info.dbname
    with psycopg.connect(os.environ["BRIDGE_DATABASE_URL"], dbname="postgres", autocommit=True) as connection:
        connection.execute(f'alter database "{name}" allow_connections false'.encode())
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
    return 1


@app.task(name="kinds.unpicklable")
def no_json() -> object:
    return object()


@app.task(name="kinds.flaky", bind=True, max_retries=3, default_retry_delay=0)
def flaky(self: Task, marks: str, failures: int) -> int:
    """Ask for its own retry as often as told; each run leaves a mark."""
    mark(marks, "run")
    if self.request.retries < failures:
        raise self.retry(exc=RuntimeError(f"not yet, retries={self.request.retries}"))
    return self.request.retries


@app.task(name="kinds.auto", autoretry_for=(OSError,), retry_kwargs={"max_retries": 2}, default_retry_delay=0)
def auto(marks: str) -> NoReturn:
    mark(marks, "run")
    raise OSError("the disk is always full")


@app.task(name="kinds.ignore")
def ignore() -> NoReturn:
    raise Ignore


@app.task(name="kinds.reject")
def reject() -> NoReturn:
    raise Reject("not mine", requeue=False)


@app.task(name="kinds.reject_once")
def reject_once(seen: str) -> str:
    if Path(seen).exists():
        return "second time"
    Path(seen).touch()
    raise Reject("another worker, please", requeue=True)


@app.task(name="kinds.slow_soft", soft_time_limit=1)
def slow_soft() -> str:
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "never"


@app.task(name="kinds.slow_hard", time_limit=1)
def slow_hard() -> None:
    time.sleep(60)


@app.task(name="kinds.rare", rate_limit="1/h")
def rare() -> None:
    """Held back by the worker itself, for an hour."""


@app.task(name="kinds.sleep")
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@app.task(name="kinds.die_once")
def die_once(seen: str) -> str:
    """Kill its own process the first time."""
    if Path(seen).exists():
        return "alive"
    Path(seen).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@app.task(name="kinds.take_all_along")
def take_all_along(seen: str) -> str:
    """Kill the whole worker the first time."""
    if Path(seen).exists():
        return "alive"
    Path(seen).touch()
    os.killpg(os.getpgrp(), signal.SIGKILL)
    return "never"


@app.task(name="kinds.die_always")
def die_always() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="kinds.memory")
def memory() -> NoReturn:
    raise MemoryError("the input is too large")


@app.task(name="kinds.exit")
def leave() -> NoReturn:
    raise SystemExit(3)


def mark(path: str, word: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{word}\n")


class Stubborn(Task):
    """What users write: their own hooks, without a call of super()."""

    abstract = True

    def before_start(self, _task_id: str, args: Any, _kwargs: Any) -> None:
        mark(args[0], "before_start")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mark(args[0], "call")
        return self.run(*args, **kwargs)

    def on_success(self, _retval: Any, _task_id: str, args: Any, _kwargs: Any) -> None:
        mark(args[0], "on_success")

    def on_failure(self, _exc: Any, _task_id: str, args: Any, _kwargs: Any, _einfo: Any) -> None:
        mark(args[0], "on_failure")


@app.task(name="kinds.stubborn", base=Stubborn)
def stubborn(_marks: str, *, broken: bool = False) -> str:
    if broken:
        raise ValueError("broken")
    return "through all hooks"


def wait_for_file(path: str, timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while not Path(path).exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.01)
