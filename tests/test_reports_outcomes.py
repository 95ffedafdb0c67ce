"""Every line of Celery's table "what reports what" ends with the right row, the right history and the right state of the result.

Each line is run by a prefork worker, once over our backend alone and once over Redis with the row following (BRIDGE_TEST_EFFORT=2: once
more in streaming mode); see also test_reports_faults.py for what must be killed, revoked or expired first.
"""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from fix_effort import EFFORT
from fix_servers import wait_until
from invariants import assert_sound

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

pytestmark = pytest.mark.versions

ONCE = [(1, "succeeded")]
FAILED = [(1, "failed")]
LOST_ONCE = [(1, "lost"), (1, "succeeded")]
SOFT, HARD = ("SoftTimeLimitExceeded", ""), ("TimeLimitExceeded", "1")
LEFT = ("WorkerLostError", "Worker exited prematurely: exitcode 3")


@dataclass(frozen=True)
class Line:
    """What becomes of a task: its row, its attempts, how often it ran, and the state that its caller reads.

    ``stored`` is the state in the application's own backend, where that is told less than the row; ``attempts`` is what counts of a task
    that has no history, because it never began.
    """

    status: str = "succeeded"
    history: list[tuple[int, str]] = field(default_factory=lambda: ONCE)
    result: Any = None
    error: tuple[str, str] | None = None
    state: str = "SUCCESS"
    stored: str | None = None
    attempts: int = 0
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def failed(*error: str, **others: Any) -> Line:
    return Line(**{"status": "failed", "state": "FAILURE", "error": error, "history": FAILED, **others})


QUIET = {"options": {"ignore_result": True}, "stored": "PENDING"}
LINES = {
    "give": Line(result="done"),
    "quiet": Line(**QUIET),
    "quiet_retry": Line(args=(1,), history=[(1, "retried"), (2, "succeeded")], **QUIET),
    "quiet_retry for ever": failed("ValueError", "not yet", args=(9,), history=[(1, "retried"), (2, "failed")], **QUIET),
    "retry": Line(args=(1,), history=[(1, "retried"), (2, "succeeded")], result=2),
    "retry for ever": failed("ValueError", "not yet", args=(9,), history=[(1, "retried"), (2, "retried"), (3, "failed")]),
    "retry_bigger": failed("PayloadTooLargeError", "the limit is 1048576"),
    "fail": failed("ValueError", "as told"),
    "soft": failed(*SOFT),
    "hard": failed(*HARD),
    "hard_late": failed(*HARD),
    "no_json": failed("EncodeError", "not JSON serializable"),
    "leave": failed(*LEFT),
    "leave well": failed("WorkerLostError", "exitcode 0", args=(None,)),
    "leave with words": failed("WorkerLostError", "exitcode 1", args=("the disk is full",)),
    "leave_late": failed(*LEFT),
    "vanish_once": Line(history=LOST_ONCE, result="back"),
    "crash_once": Line(history=LOST_ONCE, result="back"),
    "beyond": failed("MemoryError", ""),
    "reject": failed("Reject", "not mine"),
    "reject_late": failed("Reject", "not mine"),
    "requeue_once": Line(history=LOST_ONCE, result="taken"),
    "requeue_once_late": Line(history=LOST_ONCE, result="taken"),
    "ignore": Line(stored="PENDING"),
    "ignore_failed": failed("ValueError", "by hand"),
    "ignore_succeeded": Line(result="by hand"),
    "replace": Line(history=[(1, "retried"), (2, "succeeded")], result="replaced"),
    "does_not_exist": failed("NotRegistered", "reports.does_not_exist", history=[], attempts=1),
}


@pytest.fixture(scope="module", params=["alone", "composed", *(["streaming"] if EFFORT > 1 else [])])
def stack(request: pytest.FixtureRequest, bare_stack: Stack) -> Iterator[Stack]:
    """One worker for all lines; what they left is looked at again by the last test."""
    composed = request.param == "composed"
    backend = f"bridge+{bare_stack.broker_url}" if composed else "bridge://"
    bare_stack.seen = {"composed": composed, "backend": backend, "runs": {}}  # type: ignore[attr-defined]
    bare_stack.start_drainer()
    streaming = {"BRIDGE_STREAMING": "0.5"} if request.param == "streaming" else {}
    bare_stack.start_worker("apps.reports", env={"BRIDGE_TEST_RESULT_BACKEND": backend, **streaming})
    yield bare_stack
    bare_stack.kill_all()


@pytest.fixture
def seen(stack: Stack) -> dict[str, Any]:
    return stack.seen  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def client(stack: Stack, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The caller's side: it knows no task, only names."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", stack.dsn)
    app = Celery("client", broker=stack.broker_url, backend=seen["backend"], set_as_current=False)
    app.conf.task_default_queue = "reports"
    bridge.install(app)
    yield app
    # Result objects tell Redis when they go, and it must be there: so they go now, those that wait or that an error holds, too.
    app.backend._pending_results.concrete.clear()
    gc.collect()
    app.close()


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("name", LINES)
def test_a_task_ends_with_its_row(stack: Stack, seen: dict[str, Any], client: Any, tmp_path: Path, name: str) -> None:
    line, marks = LINES[name], tmp_path / "marks"
    result = client.send_task(f"reports.{name.partition(' ')[0]}", (str(marks), *line.args), **line.options)
    job = stack.wait(result.id)
    assert (job["status"], job["result"], stack.attempts(result.id)) == (line.status, line.result, line.history), job["error"]
    assert (job["error"] or {}).get("type") == (line.error[0] if line.error else None)
    assert line.error is None or re.search(re.escape(line.error[1]), job["error"]["message"])
    lost = sum(outcome == "lost" for _, outcome in line.history)
    assert (job["attempts"], job["losses"]) == (line.attempts or len(line.history) - lost, lost)
    expected = line.stored if line.stored and seen["composed"] else line.state
    wait_until(lambda: client.AsyncResult(result.id).state == expected, 20, f"state {expected}, not {client.AsyncResult(result.id).state}")
    seen["runs"][marks] = len(line.history)
    assert lines_of(marks) == len(line.history)


def test_the_errback_of_a_hard_time_limit_runs_once(stack: Stack, seen: dict[str, Any], client: Any, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    errback = client.signature("reports.noted", (str(marks),))
    result = client.send_task("reports.hard", (str(marks),), link_error=errback)
    stack.wait(result.id)
    noted = tmp_path / "marks-TimeLimitExceeded"
    wait_until(noted.exists, 20)
    seen["runs"][noted] = 1


def test_the_next_attempt_begins_when_all_of_the_last_is_over(stack: Stack, client: Any, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    result = client.send_task("reports.retry_slowly", (str(marks),))
    wait_until((tmp_path / "marks-handler").exists, 30, "the handler of the retry")
    assert (stack.job(result.id)["status"], lines_of(marks)) == ("running", 1)
    (tmp_path / "marks-go").touch()
    assert (stack.wait(result.id)["result"], client.AsyncResult(result.id).get(timeout=20)) == (2, 2)
    first = stack.sql.execute("select outcome, error ->> 'message' from bridge.attempts where id = %s and attempt = 1", (result.id,))
    assert first.fetchone() == ("retried", "not yet")


def test_progress_of_a_task_is_seen_before_its_result(stack: Stack, client: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    result = client.send_task("reports.progress", (str(tmp_path / "marks"), str(go)))
    wait_until(lambda: client.AsyncResult(result.id).state == "PROGRESS", 30)
    assert client.AsyncResult(result.id).info == {"done": 1, "of": 2}
    wait_until(
        lambda: (stack.job(result.id)["progress"] or {}).get("state") == "PROGRESS", 30, "the row's progress, noted after the result's"
    )
    assert stack.job(result.id)["status"] == "running"
    go.touch()
    assert (stack.wait(result.id)["result"], client.AsyncResult(result.id).get(timeout=20)) == ("all", "all")


def test_steps_after_a_failed_one_have_rows_that_say_so(stack: Stack, client: Any, tmp_path: Path) -> None:
    marks, later = tmp_path / "marks", tmp_path / "later"
    step = client.signature("reports.after", (str(later),), immutable=True)
    last = (client.signature("reports.fail", (str(marks),)) | step.clone() | step.clone()).apply_async()
    with pytest.raises(ValueError, match="as told"):
        last.get(timeout=30)
    assert stack.wait(last.parent.parent.id)["error"]["type"] == "ValueError"
    for result in (last.parent, last):
        job = stack.wait(result.id)
        assert (job["status"], job["attempts"], job["error"]["type"]) == ("cancelled", 0, "ParentFailed")
        assert job["error"]["message"] == "a task that it waits for failed: ValueError: as told"
        assert (client.AsyncResult(result.id).state, stack.attempts(result.id)) == ("FAILURE", [])
    assert lines_of(later) == 0


def test_a_failed_step_that_is_run_again_takes_its_chain_along(stack: Stack, seen: dict[str, Any], client: Any, tmp_path: Path) -> None:
    marks, later = tmp_path / "marks", tmp_path / "later"
    last = (
        client.signature("reports.fail_once", (str(marks),)) | client.signature("reports.after", (str(later),), immutable=True)
    ).apply_async()
    assert stack.wait(last.id)["status"] == "cancelled"
    stack.sql.execute("select bridge.retry(%s)", (last.parent.id,))
    wait_until(lambda: stack.job(last.id).get("status") == "succeeded", 30, "the next step under its own id")
    wait_until(lambda: client.AsyncResult(last.id).state == "SUCCESS", 20)
    seen["runs"] |= {marks: 2, later: 1}


def test_nothing_has_run_again_meanwhile(stack: Stack, seen: dict[str, Any], client: Any, tmp_path: Path) -> None:
    assert client.send_task("reports.give", (str(tmp_path / "marks"),)).get(timeout=30) == "done"
    wait_until(lambda: stack.sql.execute("select count(*) from bridge.job").fetchone() == (0,), 30, "no live job")
    assert {path: lines_of(path) for path in seen["runs"]} == seen["runs"]
    assert stack.processes[1].alive
    assert_sound(stack.dsn)
