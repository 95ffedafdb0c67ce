"""One task for each way in which Celery reports an outcome; each leaves a line in its file whenever it runs."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from celery import Celery, Task, states
from celery.exceptions import Ignore, Reject

import bridge

app = Celery("reports", broker=os.environ.get("BRIDGE_BROKER_URL"), backend=os.environ.get("BRIDGE_TEST_RESULT_BACKEND", "bridge://"))
app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1, task_default_queue="reports")
bridge.install(app)


def ran(marks: str) -> int:
    """Leave a line; how many there are now."""
    with Path(marks).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(Path(marks).read_text().splitlines())


def wait_for(path: str) -> None:
    end = time.monotonic() + 60
    while not Path(path).exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.01)


@app.task(name="reports.give")
def give(marks: str, value: Any = "done") -> Any:
    ran(marks)
    return value


@app.task(name="reports.quiet", ignore_result=True)
def quiet(marks: str) -> str:
    ran(marks)
    return "nobody asked"


@app.task(name="reports.quiet_retry", bind=True, ignore_result=True, max_retries=1, default_retry_delay=0)
def quiet_retry(self: Task, marks: str, failures: int) -> None:
    if ran(marks) <= failures:
        raise self.retry(exc=ValueError("not yet"))


@app.task(name="reports.retry", bind=True, max_retries=2, default_retry_delay=0)
def retry(self: Task, marks: str, failures: int) -> int:
    runs = ran(marks)
    if runs <= failures:
        raise self.retry(exc=ValueError("not yet"))
    return runs


@app.task(name="reports.retry_bigger", bind=True)
def retry_bigger(self: Task, marks: str, words: str = "") -> NoReturn:
    ran(marks)
    raise self.retry(args=(marks, words or "word " * (1 << 20)), countdown=0)


class SlowToLetGo(Task):
    """Its handler of retries waits for a file."""

    abstract = True

    def on_retry(self, _exc: Any, _task_id: str, args: Any, _kwargs: Any, _einfo: Any) -> None:
        Path(f"{args[0]}-handler").touch()
        wait_for(f"{args[0]}-go")


@app.task(name="reports.retry_slowly", bind=True, base=SlowToLetGo)
def retry_slowly(self: Task, marks: str) -> int:
    runs = ran(marks)
    if runs == 1:
        raise self.retry(exc=ValueError("not yet"), countdown=0)
    return runs


@app.task(name="reports.fail")
def fail(marks: str, words: str = "as told") -> NoReturn:
    ran(marks)
    raise ValueError(words)


@app.task(name="reports.fail_once")
def fail_once(marks: str) -> str:
    if ran(marks) == 1:
        raise ValueError("the first time")
    return "the second time"


@app.task(name="reports.soft", soft_time_limit=1)
def soft(marks: str) -> None:
    ran(marks)
    time.sleep(60)


@app.task(name="reports.hard", time_limit=1)
def hard(marks: str) -> None:
    ran(marks)
    time.sleep(60)


@app.task(name="reports.hard_late", time_limit=1, acks_late=True, acks_on_failure_or_timeout=False)
def hard_late(marks: str) -> None:
    ran(marks)
    time.sleep(60)


@app.task(name="reports.no_json")
def no_json(marks: str) -> object:
    ran(marks)
    return object()


@app.task(name="reports.progress", bind=True)
def progress(self: Task, marks: str, go: str) -> str:
    ran(marks)
    self.update_state(state="PROGRESS", meta={"done": 1, "of": 2})
    wait_for(go)
    return "all"


@app.task(name="reports.hold")
def hold(marks: str, go: str) -> str:
    ran(marks)
    wait_for(go)
    return "held"


@app.task(name="reports.hold_late", acks_late=True)
def hold_late(marks: str, go: str) -> str:
    ran(marks)
    wait_for(go)
    return "held"


@app.task(name="reports.hold_rejecting", acks_late=True, reject_on_worker_lost=True)
def hold_rejecting(marks: str, go: str) -> str:
    ran(marks)
    wait_for(go)
    return "held"


@app.task(name="reports.hold_retrying", retry_on_worker_lost=True, default_retry_delay=0)
def hold_retrying(marks: str, go: str) -> str:
    """The option is Celery's from 5.7 on."""
    ran(marks)
    wait_for(go)
    return "held"


@app.task(name="reports.leave")
def leave(marks: str, code: Any = 3) -> NoReturn:
    ran(marks)
    sys.exit(code)


@app.task(name="reports.leave_late", acks_late=True, reject_on_worker_lost=True)
def leave_late(marks: str) -> NoReturn:
    ran(marks)
    sys.exit(3)


@app.task(name="reports.vanish_once")
def vanish_once(marks: str) -> str:
    if ran(marks) == 1:
        os._exit(3)
    return "back"


@app.task(name="reports.crash_once")
def crash_once(marks: str) -> str:
    """As a fault in a C extension ends a process."""
    if ran(marks) == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return "back"


class Mortal(Task):
    """Its process ends when the result has been marked, and nobody has been told."""

    abstract = True

    def after_return(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="reports.die_afterwards", base=Mortal)
def die_afterwards(marks: str, go: str | None = None) -> str:
    ran(marks)
    if go is not None:
        wait_for(go)
    return "done"


@app.task(name="reports.grow")
def grow(marks: str, megabytes: int, go: str) -> str:
    """Take that much memory, the first time."""
    kept = b"\x01" * (megabytes << 20) if ran(marks) == 1 else b""
    wait_for(go)
    return f"{len(kept)} bytes"


@app.task(name="reports.beyond")
def beyond(marks: str) -> int:
    """Ask for more memory than its process may have."""
    ran(marks)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, limits[1]))
    try:
        return len(bytearray(8 << 30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@app.task(name="reports.reject")
def reject(marks: str) -> NoReturn:
    ran(marks)
    raise Reject("not mine", requeue=False)


@app.task(name="reports.reject_late", acks_late=True)
def reject_late(marks: str) -> NoReturn:
    ran(marks)
    raise Reject("not mine", requeue=False)


@app.task(name="reports.requeue_once")
def requeue_once(marks: str) -> str:
    if ran(marks) == 1:
        raise Reject("another time", requeue=True)
    return "taken"


@app.task(name="reports.requeue_once_late", acks_late=True)
def requeue_once_late(marks: str) -> str:
    if ran(marks) == 1:
        raise Reject("another time", requeue=True)
    return "taken"


@app.task(name="reports.ignore")
def ignore(marks: str) -> NoReturn:
    ran(marks)
    raise Ignore


@app.task(name="reports.ignore_failed", bind=True)
def ignore_failed(self: Task, marks: str) -> NoReturn:
    """How Celery's documentation lets a task choose its own final state."""
    ran(marks)
    self.update_state(state=states.FAILURE, meta={"exc_type": "ValueError", "exc_message": ["by hand"], "exc_module": "builtins"})
    raise Ignore


@app.task(name="reports.ignore_succeeded", bind=True)
def ignore_succeeded(self: Task, marks: str) -> NoReturn:
    ran(marks)
    self.update_state(state=states.SUCCESS, meta="by hand")
    raise Ignore


@app.task(name="reports.replace", bind=True)
def replace(self: Task, marks: str) -> NoReturn:
    ran(marks)
    raise self.replace(give.si(marks, "replaced"))


@app.task(name="reports.after")
def after(marks: str, *_: Any) -> int:
    """A step that follows others, or a callback."""
    return ran(marks)


@app.task(name="reports.noted")
def noted(_request: Any, exc: Any, _traceback: Any, marks: str) -> None:
    """An errback."""
    ran(f"{marks}-{type(exc).__name__}")
