"""Unique keys while two drainers and two workers run, and one of the drainers is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import bridge

if TYPE_CHECKING:
    from fix_pairs import StartPairs

KEYS = 10


@pytest.mark.usefixtures("ours")
def test_each_key_has_one_job_at_a_time_also_when_a_drainer_is_killed(pairs: StartPairs) -> None:
    running = pairs()
    held, waiting, kept = set(), set(), set()
    for number in range(60):
        if number == 20:
            running.kill_a_drainer()
        key = number % KEYS
        held.add(bridge.enqueue("ledger.work", [number, 0.05], unique_key=f"held {key}"))
        waiting.add(bridge.enqueue("ledger.work", [number], unique_key=f"waiting {key}", on_conflict="debounce", delay=0.2))
        kept.add(bridge.enqueue("ledger.work", [number], unique_key=f"kept {key}", unique_for=600))
    running.wait_for_all()
    jobs = {job: bridge.get(job) for job in held | waiting | kept}
    assert {job.status for job in jobs.values()} == {bridge.Status.SUCCEEDED}
    # Of each key, jobs followed each other: one is never made while the one before it has the key.
    overlap = """
      select a.unique_key from bridge.jobs a join bridge.jobs b on a.unique_key = b.unique_key and a.seq < b.seq
      where b.created_at < case when a.unique_key like 'waiting%%' then a.started_at else a.finished_at end"""
    assert running.db.rows(overlap) == []
    assert len(kept) == KEYS
    # The last call of each key that could be pushed on is what ran last.
    last = """
      select distinct on (unique_key) (args->>0)::integer from bridge.jobs where unique_key like 'waiting%'
      order by unique_key, seq desc"""
    assert sorted(row[0] for row in running.db.rows(last)) == list(range(50, 60))
    assert running.db.one("select count(*) from bridge.unique_key where kept_until is null") == 0
    assert running.db.one("select count(distinct run) from ledger where event = 'end'") == len(jobs)
