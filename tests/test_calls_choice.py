"""Which calls become rows: a call's option wins over its task's, that over patterns; the others reach the app's own broker as ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, chain
from kombu import Exchange
from kombu.common import Broadcast
from kombu.transport import memory

import bridge
from bridge.errors import InvalidArgumentError
from bridge.loader import Loader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_calls import MakeApp
    from fix_sql import Session


def nothing(*_: Any) -> None:
    """What the tasks of these tests would do."""


@pytest.fixture
def sent() -> Iterator[Any]:
    """Give the next message of a queue of an application's own broker, or None; memory:// is one for the whole process."""
    memory.Channel.queues.clear()
    open_now = []

    def take(app: Any, queue: str = "celery") -> Any:
        connection = app.connection_for_read()
        open_now.append(connection)
        return connection.SimpleQueue(queue).queue.get(no_ack=True)

    yield take
    for connection in open_now:
        connection.release()


def test_only_the_tasks_that_were_named_become_rows(make_caller: MakeApp, db: Session) -> None:
    app = make_caller("memory://only", only=["mail.*"], exclude=["mail.debug"])
    for name in ("mail.send", "mail.debug", "other"):
        app.send_task(name)
    assert db.rows("select task from bridge.jobs") == [("mail.send",)]


@pytest.mark.parametrize(
    ("pattern", "task", "call", "row"),
    [
        (True, None, None, True), (False, None, None, False),
        (True, False, None, False), (False, True, None, True),
        (True, True, False, False), (False, False, True, True), (True, False, True, True),
    ],
)  # fmt: skip
def test_a_call_wins_over_its_task_and_that_over_patterns(
    make_caller: MakeApp, db: Session, sent: Any, *, pattern: bool, task: bool | None, call: bool | None, row: bool
) -> None:
    app = make_caller(f"memory://{pattern}{task}{call}", exclude=[] if pattern else ["*"])
    options = {} if task is None else {"bridge": task}
    chosen = app.task(name="calls.chosen", **options)(nothing)
    result = chosen.apply_async(**({} if call is None else {"bridge": call}))
    assert db.rows("select id::text from bridge.jobs") == ([(result.id,)] if row else [])
    message = sent(app)
    assert (message is None) == row


def test_what_goes_straight_looks_as_celery_makes_it_and_shows_no_option(make_caller: MakeApp, sent: Any) -> None:
    app, plain = make_caller("memory://straight"), Celery("plain", broker="memory://straight", set_as_current=False)
    app.send_task("calls.straight", (1,), {"a": 2}, task_id="same", bridge=False, headers={"mine": 1}, reply_to="x")
    plain.send_task("calls.straight", (1,), {"a": 2}, task_id="same", headers={"mine": 1}, reply_to="x")
    ours, theirs = sent(app), sent(plain)
    assert (ours.headers, ours.body, ours.properties.keys()) == (theirs.headers, theirs.body, theirs.properties.keys())
    assert "bridge" not in ours.headers
    plain.close()


def test_the_option_of_a_chains_step_counts_for_that_step_alone(make_caller: MakeApp, db: Session, sent: Any) -> None:
    app = make_caller("memory://chain")
    step = app.task(name="calls.step")(nothing)
    chain(step.s().set(bridge=False), step.si().set(queue="second"), app=app).apply_async()
    message = sent(app)
    assert [one["options"].get("bridge") for one in message.decode()[2]["chain"]] == [None]
    chain(step.si(), step.si().set(bridge=False), app=app).apply_async()
    assert [one["options"]["bridge"] for one in db.one("select embed from bridge.job")["chain"]] == [False]


def test_a_route_may_choose_too(make_caller: MakeApp, db: Session, sent: Any) -> None:
    app = make_caller("memory://route", task_routes={"mail.*": {"queue": "mail", "bridge": False}})
    app.send_task("mail.send")
    assert db.one("select count(*) from bridge.jobs") == 0
    assert sent(app, "mail") is not None


@pytest.mark.parametrize("wrong", ["no", 0, []])
def test_an_option_that_is_neither_yes_nor_no_is_refused(make_caller: MakeApp, wrong: Any) -> None:
    app = make_caller("memory://wrong")
    task = app.task(name="calls.wrong", bridge=wrong)(nothing)
    with pytest.raises(InvalidArgumentError, match=r"option bridge of task calls\.wrong is .*: give True for a row"):
        task.delay()
    with pytest.raises(InvalidArgumentError, match=r"option bridge of a call of task calls\.other is"):
        app.send_task("calls.other", bridge=wrong)


@pytest.mark.parametrize("options", [{"only": "mail.*"}, {"exclude": "mail.*"}, {"only": [1]}, {"exclude": [""]}])
def test_patterns_that_are_no_list_of_texts_are_refused(options: Any) -> None:
    app = Celery("wrong", set_as_current=False)
    with pytest.raises(InvalidArgumentError, match=r"is .*: give a list of patterns"):
        bridge.install(app, **options)


def test_map_and_starmap_go_the_way_of_the_task_that_they_call(make_caller: MakeApp, db: Session) -> None:
    app = make_caller("memory://map", only=["mail.*"])
    mail, other = app.task(name="mail.send")(nothing), app.task(name="other.task")(nothing)
    mail.map([1, 2]).delay()
    mail.starmap([(1,), (2,)]).delay()
    other.map([1, 2]).delay()
    assert db.rows("select task, kwargs -> 'it' from bridge.jobs order by created_at") == [
        ("celery.map", [1, 2]), ("celery.starmap", [[1], [2]])
    ]  # fmt: skip


def test_the_environment_chooses_for_an_app_that_names_none(make_caller: MakeApp, monkeypatch: pytest.MonkeyPatch, db: Session) -> None:
    monkeypatch.setenv("BRIDGE_ONLY", "mail.*, news.*")
    monkeypatch.setenv("BRIDGE_EXCLUDE", "*.debug")
    loaded = Celery("loaded", broker="memory://env", loader=Loader, set_as_current=False)
    named = make_caller("memory://env", only=["other"])
    for name in ("mail.send", "news.send", "news.debug", "other"):
        loaded.send_task(name)
        named.send_task(name)
    assert [row[0] for row in db.rows("select task from bridge.jobs order by 1")] == ["mail.send", "news.send", "other"]
    loaded.bridge.connections.close()
    loaded.close()


def test_what_every_worker_gets_a_copy_of_stays_with_the_broker(make_caller: MakeApp, db: Session) -> None:
    app = make_caller("memory://fanout", task_queues=[Broadcast("everybody")])
    app.send_task("calls.reload", queue="everybody")
    app.send_task("calls.reload", exchange=Exchange("loud", type="fanout"), routing_key="")
    assert db.one("select count(*) from bridge.jobs") == 0
