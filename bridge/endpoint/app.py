"""The application: exact paths, each answered by one function, behind a bearer token where one is set."""

from __future__ import annotations

import hmac
import json
import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from wsgiref.types import StartResponse, WSGIEnvironment

__all__ = ["App", "Request", "Response", "Route", "json_response"]

log = logging.getLogger("bridge.endpoint")


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks: the path, the query's parameters, the header Accept."""

    path: str
    query: dict[str, str]
    accept: str


@dataclass(frozen=True, slots=True)
class Response:
    """An answer."""

    body: bytes
    content_type: str
    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)


def json_response(value: Any, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    """An answer that is a JSON document; moments and ids in it become texts."""
    return Response(json.dumps(value, default=str).encode() + b"\n", "application/json", status, headers or {})


Route: TypeAlias = "Callable[[Request], Response]"


class App:
    """A WSGI application, to be served by `Server` or any other that knows WSGI.

    Args:
        routes: what answers which path, to GET and HEAD.
        token: what callers must bring as ``Authorization: Bearer …``; None lets everybody in.
        public: paths that need no token.
    """

    def __init__(self, routes: Mapping[str, Route], *, token: str | None = None, public: Iterable[str] = ()) -> None:
        self._routes = dict(routes)
        self._token = token
        self._public = frozenset(public)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        answer = self._answer(environ)
        headers = {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body)), "Cache-Control": "no-store"}
        start_response(f"{answer.status.value} {answer.status.phrase}", list({**headers, **answer.headers}.items()))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _answer(self, environ: WSGIEnvironment) -> Response:
        path = environ.get("PATH_INFO", "/")
        if path not in self._public and not self._admits(environ.get("HTTP_AUTHORIZATION", "")):
            said = {"error": "this needs the header Authorization: Bearer and the token"}
            return json_response(said, HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": "Bearer"})
        route = self._routes.get(path)
        if route is None:
            return json_response({"error": f"there is no {path}", "paths": sorted(self._routes)}, HTTPStatus.NOT_FOUND)
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return json_response({"error": f"{path} is only for GET"}, HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"})
        request = Request(path, dict(parse_qsl(environ.get("QUERY_STRING", ""))), environ.get("HTTP_ACCEPT", ""))
        try:
            return route(request)
        except BridgeError as error:
            return json_response({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)
        except Exception:
            log.exception("failed to answer path=%s", path)
            return json_response({"error": "this failed, see the log of the process"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _admits(self, authorization: str) -> bool:
        if self._token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        # Takes as long for any wrong token. WSGI hands headers over as Latin-1.
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token.encode())
