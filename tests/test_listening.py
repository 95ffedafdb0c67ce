"""Who is told of ready jobs: drainers that listen, nobody else; and none of them sleeps beside a job that nobody has told it of."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_servers import FAST, wait_for_value, wait_until
from fix_sql import Session

from bridge import listening as module
from bridge import schema
from bridge.drainer import Drainer
from bridge.listening import Listening
from bridge.local.postgres import PostgresServer
from bridge.queries import listeners
from bridge.queries.connection import connect
from bridge.settings import Settings

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator
    from pathlib import Path

REPORT = "select bridge.report_drainer(%s, 'd@test', 1, 'test', 0, clock_timestamp()"  # as 0.1.0 calls it, up to here
POLL = 60.0  # seconds: whoever sleeps that long has missed something
SILENT = "update bridge.drainer set seen_at = seen_at - interval '61 seconds'"
LISTENERS = "select coalesce(array_agg(queue order by queue), '{}') from bridge.listener"


def heard(session: Session, *, then: str = "end") -> list[str]:
    """What a session that listens has been told so far."""
    session.do("select pg_notify('bridge_ready', %s)", then)
    notices: list[str] = []
    while then not in notices:
        notices += [notice.payload for notice in session.connection.notifies(timeout=20, stop_after=1)]
    return notices[: notices.index(then)]


def listens(db: Session, *queues: str) -> None:
    db.do(f"{REPORT}, p_listens => %s)", db.drainer, list(queues))


def test_where_nobody_listens_nobody_is_told(db: Session, other: Session) -> None:
    other.do("listen bridge_ready")
    db.enqueue()
    db.rows('select bridge.enqueue_many(\'[{"task": "a.task"}]\')')
    assert heard(other) == []


def test_a_drainer_is_told_of_the_queues_that_it_listens_to(db: Session, other: Session) -> None:
    other.do("listen bridge_ready")
    listens(db, "mail", "slow")
    db.enqueue()
    db.enqueue(queue="mail")
    db.rows('select bridge.enqueue_many(\'[{"task": "a.task", "queue": "slow"}, {"task": "a.task"}]\')')
    assert heard(other) == ["mail", "slow"]
    listens(db, "slow")
    db.enqueue(queue="mail")
    db.enqueue(queue="slow")
    assert heard(other) == ["slow"]


def test_a_drainer_that_does_not_say_what_it_listens_to_is_told_of_all(db: Session, other: Session) -> None:
    other.do("listen bridge_ready")
    db.do(f"{REPORT})", db.drainer)
    db.enqueue(queue="mail")
    assert heard(other) == ["mail"]


def test_a_drainer_that_has_stopped_listens_no_more(db: Session) -> None:
    listens(db, "")
    db.do(f"{REPORT}, p_stopped => true)", db.drainer)
    assert db.one(LISTENERS) == []


def test_a_drainer_that_is_silent_for_a_minute_listens_no_more_until_it_reports_again(db: Session, other: Session) -> None:
    listens(db, "mail")
    listens(other, "slow")
    assert db.one(LISTENERS) == ["mail", "slow"]
    db.do(f"{SILENT} where id = %s", other.drainer)
    db.tick()
    assert db.one(LISTENERS) == ["mail"]
    listens(other, "slow")
    assert db.one(LISTENERS) == ["mail", "slow"]


def test_a_drainer_that_reports_while_the_tick_takes_it_for_silent_listens_all_the_same(db: Session, other: Session) -> None:
    listens(other, "slow")
    db.do(SILENT)
    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction():
            db.tick()
            reporting = pool.submit(listens, other, "slow")
            wait_until(lambda: db.one("select pg_blocking_pids(%s) <> '{}'", other.connection.info.backend_pid))
        reporting.result()
    assert db.one(LISTENERS) == ["slow"]
    db.do(SILENT)
    with other.connection.transaction():
        listens(other, "slow")
        db.tick()
    assert db.one(LISTENERS) == ["slow"]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_transaction_that_does_not_see_who_listens_tells_all(db: Session, other: Session, level: str) -> None:
    with closing(psycopg.connect(db.dsn)) as caller:
        caller.execute(f"set transaction isolation level {level}".encode())
        caller.execute("select 1")
        other.do("listen bridge_ready")
        listens(db, "")
        caller.execute("select bridge.enqueue('a.task')")
        caller.commit()
    assert heard(other) == ["celery"]


def test_who_begins_to_listen_looks_by_itself_until_all_that_were_open_have_ended(db: Session) -> None:
    with closing(connect(db.dsn, name="test")) as ears, closing(psycopg.connect(db.dsn)) as early, closing(psycopg.connect(db.dsn)) as late:
        listening = Listening((), POLL, threading.Event())
        with db.connection.transaction():
            listens(db, *listening.wanted(ears))
            early.execute("select bridge.enqueue('a.task')")  # does not see that yet, so it tells nobody
        listening.reported(ears, listening.wanted(ears))
        late.execute("select bridge.enqueue('a.task')")
        assert max(listening.pause(ears, 0, held_back=False) for _ in range(20)) < 1
        early.commit()
        assert wait_until(lambda: (found := listening.pause(ears, 0, held_back=False)) > 1 and found) == POLL
        late.rollback()


def test_who_ends_between_a_look_and_the_question_whether_all_have_ended_is_found_by_one_more(db: Session) -> None:
    with closing(connect(db.dsn, name="test")) as ears, closing(psycopg.connect(db.dsn)) as early:
        listening = Listening((), POLL, threading.Event())
        with db.connection.transaction():
            listens(db, *listening.wanted(ears))
            early.execute("select bridge.enqueue('a.task')")
        listening.reported(ears, listening.wanted(ears))
        assert db.rows("select bridge.ready_queues()") == []  # the look
        early.commit()
        pauses = [listening.pause(ears, 0, held_back=False)]  # the question
        wait_until(lambda: pauses.append(listening.pause(ears, 0, held_back=False)) or pauses[-1] == POLL)
        assert pauses[0] < 1


def test_a_drainer_that_cannot_publish_is_told_nothing_until_it_can(db: Session, redis_url: str) -> None:
    stop = threading.Event()
    drainer = Drainer(Settings(database_url=db.dsn, broker_url="redis://127.0.0.1:1/0"), stop)
    with ThreadPoolExecutor(1) as pool, ExitStack() as ends:
        ends.callback(stop.set)
        running = pool.submit(drainer.run)
        wait_for_value(db.dsn, "select count(*) from bridge.drainer where stopped_at is null", value=1)
        assert db.one(LISTENERS) == []
        drainer._settings = Settings(database_url=db.dsn, broker_url=redis_url)
        wait_for_value(db.dsn, LISTENERS, value=[""])
        stop.set()
        running.result()


def test_what_is_told_while_nobody_waits_for_it_does_not_pile_up(db: Session) -> None:
    with closing(connect(db.dsn, name="test")) as ears:
        ears.execute("listen bridge_ready")
        listening = Listening((), POLL, threading.Event())
        for _ in range(3):
            db.do("select pg_notify('bridge_ready', n::text) from generate_series(1, 100) n")
            ears.execute("select 1")
            listening.forget(ears)
            assert list(ears.notifies(timeout=0)) == []


@pytest.fixture
def slow_dsn(server_folder: Path) -> Iterator[str]:
    """A server whose disk takes a tenth of a second for what commits want it to keep, as one does that is far away."""
    folder = server_folder / f"slow-{secrets.token_hex(3)}"
    settings = FAST | {"fsync": "on", "commit_delay": "100000", "commit_siblings": "0"}
    server = PostgresServer(folder, "slow", settings=settings).start()
    schema.install(server.dsn)
    yield server.dsn
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_drainer_looks_by_itself_while_commits_queue_to_notify_and_listens_again(slow_dsn: str, redis_url: str) -> None:
    stop, enough = threading.Event(), threading.Event()
    drainer = Drainer(Settings(database_url=slow_dsn, broker_url=redis_url, poll=POLL), stop)
    db = Session(slow_dsn)

    def enqueue() -> list[uuid.UUID]:
        session, jobs = Session(slow_dsn), []
        while not enough.is_set():
            jobs.append(session.enqueue())
        return jobs

    with ThreadPoolExecutor(12) as pool:
        running = pool.submit(drainer.run)
        wait_for_value(slow_dsn, LISTENERS, value=[""])
        crowd = [pool.submit(enqueue) for _ in range(10)]
        wait_for_value(slow_dsn, LISTENERS, value=[])
        wait_for_value(slow_dsn, "select waiting from bridge.crowd()", value=0)
        enough.set()
        jobs = [job for one in crowd for job in one.result()]
        wait_for_value(slow_dsn, LISTENERS, value=[""])
        jobs.append(db.enqueue())
        wait_for_value(slow_dsn, "select count(*) from bridge.inflight where state = 'published'", value=len(jobs))
        stop.set()
        running.result()
    assert db.one(LISTENERS) == []


def test_a_drainer_is_less_and_less_impressed_by_those_who_notify_of_other_things(slow_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY", 0.02)  # what takes minutes is over in seconds
    enough = threading.Event()

    def notify() -> None:
        session = Session(slow_dsn)
        session.do("create temporary table written (here integer)")
        while not enough.is_set():
            session.do("with w as (insert into written values (1)) select pg_notify('theirs', '')")

    with ThreadPoolExecutor(6) as pool, closing(connect(slow_dsn, name="test")) as ears:
        for _ in range(6):
            pool.submit(notify)
        wait_for_value(slow_dsn, "select waiting >= 3 from bridge.crowd()")
        listening = Listening((), POLL, threading.Event())
        turns = 0
        for _ in range(100):
            time.sleep(0.02)  # or it would not look: nothing is waited for here
            wait_until(lambda: listeners.crowd(ears).waiting >= 3)
            turns += listening.look(ears)
        enough.set()
    assert 2 <= turns <= 40
