"""Tasks that complete their jobs and then do not simply return, and completions that are refused: one worker for all of them."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from apps.completing import TABLES
from fix_servers import wait_for_row, wait_until
from invariants import assert_sound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

    from bridge.testing.databases import Databases


@pytest.fixture(scope="module")
def started(bare_stack: Stack, databases: Databases, template: str) -> Iterator[Stack]:
    other = databases.create(template)
    bare_stack.sql.execute(f"{TABLES}; create table said (words text)")
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.completing", env={"ELSEWHERE": databases.server.dsn_of(other)})
    yield bare_stack
    bare_stack.kill_all()
    databases.drop(other)


@pytest.fixture
def stack(started: Stack) -> Iterator[Stack]:
    yield started
    worker = started.processes[1]
    assert worker.alive, f"the worker itself died: {worker.log_tail()}"
    locks = "select count(*) from pg_stat_activity where state like 'idle in transaction%' and datname = current_database()"
    wait_until(lambda: started.sql.execute(locks).fetchone() == (0,), 20, "no transaction left open")
    assert_sound(started.dsn)


def effects(stack: Stack, identity: Any) -> int:
    row = stack.sql.execute("select count(*) from effect where task_id = %s", (str(identity),)).fetchone()
    return int(row[0]) if row else 0


def log_of(stack: Stack, identity: Any, words: str) -> None:
    worker = stack.processes[1]
    wait_until(lambda: any(words in line and str(identity) in line for line in worker.log_text().splitlines()), 20, words)


@pytest.mark.parametrize(
    "how", ["answer_lost", "raise_after", "replace_after", "retry_after", "ignore_after", "leave_after", "other_result"]
)
def test_nothing_that_a_task_does_after_the_commit_changes_its_outcome(stack: Stack, how: str) -> None:
    job = stack.run("completing.stray", 5, how, max_attempts=3)
    assert (job["status"], job["result"], job["attempts"], job["losses"]) == ("succeeded", 5, 1, 0)
    words = {"leave_after": "which stands", "other_result": "returned something else"}.get(how, "did not return after it was completed")
    log_of(stack, job["id"], words)
    assert (effects(stack, job["id"]), stack.attempts(job["id"])) == (1, [(1, "succeeded")])
    assert stack.job(job["id"])["status"] == "succeeded"


@pytest.mark.parametrize(("how", "attempts"), [("roll_back_and_again", 1), ("savepoint", 1), ("retry_inside", 2), ("left_open", 2)])
def test_a_completion_that_was_rolled_back_never_was(stack: Stack, how: str, attempts: int) -> None:
    job = stack.run("completing.stray", 6, how, max_attempts=2, backoff="0")
    assert (job["status"], job["result"], job["attempts"], job["losses"]) == ("succeeded", 6, attempts, 0)
    assert effects(stack, job["id"]) == 1


def test_a_run_that_rolled_its_completion_back_ends_by_its_return(stack: Stack) -> None:
    job = stack.run("completing.stray", 7, "roll_back")
    assert (job["status"], job["result"], job["progress"]["fraction"]) == ("succeeded", 70, 0.5)
    assert effects(stack, job["id"]) == 0


def test_a_task_that_raises_with_its_transaction_open_fails_at_once(stack: Stack) -> None:
    job = stack.run("completing.stray", 8, "raise_inside", max_attempts=1)
    assert (job["status"], job["error"]["type"]) == ("failed", "OopsError")
    assert effects(stack, job["id"]) == 0


def test_a_task_that_leaves_its_transaction_open_fails_with_that_reason(stack: Stack) -> None:
    job = stack.run("completing.stray", 8, "left_open", max_attempts=1)
    assert (job["status"], job["error"]["type"]) == ("failed", "LeftOpenError")
    assert "commit it before the task returns" in job["error"]["message"]
    assert effects(stack, job["id"]) == 0


def test_progress_and_states_after_a_completion_wait_for_nobody(stack: Stack) -> None:
    job = stack.run("completing.stray", 9, "goes_on")
    assert (job["status"], job["result"], job["progress"], effects(stack, job["id"])) == ("succeeded", 9, None, 1)


def test_a_result_that_postgres_has_no_json_for_is_kept_as_ever(stack: Stack) -> None:
    job = stack.run("completing.stray", 9, "null_character")
    assert (job["status"], job["result"], effects(stack, job["id"])) == ("succeeded", None, 1)
    assert "NaN" in job["outcome"]["json"]


REFUSED = {
    "twice_at_once": "has been completed by this run already",
    "without_transaction": "is in autocommit mode, with no transaction open",
    "elsewhere": "the transaction given to bridge.complete is of database",
    "elsewhere_by_sqlalchemy": "the transaction given to bridge.complete is of database",
    "unencodable": "not JSON serializable",
}


@pytest.mark.parametrize(("how", "words"), REFUSED.items(), ids=REFUSED)
def test_a_completion_that_cannot_be_is_refused_in_words(stack: Stack, how: str, words: str) -> None:
    job = stack.run("completing.stray", 9, how, max_attempts=1)
    assert job["status"] == "failed"
    assert words in job["error"]["message"], job["error"]
    assert effects(stack, job["id"]) == 0


def test_a_second_completion_is_refused_and_the_first_stands(stack: Stack) -> None:
    job = stack.run("completing.stray", 9, "twice")
    assert (job["status"], job["result"]) == ("succeeded", 9)
    (words,) = wait_for_row(stack.dsn, "select words from said")
    assert "has been completed by this run already: call bridge.complete once" in words


def test_a_follower_that_is_no_row_is_refused(stack: Stack) -> None:
    aside = '{"task": "completing.aside", "args": [], "kwargs": {}, "options": {}, "subtask_type": null, "immutable": false}'
    embed = f'{{"callbacks": [{aside}], "errbacks": null, "chain": null, "chord": null}}'
    query = (
        "select bridge.enqueue_message(bridge.new_id(), 'followed', 'completing.work', 'celery', 9::smallint, '[1]', '{}', %s, null,"
        ' null, null, \'{"lang": "py", "task": "completing.work", "id": "followed", "root_id": "followed"}\', null, null, null)'
    )
    stack.sql.execute(query, (embed,))
    (identity,) = stack.sql.execute("select id from bridge.jobs where task_id = 'followed'").fetchone() or (None,)
    job = stack.wait(identity)
    assert job["status"] == "failed"
    assert "task completing.aside follows a job that is completed in a transaction, and is no row" in job["error"]["message"]
    assert effects(stack, "followed") == 0


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_coroutine_completes_its_job(stack: Stack, driver: str) -> None:
    job = stack.run("completing.awaits", 4, driver)
    assert (job["status"], job["result"], effects(stack, job["id"])) == ("succeeded", 4, 1), job["error"]


def test_a_job_is_cancelled_or_completed_and_never_in_between(stack: Stack, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    identity = stack.enqueue("completing.hold", str(started), str(go))
    wait_until(started.exists, 30)
    with pytest.raises(Exception, match="is being completed by a transaction of its own task"):
        stack.sql.execute("select bridge.cancel(%s)", (identity,))
    go.touch()
    job = stack.wait(identity)
    assert (job["status"], effects(stack, identity)) == ("succeeded", 1)
    assert stack.sql.execute("select bridge.cancel(%s)", (identity,)).fetchone() == ("succeeded",)


def test_a_hard_time_limit_ends_a_task_whose_transaction_is_open(stack: Stack, tmp_path: Path) -> None:
    job = stack.run("completing.limited", str(tmp_path / "started"), max_attempts=1)
    assert (job["status"], job["error"]["type"], effects(stack, job["id"])) == ("failed", "TimeLimitExceeded", 0)


def test_a_job_whose_process_dies_with_its_transaction_open_runs_again(stack: Stack, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    identity = stack.enqueue("completing.hold", str(started), str(go))
    wait_until(started.exists, 30)
    started.unlink()
    (pid,) = stack.sql.execute("select pid from bridge.jobs where id = %s", (identity,)).fetchone() or (0,)
    os.kill(pid, signal.SIGKILL)
    wait_until(started.exists, 30, "the second run")
    go.touch()
    job = stack.wait(identity)
    assert (job["status"], job["losses"], effects(stack, identity)) == ("succeeded", 1, 1)


def test_a_worker_goes_on_while_postgres_has_not_noticed_that_its_process_died(stack: Stack) -> None:
    identity = stack.enqueue("completing.slow", 4)
    worker = stack.processes[1]
    wait_until(lambda: f"lost while its run was being completed task_id={identity}" in worker.log_text(), 30, "the death")
    assert stack.run("completing.next", 1)["result"] == 2
    with pytest.raises(Exception, match=r"of the session with pid \d+\)") as refused:
        stack.sql.execute("select bridge.cancel(%s)", (identity,))
    assert stack.job(identity)["status"] == "running"
    pid = str(refused.value).partition("with pid ")[2].partition(")")[0]
    sleeping = "select pg_terminate_backend(pid) from pg_stat_activity where query like '%%pg_sleep%%' and pid = %s"
    assert stack.sql.execute(sleeping, (int(pid),)).fetchone() == (True,)
    job = stack.wait(identity)
    assert (job["status"], job["result"], job["losses"], effects(stack, identity)) == ("succeeded", 4, 1, 1)
