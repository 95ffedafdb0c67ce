"""One wrong argument at a time, for every function of ours that people call: the refusal says which it was, and what it was.

The functions and their arguments come from the catalog, so a new one is met by itself: it needs a call here that works, and an argument
that nothing is wrong for has to be named. Arguments named p_ are given by our own processes.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_fuzz import Routine, World, routines
from fix_sql import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases

Given = dict[str, str | None]

PEOPLE = {"bridge_producer", "bridge_operator", "bridge_viewer"}

NOBODY = str(uuid.UUID(int=0xDEAD))
DEEP = "[" * 300 + "]" * 300
LONG = "y" * 70_000
# Of each type, until one is refused.
WRONG: dict[str, list[str | None]] = {
    "text": ["a wrong,\t(value)", "", LONG, None],
    "uuid": [NOBODY, None],
    "integer": ["-7", "2147483647", "0", None],
    "bigint": ["-7", None],
    "numeric": ["-7", "NaN", "Infinity", None],
    "double precision": ["-7", "NaN", "Infinity", None],
    "interval": ["-7 days", "178000000 years", "-178000000 years", None],
    "timestamp with time zone": ["294276-12-31 00:00+00", "infinity", "4713-01-01 BC", "-infinity", None],
    "jsonb": ["7", '"wrong"', '{"wrong": 7}', '[{"wrong": 7}]', "null", DEEP, None],
    "json": [DEEP, None],
    "text[]": ["{wrong value}", "{}", "{null}", None],
    "uuid[]": [f"{{{NOBODY}}}", "{null}", None],
    "regclass": ["pg_catalog.pg_class", "4294967295", None],
}
# Words of people, which nobody reads but people.
FREE = {"by", "who", "note", "reason", "message"}
# What no value is wrong for, and why.
TAKES_ALL = {
    "a result is any JSON": {("complete", "result")},
    "so is a checkpoint, of whatever run": {("save_checkpoint", "data"), ("save_checkpoint", "run")},
    "where there is no such job, attempt or moment, there is nothing to read": {
        ("checkpoint", "id"), ("logs", "attempt"), ("logs", "since"), ("schedule_history", "before"), ("retry_failed", "since"),
    },
    "the answer is what was found by that name, perhaps none": {
        ("drain_state", "queues"), ("purge", "queue"), ("settle_unreported", "queue"), ("settle_unreported", "task"),
    },
    "the answer says whether there was one": {("remove_limit", "name"), ("unschedule", "name")},
    "a bound that nothing reaches, or everything": {("upkeep", "snapshot_age"), ("upkeep", "slot_lag"), ("upkeep", "index_size")},
}  # fmt: skip
# What each function needs to do its work, beside what fix_fuzz has for an argument; {words} stand for what there is.
GOOD: dict[str, Given] = {
    "acknowledge_alert": {"id": "{alert}"}, "add_dependency": {"child": "{delayed}", "parent": "{first}"}, "cancel": {"id": "{first}"},
    "cancel_batch": {"id": "{batch}"}, "checkpoint": {"id": "{running}"}, "complete": {"seq": "{seq}", "run": "{run}"},
    "create_archive": {"name": "public.another"}, "disallow_task": {"role": "bridge_producer", "pattern": "a.*"},
    "discard": {"id": "{failed}"}, "enqueue_flow": {"jobs": '[{{"ref": "one", "task": "a.task"}}]'}, "history": {"id": "{failed}"},
    "log": {"id": "{running}", "message": "said"}, "logs": {"id": "{running}"}, "move": {"id": "{first}", "queue": "other"},
    "next_runs_of": {"name": "nightly"}, "pause": {"queue": "celery"}, "pause_schedule": {"name": "nightly"},
    "progress": {"id": "{running}", "fraction": "0.5"}, "redrive": {"id": "{failed}"}, "remove_alert": {"name": "failing"},
    "remove_breaker": {"queue": "celery"}, "remove_callback": {"name": "hook"}, "remove_limit": {"name": "limited"},
    "remove_retention": {"queue": "celery"}, "remove_retry": {"task": "a.*"}, "reschedule": {"id": "{delayed}", "delay": "1 hour"},
    "reschedule_jobs": {"filter": '{{"all": true}}', "delay": "1 hour"}, "reset_breaker": {"queue": "celery"},
    "resolve_alert": {"id": "{alert}"}, "resume": {"queue": "paused"}, "resume_schedule": {"name": "nightly"}, "retry": {"id": "{failed}"},
    "run_schedule": {"name": "nightly"}, "save_checkpoint": {"id": "{running}", "data": "{{}}"},
    "schedule": {"name": "new", "cron": "0 3 * * *", "task": "a.task"}, "schedule_history": {"name": "nightly"},
    "seal_batch": {"id": "{batch}"}, "set_alert": {"name": "failing", "threshold": "2"}, "set_archive": {"archive": "public.kept"},
    "set_breaker": {"queue": "celery"}, "set_limit": {"name": "new", "rate": "5", "concurrency": "5"},
    "set_notifier": {"name": "new", "target": "ops"},
    "set_priority": {"id": "{first}", "priority": "5"}, "set_retention": {"queue": "celery", "keep": "1 day"},
    "set_retry": {"task": "a.*", "max_attempts": "2", "timeout": "1 hour"},
    "test_alert": {"name": "failing"}, "try_callback": {"name": "hook"},
    "unschedule": {"name": "nightly"}, "wait": {"ids": "{{{failed}}}"}, "workflow": {"id": "{first}"},
}  # fmt: skip


def said(text: str, argument: str, value: str | None) -> bool:
    """Whether a refusal names the argument, or the value of an object that it names."""
    if re.search(rf"\b{argument.removesuffix('s')}s?\b", text):
        return True
    shown = "null" if value is None else "''" if value == "" else value[:60].strip("{}").replace("\t", r"\t")
    return shown.lower() in text.lower()


@dataclass
class Called:
    """Functions that people call, each with arguments that work."""

    db: Session
    world: World
    words: dict[str, Any]

    def routines(self) -> list[Routine]:
        return [
            one
            for one in routines(self.db)
            if one.arguments and not one.is_procedure and {*one.roles} & PEOPLE and not any(name.startswith("p_") for name in one.arguments)
        ]

    def good(self, routine: Routine) -> Given:
        """A call that works."""
        kinds = dict(zip(routine.arguments, routine.types, strict=True))
        needed = routine.arguments[: len(routine.arguments) - routine.defaults]
        plain = self.world.plain
        found: Given = {
            name: (plain.get(f"{name} {kinds[name]}") or plain.get(name) or plain.get(kinds[name]) or [None])[0] for name in needed
        }
        named = {name: value and value.format(**self.words) for name, value in GOOD.get(routine.name, {}).items()}
        return {**found, **named}

    def answer(self, routine: Routine, given: Given) -> psycopg.Error | None:
        """What it is refused with; whatever it does is taken back."""
        try:
            with self.db.connection.transaction(force_rollback=True):
                self.db.connection.execute(routine.call(given).encode(), given).fetchall()
        except psycopg.Error as error:
            return error
        return None


@pytest.fixture(scope="module")
def called(databases: Databases, template: str) -> Iterator[Called]:
    name = databases.create(template)
    db = Session(databases.server.dsn_of(name))
    db.do("set client_min_messages = error; set statement_timeout = '60 s'")
    world = World(db)
    db.do("select bridge.create_archive('public.kept'), bridge.set_breaker('celery'), bridge.allow_task('bridge_producer', 'a.*')")
    db.do("select bridge.set_retention('celery', keep => '1 day'), bridge.check_alerts()")
    names = "batch nothing nobody succeeded failed published claimed running first cancelled blocked delayed"
    words = dict(zip(names.split(), world.ids, strict=False)) | {"seq": world.plain["seq"][0], "run": world.plain["run"][0]}
    words["alert"] = db.one("select min(id) from bridge.alerts")
    yield Called(db, world, words)
    db.connection.close()
    databases.drop(name)


def test_each_wrong_argument_is_refused_by_its_name_or_its_value(called: Called) -> None:
    broken, unnamed, taken = {}, {}, set()
    for routine in called.routines():
        good = called.good(routine)
        if error := called.answer(routine, good):
            broken[routine.name] = str(error)
            continue
        for argument, kind in zip(routine.arguments, routine.types, strict=True):
            refused = False
            for value in WRONG[kind] if kind != "boolean" else []:
                error = called.answer(routine, {**good, argument: value})
                if error is not None:
                    refused, text = True, error.diag.message_primary or str(error)
                    if not (error.sqlstate or "").startswith("JB") or not said(text, argument, value):
                        unnamed[routine.name, argument, value and value[:30]] = f"{error.sqlstate} {text}"
            if not refused and kind != "boolean":
                taken.add((routine.name, argument))
    assert broken == {}, "calls that should work"
    assert unnamed == {}, "refusals that do not say what is wrong"
    assert {(name, argument) for name, argument in taken if argument not in FREE} == set().union(*TAKES_ALL.values())
