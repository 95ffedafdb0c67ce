"""Schedules that call a function or post to an address: what is refused when they are made, and what is suggested."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fix_schedules import error_of, schedule

if TYPE_CHECKING:
    from fix_sql import Session

ROLE = "bridge_test_caller"


@pytest.fixture
def shop(db: Session) -> Session:
    """Functions to call, and a role that may use schedules and little else."""
    db.do(f"do $$ begin create role {ROLE} nologin; exception when duplicate_object then null; end $$")
    db.do(f"grant bridge_operator to {ROLE}")
    db.do("create schema shop")
    db.do("create function shop.reset_scores(day date, factor integer default 1) returns integer language sql as 'select 1'")
    db.do("create function shop.twice(integer) returns integer language sql as 'select 1'")
    db.do("create function shop.twice(text) returns integer language sql as 'select 1'")
    db.do("create function shop.hidden() returns integer language sql as 'select 1'")
    db.do("create function shop.latest(anyelement) returns integer language sql as 'select 1'")
    db.do("create function shop.fire() returns trigger language plpgsql as 'begin return new; end'")
    db.do("create function shop.sum_of(variadic integer[]) returns integer language sql as 'select 1'")
    db.do("create procedure shop.tidy() language sql as 'select 1'")
    db.do("create function shop.\"Odd Name\"(tags text[], facts jsonb) returns void language sql as ''")
    db.do("revoke execute on function shop.hidden() from public")
    return db


def refusal(db: Session, function: str, args: list[Any], kwargs: dict[str, Any]) -> str:
    return error_of(lambda: schedule(db, task=None, function=function, args=json.dumps(args), kwargs=json.dumps(kwargs)))


REFUSED = [
    ("shop.reset_scors", [], {}, "function 'shop.reset_scors' does not exist: did you mean shop.reset_scores?"),
    ("reset_scores", [], {}, "is named without its schema: did you mean shop.reset_scores(date,integer)?"),
    ("public.reset_scores", [], {}, "did you mean shop.reset_scores(date,integer)?"),
    ("shop.reset_scores(date)", [], {}, "did you mean shop.reset_scores(date,integer)?"),
    ("'); drop table x; --", [], {}, "does not exist: give its schema and its name"),
    ("shop.reset_scores(", [], {}, "does not exist"),
    ("shop.tidy", [], {}, "shop.tidy() cannot be called so: it is a procedure, not a function: write a function around it"),
    ("shop.sum_of", [1], {}, "it takes any number of arguments: write a function around it"),
    ("shop.latest", [1], {}, "its argument 1 has no type of its own"),
    ("shop.fire", [], {}, "it returns trigger"),
    ("shop.reset_scores", ["2031-01-01", 1, 2], {}, "it takes 2 arguments, 3 are given: there is: shop.reset_scores(day date, factor"),
    ("shop.reset_scores", ["2031-01-01"], {"faktor": 1}, "it has no argument 'faktor', did you mean factor?"),
    ("shop.reset_scores", ["2031-01-01"], {"day": "2031-01-01"}, "its argument day is given twice"),
    ("shop.reset_scores", [], {"factor": 1}, "its argument day is missing"),
    ("shop.reset_scores", ["some day"], {}, 'argument day of shop.reset_scores(date,integer) is "some day": invalid input syntax'),
    ("shop.reset_scores", [], {"day": "2031-01-01", "factor": [1]}, "argument factor of shop.reset_scores(date,integer) is [1]"),
    ("shop.twice", [1], {}, "one of several that take these arguments: choose one: shop.twice(integer) or shop.twice(text)"),
]  # fmt: skip


def test_a_function_that_cannot_be_called_so_is_refused_with_a_suggestion(shop: Session) -> None:
    wrong = [(found, words) for *call, words in REFUSED if words not in (found := refusal(shop, *call))]  # type: ignore[misc]
    assert wrong == []
    assert shop.rows("select name from bridge.schedules") == []


def test_what_fits_is_taken_by_name_by_place_and_by_signature(shop: Session) -> None:
    fits: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("shop.reset_scores", [], {"day": "2031-01-01"}), ("shop.reset_scores", ["2031-01-01", 2], {}),
        ("shop.reset_scores(date, integer)", ["2031-01-01"], {"factor": None}), ("shop.twice(text)", ["x"], {}),
        ('shop."Odd Name"', [["a", "b"]], {"facts": {"a": [1]}}),
    ]  # fmt: skip
    for number, (function, args, kwargs) in enumerate(fits):
        made = schedule(shop, f"s{number}", task=None, function=function, args=json.dumps(args), kwargs=json.dumps(kwargs))
        assert made == "created"
        again = schedule(shop, f"s{number}", task=None, function=function, args=json.dumps(args), kwargs=json.dumps(kwargs))
        assert again == "unchanged"
    assert shop.rows("select task, function, queue from bridge.schedules where name = 's2'") == [
        ("shop.reset_scores", "shop.reset_scores(date, integer)", "bridge.calls")
    ]


def test_a_function_that_the_role_of_the_schedule_may_not_execute_is_refused_with_the_grant(shop: Session) -> None:
    shop.do(f"set role {ROLE}")
    said = refusal(shop, "shop.hidden", [], {})
    assert said == f"role {ROLE} may not use schema shop, so it cannot call shop.hidden: grant usage on schema shop to {ROLE}"
    shop.do("reset role")
    shop.do(f"grant usage on schema shop to {ROLE}")
    shop.do(f"set role {ROLE}")
    said = refusal(shop, "shop.hidden", [], {})
    assert said == f"role {ROLE} may not execute shop.hidden(): grant execute on function shop.hidden() to {ROLE}"
    assert schedule(shop, task=None, function="shop.twice(integer)", args="[1]") == "created"
    shop.do("reset role")
    assert shop.one("select role from bridge.schedules") == ROLE


def test_rules_of_tasks_are_not_about_functions(shop: Session) -> None:
    shop.do(f"grant usage on schema shop to {ROLE}")
    shop.do(f"select bridge.allow_task('{ROLE}', 'mail.*')")
    shop.do(f"set role {ROLE}")
    assert schedule(shop, task=None, function="shop.twice(integer)", args="[1]") == "created"
    shop.do("select bridge.run_schedule('nightly')")
    assert "may not enqueue" in error_of(lambda: schedule(shop, "task", task="shop.twice"))
    shop.do("reset role")


def test_a_schedule_has_one_of_task_function_and_webhook_and_a_call_no_queue(db: Session) -> None:
    assert "has none of task, function and webhook: give one" in error_of(lambda: schedule(db, task=None))
    both = error_of(lambda: schedule(db, function="public.f"))
    assert "has more than one of task, function and webhook" in both
    said = error_of(lambda: schedule(db, task=None, function="public.f", queue="mail"))
    assert said == "queue is 'mail', and a call of a function goes through none: leave it out"
    said = error_of(lambda: db.enqueue(queue="bridge.calls"))
    assert said.startswith("queue is bridge.calls, which no worker consumes")


@pytest.mark.parametrize(
    ("webhook", "words"),
    [
        ('"ftp://example.org"', "url of the webhook is 'ftp://example.org'"),
        ('"https://user:secret@example.org/x"', "url of the webhook is 'https://***@example.org/x'"),
        ("7", "webhook is a JSON number: give an address, or an object of url, secret and headers"),
        ('{"url": "https://example.org", "method": "GET"}', "webhook has the unknown key method: known are url, secret and headers"),
        ('{"url": "https://example.org", "secret": "s3cr3t!"}', "secret is no name"),
        ('{"secret": "default"}', "url of the webhook is NULL"),
        ('{"url": "https://example.org", "headers": {"X-Api-Key": "sk_live_x"}}', "header X-Api-Key has a secret in clear"),
    ],
)
def test_a_webhook_that_could_reach_nobody_is_refused_as_a_callback_is(db: Session, webhook: str, words: str) -> None:
    assert words in error_of(lambda: schedule(db, task=None, webhook=webhook))
    db.do("update bridge.setting set value = '[\"hooks.example.org\"]' where name = 'webhook_hosts'")
    said = error_of(lambda: schedule(db, task=None, webhook='"https://example.org/x"'))
    assert "url leads to host example.org, which the setting webhook_hosts does not allow" in said


def test_names_zones_and_words_that_are_nearly_right_are_refused_with_what_is_meant(db: Session) -> None:
    schedule(db, "nightly report")
    for name in ("Nightly report", "nightlyreport", "nightly  report"):
        said = error_of(lambda name=name: schedule(db, name))  # type: ignore[misc]
        assert said == f"schedule 'nightly report' exists, and '{name}' differs from it in case or blanks alone: choose another name"
    assert "did you mean 'nightly report'?" in error_of(lambda: db.do("select bridge.run_schedule('nightly repotr')"))
    for zone, meant in [("Europe/Berlim", "Europe/Berlin"), ("Berlin", "Europe/Berlin"), ("Amerika/New York", "America/New_York")]:
        said = error_of(lambda zone=zone: schedule(db, timezone=zone))  # type: ignore[misc]
        assert said.startswith(f"timezone '{zone}' is not known: did you mean {meant}")
    assert "did you mean @daily?" in error_of(lambda: schedule(db, cron="@dayly"))
