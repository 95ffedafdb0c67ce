"""Many runs in the log (a million with BRIDGE_TEST_EFFORT=4): what people and ticks ask of it reads little more than it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fix_effort import EFFORT
from fix_sql import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases

RUNS = min(250_000 * EFFORT, 1_000_000)  # nine of ten are of one schedule
SCHEDULES = 101
FILL = """
  insert into bridge.schedule_run (schedule, slot, trigger_type, status, created_at, started_at, first_started_at, finished_at)
  select case when n %% 10 = 0 then 's' || n / 10 %% 100 else 'busy' end, at, case when n %% 5000 = 1 then 'manual' else 'scheduled' end,
    case when n %% 1000 = 1 then 'failed' else 'succeeded' end, at, at, at, at + interval '1 second'
  from (select n, now() - (%s - n) * interval '30 seconds' as at from generate_series(1, %s) n) g"""
TOUCHED = "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relid = 'bridge.schedule_run'::regclass"


@pytest.fixture(scope="module")
def full(databases: Databases, template: str) -> Iterator[Session]:
    """A database whose schedules have run for long."""
    name = databases.create(template)
    db = Session(databases.server.dsn_of(name))
    db.do("select bridge.schedule('busy', 'every 30 seconds', 'a.task')")
    db.do("select bridge.schedule('s' || n, '@daily', 'a.task', jsonb_build_array(n)) from generate_series(0, 99) n")
    # Indexes are sooner built than filled.
    indexes = db.rows(
        "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index"
        " where indrelid = 'bridge.schedule_run'::regclass and not indisprimary"
    )
    for index, _ in indexes:
        db.do(f"drop index {index}")
    db.do(FILL, RUNS, RUNS)
    for _, definition in indexes:
        db.do(definition)
    db.do("vacuum analyze bridge.schedule_run")
    yield db
    db.connection.close()
    databases.drop(name)


CALLS = {
    "the last page": ("select * from bridge.schedule_history('busy')", 100),
    "an old page": ("select * from bridge.schedule_history('busy', before => 10000, n => 50)", 200),
    "the last failures": ("select * from bridge.schedule_history('busy', status => 'failed')", 100),
    "failures of one that has none": ("select * from bridge.schedule_history('s7', status => 'failed')", 50),
    "the last by hand": ("select * from bridge.schedule_history('busy', trigger_type => 'manual')", 100),
    "those made up for": ("select * from bridge.schedule_history('busy', trigger_type => 'catch_up')", 50),
    "those under way": ("select * from bridge.schedule_history('busy', status => 'running')", 50),
    "the view": ("select * from bridge.schedule_runs where schedule = 'busy' order by id desc limit 20", 50),
    "all schedules": ("select * from bridge.schedules", 5 * SCHEDULES),
    "statistics of one": ("select * from bridge.schedule_stats where schedule = 's7'", 1100),
    "slow schedules": ("select * from bridge.slow_schedules", 210 * SCHEDULES),
    "schedules that run too often": ("select * from bridge.too_often_schedules", 310 * SCHEDULES),
    "a tick": ("select bridge.run_schedules(100, now())", 10),
    "a cleanup that finds nothing": ("select bridge.forget_runs(now() - interval '2 years', false)", 30 * SCHEDULES),
    "a page of a cleanup": ("select bridge.forget_runs(now() - interval '30 days', false, 1000)", 5000),
}


@pytest.mark.parametrize("call", CALLS)
def test_of_all_runs_few_are_read(full: Session, call: str) -> None:
    query, most = CALLS[call]
    with full.connection.transaction(force_rollback=True):
        before = full.one(TOUCHED)  # also of transactions before, until the session reports them
        full.rows(query)
        assert full.one(TOUCHED) - before <= most
