"""What a hostile role tries in SQL: it gets refused, or gets nothing by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from bridge import schema

if TYPE_CHECKING:
    from fix_sql import Session


def test_a_temporary_type_of_the_callers_runs_nothing_with_the_owners_rights(db: Session) -> None:
    db.do("create table mark (who text); grant insert on mark to public")
    with db.connection.transaction():
        db.do("set local role bridge_producer")
        db.do("""create function pg_temp.evil(v pg_catalog.text) returns boolean language plpgsql as
          'begin insert into public.mark values (current_user); return true; end'""")
        for name in ("text", "uuid", "json", "jsonb", "timestamptz"):
            db.do(f"create domain pg_temp.{name} as pg_catalog.{name} check (pg_temp.evil(value::pg_catalog.text))")
        db.do("select bridge.enqueue('t', headers => pg_catalog.jsonb '{\"a\": 1}', timeout => '1 s')")
    assert db.rows("select distinct who from public.mark") == []


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
        connection.execute("create function public.coerce(uuid, uuid) returns boolean language sql return true")
        connection.execute("create operator public.= (leftarg = uuid, rightarg = uuid, function = public.coerce)")
        with connection.transaction():
            schema.apply(connection)
            assert connection.execute("show search_path").fetchone() == ('"$user", public',)
        bound = connection.execute(
            "select d.classid::regclass, d.objid from pg_depend d where d.refobjid in"
            " (select p.oid from pg_proc p where p.pronamespace = 'public'::regnamespace) and d.classid <> 'pg_operator'::regclass"
        ).fetchall()
    assert bound == []
