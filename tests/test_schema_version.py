"""Each process compares its release with the schema's before it does anything, and says in words what to do."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_doctor import Doctor
from fix_sql import Session

import bridge
from bridge import schema
from bridge.doctor import Grade
from bridge.errors import SchemaError, ServerError

if TYPE_CHECKING:
    from fix_servers import Launcher

VERSION = bridge.__version__


def set_version(dsn: str, version: str, serves_from: str | None = None) -> None:
    """Make the schema say that it is of another release, which serves processes from its own on, or from an older one."""
    for name, said in (("version", version), ("serves_from", serves_from or version)):
        Session(dsn).do(f"create or replace function bridge.{name}() returns text language sql immutable as $$ select '{said}' $$")


def test_a_schema_that_fits_passes(dsn: str) -> None:
    schema.check(dsn)
    assert schema.installed_version(dsn) == VERSION


def test_a_missing_schema_is_refused(empty_dsn: str) -> None:
    assert schema.installed_version(empty_dsn) is None
    with pytest.raises(SchemaError, match=r'^no schema bridge in .*: run "bridge install"$'):
        schema.check(empty_dsn)


def test_an_older_schema_is_refused(dsn: str) -> None:
    set_version(dsn, "0.0.9")
    with pytest.raises(SchemaError) as caught:
        schema.check(dsn)
    assert str(caught.value) == f'schema is at 0.0.9, this process needs {VERSION}: run "bridge install" (safe to repeat)'


def test_a_newer_schema_is_refused_when_it_does_not_serve_this_process(dsn: str) -> None:
    set_version(dsn, "99.10.0", serves_from="99.9.0")
    with pytest.raises(SchemaError) as caught:
        schema.check(dsn)
    words = f"schema is at 99.10.0, which serves processes from 99.9.0 on, this process is {VERSION}: upgrade this process"
    assert str(caught.value) == words


def test_a_newer_schema_that_serves_this_process_passes(dsn: str) -> None:
    set_version(dsn, "99.10.0", serves_from=VERSION)
    assert schema.check(dsn) == "99.10.0"
    found = Doctor(dsn).look("schema")
    assert (found.status, found.found) == (Grade.OK, f"bridge 99.10.0, which serves this process of {VERSION}")


def test_a_schema_that_does_not_say_whom_it_serves_serves_its_own_release(dsn: str) -> None:
    Session(dsn).do("drop function bridge.serves_from()")
    assert schema.check(dsn) == VERSION


def test_a_role_without_rights_on_the_schema_is_told_which_to_ask_for(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("drop role if exists bridge_test_stranger")
        owner.execute("create role bridge_test_stranger login")
        try:
            with pytest.raises(SchemaError, match="role bridge_test_stranger may not use schema bridge: grant it bridge_producer"):
                schema.check(psycopg.conninfo.make_conninfo(dsn, user="bridge_test_stranger"))
        finally:
            owner.execute("drop role bridge_test_stranger")


def test_versions_are_compared_by_their_numbers(dsn: str) -> None:
    set_version(dsn, f"{VERSION.rpartition('.')[0]}.10")
    with pytest.raises(SchemaError, match="upgrade this process"):
        schema.check(dsn)


def test_install_does_not_write_over_a_newer_schema(dsn: str) -> None:
    set_version(dsn, "99.0.0")
    with pytest.raises(SchemaError, match=f"schema is at 99.0.0, these files are {VERSION}: install with the newer release"):
        schema.install(dsn)
    assert schema.installed_version(dsn) == "99.0.0"


def test_install_brings_an_older_schema_up(dsn: str) -> None:
    set_version(dsn, "0.0.9")
    schema.install(dsn)
    assert schema.installed_version(dsn) == VERSION


def test_a_server_that_cannot_be_reached_is_named_without_its_password() -> None:
    with pytest.raises(ServerError) as caught:
        schema.check("postgresql://me:secret@no-such-host.invalid/db", timeout=2)
    assert "no-such-host.invalid" in str(caught.value)
    assert "secret" not in str(caught.value)


COMMANDS = {
    "drain": [sys.executable, "-m", "bridge", "drain"],
    "drain --once": [sys.executable, "-m", "bridge", "drain", "--once"],
    "worker": [sys.executable, "-m", "celery", "-A", "apps.kinds", "worker", "--pool=solo"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("state", ["missing", "older", "newer"])
def test_no_process_starts_on_a_schema_that_does_not_fit(
    launcher: Launcher, dsn: str, empty_dsn: str, redis_url: str, command: str, state: str
) -> None:
    words = {"missing": "no schema bridge in", "older": "schema is at 0.0.9", "newer": "schema is at 99.0.0"}
    if state != "missing":
        set_version(dsn, {"older": "0.0.9", "newer": "99.0.0"}[state])
    env = launcher.environment({}, dsn=empty_dsn if state == "missing" else dsn, broker_url=redis_url)
    done = subprocess.run(COMMANDS[command], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert words[state] in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
