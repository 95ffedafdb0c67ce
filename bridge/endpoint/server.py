"""The server: the standard library's, a thread a request; enough for scrapers and operators, and no further dependency."""

from __future__ import annotations

import logging
import socket
import socketserver
from threading import Thread
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from bridge.errors import SettingError

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

__all__ = ["Server"]

log = logging.getLogger("bridge.endpoint")


class _Handler(WSGIRequestHandler):
    timeout = 10.0  # seconds that a caller may keep a thread waiting

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its signature
        """Each request, for those who look closely."""
        log.debug("request client=%s line=%s", self.client_address[0], format % args)


class _Threads(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a caller that has gone deaf does not keep the process

    def server_bind(self) -> None:
        # WSGIServer's own asks the name service who we are, which may take long.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()


class _Threads6(_Threads):
    address_family = socket.AF_INET6


class Server:
    """Serves an application from a thread of its own, for as long as the block lasts.

    Args:
        app: a WSGI application.
        host: where to listen.
        port: 0 takes any that is free.
        setting: who gave the address, for the error.

    Raises:
        SettingError: it cannot listen there.
    """

    def __init__(self, app: WSGIApplication, host: str, port: int, *, setting: str) -> None:
        kind = _Threads6 if ":" in host else _Threads
        try:
            self._server = kind((host, port), _Handler)
        except OSError as error:
            where = f"{host}:{port}"
            raise SettingError(
                f"cannot listen on {where}: {(error.strerror or str(error)).lower()}", f"give another address by {setting}"
            ) from error
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
