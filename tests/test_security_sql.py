"""What a hostile role tries in SQL: it gets refused, or gets nothing by it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_retention import cleaned, end_long_ago
from psycopg import errors

from bridge import schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Session

MARK = "insert into public.mark select current_user"  # what hostile code does: it notes with whose rights it runs


@pytest.fixture
def hostile(db: Session) -> Iterator[Session]:
    """A role that may do what others let it do in the database, and a table where its code leaves a mark."""
    db.do("do $$ begin create role bridge_hostile nologin; exception when duplicate_object then null; end $$")
    db.do("create table mark (who text); grant insert on mark to public")
    db.do("grant create on schema public to bridge_hostile")
    db.do("do $$ begin execute format('grant create on database %I to bridge_hostile', current_database()); end $$")
    yield db
    db.do("reset role")
    db.do("drop owned by bridge_hostile cascade")


def marks(db: Session) -> set[str]:
    """With whose rights hostile code has run."""
    return {who for (who,) in db.rows("select distinct who from public.mark")}


def evil(db: Session, name: str, kind: str, value: str) -> None:
    """A function of the hostile role's, which leaves the mark."""
    db.do(f"create function {name} returns {kind} language plpgsql as $$ begin {MARK}; return {value}; end $$")


@pytest.mark.parametrize("role", ["bridge_producer", "bridge_viewer"])
def test_a_temporary_type_of_the_callers_runs_nothing_with_the_owners_rights(hostile: Session, role: str) -> None:
    db = hostile
    db.do(f"set role {role}")
    evil(db, "pg_temp.evil(v pg_catalog.text)", "boolean", "true")
    for name in ("text", "uuid", "json", "jsonb", "timestamptz"):
        db.do(f"create domain pg_temp.{name} as pg_catalog.{name} check (pg_temp.evil(value::pg_catalog.text))")
    db.do("create temporary table pg_roles as select * from pg_catalog.pg_roles")
    if role == "bridge_producer":
        db.do("select bridge.enqueue('t', headers => pg_catalog.jsonb '{\"a\": 1}', timeout => '1 s')")
    else:
        db.do("select * from bridge.health()")
        db.do("select * from bridge.select_jobs()")
    assert marks_as_owner(db) == set()


def marks_as_owner(db: Session) -> set[str]:
    db.do("reset role")
    return marks(db)


def test_every_function_looks_for_temporary_types_last(db: Session) -> None:
    loose = db.rows(
        "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'bridge'::regnamespace and p.prokind = 'f'"
        " and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)"
    )
    # Constants: with a clause they could not be put in place of calls, and there is nothing in them to be led astray.
    assert sorted(loose) == [("bridge.tasks_are_ruled()",), ("bridge.tenants_are_on()",)]


def test_what_stands_in_schema_public_is_not_built_into_the_schema(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("create function public.format(pg_catalog.text, pg_catalog.text) returns text language sql return 'evil'")
        with connection.transaction():
            schema.apply(connection)
            assert connection.execute("show search_path").fetchone() == ('"$user", public',)
        bound = connection.execute(
            "select d.classid::regclass, d.objid from pg_depend d where d.refobjid in"
            " (select p.oid from pg_proc p where p.pronamespace = 'public'::regnamespace)"
        ).fetchall()
    assert bound == []


def test_an_archive_of_somebody_elses_is_refused_and_its_triggers_run_nothing(hostile: Session) -> None:
    db = hostile
    db.do("select bridge.create_archive('public.kept')")
    db.do("alter table public.kept owner to bridge_hostile; set role bridge_hostile")
    db.do(f"create function public.evil() returns trigger language plpgsql as $$ begin {MARK}; return new; end $$")
    db.do("create trigger evil before insert on public.kept for each row execute function public.evil(); set role bridge_operator")
    with pytest.raises(errors.DatabaseError, match=r"archive public\.kept, or a partition of it, belongs to a role whose triggers"):
        db.do("select bridge.set_archive('public.kept')")
    db.do("reset role; update bridge.archive set relation = 'public.kept'")
    db.do("select bridge.set_retention(status => 'succeeded', keep => '1 day')")
    end_long_ago(db, "40 days")
    assert "failed" in {status for status, *_ in cleaned(db).values()}, "what was set before is refused as well"
    assert marks(db) == set()


def test_what_somebody_else_calls_a_vault_is_none(hostile: Session) -> None:
    db = hostile
    db.do("set role bridge_hostile; create schema vault")
    evil(db, "vault.evil()", "text", "'forged'")
    db.do("create view vault.decrypted_secrets as select 'crm'::text as name, vault.evil() as decrypted_secret")
    db.do("reset role; select bridge.schedule('s', '@daily', 't', args => '[{\"secret\": \"vault:crm\"}]'); set role bridge_worker")
    with pytest.raises(errors.DatabaseError, match="there is no vault in this database"):
        db.do("select bridge.secret('crm')")
    assert marks_as_owner(db) == set()


def test_what_somebody_else_calls_pg_cron_is_not_read(hostile: Session) -> None:
    db = hostile
    db.do("set role bridge_hostile; create schema cron")
    evil(db, "cron.evil()", "text", "''")
    entry = "1::bigint as jobid, cron.evil() as jobname, '* * * * *'::text as schedule, true as active, ''::text as command"
    db.do(f"create view cron.job as select {entry}, current_database()::text as database, 'postgres'::text as username")
    db.do(
        "create view cron.job_run_details as select 1::bigint as jobid, 1::bigint as runid, 'failed'::text as status, cron.evil()"
        " as return_message, now() as start_time, now() as end_time"
    )
    db.do("create function cron.schedule(text, text, text) returns bigint language sql as 'select 1'; set role bridge_operator")
    for question in ("health()", "schedule_troubles()", "upkeep()", "latest_cron_runs()", "cleanup()"):
        db.rows(f"select * from bridge.{question}")
    db.do("reset role; select bridge.register_cron(), bridge.announce_cron(), bridge.tick('test')")
    assert marks(db) == set()


def test_default_privileges_open_no_partition(hostile: Session) -> None:
    db = hostile
    db.do("alter default privileges grant select on tables to public, bridge_hostile; grant usage on schema bridge to bridge_hostile")
    db.do("select bridge.make_days(current_date + 20, 2)")
    end_long_ago(db, "40 days", "failed")
    cleaned(db, "40 days")
    db.do("alter default privileges revoke select on tables from public, bridge_hostile")
    opened = db.rows(
        "select c.relname from pg_class c, aclexplode(c.relacl) a where c.relnamespace = 'bridge'::regnamespace and c.relispartition"
        " and a.grantee <> c.relowner"
    )
    assert opened == []


def message(task: str, headers: str) -> tuple[str, list[str]]:
    call = (
        "select bridge.enqueue_message(gen_random_uuid(), null, %s, 'celery', 9::smallint, '[]', '{}', null, null, null, null, %s, '{}',"
        " null, null)"
    )
    return call, [task, headers]


@pytest.mark.parametrize("headers", ['{"task": "%s", "id": "x"}', '{"task": "t", "t\\u0061sk": "%s"}', '{"id": "x"}'])
@pytest.mark.parametrize("forbidden", ["bridge.deliver_webhook", "admin.drop"])
def test_a_message_runs_the_task_that_the_rules_were_asked_about(db: Session, headers: str, forbidden: str) -> None:
    db.do("select bridge.allow_task('bridge_producer', 't'); set role bridge_producer")
    text = headers.replace("%s", forbidden)
    call, values = message("t", text)
    with pytest.raises(errors.DatabaseError, match="headers of task t name task"):
        db.one(call, *values)
    plain = {"id": "0190a8de-0000-7000-8000-000000000001", "task": "t", "queue": "celery", "rank": 9, "args": [], "kwargs": {}}
    with pytest.raises(errors.DatabaseError, match="headers of task t name task"):
        db.one("select bridge.enqueue_buffered(%s::json)", json.dumps([{**plain, "headers": "HERE"}]).replace('"HERE"', text))
    db.do("reset role")
    assert db.one("select count(*) from bridge.job") == 0


@pytest.mark.parametrize("name", ["task", "id", "bridge", "bridge_attempt", "bridge_run", "bridge_signature", "compression"])
def test_a_header_that_steers_the_worker_is_not_the_callers_to_set(db: Session, name: str) -> None:
    with pytest.raises(errors.DatabaseError, match=f"headers sets {name}"):
        db.enqueue("t", headers={name: "x"})
