"""The Python face: jobs made, read, waited for and steered without a worker."""

from __future__ import annotations

import datetime as dt
import os
import threading
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery import Celery
from fix_client import command
from sqlalchemy import create_engine
from sqlalchemy.orm import Session as OrmSession

import bridge
from bridge.errors import (
    BridgeError,
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    PayloadTooLargeError,
    WaitTimeoutError,
    WrongStateError,
)
from bridge.queries import answers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Session

pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.fixture
def own_environment(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """BRIDGE_DATABASE_URL names this test's database, and connections made for another test's are forgotten."""
    from bridge import client

    for name in [name for name in os.environ if name.startswith("BRIDGE_") and "TEST" not in name and name != "BRIDGE_REQUIRE_SERVERS"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)
    client._connections.cache_clear()
    yield
    if client._connections.cache_info().currsize:
        client._connections().close()
    client._connections.cache_clear()


def test_a_row_that_is_nested_deeper_than_python_reads_can_be_looked_at(db: Session) -> None:
    deep, flat = db.enqueue("a.deep"), db.enqueue("a.flat", args=[1])
    text = "[" * 5000 + "]" * 5000
    db.do("update bridge.job set args = %s, kwargs = %s where id = %s", text, f'{{"a": {text}}}', deep)
    job = bridge.get(deep)
    assert (job.args, job.kwargs, bridge.get(flat).args) == (text, f'{{"a": {text}}}', [1])
    for words in (["jobs", "show", str(deep)], ["jobs", "show", str(deep), "--json"], ["jobs", "list"], ["jobs", "list", "--json"]):
        assert command(*words).exit_code == 0, words
    assert bridge.cancel(deep)
    with pytest.raises(BridgeError, match="nested deeper than Python reads"):
        answers.value(db.connection, "select %s::json", (text,))


def test_a_job_is_committed_when_enqueue_returns(db: Session) -> None:
    identity = bridge.enqueue("mail.send", [1], {"to": "you"}, queue="mail", priority=3, max_attempts=5, headers={"mine": 1})
    columns = "task, args, kwargs, queue, priority, max_attempts, headers, status"
    assert db.rows(f"select {columns} from bridge.jobs where id = %s", identity) == [
        ("mail.send", [1], {"to": "you"}, "mail", 3, 5, {"mine": 1}, "queued")
    ]


def test_a_row_comes_back_as_a_job(db: Session) -> None:
    identity = bridge.enqueue("a.task", [1])
    db.finish(*db.run(), result={"pages": 3})
    job = bridge.get(identity)
    assert (job.id, job.task, job.status, job.result, job.attempts) == (identity, "a.task", bridge.Status.SUCCEEDED, {"pages": 3}, 1)
    assert job.status.final
    assert job.seconds is not None
    assert job.seconds >= 0


@pytest.mark.parametrize("delay", [3600, 3600.0, dt.timedelta(hours=1)])
def test_a_delay_is_seconds_or_a_timedelta(db: Session, delay: Any) -> None:
    identity = bridge.enqueue("a.task", delay=delay)
    assert db.one("select run_at - created_at from bridge.jobs where id = %s", identity) == dt.timedelta(hours=1)


def test_a_job_joins_the_callers_psycopg_transaction(dsn: str, db: Session) -> None:
    with psycopg.connect(dsn) as connection:
        kept = bridge.enqueue("a.task", connection=connection)
        assert db.one("select count(*) from bridge.jobs") == 0
        connection.commit()
        bridge.enqueue("a.task", connection=connection)
        connection.rollback()
    assert db.rows("select id from bridge.jobs") == [(kept,)]


def test_a_job_joins_the_transaction_of_a_sqlalchemy_session(dsn: str, db: Session) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with OrmSession(engine) as session:
        bridge.enqueue("a.task", connection=session)
        session.rollback()
        kept = bridge.enqueue("a.task", connection=session)
        session.commit()
    with engine.begin() as connection:
        other = bridge.enqueue("a.task", connection=connection)
    assert {row[0] for row in db.rows("select id from bridge.jobs")} == {kept, other}
    engine.dispose()


def test_a_connection_of_another_kind_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidArgumentError, match="connection is of type str, which has no transaction to join"):
        bridge.enqueue("a.task", connection="not one")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"priority": 11}, InvalidArgumentError, "priority is 11: give 0 to 9"),
        ({"delay": -1}, InvalidArgumentError, "delay is -00:00:01"),
        ({"args": [object()]}, InvalidArgumentError, "args of task a.task is not JSON"),
        ({"args": [float("nan")]}, InvalidArgumentError, "args of task a.task is not JSON"),
        ({"args": ["x" * 2_000_000]}, PayloadTooLargeError, "the limit is 1048576"),
        ({"kwargs": {"a": "\x00"}}, InvalidArgumentError, "unsupported Unicode escape sequence"),
        ({"depends_on": [uuid.UUID(int=4 << 76)]}, InvalidArgumentError, "does not exist"),
    ],
)
def test_what_can_never_work_raises_before_anything_is_written(db: Session, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        bridge.enqueue("a.task", **options)
    assert words in str(caught.value)
    assert db.one("select count(*) from bridge.job") == 0


def test_an_option_that_does_not_exist_is_pythons_own_type_error() -> None:
    with pytest.raises(TypeError, match="prioritty"):
        bridge.enqueue("a.task", prioritty=3)  # type: ignore[call-arg]


def test_a_taken_unique_key_raises_conflict_error() -> None:
    first = bridge.enqueue("a.task", unique_key="one")
    assert bridge.enqueue("a.task", unique_key="one") == first
    with pytest.raises(ConflictError, match="unique_key 'one'"):
        bridge.enqueue("a.task", unique_key="one", on_conflict="raise")


def test_many_jobs_are_made_in_one_call(db: Session) -> None:
    ids = bridge.enqueue_many([{"task": "a.task", "args": [n], "delay": 60, "timeout": dt.timedelta(minutes=1)} for n in range(50)])
    assert [bridge.get(identity).args for identity in ids[:3]] == [[0], [1], [2]]
    assert db.one("select count(*) from bridge.jobs where status = 'scheduled'") == 50


def test_one_bad_job_of_many_is_named(db: Session) -> None:
    with pytest.raises(InvalidArgumentError, match=r"jobs\[1\]: priority is 99"):
        bridge.enqueue_many([{"task": "a.task"}, {"task": "a.task", "priority": 99}])
    assert db.one("select count(*) from bridge.jobs") == 0


def test_cancel_and_retry_say_the_new_status(db: Session) -> None:
    identity = bridge.enqueue("a.task")
    assert bridge.cancel(identity) is bridge.Status.CANCELLED
    assert bridge.retry(identity) is bridge.Status.QUEUED
    db.run()
    with pytest.raises(WrongStateError, match=f"job {identity} is running"):
        bridge.retry(identity)
    assert bridge.cancel(str(identity)) is bridge.Status.RUNNING


@pytest.mark.parametrize("function", [bridge.get, bridge.cancel, bridge.retry])
def test_a_job_that_does_not_exist_is_not_found(function: Any) -> None:
    with pytest.raises(NotFoundError, match="job 00000000-0000-4000-8000-000000000000 does not exist"):
        function("00000000-0000-4000-8000-000000000000")


def test_wait_gives_the_jobs_in_the_order_asked_for_when_all_have_ended(db: Session) -> None:
    ids = [bridge.enqueue("a.task", [n]) for n in range(3)]
    claims = db.claim()
    runs = [(claim, db.start(claim)) for claim in claims]
    waiter: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: waiter.update(jobs=bridge.wait(*ids, timeout=60)))
    thread.start()
    for claim, run in reversed(runs):
        db.finish(claim, run)
    thread.join(60)
    assert [job.args for job in waiter["jobs"]] == [[0], [1], [2]]


def test_wait_gives_up_when_its_time_is_over_and_names_what_had_not_ended() -> None:
    identity = bridge.enqueue("a.task")
    with pytest.raises(WaitTimeoutError, match=f"not ended after 0.1 s: {identity}"):
        bridge.wait(identity, timeout=0.1)


def test_progress_outside_of_a_task_does_nothing() -> None:
    bridge.progress(0.5, "half way")
    with pytest.raises(InvalidArgumentError, match="progress is 2"):
        bridge.progress(2)


@pytest.fixture
def app() -> Iterator[Any]:
    """An application whose broker nobody can reach: making a job does not need it."""
    app = Celery("client", broker="redis://127.0.0.1:1/0", backend="bridge://", set_as_current=False)
    bridge.install(app)
    yield app
    app.close()


def test_a_celery_call_becomes_a_row_with_its_broker_down(app: Any, db: Session) -> None:
    @app.task(name="client.add")
    def add(left: int, right: int) -> int:
        return left + right

    result = add.delay(1, 2)
    assert db.rows("select id::text, task, args, status, max_attempts from bridge.jobs") == [(result.id, "client.add", [1, 2], "queued", 1)]


def test_a_countdown_is_the_rows_due_time_and_an_expiry_its_end(app: Any, db: Session) -> None:
    app.send_task("a.task", countdown=3600, expires=7200)
    assert db.rows(
        "select status, round(extract(epoch from run_at - created_at)), round(extract(epoch from expires_at - created_at)) from bridge.jobs"
    ) == [("scheduled", 3600, 7200)]


def test_installing_twice_changes_nothing(app: Any, db: Session) -> None:
    kind = type(app.amqp)
    bridge.install(app)
    assert type(app.amqp) is kind
    app.send_task("a.task")
    assert db.one("select count(*) from bridge.jobs") == 1


def test_install_reads_no_configuration_that_the_user_sets_later() -> None:
    app = Celery("late", set_as_current=False)
    bridge.install(app)
    assert not app.configured
    app.conf.update(task_default_queue="set later")
    assert app.conf.task_default_queue == "set later"


def test_an_unknown_setting_is_refused_with_the_name_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge import settings
    from bridge.errors import SettingError

    with monkeypatch.context() as patch:
        patch.setenv("BRIDGE_SHIPMEND", "5")
        with pytest.raises(SettingError, match="unknown setting BRIDGE_SHIPMEND, did you mean BRIDGE_SHIPMENT"):
            settings.load()
