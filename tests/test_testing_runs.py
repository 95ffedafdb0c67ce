"""Running jobs in the process of a test: what a worker does, in a fixed order and in pretended time."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery import Celery, Task, chain, chord, signals
from celery.exceptions import Reject

import bridge
from bridge.errors import BridgeError, InvalidArgumentError
from bridge.testing import assert_enqueued, refute_enqueued, run_jobs
from bridge.testing.applications import renew

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_calls import MakeApp


HELD: dict[str, Any] = {}  # connections that tests hold open, for tasks, by name


class Shop:
    """An application with a task of each kind; its result backend, like its broker, is a server that nobody can reach."""

    def __init__(self, make_caller: MakeApp) -> None:
        self.app = app = make_caller(backend="redis://127.0.0.1:1/0")
        self.seen: list[Any] = []

        @app.task(shared=False, name="shop.note")
        def note(word: Any) -> None:
            self.seen.append(word)

        @app.task(shared=False, name="shop.add")
        def add(left: int, right: int) -> int:
            return left + right

        @app.task(shared=False, name="shop.fail", autoretry_for=(ConnectionError,), max_retries=2, default_retry_delay=60)
        def fail(kind: str) -> None:
            self.seen.append(kind)
            raise {"for good": ValueError, "for now": ConnectionError}[kind](kind)

        @app.task(shared=False, name="shop.reject")
        def reject() -> None:
            raise Reject("not mine", requeue=False)

        @app.task(shared=False, name="shop.leave")
        def leave() -> None:
            raise SystemExit(3)

        @app.task(shared=False, name="shop.complete")
        def complete(connection: Any, word: str, *, fails: bool = False) -> Any:
            with contextlib.suppress(ValueError), HELD[connection].transaction():
                HELD[connection].execute("insert into words values (%s)", (word,))
                result = bridge.complete(HELD[connection], word)
                if fails:
                    raise ValueError(word)
                return result
            return "rolled back"

        self.complete = complete
        self.note, self.add, self.fail, self.reject, self.leave = note, add, fail, reject, leave


@pytest.fixture
def shop(make_caller: MakeApp) -> Iterator[Shop]:
    renew()  # what this process remembers of another test's database
    yield Shop(make_caller)
    renew()


def test_a_job_runs_with_its_hooks_and_signals_and_its_outcome_is_on_the_row(shop: Shop) -> None:
    seen = shop.seen

    class Hooked(Task):
        def before_start(self, _task_id: str, args: Any, _kwargs: Any) -> None:
            seen.append(("before_start", args))

        def on_success(self, retval: Any, *_: Any) -> None:
            seen.append(("on_success", retval))

    @shop.app.task(shared=False, base=Hooked, bind=True, name="shop.hooked")
    def hooked(self: Task, *, word: str) -> str:
        seen.append((self.request.called_directly, self.request.is_eager, self.request.delivery_info["routing_key"]))
        return word.upper()

    def ended(sender: Task, state: str, **_: Any) -> None:
        seen.append((sender.name, state))

    result = hooked.apply_async(kwargs={"word": "bee"}, queue="hive", exchange="hive", routing_key="by.air")
    with_signal = signals.task_postrun.connect(ended, weak=False)
    [job] = run_jobs(shop.app)
    signals.task_postrun.disconnect(with_signal)
    assert seen == [("before_start", []), (False, False, "by.air"), ("on_success", "BEE"), ("shop.hooked", "SUCCESS")]
    assert (str(job.id), job.status, job.result, job.attempts) == (result.id, "succeeded", "BEE", 1)


def test_what_a_job_leads_to_runs_too(shop: Shop) -> None:
    chain(shop.add.s(1, 2), shop.add.s(3), shop.note.s()).delay()
    assert [job.task for job in run_jobs(shop.app)] == ["shop.add", "shop.add", "shop.note"]
    assert shop.seen == [6]


def test_a_chord_is_joined_where_results_are_in_rows(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "bridge://")  # as the fixture bridge_database does
    chord([shop.add.s(1, 2), shop.add.s(3, 4)])(shop.note.s())
    run_jobs(shop.app)
    assert shop.seen == [[3, 7]]


def test_jobs_run_by_queue_then_by_urgency_then_by_age(shop: Shop) -> None:
    for word, queue, priority in (("b1", "b", 0), ("a-late", "a", 5), ("a-soon", "a", 0), ("a-last", "a", 9), ("b2", "b", 0)):
        shop.note.apply_async((word,), queue=queue, priority=priority)
    run_jobs(shop.app, queues=["a", "b"])
    assert shop.seen == ["a-soon", "a-late", "a-last", "b1", "b2"]


def test_a_failure_is_on_the_row_and_is_raised_when_that_is_asked_for(shop: Shop) -> None:
    shop.fail.delay("for good")
    [job] = run_jobs(shop.app)
    assert job.error is not None
    assert (job.status, job.error["type"], job.error["message"]) == ("failed", "ValueError", "for good")
    shop.fail.delay("for good")
    with pytest.raises(ValueError, match="for good"):
        run_jobs(shop.app, propagate=True)
    assert_enqueued("shop.fail", status="failed", times=2)


def test_retries_come_when_the_time_has_passed_that_they_wait(shop: Shop) -> None:
    shop.fail.delay("for now")
    shop.note.apply_async(("at 90",), countdown=90)
    run_jobs(shop.app)
    assert shop.seen == ["for now"]
    run_jobs(shop.app, later=timedelta(seconds=70))
    assert shop.seen == ["for now"] * 2
    assert_enqueued("shop.fail", status="scheduled")


def test_delays_that_begin_in_pretended_time_count_from_there(shop: Shop) -> None:
    shop.fail.delay("for now")
    shop.note.apply_async(("at 90",), countdown=90)
    run_jobs(shop.app, later=110)
    assert shop.seen == ["for now", "for now", "at 90"]
    run_jobs(shop.app, later=130)
    assert shop.seen == ["for now", "for now", "at 90", "for now"]
    assert_enqueued("shop.fail", status="failed")


def test_a_job_that_expires_before_it_is_due_never_runs(shop: Shop) -> None:
    expired = shop.note.apply_async(("late",), countdown=60, expires=datetime.now(UTC) + timedelta(seconds=30))
    shop.note.apply_async(("in time",), countdown=50, expires=datetime.now(UTC) + timedelta(seconds=55))
    run_jobs(shop.app, later=300)
    assert shop.seen == ["in time"]
    assert bridge.get(expired.id).status == "expired"


def test_what_a_worker_refuses_or_does_not_survive_fails_and_the_others_run(shop: Shop) -> None:
    shop.app.send_task("shop.unknown")
    shop.reject.delay()
    shop.leave.delay()
    shop.note.delay("still")
    jobs = {job.task: job for job in run_jobs(shop.app)}
    assert shop.seen == ["still"]
    errors = {name: (jobs[name].status, (jobs[name].error or {})["type"]) for name in jobs if name != "shop.note"}
    failures = {"shop.unknown": "NotRegistered", "shop.reject": "Reject", "shop.leave": "WorkerLostError"}
    assert errors == {name: ("failed", kind) for name, kind in failures.items()}


def test_a_task_that_calls_itself_for_ever_is_stopped(shop: Shop) -> None:
    @shop.app.task(shared=False, name="shop.again", bind=True)
    def again(self: Task) -> None:
        self.delay()

    again.delay()
    with pytest.raises(BridgeError, match="5 jobs have run and more are due"):
        run_jobs(shop.app, limit=5)


def test_it_is_said_when_more_than_one_application_has_joined(shop: Shop, make_caller: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_caller()
    # The current one would be taken; which that is, the tests before have decided.
    monkeypatch.setattr("celery._state._tls.current_app", Celery("bystander", set_as_current=False))
    with pytest.raises(InvalidArgumentError, match=r"which application runs the jobs is not clear: .*'caller', 'caller'"):
        run_jobs()
    del shop, other


def test_jobs_of_an_open_transaction_run_in_it_and_are_rolled_back_with_it(shop: Shop, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:

        @shop.app.task(shared=False, name="shop.write")
        def write(text: str) -> None:
            connection.execute("insert into written values (%s)", (text,))
            connection.execute("select 1/%s::integer", (len(text),))
            shop.note.delay(text)
            bridge.enqueue("shop.note", ["ours"])

        connection.execute("create table written (text text)")
        bridge.enqueue("shop.write", ["kept"], connection=connection)
        bridge.enqueue("shop.write", [""], connection=connection, max_attempts=1)
        run_jobs(shop.app, connection=connection)
        # What the second wrote went with its error; the transaction lives, and the jobs that the first has called are part of it.
        assert connection.execute("select text from written").fetchall() == [("kept",)]
        assert assert_enqueued("shop.write", args=[""], status="failed", connection=connection)[0].error["type"] == "DivisionByZero"
        for word in ("kept", "ours"):
            assert_enqueued("shop.note", args=[word], status="succeeded", connection=connection)
        refute_enqueued()
        connection.rollback()
    refute_enqueued()


def test_a_project_that_has_the_package_installed_gets_no_fixtures_unasked() -> None:
    assert [one for one in entry_points(group="pytest11") if one.value.startswith("bridge")] == []


def test_a_completion_is_part_of_the_transaction_that_its_job_runs_in(shop: Shop, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("create table words (word text)")
        HELD["test"] = connection
        with bridge.using(connection):
            chained = shop.complete.s("test", "done") | shop.note.s()
            chained.delay()
            shop.complete.delay("test", "undone", fails=True)
        ran = run_jobs(shop.app, connection=connection)
        assert {(job.task, job.status, job.result) for job in ran} == {
            ("shop.complete", "succeeded", "done"),
            ("shop.note", "succeeded", None),
            ("shop.complete", "succeeded", "rolled back"),
        }
        assert (shop.seen, connection.execute("select * from words").fetchall()) == (["done"], [("done",)])
        connection.rollback()


def test_a_completion_in_a_transaction_of_its_own_is_seen_when_the_run_ends(shop: Shop, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table words (word text)")
        HELD["own"] = connection
        (shop.complete.s("own", "done") | shop.note.s()).delay()
        assert [(job.status, job.result) for job in run_jobs(shop.app)] == [("succeeded", "done"), ("succeeded", None)]
        assert shop.seen == ["done"]
        with pytest.raises(BridgeError, match=r"bridge\.complete is called outside of a task"):
            bridge.complete(connection, 1)
        with pytest.raises(BridgeError, match=r"in task shop\.complete, whose message belongs to no job"):
            shop.complete.apply(("own", "eager"), throw=True)
