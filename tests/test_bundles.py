"""Many small jobs in one message: each is run exactly as if it were alone."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery import Celery
from fix_servers import wait_until
from invariants import assert_sound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

    from bridge.local.process import Process


SHORT = {"heartbeat": "1", "worker_lost": "6", "max_losses": "2"}


@dataclass
class Fleet:
    """A drainer and a worker that takes bundles, and the folder by which its tasks are steered."""

    stack: Stack
    folder: Path
    workers: list[Process] = field(default_factory=list)

    def start_worker(self) -> Process:
        """One more, once it has said what it can take."""
        process = self.stack.start_worker("apps.bundled", "-Q", "celery", env={"BUNDLED_FOLDER": str(self.folder), "BRIDGE_TIMEOUT": "2"})
        self.workers.append(process)
        known = "select count(*) filter (where bundles is not null) from bridge.worker where stopped_at is null"
        wait_until(lambda: self.stack.sql.execute(known).fetchone() == (len(self.workers),), 30, "the worker to say what it can take")
        return process

    def bundles(self) -> int:
        """How many bundles the workers have got."""
        return sum(len(re.findall(r"Task bridge\.bundle\[\S+ received", worker.log_text())) for worker in self.workers)

    def enqueue(self, task: str, calls: list[list[Any]], **options: Any) -> list[str]:
        """Make all of them in one transaction, so that they are claimed together."""
        jobs = [{"task": task, "args": args, **options} for args in calls]
        return [str(row[0]) for row in self.stack.sql.execute("select bridge.enqueue_many(%s)", (json.dumps(jobs),))]

    def wait(self, ids: list[str], timeout: float = 60.0) -> dict[str, int]:
        """How many ended how, when all have."""
        query = "select status, count(*) from bridge.jobs where id = any(%s::uuid[]) group by status"

        def ended() -> dict[str, int]:
            found: dict[str, int] = dict(self.stack.sql.execute(query, (ids,)).fetchall())
            return found if sum(found.get(one, 0) for one in ("succeeded", "failed", "cancelled", "expired")) == len(ids) else {}

        return wait_until(ended, timeout, f"{len(ids)} jobs to end")

    def begun(self, number: int) -> int:
        """The process that has begun a task that can be held."""
        return int(
            wait_until(lambda: (self.folder / f"begun-{number}").exists() and (self.folder / f"begun-{number}").read_text(), 60, "it")
        )


@pytest.fixture(scope="module")
def fleet(bare_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("bundled")
    for name, value in SHORT.items():
        bare_stack.sql.execute("update bridge.setting set value = %s where name = %s", (value, name))
    fleet = Fleet(bare_stack, folder)
    fleet.start_worker()
    bare_stack.start_drainer()
    yield fleet
    assert_sound(bare_stack.dsn)


def test_jobs_of_a_bundle_end_each_with_its_own_result(fleet: Fleet) -> None:
    ids = fleet.enqueue("bundled.add", [[number, 1] for number in range(300)])
    assert fleet.wait(ids) == {"succeeded": 300}
    query = """select result::text::integer - (args->>0)::integer, attempts, worker is not null, started_at <= finished_at
      from bridge.jobs where id = any(%s::uuid[])"""
    assert set(fleet.stack.sql.execute(query, (ids,)).fetchall()) == {(1, 1, True, True)}
    assert fleet.bundles() == 6


def test_a_main_process_keeps_nothing_of_a_bundle_that_is_over(fleet: Fleet) -> None:
    def timers() -> int:
        ((answer,),) = (one.values() for one in app.control.broadcast("timers", reply=True, limit=1, timeout=10))
        return int(answer)

    with Celery("asks", broker=fleet.stack.broker_url, set_as_current=False) as app:
        before = timers()
        fleet.wait(fleet.enqueue("bundled.add", [[number, 1] for number in range(2000)]))
        assert timers() < before + 10  # of 40 bundles


def test_one_that_fails_or_asks_for_another_attempt_does_it_alone(fleet: Fleet) -> None:
    kinds = ["well"] * 16 + ["raise", "retry", "progress", "unserializable"]
    ids = fleet.enqueue("bundled.fate", [[number, kind] for number, kind in enumerate(kinds)], max_attempts=2)
    fleet.wait(ids)
    by_kind = {kind: fleet.stack.job(identity) for kind, identity in zip(kinds, ids, strict=True)}
    assert {kind for kind, job in by_kind.items() if job["status"] != "succeeded"} == {"raise", "unserializable"}
    assert (by_kind["raise"]["error"]["message"], by_kind["raise"]["attempts"]) == ("broken on purpose 16", 2)
    assert fleet.stack.attempts(ids[17]) == [(1, "retried"), (2, "succeeded")]
    assert by_kind["progress"]["progress"]["fraction"] == 0.5
    assert by_kind["unserializable"]["error"]["type"] == "EncodeError"
    # the tracer's signals came for each attempt of each
    lines = (fleet.folder / "prerun").read_text().split()
    assert sorted(lines) == sorted([*ids, ids[16], ids[17], ids[19]])


def test_a_process_that_dies_takes_the_job_that_it_was_at_and_no_other(fleet: Fleet) -> None:
    (fleet.folder / "hold-105").touch()
    ids = fleet.enqueue("bundled.hold", [[number] for number in range(100, 120)])
    pid = fleet.begun(105)
    os.kill(pid, signal.SIGKILL)
    (fleet.folder / "hold-105").unlink()
    assert fleet.wait(ids) == {"succeeded": 20}
    rows = fleet.stack.sql.execute(
        "select args->>0, attempts, losses from bridge.jobs where id = any(%s::uuid[]) order by 1", (ids,)
    ).fetchall()
    assert [row[1:] for row in rows] == [(1, 1 if row[0] == "105" else 0) for row in rows]
    outcomes = [outcome for _, outcome in fleet.stack.attempts(ids[5])]
    assert outcomes == ["lost", "succeeded"]


def test_what_had_ended_stays_where_postgres_has_no_time_for_it_when_its_process_dies(fleet: Fleet) -> None:
    (fleet.folder / "hold-505").touch()
    with psycopg.connect(fleet.stack.dsn) as busy:
        busy.execute("lock table bridge.finished in share mode")
        ids = fleet.enqueue("bundled.hold", [[number] for number in range(500, 520)])
        pid = fleet.begun(505)
        os.kill(pid, signal.SIGKILL)
        (fleet.folder / "hold-505").unlink()
        waits = f"outcomes wait for postgres, their process is dead pid={pid}"
        wait_until(lambda: any(worker.log_text().count(waits) > 3 for worker in fleet.workers), 60, waits)
    assert fleet.wait(ids) == {"succeeded": 20}
    assert [fleet.stack.attempts(one) for one in ids[:5]] == [[(1, "succeeded")]] * 5
    # What it was at is lost by its main process, when that has written the others, or put back by a sweep before.
    assert fleet.stack.attempts(ids[5]) in ([(1, "lost"), (1, "succeeded")], [(1, "released"), (1, "succeeded")])


def test_what_had_ended_when_its_process_died_stays(fleet: Fleet) -> None:
    ids = fleet.enqueue("bundled.last", [[number, number == 19] for number in range(20)])
    assert fleet.wait(ids) == {"succeeded": 19, "failed": 1}
    rows = fleet.stack.sql.execute("select attempts, losses from bridge.jobs where id = any(%s::uuid[]) and status = 'succeeded'", (ids,))
    assert set(rows.fetchall()) == {(1, 0)}
    runs = (fleet.folder / "last").read_text().split()
    assert sorted(map(int, set(runs))) == list(range(20))
    assert {number: runs.count(number) for number in runs if runs.count(number) > 1} == {"19": 3}


def test_a_cancel_reaches_jobs_of_a_bundle(fleet: Fleet) -> None:
    for number in (205, 206):
        (fleet.folder / f"hold-{number}").touch()
    ids = fleet.enqueue("bundled.hold", [[number] for number in range(200, 240)])
    runs_205 = fleet.begun(205)
    later = ids[39]  # behind what is held, or in the other bundle
    fleet.stack.sql.execute("select bridge.cancel(%s)", (ids[5],))
    fleet.stack.sql.execute("select bridge.cancel(%s)", (later,))
    assert fleet.stack.wait(ids[5])["status"] == "cancelled"
    (fleet.folder / "hold-205").unlink()
    (fleet.folder / "hold-206").unlink()
    assert runs_205
    found = fleet.wait(ids)
    assert found in ({"succeeded": 38, "cancelled": 2}, {"succeeded": 39, "cancelled": 1})
    assert fleet.stack.job(later)["status"] == "cancelled" or (fleet.folder / "begun-239").exists()


def test_a_soft_limit_is_that_of_a_job(fleet: Fleet) -> None:
    centuries = fleet.enqueue("bundled.soft", [[0.0]] * 8, soft_timeout="300 years")
    assert fleet.wait(centuries) == {"succeeded": 8}
    ids = fleet.enqueue("bundled.soft", [[seconds] for seconds in (0.0, 30.0, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4)])
    assert fleet.wait(ids) == {"succeeded": 8}
    assert [fleet.stack.job(one)["result"] for one in ids] == ["in time", "stopped softly", *["in time"] * 6]


def test_a_task_with_a_hard_limit_travels_alone_and_says_why(fleet: Fleet) -> None:
    row = fleet.stack.sql.execute("select bundles from bridge.worker").fetchone()
    assert row is not None
    assert row[0]["bundled.limited"] == "time_limit"
    assert row[0]["bundled.add"] == 50
    ids = fleet.enqueue("bundled.limited", [[number] for number in range(20)])
    before = fleet.bundles()
    assert fleet.wait(ids) == {"succeeded": 20}
    assert fleet.bundles() == before


def test_a_queue_bundles_tasks_that_say_nothing(fleet: Fleet) -> None:
    before = fleet.bundles()
    assert fleet.wait(fleet.enqueue("bundled.alone", [[number] for number in range(20)])) == {"succeeded": 20}
    assert fleet.bundles() == before
    fleet.stack.sql.execute("select bridge.set_bundle('celery', 10)")
    known = lambda: fleet.wait(fleet.enqueue("bundled.alone", [[number] for number in range(20)])) and fleet.bundles() > before  # noqa: E731
    wait_until(known, 30, "a drainer to hear of it")
    fleet.stack.sql.execute("select bridge.set_bundle('celery')")


def test_a_worker_that_stops_gives_back_what_it_has_not_begun(fleet: Fleet) -> None:
    for number in (301, 302, 303):
        (fleet.folder / f"hold-{number}").touch()
    ids = fleet.enqueue("bundled.hold", [[number] for number in range(300, 340)])
    fleet.begun(301)
    first, second = fleet.workers[0], fleet.start_worker()
    first.kill(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in first.log_text(), 30, "the worker to stop")
    for number in (301, 302, 303):
        (fleet.folder / f"hold-{number}").unlink()
    wait_until(lambda: not first.alive, 60, "it to be gone")
    assert fleet.wait(ids) == {"succeeded": 40}
    rows = fleet.stack.sql.execute("select attempts, losses from bridge.jobs where id = any(%s::uuid[])", (ids,)).fetchall()
    assert set(rows) == {(1, 0)}
    fleet.workers = [second]


def test_a_whole_worker_that_dies_loses_nothing_and_charges_nobody_who_had_not_begun(fleet: Fleet) -> None:
    (fleet.folder / "hold-405").touch()
    ids = fleet.enqueue("bundled.hold", [[number] for number in range(400, 420)])
    fleet.begun(405)
    dead = fleet.workers[0]
    fleet.start_worker()
    dead.kill(signal.SIGKILL)
    (fleet.folder / "hold-405").unlink()
    assert fleet.wait(ids, timeout=120) == {"succeeded": 20}
    lost = fleet.stack.sql.execute("select args->>0, losses from bridge.jobs where id = any(%s::uuid[]) and losses > 0", (ids,)).fetchall()
    # The one that its process was at, which is known where it was its slice alone: that may have gone on a little.
    assert len(lost) <= 1, lost
    assert all(losses == 1 and (fleet.folder / f"begun-{number}").exists() for number, losses in lost), lost
