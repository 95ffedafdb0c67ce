"""Delivering a webhook: one signed POST, made by the task ``bridge.deliver_webhook``, repeated as any job is.

The form is that of the Standard Webhooks specification: the headers ``webhook-id`` (the same in every attempt), ``webhook-timestamp``
(of this attempt) and ``webhook-signature``. The secret is in the worker's environment or the vault.

The standard library does it: every worker can deliver without an extra, nothing is redirected, and the connection goes to the address
that was looked at, whatever the name resolves to a moment later.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import json
import socket
import ssl
import time
from base64 import b64decode, b64encode
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import bridge
from bridge.application import membership
from bridge.errors import DeliveryError, NotFoundError, PermanentError
from bridge.queries import callbacks
from bridge.queries.secrets import headers_of_callback
from bridge.worker.secrets import in_environment, resolved, secret_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bridge.queries.connection import Connection

__all__ = ["NAME", "deliver", "register", "secret_variable", "signatures"]

NAME = "bridge.deliver_webhook"  # the SQL that makes these jobs knows it
_TIMEOUT = 15.0  # seconds until the receiver has to be reached, and between two parts of its answer
_SECRET = "BRIDGE_WEBHOOK_SECRET"  # noqa: S105 - the name of a variable
_PREFIX = "whsec_"
_SHORTEST_PAUSE, _LONGEST_PAUSE = 5.0, 86400.0  # seconds that a receiver may ask for: attempts are few, and messages grow old
_BUSY = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}  # who answers so may say when it will not be


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a URL leads."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> _Place:
        parts = urlsplit(url)
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            port = 0
        if parts.scheme not in {"http", "https"} or not parts.hostname or not port or parts.username is not None:
            raise PermanentError(f"webhook url {_shown(url)} is no http or https address without user and password: correct it")
        path = parts.path or "/"
        return cls(parts.scheme, parts.hostname, port, f"{path}?{parts.query}" if parts.query else path)


def register(app: Any) -> None:
    """Give an application the task that delivers webhooks."""

    def deliver_webhook(self: Any, url: str, payload: Mapping[str, Any], secret: str, callback: str = "") -> dict[str, int]:
        connections = membership(self.app).connections  # type: ignore[union-attr]
        allowed = callbacks.allowed_hosts(connections.get())
        # Not of the job: whoever may enqueue could make one that sends a secret elsewhere.
        further = resolved(connections.get, headers_of_callback(connections.get(), callback, url))
        return {"status": deliver(self.request.id, url, payload, secret, allowed, further, connections.get)}

    app.task(name=NAME, bind=True, shared=False)(deliver_webhook)


def deliver(
    identity: str,
    url: str,
    payload: Mapping[str, Any],
    secret: str,
    allowed: Sequence[str],
    further: Mapping[str, str] | None = None,
    connection: Callable[[], Connection] | None = None,
) -> int:
    """Post a message.

    Args:
        identity: of the message, the same in every attempt.
        url: where to.
        payload: the message.
        secret: the name of the secret that signs it, or ``vault:NAME``.
        allowed: patterns of hosts; none allows all whose address is public.
        further: headers beyond those of the form; those win.
        connection: gives one to the database, for a secret in its vault.

    Returns:
        The HTTP status, 2xx.

    Raises:
        PermanentError: the address can never be one, is not allowed, or is gone for good (410).
        DeliveryError: no answer, another status, or no such secret. After 429 or 503 it says when the receiver wants to be asked again.
    """
    place = _Place.of(url)
    body = json.dumps(payload, separators=(",", ":"), sort_keys=True).encode()
    moment = int(time.time())
    headers = {
        **(further or {}),
        "content-type": "application/json", "user-agent": f"celery-bridge/{bridge.__version__}", "webhook-id": identity,
        "webhook-timestamp": str(moment), "webhook-signature": signatures(_secret(secret, connection), identity, moment, body),
    }  # fmt: skip
    try:
        status, retry_after = _post(place, _addresses(place, allowed), body, headers)
    except (OSError, http.client.HTTPException) as error:
        raise DeliveryError(f"webhook {_shown(url)} gave no answer: {error or type(error).__name__}", "it is tried again") from error
    if status == HTTPStatus.GONE:
        raise PermanentError(f"webhook {_shown(url)} answered 410, it is gone: remove the callback")
    if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        refused = DeliveryError(f"webhook {_shown(url)} answered {status}", "it is tried again; redirects are not followed")
        refused.retry_after = _pause(retry_after, time.time()) if status in _BUSY else None
        raise refused
    return status


def _pause(asked: str | None, now: float) -> float | None:
    """Seconds until the moment that a receiver names by ``Retry-After``, in seconds or as a date; None where it names none."""
    if asked is None:
        return None
    try:
        seconds = float(asked) if asked.strip().isdecimal() else parsedate_to_datetime(asked).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, _SHORTEST_PAUSE), _LONGEST_PAUSE)


def signatures(secret: str, identity: str, moment: int, body: bytes) -> str:
    """The header ``webhook-signature``: one for each secret, of which there are several while one is exchanged for another."""
    signed = f"{identity}.{moment}.".encode() + body
    made = (hmac.new(key, signed, hashlib.sha256).digest() for key in _keys(secret))
    return " ".join(f"v1,{b64encode(digest).decode()}" for digest in made)


def _keys(secret: str) -> Iterable[bytes]:
    for part in secret.split():
        yield b64decode(part.removeprefix(_PREFIX)) if part.startswith(_PREFIX) else part.encode()


def secret_variable(name: str) -> str:
    """The variable that holds the secret of this name."""
    return _SECRET if name == "default" else f"{_SECRET}_{name.upper()}"


def _secret(name: str, connection: Callable[[], Connection] | None) -> str:
    """The secret of this name, or of this reference."""
    try:
        if name.startswith(("env:", "vault:")):
            return secret_of(connection, name, prefix=f"{_SECRET}_")
        return in_environment(secret_variable(name))
    except NotFoundError as error:
        raise DeliveryError(error.args[0], f"{error.hint}; the message is tried again") from error


def _shown(url: str) -> str:
    """An address without its query, in which there may be a token."""
    return url.partition("?")[0]


def _addresses(place: _Place, allowed: Sequence[str]) -> list[str]:
    """The addresses of a host that a message may go to.

    Raises:
        PermanentError: there are none.
        OSError: the name cannot be resolved now.
    """
    named = any(fnmatchcase(place.host, pattern) for pattern in allowed)
    if allowed and not named:
        raise PermanentError(f"webhook host {place.host} is not allowed: add it to the setting webhook_hosts, or change the address")
    found = [str(info[4][0]) for info in socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)]
    fit = [address for address in found if named or _is_public(address)]
    if not fit:
        raise PermanentError(
            f"webhook host {place.host} has no public address ({', '.join(sorted(set(found)))}): "
            "a host of one's own network has to be named in the setting webhook_hosts"
        )
    return fit


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None) or found
    return bool(inner.is_global and not inner.is_multicast)


def _post(place: _Place, addresses: Sequence[str], body: bytes, headers: Mapping[str, str]) -> tuple[int, str | None]:
    """The status of the answer, and its header ``Retry-After``."""
    connection = http.client.HTTPConnection(place.host, place.port, timeout=_TIMEOUT)
    connection.default_port = 443 if place.scheme == "https" else 80  # what the header Host leaves out
    connection.sock = _connected(place, addresses)
    try:
        connection.request("POST", place.path, body, dict(headers))
        response = connection.getresponse()
        response.read(1024)  # what it says is not kept: it may be anything
        return response.status, response.headers["retry-after"]
    finally:
        connection.close()


def _connected(place: _Place, addresses: Sequence[str]) -> socket.socket:
    """A connection to the first address that answers."""
    last: OSError | None = None
    for address in addresses:
        try:
            plain = socket.create_connection((address, place.port), timeout=_TIMEOUT)
        except OSError as error:
            last = error
            continue
        return ssl.create_default_context().wrap_socket(plain, server_hostname=place.host) if place.scheme == "https" else plain
    raise last or OSError("no address")
