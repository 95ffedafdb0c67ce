"""Processes killed around the commit of a transaction that completes a job: before it nothing stands, after it everything does."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from apps.completing import TABLES
from celery import chord, group
from fix_servers import ROOT, wait_until
from invariants import assert_sound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_pairs import StartPairs
    from fix_servers import StartWorker
    from fix_stack import Stack


@pytest.fixture(scope="module")
def started(bare_stack: Stack) -> Iterator[Stack]:
    bare_stack.sql.execute(TABLES)
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.completing")
    yield bare_stack
    bare_stack.kill_all()


@pytest.fixture
def stack(started: Stack) -> Iterator[Stack]:
    worker = started.processes[1]
    yield started
    assert worker.alive, f"the worker itself died: {worker.log_tail()}"
    assert_sound(started.dsn)


@pytest.fixture
def tasks(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The application of the worker, as its callers have it."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", stack.dsn)
    monkeypatch.setenv("BRIDGE_BROKER_URL", stack.broker_url)
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    sys.modules.pop("apps.completing", None)
    from apps import completing

    yield completing
    completing.app.close()
    completing.app.bridge.renew()


def effects(stack: Stack, task_id: Any) -> list[int]:
    return [row[0] for row in stack.sql.execute("select number from effect where task_id = %s", (str(task_id),))]


def runs(stack: Stack, task_id: Any) -> int:
    row = stack.sql.execute("select count(*) from try where task_id = %s", (str(task_id),)).fetchone()
    return int(row[0]) if row else 0


@pytest.mark.parametrize("kind", ["psycopg", "autocommit", "session", "connection"])
def test_a_process_killed_before_the_commit_leaves_nothing_and_the_job_runs_again(stack: Stack, kind: str) -> None:
    job = stack.run("completing.work", 7, kind, "before")
    assert (job["status"], job["result"], job["losses"]) == ("succeeded", 7, 1)
    assert (effects(stack, job["id"]), runs(stack, job["id"])) == ([7], 2)


@pytest.mark.parametrize("task", ["work", "quiet", "late", "stubborn"])
def test_a_process_killed_after_the_commit_has_done_its_job_once(stack: Stack, tasks: Any, task: str) -> None:
    dies = {"dies": "after"}
    result = getattr(tasks, task).apply_async((8,), dies)
    job = stack.wait(result.id)
    assert (job["status"], job["result"], job["losses"]) == ("succeeded", None if task in {"quiet", "stubborn"} else 8, 0)
    worker = stack.processes[1]
    wait_until(lambda: f"completed, which stands task_id={result.id}" in worker.log_text(), 30, "the main process to notice")
    # One that runs after it would have come before this one, or with it.
    assert stack.run("completing.next", 1)["result"] == 2
    assert (effects(stack, result.id), runs(stack, result.id)) == ([8], 1)
    assert [job["status"] for job in [stack.job(result.id)]] == ["succeeded"]
    assert stack.sql.execute("select count(*) from bridge.job where id = %s", (result.id,)).fetchone() == (0,)


def test_a_waiter_hears_of_a_completion_whose_process_is_killed(tasks: Any) -> None:
    assert tasks.work.delay(9, dies="after").get(timeout=30) == 9


def test_the_next_step_of_a_chain_follows_a_process_killed_in_the_middle(stack: Stack, tasks: Any) -> None:
    for dies in ("after", "before", ""):
        last = tasks.story(dies).apply_async((1,))
        middle, first = last.parent, last.parent.parent
        assert (last.get(timeout=30), middle.get(timeout=30), first.get(timeout=30)) == (12, 2, 2), dies
        assert (effects(stack, middle.id), runs(stack, last.id)) == ([2], 1)
        parents = stack.job(last.id)["headers"]
        assert (parents["parent_id"], parents["root_id"]) == (middle.id, first.id)
        assert [child.id for child in tasks.app.AsyncResult(middle.id).children] == [last.id]


def test_a_chord_behind_a_killed_step_is_begun_and_joined_once(tasks: Any) -> None:
    for dies in ("after", "before", ""):
        assert tasks.spread(dies).delay().get(timeout=60) == 11 + 21, dies


def test_links_and_errbacks_of_a_killed_process_are_those_of_a_success(stack: Stack, tasks: Any) -> None:
    follower, second = (tasks.next_step.s(by).set(task_id=f"linked-{by}") for by in (100, 200))
    failing = tasks.next_step.si(0).set(task_id="errback")
    result = tasks.work.apply_async((1,), {"dies": "after"}, link=[follower, second], link_error=failing)
    assert result.get(timeout=30) == 1
    assert [tasks.app.AsyncResult(f"linked-{by}").get(timeout=30) for by in (100, 200)] == [101, 201]
    assert stack.sql.execute("select count(*) from bridge.jobs where task_id = 'errback'").fetchone() == (0,)


def test_the_last_part_of_a_chord_may_be_killed_after_its_commit(tasks: Any) -> None:
    for dies in ("after", "before"):
        body = chord([tasks.next_step.s(1), tasks.work.s(5, "psycopg", dies)])(tasks.total.s())
        assert body.get(timeout=60) == 2 + 5


def test_every_part_of_a_chord_and_every_member_of_a_group_may_be_killed(stack: Stack, tasks: Any) -> None:
    parts = [tasks.work.s(number, "psycopg", "after") for number in range(4)]
    body = chord(parts)(tasks.total.s())
    members = group(tasks.work.s(number, "psycopg", "after") for number in range(4)).apply_async()
    assert members.get(timeout=60) == [0, 1, 2, 3]
    assert body.get(timeout=60) == 6
    assert [effects(stack, member.id) for member in members] == [[number] for number in range(4)]


def test_a_job_that_depends_on_a_killed_one_runs(stack: Stack) -> None:
    parent = stack.enqueue("completing.work", 3, "psycopg", "after", delay="1 second")
    child = stack.enqueue("completing.next", 3, depends_on=[parent])
    assert stack.wait(child)["result"] == 4
    assert stack.job(parent)["status"] == "succeeded"


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_a_killed_worker_of_one_process_leaves_what_it_committed(stack: Stack, tasks: Any, pool: str) -> None:
    doomed = stack.start_worker("apps.completing", "-Q", pool, pool=pool)
    last = tasks.story("after", pool).apply_async((1,))
    doomed.wait(30)
    assert (last.get(timeout=30), last.parent.get(timeout=30)) == (12, 2)
    assert (effects(stack, last.parent.id), runs(stack, last.parent.id)) == ([2], 1)


def test_two_hundred_jobs_under_random_kills_count_to_two_hundred(pairs: StartPairs, worker: StartWorker) -> None:
    running = pairs("apps.completing", queues="counting")
    db = running.db
    db.do(TABLES)
    db.do("update bridge.setting set value = '0.5' where name = 'heartbeat'")
    db.do("update bridge.setting set value = '4' where name = 'worker_lost'")
    db.do("update bridge.setting set value = '100' where name = 'max_losses'")
    db.do(
        "select bridge.enqueue_many((select jsonb_agg(jsonb_build_object('task', 'completing.count', 'queue', 'counting'))"
        " from generate_series(1, 200)))"
    )
    chance = random.Random(200)  # noqa: S311 - a test that can be repeated
    victims = 0

    def kill_one_and_look() -> bool:
        nonlocal victims
        pids = [row[0] for row in db.rows("select pid from bridge.jobs where status = 'running' and pid is not null")]
        if pids and victims < 40:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(pids), signal.SIGKILL)
                victims += 1
        if victims == 10 and len(running.drainers) == 2:
            running.kill_a_drainer()
        if victims == 20 and len(running.workers) == 2:
            dead = running.workers.pop()
            dead.kill(signal.SIGKILL)
            dead.stop()
            running.workers += [worker("apps.completing", queues="counting", ready=False)]
        return bool(db.one("select count(*) = 200 from bridge.jobs where status = 'succeeded'"))

    wait_until(kill_one_and_look, 120, "200 jobs succeeded")
    running.wait_for_all()
    assert len(running.drainers) == 1
    assert victims >= 20, "the kills must have happened while jobs ran"
    assert db.one("select n from counter") == 200
    assert db.one("select count(*) from try") >= 200
    assert json.loads(db.one("select json_agg(distinct status)::text from bridge.jobs")) == ["succeeded"]
