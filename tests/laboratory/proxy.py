"""A TCP proxy between a process and its server that fails as networks do, while connections go on.

One thread moves all bytes, so a change of state is one moment for every connection: what a method has returned from is in force. The
kernels on both sides see a healthy proxy, which acknowledges what it swallows. So neither keepalives nor retransmission notices what it
does: only those come through who have time limits of their own, as behind a load balancer or a firewall that answers for others.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Proxy"]

Direction = Literal["requests", "answers"]

_CHUNK = 1 << 16  # bytes read at once
_ROOM = 1 << 18  # bytes that a direction holds before it stops reading
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close is a reset


@dataclass
class _Weather:
    """What the network does now.

    Attributes:
        stalled: nothing is read, so that senders' buffers fill; all of it arrives later.
        lost: directions whose bytes are swallowed.
        latency: seconds that each byte is under way.
        rate: bytes a second and direction; None is no bound.
    """

    stalled: bool = False
    lost: frozenset[Direction] = frozenset()
    latency: float = 0.0
    rate: float | None = None


@dataclass
class _Way:
    """One direction of a connection."""

    source: socket.socket
    sink: socket.socket
    direction: Direction
    link: _Link
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)  # when each may arrive
    held: int = 0  # bytes in there
    ended: bool = False  # the source has said that nothing follows

    def take(self, weather: _Weather, now: float) -> int:
        """Read what there is; how many bytes of it are swallowed.

        Raises:
            OSError: the source is gone.
        """
        data = self.source.recv(_CHUNK)
        if not data:
            self.ended = True
        elif self.link.dead or self.direction in weather.lost:
            self.link.torn = True
            return len(data)
        else:
            last = self.waiting[-1][0] if self.waiting else 0.0
            lasts = len(data) / weather.rate if weather.rate else 0.0
            self.waiting.append((max(last, now + weather.latency) + lasts, data))
            self.held += len(data)
        return 0

    def give(self, now: float) -> None:
        """Send on what is due.

        Raises:
            OSError: the sink is gone.
        """
        while self.waiting and self.waiting[0][0] <= now:
            at, data = self.waiting.popleft()
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                sent = 0
            self.held -= sent
            if sent < len(data):
                self.waiting.appendleft((at, data[sent:]))
                return


class _Link:
    """One connection through the proxy: two sockets, two ways.

    Attributes:
        dead: nothing gets through any more, and neither side is told.
        torn: bytes of it were swallowed, so what comes later would make no sense.
    """

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.dead = self.torn = False
        self.ways = (_Way(client, server, "requests", self), _Way(server, client, "answers", self))
        for side in (client, server):
            side.settimeout(0)
            if side.family == socket.AF_INET:
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def is_over(self, weather: _Weather) -> bool:
        """Whether one side has gone, and the other has all that it said and learns of it; or both have gone."""
        if all(way.ended for way in self.ways):
            return True
        told = not self.dead and not weather.stalled
        return told and any(way.ended and not way.waiting and way.direction not in weather.lost for way in self.ways)

    def close(self, *, reset: bool = False) -> None:
        for way in self.ways:
            if reset:
                way.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            way.source.close()


class Proxy:
    """Forwards connections to a server of this machine until it is closed; healthy at first.

    Attributes:
        port: where it listens, on 127.0.0.1; stays the same, also while it refuses.
        target: a port of 127.0.0.1, or the path of a unix socket; another one is where new connections go.
        dropped: bytes swallowed so far.
    """

    def __init__(self, target: int | str, *, port: int = 0) -> None:
        """Begin to listen.

        Args:
            target: where connections go first.
            port: where to listen; 0 takes a free one.
        """
        self.dropped = 0
        self.target = target
        self._weather = _Weather()
        self._links: list[_Link] = []
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self.port = port
        self._listen()
        self._orders: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._waking, self._bell = socket.socketpair()
        self._selector.register(self._waking, selectors.EVENT_READ)
        self._done = False
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    # What the network does.

    def heal(self) -> None:
        """Pass everything on again. What a stall held back arrives; a connection that has lost bytes is half open for good."""
        self._order(self._heal)

    def cut(self) -> None:
        """Reset every connection there is; new ones pass."""
        self._order(self._reset_all)

    def refuse(self) -> None:
        """Refuse new connections, as where no server listens; those that are there go on."""
        self._order(self._stop_listening)

    def stall(self) -> None:
        """Read nothing, so that the buffers of senders fill; new connections open, and nobody answers on them."""
        self._order(lambda: self._become(_Weather(stalled=True)))

    def half_open(self) -> None:
        """Swallow everything, also of new connections: no byte, no end and no reset arrives. Those that are there are dead for good."""
        self.forget()
        self.drop("requests", "answers")

    def forget(self) -> None:
        """Make every connection half open; new ones pass: a firewall that has lost its table."""
        self._order(self._kill_all)

    def drop(self, *directions: Direction) -> None:
        """Swallow the bytes of these directions, of all connections."""
        self._order(lambda: self._become(_Weather(lost=frozenset(directions))))

    def slow(self, latency: float = 0.0, rate: float | None = None) -> None:
        """Let each byte take ``latency`` seconds, and at most ``rate`` bytes a second pass in each direction of a connection."""
        self._order(lambda: self._become(_Weather(latency=latency, rate=rate)))

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._done = True
        self._bell.send(b".")
        self._thread.join()
        for link in self._links:
            link.close()
        if self._listener is not None:
            self._listener.close()
        self._waking.close()
        self._bell.close()
        self._selector.close()

    @property
    def connections(self) -> int:
        """How many connections there are, dead ones among them."""
        return len(self._links)

    @property
    def forsaken(self) -> set[int]:
        """Ports from which it holds connections to its server whose clients have gone, and the server is never told.

        Behind a real network nothing answers the server's probes, and it lets go of them (`tcp_keepalives_idle`); here a kernel does.
        """
        left = [link.ways[1].source for link in list(self._links) if link.dead and link.ways[0].ended]
        return {side.getsockname()[1] for side in left if side.family == socket.AF_INET and side.fileno() >= 0}

    # In the thread that moves bytes.

    def _order(self, act: Callable[[], object]) -> None:
        """Have the thread do something, and wait until it has."""
        done = threading.Event()
        self._orders.append((act, done))  # type: ignore[arg-type]
        self._bell.send(b".")
        if not done.wait(10):
            raise TimeoutError(f"the proxy on port {self.port} does not answer")

    def _run(self) -> None:
        while not self._done:
            due = self._watch()
            for key, events in self._selector.select(due):
                if key.fileobj is self._waking:
                    self._waking.recv(4096)
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    self._move(key.data, events)
            while self._orders:
                act, done = self._orders.popleft()
                act()
                done.set()
            self._flush()

    def _watch(self) -> float | None:
        """Register what each socket waits for; seconds until the next delayed byte is due."""
        now, due = time.monotonic(), None
        for link in self._links:
            reading, writing = link.ways
            for side, way, back in ((reading.source, reading, writing), (writing.source, writing, reading)):
                mask = selectors.EVENT_READ if self._reads(way) else 0
                if back.waiting and not self._weather.stalled:
                    left = back.waiting[0][0] - now
                    mask |= selectors.EVENT_WRITE if left <= 0 else 0
                    due = min(due, max(left, 0.0)) if due is not None else max(left, 0.0)
                self._register(side, mask, way)
        return due

    def _reads(self, way: _Way) -> bool:
        return not way.ended and (way.link.dead or (not self._weather.stalled and way.held < _ROOM))

    def _register(self, side: socket.socket, mask: int, way: _Way) -> None:
        known = self._selector.get_map().get(side)
        if known is None and mask:
            self._selector.register(side, mask, way)
        elif known is not None and not mask:
            self._selector.unregister(side)
        elif known is not None and known.events != mask:
            self._selector.modify(side, mask, way)

    def _accept(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        try:
            server = self._reach()
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            return
        self._links.append(_Link(client, server))

    def _reach(self) -> socket.socket:
        if isinstance(self.target, int):
            return socket.create_connection(("127.0.0.1", self.target))
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.target)
        return server

    def _move(self, way: _Way, events: int) -> None:
        link = way.link
        if link not in self._links:
            return
        now = time.monotonic()
        try:
            if events & selectors.EVENT_READ:
                self.dropped += way.take(self._weather, now)
            if events & selectors.EVENT_WRITE:
                next(other for other in link.ways if other is not way).give(now)
        except BlockingIOError:
            return
        except OSError:
            way.ended = True
            way.waiting.clear()

    def _flush(self) -> None:
        """Let go of connections that are over; a dead one stays until both sides have left it."""
        for link in list(self._links):
            if link.is_over(self._weather):
                self._let_go(link)

    def _let_go(self, link: _Link, *, reset: bool = False) -> None:
        for way in link.ways:
            self._register(way.source, 0, way)
        link.close(reset=reset)
        self._links.remove(link)

    def _become(self, weather: _Weather) -> None:
        self._weather = weather

    def _heal(self) -> None:
        for link in self._links:
            link.dead = link.dead or link.torn
        self._listen()
        self._become(_Weather())

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            self.port = int(self._listener.getsockname()[1])
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _reset_all(self) -> None:
        for link in list(self._links):
            self._let_go(link, reset=True)

    def _kill_all(self) -> None:
        for link in self._links:
            link.dead = True
            for way in link.ways:
                self.dropped += way.held
                way.waiting.clear()
                way.held = 0
