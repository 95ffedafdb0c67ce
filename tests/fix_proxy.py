"""A TCP proxy between a process and its server that can lose what goes one way, as a broken network does."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

import pytest


class Proxy:
    """Forwards connections to a port of this machine.

    Set `requests` or `answers` to False and that direction is read and thrown away, until it is set to True again.
    """

    def __init__(self, target: int) -> None:
        self.requests = True
        self.answers = True
        self.dropped = 0  # bytes thrown away
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._peers: dict[socket.socket, tuple[socket.socket, str]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        for held in (self._listener, *self._peers):
            held.close()

    def _run(self) -> None:
        while not self._done.is_set():
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._forward(key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        self._peers |= {client: (server, "requests"), server: (client, "answers")}
        for side in (client, server):
            self._selector.register(side, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        if source not in self._peers:
            return
        sink, direction = self._peers[source]
        try:
            data = source.recv(1 << 16)
            if not data:
                raise ConnectionError
            if getattr(self, direction):
                sink.sendall(data)
            else:
                self.dropped += len(data)
        except OSError:
            for side in (source, sink):
                with contextlib.suppress(KeyError):
                    self._selector.unregister(side)
                self._peers.pop(side, None)
                side.close()


@pytest.fixture
def redis_proxy(redis_server):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """A proxy before this test's Redis."""
    proxy = Proxy(redis_server.port)
    yield proxy
    proxy.close()
