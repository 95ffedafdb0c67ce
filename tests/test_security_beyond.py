"""What the roles of the project try beyond their table: each has what Postgres gives to everybody, and nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg import errors

if TYPE_CHECKING:
    from fix_sql import Session

ROLES = ["bridge_producer", "bridge_worker", "bridge_operator", "bridge_viewer", "bridge_tenant"]
# Each is refused to each of them, with Postgres's own code for what one may not.
FORBIDDEN = {
    "a program": "copy (select 1) to program 'true'",
    "a file of the server, written": "copy (select 1) to '/tmp/planted'",
    "a file of the server, read": "select pg_read_file('postgresql.conf')",
    "a file of the server as a large object": "select lo_import('/etc/passwd')",
    "a large object of the server as a file": "select lo_export(1, '/tmp/planted')",
    "an event trigger": "create event trigger planted on ddl_command_start execute function bridge.tell_of_ddl()",
    "a function in public": "create function public.planted() returns int language sql as 'select 1'",
    "a table in public": "create table public.planted (n int)",
    "a function in bridge": "create function bridge.planted() returns int language sql as 'select 1'",
    "a replaced function": "create or replace function bridge.version() returns text language sql as $$ select 'mine' $$",
    "a table in bridge": "create table bridge.planted (n int)",
    "a schema": "create schema planted",
    "an operator in bridge": "create operator bridge.=== (leftarg = int, rightarg = int, function = int4eq)",
    "a trigger on jobs": "create trigger planted before insert on bridge.job execute function pg_catalog.tsvector_update_trigger()",
    "a rule on jobs": "create rule planted as on insert to bridge.job do instead nothing",
    "a policy on jobs": "create policy planted on bridge.job using (true)",
    "no policies on jobs": "alter table bridge.job disable row level security",
    "the owner of jobs": "alter table bridge.job owner to current_user",
    "the owner's role": "set role postgres",
    "a further right": "grant select on bridge.finished to current_user",
    "a further role": "grant pg_read_all_data to current_user",
    "a role": "create role planted superuser",
    "triggers switched off": "set session_replication_role = replica",
    "the server's settings": "set log_statement = 'none'",
    "libraries": "set session_preload_libraries = 'planted'",
    "a subscription": "create subscription planted connection 'host=127.0.0.1 port=1' publication p with (connect = false)",
    "the secrets of logins": "select rolpassword from pg_authid",
    "another's session": "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()",
    "jobs by hand": "insert into bridge.job (id) values (gen_random_uuid())",
    "jobs in flight": "delete from bridge.inflight",
    "history": "update bridge.finished set status = 'succeeded'",
    "an emptied table": "truncate bridge.job",
    "dropping": "drop function bridge.enqueue",
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_what_is_beyond_its_table_is_refused_to_every_role(db: Session, role: str) -> None:
    db.enqueue()
    done: dict[str, str] = {}
    for what, statement in FORBIDDEN.items():
        with db.connection.transaction(force_rollback=True):
            db.do(f"set local session authorization {role}")
            try:
                with db.connection.transaction():
                    db.do(statement)
                done[what] = "done"
            except errors.InsufficientPrivilege:
                pass
            except errors.Error as error:
                done[what] = f"{error.sqlstate} {error}"
    assert done == {}


def test_no_role_has_an_attribute_or_is_a_member_of_another(db: Session) -> None:
    attributes = "rolsuper or rolcreatedb or rolcreaterole or rolcanlogin or rolreplication or rolbypassrls"
    assert db.rows(f"select rolname from pg_roles where rolname = any (%s) and ({attributes})", ROLES) == []
    assert db.rows("select roleid::regrole from pg_auth_members where member = any (%s::regrole[])", ROLES) == []


@pytest.mark.parametrize("role", ROLES)
def test_a_temporary_table_of_the_callers_stands_in_for_none_of_ours(db: Session, role: str) -> None:
    """And a search path of his own for no function of Postgres's."""
    db.enqueue()
    db.do("create schema hostile; grant usage on schema hostile to public")
    db.do("create function hostile.clock_timestamp() returns timestamptz language sql as $$ select 'epoch'::timestamptz $$")
    db.do("create function hostile.lower(text) returns text language sql as $$ select 'planted' $$")
    asked = {
        "bridge_producer": "select bridge.enqueue('a.task')", "bridge_worker": "select bridge.tick('test')",
        "bridge_operator": "select bridge.pause('celery')", "bridge_viewer": "select count(*) from bridge.health()",
        "bridge_tenant": "select 1",
    }[role]  # fmt: skip
    db.do(f"set session authorization {role}; set search_path = pg_temp, hostile, bridge, pg_catalog")
    for name in ("job", "ready", "setting", "queue", "tick_state", "pg_class", "pg_roles", "paused"):
        db.do(f"create temporary table {name} (planted text)")
    db.do(asked)
    for name in ("job", "ready", "setting", "queue", "tick_state", "paused"):
        assert db.one(f"select count(*) from pg_temp.{name}") == 0
    db.do("reset session authorization; reset search_path")
    before = "now() - interval '1 day'"
    assert db.one(f"select count(*) from bridge.jobs where created_at < {before} or finished_at < {before}") == 0
