"""What runs tell in pools of greenlets and threads, on few connections, and through an outage of Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import wait_until
from psycopg import conninfo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

TASKS = 40


@pytest.fixture(scope="module")
def stack(bare_stack: Stack) -> Iterator[Stack]:
    bare_stack.start_drainer()
    for pool, concurrency in (("gevent", TASKS), ("threads", 2)):
        bare_stack.start_worker("apps.telling", f"--concurrency={concurrency}", "-Q", pool, pool=pool)
    yield bare_stack
    bare_stack.kill_all()


def one(stack: Stack, query: str, *values: Any) -> Any:
    row = stack.sql.execute(query.encode(), values).fetchone()
    return row and row[0]


def said(stack: Stack, identity: Any) -> list[str]:
    return [row[0] for row in stack.sql.execute("select message from bridge.logs(%s)", (identity,))]


@pytest.mark.parametrize(("pool", "tasks"), [("gevent", TASKS), ("threads", 2)])
def test_what_waits_is_written_while_its_task_says_nothing_more(stack: Stack, tmp_path: Path, pool: str, tasks: int) -> None:
    go = tmp_path / "go"
    jobs = [stack.enqueue("telling.talk", 20, str(go), queue=pool) for _ in range(tasks)]
    newest = "select count(*) from bridge.jobs where id = any(%s) and progress->>'message' = 'step 19' and status = 'running'"
    wait_until(lambda: one(stack, newest, jobs) == tasks, 60, "the newest progress of all")
    ours = "datname = current_database() and application_name in ('bridge run', 'bridge client')"
    assert one(stack, f"select count(*) from pg_stat_activity where {ours}") <= 40
    go.touch()
    assert {stack.wait(job)["progress"]["message"] for job in jobs} == {"done"}
    assert {len(said(stack, job)) for job in jobs} == {20}


@pytest.mark.parametrize("pool", ["gevent", "threads"])
def test_an_outage_costs_a_task_neither_its_run_nor_what_it_says(stack: Stack, tmp_path: Path, pool: str) -> None:
    words = ["before", "while", "after"]
    identity = stack.enqueue("telling.say", str(tmp_path), *words, queue=pool)
    (tmp_path / "before").touch()
    wait_until((tmp_path / "before.said").exists, 30)
    database = one(stack, "select quote_ident(current_database())")
    end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'bridge run'"
    with psycopg.connect(conninfo.make_conninfo(stack.dsn, dbname="postgres"), autocommit=True) as elsewhere:
        elsewhere.execute(f"alter database {database} with allow_connections false".encode())
        stack.sql.execute(end)
        (tmp_path / "while").touch()
        wait_until((tmp_path / "while.said").exists, 30, "the task goes on")
        elsewhere.execute(f"alter database {database} with allow_connections true".encode())
    (tmp_path / "after").touch()
    job = stack.wait(identity)
    assert (job["status"], job["result"], job["losses"], job["progress"]["message"]) == ("succeeded", 3, 0, "after")
    assert said(stack, identity) == words
