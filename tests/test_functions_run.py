"""Calls of SQL functions by schedules: with what rights, what becomes of the run, and how it is stopped, lost and repeated."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_schedules import DAY, due_at, error_of, schedule, tick
from fix_servers import wait_for_row, wait_for_value, wait_until

from bridge.queries import calls as queries
from bridge.queries.connection import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Session

ROLE = "bridge_test_caller"
HERE = "bridge_test_calls"  # who performs calls in another thread


@pytest.fixture
def shop(db: Session) -> Iterator[Session]:
    """Functions that note what they do in a table, and a role that may call them."""
    db.do(f"do $$ begin create role {ROLE} nologin; exception when duplicate_object then null; end $$")
    db.do(f"grant bridge_operator to {ROLE}")
    db.do("create table public.done (what text, who text default current_user)")
    db.do("grant insert on public.done to public")
    db.do("""create function public.note(what text, fails boolean default false) returns integer language plpgsql as $$
      begin
        insert into public.done values (what);
        if fails then raise exception 'not % today', what using errcode = 'XX123', detail = 'on holiday'; end if;
        return 3;
      end $$""")
    # Works until it is stopped, or until another session lets it go on.
    db.do("""create function public.work(what text) returns void language plpgsql as $$
      begin
        insert into public.done values (what);
        perform pg_advisory_xact_lock(77);
      end $$""")
    yield db
    ours = "datname = current_database() and application_name = %s"
    db.connection.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where {ours}".encode(), (HERE,))


def call(db: Session, function: str, args: str = "[]", **options: Any) -> Any:
    """The id of a job that is a call, due now."""
    schedule(db, "s", task=None, function=function, args=args, **options)
    return db.one("select bridge.run_schedule('s')")


def perform(db: Session) -> None:
    db.do("call bridge.run_calls()")


def done(db: Session) -> list[str]:
    return [row[0] for row in db.rows("select what from public.done order by what")]


class Performer:
    """Performs calls in another session, for as long as the function holds on."""

    def __init__(self, db: Session) -> None:
        self.gate = psycopg.connect(db.dsn, autocommit=True)
        self.gate.execute("select pg_advisory_lock(77)")
        self.session = psycopg.connect(db.dsn, autocommit=True, application_name=HERE)
        self.pid = self.session.info.backend_pid
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.session.execute("call bridge.run_calls()")
        except psycopg.Error:
            self.session.close()

    def let_go(self) -> None:
        self.gate.close()
        self.thread.join(30)


def performs(db: Session, identity: Any) -> Performer:
    performer = Performer(db)
    wait_for_row(db.dsn, "select 1 from pg_locks where pid = %s and not granted and locktype = 'advisory'", (performer.pid,))
    assert db.rows("select status, pid from bridge.jobs where id = %s", identity) == [("running", performer.pid)]
    return performer


def test_a_slot_calls_its_function_and_its_value_is_the_result(shop: Session) -> None:
    shop.do("""create function public.facts(a text, list integer[], facts jsonb, nothing date) returns jsonb language sql as
      $$ select jsonb_build_object('a', a, 'n', list[2], 'facts', facts, 'none', nothing is null, 'path', current_setting('search_path'),
         'schedule', current_setting('bridge.schedule'), 'slot', current_setting('bridge.slot')) $$""")
    shop.do("create function public.rows() returns setof text language sql as $$ select 'a' union all select 'b' $$")
    shop.do("create function public.nothing() returns void language sql as ''")
    schedule(shop, "facts", task=None, function="public.facts", args='["x", [1, 2]]', kwargs='{"facts": {"b": [true]}, "nothing": null}')
    schedule(shop, "rows", task=None, function="public.rows")
    schedule(shop, "nothing", task=None, function="public.nothing")
    for name in ("facts", "rows", "nothing"):
        due_at(shop, DAY, name)
    assert tick(shop, DAY) == 3
    assert shop.one("select count(*) from bridge.job where queue = 'bridge.calls'") == 3
    perform(shop)
    results = "select r.schedule, j.result from bridge.schedule_run r join bridge.jobs j on j.id = r.job where j.status = 'succeeded'"
    found = dict(shop.rows(results))
    assert found == {"rows": 2, "nothing": None, "facts": {
        "a": "x", "n": 2, "facts": {"b": [True]}, "none": True, "path": "public, pg_temp", "schedule": "facts",
        "slot": "2031-05-05T00:00:00.000000+00:00",
    }}  # fmt: skip
    shop.do("create function public.huge() returns numeric language sql as 'select 1e30'")
    schedule(shop, "huge", task=None, function="public.huge")
    shop.do("select bridge.run_schedule('huge')")
    perform(shop)
    shop.do("select bridge.tick()")
    assert shop.rows("select distinct status from bridge.schedule_runs") == [("succeeded",)]
    assert shop.rows("select schedule, rows from bridge.schedule_run order by 1") == [
        ("facts", None),
        ("huge", None),
        ("nothing", None),
        ("rows", 2),
    ]


def test_what_a_failed_call_did_is_undone_and_its_error_says_all_and_it_is_tried_again(shop: Session) -> None:
    identity = call(shop, "public.note", '["reset", true]', max_attempts=2)
    shop.do("update bridge.job set backoff = '0'")
    perform(shop)
    assert done(shop) == []
    assert shop.rows("select status, attempts from bridge.jobs where id = %s", identity) == [("failed", 2)]
    error = shop.field(identity, "error")
    assert (error["type"], error["message"]) == ("SqlError", "not reset today (SQLSTATE XX123)")
    assert error["traceback"].startswith("on holiday\nPL/pgSQL function note(text,boolean) line 4 at RAISE")
    assert shop.rows("select id from bridge.dead_jobs") == [(identity,)]
    assert shop.rows("select outcome from bridge.attempts where id = %s", identity) == [("failed",), ("failed",)]
    shop.do("create or replace function public.note(what text, fails boolean default false) returns integer language sql as 'select 9'")
    shop.do("select bridge.retry(%s)", identity)
    perform(shop)
    assert shop.rows("select status, result from bridge.jobs where id = %s", identity) == [("succeeded", 9)]
    assert shop.rows("select status, error from bridge.schedule_runs") == [("succeeded", None)]


def test_an_error_can_be_kept_from_being_repeated_by_its_sqlstate(shop: Session) -> None:
    shop.do("select bridge.set_retry(task => 'public.note', never_on => '{SQLSTATE_XX123}')")
    identity = call(shop, "public.note", '["reset", true]')
    perform(shop)
    assert shop.rows("select status, attempts from bridge.jobs where id = %s", identity) == [("failed", 1)]


def test_a_call_has_the_rights_of_the_role_that_made_the_schedule_and_no_way_to_others(shop: Session) -> None:
    shop.do("create table public.private (n integer)")
    for name, body in {
        "look": "select count(*)::integer from public.private", "escape": "select set_config('role', 'none', true)::text::integer",
        "session": "select set_config('session_authorization', session_user, true)::text::integer",
    }.items():  # fmt: skip
        shop.do(f"create function public.{name}() returns integer language sql as $$ {body} $$")
    shop.do(f"set role {ROLE}")
    fine = call(shop, "public.note", '["mine"]')
    refused = [call(shop, f"public.{name}", max_attempts=1) for name in ("look", "escape", "session")]
    shop.do("reset role")
    perform(shop)
    assert shop.rows("select what, who from public.done") == [("mine", ROLE)]
    assert shop.status(fine) == "succeeded"
    errors = [shop.field(identity, "error")["message"] for identity in refused]
    assert errors[0] == "permission denied for table private (SQLSTATE 42501)"
    assert [error.partition(" ")[0] for error in errors[1:]] == ["cannot", "cannot"], errors
    # Its owner may alter the function that calls for it, but not so that it runs with other rights.
    shop.do(f"set role {ROLE}")
    late = call(shop, "public.note", '["late"]', max_attempts=1)
    shop.do(f"alter function bridge.call_as_{ROLE}(text, jsonb, text) security invoker")
    shop.do("reset role")
    perform(shop)
    assert "does not run as its role any more" in shop.field(late, "error")["message"]
    assert done(shop) == ["mine"]


def test_whoever_says_what_is_called_is_whose_rights_it_has(shop: Session) -> None:
    schedule(shop, "s", task=None, function="public.note", args='["theirs"]')
    owner = shop.one("select role from bridge.schedule")
    shop.do(f"set role {ROLE}")
    shop.do("update bridge.schedule set cron = '@daily' where name = 's'")
    assert shop.one("select role from bridge.schedules") == owner
    shop.do("update bridge.schedule set args = '[\"mine\"]' where name = 's'")
    assert shop.one("select role from bridge.schedules") == ROLE
    said = error_of(lambda: shop.do("update bridge.schedule set args = '[\"mine\", \"perhaps\"]' where name = 's'"))
    assert "argument fails of public.note(text,boolean)" in said
    # So it is with a dead letter that runs again with other arguments.
    shop.do("reset role")
    dead = call(shop, "public.note", '["theirs", true]', max_attempts=1)
    perform(shop)
    shop.do(f"set role {ROLE}")
    assert "argument fails of public.note" in error_of(lambda: shop.do("select bridge.redrive(%s, args => '[\"x\", 7.5]')", dead))
    shop.do("select bridge.redrive(%s, args => '[\"mine\"]')", dead)
    shop.do("reset role")
    perform(shop)
    assert shop.rows("select what, who from public.done") == [("mine", ROLE)]
    shop.do("select bridge.unschedule('s')")
    shop.do("select bridge.drop_callers()")
    assert shop.rows("select proname from pg_proc where proname like 'call_as\\_%%'") == []


def test_no_drainer_gets_a_call_and_a_paused_or_limited_one_waits(shop: Session) -> None:
    identity = call(shop, "public.note", '["x"]')
    assert shop.rows("select bridge.ready_queues()") == []
    assert shop.claim("bridge.calls") == []
    assert shop.one("select bridge.calls_wait()")
    shop.do("select bridge.pause('bridge.calls')")
    perform(shop)
    assert (shop.status(identity), shop.one("select bridge.calls_wait()")) == ("queued", False)
    shop.do("select bridge.resume('bridge.calls')")
    shop.do("update bridge.tick_state set source = 'pg_cron'")
    assert not shop.one("select bridge.calls_wait()"), "pg_cron comes first"
    shop.do("select bridge.set_webhook('all', 'https://example.org/x')")
    perform(shop)
    assert shop.status(identity) == "succeeded"
    assert shop.rows("select queue from bridge.jobs where task = 'bridge.deliver_webhook'") == [("celery",)]


def test_calls_of_two_sessions_run_at_once_and_each_once(shop: Session) -> None:
    first, second = call(shop, "public.work", '["first"]'), call(shop, "public.note", '["second"]')
    performer = performs(shop, first)
    perform(shop)
    assert (shop.status(first), shop.status(second)) == ("running", "succeeded")
    performer.let_go()
    assert shop.status(first) == "succeeded"
    assert done(shop) == ["first", "second"]


@pytest.mark.parametrize("how", ["timeout", "cancel", "stranger"])
def test_a_call_is_stopped_by_its_timeout_a_cancel_or_a_person_and_nothing_of_it_stays(shop: Session, how: str) -> None:
    identity = call(shop, "public.work", '["x"]', max_attempts=1, timeout="1 hour")
    performer = performs(shop, identity)
    shop.do("select bridge.sweep()")
    assert shop.one("select bridge.stop_calls()") == 0, "its time is not over"
    if how == "timeout":
        # An hour later its session is alive and is not taken for gone.
        assert shop.one("select bridge.sweep(1000, clock_timestamp() + interval '2 hours')->>'lost'") == "0"
    elif how == "cancel":
        assert shop.one("select bridge.cancel(%s)", identity) == "running"
        shop.do("select bridge.tick()")
    else:
        shop.do("select pg_cancel_backend(%s)", performer.pid)
    performer.thread.join(30)
    assert not performer.session.closed, "the session goes on with the next call"
    assert done(shop) == []
    error = shop.field(identity, "error")
    assert (shop.status(identity), error["type"], error["message"]) == {
        "timeout": ("failed", "SqlError", "canceling statement due to user request (SQLSTATE 57014)"),
        "cancel": ("cancelled", "Terminated", "it was stopped while it ran"),
        "stranger": ("failed", "SqlError", "canceling statement due to user request (SQLSTATE 57014)"),
    }[how]
    performer.let_go()


def test_a_call_that_is_over_its_timeout_says_so(shop: Session) -> None:
    identity = call(shop, "public.work", '["x"]', max_attempts=1, timeout="0.2 seconds")
    performer = performs(shop, identity)
    wait_until(lambda: shop.one("select bridge.stop_calls()"), what="the timeout to pass")
    performer.thread.join(30)
    assert shop.status(identity) == "failed"
    assert shop.field(identity, "error")["message"] == "public.work ran for longer than its timeout, 00:00:00.2, and was stopped"
    performer.let_go()


def test_a_call_whose_session_is_gone_runs_again_and_counts_once(shop: Session) -> None:
    identity = call(shop, "public.work", '["x"]')
    performer = performs(shop, identity)
    shop.do("select pg_terminate_backend(%s, 5000)", performer.pid)
    performer.let_go()
    shop.do("select bridge.sweep()")
    assert shop.status(identity) == "running", "it may just have begun"
    shop.do("select bridge.sweep(1000, clock_timestamp() + interval '6 seconds')")
    assert shop.rows("select status, losses, attempts from bridge.jobs where id = %s", identity) == [("queued", 1, 0)]
    assert shop.one("select reason from bridge.attempts where id = %s", identity).startswith("the session that performed it")
    perform(shop)
    assert (shop.status(identity), done(shop)) == ("succeeded", ["x"])


def test_a_run_that_was_superseded_while_it_went_on_leaves_nothing(shop: Session) -> None:
    identity = call(shop, "public.work", '["x"]')
    performer = performs(shop, identity)
    shop.do("select bridge.lose(i.seq, i.token, 'taken for dead') from bridge.inflight i")
    performer.let_go()
    # The session went on with the next run, which is that job's.
    assert (shop.status(identity), done(shop)) == ("succeeded", ["x"])
    outcomes = {row[0] for row in shop.rows("select outcome from bridge.attempt where id = %s", identity)}
    assert outcomes == {"lost", "superseded"}


def test_what_a_function_leaves_in_the_session_does_not_mislead_the_next_call(shop: Session) -> None:
    shop.do("create schema evil")
    shop.do("create function evil.ge(timestamptz, timestamptz) returns boolean language sql as 'select 1 / 0 > 0'")
    shop.do("create operator evil.>= (leftarg = timestamptz, rightarg = timestamptz, function = evil.ge)")
    shop.do(
        "create function public.mislead() returns text language sql as $$ select set_config('search_path', 'evil, pg_catalog', false)$$"
    )
    shop.do("create table public.later (n integer unique deferrable initially deferred)")
    shop.do("create function public.break_later() returns void language sql as 'insert into public.later values (1), (1)'")
    misled, late, fine = call(shop, "public.mislead"), call(shop, "public.break_later", max_attempts=1), call(shop, "public.note", '["x"]')
    perform(shop)
    assert [shop.status(identity) for identity in (misled, late, fine)] == ["succeeded", "failed", "succeeded"]
    assert "duplicate key" in shop.field(late, "error")["message"]


def test_a_webhook_of_a_schedule_is_a_delivery_of_its_slot(shop: Session) -> None:
    schedule(shop, "post", task=None, webhook='"https://example.org/hook"', kwargs='{"a": 1}', queue="mail", priority=3)
    due_at(shop, DAY, "post")
    tick(shop, DAY)
    (row,) = shop.rows("select task, queue, priority, max_attempts, kwargs from bridge.jobs")
    assert row[:4] == ("bridge.deliver_webhook", "mail", 3, 10)
    assert (row[4]["url"], row[4]["secret"], row[4]["callback"]) == ("https://example.org/hook", "default", "schedule post")
    assert row[4]["payload"]["type"] == "schedule.due"
    assert row[4]["payload"]["data"] == {
        "schedule": "post", "slot": "2031-05-05T00:00:00+00:00", "trigger_type": "scheduled", "args": [], "kwargs": {"a": 1},
    }  # fmt: skip
    assert shop.rows("select callback, event from bridge.deliveries") == [("schedule post", "schedule.due")]
    wait_for_value(shop.dsn, "select webhook->>'secret' from bridge.schedules", value="default")


def test_a_call_may_be_silent_for_longer_than_other_statements(db: Session) -> None:
    db.do("create function public.slow() returns void language sql as $$ select pg_sleep(1) $$")
    schedule(db, "slow", task=None, function="public.slow")
    identity = db.one("select bridge.run_schedule('slow')")
    with connect(db.dsn, name="calls", timeout=0.2) as connection:
        queries.run_calls(connection)
        assert db.status(identity) == "succeeded"
        connection.execute("set statement_timeout = 0")
        with pytest.raises(psycopg.OperationalError, match="no answer within"):
            connection.execute("select pg_sleep(30)")
