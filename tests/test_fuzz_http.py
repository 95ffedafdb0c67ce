"""Strange requests, bytes and slow clients at the ports of `bridge web` and of a drainer: each is answered, or dropped in silence."""

from __future__ import annotations

import json
import re
import socket
import sys
import urllib.request
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from fix_effort import EFFORT
from fix_fuzz import QUIET
from fix_servers import Launcher, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.endpoint import App, Server, json_response
from bridge.endpoint.server import MOST_CALLERS
from bridge.local.broker import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.local.process import Process
    from bridge.testing.databases import Databases

TOKEN = "planted-web-token-4711"  # noqa: S105 - it is to be hidden
PATIENCE = 60.0  # seconds, on a busy machine
TRIES = settings(max_examples=60 * EFFORT, deadline=None, suppress_health_check=QUIET, derandomize=EFFORT == 1, database=None)
# One line of a log, by whoever has written it: what a client has sent cannot make another one.
LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING) [\w.]+ |listening on )")


class Served(NamedTuple):
    """A process that answers, its port, and a path of it that needs the token."""

    process: Process
    port: int
    path: str


@pytest.fixture(scope="module", params=["web", "drain"])
def serving(
    request: pytest.FixtureRequest, databases: Databases, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    name, port = databases.create(template), free_port()
    words = {"web": ["web", "--listen"], "drain": ["drain", "--metrics-port"]}[request.param]
    launcher = Launcher(request, tmp_path_factory.mktemp("http"))
    command = [sys.executable, "-m", "bridge", *words, str(port), "--log-level", "debug"]
    urls = {"dsn": databases.server.dsn_of(name), "broker_url": "redis://:planted-4711@127.0.0.1:1/0"}
    process = launcher.start(request.param, command, {"BRIDGE_WEB_TOKEN": TOKEN}, **urls)
    process.wait_ready(lambda: is_alive(port), PATIENCE)
    yield Served(process, port, "/stats" if request.param == "web" else "/metrics")
    launcher.end()
    databases.drop(name)


@pytest.fixture
def served(serving: Served) -> Iterator[Served]:
    """Afterwards it answers, and its log has lines of its own alone: no traceback, no secret."""
    yield serving
    wait_until(lambda: is_alive(serving.port), PATIENCE, "an answer")
    text = serving.process.log_text()
    assert "4711" not in text
    assert [line for line in text.split("\n") if line and not LINE.match(line)] == []


def is_alive(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=PATIENCE) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", served.port), PATIENCE)) as client:
        yield client


def told(served: Served, *parts: bytes, over: bool = True) -> bytes:
    """What is answered to these bytes."""
    with connected(served) as client:
        for part in parts:
            client.sendall(part)
        if over:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def status(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.[01] ([0-9]{3}) [\x20-\x7e]{1,60}\r\n", answer)
    assert found, answer[:200]
    return int(found[1])


LATIN = st.characters(max_codepoint=255)
FIELD = st.characters(max_codepoint=255, exclude_characters="\r\n")
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "G\x00T"])
PATHS = st.sampled_from([
    "/", "/metrics", "/health", "/stats", "/health/live", "//metrics", "/metrics/", "/metrics?database=off", "/metrics?database=%00&a&=&&",
    "/%0d%0aX-Evil:%201", "/%e2%80%ae%1b[2J", "/../../etc/passwd", "/health/../metrics", "*", "http://127.0.0.1/metrics", "/" + "x" * 9000,
    "/metrics?" + "a=1&" * 5000, "/\x1b]0;mine\x07", "/metrics#x", "/;", "/stats?token=planted-web-token-4711",
]) | st.text(FIELD.filter(lambda sign: not sign.isspace()), max_size=20).map(lambda text: "/" + text)  # fmt: skip
VERSIONS = st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.x", "HTTP/9" * 3, "http/1.1", "", "HTTP/-1.1"])
NAMES = st.sampled_from([
    "Accept", "Authorization", "Content-Length", "Content-Type", "Transfer-Encoding", "Host", "Connection", "Expect", "Cookie", "Proxy",
    "X-Forwarded-For", "Range", "Upgrade", "",
]) | st.text(FIELD, max_size=8)  # fmt: skip
VALUES = st.sampled_from([
    "application/openmetrics-text; version=", "application/openmetrics-text; version=1.0.0; escaping=x;q=,", "text/plain; version=1.x;a",
    "*/*", f"Bearer {TOKEN}", f"bearer  {TOKEN}", f"Basic {TOKEN}", "Bearer", "Bearer \xff", "-1", "99999999999999999999", "chunked",
    "100-continue", "x" * 70_000, "websocket", "bytes=0-", "text/html; charset=\x00", "multipart/mixed; boundary=", "",
]) | st.text(FIELD, max_size=20)  # fmt: skip
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=4) | st.just([("X", "\r\nX: ".join(map(str, range(200))))])
BODIES = st.just(b"") | st.binary(max_size=50) | st.just(b"5\r\nhello\r\n0\r\n\r\n") | st.just(b"x" * 300_000)


@TRIES
@given(METHODS, PATHS, VERSIONS, HEADERS, BODIES)
def test_any_request_is_answered(served: Served, method: str, path: str, version: str, headers: list[tuple[str, str]], body: bytes) -> None:
    head = "".join([f"{method} {path} {version}".rstrip() + "\r\n", *(f"{name}: {value}\r\n" for name, value in headers), "\r\n"])
    answer = told(served, head.encode("latin-1"), body)
    if answer.startswith(b"HTTP/"):
        brought = any(name == "Authorization" and TOKEN in value for name, value in headers)
        assert status(answer) in {400, 401, 404, 405, 414, 431, 505} | ({200, 503} if brought or "/health/live" in path else set())
        assert b"\r\nX-Evil" not in answer
    else:
        assert version == "HTTP/0.9", answer[:200]  # it had no line of a status


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), b"\x00" * 100, b"\n" * 1000, b"SSH-2.0-x\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"x" * 200_000, b"GET / HTTP/1.1\r\n" + b"A: " + b"x" * 200_000, b"GET / HTTP/1.1\r\n" + b"A: 1\r\n" * 5000 + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\n2026-11-26 00:00:00,000 ERROR root all is lost\n\n", b"GET", b"",
    ],
    ids=["tls", "zeros", "lines", "ssh", "redis", "endless", "large-header", "many-headers", "http2", "line", "half", "nothing"],
)  # fmt: skip
def test_what_is_no_request_is_refused_or_dropped(served: Served, sent: bytes) -> None:
    answer = told(served, sent)
    assert answer == b"" or 400 <= status(answer) < 500 or status(answer) == 505


def test_pipelined_requests_get_one_answer_and_an_end(served: Served) -> None:
    asked = f"GET {served.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    head, _, body = told(served, asked * 50, over=False).partition(b"\r\n\r\n")
    assert status(head + b"\r\n") == 200
    assert f"Content-Length: {len(body)}".encode() in head
    empty = told(served, asked.replace(b"GET", b"HEAD"), over=False)
    assert status(empty) == 200
    assert empty.endswith(b"\r\n\r\n")
    posted = told(served, asked.replace(b"GET", b"POST").replace(b"Host", b"Content-Length: 300000\r\nHost"), b"x" * 300_000, over=False)
    assert (status(posted), json.loads(posted.partition(b"\r\n\r\n")[2])["error"]) == (405, f"{served.path} is only for GET")


def test_slow_and_idle_clients_hold_up_nobody_and_are_dropped(served: Served) -> None:
    with ExitStack() as held:
        slow = held.enter_context(connected(served))
        slow.sendall(b"GET /health/live HT")
        deaf = held.enter_context(connected(served))  # it never takes its answer
        deaf.sendall(f"GET /metrics HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        idle = [held.enter_context(connected(served)) for _ in range(MOST_CALLERS + 20)]
        assert is_alive(served.port)
        assert told(served, f"GET {served.path} HTTP/1.0\r\n\r\n".encode()).startswith(b"HTTP/1.0 401 ")
        # The oldest give way to those that come later.
        assert slow.recv(1) == b""
        assert idle[0].recv(1) == b""
        idle[-1].sendall(b"GET /health/live HTTP/1.0\r\n\r\n")
        assert idle[-1].recv(100).startswith(b"HTTP/1.0 200 ")
    threads = f"/proc/{served.process.pid}/task"
    wait_until(lambda: len(list(Path(threads).iterdir())) < 30, PATIENCE, "an end of their threads")


def test_a_client_that_sends_byte_by_byte_is_given_up_in_time() -> None:
    app = App({"/": lambda _: json_response({})})
    with Server(app, "127.0.0.1", 0, setting="none", patience=0.5) as server:
        address = "127.0.0.1", int(server.url.rpartition(":")[2])
        with closing(socket.create_connection(address, PATIENCE)) as client:
            client.settimeout(0.05)

            def is_dropped() -> bool:
                try:
                    client.sendall(b"x")
                    return client.recv(1) == b""
                except TimeoutError:
                    return False
                except ConnectionError:
                    return True

            wait_until(is_dropped, PATIENCE, "an end of its patience")
