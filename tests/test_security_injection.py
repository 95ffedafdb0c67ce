"""What callers write never becomes SQL: each place that builds a statement is known, and hostile words stay words."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_client import command
from fix_servers import ROOT

if TYPE_CHECKING:
    from fix_sql import Session

# Functions that run a statement with something in it that is neither quoted as a name (%I) nor as a value (%L), how many of them, and
# why that is no way in. A new one is to be looked at before it is written here.
REVIEWED = {
    "(script)": (2, "the installer's own words; a routine by its oid"),
    "close_table": (1, "a role that is quoted before, or public"),
    "define_view": (1, "the installer's own query"),
    "create_archive": (2, "a table that is quoted before, types of our columns; with the caller's rights"),
    "select_jobs": (1, "conditions_of and its like, which quote each value; numbers"),
    "delete_batch": (1, "cutoffs and its like, which quote each value; a table by its oid; names of our columns"),
    "look_into": (3, "the same"),
    "copy_aside": (1, "the same"),
    "copy_changed": (3, "the same"),
    "swap_day": (1, "a bound from the catalog"),
    "register_cron": (1, "cron_plan, which quotes each value"),
    "make_caller": (5, "a name that is quoted before; the statement of plan_of_call, whose arguments are parameters"),
    "drop_callers": (1, "a routine by its oid"),
    "schedule_history": (1, "numbers; status and trigger_type are compared with lists, and quoted"),
    "cron_commands": (1, "a constant"),
    "work_off": (1, "a number"),
    "preview_cleanup": (2, "as delete_batch"),
    "secret": (2, "a function, and a view, by their oids"),
    "guard_rows": (1, "one of two words"),
    "keep_switch": (1, "true or false"),
}
EVIL = (
    "'; insert into public.mark select current_user; --",
    "\\'; insert into public.mark select current_user; --",
    '"; insert into public.mark select current_user; --',
    "$$; insert into public.mark select current_user; --",
    "') or true; insert into public.mark select current_user; --",
    "%s%I%L%1$s$1",
)


def statements() -> Counter[str]:
    """How many statements with something unquoted in them each function runs."""
    found: Counter[str] = Counter()
    for file in sorted(ROOT.glob("sql/*.sql")):
        text = re.sub(r"--[^\n]*", "", file.read_text(encoding="utf-8"))
        head, *parts = re.split(r"create or replace (?:function|procedure) bridge\.(\w+)|^do \$\$", text, flags=re.MULTILINE)
        pairs = [("(script)", head), *((name or "(script)", body) for name, body in zip(parts[::2], parts[1::2], strict=True))]
        for name, body in pairs:
            run = re.findall(r"(?:^|;|then|else|loop|begin|query)\s+execute (?!function|procedure)(.*?);", body, re.DOTALL)
            found[name] += sum(not one.startswith("format(") or re.search(r"%(\d+\$)?s", one) is not None for one in run)
    return +found


def test_every_statement_that_is_built_from_words_has_been_looked_at() -> None:
    assert dict(statements()) == {name: count for name, (count, _) in REVIEWED.items()}


def refusal(db: Session, call: str, values: list[Any]) -> str | None:
    """The SQLSTATE with which a call was refused; None when it was not."""
    try:
        db.do(call, *values)
    except psycopg.Error as error:
        return error.sqlstate
    return None


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_words_stay_words(db: Session, evil: str) -> None:
    db.do("create table mark (who text); grant insert on mark to public")
    name = re.sub(r"[\s,]", "_", evil)[:100]
    text, listed = json.dumps(evil), json.dumps([evil])
    calls: list[tuple[str, list[Any]]] = [
        *(
            ("select * from bridge.select_jobs(%s)", [json.dumps({key: evil})])
            for key in ("task", "queue", "error", "batch", "created_after")
        ),
        ("select * from bridge.select_jobs(%s)", [json.dumps({"args": [evil], "kwargs": {evil: evil}})]),
        ("select bridge.cancel_jobs(%s)", [json.dumps({"queue": [evil], "task": [evil]})]),
        ("select bridge.enqueue(%s, %s, queue => %s, unique_key => %s, serial_key => %s)", [name, listed, name, evil, evil]),
        ("select bridge.enqueue('t', headers => %s)", [json.dumps({evil: evil})]),
        ("select bridge.set_retention(queue => %s, status => 'succeeded', keep => '1 day')", [name]),
        ("select bridge.set_limit(%s, key => %s, concurrency => 1)", [evil, evil]),
        ("select bridge.set_retry(queue => %s, max_attempts => 2)", [name]),
        ("select bridge.schedule(%s, '@daily', %s, %s, timezone => %s)", [evil, name, listed, evil]),
        ("select bridge.schedule('s', %s, 't')", [evil]),
        ("select bridge.schedule('f', '@daily', function => %s, args => %s)", [evil, listed]),
        ("select bridge.schedule('call', '@daily', function => 'pg_catalog.upper(text)', args => %s)", [listed]),
        ("select * from bridge.schedule_history(%s)", [evil]),
        ("select * from bridge.schedule_history('s', status => %s)", [evil]),
        ("select bridge.create_archive(%s)", [f"public.{evil}"]),
        ("select bridge.allow_task(%s, %s)", [evil, name]),
        ("select bridge.enable_tenants(%s, %s)", [evil, evil]),
        ("select bridge.pause(%s)", [name]),
        ("select bridge.purge(%s)", [evil]),
        ("select bridge.create_batch(%s)", [evil]),
        ("select bridge.set_alert('queued_jobs', threshold => 1, name => %s, queue => %s)", [evil, name]),
        ("select bridge.set_webhook(%s, 'https://example.org', task => %s, headers => %s)", [evil, name, json.dumps({"X-A": evil})]),
        ("select bridge.set_channel(%s, %s)", ["c", evil]),
        ("select bridge.secret(%s)", [evil]),
        ("select bridge.progress(0, gen_random_uuid(), %s)", [text]),
    ]
    later = ("select * from bridge.cleanup(true)", "select * from bridge.cleanup()", "select bridge.run_schedule('call')")
    calls += [(call, []) for call in (*later, "call bridge.run_calls()")]
    assert [call for call, values in calls if refusal(db, call, values) == "42601"] == [], "a syntax error: words were read as SQL"
    db.do("select bridge.tick('test')")
    db.do("select * from bridge.health()")
    assert db.rows("select who from public.mark") == []


@pytest.mark.parametrize("evil", [*EVIL, "postgresql://127.0.0.1:1/x", "x host=127.0.0.1 port=1"])
def test_the_database_that_ticks_is_a_name_and_nothing_else(db: Session, monkeypatch: pytest.MonkeyPatch, evil: str) -> None:
    db.do("create table mark (who text); grant insert on mark to public")
    monkeypatch.setenv("BRIDGE_DATABASE_URL", db.dsn)
    done = command("install", "--cron-database", evil)
    assert (done.exit_code, db.rows("select who from public.mark")) == (0, [])
    assert done.output.rstrip().endswith("the drainer ticks"), done.output
    assert len(done.output.splitlines()) == 1, "one line"
    assert "127.0.0.1:1" not in done.output.replace(evil, ""), "it is no address"
