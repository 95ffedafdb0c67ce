"""Callbacks from Python and on the command line, and the option `webhook` in every way to enqueue."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import fix_client
import pytest

import bridge
from bridge.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from fix_calls import MakeApp
    from fix_sql import Session

pytestmark = pytest.mark.usefixtures("ours")
command = partial(fix_client.command, "callbacks")
URL = "https://hooks.example.org/in"


def test_python_sets_tries_and_removes_callbacks(db: Session) -> None:
    given: dict[str, Any] = {"task": "mail.*", "events": ["failed"], "secret": "shop", "result": True, "delivery_queue": "hooks"}
    assert [bridge.set_webhook("hook", URL, **given) for _ in range(2)] == ["created", "unchanged"]
    assert bridge.set_notifier("pager", "ops", queue="urgent") == "created"
    assert bridge.set_channel("screens", "jobs_done", events=("succeeded",)) == "created"
    assert db.rows(
        "select name, kind, target, task, queue, events, secret, result, delivery_queue from bridge.callbacks order by name"
    ) == [
        ("hook", "webhook", URL, "mail.*", None, ["failed"], "shop", True, "hooks"),
        ("pager", "notifier", "ops", None, "urgent", ["failed"], None, False, None),
        ("screens", "channel", "jobs_done", None, None, ["succeeded"], None, False, None),
    ]
    bridge.try_callback("hook")
    assert db.rows("select callback, event, status from bridge.deliveries") == [("hook", "job.failed", "queued")]
    bridge.remove_callback("hook")
    with pytest.raises(NotFoundError, match="callback 'hook' does not exist"):
        bridge.remove_callback("hook")
    with pytest.raises(InvalidArgumentError, match=r"events is \{done\}"):
        bridge.set_webhook("hook", URL, events=["done"])


def test_a_callback_joins_the_transaction_that_it_is_set_in(db: Session) -> None:
    with db.connection.transaction(force_rollback=True):
        bridge.set_webhook("hook", URL, connection=db.connection)
        assert db.one("select count(*) from bridge.callbacks") == 1
    assert db.one("select count(*) from bridge.callbacks") == 0


def test_the_command_line_does_the_same(db: Session) -> None:
    assert command("set-webhook", "hook", URL, "--task", "mail.*", "--event", "failed", "--event", "retrying").stdout == "hook created\n"
    assert command("set-notifier", "pager", "ops", "-Q", "urgent").stdout == "pager created\n"
    assert command("set-channel", "screens", "jobs_done").stdout == "screens created\n"
    listed = json.loads(command("list", "--json").stdout)
    assert [(row["name"], row["events"]) for row in listed] == [
        ("hook", ["failed", "retrying"]), ("pager", ["failed"]), ("screens", ["succeeded", "failed", "cancelled", "expired"]),
    ]  # fmt: skip
    assert command("list").stdout.splitlines()[1].split("\t")[:3] == ["hook", "webhook", URL]
    assert command("try", "hook").exit_code == 0
    (sent,) = json.loads(command("deliveries", "--callback", "hook", "--json").stdout)
    assert (sent["event"], sent["status"], sent["target"]) == ("job.failed", "queued", URL)
    assert "job.failed" in command("deliveries").stdout
    assert command("remove", "hook").stdout == "hook removed\n"
    refused = command("remove", "hook")
    assert (refused.exit_code, "callback 'hook' does not exist" in refused.stderr) == (1, True)
    assert command("set-webhook", "hook", "ftp://x").exit_code == 1
    assert command("set-webhook", "hook", URL, "--event", "done").exit_code == 2
    assert db.one("select count(*) from bridge.callbacks") == 2


def test_every_way_to_enqueue_takes_a_webhook(make_caller: MakeApp, db: Session) -> None:
    app = make_caller()

    @app.task(name="hooked.task", shared=False, bridge={"webhook": {"url": URL, "events": ["failed"]}})
    def task() -> None:
        """Nothing."""

    alone = bridge.enqueue("t", webhook=URL)
    with bridge.using(db.connection), db.connection.transaction():
        joined = bridge.enqueue("t", webhook={"url": URL, "result": True})
    (one_of_many,) = bridge.enqueue_many([{"task": "t", "webhook": URL}])
    task.apply_async()
    called = task.apply_async(bridge={"webhook": URL})
    for identity in (alone, joined, one_of_many, called.id):
        db.do("select bridge.cancel(%s)", identity)
    found: list[Any] = db.rows("select job, target from bridge.deliveries order by created_at")
    assert found == [(str(identity), URL) for identity in (alone, joined, one_of_many, called.id)]
    with pytest.raises(InvalidArgumentError, match="url of the webhook is 'nowhere'"):
        bridge.enqueue("t", webhook="nowhere")
    with pytest.raises(InvalidArgumentError, match="webhook of task t is not JSON"):
        bridge.enqueue("t", webhook={"url": object()})


def test_wait_takes_ids_in_a_list_too() -> None:
    first, second = bridge.enqueue("t"), bridge.enqueue("t")
    for identity in (first, second):
        bridge.cancel(identity)
    assert [job.id for job in bridge.wait([second, first], timeout=5)] == [second, first]
    assert [job.id for job in bridge.wait(first, (second,), timeout=5)] == [first, second]
