"""What transactions of Django do with calls: each story asserts, and all are told in one process (Django is set up once in one).

    python -m apps.django_orders.stories

prints as JSON what was wrong with each, null for nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "apps.django_orders.settings")
django.setup()

import psycopg  # noqa: E402
import pytest  # noqa: E402
from apps.django_orders.celery import app  # noqa: E402
from apps.django_orders.models import Order  # noqa: E402
from django.db import connection, connections, transaction  # noqa: E402

import bridge  # noqa: E402
from bridge.errors import ConflictError, InvalidArgumentError, UncommittedError  # noqa: E402

STORIES: dict[str, Callable[[str], None]] = {}
outside = psycopg.connect(os.environ["ORDERS_DSN"], autocommit=True)


def story(function: Callable[[str], None]) -> Callable[[str], None]:
    STORIES[function.__name__] = function
    return function


def seen(prefix: str) -> list[str]:
    """The jobs of a story that everybody sees."""
    rows = outside.execute("select task from bridge.job where task like %s order by seq", (f"{prefix}.%",)).fetchall()
    return [row[0].removeprefix(f"{prefix}.") for row in rows]


def raises(kind: type[Exception], words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)


def broken(block: Callable[[], None]) -> None:
    raises(ZeroDivisionError, "", block)


@story
def a_call_in_an_atomic_block_commits_and_rolls_back_with_it(me: str) -> None:
    with transaction.atomic():
        app.send_task(f"{me}.kept")
        bridge.enqueue(f"{me}.ours")
        Order.objects.create(name=me)
        assert seen(me) == []
    assert seen(me) == ["kept", "ours"]

    def block() -> None:
        with transaction.atomic():
            app.send_task(f"{me}.lost")
            raise ZeroDivisionError

    broken(block)
    assert seen(me) == ["kept", "ours"]


@story
def a_call_in_autocommit_mode_commits_at_once(me: str) -> None:
    app.send_task(f"{me}.one")
    assert seen(me) == ["one"]
    connection.connection.close()  # broken unnoticed
    bridge.enqueue(f"{me}.two")
    assert seen(me) == ["one", "two"]


@story
def a_savepoint_takes_what_is_inside_of_it(me: str) -> None:
    def inner(name: str) -> None:
        with transaction.atomic():
            app.send_task(f"{me}.{name}")
            raise ZeroDivisionError

    def unsaved() -> None:
        with transaction.atomic():
            app.send_task(f"{me}.lost.with.all")
            with transaction.atomic(savepoint=False):
                raise ZeroDivisionError

    with transaction.atomic():
        app.send_task(f"{me}.before")
        with transaction.atomic():
            app.send_task(f"{me}.inside")
        broken(lambda: inner("lost"))
        app.send_task(f"{me}.after")
        sid = transaction.savepoint()
        app.send_task(f"{me}.lost.too")
        transaction.savepoint_rollback(sid)
    broken(unsaved)
    assert seen(me) == ["before", "inside", "after"]


@story
def a_transaction_without_autocommit_is_joined(me: str) -> None:
    transaction.set_autocommit(False)
    try:
        app.send_task(f"{me}.kept")
        transaction.commit()
        app.send_task(f"{me}.lost")
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    assert seen(me) == ["kept"]


@story
def many_calls_are_sent_in_one_statement(me: str) -> None:
    sent: list[str] = []

    def note(execute: Any, statement: str, *others: Any) -> Any:
        sent.append(statement)
        return execute(statement, *others)

    with connection.execute_wrapper(note), transaction.atomic():
        for _ in range(300):
            app.send_task(f"{me}.many")
    assert len([statement for statement in sent if "bridge." in statement]) == 1, sent
    assert len(seen(me)) == 300


@story
def an_error_of_a_waiting_job_comes_from_the_commit_and_nothing_is_left(me: str) -> None:
    def block() -> None:
        with transaction.atomic():
            Order.objects.create(name=me)
            app.send_task(f"{me}.good")
            bridge.enqueue(f"{me}.bad", priority=11)

    raises(InvalidArgumentError, f"task {me}.bad: priority is 11: give 0 to 9", block)
    assert (seen(me), Order.objects.filter(name=me).count()) == ([], 0)
    with transaction.atomic():  # the connection is fit for use
        app.send_task(f"{me}.next")
    assert seen(me) == ["next"]


@story
def the_block_sees_its_own_jobs(me: str) -> None:
    with transaction.atomic():
        identity = bridge.enqueue(f"{me}.mine", [1], {"deep": {"er": 1}})
        with connection.cursor() as cursor:
            cursor.execute("select count(*) from bridge.jobs where id = %s", [identity])
            assert cursor.fetchone() == (1,)
        assert bridge.get(identity).kwargs == {"deep": {"er": 1}}
        assert bridge.get(identity, connection=connection).task == f"{me}.mine"
        first = bridge.enqueue(f"{me}.keyed", unique_key=me)
        assert bridge.enqueue(f"{me}.keyed", unique_key=me) == first
    with transaction.atomic():
        raises(ConflictError, "unique_key", lambda: bridge.enqueue(f"{me}.keyed", unique_key=me, on_conflict="raise"))
        transaction.set_rollback(True)


@story
def waiting_inside_of_the_block_says_why_it_cannot_end(me: str) -> None:
    with transaction.atomic():
        result = app.send_task(f"{me}.a")
        raises(UncommittedError, "was made in a transaction that has not committed", lambda: result.get(timeout=60))
        raises(UncommittedError, "commit, then wait", lambda: bridge.wait(result.id, timeout=60))


@story
def a_block_that_has_failed_takes_no_more_jobs_with_it(me: str) -> None:
    with transaction.atomic():
        transaction.set_rollback(True)
        app.send_task(f"{me}.report")
    assert seen(me) == ["report"]


@story
def a_coroutine_commits_by_itself(me: str) -> None:
    async def call() -> None:
        app.send_task(f"{me}.from.a.coroutine")

    asyncio.run(call())
    assert seen(me) == ["from.a.coroutine"]


@story
def a_connection_can_be_named_and_one_of_another_database_is_refused(me: str) -> None:
    with transaction.atomic(), bridge.using(connections["default"]):
        app.send_task(f"{me}.named")
        with bridge.using(None):
            app.send_task(f"{me}.by.itself")
        assert seen(me) == ["by.itself"]
    assert seen(me) == ["by.itself", "named"]
    raises(InvalidArgumentError, "database 'other' of Django is SQLite", lambda: bridge.enqueue(f"{me}.x", connection=connections["other"]))


@story
def settings_come_from_django_and_the_environment_wins(me: str) -> None:
    from bridge import settings

    assert settings.load().timeout == 20.0, me
    os.environ["BRIDGE_TIMEOUT"] = "7"
    try:
        assert settings.load().timeout == 7.0
        assert str(connection.settings_dict["NAME"]) in settings.load().database_url
    finally:
        del os.environ["BRIDGE_TIMEOUT"]


def main() -> None:
    """Tell them all."""
    told: dict[str, str | None] = {}
    for name, tell in STORIES.items():
        try:
            tell(name)
            told[name] = None
        except Exception:  # noqa: BLE001 - it is what is printed
            told[name] = traceback.format_exc()
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
