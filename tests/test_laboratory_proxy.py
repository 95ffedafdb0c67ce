"""The proxy of the fault laboratory does to connections what a network does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import FAST, _make_postgres, wait_until
from laboratory.faults.failover import Standbys
from laboratory.proxy import Proxy
from laboratory.world import Needs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOON = 0.3  # seconds in which a healthy proxy has answered long ago


class Echo:
    """A server that says what it hears, and counts connections that have ended."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.ended = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=(self._listener.accept()[0],), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer:
            while data := peer.recv(1 << 16):
                peer.sendall(data)
        self.ended += 1

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    proxy = Proxy(echo.port)
    yield proxy
    proxy.close()


def connected(proxy: Proxy, timeout: float = 5.0) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout)
    assert asked(client, b"hello") == b"hello"
    return client


def asked(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return client.recv(1 << 16)


def is_mute(client: socket.socket) -> bool:
    client.settimeout(SOON)
    with contextlib.suppress(TimeoutError):
        return asked(client, b"x") is None
    return True


def test_a_cut_resets_what_is_there_and_lets_new_connections_pass(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            asked(client, b"x")
    connected(proxy).close()


def test_refusing_leaves_what_is_there_alone_until_it_is_healed(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.refuse()
        assert asked(client, b"still") == b"still"
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
        proxy.heal()
        connected(proxy).close()


def test_a_stall_fills_the_buffers_of_senders_and_loses_nothing(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.stall()
        client.settimeout(SOON)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 1 << 28:
                sent += client.send(b"x" * (1 << 20))
        assert sent < 1 << 28
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
            assert is_mute(other)
            proxy.heal()
            client.settimeout(20)
            while sent:
                sent -= len(client.recv(1 << 20))
            other.settimeout(5)
            assert other.recv(10) == b"x"


def test_what_was_half_open_is_never_told(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as client:
        proxy.half_open()
        assert is_mute(client)
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
            assert is_mute(other)
        proxy.heal()
        assert is_mute(client)
    connected(proxy).close()
    wait_until(lambda: echo.ended, what="the end of the one connection that passes")
    assert echo.ended == 1
    assert proxy.dropped == 3


def test_connections_whose_clients_left_untold_are_known(proxy: Proxy, echo: Echo) -> None:
    gone, here = connected(proxy), connected(proxy)
    proxy.forget()
    assert proxy.forsaken == set(), "its client still has it"
    gone.close()
    wait_until(lambda: len(proxy.forsaken) == 1)
    assert echo.ended == 0
    assert proxy.connections == 2
    here.close()


def test_one_direction_can_be_lost(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.drop("answers")
        assert is_mute(client)
        proxy.heal()
        assert is_mute(client)  # bytes are missing in the middle: nothing sensible could follow
    connected(proxy).close()


def test_a_slow_network_delays_and_bounds(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.slow(latency=0.1)
        began = time.monotonic()
        assert asked(client, b"slow") == b"slow"
        assert time.monotonic() - began >= 0.2
        proxy.slow(rate=1000)
        began = time.monotonic()
        assert asked(client, b"x" * 200)
        assert time.monotonic() - began >= 0.4


def test_a_commit_waits_while_the_line_from_a_synchronous_standby_to_its_primary_is_deaf(server_folder: Path) -> None:
    folder = server_folder / "line"
    folder.mkdir(mode=0o711)
    primary = _make_postgres(folder / "pg1", FAST).start()
    lines: list[Proxy] = []

    def open_link(_slot: str, _server: str, target: str) -> Proxy:
        lines.append(Proxy(target))
        return lines[-1]

    world: Any = SimpleNamespace(folder=folder, postgres=primary, needs=Needs(standby="sync"), open_link=open_link)
    standbys = Standbys(world)
    try:
        standbys.start()
        (line,) = lines
        waiting = "select 1 from pg_stat_activity where wait_event = 'SyncRep'"
        with (
            psycopg.connect(primary.dsn, autocommit=True) as one,
            psycopg.connect(primary.dsn, autocommit=True) as other,
            ThreadPoolExecutor(1) as pool,
        ):
            line.half_open()
            made = pool.submit(one.execute, "create table made ()")
            try:
                wait_until(lambda: other.execute(waiting).fetchone(), what="the commit to wait for the standby")
            finally:
                line.heal()
                line.cut()
            made.result()
    finally:
        standbys.stop()
        primary.stop()
        for line in lines:
            line.close()
