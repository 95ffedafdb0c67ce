"""What a stock worker reports of each kind of task, in each pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis
from fix_servers import wait_until

from bridge.message import redis_messages
from bridge.queries.dispatch import CLAIMED, Claimed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack


@pytest.fixture(scope="module", params=["prefork", "threads", "solo", "gevent"])
def stack(request: pytest.FixtureRequest, bare_stack: Stack) -> Iterator[Stack]:
    bare_stack.pool = request.param
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.kinds")
    yield bare_stack
    bare_stack.kill_all()


def test_a_job_made_in_sql_comes_back_with_its_plain_result(stack: Stack) -> None:
    job = stack.run("kinds.add", 20, 22)
    assert (job["status"], job["result"], job["attempts"], job["error"]) == ("succeeded", 42, 1, None)
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]


def test_the_row_names_the_worker_that_ran_it(stack: Stack) -> None:
    job = stack.run("kinds.add", 1, 1)
    wait_until(lambda: stack.job(job["id"])["worker"], 20, "the worker's name on the row")
    assert stack.sql.execute("select count(*) from bridge.workers where name = %s", (stack.job(job["id"])["worker"],)).fetchone() == (1,)


def test_positional_and_keyword_arguments_arrive_as_they_were_written(stack: Stack) -> None:
    job = stack.run("kinds.echo", 1, "två", None, [True], kwargs={"deep": {"er": [1.5]}})
    assert job["result"] == {"args": [1, "två", None, [True]], "kwargs": {"deep": {"er": [1.5]}}}


def test_a_task_that_ignores_its_result_still_ends_as_succeeded(stack: Stack) -> None:
    assert stack.run("kinds.quiet")["status"] == "succeeded"


def test_a_failed_job_has_type_message_and_traceback_of_its_error(stack: Stack) -> None:
    job = stack.run("kinds.fail", "no such file", max_attempts=1)
    assert (job["status"], job["error"]["type"], job["error"]["message"]) == ("failed", "ValueError", "no such file")
    assert "in fail" in job["error"]["traceback"]


def test_a_failing_task_without_a_result_still_ends_as_failed(stack: Stack) -> None:
    job = stack.run("kinds.quiet_fail", max_attempts=1)
    assert (job["status"], job["error"]["type"]) == ("failed", "KeyError")


def test_a_job_is_tried_as_often_as_it_says(stack: Stack) -> None:
    job = stack.run("kinds.fail", "again", max_attempts=3, backoff="0")
    assert (job["status"], job["attempts"], job["losses"]) == ("failed", 3, 0)
    assert stack.attempts(job["id"]) == [(1, "failed"), (2, "failed"), (3, "failed")]


def test_a_permanent_error_fails_at_once(stack: Stack) -> None:
    job = stack.run("kinds.hopeless", max_attempts=5, backoff="0")
    assert (job["status"], job["attempts"]) == ("failed", 1)


def test_progress_shows_while_the_task_runs(stack: Stack, tmp_path: Path) -> None:
    go = tmp_path / "go"
    identity = stack.enqueue("kinds.steps", str(go))
    wait_until(lambda: stack.job(identity)["progress"] == {"fraction": 0.5, "message": "half way"}, 30)
    assert stack.job(identity)["status"] == "running"
    go.touch()
    assert stack.wait(identity)["result"] == "done"


def test_a_state_of_the_users_own_shows_as_progress(stack: Stack, tmp_path: Path) -> None:
    go = tmp_path / "go"
    identity = stack.enqueue("kinds.own_state", str(go))
    wait_until(lambda: stack.job(identity)["progress"] == {"state": "COOKING", "meta": {"minutes": 3}}, 30)
    go.touch()
    assert stack.wait(identity)["result"] == "cooked"


def test_a_result_without_a_json_form_fails_the_job_with_that_reason(stack: Stack) -> None:
    job = stack.run("kinds.unpicklable", max_attempts=1)
    assert (job["status"], job["error"]["type"]) == ("failed", "EncodeError")
    assert "not JSON serializable" in job["error"]["message"]


def test_a_task_that_asks_for_its_own_retry_keeps_its_id_and_counts_on(stack: Stack, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    job = stack.run("kinds.flaky", str(marks), 2)
    assert (job["status"], job["result"], job["attempts"]) == ("succeeded", 2, 3)
    assert stack.attempts(job["id"]) == [(1, "retried"), (2, "retried"), (3, "succeeded")]
    assert marks.read_text().count("run") == 3


def test_a_task_that_asks_for_too_many_retries_fails_with_its_own_error(stack: Stack, tmp_path: Path) -> None:
    job = stack.run("kinds.flaky", str(tmp_path / "marks"), 9, max_attempts=1)
    assert (job["status"], job["attempts"], job["error"]["message"]) == ("failed", 4, "not yet, retries=3")


def test_autoretry_means_what_it_means_in_celery(stack: Stack, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    job = stack.run("kinds.auto", str(marks), max_attempts=1)
    assert (job["status"], job["error"]["type"], marks.read_text().count("run")) == ("failed", "OSError", 3)


def test_an_ignored_task_ends_its_job(stack: Stack) -> None:
    assert stack.run("kinds.ignore")["status"] == "succeeded"


def test_a_rejected_message_fails_its_job(stack: Stack) -> None:
    job = stack.run("kinds.reject")
    assert (job["status"], job["attempts"], job["error"]["type"]) == ("failed", 1, "Reject")


def test_a_message_rejected_for_another_worker_runs_again(stack: Stack, tmp_path: Path) -> None:
    job = stack.run("kinds.reject_once", str(tmp_path / "mark"))
    assert (job["status"], job["result"]) == ("succeeded", "second time")


def test_a_task_that_no_worker_knows_fails_with_that_reason(stack: Stack) -> None:
    job = stack.run("kinds.does_not_exist", max_attempts=3)
    assert (job["status"], job["error"]["type"]) == ("failed", "NotRegistered")
    assert "kinds.does_not_exist is not registered" in job["error"]["message"]


def test_a_task_that_leaves_its_process_fails_and_its_worker_goes_on(stack: Stack) -> None:
    job = stack.run("kinds.exit", max_attempts=1)
    assert (job["status"], job["error"]["type"], stack.attempts(job["id"])) == ("failed", "WorkerLostError", [(1, "failed")])
    assert "exitcode 3" in job["error"]["message"]
    assert "in leave" in job["error"]["traceback"]
    assert stack.run("kinds.add", 1, 2)["result"] == 3


def test_the_users_own_hooks_all_run_and_the_fence_stands_before_them(stack: Stack, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    assert stack.run("kinds.stubborn", str(marks))["status"] == "succeeded"
    wait_until(lambda: marks.read_text().split() == ["before_start", "call", "on_success"], 20)


def test_a_failing_task_with_hooks_of_its_own_calls_them(stack: Stack, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    assert stack.run("kinds.stubborn", str(marks), kwargs={"broken": True}, max_attempts=1)["status"] == "failed"
    wait_until(lambda: marks.read_text().split() == ["before_start", "call", "on_failure"], 20)


def test_a_second_copy_of_a_message_does_not_run(stack: Stack, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    identity = stack.enqueue("kinds.hold", str(started), str(go))
    wait_until(started.exists, 30)
    delivery = f"select {CLAIMED} from (select d.* from bridge.inflight i, bridge.deliveries(array[i.seq]) d where d.id = %s::text) d"
    row = stack.sql.execute(delivery, (identity,), binary=True).fetchone()
    with redis.Redis.from_url(stack.broker_url) as client:
        client.lpush("celery", *redis_messages([Claimed._make(row or ())] * 2))
        go.touch()
        assert stack.wait(identity)["status"] == "succeeded"
        wait_until(
            lambda: (
                sum(process.log_text().count(f"refused a copy that must not run task_id={identity}") for process in stack.processes) == 2
            ),
            30,
        )
    assert started.read_text().count("\n") == 1
    assert stack.attempts(identity) == [(1, "succeeded")]
