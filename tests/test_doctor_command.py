"""`bridge doctor` as a user types it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fix_doctor import NOWHERE, Doctor, command, execute, rows
from fix_servers import wait_for_row
from psycopg import conninfo

from bridge.doctor import CHECKS, Grade, examine
from bridge.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_servers import StartDrainer, StartWorker


def test_everything_is_green_and_the_exit_code_0_when_all_runs(
    dsn: str, redis_url: str, drainer: StartDrainer, worker: StartWorker
) -> None:
    drainer()
    worker(pool="solo", concurrency=1)
    wait_for_row(dsn, "select 1 from bridge.workers where status = 'alive'")
    Doctor(dsn, redis_url).wait("tick", Grade.OK)
    done = command("--json", BRIDGE_DATABASE_URL=dsn, BRIDGE_BROKER_URL=redis_url)
    assert {name: row["status"] for name, row in rows(done).items()} == dict.fromkeys(CHECKS, "ok")
    assert done.returncode == 0
    shown = command(BRIDGE_DATABASE_URL=dsn, BRIDGE_BROKER_URL=redis_url)
    assert shown.returncode == 0
    assert "drainer ticked" in shown.stdout


def test_nothing_reachable_is_rows_and_the_exit_code_1_never_a_traceback() -> None:
    away = {"BRIDGE_DATABASE_URL": "postgresql://me@no.such.host.invalid/x", "BRIDGE_BROKER_URL": NOWHERE}
    done = command("--json", "--timeout", "2", **away)
    assert done.returncode == 1
    assert list(rows(done)) == list(CHECKS)
    assert done.stderr == ""
    shown = command("--timeout", "2", **away)
    assert shown.returncode == 1
    assert "BRIDGE_DATABASE_URL" in shown.stdout
    assert "Traceback" not in shown.stdout + shown.stderr


def test_a_misspelt_setting_is_a_red_row_of_its_own() -> None:
    done = command("--json", BRIDGE_BACTH="1")
    assert done.returncode == 1
    found = rows(done)
    assert "BRIDGE_BACTH" in found["settings"]["found"]
    assert found["tick"]["status"] == "skipped"


def test_only_the_checks_asked_for_and_what_they_need_are_made(dsn: str) -> None:
    done = command("--json", "--check", "days", BRIDGE_DATABASE_URL=dsn, BRIDGE_BROKER_URL=NOWHERE)
    assert list(rows(done)) == ["database", "schema", "days"]
    assert done.returncode == 0


def test_a_limit_is_taken_from_the_command_line(dsn: str) -> None:
    execute(dsn, "select bridge.enqueue('tasks.unknown')")
    calm = command("--check", "queued", BRIDGE_DATABASE_URL=dsn)
    assert calm.returncode == 0
    strict = command("--check", "queued", "--limit", "queued_late=0", BRIDGE_DATABASE_URL=dsn)
    assert strict.returncode == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [("tick_lte=3", "did you mean tick_late?"), ("tick_late=soon", "'soon'"), ("tick_late=-1", "'-1'"), ("tick_late", "''")],
)
def test_a_limit_that_cannot_be_is_wrong_use(given: str, words: str) -> None:
    done = command("--limit", given)
    assert done.returncode == 2
    assert words in done.stderr


def test_help_shows_examples_and_limits_their_meaning() -> None:
    assert "bridge doctor --check tick" in command("--help").stdout
    assert "seconds since the last tick" in command("--limits").stdout
    assert '"tick_late":15' in command("--limits", "--json").stdout


@pytest.fixture
def visitor_dsn(dsn: str) -> Iterator[str]:
    """The database as a role sees it that may do nothing in it."""
    role = f"visitor_{execute(dsn, 'select current_database()')[0][0]}"
    execute(dsn, f"create role {role} login")
    yield conninfo.make_conninfo(dsn, user=role)
    execute(dsn, f"drop role {role}")


def test_a_role_without_rights_gets_rows_that_say_so(dsn: str, visitor_dsn: str) -> None:
    found = {one.name: one for one in examine(Settings(database_url=visitor_dsn, broker_url=NOWHERE), timeout=2.0)}
    assert found["database"].status is Grade.OK
    role = conninfo.conninfo_to_dict(visitor_dsn)["user"]
    assert f"grant bridge_worker to {role}" in found["schema"].remedy
    execute(dsn, f"grant bridge_viewer to {role}")
    allowed = {one.name: one for one in examine(Settings(database_url=visitor_dsn, broker_url=NOWHERE), timeout=2.0)}
    assert allowed["drainers"].status is Grade.ERROR
    assert allowed["snapshots"].status is Grade.SKIPPED
