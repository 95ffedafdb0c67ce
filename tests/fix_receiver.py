"""A real HTTP server that takes webhooks, and answers as a test has told it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "whsec_" + base64.b64encode(b"sixteen or more secret bytes").decode()


@dataclass
class Message:
    """One request that came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    def is_signed_with(self, secret: str) -> bool:
        """As the Standard Webhooks specification has receivers verify it."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        return expected in self.headers["webhook-signature"].split()


@dataclass
class Receiver:
    """What came; `answers` are the statuses of the next requests, 204 after them; a `gate` holds each request until it is set.

    With `retry_after`, answers that are no success name it.
    """

    answers: list[int] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    retry_after: str | None = None

    def url(self, path: str = "/hooks") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def answer(self, message: Message) -> int:
        self.messages.append(message)
        self.gate.wait(60)
        return self.answers.pop(0) if self.answers else 204


def handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status = receiver.answer(Message(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(status)
            if status in {301, 302, 307}:
                self.send_header("location", receiver.url("/elsewhere"))
            if status >= 300 and receiver.retry_after is not None:
                self.send_header("retry-after", receiver.retry_after)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    return Handler


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., Receiver]]:
    """Start receivers; `held=True` keeps each request waiting until the gate is set."""
    servers = []

    def start(*answers: int, held: bool = False) -> Receiver:
        receiver = Receiver(list(answers))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(receiver))
        server.daemon_threads = True
        receiver.port = server.server_address[1]
        if not held:
            receiver.gate.set()
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append((server, receiver))
        return receiver

    yield start
    for server, receiver in servers:
        receiver.gate.set()
        server.shutdown()
        server.server_close()
