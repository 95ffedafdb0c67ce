"""Limits and serial keys under two drainers and two workers, one drainer killed while they are in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fix_servers import wait_for_value

if TYPE_CHECKING:
    from fix_pairs import Pairs, StartPairs
    from fix_servers import StartDrainer
    from fix_sql import Session

STARTED = "select count(distinct task_id) from ledger where event = 'start'"
# The most runs of a task's bodies that were alive at once, as the tasks themselves wrote it.
OVERLAP = """
  select max(alive) from (
    select sum(case event when 'start' then 1 else -1 end) over (order by l.at, event) as alive
    from ledger l join bridge.jobs j on j.task_id = l.task_id where {which}) runs"""
TOOK = """
  select extract(epoch from max(l.at) - min(l.at)) from ledger l join bridge.jobs j using (task_id)
  where j.queue = 'rated' and l.event = 'start'"""
# What of a large key started from when a small one was there to when the last of that had started.
MEANWHILE = """
  select count(*) from ledger l join bridge.jobs j using (task_id), (
    select max(o.at) as done from bridge.jobs s join ledger o on o.task_id = s.task_id and o.event = 'start'
    where s.queue = 'fair' and s.args->>0 = '2') small
  where j.queue = 'fair' and j.args->>0 = '1' and l.event = 'start' and l.at between %s and small.done"""
WINDOW, PROCESSES, PREFETCHED = 50, 8, 32
ORDER = """
  select array_agg(j.args->>0 order by l.at) from ledger l join bridge.jobs j on j.task_id = l.task_id
  where l.event = 'start' and j.queue = 'serial'"""


@pytest.fixture
def running(pairs: StartPairs) -> Pairs:
    """A drainer that dies is noticed soon; concurrency beyond every limit."""
    running = pairs(queues="a,b,serial,rated,fair", concurrency=4)
    running.db.do("update bridge.setting set value = '2' where name = 'publish_lease'")
    return running


def test_limits_turns_and_serial_keys_hold_while_a_drainer_dies(running: Pairs) -> None:
    db = running.db
    db.do("select bridge.set_limit('all', queue => '?', task => 'ledger.*', concurrency => 3)")
    db.do("select bridge.set_limit('each', queue => '?', key => 'kwargs.tenant|args.0', concurrency => 1)")
    db.do("select bridge.set_limit('rated', queue => 'rated', rate => 5)")
    db.do("select bridge.set_limit('turns', queue => 'fair', key => 'args.0', fair => true), bridge.set_window('fair', %s)", WINDOW)
    work = "select count(bridge.enqueue('ledger.work', jsonb_build_array(n %% %s, %s::float), queue => %s)) from generate_series(1, %s) n"
    for queue, jobs in (("a", 60), ("b", 60)):
        db.do(work, 5, 0.05, queue, jobs)
    db.do(work, 100, 0.0, "rated", 30)
    for number in range(12):
        task, args = ("ledger.fail", f'["{number}"]') if number % 4 == 1 else ("ledger.work", f"[{number}, 0.02]")
        db.do(
            "select bridge.enqueue(%s, %s::jsonb, queue => 'serial', serial_key => 'one', max_attempts => 2, backoff => '0.3')", task, args
        )
    fair = "select count(bridge.enqueue('ledger.work', jsonb_build_array(%s::int, 0.01), queue => 'fair')) from generate_series(1, %s)"
    db.do(fair, 1, 1000)
    wait_for_value(db.dsn, "select count(*) > 20 from ledger join bridge.jobs j using (task_id) where j.queue = 'fair'", timeout=60)
    # What the dead drainer had claimed comes back when its lease is over: jobs of the large key alone.
    running.kill_a_drainer()
    db.do(fair, 2, 20)
    came = db.one("select clock_timestamp()")
    running.wait_for_all()

    assert db.one(OVERLAP.format(which="j.queue in ('a', 'b')")) == 3
    per_tenant = db.rows("select distinct args->>0 from bridge.jobs where queue in ('a', 'b')")
    assert {db.one(OVERLAP.format(which=f"j.queue in ('a', 'b') and j.args->>0 = '{key}'")) for (key,) in per_tenant} == {1}
    assert db.one(OVERLAP.format(which="j.queue = 'serial'")) == 1
    twice = [number for number in range(12) for _ in range(2 if number % 4 == 1 else 1)]
    assert db.one(ORDER) == [str(number) for number in twice]
    assert db.one(MEANWHILE, came) <= WINDOW + 20 + PROCESSES + PREFETCHED, "what was published already, then turn by turn"
    assert db.one(TOOK) > 29 / 5 * 0.7
    assert db.one("select count(*) from bridge.lane") == 0
    wait_for_value(db.dsn, "select count(*) from bridge.permit where not freed", value=0)


def test_a_drainer_wakes_for_each_token_of_a_rate(db: Session, drainer: StartDrainer) -> None:
    db.do("select bridge.set_limit('rated', rate => 20, burst => 1)")
    drainer()
    db.do("select count(bridge.enqueue('a.task')) from generate_series(1, 60)")
    # One token a second, the rhythm of its other duties, would take a minute.
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where status = 'published'", value=60, timeout=30)
