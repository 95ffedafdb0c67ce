"""Queues under two drainers and two workers, one drainer killed while it is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fix_servers import wait_for_value

import bridge

if TYPE_CHECKING:
    from pathlib import Path

    from fix_calls import MakeApp
    from fix_pairs import Pairs, StartPairs
    from fix_servers import StartDrainer

STARTED = "select count(distinct task_id) from ledger where event = 'start'"
# Runs of a queue, by what the tasks did and by what the rows say, that began after a moment.
LATE = """
  select a.id from bridge.attempts a join bridge.jobs j on j.id = a.id where j.queue = %s and a.started_at > %s
  union all select l.run from ledger l join bridge.jobs j on j.task_id = l.task_id
  where j.queue = %s and not exists (select from bridge.attempts a where a.run = l.run)"""
BACKLOG = """
  with made as (
    insert into bridge.job (id, task, queue, rank, args, kwargs, size, max_attempts, run_at, created_at, updated_at)
    select bridge.new_id(), 'ledger.work', 'work', 9, '[1]', '{}', 5, 3, now(), now(), now() from generate_series(1, %s)
    returning seq, queue, rank, size)
  insert into bridge.ready (queue, rank, seq, size) select queue, rank, seq, size from made order by seq"""
WINDOW, PROCESSES = 50, 4


@pytest.fixture
def running(pairs: StartPairs, ours: None) -> Pairs:  # noqa: ARG001
    """Two drainers and two workers of the queues work and other; a drainer that dies is noticed soon."""
    running = pairs("apps.ledger", "--prefetch-multiplier=1", queues="work,other")
    running.db.do("update bridge.setting set value = '2' where name = 'publish_lease'")
    running.db.do("update bridge.setting set value = %s where name = 'window'", f"{WINDOW}")
    return running


def fill(running: Pairs, queue: str, jobs: int, seconds: float = 0.0) -> None:
    query = "select count(bridge.enqueue('ledger.work', jsonb_build_array(n, %s::float), queue => %s)) from generate_series(1, %s) n"
    running.db.do(query, seconds, queue, jobs)


def test_a_hard_pause_of_a_queue_or_a_task_holds_while_drainers_die_and_start_and_loses_nothing(
    running: Pairs, drainer: StartDrainer
) -> None:
    hold_hard_and_let_go(running, drainer, queue="work")
    assert running.db.rows("select count(*), count(distinct task_id) from ledger where event = 'start'") == [(240, 240)]
    hold_hard_and_let_go(running, drainer, task="ledger.work")
    assert running.db.rows("select count(*), count(distinct task_id) from ledger where event = 'start'") == [(480, 480)]


def hold_hard_and_let_go(running: Pairs, drainer: StartDrainer, **what: Any) -> None:
    db = running.db
    before = db.one(STARTED)
    fill(running, "work", 200, 0.02)
    wait_for_value(db.dsn, f"select ({STARTED}) > %s", (before + 20,))
    taken_back = bridge.pause(**what, hard=True)
    paused_at = db.one("select clock_timestamp()")
    assert taken_back > 0
    running.kill_a_drainer()
    assert db.one("select count(*) from bridge.inflight where queue = 'work' and state <> 'running'") == 0
    running.drainers.append(drainer())
    for _ in range(40):
        db.enqueue("ledger.fail", args=["as it should"], queue="other", max_attempts=1)
    others = "select count(*) from bridge.finished where queue = 'other' and created_at > %s"
    wait_for_value(db.dsn, others, (paused_at,), value=40, timeout=60)
    assert db.rows(LATE, "work", paused_at, "work") == []
    assert db.one("select pause from bridge.pauses") == "hard"
    wait_for_value(db.dsn, "select running = 0 from bridge.job_queue_stats where queue = 'work'")
    assert db.one("select count(*) from bridge.jobs where queue = 'work' and status = 'queued'") >= taken_back
    bridge.resume(**what)
    running.wait_for_all()


def test_a_drain_ends_when_nothing_is_out_although_a_drainer_died_and_a_resume_goes_on(running: Pairs) -> None:
    db = running.db
    fill(running, "work", 400, 0.02)
    wait_for_value(db.dsn, f"select ({STARTED}) > 20")
    running.kill_a_drainer()
    bridge.drain("work", timeout=90)
    assert db.one("select count(*) from bridge.inflight") == 0
    assert db.rows("select count(*) filter (where event = 'start') = count(*) filter (where event = 'end') from ledger") == [(True,)]
    left = db.one("select count(*) from bridge.ready")
    assert left > 0
    assert left + db.one("select count(*) from bridge.finished where status = 'succeeded'") == 400
    bridge.resume("work")
    running.wait_for_all()
    assert db.rows("select count(*), count(distinct task_id) from ledger where event = 'start'") == [(400, 400)]


def test_jobs_that_are_moved_reprioritised_and_put_off_while_they_are_published_run_once_and_where_they_should(
    running: Pairs, make_caller: MakeApp, redis_url: str
) -> None:
    db = running.db
    call = make_caller(redis_url).send_task("ledger.work", (1,), queue="nobody", priority=9)
    wait_for_value(db.dsn, "select status from bridge.jobs where queue = 'nobody'", value="published")
    assert bridge.move(call.id, "other") == "queued"
    bridge.set_priority(call.id, 9)
    assert call.get(timeout=60) == 2
    fill(running, "work", 300, 0.02)
    wait_for_value(db.dsn, f"select ({STARTED}) > 5")
    last = db.one("select id from bridge.jobs order by seq desc limit 1")
    change = """
        select count(bridge.{}) from (
          select j.id from bridge.jobs j where j.status in ('queued', 'published') and j.queue = 'work' and j.id <> %s
          order by (j.status = 'published') desc, j.seq limit 30) w"""
    changed = 0
    for call in ("change_waiting(w.id, p_queue => 'other')", "change_waiting(w.id, p_run_at => now() + interval '1 second')"):
        changed += db.one(change.format(call), last)
        if changed < 40:
            running.kill_a_drainer()
    assert changed > 30
    bridge.set_priority(last, 9)
    before = db.one(STARTED)
    wait_for_value(db.dsn, "select started_at is not null from bridge.jobs where id = %s", (last,), timeout=60)
    assert db.one(STARTED) - before <= WINDOW + 30 + 2 * PROCESSES, "the window, the other queue's jobs, what workers held"
    running.wait_for_all()
    assert db.rows("select count(*), count(distinct task_id) from ledger where event = 'start'") == [(301, 301)]
    assert db.one("select count(*) from bridge.finished where queue = 'other' and status = 'succeeded'") > 20


def test_an_urgent_job_behind_a_hundred_thousand_starts_within_one_window(running: Pairs) -> None:
    db = running.db
    db.do(BACKLOG, 100_000)
    wait_for_value(db.dsn, f"select ({STARTED}) > 20", timeout=60)
    running.kill_a_drainer()
    urgent = db.enqueue("ledger.work", args=[0], queue="work", priority=9)
    wait_for_value(db.dsn, "select started_at is not null from bridge.jobs where id = %s", (urgent,), timeout=60)
    ahead = """
        select count(*) from bridge.jobs u, bridge.jobs j
        where u.id = %s and j.id <> u.id and j.started_at between u.created_at and u.started_at"""
    assert db.one(ahead, urgent) <= WINDOW + 2 * PROCESSES, "the window, and what workers held"
    assert db.one("select count(*) from bridge.ready") > 90_000


def test_a_breaker_opens_is_probed_and_closes_by_itself_while_a_drainer_dies(running: Pairs, tmp_path: Path) -> None:
    db, relay = running.db, tmp_path / "relay"
    db.do("select bridge.set_breaker(task => 'ledger.call', minimum => 5, cooldown => '1 second', probes => 3)")
    # More than workers can burn before the tick that opens it.
    many = """select count(bridge.enqueue('ledger.call', jsonb_build_array(%s::text), queue => 'work', max_attempts => 1))
      from generate_series(1, 3000)"""
    db.do(many, str(relay))
    wait_for_value(db.dsn, "select count(*) > 0 from bridge.breaker_changes", timeout=60)
    running.kill_a_drainer()
    fill(running, "work", 40)
    wait_for_value(db.dsn, "select count(*) from bridge.finished where task = 'ledger.work'", value=40, timeout=60)
    wait_for_value(db.dsn, "select count(*) >= 2 from bridge.breaker_changes where state = 'half_open'", timeout=60)
    relay.touch()
    wait_for_value(db.dsn, "select state from bridge.breakers", value="closed", timeout=60)
    wait_for_value(db.dsn, "select count(*) > 50 from bridge.finished where task = 'ledger.call' and status = 'succeeded'", timeout=60)
    bridge.cancel_jobs({"task": "ledger.call", "status": ["queued", "published"]})
    running.wait_for_all()
    assert db.one("select state from bridge.breakers") == "closed"
    # Before it was back, no probing let out more jobs than it was to.
    failed = """
        select max(n) from (select c.id, (select count(*) from bridge.finished f where f.task = 'ledger.call' and f.status = 'failed'
          and f.started_at between c.at and (select min(o.at) from bridge.breaker_changes o where o.id > c.id)) as n
        from bridge.breaker_changes c where c.state = 'half_open') probing"""
    assert db.one(failed) in range(1, 4)
