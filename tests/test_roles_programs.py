"""Programs that log in with no more than their role: drainer and worker, application, operator, viewer; and no secret in sight."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import redis
from fix_receiver import SECRET
from fix_servers import ROOT, wait_for_row, wait_for_value, wait_until
from psycopg import conninfo

from bridge.errors import ServerError
from bridge.queries.connection import connect
from bridge.queries.runs import Finish
from bridge.settings import load
from bridge.worker.board import Board
from bridge.worker.channel import RunChannel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_receiver import Receiver
    from fix_servers import StartDrainer, StartWorker
    from fix_sql import Session

HELD, KEPT = "held-PLANTED-in-the-environment", "kept-PLANTED-in-the-vault"
VAULT = f"""
    create schema app;
    create table app.kept (name text primary key, value text not null);
    insert into app.kept values ('crm', '{KEPT}');
    create function app.read_secret(name text) returns text language sql stable as $$ select value from app.kept k where k.name = $1 $$;
    update bridge.setting set value = '"app.read_secret"' where name = 'secret_function';
    update bridge.setting set value = '["127.0.0.1"]' where name = 'webhook_hosts'
"""
PRODUCE = """
from celery import chain, chord
import bridge
from apps.guarded import add, flaky, talk, total
results = [chord([add.s(1, 1), add.s(2, 2)])(total.s()), flaky.delay(), chain(add.s(1, 2), add.s(3))(), talk.delay()]
print([result.get(timeout=60) for result in results])
print(bridge.enqueue("guarded.add", [1, 2]), list(bridge.enqueue_many([{"task": "guarded.add", "args": [3, 4]}])))
"""


@pytest.fixture
def logins(db: Session) -> Iterator[dict[str, str]]:
    """A DSN for each role, of a login that has been granted it and nothing else."""
    database = db.one("select current_database()")
    names = {role: f"{role}_{database}" for role in ("producer", "worker", "operator", "viewer")}
    for role, name in names.items():
        db.do(f"create role {name} login in role bridge_{role}")
    yield {role: conninfo.make_conninfo(db.dsn, user=name) for role, name in names.items()}
    for name in names.values():
        db.do(f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{name}'")
        db.do(f"drop role {name}")


def program(dsn: str, broker_url: str, *words: str) -> str:
    """What a program prints that logs in by this DSN; it must end well."""
    environment = {
        **os.environ,
        "BRIDGE_DATABASE_URL": dsn,
        "BRIDGE_BROKER_URL": broker_url,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    done = subprocess.run([sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_each_program_does_its_work_with_its_role_alone_and_secrets_are_only_where_they_are_used(
    db: Session, logins: dict[str, str], redis_url: str, drainer: StartDrainer, worker: StartWorker, make_receiver: Callable[..., Receiver]
) -> None:
    db.do(VAULT)
    receiver = make_receiver()
    held = {"BRIDGE_SECRET_SHOP": HELD, "BRIDGE_WEBHOOK_SECRET": SECRET}
    processes = [worker("apps.guarded", dsn=logins["worker"], env=held, ready=False), drainer(dsn=logins["worker"], ready=False)]
    processes[0].wait_ready(lambda: " ready." in processes[0].log_text(), 60.0)
    wait_for_row(db.dsn, "select 1 from bridge.drainers where status = 'alive'")

    assert program(logins["producer"], redis_url, "-c", PRODUCE).startswith("[6, 1, 6, {'at': 1}]")

    def operate(*words: str) -> Any:
        return program(logins["operator"], redis_url, "-m", "bridge", *words)

    references = json.dumps(
        {"X-Team": "ops", "Authorization": {"secret": "vault:crm", "before": "Bearer "}, "X-Api-Key": {"secret": "env:shop"}}
    )
    operate("callbacks", "set-webhook", "all", receiver.url(), "--task", "guarded.sync", "--headers", references)
    for name, place in (("env", "env:shop"), ("vault", "vault:crm")):
        operate("schedules", "add", name, "@yearly", "guarded.sync", "--kwargs", json.dumps({"api_key": {"secret": place}}))
        operate("schedules", "run", name)
    operate("queues", "pause", "other")
    operate("queues", "resume", "other")
    operate("limits", "set", "one", "--task", "guarded.talk", "--concurrency", "1")
    operate("roles", "list")
    wait_for_value(db.dsn, "select count(*) from bridge.jobs where task = 'guarded.sync' and status = 'succeeded'", value=2)
    wait_until(lambda: len(receiver.messages) == 2, 30, "two webhooks")
    ended = db.rows("select result #>> '{}' from bridge.jobs where task = 'guarded.sync'")
    assert {row[0] for row in ended} == {hashlib.sha256(secret.encode()).hexdigest() for secret in (HELD, KEPT)}
    for message in receiver.messages:
        assert (message.headers["authorization"], message.headers["x-api-key"], message.headers["x-team"]) == (
            f"Bearer {KEPT}",
            HELD,
            "ops",
        )
        assert message.is_signed_with(SECRET)

    listed = json.loads(program(logins["viewer"], redis_url, "-m", "bridge", "jobs", "list", "--limit", "1000", "--json"))
    assert {job["status"] for job in listed} == {"succeeded"}
    checks = {
        check["name"]: check for check in json.loads(program(logins["viewer"], redis_url, "-m", "bridge", "doctor", "--json"))["checks"]
    }
    assert checks["drainers"]["status"] == checks["workers"]["status"] == "ok"
    denied = [check for check in checks.values() if "permission denied" in json.dumps(check)]
    assert denied == []
    wait_until(
        lambda: db.one("select count(*) from bridge.jobs where status not in ('succeeded', 'cancelled')") == 0, 60, "every job ended"
    )
    logs = "".join(process.log_text() for process in processes)
    assert "permission denied" not in logs
    assert_nowhere(db, redis_url, [process.pid for process in processes], logs)


def assert_nowhere(db: Session, redis_url: str, pids: list[int | None], logs: str) -> None:
    """No planted secret in a row, a message, a log, what a server shows of its sessions, a list of processes or a command's help."""
    tables = [
        row[0]
        for row in db.rows(
            "select c.oid::regclass::text from pg_class c where c.relnamespace = 'bridge'::regnamespace and c.relkind in ('r', 'p')"
        )
    ]
    texts = {f"table {table}": "\n".join(row[0] for row in db.rows(f"select t::text from {table} t")) for table in tables}
    broker = redis.Redis.from_url(redis_url)
    texts["broker"] = "\n".join(str([key, broker.dump(key)]) for key in broker.keys("*"))
    texts["logs"] = logs
    texts["sessions"] = "\n".join(row[0] for row in db.rows("select query from pg_stat_activity where pid <> pg_backend_pid()"))
    texts["processes"] = "\n".join(command_line(pid) for pid in pids if pid is not None)
    texts["help"] = subprocess.run(
        [sys.executable, "-m", "bridge", "callbacks", "set-webhook", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "bridge.inflight" in str(sorted(texts))
    assert texts["processes"]
    assert {place for place, text in texts.items() if "PLANTED" in text or SECRET in text} == set()


def command_line(pid: int) -> str:
    """What a list of processes shows of one and its children."""
    return subprocess.run(["ps", "-o", "args=", "-p", str(pid), "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout


def test_a_login_that_has_no_connection_left_keeps_the_end_of_its_run_until_it_has_one(
    db: Session, logins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = db.enqueue()
    claim, run = db.run()
    monkeypatch.setenv("BRIDGE_DATABASE_URL", logins["worker"])
    channel, name = RunChannel(load(), Board()), conninfo.conninfo_to_dict(logins["worker"])["user"]
    channel.ask(lambda connection: connection.execute("select 1"))
    db.do(f"alter role {name} connection limit 1")
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(channel.finish, Finish(claim.seq, UUID(str(run)), str(claim.token), claim.id, "succeeded", "1"))
        with pytest.raises(ServerError, match=f'too many connections for role "{name}"'):
            connect(logins["worker"], name="test")
        assert db.status(identity) == "running"
        db.do(f"alter role {name} connection limit -1")
        ended.result(60)
    channel.settle()
    assert db.rows("select status, attempts, losses from bridge.jobs") == [("succeeded", 1, 0)]
