"""The doctor on servers that are away, deaf, of another release, or throw jobs away."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from fix_doctor import Doctor, execute

import bridge
from bridge import schema
from bridge.doctor import CHECKS, Grade, examine
from bridge.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.local.broker import RedisServer
    from bridge.local.postgres import PostgresServer


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_database_that_is_down_is_a_red_row_and_green_when_it_is_back(durable_postgres: PostgresServer) -> None:
    doctor = Doctor(durable_postgres.dsn)
    durable_postgres.kill()
    down = doctor.look("database")
    assert down.status is Grade.ERROR
    assert "check BRIDGE_DATABASE_URL and that Postgres runs" in down.remedy
    durable_postgres.start()
    assert doctor.look("database").status is Grade.OK


def test_with_the_database_down_what_needs_it_is_skipped_and_says_so(redis_url: str) -> None:
    found = {one.name: one for one in examine(Settings(database_url="postgresql://me@127.0.0.1:1/x", broker_url=redis_url))}
    assert list(found) == list(CHECKS)
    assert found["database"].status is Grade.ERROR
    assert found["broker"].status is Grade.OK
    rest = {one.status for name, one in found.items() if name not in {"database", "broker"}}
    assert rest == {Grade.SKIPPED}
    assert "needs database" in found["tick"].found


def test_a_missing_database_url_is_a_red_row_that_names_the_variable() -> None:
    finding = Doctor("").look("database")
    assert finding.status is Grade.ERROR
    assert "BRIDGE_DATABASE_URL is not set" in finding.found


def test_a_deaf_database_and_a_deaf_broker_are_red_rows_within_their_time_limits(deaf_port: int) -> None:
    settings = Settings(database_url=f"postgresql://me@127.0.0.1:{deaf_port}/x", broker_url=f"redis://127.0.0.1:{deaf_port}/0")
    began = time.monotonic()
    found = {one.name: one for one in examine(settings, timeout=1.0)}
    assert time.monotonic() - began < 20
    assert found["database"].status is Grade.ERROR
    assert found["broker"].status is Grade.ERROR
    assert found["plugin"].status is Grade.SKIPPED


def test_a_database_that_takes_no_writes_is_red_until_it_does(dsn: str) -> None:
    doctor, name = Doctor(dsn), execute(dsn, "select current_database()")[0][0]
    execute(dsn, f"alter database {name} set default_transaction_read_only = on")
    refused = doctor.look("database")
    assert refused.status is Grade.ERROR
    assert "default_transaction_read_only" in refused.remedy
    execute(dsn, f"set transaction_read_only = off; alter database {name} reset default_transaction_read_only")
    assert doctor.look("database").status is Grade.OK


def test_an_older_schema_is_red_until_bridge_install(dsn: str) -> None:
    doctor = Doctor(dsn)
    execute(dsn, "create or replace function bridge.version() returns text language sql immutable return '0.0.9'")
    old = doctor.look("schema")
    assert old.status is Grade.ERROR
    assert "schema is at 0.0.9" in old.found
    assert "bridge install" in old.remedy
    assert doctor.look("tick").status is Grade.SKIPPED
    schema.install(dsn)
    assert doctor.look("schema").found == f"bridge {bridge.__version__}, as this process"


def test_a_newer_schema_asks_for_a_newer_process(dsn: str) -> None:
    for name in ("version", "serves_from"):
        execute(dsn, f"create or replace function bridge.{name}() returns text language sql immutable return '99.0.0'")
    newer = Doctor(dsn).look("schema")
    assert newer.status is Grade.ERROR
    assert newer.remedy == "upgrade this process"


def test_a_missing_schema_is_red_until_bridge_install(empty_dsn: str) -> None:
    doctor = Doctor(empty_dsn)
    none = doctor.look("schema")
    assert none.status is Grade.ERROR
    assert "bridge install" in none.remedy
    schema.install(empty_dsn)
    assert doctor.look("schema").status is Grade.OK


def test_a_check_that_waits_for_a_lock_is_red_and_the_others_go_on(dsn: str) -> None:
    doctor = Doctor(dsn, timeout=1.0)
    with psycopg.connect(dsn) as connection:
        connection.execute("lock table bridge.tick_state in access exclusive mode")
        found = {one.name: one for one in examine(Settings(database_url=dsn), names=["tick", "days"], timeout=1.0)}
        assert found["tick"].status is Grade.ERROR
        assert "lock" in found["tick"].remedy
        assert found["days"].status is Grade.OK
    assert "nobody has ever ticked" in doctor.look("tick").found


def test_a_broker_that_is_down_is_a_red_row_and_green_when_it_is_back(dsn: str, redis_server: RedisServer) -> None:
    doctor = Doctor(dsn, redis_server.url)
    redis_server.kill()
    down = doctor.look("broker")
    assert down.status is Grade.ERROR
    assert "check BRIDGE_BROKER_URL and that the broker runs" in down.remedy
    redis_server.start()
    assert doctor.look("broker").status is Grade.OK


def test_a_broker_of_an_unknown_kind_is_a_red_row() -> None:
    finding = Doctor("", "carrier-pigeon://coop").look("broker")
    assert finding.status is Grade.ERROR
    assert "carrier-pigeon" in finding.found


def test_a_broker_that_evicts_is_red_until_its_policy_is_noeviction(redis_server: RedisServer) -> None:
    doctor = Doctor("", redis_server.url)
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert doctor.look("broker").status is Grade.WARNING
        client.config_set("maxmemory", "100mb")
        evicting = doctor.look("broker")
        assert evicting.status is Grade.ERROR
        assert "maxmemory-policy is allkeys-lru" in evicting.found
        assert "config set maxmemory-policy noeviction" in evicting.remedy
        client.config_set("maxmemory-policy", "noeviction")
    assert doctor.look("broker").status is Grade.OK


def test_a_broker_that_is_nearly_full_is_a_warning_until_it_has_more_memory(redis_server: RedisServer) -> None:
    doctor = Doctor("", redis_server.url)
    with redis_server.client() as client:
        client.set("ballast", b"x" * 8_000_000)
        client.config_set("maxmemory", "200mb")
        full = doctor.look("broker", memory_used=0.03)
        assert full.status is Grade.WARNING
        assert "raise maxmemory" in full.remedy
        client.config_set("maxmemory", "10gb")
    assert doctor.look("broker", memory_used=0.03).status is Grade.OK


def test_no_row_shows_a_password(deaf_port: int) -> None:
    settings = Settings(database_url="postgresql://me:geheim@127.0.0.1:1/x", broker_url=f"redis://:geheim@127.0.0.1:{deaf_port}/0")
    assert "geheim" not in str(examine(settings, timeout=0.5))
