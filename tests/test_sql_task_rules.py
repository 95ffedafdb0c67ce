"""Which tasks a role may enqueue: by every way in, whoever the caller is, from SQL, Python and the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner
from fix_sql import Session
from psycopg import conninfo

import bridge
from bridge.cli import main
from bridge.client import forget_connections
from bridge.errors import NotAllowedError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE = (
    "select bridge.enqueue_message(gen_random_uuid(), null, '{}', 'celery', 9::smallint, '[]', '{{}}', {}, {}, {},"
    " null, null, null, null, null)"
)


@pytest.fixture
def web(db: Session) -> Iterator[Session]:
    """A session of a login that may enqueue what begins with "mail."."""
    login, group = (f"{name}_{db.one('select current_database()')}" for name in ("web", "team"))
    db.do(f"create role {group}")
    db.do(f"create role {login} login in role bridge_producer, {group}")
    db.do(f"select bridge.allow_task('{group}', 'mail.*')")
    session = Session(conninfo.make_conninfo(db.dsn, user=login))
    yield session
    session.connection.close()
    db.do("delete from bridge.task_rule")
    db.do(f"drop role {login}")
    db.do(f"drop role {group}")


def refused(session: Session, statement: str) -> str:
    with pytest.raises(psycopg.Error) as refusal:
        session.rows(statement)
    assert refusal.value.sqlstate == "JB008", refusal.value
    return f"{refusal.value.diag.message_primary}: {refusal.value.diag.message_hint}"


def message(task: str, embed: str = "null", payload: str = "null", content_type: str = "null") -> str:
    return MESSAGE.format(task, embed, payload, content_type)


def test_a_role_with_rules_may_enqueue_what_they_allow_and_nothing_else_by_any_way(web: Session, db: Session) -> None:
    ways = (
        "select bridge.enqueue('{}')",
        """select bridge.enqueue_many('[{{"task": "mail.other"}}, {{"task": "{}"}}]')""",
        """select bridge.enqueue_page(array['{{"task": "{}"}}'], array[gen_random_uuid()], null, array['[]'], null, null, 0)""",
        """select bridge.enqueue_flow('[{{"ref": "a", "task": "{}"}}]')""",
        """select bridge.enqueue_buffered(format('[{{"id": "%s", "job": {{"task": "{}"}}}}]', gen_random_uuid())::json)""",
        "select bridge.create_batch(callback => '{}')",
    )
    for way in ways:
        said = refused(web, way.format("orders.pay"))
        assert "may not enqueue task orders.pay: it may enqueue mail.*; an operator allows more by bridge.allow_task" in said, way
        web.rows(way.format("mail.send"))
    assert "task orders.pay" in refused(web, message("orders.pay"))
    web.rows(message("mail.send"))
    assert set(db.rows("select distinct task from bridge.job")) == {("mail.send",), ("mail.other",)}


def test_what_follows_from_a_message_must_be_allowed_too(web: Session) -> None:
    pay = json.dumps({"task": "orders.pay", "args": [], "options": {}})
    for embed in (
        f'{{"callbacks": [{pay}]}}',
        f'{{"chain": [{{"task": "mail.send", "options": {{"link": [{pay}]}}}}]}}',
        f'{{"chord": {pay}}}',
    ):
        assert "task orders.pay" in refused(web, message("mail.send", f"'{embed}'"))
    assert "task orders.pay" in refused(web, f"select bridge.begin_chord('c', '{pay}', null, 'celery', null)")
    web.rows(message("mail.send", """'{"chain": [{"task": "mail.log", "args": [7]}]}'"""))
    said = refused(web, message("mail.send", payload="'\\x8004'", content_type="'application/x-python-serialize'"))
    assert "a body that is not JSON" in said
    assert "set task_serializer to json" in said


def test_a_role_that_is_set_is_the_caller_and_the_login_behind_it_stays_bound(web: Session, db: Session) -> None:
    assert "orders.pay" in refused(web, "select bridge.enqueue('orders.pay')")
    with web.connection.transaction(force_rollback=True):
        web.do("set local role bridge_producer")
        assert "role bridge_producer may not" in refused(web, "select bridge.enqueue('orders.pay')")
    proxy = "set local role bridge_producer"  # of a superuser, whom no rule binds: as a proxy that takes the role of its request
    with db.connection.transaction(force_rollback=True):
        db.do(proxy)
        db.rows("select bridge.enqueue('orders.pay')")
    db.do("select bridge.allow_task('bridge_producer', 'orders.get')")
    with db.connection.transaction(force_rollback=True):
        db.do(proxy)
        assert "role bridge_producer may not" in refused(db, "select bridge.enqueue('orders.pay')")
    assert "it may enqueue mail.*, orders.get;" in refused(web, "select bridge.enqueue('orders.pay')")
    web.rows("select bridge.enqueue('orders.get')")
    db.rows("select bridge.enqueue('orders.pay')")


def test_a_function_of_somebody_else_does_not_hide_the_caller(web: Session, db: Session) -> None:
    db.do("create function public.order_now() returns uuid language sql security definer as $$ select bridge.enqueue('orders.pay') $$")
    assert "orders.pay" in refused(web, "select public.order_now()")


def test_an_operator_with_rules_schedules_only_what_they_allow_and_does_not_loosen_them(db: Session) -> None:
    name = f"night_{db.one('select current_database()')}"
    db.do(f"create role {name} login in role bridge_operator")
    db.do("select bridge.schedule('old', '@daily', 'orders.pay')")
    db.do(f"select bridge.allow_task('{name}', 'mail.*')")
    with db.connection.transaction(force_rollback=True):
        db.do(f"set local role {name}")
        assert "orders.pay" in refused(db, "select bridge.schedule('new', '@daily', 'orders.pay')")
    for statement in (
        "select bridge.run_schedule('old')",
        "update bridge.schedule set cron = '@hourly' where name = 'old'",
        f"select bridge.allow_task('{name}', '*')",
        f"select bridge.disallow_task('{name}', 'mail.*')",
    ):
        with db.connection.transaction(force_rollback=True):
            db.do(f"set local role {name}")
            refused(db, statement)
    db.do(f"select bridge.disallow_task('{name}', 'mail.*')")
    db.do(f"drop role {name}")


def test_the_bridges_own_jobs_and_those_of_schedules_are_made_whoever_ends_or_ticks(db: Session) -> None:
    name = f"both_{db.one('select current_database()')}"
    db.do(f"create role {name} in role bridge_worker, bridge_operator")
    db.do("select bridge.schedule('due', 'every 1 seconds', 'orders.pay', starts_at => now() - interval '1 minute')")
    db.do("select bridge.set_webhook('all', 'https://example.org/')")
    db.do(f"select bridge.allow_task('{name}', 'mail.*')")
    claim, run = db.run() if db.enqueue() else (None, None)
    db.do(f"set role {name}")
    assert claim is not None
    assert db.finish(claim, run)
    db.tick(by="5 seconds")
    db.do("reset role")
    assert {task for (task,) in db.rows("select distinct task from bridge.job")} == {"bridge.deliver_webhook", "orders.pay"}
    db.do(f"select bridge.disallow_task('{name}', 'mail.*')")
    db.do(f"drop role {name}")


def test_nobody_but_workers_makes_jobs_of_the_bridges_own_tasks(web: Session, db: Session) -> None:
    db.do("delete from bridge.task_rule")
    forged = """select bridge.enqueue('bridge.deliver_webhook', kwargs => '{"url": "https://example.org/", "secret": "default"}')"""
    assert "tasks named bridge.… are the bridge's own" in refused(web, forged)
    assert "task bridge.join_chord" in refused(web, message("bridge.join_chord"))
    db.rows("select bridge.enqueue('bridge.join_chord', '[\"c\"]')")


def test_rules_that_cannot_be_are_refused_and_a_renamed_role_keeps_its_own(web: Session, db: Session) -> None:
    for call, code, said in (
        ("select bridge.allow_task('nobody_of_that_name', 'x')", "JB002", "role 'nobody_of_that_name' does not exist"),
        ("select bridge.allow_task('bridge_producer', 'a b')", "JB001", "pattern is 'a b'"),
        ("select bridge.allow_task('bridge_producer', null)", "JB001", "pattern is NULL"),
    ):
        with pytest.raises(psycopg.Error, match=said) as refusal:
            db.rows(call)
        assert refusal.value.sqlstate == code
    (role,) = db.rows("select role from bridge.task_rules")[0]
    db.do(f"alter role {role} rename to {role}_2")
    assert "orders.pay" in refused(web, "select bridge.enqueue('orders.pay')")
    db.do(f"alter role {role}_2 rename to {role}")


def test_without_rules_nothing_is_asked_and_the_last_rule_that_goes_sets_all_free(web: Session, db: Session) -> None:
    (role,) = db.rows("select role from bridge.task_rules")[0]
    plan = "explain (verbose, costs off) select bridge.tasks_are_ruled() where bridge.tasks_are_ruled()"
    assert "Output: true" in str(db.rows(plan))
    assert db.one("select bridge.allow_task(%s, 'mail.*')", role) == "unchanged"
    assert db.one("select bridge.disallow_task(%s, 'mail.*')", role) is True
    assert db.one("select bridge.disallow_task(%s, 'mail.*')", role) is False
    assert "One-Time Filter: false" in str(db.rows(plan)), "a constant that costs nothing"
    web.rows("select bridge.enqueue('orders.pay')")  # a session that had planned with rules


def test_rules_from_python_and_the_command_line(web: Session, db: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", web.dsn)
    forget_connections()
    with pytest.raises(NotAllowedError, match=r"may not enqueue task orders\.pay: it may enqueue mail\.\*") as refusal:
        bridge.enqueue("orders.pay")
    assert isinstance(refusal.value, PermissionError)
    with pytest.raises(NotAllowedError, match=r"jobs\[1\]: .*orders\.pay"):
        list(bridge.enqueue_many([{"task": "mail.send"}, {"task": "orders.pay"}]))
    bridge.enqueue("mail.send")
    monkeypatch.setenv("BRIDGE_DATABASE_URL", db.dsn)
    forget_connections()
    (rule,) = bridge.task_rules()
    assert (rule.pattern, rule.role_exists) == ("mail.*", True)
    assert bridge.allow_task(rule.role, "orders.*") == "created"
    assert bridge.disallow_task(rule.role, "orders.*")
    with pytest.raises(NotFoundError, match="role 'no one' does not exist"):
        bridge.allow_task("no one", "x")
    assert ("bridge_viewer", "SELECT", "table bridge.jobs") in {(right.role, right.privilege, right.object) for right in bridge.rights()}
    answers: list[Any] = []
    for words in (
        ["allow", rule.role, "pay.*", "--dry-run"], ["allow", rule.role, "pay.*"], ["tasks"], ["disallow", rule.role, "pay.*"],
        ["list"], ["rights"],
    ):  # fmt: skip
        done = CliRunner().invoke(main, ["roles", *words, "--json"])
        assert done.exit_code == 0, done.output
        answers.append(json.loads(done.stdout))
    assert [answer["outcome"] for answer in (answers[0], answers[1], answers[3])] == ["created", "created", "removed"]
    assert [row["pattern"] for row in answers[2]] == ["mail.*", "pay.*"]
    assert conninfo.conninfo_to_dict(web.dsn)["user"] in {
        row["member"] for row in answers[4] if row["role"] == "bridge_producer" and row["login"]
    }
    assert {row["role"] for row in answers[5]} == {"bridge_producer", "bridge_worker", "bridge_operator", "bridge_viewer"}
    table = CliRunner().invoke(main, ["roles", "rights", "--role", "producer"])
    assert "execute\troutine bridge.version()\tyes" in table.stdout
    gone = CliRunner().invoke(main, ["roles", "disallow", rule.role, "pay.*"])
    assert gone.exit_code == 1
    assert "has no rule 'pay.*'" in gone.output
    forget_connections()
