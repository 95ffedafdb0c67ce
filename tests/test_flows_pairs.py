"""A graph, and a batch over it, under two drainers and two workers, of which a drainer and at the end a worker are killed."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from fix_servers import wait_for_row, wait_for_value

import bridge

if TYPE_CHECKING:
    from uuid import UUID

    from fix_pairs import Pairs, StartPairs

WIDE = 120
ENDED = "select count(*) from bridge.jobs where status = 'succeeded'"
# Jobs that began before the end of one that they depend on, by what the tasks did.
TOO_EARLY = """
  select l.below from bridge.link l
  join lateral (select min(at) as at from ledger where event = 'start' and task_id = l.below::text) child on true
  join lateral (select min(at) as at from ledger where event = 'end' and task_id = l.above::text) parent on true
  where l.kind = 'depends' and child.at < parent.at"""
RUNS_ON = "select w.pid from bridge.jobs j join bridge.workers w on w.name = j.worker where j.id = %s and j.status = 'running'"


@pytest.fixture
def running(pairs: StartPairs, ours: None) -> Pairs:  # noqa: ARG001
    running = pairs("apps.ledger", "--prefetch-multiplier=1")
    for name in ("publish_lease", "worker_lost"):
        running.db.do("update bridge.setting set value = '8' where name = %s", name)
    return running


def graph(batch: UUID) -> dict[str, dict[str, Any]]:
    """A start, two layers, an end that waits for all of the second, and a side branch that fails at first."""

    def work(*parents: str, seconds: float = 0.0, **options: Any) -> dict[str, Any]:
        return {"task": "ledger.work", "args": [1, seconds], "depends_on": list(parents), "batch": batch, **options}

    jobs = {"start": work(), "last": work(*(f"b{n}" for n in range(WIDE)), "redriven", seconds=3.0)}
    jobs |= {"broken": {"task": "ledger.divide", "args": [0], "max_attempts": 1, "batch": batch, "depends_on": ["start"]}}
    jobs |= {"redriven": work("broken", on_parent_failure="wait"), "anyway": work("broken", on_parent_failure="run")}
    for n in range(WIDE):
        jobs[f"a{n}"] = work("start", seconds=0.02)
        jobs[f"b{n}"] = work(f"a{n}", f"a{(n + 1) % WIDE}")
    return jobs


def test_a_graph_and_its_batch_end_once_although_a_drainer_and_a_worker_die(running: Pairs) -> None:
    db = running.db
    batch = bridge.create_batch("all", callback="ledger.work", args=[7], callback_on="success")
    ids = bridge.enqueue_flow(graph(batch))
    assert bridge.seal_batch(batch) == "running"
    wait_for_value(db.dsn, f"select ({ENDED}) > 30", timeout=60)
    running.kill_a_drainer()
    wait_for_value(db.dsn, "select status from bridge.jobs where id = %s", (ids["broken"],), value="failed", timeout=60)
    wait_for_value(db.dsn, f"select ({ENDED}) >= {2 * WIDE + 2}", timeout=90)
    assert [db.status(ids[name]) for name in ("anyway", "redriven", "last")] == ["succeeded", "blocked", "blocked"]
    assert bridge.redrive(ids["broken"], args=[3]) == "queued"
    # The worker that runs the last member of the batch dies; the other runs it again, and ends the batch with it.
    (pid,) = wait_for_row(db.dsn, RUNS_ON, (ids["last"],), timeout=60)
    next(worker for worker in running.workers if worker.pid == pid).kill(signal.SIGKILL)
    ended = bridge.wait_batch(batch, timeout=120)
    assert (ended.status, ended.succeeded, ended.total) == ("succeeded", 2 * WIDE + 5, 2 * WIDE + 5)
    running.wait_for_all()
    assert db.rows("select id, status from bridge.jobs where batch is null") == [(ended.callback_job, "succeeded")]
    assert db.one("select count(*) from ledger where event = 'end' and task_id = %s", str(ended.callback_job)) == 1
    assert db.rows(TOO_EARLY) == []
    assert db.attempts(ids["last"]) == [(1, "lost"), (1, "succeeded")]
