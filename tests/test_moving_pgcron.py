"""Entries of pg_cron become schedules that call the same function with the same constants as the same role, or say why not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from fix_sql import Session

from bridge.cli.schedules import schedules_command

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.pg_cron

FUNCTIONS = """
    create schema moved;
    create function moved.reset(season integer, rules jsonb default '{}', mail text default null) returns void language sql as '';
    create function moved.twice(a integer) returns void language sql as '';
    create function moved.twice(a text) returns void language sql as '';
    create function moved.tags(t text[]) returns void language sql as '';
    create procedure moved.tidy() language sql as '';
    create schema net;
    create function net.http_post(url text, body jsonb default '{}', params jsonb default '{}', headers jsonb default '{}',
      timeout_milliseconds integer default 5000) returns bigint language sql as 'select 1';
    create role bridge_test_moved login;
    grant usage on schema moved to bridge_test_moved;
"""
ENTRIES = {
    "season": ("0 0 $ * *", "SELECT moved.reset(-3, rules := '{\"a\": 1}'::jsonb, mail => 'it''s') AS done;"),
    "seconds": ("30 seconds", "select * from moved.reset(1) -- often"),
    "post": (
        "* * * * *",
        """select net.http_post(url := 'https://h.example/x', headers := '{"A": "b"}', body := '{}'::jsonb) as request_id""",
    ),
    "off": ("5 5 * * *", "select moved.reset(2)"),
    "procedure": ("0 1 * * *", "call moved.tidy()"),
    "text": ("0 2 * * *", "delete from orders where old; analyze orders"),
    "vacuum": ("0 3 * * *", "VACUUM analyze"),
    "now": ("0 4 * * *", "select moved.reset(extract(year from now())::integer)"),
    "two": ("0 5 * * *", "select moved.twice(1)"),
    "array": ("0 6 * * *", "select moved.tags('{a,b}')"),
    "cast": ("0 7 * * *", "select moved.reset('2'::bigint)"),
    "ours": ("0 8 * * *", "select bridge.cleanup()"),
}
WHY = {
    "procedure": "it calls a procedure, not a function: wrap it into a function, and schedule that with --function public.procedure: ",
    "text": "it is SQL text, not the call of one function: wrap it into a function, and schedule that with --function public.text: "
    "create function public.text() returns void language sql as $do$ delete from orders where old; analyze orders $do$",
    "vacuum": "it is SQL text, not the call of one function: it cannot run within a function: leave it to pg_cron",
    "now": "its argument 1 is an expression, not a constant: wrap it into a function",
    "two": "function moved.twice exists 2 times: name one by its signature",
    "array": "a constant of type text[] is written as text: give the schedule a JSON array",
    "cast": "a constant is cast to bigint, its function takes integer",
}


@pytest.fixture
def home(cron_dsn: str) -> Iterator[Session]:
    """The database of pg_cron with functions, and entries that call them."""
    session = Session(cron_dsn)
    try:
        session.do(FUNCTIONS)
        for name, (_, command) in ENTRIES.items():
            session.do("select cron.schedule(%s, '0 0 1 1 *', %s)", name, command)
        for name, (cron, _) in ENTRIES.items():  # some need pg_cron 1.5 or later
            session.do("update cron.job set schedule = %s where jobname = %s", cron, name)
        session.do("select cron.alter_job(jobid, active => false) from cron.job where jobname = 'off'")
        yield session
    finally:
        session.do("delete from cron.job where jobname not like 'bridge-%%'")
        session.do("drop schema if exists moved, net cascade")
        session.do("drop owned by bridge_test_moved cascade; drop role bridge_test_moved")


def run(home: Session, *words: str) -> tuple[Any, dict[str, dict[str, Any]]]:
    given = {"BRIDGE_DATABASE_URL": home.dsn}
    done = CliRunner().invoke(schedules_command, ["import", "--from-cron", "--json", *words], env=given)
    return done, {row["name"]: row for row in json.loads(done.stdout)}


def test_entries_of_pg_cron_are_carried_over_and_switched_off(home: Session) -> None:
    done, rows = run(home)
    assert done.exit_code == 1
    assert set(rows) == set(ENTRIES) - {"ours"}
    refused = {name: row["note"] for name, row in rows.items() if row["outcome"] == "not carried over"}
    assert set(refused) == set(WHY)
    assert [name for name, note in refused.items() if not note.startswith(WHY[name])] == [], refused
    columns = "name, cron, timezone, function, args, kwargs, max_attempts, missed, overlap, enabled"
    made = {row[0]: row[1:] for row in home.rows(f"select {columns} from bridge.schedule")}
    rest = (1, "skip", "queue_one")
    assert made == {
        "season": ("0 0 $ * *", "UTC", "moved.reset", [-3], {"rules": {"a": 1}, "mail": "it's"}, *rest, True),
        "seconds": ("30 seconds", "UTC", "moved.reset", [1], {}, *rest, True),
        "post": ("* * * * *", "UTC", "net.http_post", [], {"url": "https://h.example/x", "headers": {"A": "b"}, "body": {}}, *rest, True),
        "off": ("5 5 * * *", "UTC", "moved.reset", [2], {}, *rest, False),
    }
    assert "warning: each of these runs twice while it is on in pg_cron" in done.stderr
    job = home.one("select jobid from cron.job where jobname = 'season'")
    assert f"select cron.alter_job({job}, active => false);" in done.stderr
    home.do("select bridge.resume_schedule('off')")
    done, rows = run(home, "--disable")
    assert {rows[name]["outcome"] for name in made} == {"unchanged"}
    assert "warning" not in done.stderr
    active = home.rows("select jobname from cron.job where active and jobname not like 'bridge-%%' order by 1")
    assert [name for (name,) in active] == sorted({*WHY, "ours"})
    done, rows = run(home, "--disable")  # inactive by now, which is no wish to pause
    assert {rows[name]["outcome"] for name in made} == {"unchanged"}
    assert home.one("select bool_and(enabled) from bridge.schedule")


def test_an_entry_runs_as_its_own_role_or_is_not_carried_over(home: Session) -> None:
    home.do("update cron.job set username = 'bridge_test_moved' where jobname = 'season'")
    home.do("select cron.schedule('season', '1 1 1 1 *', 'select moved.reset(9)')")  # a name is one of its role's
    home.do("update cron.job set username = 'bridge_test_gone' where jobname = 'off'")
    done, rows = run(home, "--dry-run")
    assert "cannot make it so: permission denied" in rows["season (bridge_test_moved)"]["note"], done.output
    assert "it runs as role bridge_test_gone, which does not exist here" in rows["off"]["note"]
    home.do("grant bridge_operator to bridge_test_moved")
    done, rows = run(home)
    assert rows["season (bridge_test_moved)"]["outcome"] == "created", rows["season (bridge_test_moved)"]
    assert home.one("select role from bridge.schedule where name = 'season (bridge_test_moved)'") == "bridge_test_moved"
    assert home.one("select args from bridge.schedule where name like 'season (%%' and role = %s", home.connection.info.user) == [9]
    assert home.one("select role from bridge.schedule where name = 'seconds'") == home.connection.info.user
