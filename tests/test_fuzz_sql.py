"""Strange arguments for every function that a role may call: it does its work, or refuses in one sentence of ours, and nothing else.

The functions come from the catalog, the arguments by type from fix_fuzz. What this found is kept below it, a line a defect.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_effort import EFFORT
from fix_fuzz import TRIES, Routine, World, calls, outcome, routines
from fix_sql import Session
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import assert_sound

from bridge.errors import BridgeError
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bridge.testing.databases import Databases

PARTS = 3
PATIENCE = 60  # seconds; more is a hang, not a busy machine
# Errors of Postgres's own that may come, and for whom. Arguments named p_ are for our own processes, which hold their values in types: a
# null where a value is needed, a document of another shape or a moment at the end of time is answered by Postgres.
PROTOCOL = ("22", "23502", "23514")
OWN = {
    "wait": {"57014"},  # it waits as long as it is told, and the caller's time limit ends it
    "create_archive": {"42501"},  # with the rights of the caller: Postgres names the schema that is not his
    "set_archive": {"42501"},
}
# What the walk over all functions leaves out, and why; each is tried by itself below.
APART = {
    "wait": "it waits as long as an argument says, so that it is tried under a short time limit",
    "run_calls": "a procedure that commits, so that nothing takes back what it has done, and cannot begin in a transaction",
    "cleanup_loop": "a procedure that commits",
}
LASTING = {*APART} | {"make_days"}  # those, and one that makes a table a day, are left out where each call commits


@pytest.fixture(scope="module")
def db(databases: Databases, template: str) -> Iterator[Session]:
    """A small world; every call in it is taken back."""
    name = databases.create(template)
    session = Session(databases.server.dsn_of(name))
    session.do("set client_min_messages = error")
    yield session
    assert_sound(session.dsn)
    session.connection.close()
    databases.drop(name)


@pytest.fixture(scope="module")
def world(db: Session) -> World:
    made = World(db)
    db.do(f"set statement_timeout = '{PATIENCE} s'")
    return made


def fault(routine: Routine, asked: Mapping[str, str | None], error: psycopg.Error) -> str | None:
    """What is wrong with an answer; None for one that may be given."""
    message, hint = error.diag.message_primary or str(error), error.diag.message_hint or ""
    if not (error.sqlstate or "").startswith("JB"):
        is_protocol = any(name.startswith("p_") for name in asked) and (error.sqlstate or "").startswith(PROTOCOL)
        return None if is_protocol or error.sqlstate in OWN.get(routine.name, set()) else f"{error.sqlstate} {message}"
    if not hint:
        return f"no remedy: {message}"
    if re.search(r"[\x00-\x1f\x7f-\x9f]", message + hint):
        return f"not one line: {message!r} {hint!r}"
    return f"{len(message)} characters: {message[:100]}" if len(message) > (8100 if error.diag.message_detail else 1000) else None


def attempt(db: Session, world: World, routine: Routine, heard: Callable[[Mapping[str, str | None], psycopg.Error], None]) -> None:
    """Call one function with many arguments, in each of the roles that may, and hand on the errors that come."""

    @TRIES
    @given(st.sampled_from(routine.roles), calls(routine, world))
    def call(role: str, asked: Mapping[str, str | None]) -> None:
        error = outcome(db, routine, role, asked)
        if error is not None:
            heard(asked, error)

    call()


@pytest.mark.parametrize("part", range(PARTS))
def test_strange_arguments_are_taken_or_refused_in_our_words(part: int, db: Session, world: World) -> None:
    wrong: dict[tuple[str, str], Mapping[str, str | None]] = {}
    for routine in [each for each in routines(db) if each.name not in APART][part::PARTS]:

        def judge(asked: Mapping[str, str | None], error: psycopg.Error, routine: Routine = routine) -> None:
            if what := fault(routine, asked, error):
                wrong.setdefault((routine.name, re.sub(r"\d+", "N", what)), asked)

        attempt(db, world, routine, judge)
    assert wrong == {}


@settings(TRIES, max_examples=2 * EFFORT)
@given(st.data())
def test_the_tables_are_sound_after_many_strange_calls_that_stay(databases: Databases, template: str, data: st.DataObject) -> None:
    """As above, but each call commits, so that the next one meets what it has made."""
    name = databases.create(template)
    session = Session(databases.server.dsn_of(name))
    world = World(session)
    session.do(f"set statement_timeout = '{PATIENCE} s'; set client_min_messages = error")
    lasting = [each for each in routines(session) if each.writes and each.name not in LASTING]
    for routine in data.draw(st.lists(st.sampled_from(lasting), min_size=10, max_size=40)):
        asked = data.draw(calls(routine, world))
        with suppress(psycopg.Error):
            session.connection.execute(routine.call(asked).encode(), asked)
    session.connection.close()
    assert_sound(session.dsn)
    databases.drop(name)


def test_nothing_else_is_left_out(db: Session) -> None:
    known = {each.name: each for each in routines(db)}
    assert {name for name, each in known.items() if each.is_procedure} == APART.keys() - {"wait"}
    # What no role may call is the owner's alone, who may do everything.
    query = "select count(*) from pg_proc p where p.pronamespace = 'bridge'::regnamespace"
    assert db.one(f"{query} and has_function_privilege('public', p.oid, 'execute')") == 0


@pytest.mark.parametrize("name", APART)
def test_what_commits_or_waits_is_taken_or_refused_in_our_words_too(databases: Databases, template: str, name: str) -> None:
    database = databases.create(template)
    session = Session(databases.server.dsn_of(database))
    world = World(session)
    (routine,) = [each for each in routines(session) if each.name == name]
    session.do("set statement_timeout = '1 s'; set client_min_messages = error")
    wrong: dict[str, Mapping[str, str | None]] = {}

    @TRIES
    @given(st.sampled_from(routine.roles), calls(routine, world))
    def call(role: str, asked: Mapping[str, str | None]) -> None:
        session.do(f"set role {role}")
        try:
            session.connection.execute(routine.call(asked).encode(), asked)
        except psycopg.Error as error:
            if error.sqlstate != "57014" and (what := fault(routine, asked, error)):
                wrong.setdefault(re.sub(r"\d+", "N", what), asked)
        finally:
            session.do("reset role")

    call()
    assert wrong == {}
    session.connection.close()
    assert_sound(session.dsn)
    databases.drop(database)


DEFECTS = [
    ("select bridge.pause(queue => 'q', hard => null)", None),
    ("select bridge.wait_for(array[uuid_nil, uuid_nil, null])", None),
    ("select bridge.note_silent(array['w', 'w'], array['q', 'q'])", None),
    ("select bridge.revoke_stamped('{\"stamp\": [1, 1]}')", None),
    ("select * from bridge.metric_rate('x', past => '178000000 years')", None),
    ("select bridge.retry_failed(since => '178000000 years', dry_run => true)", None),
    ("select * from bridge.select_jobs(p_statuses => '{}')", None),
    ("select bridge.create_archive('a b')", "name is 'a b': give a schema that is not bridge, and a table: history.jobs"),
    ("select bridge.create_archive(null)", "name is NULL: give a schema that is not bridge, and a table: history.jobs"),
    ("select bridge.create_archive('nowhere.jobs')", "schema 'nowhere' does not exist: create it, or give the name of one that is there"),
    ("select bridge.revoke_stamped('[]')", 'stamps are a JSON array: give an object: {"header": ["stamp"]}'),
    ("select bridge.enqueue('a', DEEP(199))", None),
    (
        "select bridge.enqueue('a', DEEP(500))",
        "args of task a are nested deeper than 200 levels: pass a flat document, or a reference to it",
    ),
    (
        "select bridge.enqueue_many(jsonb_build_array('{}'::jsonb, jsonb_build_object('task', 'a', 'args', DEEP(500))) - 0)",
        "jobs[0]: args of task a are nested deeper than 200 levels: pass a flat document, or a reference to it",
    ),
    (
        f"select bridge.enqueue_message(gen_random_uuid(), 'i', 'a', 'q', 9::smallint, DEEP(500)::text::json, '{{}}', {'null, ' * 7} null)",
        "args of task a are nested deeper than 200 levels: pass a flat document, or a reference to it",
    ),
    (
        "select bridge.store_result(uuid_nil, null, 'SUCCESS', '\"planted\"')",
        "p_task_id of a result is null: give the id of a task, as uuid and as text, and its state",
    ),
    ("select bridge.enqueue_buffered('1')", "jobs is a JSON number: give a JSON array of objects"),
    ("select bridge.make_days(p_days => 2147483647)", "p_days is 2147483647: give 0 to 1000"),
    ("select bridge.next_runs('0 3 * * *', after => 'infinity')", "after is infinity: give a moment from the year 1 to 9900"),
    ("select bridge.run_schedule(e'a\\n\\x1b[31mb')", "schedule 'a\\n?[31mb' does not exist: see: select name from bridge.schedules"),
]


@pytest.mark.parametrize(("statement", "answer"), DEFECTS)
def test_what_was_found_is_answered_well(statement: str, answer: str | None, db: Session) -> None:
    with db.connection.transaction(force_rollback=True):
        statement = re.sub(r"DEEP\((\d+)\)", r"(repeat('[', \1) || repeat(']', \1))::jsonb", statement)
        statement = statement.replace("uuid_nil", "'00000000-0000-0000-0000-000000000000'::uuid")
        if answer is None:
            db.do(statement)
            return
        with pytest.raises(BridgeError) as caught, translated():
            db.do(statement)
    assert str(caught.value) == answer
