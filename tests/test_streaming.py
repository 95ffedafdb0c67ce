"""Streaming mode: a worker's processes keep results for a while and write them together; docs/streaming.md says what that may cost."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis
from celery import Celery, chord
from fix_effort import EFFORT
from fix_proxy import proxy_before
from fix_servers import wait_until
from invariants import assert_sound

import bridge
from bridge.queries.runs import Finish
from bridge.settings import Settings
from bridge.worker.board import Board
from bridge.worker.channel import RunChannel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fix_sql import Session
    from fix_stack import Stack
    from laboratory.proxy import Proxy

    from bridge.local.process import Process

SHORT = {"heartbeat": "1", "republish_grace": "2", "worker_lost": "4"}
LONG = {"BRIDGE_STREAMING": "0.5"}  # seconds: something is kept whenever a test looks


@dataclass
class Flow:
    """A drainer, a worker of one process that keeps its results for a while, its way to Postgres, and the marks that runs leave."""

    stack: Stack
    folder: Path
    proxy: Proxy
    through: str
    workers: list[Process] = field(default_factory=list)
    marks: dict[str, Path] = field(default_factory=dict)

    @property
    def control(self) -> Any:
        """Celery's remote control of all workers that live."""
        return Celery(broker=self.stack.broker_url).control

    def start_worker(self) -> Process:
        env = {**LONG, "BRIDGE_DATABASE_URL": self.through, "BRIDGE_TIMEOUT": "2"}
        self.workers.append(self.stack.start_worker("apps.reports", "--concurrency=1", env=env))
        return self.workers[-1]

    def worker(self) -> Process:
        """The newest, or another where that has ended."""
        return self.workers[-1] if self.workers and self.workers[-1].alive else self.start_worker()

    def enqueue(self, *words: Any, task: str = "give", **options: Any) -> str:
        """A job that leaves a mark of its own whenever it runs."""
        marks = self.folder / f"marks-{len(self.marks)}"
        identity = str(self.stack.enqueue(f"reports.{task}", str(marks), *words, queue="reports", **options))
        self.marks[identity] = marks
        return identity

    def process_of(self, identity: str) -> int:
        """Where a job has begun."""
        return wait_until(lambda: self.runs(identity), 60, f"job {identity} to begin")[-1]

    def runs(self, identity: str) -> list[int]:
        """The processes that have begun it, one for each time."""
        marks = self.marks[identity]
        return [int(line) for line in marks.read_text().split()] if marks.exists() else []

    @contextmanager
    def unwritten(self, others: int = 5) -> Iterator[tuple[list[str], Path]]:
        """Jobs of which some are over, the first among them, while Postgres takes no result; and the file that the first waits for."""
        go = self.folder / f"go-{len(self.marks)}"
        ids = [self.enqueue(str(go), task="hold"), *(self.enqueue(number) for number in range(others))]
        self.process_of(ids[0])
        with self.busy():
            go.touch()
            self.ended_for_their_worker(ids[:1])
            yield ids, go

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Postgres takes no end of a job, and all else."""
        with psycopg.connect(self.stack.dsn) as other:
            other.execute("lock table bridge.finished in share mode")
            yield

    def said(self, words: str) -> None:
        """Wait for it in the worker's log."""
        wait_until(lambda: words in self.workers[-1].log_text(), 60, words)

    def reports(self, count: int) -> None:
        """Wait for so many reports of the worker."""
        query, seen = "select seen_at from bridge.worker where pid = %s", set()

        def enough() -> bool:
            seen.update(self.stack.sql.execute(query, (self.workers[-1].pid,)).fetchall())
            return len(seen) > count

        wait_until(enough, 60, f"{count} reports")

    def over(self, ids: list[str]) -> list[str]:
        """Those that have returned, as the worker's log has it."""
        return [one for one in ids if f"[{one}] succeeded" in self.workers[-1].log_text()]

    def hang_up(self) -> None:
        """End the server's side of what runs say to it: what it has not taken yet it will not take."""
        end = """select pg_terminate_backend(pid) from pg_stat_activity
          where application_name = 'bridge run' and datname = current_database()"""
        wait_until(lambda: not self.stack.sql.execute(end).fetchall(), 30, "connections to end")

    def ended_for_their_worker(self, ids: list[str]) -> None:
        """Wait until the worker's log has the end of these, whatever the rows say."""
        wait_until(lambda: self.over(ids) == ids, 60, "the tasks to be over")

    def ran_once(self, ids: list[str]) -> None:
        """Wait until they have succeeded; none has run twice, or been lost."""
        assert {(job["status"], job["losses"]) for job in map(self.stack.wait, ids)} == {("succeeded", 0)}
        assert {len(self.runs(one)) for one in ids} == {1}


@pytest.fixture(scope="module")
def started(bare_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    for name, value in SHORT.items():
        bare_stack.sql.execute("update bridge.setting set value = %s where name = %s", (value, name))
    bare_stack.start_drainer()
    proxy, through = proxy_before(bare_stack.dsn)
    yield Flow(bare_stack, tmp_path_factory.mktemp("marks"), proxy, through)
    proxy.close()


@pytest.fixture
def flow(started: Flow) -> Iterator[Flow]:
    started.worker()
    yield started
    assert_sound(started.stack.dsn)


@pytest.fixture
def client(started: Flow, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """The caller's side: it knows no task, only names."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", started.stack.dsn)
    app = Celery("client", broker=started.stack.broker_url, backend="bridge://", set_as_current=False)
    app.conf.task_default_queue = "reports"
    bridge.install(app)
    yield app
    app.close()


def test_results_that_come_soon_after_others_are_sent_together(db: Session) -> None:
    for_long = Settings(database_url=db.dsn).model_copy(update={"streaming": 60.0})
    channel = RunChannel(for_long, Board())
    finishes = []
    for number in range(4):
        db.enqueue()
        claim = db.publish()
        run = channel.start(claim.seq, str(claim.token), db.worker, 1)
        assert run is not None
        finishes.append(Finish(claim.seq, run, str(claim.token), claim.id, "succeeded", str(number)))
    channel.finish(finishes[0])
    assert (channel._kept, channel._unread) == ([], finishes[:1]), "the first is sent at once"
    for finish in finishes[1:]:
        channel.finish(finish)
    assert channel._kept == finishes[1:]
    channel.settle()
    rows = db.rows("select result::text, attempts, xmin::text from bridge.finished order by seq")
    assert [row[:2] for row in rows] == [("0", 1), ("1", 1), ("2", 1), ("3", 1)]
    assert len({row[2] for row in rows[1:]}) == 1, "one transaction has written what was kept"


def test_whatever_becomes_of_a_task_reaches_its_row(flow: Flow, client: Celery, tmp_path: Path) -> None:
    flow.stack.sql.execute("select bridge.set_limit('one at a time', task => 'reports.quiet', concurrency => 1)")
    plain = [flow.enqueue(number) for number in range(30)]
    limited = [flow.enqueue(task="quiet") for _ in range(2)]
    child = flow.enqueue(depends_on=plain[-1:])
    (tmp_path / "go").touch()
    told = {task: flow.enqueue(*words, task=task, max_attempts=1) for task, words in (
        ("fail", ()), ("retry", (1,)), ("replace", ()), ("ignore", ()), ("no_json", ()), ("progress", (str(tmp_path / "go"),)),
    )}  # fmt: skip
    parts = [client.signature("reports.give", (str(tmp_path / "parts"), number)) for number in range(3)]
    whole = chord(parts, client.signature("reports.give", (str(tmp_path / "body"), "joined"), immutable=True))()
    assert (whole.get(timeout=60), whole.parent.get(timeout=60)) == ("joined", [0, 1, 2])
    flow.ran_once([*plain, *limited, child])
    assert [flow.stack.job(one)["result"] for one in plain] == list(range(30))
    rows = {task: flow.stack.wait(one) for task, one in told.items()}
    assert {task: row["status"] for task, row in rows.items() if row["status"] != "succeeded"} == {"fail": "failed", "no_json": "failed"}
    assert [rows[task]["result"] for task in ("retry", "replace", "progress")] == [2, "replaced", "all"]
    assert (rows["fail"]["error"]["message"], rows["progress"]["progress"]["state"]) == ("as told", "PROGRESS")
    assert flow.stack.attempts(told["retry"]) == [(1, "retried"), (2, "succeeded")]
    written = flow.stack.sql.execute("select count(distinct xmin::text) from bridge.finished where id = any(%s::uuid[])", (plain,))
    assert written.fetchone() < (30,), "results were written together"  # type: ignore[operator]


def test_a_key_is_free_when_the_row_says_that_its_job_has_ended(flow: Flow) -> None:
    first = flow.enqueue(unique_key="once")
    flow.stack.wait(first)
    assert flow.enqueue(unique_key="once") != first


def test_a_process_that_dies_takes_its_job_along_and_no_kept_result(flow: Flow, tmp_path: Path) -> None:
    kept = [flow.enqueue(number) for number in range(5)]
    last = flow.enqueue(str(tmp_path / "go"), task="hold")
    os.kill(flow.process_of(last), signal.SIGKILL)
    (tmp_path / "go").touch()
    assert flow.stack.wait(last)["losses"] == 1
    flow.ran_once(kept)


def test_a_result_counts_whose_process_dies_before_it_can_say_more(flow: Flow) -> None:
    flow.ran_once([flow.enqueue(), flow.enqueue(task="die_afterwards")])


def test_a_process_that_dies_between_two_jobs_leaves_its_results_to_the_main_process(flow: Flow) -> None:
    kept = [flow.enqueue(number) for number in range(5)]
    flow.ended_for_their_worker(kept)
    redis.Redis.from_url(flow.stack.broker_url).flushall()  # a broker that loses its memory has none of them
    os.kill(flow.process_of(kept[-1]), signal.SIGKILL)
    flow.ran_once(kept)


def stops(flow: Flow, number: signal.Signals) -> None:
    """A worker that is sent this has ended with all of its results written."""
    kept = [flow.enqueue(value) for value in range(5)]
    flow.ended_for_their_worker(kept)
    flow.workers[-1].kill(number)
    flow.workers[-1].wait(60)
    assert {flow.stack.job(one)["status"] for one in kept} == {"succeeded"}
    flow.ran_once(kept)


def test_a_worker_that_stops_has_written_every_result(flow: Flow) -> None:
    stops(flow, signal.SIGTERM)


@pytest.mark.skipif(EFFORT == 1, reason="one more worker, for what other tests of stopping take care of: BRIDGE_TEST_EFFORT=2 runs it")
def test_a_worker_that_stops_cold_has_written_every_result(flow: Flow) -> None:
    stops(flow, signal.SIGQUIT)


def test_only_what_a_whole_worker_had_not_written_runs_again_when_it_dies(flow: Flow) -> None:
    written = [flow.enqueue(number) for number in range(5)]
    flow.ran_once(written)
    kept = [flow.enqueue(number) for number in range(5)]
    flow.ended_for_their_worker(kept)
    flow.workers[-1].kill(signal.SIGKILL)  # the pool ends with it
    flow.start_worker()
    ended = [flow.stack.wait(one) for one in kept]
    assert {job["status"] for job in ended} == {"succeeded"}
    assert [len(flow.runs(one)) for one in kept] == [1 + job["losses"] for job in ended], "each run more is a loss that is on the row"
    assert {job["losses"] for job in ended} <= {0, 1}
    flow.ran_once(written)


def test_a_cancel_reaches_what_runs_and_none_of_the_kept_results(flow: Flow, tmp_path: Path) -> None:
    kept = [flow.enqueue(number) for number in range(5)]
    last = flow.enqueue(str(tmp_path / "never"), task="hold")
    flow.process_of(last)
    flow.stack.sql.execute("select bridge.cancel(%s)", (last,))
    assert flow.stack.wait(last)["status"] == "cancelled"
    flow.ran_once(kept)


@pytest.fixture
def patient(flow: Flow) -> Iterator[Flow]:
    """Nobody is taken for dead."""
    change = "update bridge.setting set value = %s where name = 'worker_lost'"
    flow.stack.sql.execute(change, ("60",))
    yield flow
    flow.stack.sql.execute(change, (SHORT["worker_lost"],))


@pytest.mark.usefixtures("patient")
def test_what_a_process_left_while_postgres_was_away_is_written_by_the_main_process_when_it_is_back(flow: Flow) -> None:
    with flow.unwritten() as (ids, _):
        flow.proxy.refuse()
        flow.proxy.cut()
        over = flow.over(ids)
        dead = flow.process_of(ids[0])
        os.kill(dead, signal.SIGKILL)
        flow.hang_up()
    flow.said(f"pid:{dead} exited")
    flow.proxy.heal()
    flow.ran_once(over)
    results = [flow.stack.wait(one)["result"] for one in ids]
    assert results == ["held", *range(len(ids) - 1)]
    assert all(len(flow.runs(one)) <= 1 + flow.stack.job(one)["losses"] for one in ids)


def test_what_a_process_left_is_written_when_postgres_has_time_for_it(flow: Flow) -> None:
    with flow.unwritten(others=0) as (over, _):
        dead = flow.process_of(over[0])
        os.kill(dead, signal.SIGKILL)
        flow.said(f"pid:{dead} exited")
        flow.reports(4)
    flow.ran_once(over)


def test_a_result_counts_whose_process_dies_before_postgres_has_time_for_it(flow: Flow, tmp_path: Path) -> None:
    last = flow.enqueue(str(tmp_path / "go"), task="die_afterwards")
    dead = flow.process_of(last)
    with flow.busy():
        (tmp_path / "go").touch()
        flow.said(f"outcomes wait for postgres, their process is dead pid={dead}")
        flow.reports(4)
    flow.ran_once([last])


def freeze(flow: Flow) -> None:
    """The whole worker stands still."""
    os.killpg(flow.workers[-1].pid, signal.SIGSTOP)


def thaw(flow: Flow) -> None:
    os.killpg(flow.workers[-1].pid, signal.SIGCONT)


def cut_off(flow: Flow) -> None:
    """The worker goes on, and does not reach Postgres; it takes no messages that it would only hand back."""
    assert flow.control.cancel_consumer("reports", reply=True, limit=1, timeout=30)
    flow.proxy.refuse()
    flow.proxy.cut()


def lead_back(flow: Flow) -> None:
    flow.proxy.heal()
    assert flow.control.add_consumer("reports", reply=True, limit=2, timeout=30)


@pytest.mark.parametrize(("strike", "mend"), [(freeze, thaw), (cut_off, lead_back)])
def test_results_kept_by_a_worker_that_was_taken_for_dead_are_put_aside(
    flow: Flow, strike: Callable[[Flow], None], mend: Callable[[Flow], None]
) -> None:
    with flow.unwritten() as (ids, go):
        strike(flow)
        over = flow.over(ids)
        flow.hang_up()
        go.unlink()
    other = flow.stack.start_worker("apps.reports", "--concurrency=1")
    wait_until(lambda: len(flow.runs(over[0])) == 2, 60, "the first of them to run again")
    wait_until(lambda: all((1, "lost") in flow.stack.attempts(one) for one in over), 60, "all of them to be taken for lost")
    mend(flow)
    wait_until(lambda: (1, "superseded") in flow.stack.attempts(over[0]), 60, "what was kept of it to be put aside")
    assert flow.stack.job(over[0])["status"] == "running"
    go.touch()
    assert {(job["status"], job["attempts"]) for job in map(flow.stack.wait, ids)} == {("succeeded", 1)}
    for one in over:
        wait_until(lambda one=one: len(flow.stack.attempts(one)) == 3, 60, "what was kept to be put aside")
        assert sorted(flow.stack.attempts(one)) == [(1, "lost"), (1, "succeeded"), (1, "superseded")]
        assert (flow.stack.job(one)["losses"], len(flow.runs(one))) == (1, 2)
    assert all(len(flow.runs(one)) <= 1 + flow.stack.job(one)["losses"] for one in ids)
    other.kill(signal.SIGKILL)
    flow.ran_once([flow.enqueue()])
