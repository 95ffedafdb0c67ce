"""Tenants: each meets its own jobs alone, whatever it asks, and others do not exist for it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner
from fix_sql import Session
from psycopg import conninfo

import bridge
from bridge.cli import main
from bridge.client import forget_connections

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

CALL = (
    "select bridge.enqueue_message(gen_random_uuid(), null, 't', 'celery', 9::smallint, '[]', '{}', null, null, null, null, null, null,"
    " null, null, p_links => %s::jsonb)"
)
UNKNOWN = "00000000-0000-0000-0000-00000000abcd"


@pytest.fixture
def web(db: Session) -> Iterator[Session]:
    """A session as a proxy has it: its login may take the role of tenants, and has nothing by itself."""
    login, user = (f"{name}_{db.one('select current_database()')}" for name in ("proxy", "user"))
    db.do(f"create role {user} in role bridge_tenant")
    db.do(f"create role {login} login noinherit in role {user}")
    db.do("select bridge.enable_tenants()")
    session = Session(conninfo.make_conninfo(db.dsn, user=login))
    session.user = user  # type: ignore[attr-defined]
    yield session
    session.connection.close()
    db.do(f"drop owned by {user}")
    db.do(f"drop role {login}")
    db.do(f"drop role {user}")


@contextmanager
def request(session: Session, tenant: str | None, *, keep: bool = True) -> Iterator[None]:
    """One transaction as PostgREST makes it for a request: the role and the claims are its own."""
    with session.connection.transaction(force_rollback=not keep):
        claims = {"role": "user", **({} if tenant is None else {"tenant_id": tenant})}
        session.rows("select set_config('role', %s, true), set_config('request.jwt.claims', %s, true)", session.user, json.dumps(claims))  # type: ignore[attr-defined]
        yield


def refusal(session: Session, tenant: str | None, statement: str, *values: Any) -> tuple[str, ...]:
    """How a request is refused, in all words that its client gets."""
    with pytest.raises(psycopg.Error) as refused, request(session, tenant):
        session.rows(statement, *values)
    diag = refused.value.diag
    return tuple(str(part) for part in (diag.sqlstate, diag.message_primary, diag.message_detail, diag.message_hint, diag.constraint_name))


def enqueue(session: Session, tenant: str, arguments: str = "'t'") -> UUID:
    with request(session, tenant):
        return session.one(f"select bridge.enqueue({arguments})")  # type: ignore[no-any-return]


def seen(session: Session, tenant: str | None) -> set[UUID]:
    with request(session, tenant):
        return {row[0] for row in session.rows("select id from bridge.my_jobs")}


def test_each_tenant_sees_its_own_jobs_and_staff_sees_all(web: Session, db: Session) -> None:
    mine, ended, theirs, nobodys = enqueue(web, "acme"), enqueue(web, "acme"), enqueue(web, "zeta"), db.enqueue()
    claims = {claim.id: claim for claim in db.claim()}
    db.mark(list(claims.values()))
    run = db.start(claims[ended])
    db.fail(claims[ended], run, "secret of acme", final=True)
    assert (seen(web, "acme"), seen(web, "zeta"), seen(web, "none"), seen(web, None)) == ({mine, ended}, {theirs}, set(), set())
    with request(web, "acme"):
        ((error,),) = web.rows("select error from bridge.my_jobs where status = 'failed'")
        assert error == {"type": "ValueError", "message": "secret of acme"}
        many = web.rows('select * from bridge.enqueue_many(\'[{"task": "a"}, {"task": "b", "serial_key": "s"}]\')')
        flow = web.rows(
            'select id from bridge.enqueue_flow(\'[{"ref": "a", "task": "a"}, {"ref": "b", "task": "b", "depends_on": ["a"]}]\')'
        )
    assert len(seen(web, "acme")) == 2 + len(many) + len(flow) == 6
    with db.connection.transaction(force_rollback=True):
        db.do("set local role bridge_viewer")
        assert {row[0] for row in db.rows("select id from bridge.jobs")} >= {mine, ended, theirs, nobodys}
        assert db.rows("select * from bridge.tenants order by 1") == [("acme", 5, 1), ("zeta", 1, 0)]
        assert db.rows("select id from bridge.job where id = %s", theirs) == [(theirs,)], "row level security lets staff through"


CALLS = (
    "bridge.cancel(%s)", "bridge.retry(%s)", "bridge.history(%s)", "bridge.logs(%s)", "bridge.wait(array[%s]::uuid[])",
    "bridge.enqueue('t', depends_on => array[%s]::uuid[])", "bridge.enqueue('t', batch => %s)",
)  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_what_is_anothers_is_refused_in_the_words_for_what_never_was(web: Session, db: Session, call: str) -> None:
    theirs, ended = enqueue(web, "zeta", "'t', unique_key => 'k'"), enqueue(web, "zeta")
    db.do("select bridge.cancel(%s)", ended)
    batch = db.one("select bridge.create_batch('theirs')")
    unknown = refusal(web, "acme", f"select * from {call}", UNKNOWN)
    for identity in (theirs, ended, batch):
        told = refusal(web, "acme", f"select * from {call}", identity)
        assert tuple(part.replace(str(identity), UNKNOWN) for part in told) == unknown
    assert db.status(theirs) == "queued"


def test_its_own_it_cancels_retries_waits_for_and_reads(web: Session) -> None:
    mine = enqueue(web, "acme")
    with request(web, "acme"):
        assert web.one("select bridge.cancel(%s)", mine) == "cancelled"
        assert web.rows("select status from bridge.wait(array[%s]::uuid[])", mine) == [("cancelled",)]
        assert web.one("select bridge.retry(%s)", mine) == "queued"
        assert web.rows("select event from bridge.history(%s)", mine)[0] == ("enqueued",)
        assert web.rows("select * from bridge.logs(%s)", mine) == []
        assert web.one("select bridge.enqueue('t', depends_on => array[%s]::uuid[])", mine)
    assert len(seen(web, "acme")) == 2, "a job that ran again is its tenant's still"


def test_keys_are_each_tenants_own(web: Session, db: Session) -> None:
    keys = "'t', unique_key => 'report', serial_key => 'turn'"
    first, other = enqueue(web, "zeta", keys), enqueue(web, "acme", keys)
    assert first != other
    assert enqueue(web, "acme", keys) == other
    assert enqueue(web, "acme", f"{keys}, on_conflict => 'replace'") == other, "zeta's is not touched"
    assert db.one("select count(*) from bridge.job") == 2
    told = refusal(web, "acme", "select bridge.enqueue('t', unique_key => 'report', on_conflict => 'raise')")
    assert told[:2] == ("JB003", "unique_key 'acme/report' belongs to a job that has not ended")
    assert str(first) not in " ".join(told)
    with request(web, "acme"):
        (again,) = web.rows('select * from bridge.enqueue_many(\'[{"task": "t", "unique_key": "report"}]\')')[0]
    assert again == other
    claimed = {claim.id for claim in db.claim()}
    assert claimed == {first, other}, "two tenants' serial keys do not make one queue"


def test_without_a_tenant_nothing_is_made_and_nothing_is_seen(web: Session) -> None:
    code, message, *_ = refusal(web, None, "select bridge.enqueue('t')")
    assert (code, message) == ("JB008", f"role {web.user} has no tenant in this session")  # type: ignore[attr-defined]
    for wrong in ("a/b", "a b", "x" * 101):
        assert refusal(web, wrong, "select bridge.enqueue('t')")[:2] == ("JB008", "the tenant of this session is no name")
    web.rows("select set_config('request.jwt.claims', 'nonsense', false), set_config('role', %s, false)", web.user)  # type: ignore[attr-defined]
    with pytest.raises(psycopg.Error, match=r"setting request\.jwt\.claims is no JSON"):
        web.rows("select * from bridge.my_jobs")
    own = """select bridge.enqueue('t', webhook => '"https://example.org/"')"""
    assert refusal(web, "acme", own)[:2] == ("JB008", "webhook is given, and tenants' jobs have none of their own")


def test_a_tenants_condition_sees_no_row_of_others(web: Session, db: Session) -> None:
    enqueue(web, "zeta", "'t', '[\"of zeta\"]'")
    enqueue(web, "acme", "'t', '[\"of acme\"]'")
    db.do(f"grant create, temporary on database {db.one('select current_database()')} to {web.user}")  # type: ignore[attr-defined]
    with request(web, "acme"):
        # A function of the tenant's own, cheap, so that Postgres would ask it first of all if it might.
        web.do("create temp table peeked (args text)")
        web.do(
            "create function pg_temp.peek(text) returns boolean language plpgsql cost 0.0000001"
            " as $$ begin insert into pg_temp.peeked values ($1); return true; end $$"
        )
        web.rows("select id from bridge.my_jobs where pg_temp.peek(args::text)")
        assert web.rows("select args from pg_temp.peeked") == [('["of acme"]',)]


def test_tables_that_a_platform_grants_show_a_tenant_its_own_rows_alone(web: Session, db: Session) -> None:
    mine, theirs = enqueue(web, "acme"), enqueue(web, "zeta")
    db.do("select bridge.cancel(%s), bridge.cancel(%s)", mine, theirs)
    mine_too = enqueue(web, "acme")
    db.do(f"grant select on all tables in schema bridge to {web.user}")  # type: ignore[attr-defined]
    with request(web, "acme"):
        assert web.rows("select id from bridge.job union all select id from bridge.finished") == [(mine_too,), (mine,)]
        for table in ("attempt", "checkpoint", "log_line", "result", "job_note"):
            assert web.rows(f"select * from bridge.{table}") == []


def test_what_is_notified_tells_nothing_of_a_tenant(web: Session, db: Session) -> None:
    db.listen()  # or nobody is told
    web.do("listen bridge_ready")
    web.do("listen bridge_done")
    theirs = enqueue(web, "zeta", "'t', '[\"of zeta\"]', unique_key => 'key of zeta'")
    db.do("select bridge.wait_for(array[%s]::uuid[])", theirs)
    db.do("select bridge.cancel(%s)", theirs)
    payloads = {(notice.channel, notice.payload) for notice in web.connection.notifies(timeout=5, stop_after=2)}
    assert payloads == {("bridge_ready", "celery"), ("bridge_done", str(theirs))}


def test_what_a_task_calls_belongs_to_the_tenant_of_its_job(web: Session, db: Session) -> None:
    mine = enqueue(web, "acme")
    child = db.one(CALL, json.dumps({"called": str(mine)}))
    db.one(CALL, None)
    assert seen(web, "acme") == {mine, child}


def test_a_trusted_producer_says_for_whom_by_the_claim_and_needs_none(web: Session, db: Session) -> None:
    with db.connection.transaction():
        db.rows("select set_config('request.jwt.claims', '{\"tenant_id\": \"acme\"}', true)")
        mine = db.enqueue(unique_key="k")
        call = db.one(CALL, None)
    db.enqueue(unique_key="k")
    assert seen(web, "acme") == {mine, call}
    assert db.one("select count(*) from bridge.job") == 3


def test_a_tenant_that_logs_in_itself_is_its_role_and_no_setting_makes_it_another(db: Session) -> None:
    logins = [f"{name}_{db.one('select current_database()')}" for name in ("acme", "zeta")]
    db.do("select bridge.enable_tenants('role')")
    sessions = []
    for login in logins:
        db.do(f"create role {login} login in role bridge_tenant")
        sessions.append(Session(conninfo.make_conninfo(db.dsn, user=login)))
    acme, zeta = sessions
    theirs = zeta.one("select bridge.enqueue('t')")
    acme.rows("select set_config('request.jwt.claims', %s, false)", json.dumps({"tenant_id": logins[1]}))
    acme.rows("select set_config('bridge.tenant', %s, false)", logins[1])
    for attempt in (f"set role {logins[1]}", f"set session authorization {logins[1]}", "set role bridge_operator"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            acme.do(attempt)
    acme.do("set role bridge_tenant")  # its own group: sheds nothing, gives nothing
    assert acme.rows("select * from bridge.my_jobs") == []
    acme.do("reset role")
    with pytest.raises(psycopg.Error, match="does not exist"):
        acme.rows("select bridge.cancel(%s)", theirs)
    mine = acme.one("select bridge.enqueue('t')")
    assert (acme.rows("select id from bridge.my_jobs"), zeta.rows("select id from bridge.my_jobs")) == ([(mine,)], [(theirs,)])
    for login, session in zip(logins, sessions, strict=True):
        session.connection.close()
        db.do(f"drop role {login}")


def test_off_it_is_a_constant_and_on_it_reads_by_an_index(db: Session, web: Session) -> None:
    db.do(
        "insert into bridge.finished (seq, id, task, queue, rank, args, kwargs, size, max_attempts, attempts, losses, run_at, created_at,"
        " finished_at, status, options) select -n, gen_random_uuid(), 't', 'q', 9, '[]', '{}', 4, 1, 1, 0, now(), now(), now(),"
        " 'succeeded', jsonb_build_object('tenant', 't' || n % 1000) from generate_series(1, 30000) n"
    )
    db.do("analyze bridge.finished")
    today = db.one("select to_char(now() at time zone 'utc', 'YYYYMMDD')")
    enqueue(web, "t7")
    with request(web, "t7"):
        assert web.one("select count(*) from bridge.my_jobs") == 31
    with db.connection.transaction(force_rollback=True):
        db.rows("select set_config('request.jwt.claims', '{\"tenant_id\": \"t7\"}', true)")
        plan = "\n".join(
            row[0] for row in db.rows("explain (analyze, buffers, costs off, timing off) select id, status from bridge.my_jobs")
        )
    assert f"Seq Scan on finished_{today}" not in plan
    assert "Rows Removed by Filter" not in plan
    assert "job_tenant" in plan
    constant = "explain (verbose, costs off) select 1 where bridge.tenants_are_on()"
    assert "One-Time Filter" not in str(db.rows(constant))
    assert db.one("select bridge.disable_tenants()") is True
    assert db.one("select bridge.disable_tenants()") is False
    assert "One-Time Filter: false" in str(db.rows(constant))
    assert db.rows("select * from bridge.rights() where role = 'bridge_tenant'") == []
    assert db.one("select bool_or(relrowsecurity) from pg_class where relnamespace = 'bridge'::regnamespace") is False
    assert db.one("select options from bridge.job where id = %s", db.enqueue()) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("'search_path'", "claim is 'search_path'"),
        ("'request.jwt; drop'", "claim is 'request.jwt; drop'"),
        ("null", "claim is NULL"),
        ("key => 'a b'", "key is 'a b'"),
        ("key => 'user_metadata.tenant'", "key is in user_metadata, which users change themselves"),
    ],
)
def test_a_claim_that_cannot_be_trusted_or_read_is_refused(db: Session, arguments: str, said: str) -> None:
    with pytest.raises(psycopg.Error, match=said) as refused:
        db.do(f"select bridge.enable_tenants({arguments})")
    assert refused.value.sqlstate == "JB001"


def test_tenants_from_python_and_the_command_line_and_installing_again_keeps_them(db: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", db.dsn)
    forget_connections()
    bridge.enable_tenants("app.tenant", None)
    with db.connection.transaction():
        db.rows("select set_config('app.tenant', 'acme', true)")
        db.enqueue()
    assert [(one.tenant, one.live, one.ended) for one in bridge.tenants()] == [("acme", 1, 0)]
    installed = CliRunner().invoke(main, ["install"])
    assert installed.exit_code == 0, installed.output
    assert db.one("select bridge.tenants_are_on() and bridge.tasks_are_ruled() is false")
    listed = CliRunner().invoke(main, ["tenants", "list", "--json"])
    found = json.loads(listed.stdout)
    assert (found["tenancy"]["claim"], found["tenants"]) == ("app.tenant", [{"tenant": "acme", "live": 1, "ended": 0}])
    assert "acme\t1\t0" in CliRunner().invoke(main, ["tenants", "list"]).output
    assert bridge.disable_tenants()
    assert not bridge.disable_tenants()
    enabled = CliRunner().invoke(main, ["tenants", "enable", "--key", "app_metadata.tenant_id"])
    assert "tenants are on: claim=request.jwt.claims key=app_metadata.tenant_id" in enabled.output
    assert json.loads(CliRunner().invoke(main, ["tenants", "disable", "--json"]).stdout) == {"outcome": "disabled"}
    forget_connections()


def test_turning_tenants_on_and_off_speaks_of_nothing_that_is_only_missing(db: Session) -> None:
    notices: list[str | None] = []
    db.connection.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    db.do("select bridge.enable_tenants()")
    db.do("select bridge.disable_tenants()")
    assert notices == []
