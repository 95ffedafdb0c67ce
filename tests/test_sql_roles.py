"""Each role may do exactly its own, and the public nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_servers import ROOT

if TYPE_CHECKING:
    from fix_sql import Session

ROLES = ("producer", "worker", "operator", "viewer", "tenant")
REMEDY = "decide in bridge.granted (sql/90_role.sql), then run: python scripts/table_of_roles.py --write"
Rights = set[tuple[str, str, str]]  # role, verb, object


def documented() -> Rights:
    """The table of docs/security.md."""
    rows = re.findall(r"^\| (execute|select|update) \| `(\S+)` \| (.*) \|$", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
    marks = [(verb, name, [mark.strip() for mark in cells.split("|")]) for verb, name, cells in rows]
    return {(role, verb, name) for verb, name, cells in marks for role, cell in zip(ROLES, cells, strict=True) if cell == "yes"}


@pytest.fixture
def nobody(db: Session) -> None:
    db.do("""do $$ begin create role bridge_nobody nologin; exception when duplicate_object then null; end $$""")


def test_the_documented_table_is_what_postgres_says_of_every_function_and_table(db: Session, nobody: None) -> None:  # noqa: ARG001
    assert db.rows("select * from bridge.rights() where role = 'bridge_tenant'") == [], "tenants are off"
    db.do("select bridge.enable_tenants()")
    answered = set(db.rows("""
        with role as (select unnest(array['producer', 'worker', 'operator', 'viewer', 'tenant', 'nobody']) as name),
          relation as (select oid, relname, relkind from pg_class
            where relnamespace = 'bridge'::regnamespace and relkind not in ('i', 'I', 'c')),
          verb as (select unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) as name)
        select r.name, 'execute', p.proname from role r, pg_proc p
        where p.pronamespace = 'bridge'::regnamespace and has_function_privilege('bridge_' || r.name, p.oid, 'execute')
        union all
        select r.name, v.name, c.relname from role r, relation c, verb v
        where c.relkind <> 'S' and has_table_privilege('bridge_' || r.name, c.oid, v.name)
        union all
        select r.name, 'usage', c.relname from role r, relation c
        where c.relkind = 'S' and has_sequence_privilege('bridge_' || r.name, c.oid, 'usage')
        union all
        select r.name, v.name, c.relname || '.' || a.attname from role r, relation c, pg_attribute a, verb v
        where c.relkind <> 'S' and a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
          and v.name in ('select', 'insert', 'update', 'references') and has_column_privilege('bridge_' || r.name, c.oid, a.attnum, v.name)
          and not has_table_privilege('bridge_' || r.name, c.oid, v.name)
        union all
        select r.name, 'create', 'schema' from role r where has_schema_privilege('bridge_' || r.name, 'bridge', 'create')
    """))  # fmt: skip
    assert answered - documented() == set(), REMEDY
    assert documented() - answered == set(), REMEDY


def tried(db: Session, role: str, statements: dict[str, str]) -> set[str]:
    """Which of the statements are not refused to a role for want of a right; nothing of what they do stays."""
    allowed = set()
    with db.connection.transaction(force_rollback=True):
        db.do(f"set local role bridge_{role}")
        db.do("set local statement_timeout = '20s'")
        for name, statement in statements.items():
            try:
                with db.connection.transaction(force_rollback=True):
                    db.rows(statement)
                allowed.add(name)
            except psycopg.errors.InsufficientPrivilege:
                pass
            except psycopg.Error:  # the right was there, the arguments were not
                allowed.add(name)
    return allowed


@pytest.mark.parametrize("role", [*ROLES, "nobody"])
@pytest.mark.usefixtures("nobody")
def test_a_role_that_tries_everything_is_let_through_where_the_document_says_so(db: Session, role: str) -> None:
    functions = dict(db.rows("""
        select p.proname, format('%s bridge.%I(%s)%s', case p.prokind when 'p' then 'call' else 'select 1 from' end, p.proname,
          (select string_agg(format('null::%s', format_type(a.type, null)), ', ' order by a.n)
           from unnest(p.proargtypes) with ordinality a (type, n)), case p.prokind when 'p' then '' else ' limit 1' end)
        from pg_proc p where p.pronamespace = 'bridge'::regnamespace and p.prorettype <> 'trigger'::regtype"""))  # fmt: skip
    tables = dict(db.rows("""
        select c.relname, format('select from bridge.%I limit 1', c.relname) from pg_class c
        where c.relnamespace = 'bridge'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')"""))  # fmt: skip
    db.do("select bridge.enable_tenants()")
    mine = {(verb, name) for who, verb, name in documented() if who == role}
    assert tried(db, role, functions) == {name for verb, name in mine if verb == "execute"}, REMEDY
    assert tried(db, role, tables) == {name for verb, name in mine if verb == "select"}, REMEDY


def test_a_call_of_each_kind_works_for_those_who_may_make_it(db: Session) -> None:
    calls = {
        "producer": ["select bridge.enqueue('t')", 'select bridge.enqueue_many(\'[{"task": "t"}]\')', "select bridge.next_runs('@daily')"],
        "worker": [
            "select bridge.claim(gen_random_uuid(), 'celery', gen_random_uuid())",
            "select bridge.tick('test')",
            "select bridge.make_days()",
            "select bridge.report_worker(gen_random_uuid(), 'w', 1, 'prefork', 2, '{celery}', 'test', '{}', now())",
        ],
        "operator": [
            "select bridge.schedule('s', '@daily', 't')",
            'select bridge.cancel_jobs(\'{"queue": "celery"}\')',
            "select bridge.pause('q')",
            "select bridge.cleanup()",
        ],
        "viewer": ["select bridge.select_jobs()", "select * from bridge.jobs", "select * from bridge.job_queue_stats"],
    }
    for role, statements in calls.items():
        for statement in statements:
            with db.connection.transaction(force_rollback=True):
                db.do(f"set local role bridge_{role}")
                db.rows(statement)


def test_what_a_role_was_given_beside_the_list_is_taken_back_and_other_roles_keep_theirs(db: Session, nobody: None) -> None:  # noqa: ARG001
    db.do("grant execute on function bridge.cancel to bridge_viewer, bridge_nobody")
    db.do("grant insert on bridge.job to bridge_producer")
    db.do("grant execute on function bridge.version to public")
    db.do("revoke select on bridge.jobs from bridge_viewer")
    db.do("select bridge.grant_all()")
    held = "select has_function_privilege('bridge_viewer', p.oid, 'execute'), has_function_privilege('bridge_nobody', p.oid, 'execute')"
    assert db.rows(f"{held} from pg_proc p where pronamespace = 'bridge'::regnamespace and proname = 'cancel'") == [(False, True)]
    assert not db.one("select has_table_privilege('bridge_producer', 'bridge.job', 'insert')")
    assert not db.one("select has_function_privilege('bridge_nobody', 'bridge.version()', 'execute')")
    assert db.one("select has_table_privilege('bridge_viewer', 'bridge.jobs', 'select')")


def test_granting_again_writes_to_no_catalog(db: Session) -> None:
    with db.connection.transaction():
        db.do("select bridge.grant_all()")
        assert db.one("select pg_current_xact_id_if_assigned() is null")


def test_an_operator_pauses_resumes_and_runs_schedules(db: Session) -> None:
    db.do("select bridge.schedule('s', '@daily', 't')")
    with db.connection.transaction():
        db.do("set local role bridge_operator")
        for call in ("pause_schedule", "resume_schedule", "run_schedule"):
            db.do(f"select bridge.{call}('s')")
    assert db.one("select last_status from bridge.schedules") == "queued"


def test_the_public_may_execute_nothing_and_read_nothing(db: Session) -> None:
    functions = "select p.proname from pg_proc p, aclexplode(p.proacl) a where p.pronamespace = 'bridge'::regnamespace and a.grantee = 0"
    assert db.rows(functions) == []
    assert db.rows("select proname from pg_proc where pronamespace = 'bridge'::regnamespace and proacl is null") == []
    granted = "select relname from pg_class, aclexplode(relacl) a where relnamespace = 'bridge'::regnamespace and a.grantee = 0"
    assert db.rows(granted) == []
    acl = "aclexplode(coalesce(t.typacl, acldefault('T', t.typowner)))"
    types = f"select t.typname from pg_type t join pg_class c on c.oid = t.typrelid, {acl} a"
    assert db.rows(f"{types} where t.typnamespace = 'bridge'::regnamespace and c.relkind = 'c' and a.grantee = 0") == []


def test_an_operator_changes_the_value_of_a_setting_and_nothing_else_of_it(db: Session) -> None:
    with db.connection.transaction(force_rollback=True):
        db.do("set local role bridge_operator")
        db.do("update bridge.setting set value = '5', changed_at = now() where name = 'window'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.do("update bridge.setting set about = 'mine'")


def test_a_definers_function_is_not_led_astray_by_the_callers_search_path(db: Session) -> None:
    db.do("create schema evil")
    db.do("create table evil.job (id int)")
    db.do("grant usage on schema evil to bridge_producer")
    with db.connection.transaction():
        db.do("set local role bridge_producer")
        db.do("set local search_path = evil, pg_catalog")
        db.do("select bridge.enqueue('t')")
    assert db.one("select count(*) from bridge.job") == 1


def test_every_function_fixes_its_search_path(db: Session) -> None:
    loose = db.rows(
        "select proname from pg_proc where pronamespace = 'bridge'::regnamespace and prokind <> 'a'"
        " and not coalesce(proconfig::text like '%search_path=%', false) and prokind = 'f'"
    )
    # Procedures that commit cannot carry a SET clause. These are constants: with a clause they could not be put in place of calls.
    assert sorted(loose) == [("tasks_are_ruled",), ("tenants_are_on",)]
