"""Retry policies, rules of one job and histories from Python, from Celery calls and from the command line."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from fix_client import answer, command

import bridge
from bridge.errors import InvalidArgumentError, NotFoundError
from bridge.results.failure import error_of

if TYPE_CHECKING:
    from fix_calls import MakeApp
    from fix_sql import Session

pytestmark = pytest.mark.usefixtures("ours")


class SlowError(TimeoutError):
    """An error of ours under one of Python's."""


def test_a_policy_is_set_read_and_removed_from_python_in_the_callers_transaction(db: Session) -> None:
    with db.connection.transaction(force_rollback=True):
        bridge.set_retry("a.task", max_attempts=2, connection=db.connection)
    assert bridge.retry_policies() == []
    rules: dict[str, Any] = {"backoff": [1, 5.5], "retry_on": [SlowError, "OSError"], "timeout": 60, "deadline": timedelta(hours=1)}
    assert [bridge.set_retry("a.task", max_attempts=5, **rules), bridge.set_retry("a.task", max_attempts=5, **rules)] == [
        "created",
        "unchanged",
    ]
    bridge.set_retry(queue="slow", soft_timeout=0.5)
    first, second = bridge.retry_policies()
    assert first | {"changed_at": None} == {
        "task": "a.task", "queue": None, "max_attempts": 5, "backoff": [1, 5.5], "never_on": None, "timeout": timedelta(minutes=1),
        "retry_on": [f"{__name__}.SlowError", "OSError"], "soft_timeout": None, "deadline": timedelta(hours=1), "changed_at": None,
    }  # fmt: skip
    assert (second["queue"], second["soft_timeout"]) == ("slow", timedelta(milliseconds=500))
    assert [bridge.remove_retry(queue="slow"), bridge.remove_retry(queue="slow")] == [True, False]


@pytest.mark.parametrize("given", ["OSError", [1], OSError, [b"OSError"]])
@pytest.mark.parametrize("name", ["retry_on", "never_on"])
def test_classes_are_given_as_a_list_of_classes_or_names(name: str, given: Any) -> None:
    rules = {name: given}
    with pytest.raises(InvalidArgumentError, match=f"^{name} is .*give a list of classes or of their names"):
        bridge.set_retry("a.task", **rules)
    with pytest.raises(InvalidArgumentError, match=f"^{name} is "):
        bridge.enqueue("a.task", **rules)


def test_a_job_says_its_own_rules_alone_in_a_transaction_and_among_many(db: Session) -> None:
    rules: dict[str, Any] = {"max_attempts": 5, "retry_on": ["OSError"], "never_on": ["ValueError"], "soft_timeout": 5.0, "deadline": 60}
    bridge.enqueue("a.task", **rules)
    with bridge.using(db.connection), db.connection.transaction():
        bridge.enqueue("a.task", **rules)
    bridge.enqueue_many([{"task": "a.task", **rules}])
    rows = db.rows("select options, headers->'timelimit', deadline - run_at, max_attempts from bridge.job")
    options = {"max_attempts": 5, "retry_on": ["OSError"], "never_on": ["ValueError"]}
    assert rows == [(options, [None, 5.0], timedelta(minutes=1), 5)] * 3


def test_a_celery_task_and_its_calls_say_theirs_by_the_option_bridge(make_caller: MakeApp, db: Session) -> None:
    app = make_caller(set_as_current=False)

    @app.task(name="asked.pay", shared=False, time_limit=30, bridge={"max_attempts": 4, "never_on": [ValueError], "deadline": 60.0})
    def pay() -> None:
        """Nothing."""

    pay.apply_async(bridge={"retry_on": [SlowError], "deadline": timedelta(minutes=2)})
    row = db.rows("select options, headers->'timelimit', deadline - run_at from bridge.job")
    options = {"max_attempts": 4, "never_on": ["builtins.ValueError"], "retry_on": [f"{__name__}.SlowError"]}
    assert row == [(options, [30, None], timedelta(minutes=2))]
    for wrong, message in [
        ({"retry_on": "OSError"}, "retry_on of task asked.pay is"),
        ({"timeout": 5}, "option bridge of task asked.pay has timeout"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            pay.apply_async(bridge=wrong)


def test_an_error_names_its_class_and_all_above_it() -> None:
    assert error_of(SlowError("late"), None)["bases"] == [
        f"{__name__}.SlowError", "builtins.TimeoutError", "builtins.OSError", "builtins.Exception",
    ]  # fmt: skip


def test_a_history_is_told_in_python_by_either_id(db: Session) -> None:
    identity = bridge.enqueue("a.task", backoff=0)
    db.fail(*db.run())
    events = bridge.history(identity)
    assert [(event.event, event.attempt) for event in events] == [("enqueued", None), ("failed", 1), ("queued", None)]
    assert events[1].reason is not None
    assert events[1].reason.startswith("attempt 1 of at most 3; the next was due at 2")
    assert (events[1].error or {})["message"] == "broken"
    with pytest.raises(NotFoundError, match="does not exist"):
        bridge.history("nobody")


def test_the_command_line_sets_lists_and_removes_policies(db: Session) -> None:
    words = (
        "retries",
        "set",
        "--task",
        "a.task",
        "--max-attempts",
        5,
        "--backoff",
        "1m,5m,15m",
        "--never-on",
        "ValueError",
        "--deadline",
        "2h",
    )
    assert command(*words, "--dry-run").stdout == "dry run, nothing is changed: task a.task created\n"
    assert answer("retries", "list") == []
    assert answer(*words) == {"task": "a.task", "queue": None, "outcome": "created"}
    assert command("retries", "set", "--queue", "slow", "--backoff", '{"base": 1}', "--timeout", "90").stdout == "queue slow created\n"
    assert [(row["backoff"], row["never_on"], row["deadline"], row["timeout"]) for row in answer("retries", "list")] == [
        ([60, 300, 900], ["ValueError"], 7200.0, None), ({"base": 1}, None, None, 90.0),
    ]  # fmt: skip
    header, first, _ = command("retries", "list").stdout.splitlines()
    shown = dict(zip(header.split("\t"), first.split("\t"), strict=True))
    assert (shown["task"], shown["queue"], shown["backoff"], shown["deadline"]) == ("a.task", "", "[60.0, 300.0, 900.0]", "2 h 0 min")
    assert command("retries", "remove", "--task", "a.task", "--dry-run").stdout == "dry run, nothing is changed: task a.task removed\n"
    assert command("retries", "remove", "--task", "a.task").exit_code == 0
    gone = command("retries", "remove", "--task", "a.task")
    assert (gone.exit_code, "task a.task has no retry policy" in gone.output) == (1, True)
    assert db.one("select count(*) from bridge.retry_policies") == 1


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--max-attempts", "3"], 1, "neither task nor queue is given"),
        (["--task", "a.task"], 1, "the policy of task a.task says nothing"),
        (["--task", "a.task", "--backoff", "soon"], 2, "'soon' is no duration"),
        (["--task", "a.task", "--backoff", "{"], 2, "is not JSON"),
        (["--task", "a.task", "--never-on", "a b"], 1, "never_on names 'a b', which is no class of errors"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_on_the_command_line(words: list[str], status: int, message: str) -> None:
    result = command("retries", "set", *words)
    assert (result.exit_code, message in result.output) == (status, True), result.output


def test_the_command_line_tells_a_history(db: Session) -> None:
    identity = bridge.enqueue("a.task", backoff=0, max_attempts=2)
    for _ in range(2):
        db.fail(*db.run())
    events = answer("jobs", "history", identity)
    assert [event["event"] for event in events] == ["enqueued", "failed", "failed"]
    lines = command("jobs", "history", identity).stdout.splitlines()
    assert lines[0].split("\t") == ["at", "event", "attempt", "worker", "took", "error", "reason"]
    assert lines[-1].split("\t")[-2:] == ["ValueError: broken", "it was the last attempt"]
    assert command("jobs", "history", "nobody").exit_code == 1
