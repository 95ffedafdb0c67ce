"""Values of every type for every public function of the package: it does its work, or refuses with an exception of ours."""

from __future__ import annotations

import datetime as dt
import decimal
import inspect
import random
import traceback
import uuid
from threading import Timer
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_effort import EFFORT
from fix_fuzz import World, changed, contents
from fix_sql import Session
from invariants import assert_sound

import bridge
from bridge.errors import InvalidArgumentError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

APART = {"install", "join_sessions", "using"}  # of the application, not of the database
CALLBACKS = {"progress", "connection"}  # what is called, or used, as what it is
HELD: list[Any] = []
HELD.append(HELD)


PLAIN: dict[str, list[Any]] = {
    "task": ["a.task"], "queue": ["celery", "q0"], "name": ["nightly", "new"], "cron": ["0 3 * * *"], "timezone": ["UTC"], "n": [2],
    "wanted": [{"all": True}, {"queue": "q1"}], "priority": [3], "jobs": [{"a": {"task": "a.task"}}],
    "jobs_to_make": [[{"task": "a.task"}]], "url": ["http://127.0.0.1:1/"], "channel": ["heard"], "target": ["a.target"],
    "message": ["hello"], "level": ["info"], "fraction": [0.5], "signal": ["TERM"], "kind": ["dead_letters"],
    "role": ["bridge_producer"], "pattern": ["a.*"], "archive": ["pg_class"], "rate": [3], "callback": ["a.done"], "concurrency": [2],
    "limit": [3], "max_attempts": [2], "dry_run": [True, False], "timeout": [0.1], "data": [{}],
}  # fmt: skip
SAME: list[Any] = [
    None, 0, -1, 1.5, float("nan"), float("inf"), 10**30, True, "", "\x00", "\ud800", "x" * 1000, "a b", "\n", b"b", (), object(),
    HELD, dt.datetime.fromisoformat("2031-01-01"), dt.datetime.fromisoformat("0001-01-01"), dt.datetime.max.replace(tzinfo=dt.UTC),
    dt.timedelta.max, dt.timedelta.min, uuid.uuid4(), decimal.Decimal("NaN"), int, Exception("x"), "9" * 400, 2**63, -(2**31) - 1, len,
]  # fmt: skip
STRANGE: list[Callable[[], Any]] = [
    *(lambda value=value: value for value in SAME), list, dict, set, lambda: {1: 2}, lambda: {"a": object()}, lambda: ["\x00"],
    lambda: [None], lambda: ["\ud800"], lambda: {"\x00": "\x00"}, lambda: [float("nan")], lambda: iter([1]),
]  # fmt: skip


def arguments(function: Callable[..., Any], world: World, chance: random.Random) -> tuple[list[Any], dict[str, Any]]:
    """Arguments for one call, about half of them strange."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    known = {**PLAIN, **dict.fromkeys(["identity", "child", "parent", "id", "job"], world.ids)}
    for each in inspect.signature(function).parameters.values():
        if each.name in CALLBACKS or each.kind is each.VAR_KEYWORD or (each.default is not each.empty and chance.random() < 0.6):
            continue
        is_plain = each.name in known and chance.random() < 0.6
        value = chance.choice(known[each.name]) if is_plain else chance.choice(STRANGE)()
        if each.kind is each.VAR_POSITIONAL:
            positional.append(value)
        else:
            named[each.name] = value
    if "timeout" in inspect.signature(function).parameters and function.__name__ in {"wait", "wait_batch", "drain"}:
        named["timeout"] = 0.01
    return positional, named


@pytest.mark.usefixtures("ours")
def test_values_of_every_type_are_taken_or_refused_by_an_exception_of_ours(dsn: str) -> None:
    session = Session(dsn)
    world = World(session)
    seed = 6 if EFFORT == 1 else random.randrange(1 << 30)  # noqa: S311
    chance = random.Random(seed)  # noqa: S311
    wrong: dict[tuple[str, ...], object] = {}
    assert_sound(dsn)
    before = contents(session)
    for name in bridge.__all__:
        function = getattr(bridge, name)
        for _ in range(5 * EFFORT if inspect.isfunction(function) and name not in APART else 0):
            positional, named = arguments(function, world, chance)
            try:
                function(*positional, **named)
            except bridge.BridgeError as error:
                # A drain that has not come to its end leaves its queues paused, and says so.
                if (written := changed(before, contents(session))) and not isinstance(error, WaitTimeoutError):
                    wrong.setdefault((name, "writes", *written, str(error)[:200]), (positional, named))
                if "\n" in str(error) or len(str(error)) > 1500:
                    wrong.setdefault((name, "not one line", str(error)[:200]), (positional, named))
            except Exception as error:  # noqa: BLE001 - which is what this is about
                wrong.setdefault((name, type(error).__name__, str(traceback.extract_tb(error.__traceback__)[-1])), list(named))
            before = contents(session)
    assert wrong == {}, f"with seed {seed}"
    assert_sound(dsn)
    session.connection.close()


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: bridge.get(5), "id is a int"),  # type: ignore[arg-type]
    (lambda: bridge.get("\ud800"), "id is '\\ud800', which is no Unicode"),
    (lambda: bridge.enqueue("a.task", "abc"), "args is a str: give a list"),
    (lambda: bridge.enqueue("a.task", kwargs="abc"), "kwargs is a str: give a dict"),  # type: ignore[arg-type]
    (lambda: bridge.enqueue("a.task", HELD), "args of task a.task is not JSON"),
    (lambda: bridge.enqueue("a.task", delay=float("nan")), "a duration is nan seconds"),
    (lambda: bridge.enqueue_many({"task": "a.task"}), "jobs is a dict: give a list"),  # type: ignore[arg-type]
    (lambda: bridge.pause_schedule({}), "cannot adapt type 'dict': give arguments of the types"),  # type: ignore[arg-type]
    (lambda: bridge.pause("\ud800"), "a text holds '\\ud800', which is no Unicode: leave it out"),
    (lambda: bridge.set_archive("nowhere.jobs"), 'schema "nowhere" does not exist: give a table that is there, with its schema'),
    (lambda: bridge.set_archive("nothing"), 'relation "nothing" does not exist: give a table that is there, with its schema'),
    (lambda: bridge.cancel_jobs(5), "filter is a int: give a dict"),  # type: ignore[arg-type]
    (lambda: bridge.wait(uuid.uuid4(), timeout=float("nan")), "timeout is nan: give seconds, or None"),
]


@pytest.mark.usefixtures("ours")
def test_what_was_found_is_refused_by_its_name() -> None:
    for call, words in REFUSED:
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert str(caught.value).startswith(words)


@pytest.mark.usefixtures("ours")
def test_a_notice_that_names_no_job_does_not_end_who_waits(dsn: str) -> None:
    """Whoever may connect may notify on any channel."""
    session = Session(dsn)
    identity = session.enqueue()

    def speak() -> None:
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("select pg_notify('bridge_done', w) from unnest(array['', 'x', 'DROP', repeat('y', 7000)]) w")
            other.execute("select bridge.cancel(%s)", (identity,))

    Timer(0.2, speak).start()
    (job,) = bridge.wait(identity, timeout=60)
    assert job.status == "cancelled"
    session.connection.close()
