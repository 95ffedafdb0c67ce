"""bridge install --check: what an install would change, told without changing or holding up anything; and installs that must wait."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_install import dump
from fix_servers import wait_until
from fix_sql import Session

import bridge
from bridge import schema
from bridge.errors import LockedError, SchemaError

if TYPE_CHECKING:
    from fix_install import Traffic
    from fix_servers import Launcher


def check(launcher: Launcher, dsn: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = launcher.environment({}, dsn=dsn)
    command = [sys.executable, "-m", "bridge", "install", "--check", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def told(dsn: str) -> set[tuple[str, str, str]]:
    return {(change.action, change.kind, change.name) for change in schema.preview(dsn)}


def test_with_the_schema_of_this_release_there_is_nothing_to_do(launcher: Launcher, dsn: str) -> None:
    before = dump(dsn)
    done = check(launcher, dsn)
    assert (done.returncode, done.stdout) == (0, "nothing to do\n")
    assert dump(dsn) == before


def test_an_upgrade_is_told_and_nothing_is_changed(launcher: Launcher, old_dsn: str) -> None:
    before = dump(old_dsn)
    done = check(launcher, old_dsn, "--json")
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert {"action": "change", "kind": "version", "name": "bridge", "before": "0.1.0", "after": bridge.__version__} in said["objects"]
    assert {"add", "change"} >= {one["action"] for one in said["objects"]} - {"drop"}
    assert said["changes"] == len(said["objects"])
    assert dump(old_dsn) == before
    schema.install(old_dsn)
    assert schema.preview(old_dsn) == []


def test_a_database_without_the_schema_gets_it_whole(launcher: Launcher, empty_dsn: str) -> None:
    done = check(launcher, empty_dsn)
    assert done.returncode == 1
    assert done.stdout.splitlines()[1].split("\t") == ["add", "version", "bridge", "", bridge.__version__]
    assert schema.installed_version(empty_dsn) is None


DRIFTS = {
    "alter table bridge.queue add column mine text": ("keep", "column", "bridge.queue.mine"),
    "create index mine on bridge.job (task)": ("keep", "index", "bridge.mine"),
    "grant select on bridge.jobs to public": ("drop", "grant", "SELECT on bridge.jobs to public"),
    "grant execute on function bridge.pause to bridge_viewer": (
        "drop",
        "grant",
        "EXECUTE on bridge.pause(text,text,boolean,boolean,text) to bridge_viewer",
    ),
    "delete from bridge.setting where name = 'window'": ("add", "setting", "window"),
    "grant select on bridge.jobs to pg_monitor": ("keep", "grant", "SELECT on bridge.jobs to pg_monitor"),
    "drop index bridge.inflight_stops": ("differs", "index", "bridge.inflight_stops"),
    "alter function bridge.new_id() reset all": ("change", "function", "bridge.new_id()"),
    "alter table bridge.inflight reset (fillfactor)": ("differs", "table", "bridge.inflight"),
    "revoke execute on function bridge.version() from bridge_worker": ("add", "grant", "EXECUTE on bridge.version() to bridge_worker"),
    "alter view bridge.pauses set (security_barrier)": ("differs", "view", "bridge.pauses"),
    "comment on view bridge.batches is null": ("change", "view", "bridge.batches"),
}


def test_what_differs_is_named_with_what_an_install_does_about_it(db: Session) -> None:
    for statement in DRIFTS:
        db.do(statement)
    expected = set(DRIFTS.values())
    assert told(db.dsn) == expected
    schema.install(db.dsn)
    assert told(db.dsn) == {change for change in expected if change[0] in schema.LEFT}


def test_rules_and_tenants_are_left_as_they_are(db: Session) -> None:
    db.do("select bridge.enable_tenants(), bridge.allow_task('bridge_producer', 'orders.*')")
    kept = {change[:2] for change in told(db.dsn)}
    assert kept == {("keep", "index"), ("keep", "policy"), ("keep", "grant")}
    schema.install(db.dsn)
    assert {change[:2] for change in told(db.dsn)} == kept
    assert db.one("select bridge.tenants_are_on() and bridge.tasks_are_ruled()")


def test_an_older_package_refuses_to_look_at_a_newer_schema(launcher: Launcher, db: Session) -> None:
    db.do("create or replace function bridge.version() returns text language sql immutable return '99.0.0'")
    with pytest.raises(
        SchemaError, match=r"schema is at 99\.0\.0, these files are .*: install with the newer release; going back is not supp"
    ):
        schema.preview(db.dsn)
    assert check(launcher, db.dsn).returncode == 1


def test_a_look_waits_for_nobody_and_nobody_waits_for_it(traffic: Traffic, dsn: str) -> None:
    with psycopg.connect(dsn) as reader:
        reader.execute("select * from bridge.jobs, bridge.job_queue_stats, bridge.workers limit 1")
        with Session(dsn).connection as writer, writer.transaction():
            writer.execute("lock table bridge.schedule in share row exclusive mode")
            wait_until(lambda: traffic.lives > 10, 30)
            assert schema.preview(dsn) == []
            before = traffic.lives
            wait_until(lambda: traffic.lives > before + 10, 30)


@pytest.fixture
def changed_view(db: Session) -> str:
    """A view that an install has to replace."""
    db.do("comment on view bridge.workers is null")
    return "bridge.workers"


def test_an_install_gives_way_to_a_long_transaction_and_comes_back(traffic: Traffic, db: Session, changed_view: str) -> None:
    words: list[str] = []
    reader = psycopg.connect(db.dsn, application_name="a report")
    reader.execute(f"select count(*) from {changed_view}")

    def in_the_way(said: str) -> None:
        words.append(said)
        before = traffic.lives
        wait_until(lambda: traffic.lives > before + 5, 30)
        if len(words) == 2:
            reader.close()

    said = schema.install(db.dsn, told=in_the_way)
    assert "is installed" in said
    assert len(words) == 2
    assert all("(a report, " in said for said in words)


def test_an_install_that_finds_no_gap_changes_nothing_and_names_who_is_in_the_way(db: Session, changed_view: str) -> None:
    with psycopg.connect(db.dsn, application_name="a report") as reader:
        reader.execute(f"select count(*) from {changed_view}")
        with pytest.raises(LockedError) as caught:
            schema.install(db.dsn, patience=0.1)
        assert f"the transaction of pid {reader.info.backend_pid} (a report, " in str(caught.value)
        assert "idle in transaction" in str(caught.value)
    assert db.one("select obj_description('bridge.workers'::regclass)") is None
    schema.install(db.dsn)
    assert db.one("select obj_description('bridge.workers'::regclass)") is not None


def test_another_signature_of_a_function_of_ours_is_told_and_goes(dsn: str, db: Session) -> None:
    before = dump(dsn)
    db.do("create function bridge.enqueue(task text, nonsense integer default 1) returns integer language sql return 1")
    db.do("create function bridge.my_own(a integer) returns integer language sql return a")
    db.do("alter function bridge.my_own(integer) set search_path = pg_catalog, pg_temp")
    assert {one for one in told(dsn) if one[1] == "function"} == {
        ("drop", "function", "bridge.enqueue(text,integer)"), ("keep", "function", "bridge.my_own(integer)")
    }  # fmt: skip
    schema.install(dsn)
    db.enqueue("a.task")
    db.do("drop function bridge.my_own(integer)")
    assert dump(dsn) == before
