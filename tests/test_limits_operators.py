"""Limits from Python and the command line, and two operators at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import fix_client
import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session

import bridge
from bridge.errors import InvalidArgumentError

if TYPE_CHECKING:
    from fix_calls import MakeApp

pytestmark = pytest.mark.usefixtures("ours")
command, answer = partial(fix_client.command, "limits"), partial(fix_client.answer, "limits")
WAITS = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid = %s"


def test_limits_are_set_read_and_removed_from_python(db: Session) -> None:
    assert bridge.set_limit("tenants", key="args.0", concurrency=1) == "created"
    assert bridge.set_limit("tenants", key="args.0", concurrency=1) == "unchanged"
    assert bridge.set_limit("mail", task="mail.*", rate=600, per=60, burst=20) == "created"
    for tenant in (1, 1, 2):
        bridge.enqueue("a.task", [tenant])
    assert len(db.claim()) == 2
    mail, tenants = bridge.limits()
    assert (mail.name, mail.task, mail.rate, mail.per.total_seconds(), mail.burst) == ("mail", "mail.*", 600, 60.0, 20)
    assert (tenants.keys, tenants.in_use, tenants.waiting) == (2, 2, 1)
    with db.connection.transaction(force_rollback=True):
        assert bridge.remove_limit("mail", connection=db.connection)
    assert bridge.remove_limit("mail")
    assert not bridge.remove_limit("mail")
    with pytest.raises(InvalidArgumentError, match="concurrency is -1: give 0"):
        bridge.set_limit("bad", concurrency=-1)
    with pytest.raises(InvalidArgumentError, match="serial_key has 0 characters"):
        bridge.enqueue("a.task", serial_key="")


def test_limits_are_set_read_and_removed_by_commands(db: Session) -> None:
    words = ("set", "tenants", "--key", "args.0", "--concurrency", 1)
    assert answer(*words, "--dry-run") == {"name": "tenants", "outcome": "created"}
    assert answer("list") == []
    assert answer(*words)["outcome"] == "created"
    for tenant in (1, 1, 2):
        db.enqueue(args=[tenant])
    db.enqueue(serial_key="one")
    db.claim()
    [row] = answer("list")
    assert (row["name"], row["concurrency"], row["per"], row["in_use"], row["waiting"]) == ("tenants", 1, 1.0, 3, 1)
    assert [(row["name"], row["key"], row["in_use"], row["waiting"]) for row in answer("keys")] == [
        ("tenants", "1", 1, 1), ("tenants", "2", 1, 0), ("tenants", None, 1, 0), (None, "one", 1, 0),
    ]  # fmt: skip
    assert [row["key"] for row in answer("keys", "tenants", "--limit", 1)] == ["1"]
    assert "tenants" in command("list").stdout
    assert command("remove", "tenants", "--dry-run").stdout == "dry run, nothing is changed: tenants removed waiting=1\n"
    assert answer("remove", "tenants")["outcome"] == "removed"
    assert command("remove", "tenants").exit_code == 1
    refused = command("set", "bad", "--rate", 0)
    assert (refused.exit_code, "rate is 0: give 1 to 1000000" in refused.stderr) == (1, True)


def test_a_celery_task_names_the_serial_key_of_its_calls(make_caller: MakeApp, db: Session) -> None:
    app = make_caller()

    @app.task(name="book", bridge={"serial_key": "account-{0}"})
    def book(account: int, amount: int) -> None:
        """What the test does not run."""

    first, second = book.delay(7, 1), book.delay(7, 2)
    other = book.apply_async((7, 3), bridge={"serial_key": "transfers"})
    assert {str(claim.id) for claim in db.claim()} == {first.id, other.id}
    assert db.status(second.id) == "queued"


def test_who_sets_a_limit_while_another_removes_it_waits_and_then_has_his_way(db: Session, other: Session) -> None:
    bridge.set_limit("l", concurrency=0)
    db.enqueue()
    with ThreadPoolExecutor(1) as pool:
        with db.connection.transaction():
            db.do("select bridge.remove_limit('l')")
            second = pool.submit(other.one, "select bridge.set_limit('l', concurrency => 0)")
            wait_until(lambda: Session(db.dsn).one(WAITS, other.connection.info.backend_pid), 20, "the second waits")
        assert second.result(20) == "created"
    assert db.claim() == []
    assert db.one("select count(*) from bridge.limits") == 1


def test_two_operators_who_wait_for_each_other_end_in_one_of_the_two_states(db: Session, other: Session) -> None:
    job = db.enqueue()
    for session in (db, other):
        session.do("begin")
    db.do("select bridge.set_limit('l', concurrency => 0)")
    other.do("select bridge.cancel(%s)", job)
    ends = []
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(in_one, other, "select bridge.set_limit('l', concurrency => 5)")
        wait_until(lambda: Session(db.dsn).one(WAITS, other.connection.info.backend_pid), 20, "the second waits")
        ends = [in_one(db, f"select bridge.cancel('{job}')"), second.result(20)]
    assert sorted(ends) == ["committed", "refused"]
    assert db.rows("select concurrency from bridge.limits") == [(0 if ends[0] == "committed" else 5,)]
    assert db.status(job) == "cancelled"


def in_one(session: Session, call: str) -> str:
    """Make a call in the session's open transaction, and end that."""
    try:
        session.do(call)
    except psycopg.errors.DeadlockDetected:
        session.do("rollback")
        return "refused"
    session.do("commit")
    return "committed"
