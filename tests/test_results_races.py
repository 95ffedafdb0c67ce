"""Chords at their worst moments: a child that dies between the end of the last part and its look, two last parts that end at once."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from apps.chords import app as chords
from apps.chords import gather_and_mark, give, whoami
from celery import chord
from fix_servers import drainer_reports, wait_for_value, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

PATIENCE = 60  # seconds
ROUNDS = 20


@pytest.fixture(scope="module")
def started(bare_stack: Stack) -> Stack:
    """Two workers of one child each, for the two parts of a chord; both run bodies. The tests tick: a lock of theirs must hold no tick."""
    drainer = bare_stack.start("drainer", "-m", "bridge", "drain", env={"BRIDGE_TICK": "off"})
    drainer.wait_ready(lambda: drainer_reports(drainer), 30.0)
    for queue in ("left", "right"):
        bare_stack.start_worker("apps.chords", "--concurrency=1", "-Q", f"{queue},celery", env={"C_FORCE_ROOT": "1"})
    return bare_stack


@pytest.fixture
def stack(started: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", started.dsn)
    monkeypatch.setattr(chords.conf, "broker_url", started.broker_url)
    chords.bridge.renew()
    yield started
    chords.bridge.renew()


def pair(part: Any, marks: Path) -> Any:
    """A chord whose two parts run in one worker each."""
    return chord([part.clone().set(queue="left"), part.clone().set(queue="right")], gather_and_mark.s(str(marks)))


def test_a_body_runs_once_when_two_last_parts_end_at_the_same_moment(stack: Stack, tmp_path: Path) -> None:
    # Each end, not committed yet, waits in this trigger until both are there: so neither has seen the other.
    stack.sql.execute("""create function meet() returns trigger language plpgsql as $$
        begin perform pg_advisory_xact_lock_shared(77); return null; end $$""")
    stack.sql.execute("create trigger meet after insert on bridge.chord_part for each row execute function meet()")
    try:
        for number in range(ROUNDS):
            marks = tmp_path / f"marks-{number}"
            stack.sql.execute("select pg_advisory_lock(77)")
            result = pair(give.s(number), marks)()
            both_wait = "select count(*) from pg_locks where locktype = 'advisory' and objid = 77 and not granted"
            wait_for_value(stack.dsn, both_wait, value=2, timeout=PATIENCE)
            stack.sql.execute("select pg_advisory_unlock(77)")
            assert result.get(timeout=PATIENCE) == [number, number]
            assert marks.read_text() == "body\n"
    finally:
        stack.sql.execute("select pg_advisory_unlock_all()")
        stack.sql.execute("drop function meet cascade")
    assert stack.sql.execute("select count(*) from bridge.jobs where task = 'chords.gather_and_mark'").fetchone() == (ROUNDS,)


def test_a_body_runs_once_when_the_child_of_its_last_part_is_killed_before_it_could_look(stack: Stack, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    queues = "unnest(array['left', 'right']) q"
    stack.sql.execute(f"select bridge.pause(q) from {queues}".encode())
    result = pair(whoami.s(), marks)()
    with psycopg.connect(stack.dsn) as holder:
        holder.execute("lock table bridge.chord in access exclusive mode")  # ends do not touch it, a look has to
        stack.sql.execute(f"select bridge.resume(q) from {queues}".encode())
        wait_for_value(stack.dsn, "select count(*) from bridge.chord_part", value=2, timeout=PATIENCE)
        looking = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%%is_chord_complete%%'"
        wait_for_value(stack.dsn, looking, value=2, timeout=PATIENCE)
        rows = stack.sql.execute("select result::text::integer from bridge.jobs where task = 'chords.whoami'").fetchall()
        for (pid,) in rows:
            os.kill(pid, signal.SIGKILL)
    ticked = b"select bridge.tick('manual'), exists (select from bridge.jobs where task = 'bridge.join_chord')"
    wait_until(lambda: (stack.sql.execute(ticked).fetchone() or ())[1], PATIENCE, "the sweep has the chord joined")
    assert sorted(result.get(timeout=PATIENCE)) == sorted(pid for (pid,) in rows)
    assert marks.read_text() == "body\n"
    assert stack.sql.execute("select sum(losses) from bridge.jobs where task = 'chords.whoami'").fetchone() == (0,)
