"""Lines of a crontab, read in this process and made schedules: names, places of errors, and which psql calls a function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from bridge.cli.schedules import schedules_command
from bridge.moving import crontab
from bridge.queries.moving import Functions, here

if TYPE_CHECKING:
    from fix_sql import Session

    from bridge.moving.entry import Entry

CRONTAB = r"""# what runs at night
MAILTO="ops@example.org"
0 2 * * mon-fri /usr/local/bin/backup --all
# name: report
CRON_TZ=Europe/Berlin
*/15	8-18  * *  1-5   report --date "$(date +\%F)"
@reboot /usr/bin/start-it
0 6 1 * * mail -s monthly ops%the report
0 6 * *   mom-fri   wake up
@daily
61 * * * * tick
0 2 * * * /usr/local/bin/backup --all
"""


def run(db: Session, text: str, *words: str) -> Any:
    given = {"BRIDGE_DATABASE_URL": db.dsn}
    return CliRunner().invoke(schedules_command, ["import", "--from-crontab", "-", "--timezone", "UTC", *words], input=text, env=given)


def test_a_crontab_is_carried_over_line_by_line_and_says_where_it_cannot_be_read(db: Session) -> None:
    words = ("--task", "shop.command", "--map", "report *=shop.report", "-Q", "night")
    done = run(db, CRONTAB, *words)
    lines = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    notes = {line[0]: line[5] for line in lines if line[1] == "not carried over"}
    assert done.exit_code == 1, done.output
    assert notes["/usr/bin/start-it"].startswith("line 7, character 1: it runs when the machine starts")
    assert notes["mail -s monthly ops%the report"].startswith("line 8, character 11: what stands after % is its standard input")
    assert notes["wake up"] == "line 9, character 11: 'mom' is no day of the week: did you mean mon?"
    assert notes["crontab line 10"] == "line 10, character 7: the command is missing"
    assert notes["tick"].startswith("line 11, character 1: minute 61 does not exist")
    made = db.rows("select name, cron, timezone, task, args, queue, max_attempts, missed, overlap from bridge.schedule order by 1")
    backup = ["/usr/local/bin/backup --all"]
    assert made == [
        (backup[0], "0 2 * * mon-fri", "UTC", "shop.command", backup, "night", 1, "skip", "allow"),
        (f"{backup[0]} (2)", "0 2 * * *", "Europe/Berlin", "shop.command", backup, "night", 1, "skip", "allow"),
        ("report", "*/15 8-18 * * 1-5", "Europe/Berlin", "shop.report", ['report --date "$(date +%F)"'], "night", 1, "skip", "allow"),
    ]
    assert "MAILTO of the crontab left behind" in done.stdout
    assert "3 of 8 entries carried over" in done.stderr
    assert "warning: while these lines are in the crontab, each of them runs twice" in done.stderr
    again = run(db, CRONTAB, *words)
    assert "created" not in again.stdout
    assert again.stdout.count("unchanged") == 3
    assert made == db.rows("select name, cron, timezone, task, args, queue, max_attempts, missed, overlap from bridge.schedule order by 1")


def test_a_system_crontab_has_a_user_and_a_dry_run_changes_nothing(db: Session) -> None:
    done = run(db, "0 4 * * 7 root  /usr/bin/tidy\n@weekly  www\n", "--system", "--task", "shop.command", "--dry-run")
    assert "/usr/bin/tidy\tcreated\t0 4 * * 7\tUTC\tshop.command\tit ran as the machine's user root" in done.stdout
    assert "line 2, character 13: the command is missing" in done.stdout
    assert db.one("select count(*) from bridge.schedule") == 0


def read(db: Session, command: str, settings: str = "", task: str | None = None) -> Entry:
    target = crontab.Target(task, [], here(db.connection), Functions(db.connection))
    return crontab.entries(f"{settings}\n0 1 * * * {command}\n", target, timezone="UTC")[0]


def test_a_psql_that_calls_one_function_of_this_database_becomes_a_call(db: Session) -> None:
    db.do("create function public.reset(season integer, rules jsonb default '{}') returns void language sql as ''")
    name = db.connection.info.dbname
    done = run(db, f'0 1 * * * psql -X {name} -c "select reset(3, \'{{\\"a\\": [1]}}\')" >/dev/null 2>&1\n')
    assert done.exit_code == 0, done.output
    assert db.rows("select function, args from bridge.schedules") == [("public.reset", [3, {"a": [1]}])]
    role = read(db, f"psql --dbname={name} -U postgres -c 'select public.reset(season => 4);'")
    assert (role.role, role.schedule and role.schedule["kwargs"]) == ("postgres", {"season": 4})
    assert read(db, "psql -c 'select reset(1)'", settings=f"PGDATABASE={name}").schedule is not None


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("psql -d NAME -c 'select reset(now())'", "its argument 1 is an expression, not a constant"),
        ("psql -d NAME -c 'select 1; select 2'", "it is SQL text, not the call of one function"),
        ("psql -d NAME -c 'select nowhere()'", "function nowhere does not exist here"),
        ("psql -d other -c 'select reset(1)'", "its dbname is other, not "),
        ("psql -d NAME -h elsewhere -c 'select reset(1)'", "its host is elsewhere, not "),
        ("psql -c 'select reset(1)'", "it names no database"),
        ("psql postgresql://me:secret@db/NAME -c 'select reset(1)'", "its connection string is not read: name the database alone"),
        ("psql -c 'select reset(1)' -d NAME2>/dev/null", "its dbname is "),
        ("psql -d NAME -c 'call reset(1)'", "it calls a procedure, not a function"),
        ("psql -d NAME -c \"select reset(1, '$RULES')\"", "the shell does more than call psql"),
        ("psql -d NAME -f x.sql", "what psql does with -f is not known here"),
        ("psql -d NAME -c 'select reset(1)' && echo done", "the shell does more than call psql"),
        ('psql -d NAME -c "select reset($(date))"', "the shell does more than call psql"),
    ],
)
def test_a_psql_of_which_that_is_not_certain_says_why_and_needs_a_task(db: Session, command: str, why: str) -> None:
    command = command.replace("NAME", db.connection.info.dbname)
    entry = read(db, command)
    assert entry.schedule is None
    assert why in entry.refusal
    assert "no task runs its command: name one with --task NAME" in entry.refusal
    as_task = read(db, command, task="shop.command")
    assert as_task.schedule is not None
    assert as_task.schedule["args"] == [command]
