"""A start that a crash of Postgres forgets: harmless where there is one message, remembered where there may be two."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from fix_sql import Claim, Session

if TYPE_CHECKING:
    from uuid import UUID

    from bridge.local.postgres import PostgresServer


@pytest.fixture
def forgetful(durable_postgres: PostgresServer) -> PostgresServer:
    """A server whose log writer rests ten seconds, so that a crash surely forgets what was not forced to disk."""
    session = Session(durable_postgres.dsn)
    session.do("alter system set wal_writer_delay = '10s'")
    session.do("alter system set bgwriter_delay = '10s'")
    session.connection.close()
    durable_postgres.stop()
    return durable_postgres.start()


def crash(server: PostgresServer) -> Session:
    server.kill()
    server.start()
    return Session(server.dsn)


def started(server: PostgresServer, *, copied: bool) -> tuple[Claim, UUID]:
    """A started job; when copied, a first drainer died between publishing it and marking it."""
    session = Session(server.dsn)
    session.enqueue()
    if copied:
        session.claim()
        session.tick(by="31 seconds")
    claim = session.publish()
    run = session.start(claim)
    assert run is not None
    return claim, run


def test_a_finish_counts_although_a_crash_forgot_its_start(forgetful: PostgresServer) -> None:
    claim, run = started(forgetful, copied=False)
    after = crash(forgetful)
    assert after.status(claim.id) == "published"
    query = "select bridge.finish(%s, %s, 'succeeded', %s::json, p_token => %s)"
    assert after.one(query, claim.seq, run, json.dumps(42), claim.token) is True
    assert after.rows("select status, result, attempts from bridge.jobs where id = %s", claim.id) == [("succeeded", 42, 1)]


def test_a_failure_counts_although_a_crash_forgot_its_start(forgetful: PostgresServer) -> None:
    claim, run = started(forgetful, copied=False)
    after = crash(forgetful)
    error = json.dumps({"type": "ValueError", "message": "broken", "traceback": None})
    assert after.one("select bridge.fail(%s, %s, %s::json, p_token => %s)", claim.seq, run, error, claim.token) == "scheduled"


def test_a_start_is_on_disk_where_a_second_copy_may_exist(forgetful: PostgresServer) -> None:
    claim, _ = started(forgetful, copied=True)
    after = crash(forgetful)
    assert after.status(claim.id) == "running"
    assert after.start(claim) is None


def test_a_start_before_the_mark_takes_its_claim_to_disk(forgetful: PostgresServer) -> None:
    session = Session(forgetful.dsn)
    session.enqueue()
    session.do("set synchronous_commit = off")
    claim = session.claim()[0]
    assert Session(forgetful.dsn).start(claim) is not None
    assert crash(forgetful).status(claim.id) == "running"


def test_a_mark_takes_its_claim_to_disk(forgetful: PostgresServer) -> None:
    session = Session(forgetful.dsn)
    session.enqueue()
    session.do("set synchronous_commit = off")
    session.publish()
    after = crash(forgetful)
    assert after.one("select count(*) from bridge.inflight where state = 'published'") == 1
