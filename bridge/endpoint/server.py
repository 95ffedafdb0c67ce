"""The server: the standard library's, a thread a request; enough for scrapers and operators, and no further dependency.

Whoever reaches the port may be slow, silent or no client of HTTP at all. So there are bounds on how long a caller may take, and on how
many there are; who goes beyond is dropped, and is a line for those who look closely, no error.
"""

from __future__ import annotations

import io
import logging
import socket
import socketserver
import sys
import time
from contextlib import suppress
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from bridge.errors import SettingError

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

__all__ = ["MOST_CALLERS", "Server"]

log = logging.getLogger("bridge.endpoint")

MOST_CALLERS = 100  # that are connected at a time; the one that has been longest gives way to another
_FAREWELL = 1.0  # seconds in which what a caller still sends is taken, so that the answer reaches him: else it is lost with the reset
_LONGEST_LINE = 65536  # bytes of a request's first line
_SHOWN = 200  # characters of it in a log


class _Arriving(io.RawIOBase):
    """What a caller sends, until his time is over: a limit of each read alone would let him send a byte at a time."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes.

        Raises:
            TimeoutError: his time is over.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not come in time")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Answer(ServerHandler):
    server_software = "bridge"

    def log_exception(self, exc_info: Any) -> None:
        """Who does not take his answer has gone; anything else is a fault of ours."""
        _note(exc_info[1])


def _note(error: BaseException | None) -> None:
    if isinstance(error, OSError):
        log.debug("a caller has gone error=%s", error)
    else:
        log.error("failed to answer a caller", exc_info=error)


class _Handler(WSGIRequestHandler):
    server: _Threads
    server_version = "bridge"
    sys_version = ""
    default_request_version = "HTTP/1.0"  # a status line for those, too, who say no version: for HTTP/0.9 there would be none

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Arriving(self.connection, self.server.patience))

    def handle(self) -> None:
        """One request, as WSGIRequestHandler has it, with an answer of our own kind."""
        self.raw_requestline = self.rfile.readline(_LONGEST_LINE + 1)
        if len(self.raw_requestline) > _LONGEST_LINE:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
        elif self.parse_request():
            self.connection.settimeout(self.server.patience)
            answer = _Answer(self.rfile, self.wfile, sys.stderr, self.get_environ(), multithread=True)  # type: ignore[arg-type]
            answer.request_handler = self  # type: ignore[attr-defined]
            answer.run(self.server.get_app())  # type: ignore[arg-type]
        self._take_leave()

    def _take_leave(self) -> None:
        self.wfile.flush()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            rest = _Arriving(self.connection, _FAREWELL)
            while rest.readinto(bytearray(1 << 16)):
                pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002 - its signature
        """What is no request is refused without being quoted."""
        super().send_error(code)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its signature
        """Each request, for those who look closely."""
        log.debug("request client=%s line=%s", self.client_address[0], (format % args)[:_SHOWN])


class _Threads(socketserver.ThreadingMixIn, WSGIServer):
    patience = 0.0
    daemon_threads = True  # a caller that has gone deaf does not keep the process
    request_queue_size = MOST_CALLERS

    def __init__(self, *args: Any) -> None:
        self._callers: dict[Any, None] = {}  # oldest first
        self._lock = Lock()
        super().__init__(*args)

    def server_bind(self) -> None:
        # WSGIServer's own asks the name service who we are, which may take long.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for a caller; the oldest loses his when there are too many."""
        with self._lock:
            if len(self._callers) >= MOST_CALLERS:
                oldest = next(iter(self._callers))
                del self._callers[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._callers[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The end of a caller's thread."""
        with self._lock:
            self._callers.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - its signature
        """Whatever a caller's thread raises; the standard library prints it."""
        _note(sys.exc_info()[1])


class _Threads6(_Threads):
    address_family = socket.AF_INET6


class Server:
    """Serves an application from a thread of its own, for as long as the block lasts.

    Args:
        app: a WSGI application.
        host: where to listen.
        port: 0 takes any that is free.
        setting: who gave the address, for the error.
        patience: seconds that a caller has for the whole of a request, and as many for taking each part of the answer.

    Raises:
        SettingError: it cannot listen there.
    """

    def __init__(self, app: WSGIApplication, host: str, port: int, *, setting: str, patience: float = 10.0) -> None:
        kind = _Threads6 if ":" in host else _Threads
        try:
            self._server = kind((host, port), _Handler)
        except OSError as error:
            where = f"{host}:{port}"
            raise SettingError(
                f"cannot listen on {where}: {(error.strerror or str(error)).lower()}", f"give another address by {setting}"
            ) from error
        self._server.patience = patience
        self._server.set_app(app)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="bridge-endpoint", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        log.info("listening url=%s", self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
