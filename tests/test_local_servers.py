"""Local Postgres and Redis, started for real."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import redis

if TYPE_CHECKING:
    from bridge.local.broker import RedisServer


def test_each_test_gets_an_empty_database(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as connection:
        row = connection.execute("select count(*) from pg_class where relnamespace = 'public'::regnamespace").fetchone()
    assert row == (0,)


def test_a_redis_keeps_its_url_over_a_restart_and_forgets_everything(redis_server: RedisServer, redis_url: str) -> None:
    with redis_server.client() as client:
        client.set("key", "value")
    redis_server.kill()
    redis_server.start()
    assert redis_server.url == redis_url
    with redis.Redis.from_url(redis_url) as client:
        assert client.get("key") is None
