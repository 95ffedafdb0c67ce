"""Queues under two drainers and two workers, one drainer killed while it is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fix_servers import wait_for_value

import bridge
from bridge.client import forget_connections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_pairs import Pairs, StartPairs
    from fix_servers import StartDrainer

STARTED = "select count(distinct task_id) from ledger where event = 'start'"
# Each job once, and none of a queue that had not started when the queue was paused.
LATE = """
  select j.id from bridge.jobs j join bridge.pauses p on p.name = j.queue
  where j.started_at > p.paused_at or exists (
    select from ledger l where l.task_id = j.task_id
      and not exists (select from bridge.attempts a where a.run = l.run and a.started_at < p.paused_at))"""


@pytest.fixture
def running(pairs: StartPairs, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pairs]:
    """Two drainers and two workers of the queues work and other; a drainer that dies is noticed soon."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)
    forget_connections()
    running = pairs(queues="work,other")
    running.db.do("update bridge.setting set value = '2' where name = 'publish_lease'")
    running.db.do("update bridge.setting set value = '50' where name = 'window'")
    yield running
    forget_connections()


def fill(running: Pairs, queue: str, jobs: int, seconds: float = 0.0) -> None:
    query = "select count(bridge.enqueue('ledger.work', jsonb_build_array(n, %s::float), queue => %s)) from generate_series(1, %s) n"
    running.db.do(query, seconds, queue, jobs)


def test_a_hard_pause_holds_while_drainers_die_and_start_and_loses_nothing(running: Pairs, drainer: StartDrainer) -> None:
    db = running.db
    fill(running, "work", 400, 0.02)
    wait_for_value(db.dsn, f"select ({STARTED}) > 20")
    taken_back = bridge.pause("work", hard=True)
    assert taken_back > 0
    running.kill_a_drainer()
    assert db.one("select count(*) from bridge.inflight where queue = 'work' and state <> 'running'") == 0
    drainer()
    fill(running, "other", 40)
    wait_for_value(db.dsn, "select count(*) from bridge.finished where queue = 'other'", value=40, timeout=60)
    assert db.rows(LATE) == []
    assert db.one("select pause from bridge.pauses") == "hard"
    wait_for_value(db.dsn, "select running = 0 from bridge.job_queue_stats where queue = 'work'")
    assert db.one("select count(*) from bridge.ready where queue = 'work'") >= taken_back
    bridge.resume("work")
    running.wait_for_all()
    assert db.rows("select count(*), count(distinct task_id) from ledger where event = 'start'") == [(440, 440)]


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
